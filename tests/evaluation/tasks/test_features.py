"""What encoders show, how it is pooled, and when the cache may be believed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import tiny
from safetensors.torch import save_file
from tensor_memory import MemoryPeak

from evaluation.planted import corners, exported
from iwm import run_folder
from iwm.evaluation.tasks import features, probes
from iwm.evaluation.tasks.probes import labelled_splits
from iwm.runtime import devices
from iwm.runtime.devices import CPU
from iwm.runtime.errors import UserError
from iwm.verbs.probe import Probe


@pytest.fixture
def run(tmp_path: Path) -> str:
    (tmp_path / "run").mkdir()
    return exported(tmp_path / "run")


@pytest.fixture
def train(tmp_path: Path):
    return labelled_splits(*corners(tmp_path), size=16).train


def test_the_ema_encoder_is_the_default_and_the_student_an_option(run, images):
    model = run_folder.load_model(run)
    torch.testing.assert_close(features.open_encoder(run)(images), model.encode(images).values)
    student = features.open_encoder(run, student=True)
    torch.testing.assert_close(student(images), model.encode(images, student=True).values)
    assert not torch.allclose(student(images), features.open_encoder(run)(images))


def test_layers_are_numbered_from_one_and_the_last_goes_through_the_final_norm(run, images):
    model = run_folder.load_model(run)
    assert [features.layer_number(layer, 12) for layer in (0, -1, 12, 1, -12)] == [12, 12, 12, 1, 1]
    first = features.open_encoder(run, layer=1)(images)
    body = model.target_encoder
    wanted = torch.nn.functional.layer_norm(body.blocks[0](body.embed(images)), (32,))
    torch.testing.assert_close(first, wanted)
    with pytest.raises(UserError, match="no layer 3"):
        features.open_encoder(run, layer=3)


def test_pooling(run, images):
    encoder = features.open_encoder(run)
    tokens = features.encode(encoder, images, pooling="tokens")
    assert tokens.dtype == torch.float16
    assert tokens.shape == (8, 16, 32)
    pooled = features.encode(encoder, images)
    torch.testing.assert_close(pooled, encoder(images).mean(1))
    torch.testing.assert_close(tokens.float().mean(1), pooled, atol=2e-3, rtol=0)
    torch.testing.assert_close(features.encode(encoder, images, pooling="max"), encoder(images).amax(1))


def test_several_layers_are_normed_and_pooled_each_for_itself_and_lie_side_by_side(run, images):
    body = run_folder.load_model(run).target_encoder.double()
    with torch.no_grad():
        tokens, wanted = body.embed(images.double() / 255), []
        for block in body.blocks:
            tokens = block(tokens)
            centred = tokens - tokens.mean(-1, keepdim=True)
            normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            wanted.append(normed.mean(1))
    found = {layers: features.encode(features.open_encoder(run, layers=layers), images) for layers in (1, 2, "all")}
    torch.testing.assert_close(found[2].double(), torch.cat(wanted, 1), atol=1e-5, rtol=1e-4)
    assert torch.equal(found["all"], found[2])
    assert torch.equal(found[1], found[2][:, 32:])
    assert not torch.allclose(found[1], features.encode(features.open_encoder(run), images)), "the norm has an affine"
    twin = features.open_encoder(run, layers=2).drawn_anew(1)
    assert features.encode(twin, images).shape == (8, 64)
    with pytest.raises(UserError, match="There are no 3 layers in an encoder of 2 blocks; give 1 to 2, or all"):
        features.open_encoder(run, layers=3)


@pytest.mark.parametrize("pooling", ["mean", "2x2"])
def test_the_last_block_alone_comes_behind_several_of_the_same_pass(run, images, pooling):
    both = features.open_encoder(run, layers="all").reading(2, last_too=True)
    found = features.apart(both, features.encode(both, images, pooling=pooling), pooling, CPU)
    for name, layers in {"": 2, "last_block_": 0}.items():
        alone = features.encode(both.reading(layers), images, pooling=pooling)
        assert torch.equal(found[name], alone)
    assert both.drawn_anew(1).last_too


def test_quarters_are_pooled_each_for_itself(run, images):
    tokens = features.open_encoder(run)(images).unflatten(1, (4, 4))
    wanted = [tokens[:, top : top + 2, left : left + 2].mean((1, 2)) for top in (0, 2) for left in (0, 2)]
    found = features.encode(features.open_encoder(run), images, pooling="2x2")
    torch.testing.assert_close(found, torch.cat(wanted, 1))
    with pytest.raises(UserError, match="--pooling 2x2 needs tokens on a square grid, not 15 of them"):
        features.pooled(torch.zeros(1, 15, 4), "2x2")


def test_raw_pixels_are_area_averages():
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    images[0, 1, :2, :2] = torch.tensor([[255, 0], [255, 0]], dtype=torch.uint8)
    found = features.encode(features.RawPixels(8, 16), images).view(3, 8, 8)
    assert found[1, 0, 0] == 0.5
    assert found.sum() == 0.5


def test_a_random_encoder_is_the_same_architecture_with_other_weights(run, images):
    encoder = features.open_encoder(run)
    drawn, again, other = (encoder.drawn_anew(seed) for seed in (1, 1, 2))
    assert torch.equal(drawn(images), again(images))
    assert not torch.allclose(drawn(images), other(images))
    assert not torch.allclose(drawn(images), encoder(images))
    assert {k: v.shape for k, v in drawn.state_dict().items()} == {k: v.shape for k, v in encoder.state_dict().items()}


def counted(encoder: features.FrozenEncoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    outputs = type(encoder).outputs

    def counting(self, images):
        calls.append(len(images))
        return outputs(self, images)

    monkeypatch.setattr(type(encoder), "outputs", counting)
    return calls


def test_the_cache_hits_only_on_the_same_weights_pixels_and_settings(run, train, tmp_path, monkeypatch):
    encoder = features.open_encoder(run)
    calls = counted(encoder, monkeypatch)
    cache = tmp_path / "cache"

    def extract(looked_at, **options):
        calls.clear()
        found = features.extract([looked_at], train, session=CPU, cache=cache, **options).features[0]
        return found, bool(calls)

    first, computed = extract(encoder)
    assert computed
    second, computed = extract(features.open_encoder(run))
    assert not computed
    assert torch.equal(first, second)
    assert extract(encoder, pooling="tokens")[1]
    assert extract(features.open_encoder(run, layer=1))[1]
    assert extract(features.open_encoder(run, layers=1))[1]
    assert extract(features.open_encoder(run, layers=2))[1]
    assert not extract(features.open_encoder(run, layers="all"))[1]
    with torch.no_grad():
        next(encoder.parameters()).add_(1e-3)
    changed, computed = extract(encoder)
    assert computed
    assert not torch.equal(changed, first)
    train.images[0, 0, 0, 0] ^= 1
    assert extract(encoder)[1]


def test_a_damaged_cache_is_computed_again(run, train, tmp_path, monkeypatch):
    encoder = features.open_encoder(run)
    cache = tmp_path / "cache"
    first = features.extract([encoder], train, session=CPU, cache=cache).features[0]
    for path in cache.iterdir():
        path.write_bytes(b"no features")
    assert torch.equal(features.extract([encoder], train, session=CPU, cache=cache).features[0], first)


def test_chunks_and_batches_change_nothing(run, train, monkeypatch):
    encoder = features.open_encoder(run)
    whole = features.extract([encoder], train, session=CPU)
    monkeypatch.setattr(features, "CHUNK", 50 * 3 * 16 * 16)
    monkeypatch.setattr(features, "BATCH", 7)
    parts = features.extract([encoder], train, session=CPU)
    torch.testing.assert_close(whole.features[0], parts.features[0])
    assert torch.equal(whole.labels, torch.from_numpy(np.asarray(train.labels)))
    assert torch.equal(whole.labels, parts.labels)


def test_the_tokens_of_two_encoders_lie_in_memory_once(train, monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 10 * 3 * 16 * 16)
    pixels = [features.RawPixels(16, 16)] * 2
    with MemoryPeak() as peak:
        found = features.extract(pixels, train, session=CPU, pooling="tokens")
    assert peak.bytes < 1.4 * sum(each.nbytes for each in found.features)


def test_tokens_that_do_not_fit_into_memory_are_refused_before_any_image_is_read(run, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "free_memory", lambda: 2 * 480 * 16 * 32 * 2 - 1)
    monkeypatch.setattr(features, "load_chunks", lambda *words: pytest.fail("images were read"))
    data, val = corners(tmp_path)
    sentence = "The tokens of 480 images of 16 px by 2 encoders .* lower --size, give --no-baselines or give fewer"
    with pytest.raises(UserError, match=sentence):
        probes.probe(Probe(run=run, data=data, val=val, kind="attentive"))
    monkeypatch.undo()
    monkeypatch.setattr(devices, "free_memory", lambda: 480 * 16 * 32 * 2)
    features.require_memory([features.open_encoder(run)], 480, CPU)


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_a_timm_model_is_loaded_strictly_from_a_file(tmp_path, ending):
    torch.manual_seed(0)
    model: Any = timm.create_model("vit_tiny_patch16_224", num_classes=5)
    model.eval()
    path = tmp_path / f"weights{ending}"
    save = save_file if ending == ".safetensors" else torch.save
    save(model.state_dict(), path)
    encoder = features.open_encoder(f"timm:vit_tiny_patch16_224,weights={path}", size=32)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert encoder(images).shape == (2, 4, 192)  # the class token is left out
    inputs = (torch.nn.functional.interpolate(images.float(), (224, 224)) / 255 - 0.5) / 0.5
    encoder = features.open_encoder(f"timm:vit_tiny_patch16_224,weights={path}")
    images = torch.nn.functional.interpolate(images.float(), (224, 224)).byte()
    torch.testing.assert_close(encoder(images), model.forward_features(inputs)[:, 1:], atol=1e-4, rtol=1e-4)
    assert features.open_encoder(f"timm:vit_tiny_patch16_224,weights={path}", layer=3, size=32)(
        images[:, :, :32, :32]
    ).shape == (2, 4, 192)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("timm:no_such_model", "timm has no model"),
        ("timm:vit_tiny_patch16_224,heads=2", "not understood"),
        ("timm:vit_tiny_patch16_224,weights=nowhere.pth", "no weights file"),
    ],
)
def test_bad_timm_names(name, sentence):
    with pytest.raises(UserError, match=sentence):
        features.open_encoder(name)


def test_weights_of_another_model_or_none_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"blocks.0.norm1.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="does not hold the weights"):
        features.open_encoder(f"timm:vit_tiny_patch16_224,weights={path}")
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        features.open_encoder(f"timm:vit_tiny_patch16_224,weights={path}")


def test_a_convolutional_timm_model_gives_its_last_map(tmp_path):
    model = timm.create_model("resnet10t")
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    encoder = features.open_encoder(f"timm:resnet10t,weights={tmp_path / 'w.safetensors'}", size=64)
    assert encoder(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape == (2, 4, 512)
    assert encoder.drawn_anew(1)(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape == (2, 4, 512)


@pytest.mark.parametrize(("name", "size", "width"), [("resnet10t", 64, 256 + 512), ("vit_tiny_patch16_224", 32, 384)])
def test_the_last_layers_of_a_timm_model_may_have_grids_and_widths_of_their_own(tmp_path, name, size, width):
    model = timm.create_model(name, img_size=size) if "vit" in name else timm.create_model(name)
    save_file(timm.create_model(name).state_dict(), tmp_path / "w.safetensors")
    encoder = features.open_encoder(f"timm:{name},weights={tmp_path / 'w.safetensors'}", size=size, layers=2)
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    found = features.encode(encoder, images)
    assert found.shape == (2, width)
    halves = found.split((width - model.num_features, model.num_features), dim=1)
    for half in halves:
        assert half.mean(1).abs().max() < 1e-5, "every block is normed for itself"
    both = encoder.reading(2, last_too=True)
    parts = features.apart(both, features.encode(both, images), "mean", CPU)
    assert torch.equal(parts[""], found)
    assert torch.equal(parts["last_block_"], features.encode(encoder.reading(0), images))
    assert features.encode(encoder.drawn_anew(1), images).shape == (2, width)


def test_tiny_settings_are_what_these_tests_assume():
    assert tiny().encoder.width == 32


def test_pixels_normalised_otherwise_are_not_taken_from_the_cache(train, tmp_path):
    torch.manual_seed(0)
    body = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    path = tmp_path / "w.safetensors"
    save_file(body.state_dict(), path)
    # The same tensors, but one expects pixels in [-1, 1] and the other ImageNet's mean and deviation.
    names = ("vit_tiny_patch16_224", "deit_tiny_patch16_224")
    for name in names:
        encoder = features.open_encoder(f"timm:{name},weights={path}", size=16)
        found = features.extract([encoder], train, session=CPU, cache=tmp_path / "cache").features[0]
        torch.testing.assert_close(found, features.extract([encoder], train, session=CPU).features[0])


@pytest.mark.parametrize(("size", "layer"), [(40, 0), (8, 3)])
def test_sizes_a_timm_model_cannot_see_are_refused(tmp_path, size, layer):
    path = tmp_path / "w.safetensors"
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), path)
    with pytest.raises(UserError, match=f"gives no tokens of images of {size} px"):
        features.open_encoder(f"timm:vit_tiny_patch16_224,weights={path}", size=size, layer=layer)
