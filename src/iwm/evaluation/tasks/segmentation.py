"""Segmentation: the class of every pixel, from the encoder's blocks or the predictor's (paper section 5).

    head       head(blocks of f-bar(x))               f-bar frozen
    predictor  head(blocks of p(f-bar(x), a = 0))     f-bar frozen, queries only
    encoder    head(blocks of f(x))                   layer decay 0.65
    both       head(blocks of p(f(x), a = 0))         end to end, from a finished predictor segmentation

Trained on multi-scale crops mirrored at random, judged on whole images at their own size through windows. Beside it
stand the same training with nothing pretrained and the majority class everywhere.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int16, Int64, UInt8
from torch import Tensor

from iwm.data.annotations import AnnotatedSplits, Examples, annotated_splits
from iwm.data.crops import scaled_crop
from iwm.data.splits import tenth_of_each_class
from iwm.evaluation import ritual
from iwm.evaluation.ritual import Outcome
from iwm.evaluation.tasks import overlays, tuning
from iwm.evaluation.tasks.fitting import Learner, Trained, TrainingSet
from iwm.evaluation.tasks.iou import Counts, count
from iwm.evaluation.tasks.segmenter import Segmenter, head_of, load_segmenter, save_segmenter
from iwm.evaluation.tasks.tuning import nothing_pretrained, parts_of, predictor_of, start_of, training_of
from iwm.model.vit import choose_attention
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import devices, distributed, sharing
from iwm.runtime.console import console, progress, table
from iwm.runtime.devices import Session
from iwm.runtime.errors import UserError
from iwm.runtime.randomness import uniforms
from iwm.verbs.segment import Segment, SegmentSettings

SHOWN = (
    *("miou", "miou_standard_error", "random_encoder_miou", "majority_miou", "pixel_accuracy"),
    *("trainable_parameters", "flops_per_image", "train_images_per_second", "n_train", "n_val", "augmentation"),
)
AT_ONCE = 2**24
"""Logits of whole images held at once."""


# ---- the verb ------------------------------------------------------------------------------------------------------


def segment(o: Segment) -> dict[str, Any]:
    """Train a RUN to segment a source; writes RUN/eval/segment-TRAIN[-PREDICTOR]-HEAD-DATA.json with an overlay PNG
    and the weights in the folder of that name, returns the result.

    Raises UserError for bad input, see `annotated_splits`.
    """
    with ritual.evaluation("segment", o) as work:
        model = work.world_model()
        _ = predictor_of(model, o)  # what cannot be built is an error before any work
        splits = open_annotated(o, model.settings.data.image_size)
        window = o.size or window_of(splits, model.settings.data.image_size)
        start = start_of(o, segment, load_segmenter, lambda: build(model, o, splits.classes, window))
        task = SegmentationWork(splits, window, work.session)
        segmenter, trained, counts = task.fit(model, o, start, f"segment {o.train}")
        settings, words = ritual.settings_of(o, SegmentSettings), _words(o)
        outcome = Outcome(
            data=splits.train.name,
            payload={
                **tuning.facts_of(o, start),
                **_scores(counts, splits, o.seed),
                **training_of(segmenter, trained),
                **_facts(splits, window),
                "head": o.head,
            },
            settings={
                **settings,
                **ritual.identities(data=o.data, val=o.val, start=start),
                **tuning.settings_of_start(start, o),
                "size": o.size,
                "baselines": o.baselines,
            },
            variant=words,
            figures={"": lambda: overlays.overlays(_examples(segmenter, splits.val, work.session), splits.classes)},
            weights=lambda folder: save_segmenter(segmenter, model, folder, finetuned=settings),
        )
        if o.baselines:
            outcome = work.with_controls(outcome, lambda: _baseline(task, model, o))
        title = f"Segmented {'-'.join(words)}, {splits.train.name}"
        return work.conclude(outcome, lambda content: _show(content, title))


def open_annotated(o: Segment, image_size: int) -> AnnotatedSplits:
    """The splits, whose origin is printed. Raises UserError when there are too few images."""
    splits = annotated_splits(o.data, o.val, ignore_index=o.ignore_index, size=o.size or image_size)
    console.print(f"{splits.sentence}.")
    if len(splits.train) < 3:
        raise UserError(
            f"'{splits.train.name}' has {len(splits.train)} training images with masks; add some, three are the fewest."
        )
    return splits


def window_of(splits: AnnotatedSplits, image_size: int) -> int:
    """Side of crops and windows where none is given: the images' shorter side, at most 512 px and at most four times
    what the encoder was trained on."""
    return min(splits.train.shorter, 512, 4 * image_size)


def _words(o: Segment) -> list[str]:
    """What is trained, for the name of the result."""
    words = [o.train, o.predictor if o.uses_predictor else "", o.head, "student" * o.student]
    return [word for word in (*words, f"seed{o.seed}" if o.seed else "") if word]


def _facts(splits: AnnotatedSplits, window: int) -> dict[str, Any]:
    return {
        "data": splits.train.name,
        "flops_are": f"one window of {window} px forward, encoder included, 2 per multiply-add",
        "n_train": len(splits.train),
        "n_val": len(splits.val),
        "window": window,
        "classes": list(splits.classes),
        "classes_are": "names" if splits.named else "mask values",
        "split": splits.sentence,
    }


def _scores(counts: Counts, splits: AnnotatedSplits, seed: int) -> dict[str, Any]:
    share = counts.truth.sum(axis=0) / counts.truth.sum()
    return {
        "miou": counts.miou(),
        "miou_standard_error": counts.standard_error(seed),
        "pixel_accuracy": counts.pixel_accuracy(),
        "per_class_iou": counts.per_class_iou(),
        "majority_miou": counts.majority(splits.majority).miou(),
        "majority_class": splits.classes[splits.majority],
        "pixel_share": share,
    }


def _baseline(task: "SegmentationWork", model: ImageWorldModel, o: Segment) -> dict[str, Any]:
    """The same training with nothing pretrained."""
    twin, settings = nothing_pretrained(model, o)
    _, trained, counts = task.fit(twin, settings, title="random encoder")
    return {"random_encoder_miou": counts.miou(), **tuning.facts_of_control(settings, trained)}


def _examples(segmenter: Segmenter, examples: Examples, session: Session, most: int = 4) -> list[overlays.Overlay]:
    """A few validation images, evenly spread, with truth and prediction."""
    shown = []
    for row in np.unique(np.linspace(0, len(examples) - 1, most).astype(int)):
        image, mask = examples.load(int(row))
        with session.autocast():
            guess = segmenter.slide(image[None].to(session.device)).argmax(dim=1)[0].cpu()
        shown.append(overlays.Overlay(image, mask.long().numpy(), guess.numpy()))
    return shown


def _show(content: Mapping[str, Any], title: str) -> None:
    ritual.printing(title, SHOWN)(content)
    ious = zip(content["classes"], content["per_class_iou"], strict=True)
    console.print(table("IoU of every class", ["class", "IoU"], ious))


# ---- judging -------------------------------------------------------------------------------------------------------


def evaluate(segmenter: Segmenter, examples: Examples, rows: Int64[np.ndarray, " t"], session: Session) -> Counts:
    """Counts over whole images at their own size; every rank looks at its share of them."""
    segmenter = segmenter.to(session.device).eval()
    classes = len(segmenter.names)

    def counted(rows: Int64[np.ndarray, " t"]) -> Tensor:
        counts = []
        with progress("images") as bar:
            task = bar.add_task("segmenting", total=len(rows), note="")
            for images, masks in _alike(examples, rows, classes):
                with session.autocast():
                    guesses = segmenter.slide(images.to(session.device)).argmax(dim=1).cpu().numpy()
                counts += [count(guess, mask.numpy(), classes) for guess, mask in zip(guesses, masks, strict=True)]
                bar.advance(task, len(images))
                distributed.advance()
        return torch.from_numpy(np.stack(counts))

    return Counts(*sharing.by_rows(counted, rows).numpy().swapaxes(0, 1))


def _alike(
    examples: Examples, rows: Int64[np.ndarray, " t"], classes: int
) -> Iterator[tuple[UInt8[Tensor, "b 3 h w"], list[Tensor]]]:
    """Neighbouring images of the same size together, as many as `AT_ONCE` allows."""
    images: list[Tensor] = []
    masks: list[Tensor] = []
    for row in rows:
        image, mask = examples.load(int(row))
        if images and (image.shape != images[0].shape or (len(images) + 1) * classes * mask.numel() > AT_ONCE):
            yield torch.stack(images), masks
            images, masks = [], []
        images.append(image)
        masks.append(mask)
    if images:
        yield torch.stack(images), masks


# ---- crops ---------------------------------------------------------------------------------------------------------


class Crops(TrainingSet):
    """Random crops of a split with their classes; what a frozen encoder says of them is remembered.

    `encode` is that encoder; None: pixels are what is learned from.
    """

    metric = "miou"

    def __init__(
        self,
        examples: Examples,
        settings: SegmentSettings,
        size: int,
        encode: Callable[[UInt8[Tensor, "b 3 s s"]], Float[Tensor, "b l n d"]] | None,
    ) -> None:
        self.examples, self.settings, self.size, self.encode = examples, settings, size, encode
        self._known: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, rows: Int64[np.ndarray, " b"], seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        keys = list(zip(self._views(rows, seed, epoch).tolist(), rows.tolist(), strict=True))
        missing = [key for key in keys if key not in self._known]
        crops = []
        if missing:
            with ThreadPoolExecutor(devices.cores()) as threads:
                crops = list(threads.map(self.crop, *zip(*missing, strict=True)))
        pairs = dict(zip(missing, crops, strict=True))
        if self.encode is not None:
            if missing:
                features = self.encode(torch.stack([pixels for pixels, _ in crops])).half().cpu()
                self._known |= {
                    key: (tokens, mask) for key, tokens, (_, mask) in zip(missing, features, crops, strict=True)
                }
            pairs = self._known
        inputs, masks = zip(*(pairs[key] for key in keys), strict=True)
        return torch.stack(inputs), torch.stack(masks).long()

    def crop(self, view: int, row: int) -> tuple[UInt8[Tensor, "3 s s"], Int16[Tensor, "s s"]]:
        """One crop of one image, with its classes: a pure function of seed, view and image."""
        image, mask = self.examples.load(row)
        s = self.settings
        height, width = mask.shape
        crop = scaled_crop(height, width, self.size, s.scales, s.flip, s.seed, view, row)
        return crop.of_image(image), crop.of_mask(mask)

    def _views(self, rows: Int64[np.ndarray, " b"], seed: int, epoch: int) -> Int64[np.ndarray, " b"]:
        if not self.settings.views:
            return np.full(len(rows), epoch)
        return (uniforms(seed, "crop view", epoch, rows, 1)[:, 0] * self.settings.views).astype(np.int64)

    def hold_out(self, seed: int) -> tuple[Int64[Tensor, " r"], Int64[Tensor, " t"]]:
        return tenth_of_each_class(torch.zeros(len(self), dtype=torch.long), seed)

    def score(self, learner: Learner, rows: Int64[Tensor, " t"], session: Session) -> float:
        assert isinstance(learner.model, Segmenter)
        return evaluate(learner.model, self.examples, rows.numpy(), session).miou()


# ---- training ------------------------------------------------------------------------------------------------------


def build(model: ImageWorldModel, settings: SegmentSettings, classes: tuple[str, ...], size: int) -> Segmenter:
    """A fresh segmenter from a world model, the same for the same seed; only what is to be trained takes gradients.

    The world model itself is left as it is.
    """
    width = model.settings.predictor.width if settings.uses_predictor else model.settings.encoder.width
    channels = settings.channels or (128 if size < 224 else 512)
    encoder, predictor, head = parts_of(model, settings, lambda: head_of(settings.head, width, len(classes), channels))
    if predictor is not None:
        # The head looks at the blocks: the way back to target space is not used.
        predictor.project.requires_grad_(False)
    segmenter = Segmenter(encoder, predictor, head, model.space, size)
    segmenter.names = classes
    return segmenter


@dataclass(frozen=True)
class SegmentationWork:
    """The images of a segmentation, whose crops are drawn as they are needed."""

    splits: AnnotatedSplits
    size: int
    """Side of crops and windows, px."""
    session: Session

    def build(self, model: ImageWorldModel, settings: SegmentSettings) -> Segmenter:
        return build(model, settings, self.splits.classes, self.size)

    def fit(
        self, model: ImageWorldModel, settings: SegmentSettings, start: str = "", title: str = ""
    ) -> tuple[Segmenter, Trained, Counts]:
        """Choose learning rates and train; the validation images are looked at once, at the end."""
        crops = Crops(self.splits.train, settings, self.size, self._frozen(model, settings))

        def logits(segmenter: Segmenter, values: Tensor) -> Tensor:
            if crops.encode is None:
                return segmenter(values)
            return segmenter.classify(values.float(), (self.size, self.size))

        begun = load_segmenter(start) if start else None
        build = partial(self.build, model)
        segmenter, trained = tuning.train(build, settings, crops, logits, self.session, title, begun)
        return segmenter, trained, evaluate(segmenter, self.splits.val, np.arange(len(self.splits.val)), self.session)

    def _frozen(
        self, model: ImageWorldModel, settings: SegmentSettings
    ) -> Callable[[UInt8[Tensor, "b 3 s s"]], Float[Tensor, "b l n d"]] | None:
        """The encoder whose features are remembered: None when it learns, or when memory does not hold all of them."""
        depths = 1 if settings.uses_predictor else 4
        tokens = (-(-self.size // model.encoder.patch_size)) ** 2
        one = 2 * (depths * tokens * model.settings.encoder.width + self.size**2)
        needed = settings.views * len(self.splits.train) * one
        fits = sharing.all_say(needed <= devices.free_memory() / 4)
        if settings.moves_encoder or not settings.views or not fits:
            return None
        session = self.session
        frozen = self.build(model, settings).to(session.device).eval()
        choose_attention(frozen, session.device, session.precision)

        @torch.no_grad()
        def encode(pixels: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b l n d"]:
            with session.autocast():
                return frozen.encode(pixels.to(session.device)).float()

        return encode
