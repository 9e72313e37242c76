"""Draw what the frontier says: `python results/frontier/figures.py`.

frontier.png: what every change of the recipe moves at equal time. Numbers of the same runs stand in docs/results.md."""

import json
import math
import runpy
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from iwm.evaluation.uncertainty import accuracy_error, combined_error
from iwm.runtime.drawing import BLUE, GREEN, GREY, INK, ORANGE, blank, save, style_axes

HERE = Path(__file__).parent
SETS = {
    "cifar10": ("CIFAR-10", BLUE),
    "eurosat": ("EuroSAT", ORANGE),
    "ijepa-style-cifar10": ("CIFAR-10, I-JEPA-style (has no MRR)", GREEN),
}
MEASURES = {
    "linear": "linear probe, last block",
    "all": "linear probe, all blocks",
    "mrr": "MRR",
    "common": "MRR, common space",
}
EDGES = {"linear": 5.5, "all": 5.5, "mrr": 11, "common": 22}
"""Where the axis of each ends, in points; what lies beyond is an arrow with its number."""
NAMES = {
    "wider": "encoder 256 wide, not 192",
    "deeper": "encoder of 6 blocks, not 4",
    "narrow-deep": "encoder of 6 blocks 128 wide",
    "half-mlp": "encoder's MLPs half as wide",
    "patch-2x": "patches twice as large",
    "predictor-1x256": "predictor of 1 block, not 2",
    "predictor-2x128": "predictor 128 wide, not 256",
    "predictor-4x256": "predictor of 4 blocks",
    "ask-less": "a fifth of the positions asked, not 3/8",
    "ask-all": "all positions asked",
    "never-whole": "no step on whole sources",
    "see-half": "random patches seen, half as in the recipe",
    "see-quarter": "random patches seen, a quarter",
    "see-eighth": "random patches seen, an eighth",
    "batch-16": "batches of 16, not 32",
    "batch-64": "batches of 64",
    "crop-0.15": "crops from .15 of the area, not .3",
    "crop-0.6": "crops from .6 of the area",
    "ema-0.98": "teacher's EMA from .98, not .99",
    "ema-0.998": "teacher's EMA from .998",
    "ema-to-0.999": "teacher's EMA to .999, not 1",
    "top-2-targets": "targets of the last 2 blocks, not 4",
    "constant": "constant rate, falling at the end",
    "two-sources": "16 images, two sources each",
    "growing": "images of half the side at first",
    "one-clean": "one of the two views unchanged",
    "registers": "4 registers",
    "half-jittered": "half of the views jittered, not all",
}
"""What each arm of frontier.py changes, in the order of reading."""
Row = dict[str, Any]
steps_of = runpy.run_path(str(HERE / "frontier.py"))["steps_of"]


def rows(data: str) -> list[Row]:
    """One of each run: arm, seed, steps, and the measures with their errors over images."""
    found = []
    for path in sorted((HERE / data).glob("*-probe.json")):
        name = path.name.removesuffix("-probe.json")
        arm, _, seed = name.partition("-seed")
        probe, world = json.loads(path.read_text()), json.loads((HERE / data / f"{name}-world.json").read_text())
        found.append(
            {
                "arm": arm,
                "seed": int(seed or 0),
                "path": path.relative_to(HERE.parent),
                "steps": steps_of(data, arm),
                "linear": probe["last_block_top1"],
                "linear_error": accuracy_error(probe["last_block_top1"], probe["n_val"]),
                "all": probe["top1"],
                "all_error": accuracy_error(probe["top1"], probe["n_val"]),
                "mrr": world["mrr"],
                "mrr_error": world["mrr_standard_error"],
                "common": world["mrr_common"],
                "common_error": world["mrr_common_standard_error"],
                "correlation": world["action_correlation"],
            }
        )
    return found


def differences(data: str, key: str) -> list[tuple[str, float, float]]:
    """(arm, what it has more than the recipe of the same seed, the error over images as if they were others) a run."""
    of_recipe = {row["seed"]: row for row in rows(data) if row["arm"] == "recipe"}
    found = []
    for row in rows(data):
        recipe = of_recipe.get(row["seed"])
        if recipe and row["arm"] != "recipe":
            error = combined_error(row[f"{key}_error"], recipe[f"{key}_error"])
            found.append((row["arm"], row[key] - recipe[key], error))
    return found


def _draw(axes: Axes, key: str, arms: list[str]) -> None:
    edge = EDGES[key]
    for place, (data, (label, colour)) in enumerate(SETS.items()):
        untold = data.startswith("ijepa") and key in ("mrr", "common")  # no action to rank
        moved = [] if untold else differences(data, key)
        far = [(arm, value) for arm, value, _ in moved if abs(100 * value) > edge]
        near = [one for one in moved if abs(100 * one[1]) <= edge]
        if near:
            heights = [_height(arms, arm, place) for arm, _, _ in near]
            points, errors = ([100 * one[part] for one in near] for part in (1, 2))
            axes.errorbar(
                points, heights, xerr=errors, fmt="o", color=colour, label=label, markersize=5, elinewidth=0.8
            )
        for arm, value in far:
            side = math.copysign(edge, value)
            axes.plot(side, _height(arms, arm, place), marker="<" if value < 0 else ">", color=colour, markersize=6)
            axes.annotate(
                f"{100 * value:.0f}",
                (side, _height(arms, arm, place)),
                xytext=(-math.copysign(8, value), 0),
                textcoords="offset points",
                ha="left" if value < 0 else "right",
                va="center",
                fontsize=8,
                color=colour,
            )
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_xlim(-1.06 * edge, 1.06 * edge)
    axes.grid(axis="x", color="#EBEBEB", linewidth=0.7)
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel("points more than the recipe", fontsize=8.5, color=INK)


def _height(arms: list[str], arm: str, place: int) -> float:
    return arms.index(arm) + 0.2 * (1 - place)


def draw() -> None:
    kept = {row["arm"] for data in SETS for row in rows(data)}
    arms = [arm for arm in reversed(NAMES) if arm in kept]
    figure = blank(13, 1.5 + 0.3 * len(arms))
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.06)
    panels = figure.subplots(1, len(MEASURES), sharey=True)
    for axes, key in zip(panels, MEASURES, strict=True):
        style_axes(axes, MEASURES[key])
        _draw(axes, key, arms)
    panels[0].set_yticks(range(len(arms)), [NAMES[arm] for arm in arms])
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=2, fontsize=8.5, frameon=False)
    save(figure, HERE / "frontier.png")


if __name__ == "__main__":
    draw()
