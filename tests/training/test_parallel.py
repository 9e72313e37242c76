"""Ranks train as one process does: the same curve at the same global batch, however they share the work."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ranks
from conftest import pictures_file, tiny, trained_on, with_run

from iwm import config
from iwm.run_folder import RunFolder
from iwm.runtime import distributed
from iwm.training import loop
from iwm.training.step import Training

TOLERANCE = 1e-4
"""Relative, in float32: sums are taken in another order, and the optimisers amplify that from step to step."""
LOOSER = {"joint, regression": 2e-3, "joint, muon, accumulation": 2e-3}
"""There the projector's last bias, which the next BatchNorm takes away again, has a gradient of rounding errors alone;
AdamW makes whole steps of them, and the teacher's keys show them."""

JOINT = {
    "objective": config.Objective(kind="joint", projector_width=32, projector_dim=16),
    "masks": config.Masks(sampler="none"),
    "views": config.Views(geometry="independent"),
}
SPREAD = config.Objective(target_norm="batch", variance=0.5, covariance=0.1)
IJEPA = config.Masks(sampler="ijepa", predict="dropped", context_area=(0.85, 1.0))
MUON, PARTS = replace(tiny().optim, kind="muon"), replace(tiny().optim, accumulate=2)
REGRESSION = replace(JOINT["objective"], invariance="regression")
DIAL = config.Objective(target_norm="batch", invariance_weight=0.5, projector_dim=16)
CASES: dict[str, dict[str, Any]] = {
    "latent, statistics and spread over ranks, accumulation": {"objective": SPREAD, "optim": PARTS},
    "latent, muon": {"objective": SPREAD, "optim": MUON},
    "published masks, truncated to the shortest": {"masks": IJEPA, "objective": config.Objective()},
    "several sources, accumulation": {
        "masks": config.Masks(sources=3, whole=0.25, predict="all"),
        "objective": SPREAD,
        "optim": PARTS,
    },
    "whole sources that leave the encoder alone, muon, accumulation": {
        "masks": config.Masks(whole=0.25, predict="all"),
        "actions": replace(tiny().actions, clean="both"),
        "objective": replace(SPREAD, whole_gradient=0.0),
        "optim": replace(MUON, accumulate=2),
    },
    "pixels": {"objective": config.Objective(kind="pixels")},
    "joint, contrastive, accumulation": {**JOINT, "optim": PARTS},
    "joint, regression": {**JOINT, "objective": REGRESSION},
    "latent, invariance of the last block": {"objective": DIAL, "encoder": replace(tiny().encoder, layer=1)},
}
SHARDED = (
    *("latent, statistics and spread over ranks, accumulation", "latent, muon", "joint, contrastive, accumulation"),
    "latent, invariance of the last block",
    "whole sources that leave the encoder alone, muon, accumulation",
)
PAIRS = [*(("replicated", name) for name in CASES), *(("sharded", name) for name in SHARDED)]
GRID: dict[str, dict[str, Any]] = {
    f"{name}, {kind}, accumulation": {**groups, "optim": replace(PARTS, kind=kind)}
    for name, groups in {"latent": {"objective": SPREAD}, "pixels": CASES["pixels"], "joint": JOINT}.items()
    for kind in ("adamw", "muon")
}
WHOLE = [(way, name) for way in ("replicated", "sharded") for name in GRID]
PAIRWISE = {
    2: [
        ("sharded", "latent, muon, accumulation"),
        ("replicated", "pixels, muon, accumulation"),
        ("sharded", "joint, adamw, accumulation"),
    ],
    4: [
        ("replicated", "latent, adamw, accumulation"),
        ("sharded", "pixels, adamw, accumulation"),
        ("replicated", "joint, muon, accumulation"),
    ],
}
"""Cells in which each two of objective, optimiser, way of sharing and number of ranks come together."""
SHARED = {"replicated": {}, "sharded": {"shard": True, "checkpoint_blocks": True}}


def case(folder: Path, name: str, out: str, **speed: Any) -> config.Config:
    groups = {"optim": tiny().optim, **{**CASES, **GRID}[name]}
    groups["optim"] = replace(groups["optim"], epochs=1)
    chosen = tiny(**groups, speed=replace(tiny().speed, **speed), run=config.Run(log_every=2, save_every=4, keep=9))
    return trained_on(chosen, source=str(folder / "pictures.npz"), out=str(folder / out))


def train_all(settings: list[config.Config]) -> None:
    for one in settings:
        loop.pretrain(one)


def name_of(way: str, name: str) -> str:
    return f"{way}-{name.replace(' ', '-').replace(',', '')}"


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of two ranks, replicated and sharded, and of one process."""
    folder = tmp_path_factory.mktemp("ranks")
    pictures_file(folder / "pictures.npz", count=128, labelled=True)
    settings = [case(folder, name, name_of(way, name), **SHARED[way]) for way, name in PAIRS]
    both = ranks.start(2, folder, train_all, settings)
    for name in CASES:
        loop.pretrain(case(folder, name, name_of("one", name)))
    assert both.wait() == [0, 0], both.texts
    return folder


MEASURES = ("loss", "health_loss", "rankme", "target_variance", "ema_gap", "lr", "skipped", "probe_top1")


def assert_same(one: list[dict[str, Any]], other: list[dict[str, Any]], tolerance: float = TOLERANCE) -> None:
    assert [line["step"] for line in one] == [line["step"] for line in other]
    for mine, yours in zip(one, other, strict=True):
        for key in [key for key in MEASURES if key in mine]:
            assert yours[key] == pytest.approx(mine[key], rel=tolerance), (mine["step"], key)


@pytest.mark.parametrize(("way", "name"), PAIRS)
def test_two_ranks_give_the_curve_of_one_process(curves, way, name):
    one = RunFolder(curves / name_of("one", name)).metric_lines()
    assert "probe_top1" in one[-1]
    assert_same(one, RunFolder(curves / name_of(way, name)).metric_lines(), LOOSER.get(name, TOLERANCE))


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[dict[str, Any]]]:
    """Curves of the grid's cells in one process, each trained once."""
    folder = tmp_path_factory.mktemp("one")
    pictures_file(folder / "pictures.npz", count=128, labelled=True)

    def curve(name: str) -> list[dict[str, Any]]:
        run = RunFolder(folder / name_of("one", name))
        if not run.model.is_dir():
            loop.pretrain(case(folder, name, run.path.name))
        return run.metric_lines()

    return curve


@pytest.mark.parametrize(
    ("count", "cells"),
    [
        *(pytest.param(count, PAIRWISE[count], id=f"{count} ranks, pairwise") for count in PAIRWISE),
        *(pytest.param(count, WHOLE, id=f"{count} ranks, whole", marks=pytest.mark.long) for count in PAIRWISE),
    ],
)
def test_ranks_give_the_curve_of_one_process_all_over_the_grid(one_process, tmp_path, count, cells):
    pictures_file(tmp_path / "pictures.npz", count=128, labelled=True)
    settings = [case(tmp_path, name, name_of(way, name), **SHARED[way]) for way, name in cells]
    several = ranks.start(count, tmp_path, train_all, settings, patience=10)  # four on two cores, beside others
    curves = {name: one_process(name) for _, name in cells}
    assert several.wait(60 * len(cells)) == count * [0], several.texts
    for way, name in cells:
        lines = RunFolder(tmp_path / name_of(way, name)).metric_lines()
        assert_same(curves[name], lines, LOOSER.get(name, TOLERANCE))


def killed(settings: config.Config) -> None:
    """Rank 3 is killed in the sixth step of eight."""
    real = Training.step

    def step(self: Training, batch: Any) -> Any:
        if batch.step == 5 and self.session.rank == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, batch)

    Training.step = step  # in a process of this test's own
    loop.pretrain(settings)


@pytest.mark.long
def test_one_of_four_is_killed_and_a_restart_on_two_gives_the_curve_of_one_process(one_process, tmp_path):
    pictures_file(tmp_path / "pictures.npz", count=128, labelled=True)
    name = "latent, muon, accumulation"
    settings = case(tmp_path, name, "run", **SHARED["sharded"])
    four = ranks.start(4, tmp_path / "four", killed, settings)
    assert four.wait(60) == [1, 1, 1, -signal.SIGKILL], four.texts
    assert "Rank 3 (process" in four.text(0)
    two = ranks.start(2, tmp_path / "two", train_all, [case(tmp_path, name, "run")])
    assert two.wait(60) == [0, 0], two.texts
    assert "Going on from step 4 of 8." in two.text(0)
    assert_same(one_process(name), RunFolder(tmp_path / "run").metric_lines())


def test_only_rank_0_speaks(curves):
    text = (curves / "rank-0.txt").read_text()
    assert "on 2 ranks" in text
    assert "step 8 of 8" in text
    assert (curves / "rank-1.txt").read_text() == ""


RESUMED = "latent, muon"


@pytest.mark.parametrize(("before", "after"), [("one", "sharded"), ("sharded", "replicated"), ("sharded", "one")])
def test_a_run_goes_on_with_another_number_of_ranks(curves, tmp_path, before, after):
    """From the checkpoint at step 4 of one way of sharing to the end with another; the format is one."""
    shutil.copytree(curves / name_of(before, RESUMED), tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("step-*"):
        if path.name > "step-00000004":
            shutil.rmtree(path)
    files = sorted(path.name for path in (tmp_path / "run" / "checkpoints" / "step-00000004").iterdir())
    assert files == ["state.json", "state.safetensors"]
    chosen = with_run(case(curves, RESUMED, "", **SHARED.get(after, {})), out=str(tmp_path / "run"))
    if after == "one":
        loop.pretrain(chosen)
    else:
        both = ranks.start(2, tmp_path, train_all, [chosen])
        assert both.wait() == [0, 0], both.texts
        assert "Going on from step 4 of 8." in both.text(0)
    assert_same(RunFolder(curves / name_of("one", RESUMED)).metric_lines(), RunFolder(tmp_path / "run").metric_lines())


def slowly_written(settings: config.Config) -> int:
    """Rank 0 takes its time to write the model; each rank looks for it as soon as its training has ended."""
    real = loop.weights.export

    def export(*values: Any, **extra: Any) -> None:
        time.sleep(1.0 - distributed.rank())
        real(*values, **extra)

    loop.weights.export = export  # in a process of this test's own
    with distributed.together():
        loop.pretrain(settings)
        return int(not RunFolder(Path(settings.run.out)).model.is_dir())


def test_no_rank_goes_on_before_the_model_is_written(tmp_path):
    source = str(pictures_file(tmp_path / "pictures.npz", count=32))
    both = ranks.start(2, tmp_path, slowly_written, trained_on(tiny(), source=source, out=str(tmp_path / "run")))
    assert both.wait(90) == [0, 0], both.texts
