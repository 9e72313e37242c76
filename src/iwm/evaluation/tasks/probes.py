"""Probes: what a frozen encoder's features are good for, beside a random encoder's and raw pixels.

    kNN        score_c(z) = sum over the k nearest z_i of class c of exp(cos(z, z_i) / T)
    linear     min_W mean_i CE(W z_i + b, y_i) + l2/2 |W|^2     on standardised features, full-batch L-BFGS
    attentive  one learned query over the tokens (`AttentiveHead`)

Whatever is chosen (l2, learning rate, size of the raw pixels) is chosen on a seeded tenth of the training images and
then fitted to all of them; the test images are looked at once, at the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from iwm import run_folder
from iwm.config import Speed, did_you_mean
from iwm.data.sources import LabelledSplits, labelled_splits, source_identity
from iwm.data.splits import tenth_of_each_class
from iwm.evaluation import ritual
from iwm.evaluation.tasks import features
from iwm.evaluation.tasks.classifier import AttentiveHead
from iwm.evaluation.tasks.features import RAW_SIZES, FrozenEncoder, Labelled, RawPixels
from iwm.evaluation.tasks.fitting import (
    Learner,
    Samples,
    Schedule,
    accuracy,
    choose,
    decay_groups,
    logits_of,
    scores,
)
from iwm.evaluation.tasks.linear import choose_l2, fit_linear
from iwm.runtime import devices
from iwm.runtime.bounds import AtLeast, Positives, check
from iwm.runtime.console import console, show
from iwm.runtime.errors import UserError

Kind = Literal["knn", "linear", "attentive"]

L2_GRID = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Strengths of the linear probe, strongest first so that each solution starts the next."""
SHOWN = (
    "encoder",
    "layer",
    "pooling",
    "top1",
    "top5",
    "balanced_top1",
    "random_encoder_top1",
    "raw_pixels_top1",
    "other_encoder",
    "other_encoder_top1",
    "chance",
    "n_train",
    "n_val",
)
LR_GRID = (3e-4, 1e-3, 3e-3)
"""Learning rates of the attentive probe."""


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """What a probe's numbers depend on, beside the encoder and the data."""

    kind: Kind = "linear"
    seed: Annotated[int, AtLeast(0)] = 0
    k: Annotated[int, AtLeast(1)] = 20
    """Neighbours of kNN."""
    temperature: float = 0.07
    """T of kNN."""
    pooling: Literal["mean", "max"] = "mean"
    """How kNN and the linear probe make one vector of the patch tokens; the attentive probe takes all of them."""
    standardise: bool = True
    """Linear: features to zero mean and unit deviation (a BatchNorm without affine)."""
    l2: Annotated[tuple[float, ...], Positives()] = L2_GRID
    lrs: Annotated[tuple[float, ...], Positives()] = LR_GRID
    schedule: Schedule = field(default_factory=Schedule)
    """Training of the attentive probe."""

    def __post_init__(self) -> None:
        check(self, "--")

    @property
    def pools(self) -> features.Pooling:
        """What the probe looks at."""
        return "tokens" if self.kind == "attentive" else self.pooling


def probe(
    run: str,
    data: str,
    kind: str = "linear",
    *,
    val: str = "",
    seed: int = 0,
    settings: ProbeSettings | None = None,
    student: bool = False,
    layer: int = 0,
    size: int = 0,
    baselines: bool = True,
    beside: str = "",
    speed: Speed | None = None,
    out: str = "",
) -> dict[str, Any]:
    """Probe a RUN (or timm:NAME[,weights=PATH]) on a labelled source, write `RUN/eval/probe-KIND-DATA.json` and the
    confusion matrix beside it, print it, and return what was written, with the file under "path".

    `kind` (knn, linear, attentive) and `seed` go before those of `settings`. `baselines` adds random_encoder_top1 and
    raw_pixels_top1, `beside` (another RUN or timm:NAME[,weights=PATH], at its own image size unless `size` says
    otherwise) adds other_encoder_top1. Raises UserError for bad input, see `labelled_splits`.
    """
    if kind not in get_args(Kind):
        raise UserError(f"There is no probe '{kind}'; {did_you_mean(kind, get_args(Kind))}")
    settings = replace(settings or ProbeSettings(), kind=cast(Kind, kind), seed=seed)
    speed = speed or Speed()
    encoder = features.open_encoder(run, student=student, layer=layer, size=size)
    other = features.open_encoder(beside, size=size) if beside else None
    splits = labelled_splits(data, val, size=encoder.size)
    console.print(f"{splits.train.name}: {splits.sentence}.")
    with devices.threads(speed):  # until the end: the result says how many
        cache = run_folder.run_folder(run, out) / "eval" / "cache"
        found = _probe_all(encoder, splits, settings, baselines=baselines, speed=speed, cache=cache)
        if other is not None:
            seen = splits if other.size == encoder.size else labelled_splits(data, val, size=other.size)
            there = _probe_all(other, seen, settings, baselines=False, speed=speed, cache=cache)
            found |= {"other_encoder": beside, "other_encoder_size": other.size}
            found |= {f"other_encoder_{key}": there[key] for key in ("top1", "chosen")}
        payload = {
            "run": run,
            "data": splits.train.name,
            "kind": kind,
            **found,
            "chance": 1 / len(splits.classes),
            "encoder": encoder.name,
            "layer": encoder.layer,
            "depth": encoder.depth,
            "pooling": settings.pools,
            "image_size": encoder.size,
            "precision": devices.precision_of(speed, devices.device_of(speed)),
            "classes": list(splits.classes),
            "split": splits.sentence,
        }
        settings_written = {
            **vars(settings),
            "schedule": vars(settings.schedule),
            "data": source_identity(data),
            "val": source_identity(val) if val else "",
            "run": ritual.run_identity(run, out),
            "student": student,
            "layer": encoder.layer,
            "size": encoder.size,
            "baselines": baselines,
            **({"beside": ritual.run_identity(beside, beside)} if beside else {}),
        }
        words = [kind, "student" * student, f"layer{encoder.layer}" if encoder.layer < encoder.depth else ""]
        words += [settings.pools] if settings.pools == "max" else []
        words += ["raw-scale"] if kind == "linear" and not settings.standardise else []
        words.append(f"seed{settings.seed}" if settings.seed else "")
        words += [run_folder.plain_name(f"beside-{beside.split(',')[0].split('/')[-1]}")] if beside else []
        variant = "-".join(word for word in words if word)
        path = ritual.place(run, "probe", splits.train.name, settings_written, variant=variant, out=out)
        path.parent.mkdir(parents=True, exist_ok=True)
        title = f"{kind} probe, {encoder.name}, {splits.train.name}: {found['top1']:.1%}"
        draw_confusion(np.array(found["confusion"]), splits.classes, title, path.with_suffix(".png"))
        written = ritual.write(path, payload, settings_written)
        show(title.split(":")[0], {name: written[name] for name in SHOWN if name in written}, path)
    return {**written, "path": str(path)}


def _probe_all(
    encoder: FrozenEncoder,
    splits: LabelledSplits,
    settings: ProbeSettings,
    *,
    baselines: bool,
    speed: Speed,
    cache: Path | None,
) -> dict[str, Any]:
    """The probe itself and its baselines, on features extracted in one pass over the images."""
    count = len(splits.classes)
    looked_at = [encoder]
    if baselines:
        looked_at.append(encoder.drawn_anew(settings.seed + 1))
    train, test = (
        features.extract(looked_at, images, pooling=settings.pools, speed=speed, cache=cache)
        for images in (splits.train, splits.val)
    )
    outcome = evaluate(train.features[0], train.labels, test.features[0], count, settings, speed)
    found = {
        **scores(outcome.logits, test.labels),
        "chosen": outcome.chosen,
        "tried": outcome.tried,
        "n_train": len(train.labels),
        "n_val": len(test.labels),
    }
    if baselines:
        twin = evaluate(train.features[1], train.labels, test.features[1], count, settings, speed)
        found["random_encoder_top1"] = accuracy(twin.logits, test.labels)
        found["random_encoder_chosen"] = twin.chosen
        found |= raw_pixels(splits, encoder.size, settings, speed)
    return found


def raw_pixels(splits: LabelledSplits, size: int, settings: ProbeSettings, speed: Speed) -> dict[str, Any]:
    """The same probe on the pixels themselves at 8, 16 and 32 px, the size chosen on the tenth like everything else.

    Pixels are no tokens to attend to: beside an attentive probe they get the linear one, as "raw_pixels_probe" says.
    """
    kind: Kind = "linear" if settings.kind == "attentive" else settings.kind
    settings = replace(settings, kind=kind)
    sides = [side for side in RAW_SIZES if side <= size]
    sizes = [RawPixels(side, size) for side in sides or [size]]
    train, test = (features.extract(sizes, images, speed=speed) for images in (splits.train, splits.val))
    return raw_pixels_of(sizes, train, test, len(splits.classes), settings, speed)


def raw_pixels_of(
    sizes: Sequence[RawPixels], train: Labelled, test: Labelled, classes: int, settings: ProbeSettings, speed: Speed
) -> dict[str, Any]:
    """`raw_pixels` on pixels already at hand, one size a feature."""
    tenths = [_tenth_accuracy(values, train.labels, classes, settings) for values in train.features]
    best = max(range(len(sizes)), key=lambda number: tenths[number][0])
    outcome = evaluate(
        train.features[best], train.labels, test.features[best], classes, settings, speed, tenths[best][1]
    )
    return {
        "raw_pixels_top1": accuracy(outcome.logits, test.labels),
        "raw_pixels_side": sizes[best].side,
        "raw_pixels_probe": settings.kind,
        "raw_pixels_tried": [{"side": s.side, "tenth_top1": t[0]} for s, t in zip(sizes, tenths, strict=True)],
    }


@dataclass(frozen=True)
class Outcome:
    """Logits of the test images, what was chosen, and everything tried with its accuracy on the tenth."""

    logits: Float[Tensor, "m c"]
    chosen: dict[str, Any]
    tried: list[dict[str, Any]]


def evaluate(
    train: Tensor,
    labels: Int64[Tensor, " n"],
    test: Tensor,
    classes: int,
    settings: ProbeSettings,
    speed: Speed | None = None,
    tried: list[dict[str, Any]] | None = None,
) -> Outcome:
    """Fit the probe of `settings.kind` to training features and return the test images' logits. No test label enters.

    `tried` is the linear probe's table of l2 where it has been made already.
    """
    speed = speed or Speed()
    device = devices.device_of(speed)
    if settings.kind == "knn":
        k = min(settings.k, len(train))
        logits = knn_scores(train.to(device), labels.to(device), test.to(device), classes, k, settings.temperature)
        return Outcome(logits.cpu(), {"k": k, "temperature": settings.temperature}, [])
    if settings.kind == "linear":
        tried = tried or choose_l2(
            train.to(device), labels.to(device), classes, settings.l2, settings.seed, settings.standardise
        )
        l2 = max(tried, key=lambda row: row["tenth_top1"])["l2"]
        weights = fit_linear(train.to(device), labels.to(device), classes, l2, settings.standardise)
        return Outcome(weights.logits(test.to(device)).cpu(), {"l2": l2}, tried)

    def learner(choice: dict[str, Any]) -> Learner:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            head = AttentiveHead(train.shape[-1], classes).to(device)
        groups = decay_groups(head, choice["lr"], settings.schedule.weight_decay)
        return Learner(head, lambda tokens: head(tokens.float()), groups)

    precision = devices.precision_of(speed, device)
    trained = choose(
        learner,
        [{"lr": lr} for lr in settings.lrs],
        Samples(train[None], labels),
        settings.schedule,
        seed=settings.seed,
        device=device,
        precision=precision,
        title="attentive probe",
    )
    logits = logits_of(trained.learner.logits, test, device=device, precision=precision)
    return Outcome(logits, trained.choice, trained.tried)


# ---- k nearest neighbours ------------------------------------------------------------------------------------------


def knn_scores(
    train: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m d"],
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Float[Tensor, "m c"]:
    """Votes of the k nearest training features by cosine, each weighing exp(cosine / temperature) (Wu et al. 2018)."""
    train = F.normalize(train.float(), dim=1)
    found = []
    at_once = max(1, 2**25 // len(train))
    for part in F.normalize(test.float(), dim=1).split(at_once):
        cosine, nearest = (part @ train.T).topk(k, dim=1)
        # Less the largest possible cosine: the order stays and the exponential cannot overflow at small temperatures.
        votes = ((cosine - 1) / temperature).double().exp()
        found.append(votes.new_zeros(len(part), classes).scatter_add_(1, labels[nearest], votes))
    return torch.cat(found)


def _tenth_accuracy(
    values: Tensor, labels: Int64[Tensor, " n"], classes: int, settings: ProbeSettings
) -> tuple[float, list[dict[str, Any]] | None]:
    """Accuracy on the tenth, and the table it was chosen from."""
    if settings.kind == "linear":
        tried = choose_l2(values, labels, classes, settings.l2, settings.seed, settings.standardise)
        return max(row["tenth_top1"] for row in tried), tried
    rest, tenth = tenth_of_each_class(labels, settings.seed)
    k = min(settings.k, len(rest))
    votes = knn_scores(values[rest], labels[rest], values[tenth], classes, k, settings.temperature)
    return accuracy(votes, labels[tenth]), None


# ---- picture -------------------------------------------------------------------------------------------------------


def draw_confusion(confusion: Int64[np.ndarray, "c c"], classes: Sequence[str], title: str, path: Path) -> None:
    """Write the confusion matrix as PNG: rows are the truth, shaded by the share of the class."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(classes)
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = min(16.0, 2.5 + 0.42 * count)
    figure = Figure(figsize=(side, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    if count <= 50:
        axes.set_xticks(range(count), classes, rotation=90, fontsize=7)
        axes.set_yticks(range(count), classes, fontsize=7)
    if count <= 25:
        for truth, guess in np.argwhere(confusion > 0):
            colour = "white" if share[truth, guess] > 0.5 else "black"
            text = str(confusion[truth, guess])
            axes.text(guess, truth, text, ha="center", va="center", fontsize=6, color=colour)
    figure.savefig(path, dpi=120)
