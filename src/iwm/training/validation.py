"""What is checked of the settings before any work: names, numbers, and what does not go together."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from iwm import recipe_book
from iwm.actions.action_space import ActionSpace
from iwm.actions.photometric import REPLACED
from iwm.config import Config, check_bounds
from iwm.model import pretrained
from iwm.model.architecture import SIZES, last_blocks, layer_number
from iwm.model.conditioning import CONDITIONINGS
from iwm.model.foreign_encoder import ForeignEncoder, encoder_of, stands_still
from iwm.model.masks import UNREAD, require_maskable
from iwm.model.objectives import OBJECTIVES, objective_of
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import fields
from iwm.runtime.errors import UserError, first_line
from iwm.training.optimisers import OPTIMISERS
from iwm.training.token_training import keeps_tokens


def validate(settings: Config, ranks: int = 1) -> None:
    """Check that names are known, numbers make sense and settings go together, for so many ranks.

    Of an encoder of others the sizes are known (`with_encoder`). Raises UserError naming the first setting that does
    not.
    """
    OBJECTIVES.find(settings.objective.kind)
    CONDITIONINGS.find(settings.predictor.conditioning)
    OPTIMISERS.find(settings.optim.kind)
    check_bounds(settings)
    _check_encoder(settings)
    _check_growth(settings)
    _check_clean(settings)
    objective_of(settings).check()
    _check_ranks(settings, ranks)
    _check_model(settings)


def without_effect(settings: Config) -> list[str]:
    """Sentences on settings that change nothing here.

    They name what differs from the recipe; beside an encoder that stands still also what a recipe or a run's twin
    brings along.
    """
    now, before = (fields.flatten(fields.to_dict(each)) for each in (settings, _recipe_of(settings)))
    changed = {name for name, value in now.items() if value != before[name]}
    unread = {why: [name for name in names if name in changed] for why, names in _unread(settings)}
    if settings.encoder.train == "none":
        objective = settings.objective
        own = {
            "objective.variance": objective.variance > 0,
            "objective.covariance": objective.covariance > 0,
            "objective.whole_gradient": objective.whole_gradient < 1,
        }
        unread["The encoder stands still (encoder.train none)"] = [name for name, chosen in own.items() if chosen]
    return [f"{why}, so nothing is changed by {', '.join(names)}." for why, names in unread.items() if names]


def _unread(s: Config) -> list[tuple[str, Sequence[str]]]:
    """Settings that nothing looks at because of another one, each list after the words that say why."""
    jitter, independent = s.actions.level == "jitter", s.views.geometry == "independent"
    of_level = REPLACED[s.actions.level] if s.actions.set == "photometric" else ()
    members = ActionSpace.from_config(s.actions, s.data.image_size).transformations
    jittered, lone = any(t.group == "jitter" for t in members), any(not t.both for t in members)
    table = [
        (True, f"masks.sampler is {s.masks.sampler}", [f"masks.{name}" for name in UNREAD[s.masks.sampler]]),
        (True, f"actions.level is {s.actions.level}", [f"actions.{name}" for name in of_level]),
        (not jittered, f"No change of {s.actions.set} is of the group jitter", ["actions.jitter_probability"]),
        (not jittered, f"No order of {s.actions.set} is drawn", ["actions.jitter_order"]),
        (not lone, f"No change of {s.actions.set} is of the source alone", ["actions.level"]),
        (not independent, "views.geometry is shared", ["views.blur", "views.solarize"]),
        (independent, "views.geometry is independent", ["actions.blur", "actions.solarize", "actions.source_from"]),
        (independent and jitter, "Views of actions.level jitter are not destroyed", ["views.blur", "views.solarize"]),
        (s.optim.schedule == "cosine", "optim.schedule is cosine", ["optim.decay"]),
        (not s.data.start_size, "data.start_size is 0", ["data.start_share"]),
        (True, f"objective.kind is {s.objective.kind}", objective_of(s).unread),
    ]
    return [(why, names) for holds, why, names in table if holds]


def _recipe_of(settings: Config) -> Config:
    """The settings of their recipe; the defaults where it is none of ours."""
    try:
        return recipe_book.get(settings.recipe)
    except UserError:
        return Config()


def _check_model(settings: Config) -> None:
    """Sizes and what else building the model refuses: it is built without values, on the device "meta"."""
    space = ActionSpace.from_config(settings.actions, settings.data.image_size)
    own = settings.objective.kind not in OBJECTIVES.built_in
    own |= settings.predictor.conditioning not in CONDITIONINGS.built_in
    with torch.device("meta"):
        if own:  # classes of one's own may look at the values they draw
            encoder = encoder_of(settings.encoder, settings.data.image_size)
        else:
            encoder = ImageWorldModel(settings, space).encoder
        if isinstance(encoder, ForeignEncoder):
            _require_tokens(encoder, settings)
    require_maskable(encoder.grid)


def _require_tokens(encoder: ForeignEncoder, settings: Config) -> None:
    """Raises UserError where an encoder of others takes no images of this size, or has no tokens after this block."""
    size = settings.data.image_size
    try:
        encoder.tokens(torch.zeros(1, 3, size, size))
    except UserError:
        raise
    except Exception as error:  # whatever timm's model raises
        reason = first_line(error)
        raise UserError(
            f"{settings.encoder.name} gives no tokens of images of {size} px after block {encoder.layer} ({reason}); "
            "give another data.image_size (that of its name) or encoder.layer, or another model."
        ) from None


def _check_clean(settings: Config) -> None:
    """A view that is always the unchanged crop: of two views that are made of one crop in every step."""
    kind = settings.actions.clean
    if kind == "none":
        return
    if settings.views.geometry == "independent":
        raise UserError(f"actions.clean {kind} is of two views of one crop (views.geometry shared); give none.")
    if kind == "either" and settings.actions.source_from == "target":
        raise UserError("actions.source_from target changes the target once more, so no source is clean; give crop.")
    if kind == "both" and not settings.masks.whole:
        raise UserError("actions.clean both changes targets in the steps of masks.whole alone; give a share above 0.")
    if kind == "both" and settings.objective.target_norm == "change":
        raise UserError(
            "objective.target_norm change divides by how far targets change, and actions.clean both changes none in "
            "most steps; give target_norm batch or token, or another actions.clean."
        )
    if kind == "both" and settings.objective.invariance_weight:
        raise UserError(
            "objective.invariance_weight compares two photometric views, and actions.clean both makes them the same in "
            "most steps; give 0, or another actions.clean."
        )
    if keeps_tokens(settings):
        raise UserError(
            f"actions.clean {kind} does not choose among views that are encoded once; give none, or encode in every "
            "step with encoder.views 0."
        )


def _check_growth(settings: Config) -> None:
    """Images that grow in training: those of the beginning are smaller, of whole patches, and two of these at least."""
    data, patch = settings.data, settings.encoder.patch_size
    if not data.start_size:
        return
    if not 0 < data.start_share < 1:
        raise UserError(
            f"data.start_share is {data.start_share:g}: the images would never grow from data.start_size "
            f"({data.start_size}) to data.image_size ({data.image_size}); give a share between 0 and 1."
        )
    if settings.encoder.name:
        raise UserError(
            f"data.start_size shows small images to an encoder of ours; {settings.encoder.name} takes those it was "
            "made for, give 0."
        )
    if data.start_size >= data.image_size:
        raise UserError(
            f"data.start_size ({data.start_size}) is where the images grow from; give less than data.image_size "
            f"({data.image_size}), or 0."
        )
    if data.start_size % patch or data.start_size < 2 * patch:
        raise UserError(
            f"data.start_size ({data.start_size}) must be two or more patches of {patch} px (encoder.patch_size); give "
            f"a multiple of {patch}, {2 * patch} or more."
        )


def _check_ranks(settings: Config, ranks: int) -> None:
    optim = settings.optim
    if optim.batch_size % (optim.accumulate * ranks):
        share = f"optim.accumulate ({optim.accumulate})" + (f" times the {ranks} ranks" if ranks > 1 else "")
        raise UserError(f"optim.batch_size ({optim.batch_size}) must be a multiple of {share}.")


def _check_encoder(settings: Config) -> None:
    encoder = settings.encoder
    blocks = last_blocks(encoder.train)
    layer_number(encoder.layer, encoder.depth)
    if not encoder.name and settings.recipe == "on-encoder":
        raise UserError(
            "Recipe on-encoder trains a predictor on an encoder of others, and none is named; give its name, "
            "--encoder.name timm:NAME."
        )
    if not encoder.name and blocks:
        raise UserError(
            f"encoder.train {encoder.train} is of an encoder of others (encoder.name); give all, or none for the "
            "control with a frozen one."
        )
    if encoder.name and encoder.registers:
        raise UserError(f"encoder.registers are of an encoder of ours, {encoder.name} brings its own; leave them out.")
    if encoder.name and settings.init.startswith("timm:"):
        raise UserError("init timm: and encoder.name both bring an encoder; give one of them.")
    if keeps_tokens(settings) and settings.objective.target_layers != 1:
        raise UserError(
            "Tokens that are encoded once are of one block (objective.target_layers 1); give that, or encode in every "
            "step with encoder.views 0."
        )
    if keeps_tokens(settings) and settings.actions.source_from == "target":
        raise UserError(
            "Views that are encoded once are all made of the crop (actions.source_from crop); give that, or encode in "
            "every step with encoder.views 0."
        )
    if keeps_tokens(settings) and settings.masks.sources > 1:
        raise UserError(
            "Views that are encoded once come in pairs, a target to each source (masks.sources 1); give that, or "
            "encode in every step with encoder.views 0."
        )
    if stands_still(encoder) and encoder.views == 1:
        raise UserError("encoder.views 1 gives no pair of views to learn from; give 2 or more, or 0.")


def with_encoder(settings: Config) -> Config:
    """The settings with the sizes of the encoder of others that they name; of ours, as they are.

    Raises UserError when sizes of its own were given too, or there is no such encoder.
    """
    last_blocks(settings.encoder.train)
    base = _recipe_of(settings).encoder
    own = {name: getattr(base, name) for name in SIZES}
    return replace(settings, encoder=pretrained.with_encoder(settings.encoder, own))
