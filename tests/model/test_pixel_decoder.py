"""The decoder finds the pixels that tokens say, keeps its learned part where that pays, and survives the disk."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import tiny
from torch import Tensor

from iwm import config
from iwm.model import pixel_decoder
from iwm.model.objectives.pixels import images_of, patches_of
from iwm.model.pixel_decoder import Batch
from iwm.model.world_model import ImageWorldModel, Tokens
from iwm.runtime.errors import UserError


def lessons(width: int, say: Callable[[Tensor], Tensor]) -> Iterator[Batch]:
    """Batches of 32 images of 2 x 3 random tokens and of the pixels that `say` makes of them; every fifth is held."""
    generator = torch.Generator().manual_seed(0)
    for number in range(20):
        tokens = 5 + 3 * torch.randn(32, 6, width, generator=generator)
        yield Batch(tokens, say(tokens), number % 5 == 0)


def mixing(width: int, outputs: int) -> Tensor:
    return torch.randn(width, outputs, generator=torch.Generator().manual_seed(1)) / 10


def test_patches_and_images_are_each_others_inverse() -> None:
    images = torch.rand(2, 3, 8, 12)
    torch.testing.assert_close(images_of(patches_of(images, 4), (2, 3), 4), images, rtol=0, atol=0)


def test_what_tokens_say_linearly_is_found_on_any_grid() -> None:
    matrix = mixing(20, 12)
    decoder, errors = pixel_decoder.fit(lessons(20, lambda tokens: tokens @ matrix + 0.5), "auto", 0)
    assert (decoder.head, decoder.patch_size, list(errors)) == ("linear", 2, ["linear"])
    tokens = torch.randn(3, 20, 20)
    pictures = decoder(tokens, (4, 5))
    assert pictures.shape == (3, 3, 8, 10)
    torch.testing.assert_close(patches_of(pictures, 2), tokens @ matrix + 0.5, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("curved", "head"), [(True, "mlp"), (False, "linear")])
def test_the_learned_part_is_kept_where_it_pays(curved: bool, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_decoder, "STEPS", 150)
    matrix = mixing(4, 12)
    noise = torch.Generator().manual_seed(2)

    def say(tokens: Tensor) -> Tensor:
        patches = tokens @ matrix
        patches = patches.sin() if curved else patches
        return patches + 0.05 * torch.randn(patches.shape, generator=noise)

    decoder, errors = pixel_decoder.fit(lessons(4, say), "auto", 0)
    assert decoder.head == head
    assert (errors["mlp"] < 0.5 * errors["linear"]) == curved


def test_a_decoder_survives_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_decoder, "STEPS", 2)
    decoder, _ = pixel_decoder.fit(lessons(4, lambda tokens: tokens @ mixing(4, 12)), "mlp", 0)
    decoder.write(tmp_path / "decoder.safetensors", "mark")
    again, mark = pixel_decoder.read(tmp_path / "decoder.safetensors")
    tokens = torch.randn(2, 6, 4)
    (tmp_path / "plain").touch()
    assert (tmp_path / "decoder.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode, (
        "others may read it"
    )
    assert mark == "mark"
    assert torch.equal(again(tokens, (2, 3)), decoder(tokens, (2, 3)))
    (tmp_path / "decoder.safetensors").write_bytes(b"no decoder")
    with pytest.raises(UserError, match="fit it again with iwm decoder"):
        pixel_decoder.read(tmp_path / "decoder.safetensors")


# ---- in a world model ----------------------------------------------------------------------------------------------


def test_pixels_normalised_over_the_data_are_shown_exactly(images: Tensor) -> None:
    objective = config.Objective(kind="pixels", target_norm="batch")
    model = ImageWorldModel(tiny(objective=objective)).eval()
    model.target_norm.mean.uniform_(-1, 1)
    model.target_norm.variance.uniform_(0.1, 2)
    assert model.decodes
    torch.testing.assert_close(model.decode(model.target(images)), images.float() / 255, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        (config.Objective(target_norm="batch"), "fit one with iwm decoder RUN"),
        (config.Objective(kind="pixels", target_norm="token"), "fit one with iwm decoder RUN"),
        (config.Objective(kind="joint"), "without a predictor"),
    ],
)
def test_without_a_decoder_nothing_is_shown(objective: config.Objective, said: str) -> None:
    masks = config.Masks(sampler="none") if objective.kind == "joint" else config.Masks(predict="all")
    model = ImageWorldModel(tiny(objective=objective, masks=masks)).eval()
    assert not model.decodes
    with pytest.raises(UserError, match=said):
        model.decode(Tokens(torch.zeros(1, 16, model.objective.output_width), (4, 4)))


def test_a_decoder_is_no_part_of_the_state() -> None:
    model = ImageWorldModel(tiny()).eval()
    names = list(model.state_dict())
    model.decoder, _ = pixel_decoder.fit(lessons(32, lambda tokens: tokens[..., :12]), "linear", 0)
    assert list(model.state_dict()) == names
    pictures = model.decode(Tokens(torch.randn(1, 6, 32) * 9, (2, 3)))
    assert pictures.shape == (1, 3, 4, 6)
    assert pictures.min() >= 0
    assert pictures.max() <= 1
