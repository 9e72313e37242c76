"""Figure 3: which points there are, what each counts, and that no point is measured twice."""

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.planted import corners, exported
from iwm import config, run_folder
from iwm.evaluation.tasks import efficiency
from iwm.evaluation.tasks.classifier import AttentiveHead, MeanHead
from iwm.evaluation.uncertainty import accuracy_error
from iwm.runtime.drawing import save
from iwm.runtime.errors import UserError
from iwm.verbs.efficiency import Efficiency
from iwm.verbs.shared import Schedule

SPEED = config.Speed(precision="fp32", device="cpu", workers=0)
QUICK: dict[str, Any] = {
    "lrs": (3e-3,), "ratios": (1.0,), "views": 1, "schedule": Schedule(epochs=1, batch_size=64), "speed": SPEED,
}  # fmt: skip


def count(*modules: Any) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_the_default_points(tmp_path):
    run = exported(tmp_path, predictor=config.Predictor(depth=5, width=32))
    model = run_folder.load_model(run)
    names = [point.what for point in efficiency.points_of(model, Efficiency(run=run, data="any"))]
    assert names == [
        "attentive head",
        *(f"pretrained predictor, {depth} of 5 blocks" for depth in (1, 2, 5)),
        *(f"random predictor, {depth} of 5 blocks" for depth in (1, 2, 5)),
        "last 1 of 2 encoder blocks",
        "last 2 of 2 encoder blocks",
    ]
    mistakes: list[dict[str, Any]] = [{"depths": (6,)}, {"depths": (0, 1)}, {"blocks": (3,)}]
    for wrong in mistakes:
        with pytest.raises(UserError, match="give numbers from 1 to"):
            efficiency.points_of(model, Efficiency(run=run, data="any", **wrong))


def test_points_are_measured_once_and_kept(tmp_path, monkeypatch, capsys):
    run = exported(tmp_path)
    train, val = corners(tmp_path, train=160, val=80)
    measured: list[str] = []
    measure = efficiency._measure

    def counting(model, task, point):
        if point.what == "last 1 of 2 encoder blocks" and "stop" in measured:
            raise KeyboardInterrupt
        measured.append(point.what)
        return measure(model, task, point)

    monkeypatch.setattr(efficiency, "_measure", counting)

    def go(**options: Any) -> dict[str, Any]:
        return efficiency.efficiency(Efficiency(run=run, data=train, val=val, blocks=(1,), **QUICK, **options))

    measured.append("stop")
    with pytest.raises(KeyboardInterrupt):
        go(depths=(1,))
    path = Path(run) / "eval" / "efficiency-corners.json"
    assert len(json.loads(path.read_text())["points"]) == 3
    measured.clear()
    found = go(depths=(1,))
    assert measured == ["last 1 of 2 encoder blocks"]
    assert found["path"] == str(path)
    assert path.with_suffix(".png").stat().st_size > 10_000
    points = {point["what"]: point for point in json.loads(path.read_text())["points"]}
    model = run_folder.load_model(run)
    head = AttentiveHead(32, 2)
    one = model.predictor
    one.blocks = one.blocks[:1]
    wanted = {
        "attentive head": count(head),
        "pretrained predictor, 1 of 2 blocks": count(head, one),
        "random predictor, 1 of 2 blocks": count(head, one),
        "last 1 of 2 encoder blocks": count(model.encoder.blocks[1], model.encoder.norm, MeanHead(32, 2)),
    }
    assert {what: point["trainable_parameters"] for what, point in points.items()} == wanted
    assert all(0 <= point["top1"] <= 1 and point["n_val"] == 80 for point in points.values())
    assert all(point["top1_standard_error"] == accuracy_error(point["top1"], 80) for point in points.values())
    measured.clear()
    go(depths=(2,))
    assert measured == ["pretrained predictor, 2 of 2 blocks", "random predictor, 2 of 2 blocks"]
    assert len(json.loads(path.read_text())["points"]) == 6
    measured.clear()
    other = go(depths=(1,), seed=1)
    assert len(measured) == 4
    assert Path(other["path"]).name == "efficiency-seed1-corners.json"
    capsys.readouterr()
    measured.clear()
    corners(tmp_path, train=170, val=80)
    now = go(depths=(1,))["points"]
    assert len(measured) == 4, "points of other images do not stand beside these"
    assert [point["n_train"] for point in now] == [170] * 4
    assert "6 of 6 points were measured on other images of corners" in " ".join(capsys.readouterr().out.split())


def point(family: str, parameters: int, top1: float, blocks: int) -> dict[str, Any]:
    train = f"last-{blocks}" if family == "encoder" else "predictor"
    depth = blocks if family in ("pretrained", "random") else None
    return {
        "family": family,
        "trainable_parameters": parameters,
        "top1": top1,
        "n_val": 100,
        "train": train,
        "predictor_depth": depth,
    }


def test_efficiency_is_drawn_over_a_logarithmic_axis(tmp_path: Path) -> None:
    points = [point("pretrained", 900_000, 0.5, 4), point("pretrained", 200_000, 0.4, 1)]
    points += [point("encoder", 450_000, 0.36, 1), point("head", 100_000, 0.3, 0)]
    drawing = efficiency.draw(points, 0.1, "objects")
    axes = drawing.axes[0]
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.texts] == ["1", "4", "1"]
    drawn = {tuple(line.get_xdata()): tuple(line.get_ydata()) for line in (c[0] for c in axes.containers)}
    assert drawn[(200_000, 900_000)] == (0.4, 0.5)
    low, high = axes.get_xlim()
    assert low < 100_000
    assert high > 900_000
    save(drawing, tmp_path / "e.png")
    save(efficiency.draw(points[:1], 0.1, "objects"), tmp_path / "one.png")
    with pytest.raises(UserError, match="no points"):
        efficiency.draw([], 0.1, "objects")
