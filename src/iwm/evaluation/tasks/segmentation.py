"""Segmentation: the class of every pixel, from the encoder's blocks or the predictor's (paper section 5).

    head       head(blocks of f-bar(x))               f-bar frozen
    predictor  head(blocks of p(f-bar(x), a = 0))     f-bar frozen, queries only
    encoder    head(blocks of f(x))                   layer decay 0.65
    both       head(blocks of p(f(x), a = 0))         end to end, from a finished predictor segmentation

Trained on multi-scale crops mirrored at random, judged on whole images at their own size through windows. Beside it
stand the same training with nothing pretrained and the majority class everywhere.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int16, Int64, UInt8
from torch import Tensor

from iwm import config, run_folder
from iwm.config import Speed
from iwm.data.annotations import AnnotatedSplits, Examples, annotated_splits
from iwm.data.crops import scaled_crop
from iwm.data.sources import source_identity
from iwm.data.splits import tenth_of_each_class
from iwm.evaluation import ritual
from iwm.evaluation.tasks import overlays
from iwm.evaluation.tasks.fitting import Learner, Schedule, Trained, TrainingSet, choose
from iwm.evaluation.tasks.iou import Counts, count
from iwm.evaluation.tasks.segmenter import HeadKind, Segmenter, head_of, load_segmenter, save_segmenter
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
from iwm.model.vit import choose_attention
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import devices, drawing
from iwm.runtime.bounds import AtLeast, Rising
from iwm.runtime.console import console, progress, show, table
from iwm.runtime.errors import UserError
from iwm.runtime.randomness import uniforms

SHOWN = (
    *("miou", "miou_standard_error", "random_encoder_miou", "majority_miou", "pixel_accuracy"),
    *("trainable_parameters", "flops_per_image", "train_images_per_second", "n_train", "n_val"),
)
AT_ONCE = 2**24
"""Logits of whole images held at once."""
WAYS = ("head", "predictor", "encoder", "both")


@dataclass(frozen=True, kw_only=True)
class SegmentSettings(Tuning):
    """What a segmentation's numbers depend on, beside the run and the data."""

    head: HeadKind = "upernet"
    channels: int = 0
    """Of UperNet; 0: 128 for crops below 224 px, 512 from there."""
    ignore_index: int = 255
    """Mask value of pixels that are neither learned nor counted."""
    scales: Annotated[tuple[float, float], Rising()] = (0.5, 2.0)
    """Smallest and largest factor of the multi-scale crops."""
    views: Annotated[int, AtLeast(0)] = 4
    """Crops an image is trained on, drawn once so that a frozen encoder sees each once; 0, and always when the encoder
    learns: fresh ones every epoch."""
    schedule: Schedule = field(default_factory=lambda: Schedule(batch_size=16))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head == "upernet" and self.schedule.batch_size < 2:
            raise UserError("--batch-size 1 is too few for UperNet's batch norm; give 2 or more, or --head linear.")


def evaluate(
    segmenter: Segmenter, examples: Examples, rows: Int64[np.ndarray, " t"], *, device: torch.device, precision: str
) -> Counts:
    """Counts over whole images at their own size."""
    segmenter = segmenter.to(device).eval()
    classes = len(segmenter.names)
    found = []
    with progress("images") as bar:
        task = bar.add_task("segmenting", total=len(rows), note="")
        for images, masks in _alike(examples, rows, classes):
            with devices.autocast(device, precision):
                guesses = segmenter.slide(images.to(device)).argmax(dim=1).cpu().numpy()
            found += [count(guess, mask.numpy(), classes) for guess, mask in zip(guesses, masks, strict=True)]
            bar.advance(task, len(images))
    counts = np.stack(found, axis=1)
    return Counts(*counts)


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
        self._asked: tuple[bytes, int, int] = (b"", 0, 0)
        self._masks = torch.empty(0)

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, rows: Int64[np.ndarray, " b"], seed: int, epoch: int) -> Tensor:
        keys = list(zip(self._views(rows, seed, epoch).tolist(), rows.tolist(), strict=True))
        missing = [key for key in keys if key not in self._known]
        with ThreadPoolExecutor(devices.cores()) as threads:
            crops = list(threads.map(self.crop, *zip(*missing, strict=True))) if missing else []
        made = dict(zip(missing, crops, strict=True))
        if self.encode is not None:
            if missing:
                features = self.encode(torch.stack([pixels for pixels, _ in crops])).half().cpu()
                self._known |= {
                    key: (tokens, mask) for key, tokens, (_, mask) in zip(missing, features, crops, strict=True)
                }
            made = self._known
        self._asked = (rows.tobytes(), seed, epoch)
        self._masks = torch.stack([made[key][1] for key in keys]).long()
        return torch.stack([made[key][0] for key in keys])

    def targets(self, rows: Int64[np.ndarray, " b"], seed: int, epoch: int) -> Tensor:
        if self._asked != (rows.tobytes(), seed, epoch):
            self.batch(rows, seed, epoch)
        return self._masks

    def crop(self, view: int, row: int) -> tuple[UInt8[Tensor, "3 s s"], Int16[Tensor, "s s"]]:
        """One crop of one image, with its classes: a pure function of seed, view and image."""
        image, mask = self.examples.load(row)
        s = self.settings
        height, width = mask.shape
        drawn = scaled_crop(height, width, self.size, s.scales, s.flip, s.seed, view, row)
        return drawn.of_image(image), drawn.of_mask(mask)

    def _views(self, rows: Int64[np.ndarray, " b"], seed: int, epoch: int) -> Int64[np.ndarray, " b"]:
        if not self.settings.views or self.settings.moves_encoder:
            return np.full(len(rows), epoch)
        return (uniforms(seed, "crop view", epoch, rows, 1)[:, 0] * self.settings.views).astype(np.int64)

    def hold_out(self, seed: int) -> tuple[Int64[Tensor, " r"], Int64[Tensor, " t"]]:
        return tenth_of_each_class(torch.zeros(len(self), dtype=torch.long), seed)

    def score(self, learner: Learner, rows: Int64[Tensor, " t"], *, device: torch.device, precision: str) -> float:
        assert isinstance(learner.model, Segmenter)
        return evaluate(learner.model, self.examples, rows.numpy(), device=device, precision=precision).miou()


# ---- the command ---------------------------------------------------------------------------------------------------


def build(model: ImageWorldModel, settings: SegmentSettings, classes: tuple[str, ...], size: int) -> Segmenter:
    """A fresh segmenter from a world model, the same for the same seed; only what is to be trained takes gradients.

    The world model itself is left as it is.
    """
    encoder = encoder_of(model, settings)
    width = model.settings.predictor.width if settings.uses_predictor else encoder.settings.width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        head = head_of(settings.head, width, len(classes), settings.channels or (128 if size < 224 else 512))
        predictor = predictor_of(model, settings)
    if predictor is not None:
        # The head looks at the blocks: the way back to target space is not used.
        predictor.project.requires_grad_(False)
    segmenter = Segmenter(encoder, predictor, head, model.space, size)
    segmenter.names = classes
    return segmenter


def window_of(splits: AnnotatedSplits, image_size: int) -> int:
    """Side of crops and windows where none is asked for: the images' shorter side, at most 512 px and at most four
    times what the encoder was trained on."""
    return min(splits.train.shorter, 512, 4 * image_size)


def segment(
    run: str,
    data: str,
    train: str = "head",
    head: HeadKind = "upernet",
    predictor: Literal["pretrained", "random"] = "pretrained",
    *,
    val: str = "",
    ignore_index: int = 255,
    seed: int = 0,
    settings: SegmentSettings | None = None,
    size: int = 0,
    start: str = "",
    baselines: bool = True,
    speed: Speed | None = None,
    out: str = "",
) -> dict[str, Any]:
    """Train a RUN to segment a source, write `RUN/eval/segment-TRAIN[-PREDICTOR]-HEAD-DATA.json` with an overlay PNG
    and the weights in the folder of that name, print it, and return what was written, with the file under "path".

    `train`, `head`, `predictor`, `ignore_index` and `seed` go before those of `settings`. `size` is the side of crops
    and windows, px (0: see `window_of`). `train="both"` starts from the finished predictor segmentation in the folder
    `start`, or makes one first. `baselines` adds random_encoder_miou, the same training with nothing pretrained.
    Raises UserError for bad input, see `annotated_splits`.
    """
    if train not in WAYS:
        raise UserError(f"There is no way to train '{train}'; {config.did_you_mean(train, WAYS)}")
    if run.startswith("timm:"):
        raise UserError(f"{run} is no world model; give a RUN of `iwm pretrain`.")
    if size < 0:
        raise UserError(f"--size {size} is no side of a picture; give 1 px or more, or 0 for the images' own.")
    settings = replace(
        settings or SegmentSettings(), train=train, head=head, predictor=predictor, ignore_index=ignore_index, seed=seed
    )
    settings.require_use_of(start)
    speed = speed or Speed()
    model = run_folder.load_model(run)
    _ = predictor_of(model, settings)  # what cannot be built is an error before any work
    with devices.threads(speed):
        splits = annotated_splits(data, val, ignore_index=ignore_index, size=size or model.settings.data.image_size)
    console.print(f"{splits.sentence}.")
    if len(splits.train) < 3:
        raise UserError(
            f"'{splits.train.name}' has {len(splits.train)} training images with masks; add some, three are the fewest."
        )
    if train == "both" and not start:
        alike: dict[str, Any] = {
            "val": val,
            "ignore_index": ignore_index,
            "seed": seed,
            "settings": settings,
            "size": size,
            "baselines": False,
            "speed": speed,
            "out": out,
        }
        start = segment(run, data, "predictor", head, predictor, **alike)["weights"]
    window = size or window_of(splits, model.settings.data.image_size)
    if start:
        fresh = build(model, settings, splits.classes, window)
        require_start(start, load_segmenter(start), fresh, splits.classes)
    work = Work(splits, settings, window, devices.device_of(speed))
    precision = devices.precision_of(speed, work.device)
    with devices.threads(speed):
        trained, segmenter, counts = work.fit(model, precision, start, f"segment {train}")
        found = _scores(counts, splits, settings.seed)
        if baselines:
            bare = Work(splits, replace(settings, predictor="random"), window, work.device)
            twin = untrained(model, settings.seed + 1)
            twin_trained, _, twin_counts = bare.fit(twin, precision, "", "random encoder")
            found |= {"random_encoder_miou": twin_counts.miou(), "random_encoder_chosen": twin_trained.choice}
        shown = _shown(segmenter, splits.val, work.device, precision)
    payload = {
        "run": run,
        "data": splits.train.name,
        "train": train,
        "head": head,
        "predictor": predictor if settings.uses_predictor else None,
        **found,
        "trainable_parameters": sum(p.numel() for p in segmenter.parameters() if p.requires_grad),
        "parameters": sum(p.numel() for p in segmenter.parameters()),
        "flops_per_image": flops_of(segmenter),
        "flops_are": f"one window of {window} px forward, encoder included, 2 per multiply-add",
        "train_images_per_second": trained.images_per_second,
        "chosen": trained.choice,
        "tried": trained.tried,
        "n_train": len(splits.train),
        "n_val": len(splits.val),
        "encoder": "student encoder" if settings.student else "EMA encoder",
        "window": window,
        "precision": precision,
        "classes": list(splits.classes),
        "classes_are": "names" if splits.named else "mask values",
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
    words = [train, predictor if settings.uses_predictor else "", head, "student" * settings.student]
    variant = "-".join(word for word in (*words, f"seed{seed}" if seed else "") if word)
    path = ritual.place(run, "segment", splits.train.name, written, variant=variant, out=out)
    folder = path.with_suffix("")
    save_segmenter(segmenter, model, folder, finetuned=config.to_dict(settings))
    title = f"Segmented {variant}, {splits.train.name}"
    drawing.save(overlays.overlays(shown, splits.classes), path.with_suffix(".png"))
    content = ritual.write(path, {**payload, "weights": str(folder)}, written)
    show(title, {name: content[name] for name in SHOWN if name in content}, path)
    ious = zip(splits.classes, content["per_class_iou"], strict=True)
    console.print(table("IoU of every class", ["class", "IoU"], ious))
    return {**content, "path": str(path)}


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


def _shown(
    segmenter: Segmenter, examples: Examples, device: torch.device, precision: str, most: int = 4
) -> list[overlays.Overlay]:
    """A few validation images, evenly spread, with truth and prediction."""
    rows = np.unique(np.linspace(0, len(examples) - 1, most).astype(int))
    shown = []
    for row in rows:
        image, mask = examples.load(int(row))
        with devices.autocast(device, precision):
            guess = segmenter.slide(image[None].to(device)).argmax(dim=1)[0].cpu()
        shown.append(overlays.Overlay(image, mask.long().numpy(), guess.numpy()))
    return shown


@dataclass(frozen=True)
class Work:
    """One training: data, settings, where."""

    splits: AnnotatedSplits
    settings: SegmentSettings
    size: int
    device: torch.device

    def fit(self, model: ImageWorldModel, precision: str, start: str, title: str) -> tuple[Trained, Segmenter, Counts]:
        """Choose and train; the validation images are looked at once, at the end."""
        where: dict[str, Any] = {"device": self.device, "precision": precision}
        splits, settings, size = self.splits, self.settings, self.size
        initial = load_segmenter(start).state_dict() if start else None
        made: list[Segmenter] = []

        def make(choice: dict[str, Any]) -> Learner:
            segmenter = build(model, settings, splits.classes, size)
            if initial is not None:
                segmenter.load_state_dict(initial)
            choose_attention(segmenter.to(self.device), self.device, precision)
            made[:] = [segmenter]
            remembered = crops.encode is not None
            return Learner(
                segmenter,
                (lambda tokens: segmenter.classify(tokens.float(), (size, size))) if remembered else segmenter,
                groups_of(segmenter, settings, **choice),
            )

        crops = Crops(splits.train, settings, size, self._frozen(model, precision))
        trained = choose(make, grid_of(settings), crops, settings.schedule, seed=settings.seed, title=title, **where)
        everything = np.arange(len(splits.val))
        return trained, made[0], evaluate(made[0], splits.val, everything, **where)

    def _frozen(
        self, model: ImageWorldModel, precision: str
    ) -> Callable[[UInt8[Tensor, "b 3 s s"]], Float[Tensor, "b l n d"]] | None:
        """The encoder whose word is remembered: None when it learns, or when memory does not hold all it would say."""
        settings, patch = self.settings, model.encoder.patch_size
        depths = 1 if settings.uses_predictor else 4
        tokens = (-(-self.size // patch)) ** 2
        one = 2 * (depths * tokens * model.settings.encoder.width + self.size**2)
        needed = settings.views * len(self.splits.train) * one
        if settings.moves_encoder or not settings.views or needed > devices.free_memory() / 4:
            return None
        frozen = build(model, settings, self.splits.classes, self.size).to(self.device).eval()
        choose_attention(frozen, self.device, precision)

        @torch.no_grad()
        def encode(pixels: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b l n d"]:
            with devices.autocast(self.device, precision):
                return frozen.encode(pixels.to(self.device)).float()

        return encode
