"""Train conditioning x difficulty x predictor, measure all alike: iwm sweep RECIPE --data.source S --out DIR."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from tyro.conf import Fixed, Suppress, arg

from iwm import config, recipe_book
from iwm.runtime.bounds import AtLeast, Positives, check
from iwm.runtime.errors import UserError
from iwm.verbs import Parse, without_help
from iwm.verbs.shared import LEARNING_RATES, RATIOS


@dataclass(frozen=True, kw_only=True)
class Axes:
    """What is varied; lists as typed, separated by commas."""

    conditionings: str = ""
    """Conditionings, separated by commas; by default all, your own too."""
    levels: str = ""
    """Difficulties of the action, separated by commas; by default all that its set has: jitter,destructive,strong."""
    predictors: str = ""
    """Sizes, DEPTHxWIDTH (4x96,4x192); by default the recipe's own and one half as deep."""
    invariance: str = ""
    """Weights of the last block's invariance term, separated by commas (0,0.3,1); by default the recipe's own."""
    design: Literal["tables", "full"] = "tables"
    """tables: every conditioning and every weight at the reference, and every level with every predictor; full: all
    combinations."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What every cell is trained on and measured by; an evaluation with a budget of 0 is left out."""

    images: Annotated[int, AtLeast(0)] = 0
    """Training images of the pretraining, drawn by the seed; 0: all."""
    eval_data: str = ""
    """Labelled source of the evaluations; by default that of the pretraining."""
    val: str = ""
    """Source of the images that are reported on; by default the source's own."""
    eval_images: Annotated[tuple[int, int], AtLeast(0)] = (0, 0)
    """Training and test images of the evaluations, drawn by the seed; 0: all."""
    world_images: Annotated[int, AtLeast(0)] = 64
    """Held-out images of the MRR; 0 leaves it out."""
    bank: int = 256
    """Changed versions of each of these, among which the true one is ranked."""
    linear: bool = True
    """Also a linear probe."""
    attentive_epochs: Annotated[int, AtLeast(0)] = 20
    """Epochs of the attentive probe; 0 leaves it out."""
    finetune_epochs: Annotated[int, AtLeast(0)] = 20
    """Epochs of finetuning the predictor; 0 leaves it out."""
    finetune_views: Annotated[int, AtLeast(0)] = 4
    """As --views of `iwm finetune`."""
    finetune_lrs: Annotated[tuple[float, ...], Positives()] = LEARNING_RATES
    """As --lrs of `iwm finetune`."""
    finetune_ratios: Annotated[tuple[float, ...], Positives()] = RATIOS
    """As --ratios of `iwm finetune`."""

    def __post_init__(self) -> None:
        check(self, "--")
        if self.world_images and self.bank < 2:
            raise UserError(f"A bank of {self.bank} entries ranks nothing; give --bank 2 or more.")
        if not (self.world_images or self.needs_labels):
            raise UserError("Nothing is left to measure; leave at least one evaluation in.")

    @property
    def needs_labels(self) -> bool:
        return self.linear or self.attentive_epochs > 0 or self.finetune_epochs > 0

    def evaluations(self, controls: bool) -> dict[str, dict[str, Any]]:
        """Name and settings of every evaluation; `controls` adds random encoder and raw pixels to the linear probe."""
        plan: dict[str, dict[str, Any]] = {}
        if self.world_images:
            plan["world"] = {"images": self.world_images, "bank": self.bank}
        if self.linear:
            plan["linear"] = {"baselines": controls}
        if self.attentive_epochs:
            plan["attentive"] = {"epochs": self.attentive_epochs}
        if self.finetune_epochs:
            budget = ("epochs", "views", "lrs", "ratios")
            plan["predictor_finetuning"] = {name: getattr(self, f"finetune_{name}") for name in budget}
        return plan


@dataclass(frozen=True, kw_only=True)
class Sweep(Protocol, Axes):
    settings: Annotated[config.Config, arg(name="")] = field(default_factory=lambda: config.Config(recipe=""))
    recipes: str = ""
    """Further recipes, one run each as they are, with the same other settings."""
    jobs: Annotated[int, AtLeast(1)] = 1
    """Runs at once, each as a process of its own with its share of the cores."""
    list: bool = False
    """Print one command for each run, for a cluster; the same command without --list collects."""
    cell: str = ""
    """Name of the one run to do; --list shows the names."""
    others: Suppress[Fixed[tuple[config.Config, ...]]] = ()
    """The settings of the further recipes."""
    words: Suppress[Fixed[tuple[str, ...]]] = ()
    """The command line's own words, which the processes of single runs repeat."""


OPTIONS = Sweep
WORK = "iwm.sweeps.sweep:sweep"
PLAN = "iwm.sweeps.estimate:sweep"
EXAMPLE = "iwm sweep cifar10 --data.source path/to/images --out runs/sweep"


def base(keywords: Mapping[str, Any]) -> Sweep:
    """The options on which Python's keywords build: the recipe's settings. Raises UserError for an unknown recipe."""
    recipe = keywords.get("recipe") or keywords.get("settings.recipe")
    return Sweep(settings=_recipe(recipe)) if recipe else Sweep()


def _recipe(name: str) -> config.Config:
    """A recipe's settings without the folder that it may name for a run: a sweep asks for one of its own."""
    settings = recipe_book.get(name)
    return replace(settings, run=replace(settings.run, out=""))


def read(words: Sequence[str], parse: Parse) -> Sweep:
    """The options on top of the recipe's settings. Raises UserError."""
    plain = without_help(words)
    name = parse(Sweep, plain).settings.recipe
    if not name and plain == list(words):
        raise UserError("Which recipe? Give `iwm sweep RECIPE --data.source S --out DIR` (see `iwm recipes`).")
    options = parse(Sweep, words, Sweep(settings=_recipe(name)) if name else None)
    further = (word for word in dict.fromkeys(map(str.strip, options.recipes.split(","))) if word not in ("", name))
    others = tuple(
        replace(parse(Sweep, words, Sweep(settings=_recipe(other))).settings, recipe=other) for other in further
    )
    return replace(options, others=others, words=tuple(words))
