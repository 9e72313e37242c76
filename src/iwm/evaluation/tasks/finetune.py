"""Finetuning for classification: the predictor on a frozen encoder, or any other part of the model.

    predictor  head(p(f-bar(x), a = 0))     N context tokens, N queries, the null action; f-bar frozen (paper section 5)
    head       head(f-bar(x))               the attentive head straight on the frozen encoder, its control
    both       head(p(f(x), a = 0))         end to end, from a finished predictor finetuning
    encoder    W mean(f(x))                 the classical way, layer decay 0.65
    last-K     W mean(f(x))                 the encoder's last K blocks only

f starts as f-bar. A random predictor (`predictor="random"`, drawn anew with open gates) is the control of the
pretrained one, under the very same grid of learning rates. The frozen encoder sees every image and crop once; its
tokens are kept in memory when they fit.
"""

import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from iwm import config, run_folder
from iwm.config import Speed
from iwm.data.loader import load_all
from iwm.data.sources import LabelledSplits, labelled_splits, source_identity
from iwm.evaluation import ritual
from iwm.evaluation.tasks import features, probes
from iwm.evaluation.tasks.augment import Augment, Maker, draw, require_memory
from iwm.evaluation.tasks.classifier import AttentiveHead, Classifier, MeanHead, load_classifier, save_classifier
from iwm.evaluation.tasks.fitting import Learner, Samples, Trained, accuracy, choose, logits_of, scores
from iwm.evaluation.tasks.tuning import (
    Tuning,
    encoder_of,
    flops_of,
    grid_of,
    groups_of,
    predictor_of,
    require_start,
    untrained,
)
from iwm.model.encoder import Encoder
from iwm.model.predictor import seen_width
from iwm.model.vit import choose_attention, set_drop_path
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import devices
from iwm.runtime.bounds import Fraction
from iwm.runtime.console import console, show
from iwm.runtime.errors import UserError

SHOWN = (
    *("top1", "top5", "balanced_top1", "random_encoder_top1", "raw_pixels_top1", "chance"),
    *("trainable_parameters", "flops_per_image", "train_images_per_second", "n_train", "n_val"),
)


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(Tuning):
    """What a finetuning for classification depends on."""

    crop_area: tuple[float, float] = (0.5, 1.0)
    """Area of those crops, as a fraction of the image."""
    queries: Literal["all", "one"] = "all"
    """What the predictor is asked for: all positions, or the one in the middle."""
    action: Literal["null", "random"] = "null"
    """The action the predictor is told in training; see `Classifier`."""
    drop_path: Annotated[float, Fraction(below_one=True)] = 0.0
    """Stochastic depth of the parts that learn, for the last block."""
    augment: Augment = "crops"
    """Random crops, or those with timm's RandAugment and random erasing."""

    @property
    def reuses_tokens(self) -> bool:
        """Whether a picture gives the same tokens every time it is shown."""
        return not self.moves_encoder and self.views > 0 and not self.schedule.mixes

    @property
    def words(self) -> list[str]:
        """What is done, and what sets it apart from the plain way, for the name of the result."""
        predicts = self.uses_predictor
        return [
            word
            for word, said in (
                (self.train, True),
                (self.predictor, predicts),
                (f"depth{self.depth}", predicts and self.depth),
                ("one-query", predicts and self.queries == "one"),
                ("random-action", predicts and self.action == "random"),
                ("student", self.student),
                (self.augment, self.augment != "crops"),
                (f"seed{self.seed}", self.seed),
            )
            if said
        ]


def build(model: ImageWorldModel, settings: FinetuneSettings, classes: int, size: int) -> Classifier:
    """A fresh classifier from a world model, the same for the same seed; only what is to be trained takes gradients.

    The world model itself is left as it is. Raises UserError when more blocks are asked for than there are.
    """
    encoder = encoder_of(model, settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        attentive = settings.uses_predictor or settings.train == "head"
        width = seen_width(model.settings, predicts=settings.uses_predictor)
        head = AttentiveHead(width, classes) if attentive else MeanHead(width, classes)
        predictor = predictor_of(model, settings)
    classifier = Classifier(encoder, predictor, head, model.space, size)
    classifier.queries, classifier.action, classifier.seed = settings.queries, settings.action, settings.seed
    if settings.drop_path:
        moving = list(encoder.blocks)[-settings.blocks :] if settings.moves_encoder else []
        for blocks in (moving, predictor.blocks if predictor else []):
            set_drop_path(blocks, settings.drop_path)
    return classifier


# ---- images in memory ----------------------------------------------------------------------------------------------


def frozen_tokens(
    encoder: Encoder, views: UInt8[Tensor, "v n 3 s s"], device: torch.device, precision: str
) -> Tensor | None:
    """Tokens [v, n, t, d] of all pictures in float16; None when they would take more than a quarter of free memory."""
    side = -(-views.shape[-1] // encoder.patch_size)
    if views.shape[0] * views.shape[1] * side**2 * encoder.settings.width * 2 > devices.free_memory() / 4:
        return None
    frozen = features.WorldEncoder(encoder, "frozen encoder", views.shape[-1])
    flat = views.flatten(0, 1)
    return features.encode(frozen, flat, pooling="tokens", device=device, precision=precision).unflatten(
        0, tuple(views.shape[:2])
    )


# ---- the command ---------------------------------------------------------------------------------------------------


def finetune(
    run: str,
    data: str,
    train: str = "predictor",
    predictor: Literal["pretrained", "random"] = "pretrained",
    *,
    val: str = "",
    seed: int = 0,
    settings: FinetuneSettings | None = None,
    size: int = 0,
    start: str = "",
    baselines: bool = False,
    speed: Speed | None = None,
    out: str = "",
) -> dict[str, Any]:
    """Finetune a RUN on a labelled source, write `RUN/eval/finetune-TRAIN[-PREDICTOR]-DATA.json` with the weights in
    the folder of that name, print it, and return what was written, with the file under "path".

    `train`, `predictor` and `seed` go before those of `settings`. `train="both"` starts from the finished predictor
    finetuning in the folder `start`, or makes one first. `baselines` adds random_encoder_top1 (the same training with
    nothing pretrained, the encoder drawn anew) and raw_pixels_top1 (linear). Raises UserError for bad input.
    """
    settings = replace(settings or FinetuneSettings(), train=train, predictor=predictor, seed=seed)
    if run.startswith("timm:"):
        raise UserError(f"{run} has no predictor to finetune; give a RUN, or probe it with `iwm probe`.")
    settings.require_use_of(start)
    speed = speed or Speed()
    model = run_folder.load_model(run)
    size = size or model.settings.data.image_size
    _ = build(model, settings, 2, size)  # what cannot be built is an error before any work
    splits = labelled_splits(data, val, size=size)
    console.print(f"{splits.train.name}: {splits.sentence}.")
    if train == "both" and not start:
        alike: dict[str, Any] = {
            "val": val,
            "seed": seed,
            "settings": settings,
            "size": size,
            "speed": speed,
            "out": out,
        }
        first = finetune(run, data, "predictor", predictor, **alike)
        start = first["weights"]
    if start:
        fresh = build(model, settings, len(splits.classes), size)
        require_start(start, load_classifier(start), fresh, splits.classes)
    with devices.threads(speed):  # until the end: the result says how many
        work = Work.prepare(splits, settings, size, speed)
        found, classifier = _finetune(model, work, splits, settings, start)
        if baselines:
            found |= _baselines(model, work, splits, settings, speed)
        payload = {
            "run": run,
            "data": splits.train.name,
            "train": train,
            "predictor": predictor if settings.uses_predictor else None,
            **found,
            "chance": 1 / len(splits.classes),
            "encoder": "student encoder" if settings.student else "EMA encoder",
            "predictor_depth": classifier.predictor.settings.depth if classifier.predictor else None,
            "image_size": size,
            "precision": work.precision,
            "classes": list(splits.classes),
            "split": splits.sentence,
            "started_from": start or None,
        }
        written = {
            **vars(settings),
            "schedule": vars(settings.schedule),
            "data": source_identity(data),
            "val": source_identity(val) if val else "",
            "run": ritual.run_identity(run, out),
            "size": size,
            "start": source_identity(start) if start else "",
            "baselines": baselines,
        }
        variant = "-".join(settings.words)
        path = ritual.place(run, "finetune", splits.train.name, written, variant=variant, out=out)
        folder = path.with_suffix("")
        save_classifier(classifier, model, folder, finetuned=config.to_dict(settings))
        probes.draw_confusion(
            np.array(found["confusion"]),
            splits.classes,
            f"finetuned {variant}, {splits.train.name}: {found['top1']:.1%}",
            path.with_suffix(".png"),
        )
        content = ritual.write(path, {**payload, "weights": str(folder)}, written)
        title = f"Finetuned {variant}, {splits.train.name}"
        show(title, {name: content[name] for name in SHOWN if name in content}, path)
    return {**content, "path": str(path)}


@dataclass(frozen=True)
class Work:
    """The images of a finetuning in memory: as pictures, or as the frozen encoder's tokens."""

    train: Samples
    test: Tensor
    """uint8 pictures [m, 3, s, s], or float16 tokens [m, t, d]."""
    labels: Tensor
    """Of the test images; only `scores` sees them."""
    size: int
    device: torch.device
    precision: str
    tokens: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Training and test tokens of the frozen encoder last used, by the hash of its weights."""

    @classmethod
    def prepare(cls, splits: LabelledSplits, settings: FinetuneSettings, size: int, speed: Speed) -> "Work":
        """Decode everything. Raises UserError when it does not fit into memory."""
        device = devices.device_of(speed)
        require_memory(len(splits.train), len(splits.val), settings.views, size)
        maker = Maker(splits.train, size, settings.crop_area, settings.flip, settings.augment, settings.seed)
        pictures = draw(maker, settings.views)
        test, kept_test = load_all(splits.val, size)
        labels, truth = (
            torch.from_numpy(np.asarray(images.labels)[rows].astype(np.int64))
            for images, rows in ((splits.train, pictures.kept), (splits.val, kept_test))
        )
        samples = Samples(pictures.values, labels, pictures.fresh)
        return cls(samples, test, truth, size, device, devices.precision_of(speed, device))

    @property
    def tokens_kept(self) -> bool:
        return self.test.dtype != torch.uint8

    def encoded(self, encoder: Encoder) -> "Work":
        """The same with a frozen encoder's tokens in place of the pictures; unchanged where they do not fit.

        Asked again with the same weights, nothing is computed.
        """
        mark = features.digest(list(encoder.state_dict().items()))
        if mark not in self.tokens:
            self.tokens.clear()
            kept = frozen_tokens(encoder, self.train.values, self.device, self.precision)
            test = frozen_tokens(encoder, self.test[None], self.device, self.precision) if kept is not None else None
            if kept is None or test is None:
                return self
            self.tokens[mark] = kept, test[0]
        values, test = self.tokens[mark]
        return replace(self, train=Samples(values, self.train.labels), test=test, tokens={})

    def logits(self, classifier: Classifier, values: Tensor) -> Tensor:
        """A classifier's logits of `train` or `test` values."""
        return classifier.classify(values.float()) if self.tokens_kept else classifier(values)

    def guess(self, classifier: Classifier, values: Tensor) -> Tensor:
        """The same of any number of values, in parts, on the CPU."""
        return logits_of(partial(self.logits, classifier), values, device=self.device, precision=self.precision)

    def fit(
        self, model: ImageWorldModel, settings: FinetuneSettings, classes: int, start: str, title: str
    ) -> tuple[Trained, Classifier, Tensor, dict[str, Any]]:
        """Choose and train; returns the test images' logits and how the encoder was fed."""
        where: dict[str, Any] = {"device": self.device, "precision": self.precision}
        initial = load_classifier(start).state_dict() if start else None
        since = time.perf_counter()
        frozen = settings.reuses_tokens
        work = self.encoded(model.encoder if settings.student else model.target_encoder) if frozen else self
        seconds = time.perf_counter() - since
        made: list[Classifier] = []

        def make(choice: dict[str, Any]) -> Learner:
            classifier = build(model, settings, classes, self.size)
            if initial is not None:
                classifier.load_state_dict(initial)
            choose_attention(classifier.to(self.device), self.device, self.precision)
            made[:] = [classifier]
            return Learner(classifier, partial(work.logits, classifier), groups_of(classifier, settings, **choice))

        schedule = settings.schedule
        trained = choose(make, grid_of(settings), work.train, schedule, seed=settings.seed, title=title, **where)
        fed = {"tokens_kept": work.tokens_kept, "encode_seconds": round(seconds, 2)}
        return trained, made[0], work.guess(made[0], work.test), fed


def trainable_of(classifier: Classifier) -> int:
    """Number of parameters that learn."""
    return sum(parameter.numel() for parameter in classifier.parameters() if parameter.requires_grad)


def _finetune(
    model: ImageWorldModel, work: Work, splits: LabelledSplits, settings: FinetuneSettings, start: str
) -> tuple[dict[str, Any], Classifier]:
    trained, classifier, logits, fed = work.fit(
        model, settings, len(splits.classes), start, f"finetune {settings.train}"
    )
    classifier.names = splits.classes
    found = {
        **scores(logits, work.labels),
        "trainable_parameters": trainable_of(classifier),
        "parameters": sum(p.numel() for p in classifier.parameters()),
        "flops_per_image": flops_of(classifier),
        "flops_are": "one image forward, encoder included, 2 per multiply-add, by torch.utils.flop_counter",
        "train_images_per_second": trained.images_per_second,
        **fed,
        "chosen": trained.choice,
        "tried": trained.tried,
        "n_train": len(work.train.labels),
        "n_val": len(work.labels),
    }
    return found, classifier


def _baselines(
    model: ImageWorldModel, work: Work, splits: LabelledSplits, settings: FinetuneSettings, speed: Speed
) -> dict[str, Any]:
    """The same training with an encoder (and predictor) drawn anew, and a linear classifier on raw pixels."""
    bare = replace(settings, predictor="random")
    trained, _, logits, _ = work.fit(
        untrained(model, settings.seed + 1), bare, len(splits.classes), "", "random encoder"
    )
    linear = probes.ProbeSettings(kind="linear", seed=settings.seed)
    return {
        "random_encoder_top1": accuracy(logits, work.labels),
        "random_encoder_chosen": trained.choice,
        **probes.raw_pixels(splits, work.size, linear, speed),
    }
