"""What finetuning has in common, whatever the task: which parts learn, where they start, how fast.

f and p start as f-bar and the pretrained predictor, or drawn anew; a head at `lr`, what was there before at `ratio` of
it, an encoder block at `layer_decay` of the rate of the block above (0.65)
"""

import copy
import itertools
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from timm.optim import param_groups_layer_decay  # pyright: ignore[reportPrivateImportUsage]
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from iwm import config
from iwm.evaluation.tasks import features
from iwm.evaluation.tasks.classifier import Headed
from iwm.evaluation.tasks.fitting import Schedule, decay_groups
from iwm.model.encoder import Encoder
from iwm.model.predictor import Predictor, for_tasks
from iwm.model.world_model import ImageWorldModel
from iwm.runtime.bounds import AtLeast, Positives, check
from iwm.runtime.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What finetuning for any task depends on, beside the run and the data."""

    train: str = "predictor"
    """predictor, head, encoder, both, or last-K."""
    predictor: Literal["pretrained", "random"] = "pretrained"
    """Where the predictor starts (train predictor, both)."""
    student: bool = False
    """Finetune on the student encoder instead of the EMA encoder."""
    seed: Annotated[int, AtLeast(0)] = 0
    lrs: Annotated[tuple[float, ...], Positives()] = (3e-4, 1e-3, 3e-3)
    """Learning rates of the head."""
    ratios: Annotated[tuple[float, ...], Positives()] = (0.1, 1.0)
    """Learning rate of what was there before (predictor, encoder) as a multiple of the head's; tried with every lr."""
    layer_decay: float = 0.65
    """Learning rate of an encoder block over that of the next one (encoder, both, last-K)."""
    depth: Annotated[int, AtLeast(0)] = 0
    """Blocks of the predictor that are kept, from the first; 0: all."""
    views: Annotated[int, AtLeast(0)] = 4
    """Pictures an image is trained on: itself and views - 1 random ones, drawn once. 1: no augmentation; 0: a new one
    every epoch, which a frozen encoder then sees anew every time."""
    flip: float = 0.5
    """Probability that such a crop is mirrored."""
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        check(self, "--")

    @property
    def blocks(self) -> int:
        """K of last-K; 0 for every other way. Raises UserError when `train` is none of them."""
        found = re.fullmatch(r"last-([1-9]\d*)", self.train)
        if not found and self.train not in ("predictor", "head", "encoder", "both"):
            known = ("predictor", "head", "encoder", "both", "last-1")
            raise UserError(f"There is no way to train '{self.train}'; {config.did_you_mean(self.train, known)}")
        return int(found.group(1)) if found else 0

    def require_use_of(self, start: str) -> None:
        """Raises UserError when a starting point is given and not used."""
        if start and self.train != "both":
            raise UserError(f"--start {start} is where --train both starts; leave it out with --train {self.train}.")

    @property
    def uses_predictor(self) -> bool:
        return self.train in ("predictor", "both")

    @property
    def moves_encoder(self) -> bool:
        return self.train not in ("predictor", "head")


def encoder_of(model: ImageWorldModel, settings: Tuning) -> Encoder:
    """A copy of the encoder of which only what is to be trained takes gradients.

    Raises UserError when last-K asks for more blocks than there are.
    """
    encoder = copy.deepcopy(model.encoder if settings.student else model.target_encoder)
    depth = len(encoder.blocks)
    if settings.blocks > depth:
        raise UserError(
            f"--train {settings.train} asks for more than the encoder's {depth} blocks; give at most last-{depth}."
        )
    encoder.requires_grad_(settings.moves_encoder)
    assert encoder.pos_embed is not None
    encoder.pos_embed.requires_grad_(False)
    if settings.blocks:
        encoder.patch_embed.requires_grad_(False)
        for block in list(encoder.blocks)[: depth - settings.blocks]:
            block.requires_grad_(False)
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


def require_start(folder: str, start: Headed, fresh: Headed, classes: tuple[str, ...]) -> None:
    """Raises UserError unless `start`, read from `folder`, is what `fresh` becomes by training predictor and head for
    these classes: the encoder is still this run's."""
    there, wanted = start.state_dict(), fresh.state_dict()
    fits = start.names == classes and {n: v.shape for n, v in there.items()} == {n: v.shape for n, v in wanted.items()}
    if not fits or not all(there[n].equal(v) for n, v in wanted.items() if n.startswith("encoder.")):
        raise UserError(f"{folder} does not hold a predictor trained on this run for these classes; give one that was.")


def groups_of(classifier: Headed, settings: Tuning, lr: float, ratio: float) -> list[dict[str, Any]]:
    """Parameter groups: head at `lr`, predictor and the encoder's last block at `ratio` of it, every block below at
    `layer_decay` times the one above."""
    decay = settings.schedule.weight_decay
    groups = decay_groups(classifier.head, lr, decay)
    if classifier.predictor is not None:
        groups += decay_groups(classifier.predictor, lr * ratio, decay)
    if settings.moves_encoder:
        layers = param_groups_layer_decay(classifier.encoder, decay, layer_decay=settings.layer_decay)
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


def untrained(model: ImageWorldModel, seed: int) -> ImageWorldModel:
    """A world model of the same shape, its encoders drawn anew by the seed."""
    frozen = features.WorldEncoder(model.target_encoder, "", model.settings.data.image_size).drawn_anew(seed)
    twin = ImageWorldModel(model.settings, model.space)
    twin.encoder.load_state_dict(frozen.body.state_dict())
    twin.target_encoder.load_state_dict(frozen.body.state_dict())
    return twin.eval()
