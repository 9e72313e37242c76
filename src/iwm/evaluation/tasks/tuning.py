"""What finetuning has in common, whatever the task: which parts learn, where they start, how fast.

f and p start as f-bar and the pretrained predictor, or drawn anew; a head at `lr`, what was there before at `ratio` of
it, an encoder block at `layer_decay` of the rate of the block above (0.65; with nothing pretrained 1)
"""

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from timm.optim import param_groups_layer_decay  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from iwm import verbs
from iwm.evaluation.tasks import features
from iwm.evaluation.tasks.classifier import Headed
from iwm.evaluation.tasks.fitting import Learner, Trained, TrainingSet, choose, decay_groups, fit, search_rows
from iwm.model.encoder import Encoder, PatchEncoder
from iwm.model.predictor import Predictor
from iwm.model.vit import choose_attention
from iwm.model.weights import read_meta
from iwm.model.world_model import ImageWorldModel, for_tasks
from iwm.runtime import fields
from iwm.runtime.devices import Session
from iwm.runtime.errors import UserError
from iwm.verbs.finetune import Finetune
from iwm.verbs.segment import Segment, SegmentSettings
from iwm.verbs.shared import Classification, Continuation, Tuning

Model = TypeVar("Model", bound=Headed)
Verb = TypeVar("Verb", Finetune, Segment)

# ---- what is trained -----------------------------------------------------------------------------------------------


def parts_of(
    model: ImageWorldModel, settings: Tuning, head: Callable[[], nn.Module]
) -> tuple[PatchEncoder, Predictor | None, nn.Module]:
    """Encoder, predictor and a head, the same for the same seed; only what is to be trained takes gradients.

    The world model itself is left as it is. Raises UserError when more blocks are asked for than there are.
    """
    encoder = encoder_of(model, settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        fresh = head()
        return encoder, predictor_of(model, settings), fresh


def encoder_of(model: ImageWorldModel, settings: Tuning) -> PatchEncoder:
    """A copy of the encoder of which only what is to be trained takes gradients.

    Raises UserError when last-K asks for more blocks than there are.
    """
    encoder = copy.deepcopy(model.used_encoder(settings.student))
    depth = encoder.depth
    if settings.last_blocks > depth:
        raise UserError(
            f"--train {settings.train} asks for more than the encoder's {depth} blocks; give at most last-{depth}."
        )
    encoder.requires_grad_(settings.moves_encoder)
    if isinstance(encoder, Encoder):
        cast(Tensor, encoder.pos_embed).requires_grad_(False)
    if settings.uses_predictor:
        for block in encoder.stack[encoder.layer :] if encoder.layer < depth else ():
            block.requires_grad_(False)  # the predictor reads what lies below
    if settings.last_blocks:
        for part in [*encoder.beneath, *encoder.stack[: depth - settings.last_blocks]]:
            part.requires_grad_(False)
    return encoder


def predictor_of(model: ImageWorldModel, settings: Tuning) -> Predictor | None:
    """The first `settings.depth` blocks of the pretrained predictor between its own ends, or a random one as deep with
    open gates; None where it is not used.

    Raises UserError when more blocks are asked for than there are, or the model has no predictor.
    """
    if not settings.uses_predictor:
        return None
    model.require_predictor()
    own = model.settings.predictor
    depth = settings.depth or own.depth
    if depth > own.depth:
        raise UserError(f"--depth {depth} asks for more than the predictor's {own.depth} blocks; give at most those.")
    predictor = for_tasks(model.settings, model.space.dim, model.grid, depth)
    if settings.predictor == "random":
        predictor.open_gates()
        return predictor
    there = predictor.state_dict()
    predictor.load_state_dict({name: value for name, value in model.predictor.state_dict().items() if name in there})
    return predictor


def groups_of(classifier: Headed, settings: Tuning, lr: float, ratio: float) -> list[dict[str, Any]]:
    """Parameter groups: head at `lr`, predictor and the encoder's last block at `ratio` of it, every block below at
    `layer_decay` times the one above."""
    decay = settings.schedule.weight_decay
    groups = decay_groups(classifier.head, lr, decay)
    if classifier.predictor is not None:
        groups += decay_groups(classifier.predictor, lr * ratio, decay)
    if settings.moves_encoder:
        layers = param_groups_layer_decay(classifier.encoder.timm_model, decay, layer_decay=settings.layer_decay)
        for layer in layers:
            groups.append(
                {
                    "params": layer["params"],
                    "weight_decay": layer["weight_decay"],
                    "lr": lr * ratio * layer["lr_scale"],
                }
            )
    return groups


def grid_of(settings: Tuning) -> list[dict[str, float]]:
    """Every head learning rate with every ratio; the head alone has no ratio to choose."""
    if settings.train == "head":
        return [{"lr": lr, "ratio": 1.0} for lr in settings.lrs]
    return [{"lr": lr, "ratio": ratio} for lr, ratio in itertools.product(settings.lrs, settings.ratios)]


def nothing_pretrained(model: ImageWorldModel, settings: Verb) -> tuple[ImageWorldModel, Verb]:
    """The control of any finetuning: a world model of the same shape with encoders drawn anew, and settings that draw
    the predictor anew too and hold back no block, for none has anything to keep; the grid is the same."""
    frozen = features.WorldEncoder(model.target_encoder, "", model.settings.data.image_size)
    drawn = cast(features.WorldEncoder, frozen.drawn_anew(settings.seed + 1)).body.state_dict()
    twin = ImageWorldModel(model.settings, model.space)
    twin.encoder.load_state_dict(drawn)
    twin.target_encoder.load_state_dict(drawn)
    return twin.eval(), replace(settings, predictor="random", layer_decay=1.0)


# ---- training ------------------------------------------------------------------------------------------------------


def train(
    build: Callable[[Any], Model],
    settings: Tuning,
    samples: TrainingSet,
    logits: Callable[[Model, Tensor], Tensor],
    session: Session,
    title: str,
    start: Model | None = None,
) -> tuple[Model, Trained]:
    """Choose learning rates and train what `build` builds on the samples, from the weights of `start` where it is
    given; `logits` are a model's answers to a batch of the samples, `build` gives the same model for the same settings.

    What is trained end to end without a start, a control, has its predictor trained first, as others have. Such
    weights have seen all samples: a trial begins from a predictor of its own instead, trained for as long as the
    trial and without the tenth that judges it.
    """
    how: dict[str, Any] = {"seed": settings.seed, "session": session, "title": title}
    both = settings.train == "both"
    alone = replace(cast(Continuation, settings), train="predictor", start="") if both else settings
    if both and start is None:
        start, _ = train(build, alone, samples, logits, session, f"{title}, its predictor")
    initial = None if start is None else start.state_dict()

    def learner(parts: Tuning, choice: dict[str, Any], weights: dict[str, Tensor] | None) -> Learner:
        fresh = build(parts)
        if weights is not None:
            fresh.load_state_dict(weights)
        choose_attention(fresh.to(session.device), session.device, session.precision)
        return Learner(fresh, partial(logits, fresh), groups_of(fresh, parts, **choice))

    def begin(choice: dict[str, Any]) -> Learner:
        beginning = learner(alone, choice, None)
        rest, _ = search_rows(samples, settings.schedule, settings.seed)
        fit(beginning, samples, rest, settings.schedule, settings.schedule.search, **how)
        return learner(settings, choice, beginning.model.state_dict())

    make = partial(learner, settings, weights=initial)
    trained = choose(make, grid_of(settings), samples, settings.schedule, begin=begin if both else None, **how)
    return cast(Any, trained.learner.model), trained


def start_of(
    o: Verb, work: Callable[[Verb], dict[str, Any]], load: Callable[[str], Headed], build: Callable[[], Headed]
) -> str:
    """The folder of weights that training goes on from; "" for none.

    What is trained end to end starts from a finished predictor training, which `work` does first where none is given.
    Raises UserError unless the weights there are what `build` builds after training predictor and head: of this run's
    encoder, for the same classes, from a predictor that began as this one's; and, where a control is trained too, by
    the settings by which the control's predictor is.
    """
    start = o.start
    if o.train == "both" and not start:
        start = work(replace(o, train="predictor", baselines=False))["weights"]
    if start:
        require_usable(start, o, load, build)
    return start


def require_usable(start: str, o: Verb, load: Callable[[str], Headed], build: Callable[[], Headed]) -> None:
    """Raises UserError unless training by `o` can go on from the weights in the folder `start`, see `start_of`."""
    require_start(start, load(start), build())
    require_settings(start, o)


def require_start(folder: str, start: Headed, fresh: Headed) -> None:
    """Raises UserError unless `start`, read from `folder`, is what `fresh` becomes by training predictor and head: the
    encoder is still this run's, the classes are the same."""
    there, wanted = start.state_dict(), fresh.state_dict()
    fits = start.names == fresh.names
    fits = fits and {n: v.shape for n, v in there.items()} == {n: v.shape for n, v in wanted.items()}
    if not fits or not all(there[n].equal(v) for n, v in wanted.items() if n.startswith("encoder.")):
        raise UserError(f"{folder} does not hold a predictor trained on this run for these classes; give one that was.")
    if start.size != fresh.size:
        mend = f"give --size {start.size}, or another --start"
        raise UserError(f"{folder} was trained at {start.size} px, not at {fresh.size}; {mend}.")


def require_settings(folder: str, o: Verb) -> None:
    """Raises UserError where the weights in `folder` come from another predictor than `o` names, or, with a control,
    from a longer or otherwise different training than the control's."""
    other = settings_of_start(folder, o).get("start_settings", {})
    if "predictor" in other:
        words = f"{folder} comes from a {other['predictor']} predictor, not from a {o.predictor} one"
        raise UserError(f"{words}; give one that does, or leave out --start.")
    if other and o.baselines:
        how = ", ".join(f"{name} {value}" for name, value in other.items())
        raise UserError(
            f"{folder} was trained with {how}, but the predictor of its control would be trained as given here; give "
            "the same settings, or --no-baselines."
        )


OWN_OF_BOTH = ("train", "start", "seed", "layer_decay")
"""Settings in which end-to-end training may differ from the predictor training that it begins from."""
IN_SHAPES = ("depth", "channels")
"""Settings that are compared by the shapes of the weights."""


def settings_of_start(folder: str, o: Verb) -> dict[str, dict[str, Any]]:
    """Under "start_settings" those of the training in `folder` that differ from the settings by which `o` would train a
    predictor first; {} where none do, without a folder, and for older weights, which do not name theirs."""
    there = read_meta(Path(folder).expanduser()).get("finetuned") if folder else None
    if not isinstance(there, dict):
        return {}
    kind = Classification if isinstance(o, Finetune) else SegmentSettings
    old, new = (fields.flatten(settings) for settings in (there, fields.to_dict(kind(**verbs.part(o, kind)))))
    compared = [name for name in new if name in old and name not in (*OWN_OF_BOTH, *IN_SHAPES)]
    other = {name.removeprefix("schedule."): old[name] for name in compared if old[name] != new[name]}
    return {"start_settings": other} if other else {}


def facts_of_control(settings: Tuning, trained: Trained) -> dict[str, Any]:
    """How the control of `nothing_pretrained` was trained; its layer decay where it moves the encoder."""
    decay = {"random_encoder_layer_decay": settings.layer_decay} if settings.moves_encoder else {}
    return {"random_encoder_chosen": trained.choice, "random_encoder_at_grid_end": trained.at_grid_end, **decay}


# ---- what a result says --------------------------------------------------------------------------------------------


def facts_of(o: Tuning, start: str) -> dict[str, Any]:
    """What was trained, from where."""
    return {
        "train": o.train,
        "predictor": o.predictor if o.uses_predictor else None,
        "encoder": features.name_of(o.student),
        "started_from": start or None,
        "augmentation": o.augmentation,
    }


def training_of(model: Headed, trained: Trained) -> dict[str, Any]:
    """How large a model is that was trained, how fast that went, and what was chosen."""
    return {
        "trainable_parameters": trainable_of(model),
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops_per_image": flops_of(model),
        "train_images_per_second": trained.images_per_second,
        "chosen": trained.choice,
        "tried": trained.tried,
        "at_grid_end": trained.at_grid_end,
    }


def trainable_of(module: nn.Module) -> int:
    """Number of parameters that learn."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def flops_of(classifier: Headed) -> int:
    """Floating-point operations of one image's forward pass: torch's counter over matrix products, convolutions and
    attention, two for a multiply-add."""
    image = torch.zeros(
        1, 3, classifier.size, classifier.size, dtype=torch.uint8, device=next(classifier.parameters()).device
    )
    # The plain kernel is made of countable products on every device.
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        classifier(image)
    return counter.get_total_flops()
