"""Write docs/results.md from the JSON files committed under results/: `python results/tables.py`.

Rows are laid out like the tables of Garrido et al. (2024); the paper's numbers stand in columns of their own. A cell
without a result is left empty; a number without a file cannot get in.
"""

import json
import re
import runpy
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from iwm.evaluation.uncertainty import seed_error

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results.md"
Result = dict[str, Any]

INTRODUCTION = """\
# Results

Written by `python results/tables.py` from the JSON files under [results/](../results); do not edit. A file that holds
results of `iwm` holds its command, seed, versions, hardware and date too, and every folder the script that makes it
(`run.sh`; of small-data `ablation.sh` and `evidence.sh`, of frontier `frontier.py`, of gpu `seeds.sh`). Files that hold
a training's own numbers name no command: `config.yaml`, `metrics.jsonl` and `last-line.json` (its last line). Nor do
those that a script writes itself: `pace-*.json` are by `frontier.py` and `directions.json` is by `directions.py`.
Numbers are fractions of 1.

The paper's columns are **ImageNet-1k at 224 px, ViT-B/16, 300 epochs**: a different scale, there to compare the order
of things, not their values. Ours was run on one thread of an AMD EPYC with one or two cores; runs whose table or row
says GPU were made on one NVIDIA H200. Where `demo-model`, the model in the package, was trained, its
[card](../src/iwm/model/assets/demo/card.md) says.

What these numbers say of each claim of the paper, and what they do not: [claims.md](claims.md).
"""


def loaded(path: Path) -> Result:
    """A result, with its path told."""
    return json.loads(path.read_text()) | {"path": path.relative_to(HERE)}


def read(pattern: str, folders: str = "*") -> list[Result]:
    """The results in such folders whose file matches, with their folder and path told."""
    found = []
    for path in sorted(HERE.glob(f"{folders}/eval/{pattern}.json")):
        found.append(loaded(path) | {"folder": path.parts[-3]})
    return found


def number(value: float | None, error: float | None = None) -> str:
    if value is None:
        return ""
    text = f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3f}"
    return text + (f" ± {number(error)}" if error is not None else "")


def cell(result: Result | None, key: str = "top1", error: str = "") -> str:
    """A number that links to its file."""
    if result is None or result.get(key) is None:
        return ""
    return f"[{number(result[key], result.get(error))}](../results/{result['path']})"


def seeds(found: Iterable[Result]) -> str:
    """A cell a seed."""
    return ", ".join(cell(result) for result in sorted(found, key=lambda result: result["settings"]["seed"]))


UNEQUAL: dict[str, tuple[str, Callable[[Result], bool]]] = {
    "attentive": (
        "the attentive probe's grid ended at 3e-3, which every recorded search chose",
        lambda result: (
            result.get("kind", "attentive" if "cell" in result else "") == "attentive" and "at_grid_end" not in result
        ),
    ),
    "views": (
        "encoders that learn were shown fresh crops every epoch, frozen ones a few fixed ones",
        lambda result: "train" in result and "augmentation" not in result,
    ),
    "scratch": (
        "from scratch the layer decay of finetuning (.65) held the first blocks back",
        lambda result: result.get("train") == "encoder" and "random_encoder_layer_decay" not in result,
    ),
}
"""What was not the same for all that a table compares, and which results were measured so; newer ones tell by a key."""


def unequal(results: Iterable[Result], *reasons: str) -> str:
    """The mark of a table whose comparison was not fair; empty once all its results are measured again."""
    there = list(results)
    words = [sentence for sentence, is_old in map(UNEQUAL.__getitem__, reasons) if any(map(is_old, there))]
    return f"**Unequal**, to be measured again: {'; '.join(words)}." if words else ""


def table(title: str, columns: list[str], rows: Iterable[list[str]], *notes: str) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return f"## {title}\n\n" + "\n".join(lines) + "".join(f"\n\n{note}" for note in notes if note) + "\n"


def spectrum() -> str:
    """Every cell of the committed sweeps, as `iwm sweep` collected them."""
    rows, cells = [], []
    for path in sorted(HERE.glob("*/sweep.json")):
        runs = json.loads(path.read_text())["runs"]
        cells += runs
        for r in runs:
            told = [r["conditioning"] or "-", r["difficulty"] or "-", r["predictor"] or "-"]
            measured = ["mrr", "linear", "attentive", "predictor_finetuning"]
            rows.append([f"[{r['cell']}](../results/{path.parent.name})", *told, *(number(r[key]) for key in measured)])
    columns = ["run", "conditioning", "difficulty", "predictor", "MRR", "linear", "attentive", "predictor finetuning"]
    note = (
        "One encoder, one set of images and one budget for all; in the paper MRR is .00 / .82 / .79 for none / "
        "sequence / feature, .79 at `destructive` and .85 at `strong` (18 layers), and correlates -.85 with "
        "linear, +.93 with predictor finetuning."
    )
    title = "The spectrum and the families (tables 1 and 2, figures 4 and 5)"
    return table(title, columns, rows, note, unequal(cells, "attentive"))


LADDER = (
    ("2x256 minus 1x128", {"predictor": "2x256"}, {"predictor": "1x128"}),
    ("destructive minus jitter", {"difficulty": "destructive"}, {"difficulty": "jitter"}),
    ("strong minus destructive", {"difficulty": "strong"}, {"difficulty": "destructive"}),
    ("strong minus jitter", {"difficulty": "strong"}, {"difficulty": "jitter"}),
)
"""Which cells of a sweep are set beside which: alike but for this."""


def spectrum_seeds() -> str:
    """The sweep by Muon: a row a cell, means over pretraining seeds, and what one level or size has more."""
    sweeps = [json.loads(path.read_text()) for path in sorted((HERE / "spectrum" / "muon").glob("seed*/sweep.json"))]
    if not sweeps:
        return ""
    columns = {"MRR": "mrr", "MRR, own range": "mrr_own_range", "MRR, common space": "mrr_common", "linear": "linear"}
    axes = ("conditioning", "difficulty", "predictor")
    cells = {run["cell"]: {axis: run[axis] for axis in axes} for sweep in sweeps for run in sweep["runs"]}
    for sweep in sweeps:
        for run in sweep["runs"]:
            run["photometric_share"] = SHARES.get(f"claims-{sweep['seed']}/{run['cell']}")
    columns["photometric share"] = "photometric_share"
    if any(run["predictor_finetuning"] is not None for sweep in sweeps for run in sweep["runs"]):
        columns["predictor finetuned"] = "predictor_finetuning"

    def values(column: str, cell: str) -> dict[int, float]:
        runs = [(sweep["seed"], run) for sweep in sweeps for run in sweep["runs"] if run["cell"] == cell]
        return {seed: run[column] for seed, run in runs if run.get(column) is not None}

    rows = [
        [*told.values(), *(mean_and_error(list(values(column, cell).values())) for column in columns.values())]
        for cell, told in cells.items()
    ]
    for name, one, other in LADDER:
        for cell, told in cells.items():
            beside = next((there for there, its in cells.items() if its == {**told, **other}), None)
            if told != {**told, **one} or beside is None:
                continue
            row = []
            for column in columns.values():
                ours, theirs = values(column, cell), values(column, beside)
                row.append(mean_and_error([ours[seed] - theirs[seed] for seed in ours if seed in theirs]))
            rest = [value for axis, value in told.items() if axis not in one]
            rows.append([f"{name}: {', '.join(rest)}", "", "", *row])
    note = (
        "16,000 CIFAR-10 images, three passes (1,500 steps of 32), on one core "
        "([muon.sh](../results/spectrum/muon.sh)); linear probe at the last block with 10,000 training and 10,000 "
        "test images, MRR on 64, one bank of changes for all, of the level `destructive`; *own range*: a bank of the "
        "level's own; *photometric share*: on the changes of `destructive` for all "
        "([shares.py](../results/seeds/shares.py)). Mean ± standard error over pretraining seeds (their number), "
        "differences seed by seed; a 95 % interval of three seeds is 4.3 errors wide to each side."
    )
    random, pixels = (sweeps[0]["runs"][0][control] for control in ("random_encoder_top1", "raw_pixels_top1"))
    note += f" A random encoder has {number(random)} in the linear probe, raw pixels {number(pixels)}."
    for measure, name in (("linear", "the linear probe"), ("predictor_finetuning", "predictor finetuning")):
        found = sweeps[0]["correlations"][measure]
        if found["interval"]:
            low, high = found["interval"]
            note += (
                f" Over {found['n']} cells of seed 0 MRR and {name} correlate {found['r']:+.2f} (95 % from {low:+.2f} "
                f"to {high:+.2f}), in the paper {found['paper']:+.2f}."
            )
    title = "Conditioning, difficulty and capacity at 1,500 steps, over pretraining seeds"
    return table(title, [*axes, *columns], rows, note)


ESTIMATORS = {
    "search": "search through the predictor",
    "pixel_search": "search among pictures",
    "histogram_search": "search among pictures, by histograms",
    "always_zero": "always zero",
    "pixel_statistics": "ridge on pixel statistics",
    "encoder_features": "ridge on encoder features",
}


def small_scale() -> str:
    """The ablation, a row a variant, the mean of its seeds."""
    rows = []
    figures = runpy.run_path(str(HERE / "small-data" / "figures.py"))
    for name, seeds in figures["runs"]().items():
        lines = [run["metrics"][-1] for run in seeds]
        row = [figures["NAMES"][name], str(len(seeds))]
        row += [spread([run[key] for run in seeds]) for key in ("mrr", "linear")]
        row += [f"{fmean([line['rankme'] for line in lines]):.0f}", number(fmean(map(figures["explained"], lines)))]
        rows.append([*row, number(fmean([line["action_sensitivity"] for line in lines]))])
    columns = ["changed", "seeds", "MRR", "linear", "RankMe", "explained", "sensitivity"]
    note = (
        "500 steps of 32 CIFAR-10 images each ([ablation.sh](../results/small-data/ablation.sh)), mean and, of several "
        "seeds, standard deviation; what it means is in [small-data.md](small-data.md)."
    )
    return table("What goes wrong at small scale?", columns, rows, note)


def frontier() -> str:
    """Changes of a recipe at equal time, a row a run, the recipe itself first."""
    rows = []
    figures = runpy.run_path(str(HERE / "frontier" / "figures.py"))
    for data, (label, _) in figures["SETS"].items():
        for row in sorted(figures["rows"](data), key=lambda row: (row["arm"] != "recipe", row["arm"], row["seed"])):
            change = figures["NAMES"].get(row["arm"], "the recipe, its masks blocks")
            told = [label, change, str(row["seed"]), f"{row['steps']:,}", cell(row, "linear"), cell(row, "all")]
            mrrs = [number(row[key], row[f"{key}_error"]) for key in ("mrr", "common")]
            rows.append([*told, *([""] * 3 if data.startswith("ijepa") else [*mrrs, number(row["correlation"])])])
    columns = ["data", "change", "seed", "steps", "linear, last block", "linear, all blocks", "MRR"]
    columns += ["MRR, common space", "correlation"]
    note = (
        "The runs of a data set and family were trained for the same seconds of one core: 8 minutes (CIFAR-10), 6.4 "
        "(I-JEPA-style) and 4 (EuroSAT) of the machine named in their files "
        "([frontier.py](../results/frontier/frontier.py)); measured on training images that no run had seen, 10,000 "
        "and 1,000 of them. MRR ranks in each run's own "
        "target space, the common one in colours that all can be read into ([concepts.md](concepts.md#numbers)). "
        "Many probes chose the weakest of the five ridge strengths tried; the files say which, by `at_grid_end`."
    )
    return table("What does a core's time buy?", columns, rows, note)


LONG = {
    "long/half": ("CIFAR-10", "10,000 steps, 48 minutes"),
    "long/whole": ("CIFAR-10", "20,306 steps, 98 minutes"),
    "long/eurosat": ("EuroSAT", "9,360 steps, 60 minutes"),
    "long/ijepa-style-eurosat": ("EuroSAT, I-JEPA-style (has no MRR)", "9,360 steps, 45 minutes"),
    "gpu/long/ijepa-world-cifar10-seed0": ("CIFAR-10, I-JEPA-world, GPU", "13,000 steps"),
    "gpu/long/ijepa-style-cifar10-seed0": ("CIFAR-10, I-JEPA-style, GPU", "13,000 steps"),
    "gpu/long/ijepa-world-eurosat-seed0": ("EuroSAT, I-JEPA-world, GPU", "11,000 steps"),
    "gpu/long/ijepa-style-eurosat-seed0": ("EuroSAT, I-JEPA-style, GPU", "11,000 steps"),
}
"""Folders of long runs, each with its data and how long it was trained."""


def long() -> str:
    """The changes that the frontier puts ahead, together and for long."""
    rows = []
    for name, (data, told) in LONG.items():
        found = read("*", name)
        if not found:
            continue
        probe = next(r for r in found if r.get("kind") == "linear")
        world = next((r for r in found if "mrr" in r), None)
        row = [data, told, cell(probe, "last_block_top1"), cell(probe)]
        row.append(number(probe.get("random_encoder_top1")))
        row += [cell(world, key, f"{key}_standard_error") for key in ("mrr", "mrr_common")]
        for start, labels in (("random", 5000), ("pretrained", 5000)):
            row.append(seeds(r for r in found if (r.get("predictor"), r.get("n_train")) == (start, labels)))
        brief = {path.stem.split("-")[2]: loaded(path) for path in (HERE / name / "brief").glob("*.json")}
        row += [cell(brief.get(start)) for start in ("random", "pretrained")]
        row.append(seeds(r for r in found if r.get("n_train") == 50_000 and r.get("train") == "predictor"))
        rows.append(row)
    columns = ["data", "trained", "linear, last block", "linear, all blocks", "random encoder, all blocks", "MRR"]
    columns += ["MRR, common space", "random predictor finetuned", "its own"]
    columns += ["random, 50,000 labels, 6 passes", "its own, 6 passes", "12 passes"]
    note = (
        "One pretraining each, measured on the test set: of an accuracy the standard error is up to .005 (CIFAR-10) "
        "and up to .012 (EuroSAT). CIFAR-10: `cifar10` with an encoder 256 wide and 13 passes of the 50,000 training "
        "images, not 7 "
        "([run.sh](../results/long/run.sh)); the shorter run is the longer one up to step 7,639, from there on the "
        "schedule of 10,000 steps. EuroSAT: `eurosat` with an encoder 256 wide, half of the views jittered and 60 "
        "passes of the 5,000 training images, not 14; `ijepa-style-eurosat` as wide and as long, without photometry "
        "([eurosat.sh](../results/long/eurosat.sh)). GPU: 256 wide on an H200, all views of the equivariant recipe "
        "jittered, nine and a half minutes beside 17 other runs ([seeds.sh](../results/gpu/seeds.sh)); of 13,000 and "
        "11,000 steps a quarter does not teach the encoder of I-JEPA-world. Predictors: 5,000 "
        "labels, 20 epochs of 8 views, four learning rates; not the finetuning of other tables. 50,000 labels: "
        "fresh crops; in 6 passes each predictor at the rate that it chose with 5,000 (its own 3e-3, the random one "
        "1e-3), in 12 passes three rates tried."
    )
    return table("Wider and for longer", columns, rows, note) if rows else ""


def dial() -> str:
    """From equivariant to invariant by the weight of the last block's invariance term, over pretraining seeds."""
    figures = runpy.run_path(str(HERE / "dial" / "figures.py"))
    names, keys, rows = figures["ARMS"], list(figures["MEASURES"]), []
    of_arm = {arm: figures["runs"](arm) for arm in names}
    for arm, name in names.items():
        places = {seed: f"../results/dial/{figures['folder_of'](arm, seed)}/config.yaml" for seed in of_arm[arm]}
        links = ", ".join(f"[{seed}]({place})" for seed, place in places.items())
        values = [[run[key] for run in of_arm[arm].values() if key in run] for key in keys]
        rows.append([f"{name}: {links}", *map(mean_and_error, values)])
    for one, other in (("w10", "w0"), ("w1", "w0"), ("w0.1", "w0"), ("w0", "recipe")):
        pairs = [(run, of_arm[other][seed]) for seed, run in of_arm[one].items() if seed in of_arm[other]]
        differences = [[a[key] - b[key] for a, b in pairs if key in a and key in b] for key in keys]
        short = [names[arm].rpartition(", ")[2].partition(":")[0] for arm in (one, other)]
        rows.append([" minus ".join(short), *map(mean_and_error, differences)])
    note = (
        "EuroSAT, 4 passes over 5,000 images, 624 steps of 32 ([run.sh](../results/dial/run.sh)); behind an arm's name "
        "its seeds, errors are over them (their number), differences are taken seed by seed; the 1,000 test images add "
        "± .013 to .015 to an accuracy, the 32 of an MRR ± .02. All but the recipe predict block 2 of 4 "
        "(`encoder.layer 2`, `objective.target_layers 2`)."
    )
    return table("From equivariant to invariant by a weight", ["arm: seeds", *keys], rows, note)


def equal_budget() -> str:
    """The recipes beside each other, a row a run of evidence.sh."""
    rows = []
    for folder in sorted((HERE / "small-data" / "evidence").glob("*")):
        found = read("*", f"small-data/evidence/{folder.name}")
        worlds = [r for r in found if "mrr" in r]
        kinds = {r["kind"]: r for r in found if "kind" in r}
        fits = [r for r in found if "train" in r]
        full, few = ("eurosat", "eurosat") if "eurosat" in folder.name else ("cifar10", "cifar10-5000")
        row = [f"[{folder.name}](../results/small-data/evidence/{folder.name}/config.yaml)"]
        row.append(cell(worlds[0] if worlds else None, "mrr", "mrr_standard_error"))
        row += [cell(kinds.get(kind)) for kind in ("linear", "knn", "attentive")]
        row.append(number(kinds["linear"].get("random_encoder_top1")) if "linear" in kinds else "")
        for data, start in ((few, "random"), (few, "pretrained"), ("cifar10", "pretrained")):
            row.append(seeds(r for r in fits if (r["data"], r["predictor"]) == (data, start)))
        encoders = [r for r in fits if (r["data"], r["train"]) == (full, "encoder")]
        rows.append([*row, seeds(encoders), *([number(r.get("random_encoder_top1")) for r in encoders] or [""])])
    columns = ["recipe", "MRR", "linear", "kNN", "attentive", "linear, random encoder"]
    columns += ["random predictor finetuned", "pretrained predictor finetuned", "with all 50,000 labels"]
    columns += ["encoder finetuned", "trained from scratch"]
    note = (
        "350,000 views of CIFAR-10 or 70,000 of EuroSAT each ([evidence.sh](../results/small-data/evidence.sh)), all "
        "with masks of blocks, which `cifar10` had until 2026-11-26, one "
        "pretraining; predictors are finetuned with 5,000 labels (several numbers are seeds); the last two columns "
        "have all labels and as many views as the pretraining. `-inv` is the invariant setting, `ijepa` (our objective "
        "under I-JEPA's masking) has no "
        "photometry and no action: its MRR is chance. Changes: `-dropped` is asked for the positions of I-JEPA and "
        "`-all` for those of the world model, `-jitter5` and `-mild` leave more views their colours. The random "
        "encoder is the same in every run of a data set."
    )
    return table(
        "The recipes at equal budget",
        columns,
        rows,
        note,
        unequal(read("*", "small-data/evidence/*"), "attentive", "views", "scratch"),
    )


SEEDED = {
    "{}": "equivariant",
    "ijepa-style-{}": "I-JEPA-style",
    "ijepa-style-{}-long": "I-JEPA-style, a third longer",
    "ijepa-style-{}-deep-long": "I-JEPA-style, predictor of four blocks, as many steps",
    "{}-inv": "invariant",
    "{}-held": "encoder held",
    "{}-whole": "half whole",
    "{}-deep": "predictor of four blocks",
    "{}-deep-long": "predictor of four blocks, as many steps",
    "{}-clean": "one view unchanged",
    "{}-clean-ema": "the same, EMA from .98",
    "ijepa-world-{}": "I-JEPA-world",
    "ijepa-world-all-{}": "I-JEPA-world, all positions",
}
"""The recipes of results/seeds and results/gpu/short, of either data set, by the name that the page gives them."""
SEEDED_PAIRS = (
    ("{}", "ijepa-style-{}"),
    ("{}-inv", "ijepa-style-{}"),
    ("{}", "{}-inv"),
    ("{}-held", "{}"),
    ("{}-held", "ijepa-style-{}"),
    ("{}-whole", "{}"),
    ("{}-deep", "{}"),
    ("{}-deep-long", "{}"),
    ("ijepa-style-{}-deep-long", "ijepa-style-{}"),
    ("{}-deep-long", "ijepa-style-{}-deep-long"),
    ("{}-clean", "{}"),
    ("{}-clean-ema", "{}"),
    ("ijepa-world-{}", "{}"),
    ("ijepa-world-{}", "ijepa-style-{}"),
    ("ijepa-world-{}", "ijepa-style-{}-long"),
    ("ijepa-world-all-{}", "ijepa-world-{}"),
    ("ijepa-world-all-{}", "{}"),
)
"""Which recipe is set beside which."""
SEEDED_ON = {
    "eurosat": (
        "EuroSAT's 5,000 training images, 14 passes",
        "1,000 test images: the choice of these adds ± .012 to an accuracy, up to ± .017 to a difference",
    ),
    "cifar10": (
        "CIFAR-10's 50,000 training images, 4,000 steps of 32 (2.6 passes), a quarter of the patches seen; 5,000 "
        "labels to finetune with",
        "10,000 test images: the choice of these adds ± .005 to an accuracy, up to ± .007 to a difference",
    ),
}
"""The training and the test images of a data set's tables."""
SEEDS = HERE / "seeds"
SEEDED_IN = {
    "seeds": "on one core ([run.sh](../results/seeds/run.sh))",
    "gpu/short": "on an H200, at once with 17 others ([seeds.sh](../results/gpu/seeds.sh))",
}
"""The folders that hold pretraining seeds, and where their runs were made."""


def pretraining_seeds(title: str, size: str, root: str) -> str:
    """Recipes of a data set over pretraining seeds: means, and what one has more than another, seed by seed."""
    measured = {recipe: _pretrainings(HERE / root, recipe.format(size)) for recipe in SEEDED}
    measured = {recipe: runs for recipe, runs in measured.items() if runs}
    if not measured:
        return ""
    columns = ["linear, last block", "linear, all blocks", "MRR", "MRR, common space", "photometric share", "attentive"]
    columns += ["random predictor", "its own predictor", "its own, random actions", "gain"]
    columns = [
        column for column in columns if any(column in run for runs in measured.values() for run in runs.values())
    ]
    rows = []
    for recipe, runs in measured.items():
        links = ", ".join(f"[{seed}](../results/{root}/{recipe.format(size)}-seed{seed}/eval)" for seed in runs)
        means = (mean_and_error([run[column] for run in runs.values() if column in run]) for column in columns)
        rows.append([SEEDED[recipe], links, *means])
    for one, other in SEEDED_PAIRS:
        if one not in measured or other not in measured:
            continue
        row = [f"{SEEDED[one]} minus {SEEDED[other]}", ""]
        pairs = [(run, measured[other][seed]) for seed, run in measured[one].items() if seed in measured[other]]
        for column in columns:
            row.append(mean_and_error([a[column] - b[column] for a, b in pairs if column in a and column in b]))
        rows.append(row)
    trained, images = SEEDED_ON[size]
    note = (
        f"{trained}, {SEEDED_IN[root]}; predictors finetuned on the frozen encoder, all over one grid. Mean ± standard "
        "error over pretraining seeds (their number); differences are taken seed by seed. A 95 % interval of three "
        f"seeds is 4.3 errors wide to each side, of two 12.7. Every number is of the same {images}. *Gain*: its own "
        "predictor minus a random one. *Photometric share*: on the changes of `destructive` for all "
        "([shares.py](../results/seeds/shares.py))."
        f"{''.join(SEEDED_NOTES.get(recipe, '') for recipe in measured)}"
    )
    return table(title, ["recipe", "seeds", *columns], rows, note)


SEEDED_NOTES = {
    "ijepa-style-{}-long": (
        " *A third longer*: as many steps, and a schedule as long, as I-JEPA-world has; 5,333 on CIFAR-10, 2,912 on "
        "EuroSAT."
    ),
    "{}-held": (
        " *Encoder held*: the equivariant recipe, whose steps on whole sources, the only ones that show a change, "
        "teach the predictor alone (`--actions.clean both --objective.whole-gradient 0`); in them Muon's momentum "
        "still moved the encoder, as it no longer does."
    ),
    "{}-whole": (
        " *Half whole*: the equivariant recipe with whole sources in half of the steps instead of a quarter "
        "(`--masks.whole 0.5`)."
    ),
    "{}-deep": (
        " *Predictor of four blocks*: the equivariant recipe with `--predictor.depth 4` for as long by the clock, "
        "2,716 steps on CIFAR-10, 1,479 on EuroSAT ([frontier.py](../results/frontier/frontier.py) timed a step); "
        "finetuned, its predictor has more parameters than the others."
    ),
    "{}-deep-long": (" *As many steps*: as many as the recipe, which take half as much time again."),
    "{}-clean": (
        " *One view unchanged*: the equivariant recipe with source or target, by lot for every image, the unchanged "
        "crop (`--actions.clean either`)."
    ),
    "{}-clean-ema": (" *The same, EMA from .98*: with `--optim.ema 0.98`, too."),
    "ijepa-world-{}": (
        " *I-JEPA-world* (`ijepa-world`; before the recipe had a name, its runs were called `beside`): the encoder "
        "learns as I-JEPA-style's, for as many steps, and does not move in the steps on whole sources, which alone "
        "show a change and teach the predictor alone. These steps are extra: against I-JEPA-style and the equivariant "
        "recipe it is **unequal** by a third more steps in all, and a schedule as much longer."
    ),
    "ijepa-world-all-{}": (
        " *All positions*: the same, asked for visible positions too (`--masks.predict all --masks.queries 0.375`)."
    ),
}
"""What is to be known of a row, where it stands."""


def _pretrainings(root: Path, recipe: str) -> dict[str, dict[str, float]]:
    """The pretrainings of a recipe, by their seed."""
    folders = {folder.name.rpartition("-seed")[2]: folder for folder in sorted(root.glob(f"{recipe}-seed*"))}
    return {seed: _seeded(folder) for seed, folder in folders.items()}


SHARES: dict[str, float] = json.loads((SEEDS / "shares.json").read_text())
"""Photometric shares on the changes of the level `destructive`, of runs that are shown others."""


def _seeded(folder: Path) -> dict[str, float]:
    """What was measured of one pretraining, by the column it stands in."""
    found: dict[str, float] = {}
    for result in read("*", str(folder.relative_to(HERE))):
        if result.get("kind") == "linear":
            found["linear, last block"], found["linear, all blocks"] = result["last_block_top1"], result["top1"]
        elif result.get("kind") == "attentive":
            found["attentive"] = result["top1"]
        elif "mrr" in result:
            found["MRR"], found["MRR, common space"] = result["mrr"], result["mrr_common"]
            share = SHARES.get(f"{folder.parent.name}/{folder.name}")
            if share is None and re.fullmatch(
                r"(cifar10|eurosat)(-whole|-deep|-deep-long|-clean|-clean-ema)?-seed\d", folder.name
            ):
                share = result["photometric_share"]
            if share is not None:
                found["photometric share"] = share
        elif result.get("train") == "predictor":
            column = {"pretrained": "its own predictor", "random": "random predictor"}[result["predictor"]]
            told_random = result["settings"].get("action") == "random"
            found["its own, random actions" if told_random else column] = result["top1"]
    if {"its own predictor", "random predictor"} <= found.keys():
        found["gain"] = found["its own predictor"] - found["random predictor"]
    return found


Arms = dict[str, dict[str, Result]]
"""Results by what was done, then by the folder of the seed."""


def arm_rows(arms: Arms, pairs: Iterable[tuple[str, str]], key: str = "top1") -> list[list[str]]:
    """A row an arm, each seed's number and their mean; then a row a pair, differences taken seed by seed. What has not
    been measured has no row."""
    rows = []
    for arm, runs in ((arm, runs) for arm, runs in arms.items() if runs):
        rows.append([arm, ", ".join(cell(run, key) + AT_END * bool(run.get("at_grid_end")) for run in runs.values())])
        rows[-1].append(mean_and_error([run[key] for run in runs.values()]))
    for one, other in pairs:
        of_other = arms.get(other, {})
        differences = [run[key] - of_other[seed][key] for seed, run in arms.get(one, {}).items() if seed in of_other]
        if differences:
            rows.append([f"{one} minus {other}", ", ".join(map(number, differences)), mean_and_error(differences)])
    return rows


ARM_COLUMNS = ["finetuned", "seeds 0, 1, 2", "mean"]
AT_END = " †"
"""Behind a result whose learning rate is the lowest or highest that was tried."""


def arm_table(title: str, arms: Arms, pairs: Iterable[tuple[str, str]], note: str, key: str = "top1") -> str:
    """The table of `arm_rows`."""
    at_end = any(run.get("at_grid_end") for runs in arms.values() for run in runs.values())
    end = "†: the rate chosen is the lowest or highest of those tried, so another may be better." if at_end else ""
    return table(title, ARM_COLUMNS, arm_rows(arms, pairs, key), note, end)


def in_seeds(name: str, pattern: str) -> Iterable[tuple[str, Result]]:
    """The results of results/seeds/`name` whose file matches, with the folder of their seed."""
    return ((path.parent.name, loaded(path)) for path in sorted((SEEDS / name).glob(f"seed*/{pattern}.json")))


TUNED = {
    "head": "head",
    "predictor": "predictor",
    "encoder": "encoder",
    "both": "both",
    "scratch": "encoder from scratch",
}


OTHERS_TUNED = {
    "-long": ", 28 epochs",
    "-ijepa-style": " of I-JEPA-style",
    "-ijepa-world": " of `ijepa-world`",
}
"""What a folder's name has behind its seed, and how an arm of it is told from the recipe's."""


def tuning() -> str:
    """What finetuning each part brings, over the pretraining seeds of one recipe, and the predictors of two others."""
    arms: Arms = {name: {} for name in TUNED.values()}
    for folder, result in in_seeds("tuning", "finetune-*"):
        seed = folder[: len("seed0")]
        arms.setdefault(TUNED[result["train"]] + OTHERS_TUNED.get(folder.removeprefix(seed), ""), {})[seed] = result
        if "random_encoder_top1" in result:
            arms[TUNED["scratch"]][seed] = result | {"top1": result["random_encoder_top1"]}
    pairs = [("predictor", "encoder"), ("both", "predictor"), ("both", "encoder"), ("encoder", "encoder from scratch")]
    pairs += [("predictor", "head")]
    style, world = ("predictor" + OTHERS_TUNED[name] for name in ("-ijepa-style", "-ijepa-world"))
    pairs += [("predictor", style), (world, style), (world, "predictor")]
    pairs += [("both", part + OTHERS_TUNED["-long"]) for part in ("predictor", "encoder")]
    note = (
        "The equivariant recipe's pretrainings, where no other is named, finetuned with EuroSAT's 5,000 labels: fresh "
        "crops, 14 epochs, four learning rates tried on a tenth, for the head five "
        "([tuning.sh](../results/seeds/tuning.sh)). *Head* and *predictor*: on the frozen encoder. *Both* has 14 "
        "epochs more, those of the predictor that it begins from. Layer decay is .65 for a pretrained encoder, none "
        "from scratch. The errors are over seeds (their number); the choice of the 1,000 test images adds ± .010."
    )
    return arm_table("Predictor, encoder or both, over pretraining seeds", arms, pairs, note)


ASKED = {
    "student": "student's tokens",
    "random-action": "random actions",
    "one-query": "one query",
}


def asking() -> str:
    """What a finetuned predictor is asked, over the pretraining seeds of one recipe."""
    usual = "as usual"
    own = {f"seed{n}": SEEDS / f"eurosat-seed{n}" / "eval" for n in range(3)}
    arms: Arms = {usual: {seed: _own(folder) for seed, folder in own.items()}}
    for arm, name in ASKED.items():
        arms[name] = {seed: _own(SEEDS / "task" / f"{arm}-{seed}") for seed in own}
    note = (
        "*As usual*: the EMA encoder's tokens, the null action, all queries; it is the finetuning over pretraining "
        "seeds, 4 epochs of 2 views, four learning rates. The others change one thing each "
        "([task.sh](../results/seeds/task.sh)). Errors are over seeds; the 1,000 test images add ± .012 "
        "to an accuracy."
    )
    pairs = [(name, usual) for name in ASKED.values()]
    return arm_table("What a finetuned predictor is asked (table 3)", arms, pairs, note)


def efficiency() -> str:
    """Accuracy against the number of finetuned parameters, over the pretraining seeds of one recipe."""
    arms: Arms = {}
    for seed, result in in_seeds("efficiency", "efficiency-*"):
        for point in sorted(result["points"], key=lambda point: point["trainable_parameters"]):
            arm = f"{point['what']} ({point['trainable_parameters'] / 1e6:.1f} M)"
            arms.setdefault(arm, {})[seed] = point | {"path": result["path"]}
    named = {arm.rpartition(" (")[0]: arm for arm in arms}
    whole, half = "{} predictor, 2 of 2 blocks", "{} predictor, 1 of 2 blocks"
    encoder = "last 4 of 4 encoder blocks"
    pairs = [(half.format("pretrained"), encoder), (whole.format("pretrained"), encoder)]
    pairs += [(how.format("pretrained"), how.format("random")) for how in (half, whole)]
    note = (
        "The equivariant recipe's pretrainings, finetuned with EuroSAT's 5,000 labels: fresh crops for all, 4 epochs, "
        "four learning rates tried on a tenth ([efficiency.sh](../results/seeds/efficiency.sh)); M: millions of "
        "finetuned parameters, the head's among them. Errors are over seeds; the 1,000 test images add ± .012. The "
        "paper's figure 3 has no numbers to put beside these; its predictors lie above the encoder's last blocks."
    )
    pairs = [(named[one], named[other]) for one, other in pairs]
    return arm_table("What does each finetuned parameter bring? (figure 3)", arms, pairs, note)


SHARED = {
    "one for all": "top1",
    "one each, as many updates each": "single_task_equal_updates_top1",
    "one each, as many in all": "single_task_top1",
}


def multitask() -> str:
    """One predictor for several tasks beside one each, over the pretraining seeds of one recipe."""
    arms: Arms = {}
    pairs: dict[tuple[str, str], None] = {}
    for seed, result in in_seeds("multitask", "multitask-*"):
        mean = {key: result[f"average_{key}"] for key in SHARED.values()}
        for name, task in {**result["tasks"], "mean": mean}.items():
            for what, key in SHARED.items():
                at_end = result["at_grid_end"] if key == "top1" else task.get(key.replace("top1", "at_grid_end"))
                run = {"top1": task[key], "at_grid_end": at_end, "path": result["path"]}
                arms.setdefault(f"{name}: {what}", {})[seed] = run
                if key != "top1":
                    pairs[f"{name}: one for all", f"{name}: {what}"] = None
    note = (
        "One predictor on the frozen encoder of the equivariant recipe's pretrainings on EuroSAT, for three tasks in "
        "turn, and one each: 5,000 labels of CIFAR-10, 5,000 of EuroSAT, the package's objects, all at 32 px, 4 "
        "epochs, five learning rates tried on a tenth ([multitask.sh](../results/seeds/multitask.sh)). *As many "
        "updates each*: each has as many steps as the shared one; *as many in all*: a third of them. Errors are over "
        "seeds. The paper's means are .735 for one and .734 for one each."
    )
    return arm_table("One predictor, several tasks (multitask)", arms, pairs, note)


SEGMENTED = {
    ("head", None): "head",
    ("predictor", "pretrained"): "predictor",
    ("predictor", "random"): "random predictor",
    ("encoder", None): "encoder",
    ("both", "pretrained"): "both",
    ("encoder", "none"): "encoder from scratch",
}


def segmentation() -> str:
    """Segmentation by each part that can be finetuned, over the pretraining seeds of one recipe."""
    longer = ("predictor, 40 epochs", "encoder, 40 epochs")
    arms: Arms = {name: {} for name in (*SEGMENTED.values(), *longer)}
    for folder, result in in_seeds("segment", "segment-*"):
        seed, long = folder.removesuffix("-long"), folder.endswith("-long")
        arms[SEGMENTED[result["train"], result["predictor"]] + ", 40 epochs" * long][seed] = result
        if result["train"] == "encoder" and not long:
            arms["encoder from scratch"][seed] = result | {"miou": result["random_encoder_miou"]}
    pairs = [("predictor", "encoder"), ("predictor", "random predictor"), ("encoder", "encoder from scratch")]
    pairs += [longer, *(("both", arm) for arm in longer)]
    note = (
        "mIoU of 11 classes on CamVid's 101 validation images at 160 x 120 px, by the equivariant recipe's "
        "pretrainings on EuroSAT, which never saw a street: linear head, fresh crops of 64 px for all, 20 epochs, four "
        "learning rates tried on a tenth ([segment.sh](../results/seeds/segment.sh)). *Both* has the predictor's 20 "
        "epochs before its own 20. Errors are over seeds. The paper on ADE20k: encoder .442, predictor .468, both .470."
    )
    return arm_table("Segmentation", arms, pairs, note, "miou")


def acting() -> str:
    """How well the change between two images is found, over the pretraining seeds of one recipe."""
    components = ["brightness", "contrast", "saturation", "hue"]
    answers: Arms = {}
    for seed, result in in_seeds("looking", "infer-*"):
        for key, name in ((key, name) for key, name in ESTIMATORS.items() if key in result):
            answers.setdefault(name, {})[seed] = result[key] | {"path": result["path"]}
    rows = []
    for row, runs in zip(arm_rows(answers, (), "error"), answers.values(), strict=True):
        rows.append([*row, *(number(fmean(run["components"][name] for run in runs.values())) for name in components)])
    note = (
        "Mean absolute error on 64 test images of EuroSAT, in shares of each component's range "
        "([looking.sh](../results/seeds/looking.sh)); errors are over pretraining seeds, whose images and changes "
        "differ too. The paper has no such table."
    )
    return table("Which change was made? (`iwm infer`)", ["by", *ARM_COLUMNS[1:], *components], rows, note)


def undoing() -> str:
    """What undoing corruptions in latent space is worth to a probe, over the pretraining seeds of one recipe."""
    results = [result for _, result in in_seeds("looking", "undo-*")]
    keys = ["before", "true_action", "found_by_density", "found_by_probe", "augmented_probe"]
    rows = []
    for corruption in results[0]["corruptions"]:
        found = [result["corruptions"][corruption] for result in results]
        rows.append([corruption, *(mean_and_error([one[key] for one in found]) for key in keys)])
    columns = ["corruption", "as it is", "undone, true action", "found by density", "found by probe", "augmented probe"]
    links = ", ".join(f"[{seed}](../results/{result['path']})" for seed, result in enumerate(results))
    note = (
        "Top-1 of a linear probe of clean images, by the equivariant recipe's pretrainings on EuroSAT (seeds "
        f"{links}, 250 test images each); the last column's probe was trained on corrupted ones. Errors are over seeds."
    )
    return table("Undoing corruptions in latent space (`iwm undo`)", columns, rows, note)


def _own(folder: Path) -> Result:
    """The finetuned pretrained predictor of a folder."""
    (path,) = folder.glob("finetune-predictor*pretrained*.json")
    return loaded(path)


def mean_and_error(values: list[float]) -> str:
    """Mean ± standard error over seeds, and how many; of one value no error is known."""
    if not values:
        return ""
    return f"{number(fmean(values), seed_error(values) if len(values) > 1 else None)} ({len(values)})"


def spread(values: list[float]) -> str:
    return number(fmean(values), stdev(values) if len(values) > 1 else None)


def page() -> str:
    """The whole page."""
    parts = [
        pretraining_seeds("Over pretraining seeds", "eurosat", "seeds"),
        pretraining_seeds("Over pretraining seeds, on a GPU", "eurosat", "gpu/short"),
        pretraining_seeds("Over pretraining seeds, CIFAR-10", "cifar10", "seeds"),
        pretraining_seeds("Over pretraining seeds, CIFAR-10, on a GPU", "cifar10", "gpu/short"),
        spectrum_seeds(),
        dial(),
        tuning(),
        efficiency(),
        asking(),
        multitask(),
        segmentation(),
        acting(),
        undoing(),
        long(),
        equal_budget(),
        frontier(),
        small_scale(),
        spectrum(),
    ]
    return "\n".join(map(narrow, "\n".join([INTRODUCTION, *filter(None, parts)]).split("\n")))


def narrow(line: str) -> str:
    """A line of prose in lines of at most 120 columns; rows of tables and headings as they are, code in one piece."""
    if line.startswith(("|", "#")):
        return line
    whole = re.sub(r"`[^`]{1,70}`", lambda code: code[0].replace(" ", "\0"), line)
    return textwrap.fill(whole, 120, break_long_words=False, break_on_hyphens=False).replace("\0", " ")


if __name__ == "__main__":
    PAGE.write_text(page())
