"""Draw what the ablation says: `python results/small-data/figures.py`.

changes.png: MRR and linear probe of every variant and seed, a line through AdamW's; curves.png: health along the
training. Numbers of the same runs stand in docs/results.md."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes

from iwm.run_folder import read_metrics
from iwm.runtime.drawing import BLUE, GREEN, GREY, INK, ORANGE, blank, save, style_axes

HERE = Path(__file__).parent
NAMES = {
    "muon": "the recipe: Muon at 3e-3",
    "muon-low": "Muon at 1.5e-3",
    "base": "AdamW at 1.5e-3: what all below changes",
    "adamw-high": "AdamW at 3e-3",
    "no-spread": "without variance and covariance terms",
    "token-norm": "targets normalised per token",
    "last-layer": "targets of the last block only",
    "dropped": "dropped positions only, no whole sources",
    "feature": "feature conditioning",
    "small-init": "initialisation with deviation .02",
    "narrow": "predictor 4 x 96 instead of 2 x 256",
    "slow-ema": "teacher's EMA from .996",
    "large-batch": "batch of 128 at the same rate, a quarter of the steps",
    "half-jitter": "colours changed in half of the views only",
    "no-destruction": "no grayscale, blur, solarisation",
    "paper": "the paper's objective, masks, predictor, start, teacher",
    "ijepa": "I-JEPA's masking (no photometry, no action), AdamW",
    "muon-ijepa": "I-JEPA's masking, Muon at 3e-3",
}
"""The variants of ablation.sh in the order of reading, and what each changes."""
LINES = {"muon": BLUE, "base": GREY, "no-spread": ORANGE, "paper": INK, "ijepa": GREEN}
"""The variants whose curves are drawn."""
KINDS = ("world-*", "probe-linear-*")
Run = dict[str, Any]


def runs() -> dict[str, list[Run]]:
    """The kept runs of every variant, a seed each: {mrr, chance, linear, random, metrics}."""
    found: dict[str, list[Run]] = {}
    for name in NAMES:
        for folder in sorted((HERE / "ablation").glob(f"{name}-[0-9]")):
            world, probe = (json.loads(path.read_text()) for kind in KINDS for path in folder.glob(f"eval/{kind}.json"))
            metrics = read_metrics(folder / "metrics.jsonl")
            run = {"mrr": world["mrr"], "linear": probe["top1"], "metrics": metrics, "chance": world["mrr_chance"]}
            found.setdefault(name, []).append(run | {"random": probe.get("random_encoder_top1")})
    return found


def explained(line: dict[str, Any]) -> float:
    """Share of the targets that is predicted, beyond knowing the position."""
    return 1 - line["health_loss"] / line["position_mean_loss"]


def changes(found: dict[str, list[Run]], path: Path) -> None:
    """A row a variant; a dot a seed, a bar their mean, a line through what the variants change."""
    figure = blank(9.5, 0.32 * len(found) + 1.0)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.06)
    drawn = [run["random"] for seeds in found.values() for run in seeds if run["random"]]
    charts: list[Axes] = list(figure.subplots(1, 2, sharey=True))
    for axes, key, title in zip(charts, ("mrr", "linear"), ("MRR, bank of 256", "Linear probe, top-1"), strict=True):
        style_axes(axes, title)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color="#EBEBEB", linewidth=0.7)
        for row, seeds in enumerate(found.values()):
            values = [run[key] for run in seeds]
            axes.plot([fmean(values)], [row], "|", color=INK, markersize=13, markeredgewidth=1.8)
            axes.plot(values, [row] * len(values), "o", color=BLUE, markersize=4.5, alpha=0.75)
        own = [run[key] for run in found["base"]]
        axes.axvline(fmean(own), color=BLUE, linewidth=0.8)
        control = found["base"][0]["chance"] if key == "mrr" else fmean(drawn) if drawn else None
        if control is not None:
            axes.axvline(control, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)))
            name = "chance" if key == "mrr" else "random encoder"
            where = {"rotation": 90, "ha": "right", "va": "top", "transform": axes.get_xaxis_transform()}
            axes.text(control, 0.98, f" {name} ", color=GREY, fontsize=7.5, **where)
    charts[0].set_yticks(range(len(found)), [NAMES[name] for name in found])
    charts[0].invert_yaxis()
    save(figure, path)


def curves(found: dict[str, list[Run]], path: Path) -> None:
    """The mean of the seeds of some variants along the training."""
    panels = {
        "RankMe (directions the features span)": lambda line: line["rankme"],
        "Explained, beyond knowing the position": explained,
        "Action sensitivity": lambda line: line["action_sensitivity"],
        "Target variance between images": lambda line: line["target_variance"],
    }
    figure = blank(9.5, 4.6)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.06)
    for axes, (title, value) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        style_axes(axes, title)
        for name, colour in LINES.items():
            seeds = [run["metrics"] for run in found.get(name, ())]
            steps = [line["step"] for line in seeds[0]] if seeds else []
            means = [fmean(map(value, lines)) for lines in zip(*seeds, strict=True)]
            axes.plot(steps, means, "o-", color=colour, markersize=3.5, linewidth=1.5, label=NAMES[name])
        axes.set_ylim(bottom=0)
    lines, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    for axes in figure.axes[2:]:
        axes.set_xlabel("training step of 32 images", fontsize=8.5, color=INK)
    save(figure, path)


if __name__ == "__main__":
    kept = runs()
    changes(kept, HERE / "changes.png")
    curves(kept, HERE / "curves.png")
