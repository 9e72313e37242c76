"""A classifier made from a world model: encoder, perhaps predictor, and one of two heads; its weights on disk.

Classifiers of several tasks may share encoder and predictor, each with a task token and a head of its own.

    attentive:  q' = q + Attention(q, LN(z));  y = W (q' + MLP(LN(q')))      one learned query q (V-JEPA's probe)
    mean:       y = W mean_i z_i
    z = f(x), or p(f(x), a) where there is a predictor: at all positions or the middle one, a the null action (or, in
        training, a random one)

`iwm finetune` writes one, `iwm multitask` several that share; `load_classifier` reads both.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from torch import Tensor, nn

from iwm import config
from iwm.actions.action_space import ActionSpace
from iwm.config import Speed
from iwm.evaluation.tasks.fitting import logits_of
from iwm.model import weights
from iwm.model.encoder import PatchEncoder
from iwm.model.foreign_encoder import encoder_of
from iwm.model.predictor import Predictor
from iwm.model.vit import head_count, initialise
from iwm.model.world_model import ImageWorldModel, for_tasks, seen_width
from iwm.run_folder import RunFolder, is_remote
from iwm.runtime import errors, fields, sharing
from iwm.runtime.devices import Session
from iwm.runtime.errors import UserError


class AttentiveHead(nn.Module):
    """One learned query attends to the tokens, then a linear classifier (Bardes et al. 2024; paper appendix).

    Has 11 d^2 + 13 d + d c + c parameters for c classes at `mlp_ratio` 4, and head width 32 where d allows.
    """

    def __init__(self, width: int, classes: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.heads = head_count(width)
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.norm1 = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.linear = nn.Linear(width, classes)
        initialise(self, "xavier")
        nn.init.trunc_normal_(self.query, std=0.02)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)

    def pool(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """The query after the block: one vector an image."""
        batch, count, width = tokens.shape
        split = (self.heads, width // self.heads)
        query = self.q(self.query).expand(batch, -1, -1).unflatten(-1, split).transpose(1, 2)
        key, value = self.kv(self.norm1(tokens)).view(batch, count, 2, *split).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query.to(key.dtype), key, value)
        pooled = self.query + attended.transpose(1, 2).flatten(2)
        return (pooled + self.mlp(self.norm2(pooled)))[:, 0]

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b c"]:
        return self.linear(self.pool(tokens))


class MeanHead(nn.Module):
    """A linear classifier on the mean token."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b c"]:
        return self.linear(tokens.mean(dim=1))


class Headed(nn.Module):
    """Encoder, perhaps predictor, and a head: what finetuning trains for a task.

    With `action` "random" every training image draws an action of its own, as the bank of the mean reciprocal rank
    does; once trained it is the null action, so that what is said of an image depends on nothing else.
    """

    def __init__(
        self, encoder: PatchEncoder, predictor: Predictor | None, head: nn.Module, space: ActionSpace, size: int
    ) -> None:
        super().__init__()
        self.encoder, self.predictor, self.head = encoder, predictor, head
        self.space, self.size = space, size
        self.queries: Literal["all", "one"] = "all"
        self.action: Literal["null", "random"] = "null"
        self.seed = self.batches = 0
        """Of the random actions; batches they were drawn for."""
        self.token: nn.Parameter | None = None
        """[1, w]: tells a predictor that several tasks share which one is meant."""
        self.names: tuple[str, ...] = ()
        """Class names, in the order of the logits."""

    @property
    def layer(self) -> int:
        """The encoder's block that is read: the world model's where its predictor follows, the last one otherwise."""
        return self.encoder.layer if self.predictor is not None else self.encoder.depth


class Classifier(Headed):
    """Images to class logits."""

    def __init__(
        self, encoder: PatchEncoder, predictor: Predictor | None, head: nn.Module, space: ActionSpace, size: int
    ) -> None:
        super().__init__(encoder, predictor, head, space, size)
        side = -(-size // encoder.patch_size)
        self.grid = (side, side)

    def forward(self, images: UInt8[Tensor, "b 3 s s"] | Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c"]:
        """Logits of images, uint8 or in [0, 1]."""
        return self.classify(self.encoder.intermediates(images, [self.layer])[0])

    def classify(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b c"]:
        """The part after the encoder."""
        if self.predictor is not None:
            count = tokens.shape[0]  # len() would fix the batch of an exported graph
            middle = self.grid[0] // 2 * self.grid[1] + self.grid[1] // 2
            queries = tokens.new_full((count, 1), middle, dtype=torch.long) if self.queries == "one" else None
            task = None if self.token is None else self.token.expand(count, 1, -1)
            tokens = self.predictor(tokens, self._actions(tokens), queries=queries, grid=self.grid, task=task)
        return self.head(tokens.float())

    def _actions(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b k"]:
        if self.action == "null" or not self.training:
            return tokens.new_zeros(tokens.shape[0], self.space.dim)
        self.batches += 1

        def draw(count: int) -> Float[Tensor, "b k"]:
            parameters = self.space.sample_bank(self.seed, self.batches, count)
            return self.space.difference(self.space.neutral(count), parameters)

        return sharing.drawn_for_batch(draw, len(tokens)).to(tokens)


# ---- weights -------------------------------------------------------------------------------------------------------


def save_classifier(classifier: Classifier, model: ImageWorldModel, folder: Path, **extra: Any) -> None:
    """Write `model.safetensors` and `config.json` (settings, action space, class names, head) into `folder`: all that
    `load_classifier` needs, the encoder included."""
    meta = {**_meta(classifier, model), **extra}
    meta["classifier"]["classes"] = list(classifier.names)
    weights.write_weights(folder, classifier.state_dict(), meta)


def save_tasks(
    classifiers: Sequence[Classifier], tasks: Sequence[str], model: ImageWorldModel, folder: Path, **extra: Any
) -> None:
    """Write classifiers that share encoder and predictor, once, with every task's name, classes, token and head."""
    meta = {**_meta(classifiers[0], model), **extra}
    meta["classifier"]["tasks"] = [
        {"name": name, "classes": list(classifier.names)} for name, classifier in zip(tasks, classifiers, strict=True)
    ]
    tensors: dict[str, Tensor] = {}
    for number, classifier in enumerate(classifiers):
        for name, value in classifier.state_dict().items():
            tensors[name if name.startswith(SHARED) else f"tasks.{number}.{name}"] = value
    weights.write_weights(folder, tensors, meta)


SHARED = ("encoder.", "predictor.")
"""Weights that the classifiers of several tasks have in common."""


def _meta(classifier: Classifier, model: ImageWorldModel) -> dict[str, Any]:
    what = {
        "head": "attentive" if isinstance(classifier.head, AttentiveHead) else "mean",
        "predictor": classifier.predictor is not None,
        "predictor_depth": classifier.predictor.settings.depth if classifier.predictor else 0,
        "queries": classifier.queries,
        "image_size": classifier.size,
    }
    return {"settings": fields.to_dict(model.settings), "actions": model.space.spec(), "classifier": what}


def task_names(folder: str | Path) -> tuple[str, ...]:
    """The tasks of the weights `iwm multitask` wrote into a folder; none for those of `iwm finetune`.

    Raises UserError when the folder holds neither.
    """
    return _task_names(_read_meta(Path(folder).expanduser()))


def _task_names(meta: dict[str, Any]) -> tuple[str, ...]:
    return tuple(task["name"] for task in meta["classifier"].get("tasks", ()))


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta = weights.read_meta(folder)
        return {**meta, "classifier": dict(meta["classifier"])}
    except FileNotFoundError:
        raise UserError(
            f"There is no finetuned classifier in {folder}; `iwm finetune` and `iwm multitask` make one."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"The classifier in {folder} cannot be read ({error}); finetune again.") from None


def load_classifier(folder: str | Path, device: str | torch.device = "cpu", *, task: str = "") -> Classifier:
    """A finetuned classifier in eval mode; uint8 images [b, 3, size, size] in, logits in the order of `names` out.

    `task` names the one that is meant of weights that hold several. Raises UserError when the folder holds no
    classifier, no such task, or several and none is named.
    """
    folder = Path(folder).expanduser()
    meta = _read_meta(folder)
    number = _number_of(task, _task_names(meta), folder)
    try:
        what, settings = meta["classifier"], fields.from_dict(config.Config, meta["settings"])
        space = ActionSpace.from_spec(meta["actions"])
        encoder = encoder_of(settings.encoder, settings.data.image_size)
        classes = what["classes"] if number is None else what["tasks"][number]["classes"]
        width, count = seen_width(settings, predicts=what["predictor"]), len(classes)
        predictor = None
        if what["predictor"]:
            predictor = for_tasks(settings, space.dim, encoder.grid, what.get("predictor_depth", 0))
        head = AttentiveHead(width, count) if what["head"] == "attentive" else MeanHead(width, count)
        classifier = Classifier(encoder, predictor, head, space, what["image_size"])
        classifier.queries = what.get("queries", "all")
        tensors = weights.read_tensors(folder, meta)
        if number is not None:
            classifier.token = nn.Parameter(torch.empty(1, settings.predictor.width))
            own = f"tasks.{number}."
            tensors = {
                name.removeprefix(own): value for name, value in tensors.items() if name.startswith((own, *SHARED))
            }
        classifier.load_state_dict(tensors)
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"The classifier in {folder} cannot be read ({reason}); finetune again.") from None
    classifier.names = tuple(classes)
    return classifier.eval().requires_grad_(False).to(device)


def _number_of(task: str, tasks: Sequence[str], folder: Path) -> int | None:
    """Place of the task that is meant; None for the weights of a single one."""
    if not tasks:
        if task:
            raise UserError(f"{folder} holds a classifier of one task; leave out the task '{task}'.")
        return None
    if not task:
        raise UserError(f"{folder} holds several tasks; name one of them: {', '.join(tasks)}.")
    if task not in tasks:
        raise UserError(f"{folder} holds no task '{task}'; {errors.did_you_mean(task, tasks)}")
    return tasks.index(task)


def find_classifier(run: str) -> Path:
    """The folder of a finetuned classifier: RUN itself, or the only one among the results of a run.

    Raises UserError when there is none, and one listing them when there are several.
    """
    folder = Path(run).expanduser()
    if not is_remote(run) and _holds_classifier(folder):
        return folder
    folders = [path for path in RunFolder.of(run).weights_of_results() if _holds_classifier(path)]
    if not folders:
        raise UserError(f"There is no finetuned classifier in {run}; `iwm finetune` and `iwm multitask` make one.")
    if len(folders) > 1:
        raise UserError(f"{run} has {len(folders)} finetuned classifiers; name one: {', '.join(map(str, folders))}.")
    return folders[0]


def _holds_classifier(folder: Path) -> bool:
    try:
        meta = json.loads((folder / weights.CONFIG).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(meta, dict) and "classifier" in meta


def predict(
    classifier: Classifier, images: UInt8[Tensor, "n 3 s s"], session: Session | None = None
) -> Float[Tensor, "n c"]:
    """Class probabilities of decoded images."""
    session = session or Session.of(Speed())
    return logits_of(classifier.to(session.device), images, session).softmax(dim=1)
