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
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16, Int64, UInt8
from torch import Tensor

from iwm.data.shares import load_all
from iwm.data.sources import LabelledSplits
from iwm.evaluation import ritual
from iwm.evaluation.ritual import Outcome
from iwm.evaluation.tasks import feature_cache, features, probes, tuning
from iwm.evaluation.tasks.augment import Maker, draw, require_memory
from iwm.evaluation.tasks.classifier import AttentiveHead, Classifier, MeanHead, load_classifier, save_classifier
from iwm.evaluation.tasks.fitting import Samples, Trained, accuracy, logits_of, scores
from iwm.evaluation.tasks.probes import open_labelled
from iwm.evaluation.tasks.tuning import nothing_pretrained, parts_of, start_of, training_of
from iwm.evaluation.uncertainty import accuracy_errors
from iwm.model.encoder import PatchEncoder
from iwm.model.vit import set_drop_path
from iwm.model.world_model import ImageWorldModel, seen_width
from iwm.runtime import devices, sharing
from iwm.runtime.devices import Session
from iwm.verbs.finetune import Finetune
from iwm.verbs.probe import ProbeSettings
from iwm.verbs.shared import Classification

SHOWN = (
    *("top1", "top1_standard_error", "top5", "balanced_top1", "random_encoder_top1", "raw_pixels_top1", "chance"),
    *("trainable_parameters", "flops_per_image", "train_images_per_second", "n_train", "n_val", "augmentation"),
)


# ---- the verb ------------------------------------------------------------------------------------------------------


def finetune(o: Finetune) -> dict[str, Any]:
    """Finetune a RUN on a labelled source; writes RUN/eval/finetune-TRAIN[-PREDICTOR]-DATA.json with the weights in the
    folder of that name, returns the result. Raises UserError for bad input."""
    with ritual.evaluation("finetune", o) as work:
        model = work.world_model()
        size = o.size or model.settings.data.image_size
        _ = build(model, o, ("", ""), size)  # what cannot be built is an error before any work
        splits = open_labelled(o, size)
        start = start_of(o, finetune, load_classifier, lambda: build(model, o, splits.classes, size))
        task = ClassificationWork.prepare(splits, o, size, work.session)
        ours = task.fit(model, o, start, f"finetune {o.train}")
        numbers, settings = _numbers(task, ours), ritual.settings_of(o, Classification)
        variant, data = "-".join(o.words), splits.train.name
        caption = f"finetuned {variant}, {data}: {numbers['top1']:.1%}"
        outcome = Outcome(
            data=data,
            payload={
                **probes.facts_of_source(splits),
                **tuning.facts_of(o, start),
                **numbers,
                "predictor_depth": ours.model.predictor.settings.depth if ours.model.predictor else None,
                "image_size": size,
                "classes": list(splits.classes),
            },
            settings={
                **settings,
                **ritual.identities(data=o.data, val=o.val, start=start),
                **tuning.settings_of_start(start, o),
                "size": size,
                "baselines": o.baselines,
            },
            variant=o.words,
            figures={"": lambda: probes.confusion_matrix(numbers, splits.classes, caption)},
            weights=lambda folder: save_classifier(ours.model, model, folder, finetuned=settings),
        )
        if o.baselines:
            outcome = work.with_controls(outcome, lambda: _baselines(task, model, splits, o))
        return work.conclude(outcome, probes.printing(f"Finetuned {variant}, {data}", SHOWN))


def _numbers(task: "ClassificationWork", ours: "Finetuning") -> dict[str, Any]:
    accuracies = scores(ours.logits, task.labels)
    return {
        **accuracies,
        **accuracy_errors(accuracies, len(task.labels)),
        **training_of(ours.model, ours.trained),
        "flops_are": "one image forward, encoder included, 2 per multiply-add, by torch.utils.flop_counter",
        **ours.feeding,
        "n_train": len(task.samples.labels),
        "n_val": len(task.labels),
    }


def _baselines(
    task: "ClassificationWork", model: ImageWorldModel, splits: LabelledSplits, o: Finetune
) -> dict[str, Any]:
    """The same training with nothing pretrained, and a linear classifier on raw pixels."""
    twin, settings = nothing_pretrained(model, o)
    control = task.fit(twin, settings, title="random encoder")
    numbers = {
        "random_encoder_top1": accuracy(control.logits, task.labels),
        **tuning.facts_of_control(settings, control.trained),
        **probes.raw_pixels(splits, task.size, ProbeSettings(kind="linear", seed=o.seed), task.session),
    }
    return numbers | accuracy_errors(numbers, len(task.labels))


# ---- training ------------------------------------------------------------------------------------------------------


def build(model: ImageWorldModel, settings: Classification, classes: tuple[str, ...], size: int) -> Classifier:
    """A fresh classifier from a world model, the same for the same seed; only what is to be trained takes gradients.

    The world model itself is left as it is. Raises UserError when more blocks are asked for than there are.
    """
    attentive = settings.uses_predictor or settings.train == "head"
    width = seen_width(model.settings, predicts=settings.uses_predictor)
    kind = AttentiveHead if attentive else MeanHead
    encoder, predictor, head = parts_of(model, settings, lambda: kind(width, len(classes)))
    classifier = Classifier(encoder, predictor, head, model.space, size)
    classifier.names = classes
    classifier.queries, classifier.action, classifier.seed = settings.queries, settings.action, settings.seed
    if settings.drop_path:
        moving = encoder.stack[-settings.last_blocks :] if settings.moves_encoder else []
        for blocks in (moving, predictor.blocks if predictor else []):
            set_drop_path(blocks, settings.drop_path)
    return classifier


@dataclass(frozen=True)
class Finetuning:
    """A trained classifier, and what it says of the test images."""

    model: Classifier
    trained: Trained
    logits: Float[Tensor, "m c"]
    feeding: dict[str, Any]
    """Whether it learned from tokens in memory, and how long their encoding took."""


@dataclass(frozen=True)
class ClassificationWork:
    """The images of a finetuning in memory: as pictures, or as the frozen encoder's tokens."""

    classes: tuple[str, ...]
    size: int
    """Side of the pictures, px."""
    session: Session
    samples: Samples
    test: UInt8[Tensor, "m 3 s s"] | Float16[Tensor, "m t d"]
    labels: Int64[Tensor, " m"]
    """Of the test images; only `scores` sees them."""
    tokens: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Training and test tokens of the frozen encoder last used, by the hash of its weights."""

    @classmethod
    def prepare(
        cls, splits: LabelledSplits, settings: Classification, size: int, session: Session
    ) -> "ClassificationWork":
        """Decode everything. Raises UserError when it does not fit into memory."""
        require_memory(len(splits.train), len(splits.val), settings.views, size)
        pictures = draw(Maker(splits.train, size, settings), settings.views)
        test, kept_test = load_all(splits.val, size)
        labels, truth = (
            torch.from_numpy(np.asarray(images.labels)[rows].astype(np.int64))
            for images, rows in ((splits.train, pictures.kept), (splits.val, kept_test))
        )
        samples = Samples(pictures.values, labels, pictures.fresh)
        return cls(splits.classes, size, session, samples, test, truth)

    def build(self, model: ImageWorldModel, settings: Classification) -> Classifier:
        return build(model, settings, self.classes, self.size)

    @property
    def tokens_kept(self) -> bool:
        return self.test.dtype != torch.uint8

    def encoded(self, encoder: PatchEncoder, layer: int) -> "ClassificationWork":
        """The same with a frozen encoder's tokens after a block in place of the pictures; unchanged where they do not
        fit.

        With the same weights as the last time, nothing is computed.
        """
        mark = f"{feature_cache.digest(list(encoder.state_dict().items()))} layer {layer}"
        if mark not in self.tokens:
            self.tokens.clear()
            kept = frozen_tokens(encoder, self.samples.values, self.session, layer)
            test = frozen_tokens(encoder, self.test[None], self.session, layer) if kept is not None else None
            if kept is None or test is None:
                return self
            self.tokens[mark] = kept, test[0]
        values, test = self.tokens[mark]
        return replace(self, samples=Samples(values, self.samples.labels), test=test, tokens={})

    def logits(self, classifier: Classifier, values: Tensor) -> Tensor:
        """A classifier's logits of training or test values."""
        return classifier.classify(values.float()) if self.tokens_kept else classifier(values)

    def guess(self, classifier: Classifier, values: Tensor) -> Float[Tensor, "n c"]:
        """The same of any number of values, in parts, on the CPU."""
        return logits_of(partial(self.logits, classifier), values, self.session)

    def fit(self, model: ImageWorldModel, settings: Classification, start: str = "", title: str = "") -> Finetuning:
        """Choose learning rates, train, and look at the test images."""
        since = time.perf_counter()
        encoder = model.used_encoder(settings.student)
        layer = encoder.layer if settings.uses_predictor else encoder.depth
        fed = self.encoded(encoder, layer) if settings.reuses_tokens else self
        feeding = {"tokens_kept": fed.tokens_kept, "encode_seconds": round(time.perf_counter() - since, 2)}
        begun = load_classifier(start) if start else None
        build = partial(self.build, model)
        classifier, trained = tuning.train(build, settings, fed.samples, fed.logits, self.session, title, begun)
        return Finetuning(classifier, trained, fed.guess(classifier, fed.test), feeding)


def frozen_tokens(
    encoder: PatchEncoder, views: UInt8[Tensor, "v n 3 s s"], session: Session, layer: int
) -> Tensor | None:
    """Tokens [v, n, t, d] of all pictures after a block, in float16; None when they would take more than a quarter of
    free memory."""
    side = -(-views.shape[-1] // encoder.patch_size)
    needed = views.shape[0] * views.shape[1] * side**2 * encoder.settings.width * 2
    if not sharing.all_say(needed <= devices.free_memory() / 4):
        return None
    frozen = features.WorldEncoder(encoder, "frozen encoder", views.shape[-1], layer)
    tokens = features.encode(frozen, views.flatten(0, 1), pooling="tokens", session=session)
    return tokens.unflatten(0, tuple(views.shape[:2]))
