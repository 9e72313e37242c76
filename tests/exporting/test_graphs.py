"""Graphs of torch.export and ONNX compute what the model does, at any batch; one that does not is refused."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_encoders  # noqa: F401 - registers them
import torch
from conftest import tiny
from torch import nn

from exporting.models import classifier, foreign, options, replaced, segmenter, world
from iwm import config
from iwm.exporting import graphs
from iwm.exporting.format import Request
from iwm.exporting.graph_parts import Part
from iwm.exporting.graphs import OnnxGraphs, TorchPrograms
from iwm.model.conditioning import CONDITIONINGS
from iwm.run_folder import load_model
from iwm.runtime.errors import UserError


def written(kind: type[graphs.Graphs], run: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """What the format writes into a new folder."""
    folder.mkdir()
    with torch.no_grad():
        return kind().write(Request(options(run, **changes)), folder)["parts"]


LONG = pytest.mark.long


@pytest.mark.parametrize(
    "conditioning", ["adaln", *(pytest.param(name, marks=LONG) for name in CONDITIONINGS.built_in if name != "adaln")]
)
def test_programs_of_every_conditioning_are_the_model(tmp_path, conditioning):
    run = world(tmp_path / "run", decoder=True, **replaced(tiny(), "predictor", conditioning=conditioning))
    parts = written(TorchPrograms, run, tmp_path / "out")
    assert list(parts) == ["encoder", "predictor", "decoder"]
    assert max(part["largest_difference"] for part in parts.values()) < 1e-5
    model = load_model(run)
    with torch.no_grad():
        images = torch.rand(7, 3, 16, 16)
        tokens = model.encode(images)
        action = model.action(brightness=0.3)
        imagined = model.decode(model.predict(tokens, action))
        encoder, predictor, decoder = (
            torch.export.load(tmp_path / "out" / f"{name}.pt2").module() for name in ("encoder", "predictor", "decoder")
        )
        values, pooled = encoder(images=images)
        (future,) = predictor(tokens=values, action=action.expand(7, -1))
        (picture,) = decoder(tokens=future)
    torch.testing.assert_close(pooled, tokens.pooled)
    torch.testing.assert_close(picture, imagined)


def cases(folder: Path) -> dict[str, Path]:
    """One of each kind of part, from settings that take other ways through the code."""
    residual = {
        **foreign("tiny_registers", 32, train="none", layer=2),
        **replaced(tiny(), "predictor", residual=True),
        "masks": config.Masks(sampler="none", predict="all"),
    }
    eva = foreign("tiny_dinov3", 48, train="all")
    plain = world(folder / "plain")
    return {
        "registers": world(folder / "registers", **replaced(tiny(), "encoder", registers=2)),
        "residual": world(folder / "residual", **residual),
        "pixels": world(folder / "pixels", objective=config.Objective(kind="pixels", target_norm="batch")),
        "rotary": world(folder / "rotary", **eva),
        "attentive": classifier(plain, folder / "attentive"),
        "one query at another size": classifier(plain, folder / "one", queries="one", size=24),
        "mean": classifier(plain, folder / "mean", head="mean", predicts=False),
        "tasks": classifier(plain, folder / "tasks", tasks=("colour", "shape")),
        "linear": segmenter(plain, folder / "linear", "linear", predicts=True),
        "upernet": segmenter(plain, folder / "upernet", "upernet", predicts=False),
    }


PARTS = {
    "registers": ["encoder", "predictor"],
    "residual": ["encoder", "predictor"],
    "pixels": ["encoder", "predictor", "decoder"],
    "rotary": ["encoder", "predictor"],
    "attentive": ["classifier"],
    "one query at another size": ["classifier"],
    "mean": ["classifier"],
    "tasks": ["classifier-colour", "classifier-shape"],
    "linear": ["segmenter"],
    "upernet": ["segmenter"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return cases(tmp_path_factory.mktemp("runs"))


def some(*quick: str) -> list[Any]:
    """All cases; those that are not quick only in `make test-long`."""
    return [case if case in quick else pytest.param(case, marks=LONG) for case in PARTS]


@pytest.mark.parametrize("case", some("residual", "rotary", "one query at another size", "linear"))
def test_programs_of_every_part_are_the_model(runs, tmp_path, case):
    parts = written(TorchPrograms, runs[case], tmp_path / "out")
    assert list(parts) == PARTS[case]
    for part in parts.values():
        assert part["largest_difference"] <= 1e-5 * max(1, part["largest_value"])
        assert list(part["differences"]) == ["1", "2", "5"]


@pytest.mark.parametrize("case", some("mean"))
def test_onnx_of_every_part_is_the_model(runs, tmp_path, case):
    require_onnx()
    parts = written(OnnxGraphs, runs[case], tmp_path / "out")
    assert list(parts) == PARTS[case]
    for part in parts.values():
        assert part["largest_difference"] <= 3e-5 * max(1, part["largest_value"])


def require_onnx() -> None:
    for package in OnnxGraphs.needs:
        pytest.importorskip(package, reason="the extra iwm[onnx] is not installed")


def test_onnx_of_a_predictor_follows_the_action_and_says_what_its_numbers_are(runs, tmp_path):
    require_onnx()
    onnx, onnxruntime = importlib.import_module("onnx"), importlib.import_module("onnxruntime")

    written(OnnxGraphs, runs["attentive"].parent / "plain", tmp_path / "out", part=("predictor",))
    path = tmp_path / "out" / "predictor.onnx"
    session, model = onnxruntime.InferenceSession(path), load_model(runs["attentive"].parent / "plain")
    with torch.no_grad():
        tokens = model.encode(torch.rand(4, 3, 16, 16))
        actions = torch.stack([model.action(), model.action(hue=0.1), model.action(grayscale=1), model.action()])
        truth = model.predict(tokens, actions).values
    (future,) = session.run(None, {"tokens": tokens.values.numpy(), "action": actions.numpy()})
    torch.testing.assert_close(torch.from_numpy(future), truth, atol=1e-5, rtol=1e-5)
    notes = json.loads({one.key: one.value for one in onnx.load(path).metadata_props}["iwm"])
    assert [one["name"] for one in notes["action"]] == list(model.space.names)
    assert notes["action"][3]["divide_by"] == pytest.approx(0.2)


def test_a_graph_holds_the_positions_of_the_size_that_was_asked_for(runs, tmp_path):
    run = runs["attentive"].parent / "plain"
    parts = written(TorchPrograms, run, tmp_path / "out", size=24, part=("encoder", "predictor"))
    assert parts["encoder"]["outputs"]["tokens"] == ["b", 36, 32]
    assert max(part["largest_difference"] for part in parts.values()) < 1e-5


def test_a_graph_of_another_function_is_refused():
    part = Part("encoder", nn.Identity(), lambda batch: {"x": torch.ones(batch, 2)}, ("y",), lambda x: (x,), {})
    assert graphs.compare(part, lambda inputs: [inputs["x"] + 1e-4], "a.onnx")["largest_difference"] < 2e-4
    with pytest.raises(UserError, match=r"a\.onnx computes something else than the model: it is 0\.01 away, of values"):
        graphs.compare(part, lambda inputs: [inputs["x"] * 1.01], "a.onnx")
    with pytest.raises(UserError, match="computes something else"):
        graphs.compare(part, lambda inputs: [inputs["x"] * torch.nan], "a.onnx")
