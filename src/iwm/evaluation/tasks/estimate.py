"""What a finetuning would do and cost, said before it begins; nothing is written (`iwm finetune ... --dry-run`).

Steps are counted as `iwm.evaluation.tasks.fitting` takes them: trials of the grid of learning rates, then the training.
The seconds of an image are measured on this machine, apart for the frozen encoder, which sees each view once, and for
what follows it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from iwm.data.sources import labelled_splits
from iwm.evaluation import ritual
from iwm.evaluation.ritual import Evaluation
from iwm.evaluation.tasks import efficiency as points
from iwm.evaluation.tasks import finetune as images
from iwm.evaluation.tasks import multitask as tasks
from iwm.evaluation.tasks import segmentation as pixels
from iwm.evaluation.tasks.classifier import Headed, load_classifier
from iwm.evaluation.tasks.probes import open_labelled
from iwm.evaluation.tasks.segmenter import Segmenter, load_segmenter
from iwm.evaluation.tasks.streams import steps_of
from iwm.evaluation.tasks.tuning import grid_of, require_usable, trainable_of
from iwm.model.vit import choose_attention
from iwm.runtime import pace
from iwm.verbs.efficiency import Efficiency
from iwm.verbs.finetune import Finetune
from iwm.verbs.multitask import Multitask
from iwm.verbs.segment import Segment
from iwm.verbs.shared import Schedule, Tuning

MOST = 32
"""Images of the largest batch that is measured."""


@dataclass(frozen=True)
class Training:
    """One training and its trials."""

    what: str
    model: Headed
    settings: Tuning
    steps: int
    """Of all trials and the training, each of `batch` images."""
    batch: int
    copies: int
    """Trainings that cost as much: this one and its controls."""
    views: int
    """Pictures that the frozen encoder sees once, before; 0: it sees every image of every step; -1: their tokens are
    there."""
    begun: int = 0
    """Steps that come on top once: those of the predictors that the trials of `both` begin from."""


def finetune(o: Finetune) -> dict[str, Any]:
    """What `iwm finetune` would do and cost. Raises UserError as it does."""
    with ritual.evaluation("finetune", o) as work:
        model = work.world_model()
        size = o.size or model.settings.data.image_size
        splits = open_labelled(o, size)
        count, held = len(splits.train), len(splits.val)
        classifier = images.build(model, o, splits.classes, size)
        if o.start:
            require_usable(o.start, o, load_classifier, lambda: classifier)
        views = o.views * count + held if o.reuses_tokens else 0
        training = _with_control(f"finetune {o.train}", classifier, o, count, views)
        return _summary(work, [training], count, held, size)


def efficiency(o: Efficiency) -> dict[str, Any]:
    """What `iwm efficiency` would do and cost for the points that are not there. Raises UserError as it does."""
    with ritual.evaluation("efficiency", o) as work:
        model = work.world_model()
        model.require_predictor()
        size = o.size or model.settings.data.image_size
        splits = open_labelled(o, size)
        count, held = len(splits.train), len(splits.val)
        trainings, encoded = [], False
        outcome = points.outcome_of(o, work, splits, size)
        for point in points.points_left(work, outcome, splits, points.points_of(model, o))[1]:
            views = o.views * count + held if point.settings.reuses_tokens else 0
            classifier = images.build(model, point.settings, splits.classes, size)
            once = 0 if encoded or not views else views
            trainings.append(_training(point.what, classifier, point.settings, count, 1, once, bool(views)))
            encoded |= bool(views)
        return _summary(work, trainings, count, held, size)


def multitask(o: Multitask) -> dict[str, Any]:
    """What `iwm multitask` would do and cost. Raises UserError as it does."""
    with ritual.evaluation("multitask", o) as work:
        sources, vals = tasks.parse_tasks(o.task), tasks.parse_tasks(o.val, "--val")
        tasks.check(o, sources, vals)
        model = work.world_model()
        size = o.size or model.settings.data.image_size
        splits = [labelled_splits(source, vals.get(name, ""), size=size) for name, source in sources.items()]
        counts, held = [len(one.train) for one in splits], sum(len(one.val) for one in splits)
        several, each = len(splits), o.schedule.batch_size // len(splits)
        rows = [_trial_rows(count, o.schedule) for count in counts]
        steps = steps_of(counts, o.schedule.epochs, each) + _trials(o) * steps_of(rows, o.schedule.search, each)
        classifier = images.build(model, o, splits[0].classes, size)
        views = o.views * sum(counts) + held if o.reuses_tokens else 0
        once = -1 if views else 0  # the twins learn from the same tokens
        trainings = [
            Training(f"{several} tasks", classifier, o, steps, each * several, 1, views),
            Training("each task alone", classifier, o, steps // several, each * several, several, once),
            Training("each task alone, equal updates", classifier, o, steps, each, several, once),
        ]
        return _summary(work, trainings, sum(counts), held, size)


def segment(o: Segment) -> dict[str, Any]:
    """What `iwm segment` would do and cost. Raises UserError as it does."""
    with ritual.evaluation("segment", o) as work:
        model = work.world_model()
        splits = pixels.open_annotated(o, model.settings.data.image_size)
        window = o.size or pixels.window_of(splits, model.settings.data.image_size)
        segmenter = pixels.build(model, o, splits.classes, window)
        if o.start:
            require_usable(o.start, o, load_segmenter, lambda: segmenter)
        count, held = len(splits.train), len(splits.val)
        views = 0 if o.moves_encoder else o.views * count
        training = _with_control(f"segment {o.train}", segmenter, o, count, views)
        return _summary(work, [training], count, held, window)


def _with_control(what: str, model: Headed, o: Finetune | Segment, count: int, views: int) -> Training:
    """The training, its control, and before either of them its predictor's where all is trained end to end."""
    both, ends = o.train == "both", 1 + o.baselines
    training = _training(what, model, o, count, ends + both * (o.baselines + (not o.start)), views)
    trials = _trials(o) * _steps(o.schedule, _trial_rows(count, o.schedule), o.schedule.search)
    return replace(training, begun=both * ends * trials)


def _trial_rows(count: int, schedule: Schedule) -> int:
    """Images of a trial: nine tenths, or as many as were asked for."""
    rest = count - max(1, count // 10)
    return min(rest, schedule.search_images or rest)


def _trials(settings: Tuning) -> int:
    """Trainings that a grid of learning rates is chosen by; one choice is not tried."""
    choices = len(grid_of(settings))
    return choices if choices > 1 else 0


def _training(
    what: str, model: Headed, o: Tuning, count: int, copies: int, views: int, kept: bool | None = None
) -> Training:
    """One training on so many images with the trials before it; `kept` says whether tokens are, where `views` does
    not."""
    schedule = o.schedule
    total = _steps(schedule, count, schedule.epochs)
    total += _trials(o) * _steps(schedule, _trial_rows(count, schedule), schedule.search)
    encoded = -1 if kept and not views else views
    return Training(what, model, o, total, min(schedule.batch_size, count), copies, encoded)


def _steps(schedule: Schedule, rows: int, epochs: int) -> int:
    return epochs * max(1, rows // min(schedule.batch_size, rows))


def _summary(work: Evaluation, trainings: Sequence[Training], count: int, held: int, size: int) -> dict[str, Any]:
    """Steps, seconds and files of some trainings."""
    seconds = sum(_seconds(work, training, size) for training in trainings)
    return {
        "images": count,
        "images_measured_on": held,
        "trainings": [training.what for training in trainings],
        "learning_rates_tried": sum(max(1, len(grid_of(one.settings))) * one.copies for one in trainings),
        "steps": sum(training.steps * training.copies + training.begun for training in trainings),
        "images_per_step": max((one.batch for one in trainings), default=0),
        "trainable_parameters": [trainable_of(training.model) for training in trainings],
        "device": f"{work.session.device.type} in {work.session.precision}",
        "seconds": seconds,
        "time": pace.in_words(seconds),
        "memory_gb": round(pace.peak(work.session.device) / 1e9, 2),
        "measured": "a few steps of random images; decoding, measuring and tokens in memory come on top",
        "writes": [f"{work.folder.eval}/{work.verb}-....json", "a picture and weights beside it"],
    }


def _seconds(work: Evaluation, training: Training, size: int) -> float:
    """Seconds of a training and its controls."""
    session, most = work.session, min(MOST, training.batch)
    model = training.model.to(session.device).train()
    choose_attention(model, session.device, session.precision)

    def pictures(number: int) -> torch.Tensor:
        return torch.randint(0, 256, (number, 3, size, size), dtype=torch.uint8, device=session.device)

    def encode(number: int) -> torch.Tensor:
        with torch.no_grad(), session.autocast():
            if isinstance(model, Segmenter):
                return model.encode(pictures(number))
            return model.encoder.intermediates(pictures(number), [model.layer])[0]

    def step(number: int) -> None:
        with session.autocast():
            if training.views:
                tokens = tokens_of_two[:1].expand(number, *tokens_of_two.shape[1:]).float()
                places = ((size, size),) if isinstance(model, Segmenter) else ()
                logits = cast(Any, model).classify(tokens, *places)
            else:
                logits = model(pictures(number))
        logits.float().square().mean().backward()

    tokens_of_two = encode(2)
    steps = training.steps + training.begun / training.copies
    seconds = pace.measure(step, most, session.device, 2).seconds_of(round(steps * training.batch))
    if training.views > 0:
        encoder = pace.measure(encode, most, session.device, 2).seconds_of(training.views)
        return (seconds + encoder) * training.copies
    return seconds * training.copies
