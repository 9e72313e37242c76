"""Train a world model: iwm pretrain RECIPE --data.source S --out RUN [any setting], or --config RUN/config.yaml."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from iwm import config, recipe_book
from iwm.runtime.errors import UserError
from iwm.verbs import Parse, without_help, without_option

OPTIONS = config.Config
WORK = "iwm.evaluation.after_pretraining:pretrain"
PLAN = "iwm.training.estimate:pretrain"
EXAMPLE = "iwm pretrain cifar10 --data.source path/to/images --out runs/mine"

ENCODER_SIZES = ("patch_size", "width", "depth", "heads", "mlp_ratio", "mean", "std")
"""Settings that an encoder of others brings with it."""
RANKS = True


def read(words: Sequence[str], parse: Parse) -> config.Config:
    """The settings: those of the recipe, or of a file, with what is typed on top. Raises UserError."""
    words, path = without_option(words, "--config")
    for flag, value in pairwise(words):
        group, _, name = flag.removeprefix("--").partition(".")
        setting = getattr(getattr(config.Config(), group, None), name.replace("-", "_"), None)
        if isinstance(setting, bool) and value in ("True", "False", "true", "false"):
            raise UserError(f"{flag} takes no value: write {flag} for yes, --{group}.no-{name} for no.")
    if path:
        default = config.load(Path(path).expanduser())
    else:
        plain = without_help(words)
        name = parse(config.Config, plain, config.Config(recipe="")).recipe
        if not name and plain == list(words):
            raise UserError("Which recipe? Give `iwm pretrain RECIPE ...` (see `iwm recipes`) or --config FILE.")
        default = recipe_book.get(name) if name else config.Config()
    settings = parse(config.Config, words, default)
    if settings.encoder.name:
        _refuse_sizes(words, settings.encoder.name)
    if path and settings.recipe != default.recipe:
        raise UserError(f"--config already gives all settings; leave out the recipe '{settings.recipe}'.")
    if not settings.data.source:
        raise UserError(
            f"Recipe '{settings.recipe}' brings no pictures; give --data.source FOLDER (or .zip, .npz, sample)."
        )
    config.check_bounds(settings)
    return settings


def _refuse_sizes(words: Sequence[str], encoder: str) -> None:
    """Raises UserError where a size is typed beside an encoder of others, which brings its own."""
    for flag in (word.split("=")[0] for word in words):
        name = flag.removeprefix("--encoder.").replace("-", "_")
        if flag.startswith("--encoder.") and name in ENCODER_SIZES:
            raise UserError(f"{flag} comes with {encoder}; leave it out.")
