import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import timm
import torch
from conftest import tiny
from safetensors.torch import save as safetensors_bytes
from safetensors.torch import save_file
from tiny_encoders import SIZES
from torch import nn

from iwm import config
from iwm.model import pretrained
from iwm.model.architecture import timm_model
from iwm.model.encoder import Encoder
from iwm.model.pretrained import Origin, open_timm, start_from_run, start_from_timm
from iwm.model.vit import sincos_positions
from iwm.model.world_model import ImageWorldModel
from iwm.runtime.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NAME = "test_vit"  # timm's own miniature: 160 px, patches of 16, with a class token


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("timm") / "weights.safetensors"
    save_file(timm.create_model(NAME).state_dict(), path)
    return f"timm:{NAME},weights={path}"


def fitting(image_size: int = 160) -> Encoder:
    body: Any = timm.create_model(NAME)
    settings = replace(
        tiny().encoder,
        patch_size=16,
        width=body.embed_dim,
        depth=len(body.blocks),
        heads=2,
        mlp_ratio=body.blocks[0].mlp.fc1.out_features / body.embed_dim,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    return Encoder(settings, image_size).eval()


@torch.no_grad()
def test_an_encoder_starts_from_a_timm_file(weights):
    encoder = fitting()
    start_from_timm(encoder, weights)
    _, body = open_timm(weights)
    state = body.state_dict()
    for name, value in encoder.state_dict().items():
        if name == "pos_embed":
            assert torch.equal(value, state["pos_embed"][:, 1:])  # without the class token's
        else:
            assert torch.equal(value, state[name]), name


@torch.no_grad()
def test_an_encoder_with_registers_starts_from_one_with_as_many(monkeypatch):
    """timm's own, without positions. One without registers takes the rest, another number is refused."""
    own = {"class_token": False, "global_pool": "avg", "fc_norm": False, "no_embed_class": True}
    body: Any = timm.create_model(NAME, reg_tokens=2, num_classes=0, **own)
    torch.nn.init.normal_(body.reg_token)
    origin = open_timm(f"timm:{NAME},weights=random")[0]
    monkeypatch.setattr(pretrained, "open_timm", lambda name: (origin, body))
    for registers in (0, 2):
        encoder = Encoder(replace(fitting().settings, registers=registers), 160)
        start_from_timm(encoder, f"timm:{NAME}")
        state = encoder.state_dict()
        assert ("reg_token" in state) == (registers > 0)
        assert all(torch.equal(value, body.state_dict()[name]) for name, value in state.items())
    with pytest.raises(UserError, match=r"has 2 registers .* encoder\.registers is 3; give 2"):
        start_from_timm(Encoder(replace(fitting().settings, registers=3), 160), f"timm:{NAME}")


@torch.no_grad()
def test_positions_of_another_grid_are_resampled(weights):
    encoder = fitting(96)
    before = encoder.state_dict()["pos_embed"].clone()
    start_from_timm(encoder, weights)
    after = encoder.state_dict()["pos_embed"]
    assert after.shape == before.shape
    assert not torch.equal(after, before)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": 96}, "does not fit"),
        ({"mean": (0.1, 0.2, 0.3)}, "--encoder.mean 0.5"),
        ({"heads": 4}, r"has 2 heads of attention; add --encoder\.heads 2"),
    ],
)
def test_what_does_not_fit_is_named(weights, change, said):
    encoder = Encoder(replace(fitting().settings, **change), 160)
    with pytest.raises(UserError, match=said):
        start_from_timm(encoder, weights)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:no_such_model", "timm has no model"),
        (f"timm:{NAME},weight=x", "is not understood"),
        (f"timm:{NAME},weights=absent.pth", "There is no weights file"),
        ("timm:vit_tiny_patch16_224.augreg_in22k", "no weights 'augreg_in22k' of .*did you mean 'augreg_in21k'"),
    ],
)
def test_bad_names(name, said):
    with pytest.raises(UserError, match=said):
        open_timm(name)


@pytest.mark.parametrize(
    ("name", "size"),
    [("deit_tiny_patch16_224", 48), ("eva02_tiny_patch14_224", 56), ("vit_relpos_small_patch16_224", 224)],
)
def test_models_take_any_size_where_timm_can(name, size):
    with torch.device("meta"):
        assert timm_model(name).forward_features(torch.zeros(1, 3, size, size)).ndim == 3


@pytest.mark.parametrize("change", [{"act_layer": "quick_gelu"}, {"norm_layer": partial(nn.LayerNorm, eps=1e-5)}])
def test_layers_that_compute_otherwise_are_refused_though_their_weights_fit(monkeypatch, change):
    """OpenAI's CLIP has QuickGELU, BEiT's offspring another epsilon; no weight shows it."""
    body = timm.create_model(NAME, num_classes=0, **change)
    monkeypatch.setattr(pretrained, "open_timm", lambda name: (Origin.of(name), body))
    with pytest.raises(UserError, match="computes otherwise than our encoder"):
        start_from_timm(fitting(), f"timm:{NAME}")


def with_encoder(**changes: Any) -> config.Config:
    return tiny(encoder=replace(tiny().encoder, **changes))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (with_encoder(heads=8), r"encoder\.heads = 2; add --encoder\.heads 2\."),
        (with_encoder(mean=(0.5, 0.5, 0.5)), r"add --encoder\.mean 0\.485 0\.456 0\.406\."),
        (with_encoder(std=(0.5, 0.5, 0.5)), r"add --encoder\.std 0\.229 0\.224 0\.225\."),
        (with_encoder(depth=1), "do not fit these settings"),
        (tiny(predictor=replace(tiny().predictor, conditioning="none")), r"add --predictor\.conditioning adaln\."),
        (tiny(actions=config.Actions(set="camera")), "trained with the actions brightness"),
        (with_encoder(layer=1), r"encoder\.layer 0 \(block 2\), here it is block 1; add --encoder\.layer 0\."),
        (tiny(predictor=replace(tiny().predictor, residual=True)), r"add --predictor\.no-residual\."),
        (tiny(objective=config.Objective(target_norm="change")), r"add --objective\.target_norm batch\."),
        (tiny(objective=config.Objective(target_norm="token")), r"target_norm batch, here it is token, so its"),
        (
            tiny(objective=config.Objective(target_norm="batch", target_layers=2)),
            r"trained with objective\.target_layers 1, here it is 2, .*; add --objective\.target_layers 1\.",
        ),
    ],
)
def test_settings_behind_the_weights_of_a_run_are_asked_for(settings, said):
    with pytest.raises(UserError, match=said):
        start_from_run(ImageWorldModel(settings), ImageWorldModel(tiny()), "RUN")


@pytest.mark.parametrize("layer", [2, -1])
def test_the_last_block_has_several_names(layer):
    for one, two in ((0, layer), (layer, 0)):
        start_from_run(ImageWorldModel(with_encoder(layer=one)), ImageWorldModel(with_encoder(layer=two)), "RUN")


@pytest.mark.parametrize("weights", [(0.0, 1.0), (1.0, 0.0), (1.0, 2.0)])
def test_a_projector_that_one_side_lacks_is_left_out(weights):
    """It is of no use after training; where both have one it goes on."""
    objectives = [config.Objective(target_norm="batch", invariance_weight=w, projector_dim=8) for w in weights]
    run, model = (ImageWorldModel(tiny(objective=objective)) for objective in objectives)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    start_from_run(model, run, "RUN")
    theirs = run.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, theirs.get(name, fresh[name])), name
    wider = replace(objectives[1], projector_dim=16)
    if all(weights):
        with pytest.raises(UserError, match="size mismatch for invariance"):
            start_from_run(ImageWorldModel(tiny(objective=wider)), run, "RUN")


def test_a_run_that_predicts_a_change_asks_for_it():
    changes = tiny(predictor=replace(tiny().predictor, residual=True))
    with pytest.raises(UserError, match=r"trained to predict a change of its tokens; add --predictor\.residual"):
        start_from_run(ImageWorldModel(tiny()), ImageWorldModel(changes), "RUN")


def test_another_range_of_actions_is_told(capsys):
    harder = tiny(actions=replace(tiny().actions, level="strong"))
    start_from_run(ImageWorldModel(harder), ImageWorldModel(tiny()), "RUN")
    assert "range of brightness, contrast, saturation, hue is another one than in RUN" in capsys.readouterr().err
    start_from_run(ImageWorldModel(tiny()), ImageWorldModel(tiny()), "RUN")
    assert not capsys.readouterr().out


@torch.no_grad()
@pytest.mark.parametrize("size", [8, 16, 32])
def test_a_run_goes_on_at_another_size_as_it_is_used_there(size):
    """Its features of images of that size are those that the run itself has of them."""
    torch.manual_seed(0)
    run = ImageWorldModel(tiny()).eval()
    model = ImageWorldModel(tiny(data=config.Data(image_size=size))).eval()
    start_from_run(model, run, "RUN")
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    for student in (False, True):
        assert torch.equal(model.encode(images, student=student).values, run.encode(images, student=student).values)
    assert torch.equal(model.predictor.positions, sincos_positions(model.grid, 32))
    assert model.predict(model.encode(images), model.action()).values.shape == (2, (size // 4) ** 2, 32)


# ---- as it is ------------------------------------------------------------------------------------------------------


def test_init_sends_encoders_with_other_parts_where_they_belong(tmp_path):
    assert "tiny_registers" in SIZES
    body = timm.create_model("tiny_registers")
    save_file(body.state_dict(), tmp_path / "weights.safetensors")
    settings = replace(tiny().encoder, patch_size=8, width=32, depth=3, heads=2, mean=MEAN, std=STD)
    name = f"timm:tiny_registers,weights={tmp_path / 'weights.safetensors'}"
    with pytest.raises(UserError, match=r"has parts that our encoder has not \(ls1, ls2\).*--encoder.name timm:"):
        start_from_timm(Encoder(settings, 48), name)


HUB = """
import json, sys
from dataclasses import replace
import torch
from iwm import config, run_folder
from iwm.evaluation.tasks import features
from iwm.model import pretrained
from iwm.model.foreign_encoder import encoder_of
from iwm.runtime.errors import UserError

settings = pretrained.with_encoder(config.Encoder(name="hf-hub:somebody/small", train="none"), {})
encoder = encoder_of(settings, 32).eval()
pretrained.load_encoder(encoder)
torch.save((settings.architecture, settings.width, settings.mean, encoder.body.state_dict()), sys.argv[1])
pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
probed = features.open_encoder("hf-hub:somebody/small")
assert torch.allclose(probed.outputs(pixels)[0], encoder.tokens(pixels), atol=1e-5)
assert (probed.name, probed.drawn_anew(0).outputs(pixels)[0].shape[-1]) == ("hf-hub:somebody/small", 32)
for attempt in (
    lambda: pretrained.with_encoder(replace(settings, name="hf-hub:somebody/absent"), {}),
    lambda: run_folder.load_model("hf-hub:somebody/small"),
    lambda: pretrained.start_from_timm(None, "hf-hub:somebody/small"),
):
    try:
        attempt()
    except UserError as error:
        print(error)
"""


def test_the_hub_is_asked_through_its_own_client(tmp_path):
    """The real huggingface_hub, against a stand-in for the hub on this machine."""
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32}
    body: Any = timm.create_model("vit_small_patch16_dinov3", **arguments)
    arguments["num_classes"] = 0  # as `iwm export --format timm` writes it
    content = {
        "architecture": "vit_small_patch16_dinov3",
        "num_classes": 0,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, 32, 32],
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
            "num_classes": 0,
        },
    }
    files = {"config.json": json.dumps(content).encode(), "model.safetensors": safetensors_bytes(body.state_dict())}

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET(head=True)

        def do_GET(self, head: bool = False) -> None:
            name = self.path.split("?")[0].removeprefix("/somebody/small/resolve/main/")
            body = files.get(name)
            self.send_response(200 if body is not None else 404)
            if body is not None:
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("ETag", f'"{name}"')
            else:
                self.send_header("X-Error-Code", "EntryNotFound" if "small" in self.path else "RepoNotFound")
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            if body is not None and not head:
                self.wfile.write(body)

        def log_message(self, format: str, *words: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {
            **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "hub"),
            "HF_HUB_OFFLINE": "0",
        }
        words = [sys.executable, "-c", HUB, str(tmp_path / "result.pt")]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    architecture, width, mean, state = torch.load(tmp_path / "result.pt")
    assert architecture.startswith("vit_small_patch16_dinov3 {")
    assert (width, mean) == (32, (0.1, 0.2, 0.3))
    assert all(torch.equal(value, state[name]) for name, value in body.state_dict().items() if name in state)
    assert len(state) > 20
    assert "hf-hub:somebody/absent cannot be read as a timm model" in done.stdout
    assert "hf-hub:somebody/small is an encoder without a predictor" in done.stdout
    assert "hf-hub:somebody/small is no vision transformer" in done.stdout
