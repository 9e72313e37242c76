"""Draw what the dial does: `python results/dial/figures.py`.

dial.png: the linear probe and both MRRs along the weight of the invariance term. Numbers of the same runs stand in
docs/results.md."""

import json
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes

from iwm.runtime.drawing import BLUE, GREEN, GREY, INK, ORANGE, blank, save, style_axes

HERE = Path(__file__).parent
ARMS = {
    "recipe": "the recipe: last block predicted",
    "w0": "block 2 predicted, weight 0",
    "w0.1": "weight 0.1",
    "w1": "weight 1",
    "w10": "weight 10",
}
MEASURES = {
    "photometric share, predicted block": ("last-line", "photometric_share"),
    "last block": ("last-line", "photometric_share_last"),
    "MRR": ("world-32x256-seed0-eurosat", "mrr"),
    "MRR, common space": ("world-32x256-seed0-eurosat", "mrr_common"),
    "linear, last block": ("probe-linear-eurosat", "top1"),
    "block 2": ("probe-linear-layer2-eurosat", "top1"),
    "all blocks": ("probe-linear-layers4-eurosat", "top1"),
}
"""Where each column of the table is found: a file and a key in it."""


def folder_of(arm: str, seed: int) -> str:
    """The folder of a run."""
    return arm + f"-seed{seed}" * bool(seed)


def runs(arm: str) -> dict[int, dict[str, float]]:
    """The numbers of an arm's pretrainings, by seed."""
    found = {}
    for seed in range(3):
        files = {path.stem: json.loads(path.read_text()) for path in (HERE / folder_of(arm, seed)).glob("*.json")}
        if files:
            values = {column: files[file].get(key) for column, (file, key) in MEASURES.items()}
            found[seed] = {column: value for column, value in values.items() if value is not None}
    return found


def _draw(axes: Axes, measures: dict[str, str]) -> None:
    """A line a seed for each measure, over the weights; the recipe's mean as a dotted line."""
    dialled = [arm for arm in ARMS if arm != "recipe"]
    of_arm, of_recipe = [runs(arm) for arm in dialled], runs("recipe").values()
    for measure, colour in measures.items():
        for seed in of_arm[0]:
            values = [run[seed][measure] if seed in run else float("nan") for run in of_arm]
            axes.plot(range(len(dialled)), values, "o-", color=colour, markersize=4, linewidth=1, alpha=0.8)
        axes.axhline(fmean(run[measure] for run in of_recipe), color=colour, linestyle=":", linewidth=1)
        axes.plot([], [], "o-", color=colour, markersize=4, linewidth=1, label=measure)
    axes.set_xticks(range(len(dialled)), [arm.removeprefix("w") for arm in dialled])
    axes.set_xlabel("objective.invariance_weight; dotted: the recipe", fontsize=8.5, color=INK)
    axes.legend(fontsize=8, frameon=False)


def draw() -> None:
    figure = blank(9, 3.4)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.06)
    left, right = figure.subplots(1, 2)
    style_axes(left, "Linear probe on EuroSAT, a line a pretraining")
    _draw(left, {"linear, last block": BLUE, "block 2": ORANGE, "all blocks": GREEN})
    style_axes(right, "World model: mean reciprocal rank")
    _draw(right, {"MRR": BLUE, "MRR, common space": GREY})
    save(figure, HERE / "dial.png")


if __name__ == "__main__":
    draw()
