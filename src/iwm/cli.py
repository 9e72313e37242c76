"""The verbs of the command line. Each prints a table for people and writes JSON for machines.

Bad input is one sentence and exit code 2; Ctrl-C during training saves first and exits with 130.
"""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import tyro
from tyro.conf import Positional, UseAppendAction, arg

from iwm import config
from iwm.errors import Interrupted, UserError
from iwm.protocol import Axes, Protocol

T = TypeVar("T")


def parse(kind: type[T], argv: Sequence[str], verb: str, default: T | None = None) -> T:
    """Options from the command line. Raises UserError: tyro's boxes become one sentence.

    `--help` prints tyro's page and exits.
    """
    if "--help" in argv or "-h" in argv:
        tyro.cli(kind, args=["--help"], default=cast(Any, default), prog=f"iwm {verb}", description=VERBS[verb][1])
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return cast(T, tyro.cli(kind, args=list(argv), default=cast(Any, default), prog=f"iwm {verb}"))
    except SystemExit:
        raise UserError(_sentence(complaint.getvalue(), verb)) from None


def _part(options: Any, kind: Callable[..., T], **others: Any) -> T:
    """Such settings, filled from the options of the same names."""
    there = {key.name: getattr(options, key.name) for key in fields(cast(Any, kind)) if hasattr(options, key.name)}
    return kind(**{**there, **others})


def _sentence(box: str, verb: str) -> str:
    """tyro's boxed complaint as one sentence with the nearest known option."""
    paragraphs = [""]
    for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()[1:]:  # without colours and the box's title
        words = line.strip(" │\t")
        if re.fullmatch(r"[-─╭╮╰╯ ]{3,}", words):
            paragraphs.append("")
        else:
            paragraphs[-1] = f"{paragraphs[-1]} {words}".strip()
    said = next((part for part in paragraphs if part), "The options could not be read")
    near = re.search(r"Perhaps you meant:\s*(--[\w.-]+)", " ".join(paragraphs))
    mend = f"did you mean {near.group(1)}?" if near else f"see iwm {verb} --help."
    return f"{said.rstrip('. ')}; {mend}"


# ---- the verbs -----------------------------------------------------------------------------------------------------


def pretrain(argv: Sequence[str]) -> None:
    """Train a world model: iwm pretrain RECIPE --data.source S --out RUN [any setting], or --config RUN/config.yaml."""
    from iwm import recipes, train

    argv, path = _taken(argv, "--config")
    for flag, value in pairwise(argv):
        group, _, name = flag.removeprefix("--").partition(".")
        setting = getattr(getattr(config.Config(), group, None), name.replace("-", "_"), None)
        if isinstance(setting, bool) and value in ("True", "False", "true", "false"):
            raise UserError(f"{flag} takes no value: write {flag} for yes, --{group}.no-{name} for no.")
    if path:
        default = config.load(Path(path).expanduser())
    else:
        name = parse(config.Config, argv, "pretrain", config.Config(recipe="")).recipe
        if not name:
            raise UserError("Which recipe? Give `iwm pretrain RECIPE ...` (see `iwm recipes`) or --config FILE.")
        default = recipes.get(name)
    settings = parse(config.Config, argv, "pretrain", default)
    _load_typed_set(settings, argv)
    if path and settings.recipe != default.recipe:
        raise UserError(f"--config already gives all settings; leave out the recipe '{settings.recipe}'.")
    if not settings.data.source:
        raise UserError(
            f"Recipe '{settings.recipe}' brings no pictures; give --data.source FOLDER (or .zip, .npz, sample)."
        )
    train.pretrain(settings)


def _load_typed_set(settings: config.Config, argv: Sequence[str]) -> None:
    """Run the file that `--actions.set PATH.py:NAME` names: typed here and now; one that a file names is not run."""
    if ":" in settings.actions.set and any(word.split("=")[0] == "--actions.set" for word in argv):
        from iwm import actions

        actions.import_set(settings.actions.set)


def _taken(argv: Sequence[str], option: str) -> tuple[list[str], str]:
    """The arguments without `option VALUE` (or option=VALUE), and the value."""
    rest, value, waiting = [], "", False
    for word in argv:
        if waiting:
            value, waiting = word, False
        elif word == option:
            waiting = True
        elif word.startswith(option + "="):
            value = word.split("=", 1)[1]
        else:
            rest.append(word)
    if waiting:
        raise UserError(f"{option} needs a value.")
    return rest, value


@dataclass(frozen=True)
class Sweep(Protocol, Axes):  # fields come from the last base first
    settings: Annotated[config.Config, arg(name="")] = field(default_factory=lambda: config.Config(recipe=""))
    recipes: str = ""
    """Further recipes, one run each as they are, with the same other settings."""
    jobs: int = 1
    """Runs at once, each as a process of its own with its share of the cores."""
    list: bool = False
    """Print one command for each run, for a cluster; the same command without --list collects."""
    cell: str = ""
    """Do this run only."""


def sweep(argv: Sequence[str]) -> None:
    """Train conditioning x difficulty x predictor, measure all alike: iwm sweep RECIPE --data.source S --out DIR."""
    from iwm import recipes
    from iwm import sweep as many

    name = parse(Sweep, argv, "sweep").settings.recipe
    if not name:
        raise UserError("Which recipe? Give `iwm sweep RECIPE --data.source S --out DIR` (see `iwm recipes`).")
    o = parse(Sweep, argv, "sweep", Sweep(settings=recipes.get(name)))
    _load_typed_set(o.settings, argv)
    others = [word for word in dict.fromkeys(map(str.strip, o.recipes.split(","))) if word not in ("", name)]
    with_settings = (parse(Sweep, argv, "sweep", Sweep(settings=recipes.get(other))).settings for other in others)
    many.sweep(
        o.settings,
        _part(o, Axes),
        _part(o, Protocol),
        others=[replace(settings, recipe=other) for settings, other in zip(with_settings, others, strict=True)],
        cell=o.cell,
        listed=o.list,
        jobs=o.jobs,
        argv=argv,
    )


@dataclass(frozen=True)
class World:
    run: Positional[str]
    """A run folder, exported weights, or hf-hub:user/name."""
    data: str
    """Source of the held-out images."""
    images: int = 64
    bank: int = 256
    seed: int = 0
    frozen_random_twin: bool = False
    """Also train and rank a twin with a frozen random encoder: same predictor, same budget."""
    val: str = ""
    out: str = ""
    """Where results go when RUN is not a local run folder."""
    speed: config.Speed = field(default_factory=config.Speed)


def world(argv: Sequence[str]) -> None:
    """How good is the world model: MRR, hits@k, controls, strips."""
    from iwm.evaluation import quality

    options = parse(World, argv, "world")
    quality.world(
        options.run,
        options.data,
        val=options.val,
        images=options.images,
        bank=options.bank,
        seed=options.seed,
        frozen_random_twin=options.frozen_random_twin,
        out=options.out,
        speed=options.speed,
    )


@dataclass(frozen=True)
class Probe:
    run: Positional[str]
    """A run folder, exported weights, hf-hub:user/name, or timm:NAME[,weights=PATH]."""
    data: str
    """A labelled source."""
    kind: Literal["knn", "linear", "attentive"] = "linear"
    val: str = ""
    """Source of the images that are reported on; by default the source's own."""
    seed: int = 0
    k: int = 20
    """Neighbours of kNN."""
    pooling: Literal["mean", "max"] = "mean"
    """How kNN and linear make one vector of the patch tokens."""
    standardise: bool = True
    """Linear: on features of zero mean and unit deviation (a BatchNorm without affine)."""
    student: bool = False
    """Probe the student instead of the EMA encoder."""
    layer: int = 0
    """Block whose tokens are taken, from 1; 0: the last one, after the final norm."""
    size: int = 0
    """Side of the pictures; 0: the run's."""
    baselines: bool = True
    """Also a random encoder and raw pixels."""
    encoder: str = ""
    """Another encoder beside this one, through the same probe: timm:NAME[,weights=PATH] or a RUN."""
    out: str = ""
    """Where results go when RUN is not a local run folder."""
    speed: config.Speed = field(default_factory=config.Speed)


def probe(argv: Sequence[str]) -> None:
    """What does the encoder know: kNN, linear or attentive probe, beside a random encoder and raw pixels."""
    from iwm.evaluation import probes

    o = parse(Probe, argv, "probe")
    probes.probe(
        o.run,
        o.data,
        o.kind,
        val=o.val,
        seed=o.seed,
        settings=probes.ProbeSettings(k=o.k, pooling=o.pooling, standardise=o.standardise),
        student=o.student,
        layer=o.layer,
        size=o.size,
        baselines=o.baselines,
        beside=o.encoder,
        speed=o.speed,
        out=o.out,
    )


@dataclass(frozen=True)
class Source:
    """Which run learns what from which images."""

    run: Positional[str]
    """A run folder, exported weights, or hf-hub:user/name."""
    data: str
    """A labelled source."""
    val: str = ""
    """Source of the images that are reported on; by default the source's own."""


@dataclass(frozen=True)
class Learning:
    """What `iwm finetune`, `efficiency`, `multitask` and `segment` have in common."""

    seed: int = 0
    epochs: int = 20
    batch_size: int = 128
    lrs: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Learning rates of the head; the best on a tenth of train is taken."""
    ratios: tuple[float, ...] = (0.1, 1.0)
    """Learning rate of predictor or encoder as a multiple of the head's; tried with every one."""
    views: int = 4
    """Pictures an image is trained on: itself and views - 1 random crops, drawn once; 0: a new one every epoch."""
    student: bool = False
    """Learn on the student instead of the EMA encoder."""
    size: int = 0
    """Side of the pictures; 0: the run's."""
    out: str = ""
    """Where results go when RUN is not a local run folder."""
    speed: config.Speed = field(default_factory=config.Speed)

    def settings(self, kind: Callable[..., T]) -> T:
        """Such settings (`iwm.evaluation.tuning.Tuning`), filled from the options of the same names."""
        from iwm.evaluation.fitting import Schedule

        return _part(self, kind, schedule=_part(self, Schedule))


@dataclass(frozen=True)
class Tuning(Learning, Source):
    """What `iwm finetune` and `iwm efficiency` have in common."""

    augment: Literal["crops", "timm"] = "crops"
    """Random crops, or those with timm's RandAugment (m9 mstd0.5 inc1) and random erasing (0.25)."""
    mixup: float = 0.0
    """Alpha of mixup; 0: none."""
    cutmix: float = 0.0
    """Alpha of cutmix; 0: none."""
    smoothing: float = 0.0
    """Label smoothing."""
    drop_path: float = 0.0
    """Stochastic depth of the parts that learn."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is then used; 0: none."""
    queries: Literal["all", "one"] = "all"
    """What the predictor is asked for: all positions, or the one in the middle."""
    action: Literal["null", "random"] = "null"
    """The action the predictor is told in training."""


@dataclass(frozen=True)
class Finetune(Tuning):
    train: str = "predictor"
    """predictor, head, encoder, both, or last-K (the last K encoder blocks)."""
    predictor: Literal["pretrained", "random"] = "pretrained"
    """Where the predictor starts."""
    depth: int = 0
    """Blocks of the predictor that are kept, from the first; 0: all."""
    start: str = ""
    """train both: folder of a finished predictor finetuning; made first where not given."""
    baselines: bool = True
    """Also the same training with nothing pretrained, and raw pixels."""


def finetune(argv: Sequence[str]) -> None:
    """Solve a task with the predictor on the frozen encoder, or with the encoder itself."""
    from iwm.evaluation import finetune as tuning

    o = parse(Finetune, argv, "finetune")
    tuning.finetune(
        o.run,
        o.data,
        o.train,
        o.predictor,
        val=o.val,
        seed=o.seed,
        settings=o.settings(tuning.FinetuneSettings),
        size=o.size,
        start=o.start,
        baselines=o.baselines,
        speed=o.speed,
        out=o.out,
    )


@dataclass(frozen=True)
class Efficiency(Tuning):
    depths: tuple[int, ...] = ()
    """Numbers of predictor blocks; by default one, half and all of them."""
    blocks: tuple[int, ...] = ()
    """Numbers of last encoder blocks; by default 1, 2 and 4."""


def efficiency(argv: Sequence[str]) -> None:
    """What does each finetuned parameter bring: top-1 against their number (paper figure 3)."""
    from iwm.evaluation import efficiency as figure
    from iwm.evaluation import finetune as tuning

    o = parse(Efficiency, argv, "efficiency")
    figure.efficiency(
        o.run,
        o.data,
        val=o.val,
        seed=o.seed,
        settings=o.settings(tuning.FinetuneSettings),
        depths=o.depths,
        blocks=o.blocks,
        size=o.size,
        speed=o.speed,
        out=o.out,
    )


@dataclass(frozen=True, kw_only=True)
class Multitask(Learning):
    run: Positional[str]
    """A run folder, exported weights, or hf-hub:user/name."""
    task: UseAppendAction[tuple[str, ...]] = ()
    """NAME=S, a labelled source under a name of yours; once for each of 2 to 8 tasks."""
    val: UseAppendAction[tuple[str, ...]] = ()
    """NAME=S2, source of the images a task is reported on; by default the source's own."""
    predictor: Literal["pretrained", "random"] = "pretrained"
    """Where the predictor starts."""
    epochs: int = 20
    """Passes over all tasks' images together; the batch is split evenly, so small tasks are seen more often."""
    batch_size: int = 128
    """Images of a step, of all tasks together."""


def multitask(argv: Sequence[str]) -> None:
    """Solve several tasks with one predictor, beside a predictor of its own for each."""
    from iwm.evaluation import finetune as tuning
    from iwm.evaluation import multitask as many

    o = parse(Multitask, argv, "multitask")
    many.multitask(
        o.run,
        many.parse_tasks(o.task),
        vals=many.parse_tasks(o.val, "--val"),
        predictor=o.predictor,
        seed=o.seed,
        settings=o.settings(tuning.FinetuneSettings),
        size=o.size,
        speed=o.speed,
        out=o.out,
    )


@dataclass(frozen=True)
class Segment(Learning, Source):
    data: str
    """images/ and annotations/ (PNG masks) in every split, an .npz with images and masks, or sample-objects."""
    train: Literal["head", "predictor", "encoder", "both"] = "head"
    """What learns; both is encoder and predictor end to end."""
    head: Literal["linear", "upernet"] = "upernet"
    predictor: Literal["pretrained", "random"] = "pretrained"
    """Where the predictor starts."""
    ignore_index: int = 255
    """Mask value of pixels that are neither learned nor counted; -1 for none."""
    batch_size: int = 16
    views: int = 4
    """Crops an image is trained on while the encoder is frozen, drawn once; 0: fresh ones every epoch."""
    scales: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest scale of the crops."""
    start: str = ""
    """train both: folder of a finished predictor segmentation; made first where not given."""
    baselines: bool = True
    """Also the same training with nothing pretrained."""
    size: int = 0
    """Side of crops and windows; 0: the images' shorter side, at most 512 and at most 4 times the run's."""


def segment(argv: Sequence[str]) -> None:
    """Say the class of every pixel, from the encoder's blocks or the predictor's: mIoU, overlay pictures."""
    from iwm.evaluation import segmentation

    o = parse(Segment, argv, "segment")
    segmentation.segment(
        o.run,
        o.data,
        o.train,
        o.head,
        o.predictor,
        val=o.val,
        ignore_index=o.ignore_index,
        seed=o.seed,
        settings=o.settings(segmentation.SegmentSettings),
        size=o.size,
        start=o.start,
        baselines=o.baselines,
        speed=o.speed,
        out=o.out,
    )


@dataclass(frozen=True)
class Predict:
    run: Positional[str]
    """The folder of a finetuned classifier, or a run that has exactly one."""
    images: Positional[str]
    """A source of images, or one image file."""
    out: str = "predictions.csv"
    task: str = ""
    """Which of the tasks, for weights of `iwm multitask`."""
    speed: config.Speed = field(default_factory=config.Speed)


def predict(argv: Sequence[str]) -> None:
    """Say what is on images with a finetuned classifier; writes a CSV."""
    from iwm.evaluation import predict as saying

    o = parse(Predict, argv, "predict")
    saying.predict(o.run, o.images, out=o.out, task=o.task, speed=o.speed)


def imagine(argv: Sequence[str]) -> None:
    """What would an image look like after a change: the nearest of a bank to the prediction, and the truth's rank."""
    from iwm import imagine as asking

    asking.imagine(parse(asking.Imagine, argv, "imagine"))


def infer(argv: Sequence[str]) -> None:
    """Which change turned one image into another, or over a source: how well is that found, beside baselines."""
    from iwm.evaluation import infer as finding

    finding.infer(parse(finding.Infer, argv, "infer"))


def look(argv: Sequence[str]) -> None:
    """Look into the world model: maps of its tokens, two changes in a row, predictions averaged over actions."""
    from iwm.evaluation import look as looking

    looking.look(parse(looking.Look, argv, "look"))


def undo(argv: Sequence[str]) -> None:
    """Undo corruptions in latent space: what a probe of clean images reads before and after."""
    from iwm.evaluation import undo as undoing

    undoing.undo(parse(undoing.Undo, argv, "undo"))


@dataclass(frozen=True)
class Runs:
    runs: Positional[tuple[str, ...]]
    """Run folders."""


def compare(argv: Sequence[str]) -> None:
    """One table of the results of several runs."""
    from iwm import compare as table

    table.compare(parse(Runs, argv, "compare").runs)


@dataclass(frozen=True)
class OneRun:
    run: Positional[str]
    """A run folder."""


def doctor(argv: Sequence[str]) -> int:
    """Is the run healthy? A verdict in words; exit code 0 healthy, 1 ill."""
    from iwm import health
    from iwm.log import console, read_metrics

    folder = Path(parse(OneRun, argv, "doctor").run).expanduser()
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        raise UserError(f"{folder} is not a run: it has no metrics.jsonl; give the --out folder of an `iwm pretrain`.")
    lines = read_metrics(metrics)
    if not lines:
        raise UserError(f"{metrics} is empty; let the run reach its first log line.")
    verdict = health.judge(lines[-1])
    console.print(f"[{'green' if verdict.healthy else 'red'}]{verdict.word}[/] at step {lines[-1]['step']}")
    for finding in verdict.findings:
        console.print(f"  {finding}")
    return 0 if verdict.healthy else 1


def report(argv: Sequence[str]) -> None:
    """Write RUN/report.html: curves, gallery, strips, tables, a verdict."""
    from iwm import report as page
    from iwm.log import console

    written = page.write(Path(parse(OneRun, argv, "report").run).expanduser())
    console.print(f"Written to {written}", soft_wrap=True, markup=False)


@dataclass(frozen=True)
class Nothing:
    pass


def recipes(argv: Sequence[str]) -> None:
    """List the recipes with size and cost."""
    from iwm import recipes as cookbook

    parse(Nothing, argv, "recipes")
    cookbook.show()


@dataclass(frozen=True)
class Demo:
    out: str = ""
    """Folder of the run; by default runs/demo, or runs/demo-quick."""
    quick: bool = False
    """A minute's run that shows every step; too short to learn much."""
    seed: int = 0


def demo(argv: Sequence[str]) -> None:
    """Pretrain on the embedded images, evaluate, finetune the predictor, write report.html."""
    from iwm import demo as show

    options = parse(Demo, argv, "demo")
    show.run(
        Path(options.out or ("runs/demo-quick" if options.quick else "runs/demo")).expanduser(),
        quick=options.quick,
        seed=options.seed,
    )


VERBS: dict[str, tuple[Callable[[Sequence[str]], Any], str]] = {
    verb.__name__: (verb, (verb.__doc__ or "").strip())
    for verb in (
        demo,
        recipes,
        pretrain,
        sweep,
        world,
        probe,
        finetune,
        efficiency,
        multitask,
        segment,
        predict,
        imagine,
        infer,
        look,
        undo,
        compare,
        doctor,
        report,
    )
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `iwm` command; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(argv)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `iwm sweep --help | head -3`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor is the rest flushed to nobody at exit
        return 141


def _load_own_code(argv: list[str]) -> list[str]:
    """The arguments without any `--actions PATH.py:NAME`, whose transformations are now known."""
    while any(word.split("=")[0] == "--actions" for word in argv):
        from iwm import actions

        at = max(place for place, word in enumerate(argv) if word.split("=")[0] == "--actions")
        last, text = _taken(argv[at:], "--actions")
        actions.import_set(text)
        argv = argv[:at] + last
    return argv


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: iwm VERB ...\n")
        for name, (_, text) in VERBS.items():
            print(f"  {name:<11}{text.splitlines()[0]}")
        print("\n`iwm VERB --help` tells a verb's options. Any verb takes --actions PATH.py:NAME: transformations of")
        print("your own that weights were trained with (docs/actions.md).")
        return 0 if argv else 2
    if argv[0] == "--version":
        from importlib.metadata import version

        print(f"iwm {version('iwm')}")
        return 0
    if argv[0] not in VERBS:
        raise UserError(f"There is no verb '{argv[0]}': {config.did_you_mean(argv[0], VERBS)}")
    try:
        return VERBS[argv[0]][0](_load_own_code(argv[1:])) or 0
    except Interrupted as saved:
        print(saved, file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(
            f"{error.filename or 'A file'} cannot be used ({error.strerror or error}); check path and space."
        ) from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
            raise UserError(
                "Out of memory: lower optim.batch_size, or keep it and raise optim.accumulate, so that each part is "
                "smaller."
            ) from error
        raise


if __name__ == "__main__":
    sys.exit(main())
