"""The verbs of the command line. Each prints a table for people and writes JSON for machines.

Bad input is one sentence and exit code 2; Ctrl-C during training saves first and exits with 130.
"""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, cast

import tyro

from iwm import config
from iwm.cli import options
from iwm.runtime.errors import Interrupted, UserError
from iwm.sweeps.protocol import Axes, Protocol

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
    from iwm import recipe_book
    from iwm.training import loop

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
        default = recipe_book.get(name)
    settings = parse(config.Config, argv, "pretrain", default)
    _load_typed_set(settings, argv)
    if path and settings.recipe != default.recipe:
        raise UserError(f"--config already gives all settings; leave out the recipe '{settings.recipe}'.")
    if not settings.data.source:
        raise UserError(
            f"Recipe '{settings.recipe}' brings no pictures; give --data.source FOLDER (or .zip, .npz, sample)."
        )
    loop.pretrain(settings)


def _load_typed_set(settings: config.Config, argv: Sequence[str]) -> None:
    """Run the file that `--actions.set PATH.py:NAME` names: typed here and now; one that a file names is not run."""
    if ":" in settings.actions.set and any(word.split("=")[0] == "--actions.set" for word in argv):
        from iwm.actions import action_sets

        action_sets.import_set(settings.actions.set)


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


def sweep(argv: Sequence[str]) -> None:
    """Train conditioning x difficulty x predictor, measure all alike: iwm sweep RECIPE --data.source S --out DIR."""
    from iwm import recipe_book
    from iwm.sweeps import sweep as sweeping

    name = parse(options.Sweep, argv, "sweep").settings.recipe
    if not name:
        raise UserError("Which recipe? Give `iwm sweep RECIPE --data.source S --out DIR` (see `iwm recipes`).")
    o = parse(options.Sweep, argv, "sweep", options.Sweep(settings=recipe_book.get(name)))
    _load_typed_set(o.settings, argv)
    others = [word for word in dict.fromkeys(map(str.strip, o.recipes.split(","))) if word not in ("", name)]
    with_settings = (
        parse(options.Sweep, argv, "sweep", options.Sweep(settings=recipe_book.get(other))).settings for other in others
    )
    sweeping.sweep(
        o.settings,
        options.part(o, Axes),
        options.part(o, Protocol),
        others=[replace(settings, recipe=other) for settings, other in zip(with_settings, others, strict=True)],
        cell=o.cell,
        listed=o.list,
        jobs=o.jobs,
        argv=argv,
    )


def world(argv: Sequence[str]) -> None:
    """How good is the world model: MRR, hits@k, controls, strips."""
    from iwm.evaluation.world import mrr

    o = parse(options.World, argv, "world")
    mrr.world(
        o.run,
        o.data,
        val=o.val,
        images=o.images,
        bank=o.bank,
        seed=o.seed,
        frozen_random_twin=o.frozen_random_twin,
        out=o.out,
        speed=o.speed,
    )


def probe(argv: Sequence[str]) -> None:
    """What does the encoder know: kNN, linear or attentive probe, beside a random encoder and raw pixels."""
    from iwm.evaluation.tasks import probes

    o = parse(options.Probe, argv, "probe")
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


def finetune(argv: Sequence[str]) -> None:
    """Solve a task with the predictor on the frozen encoder, or with the encoder itself."""
    from iwm.evaluation.tasks import finetune as finetune_
    from iwm.evaluation.tasks.finetune import FinetuneSettings

    o = parse(options.Finetune, argv, "finetune")
    finetune_.finetune(
        o.run,
        o.data,
        o.train,
        o.predictor,
        val=o.val,
        seed=o.seed,
        settings=o.settings(FinetuneSettings),
        size=o.size,
        start=o.start,
        baselines=o.baselines,
        speed=o.speed,
        out=o.out,
    )


def efficiency(argv: Sequence[str]) -> None:
    """What does each finetuned parameter bring: top-1 against their number (paper figure 3)."""
    from iwm.evaluation.tasks import efficiency as efficiency_
    from iwm.evaluation.tasks.finetune import FinetuneSettings

    o = parse(options.Efficiency, argv, "efficiency")
    efficiency_.efficiency(
        o.run,
        o.data,
        val=o.val,
        seed=o.seed,
        settings=o.settings(FinetuneSettings),
        depths=o.depths,
        blocks=o.blocks,
        size=o.size,
        speed=o.speed,
        out=o.out,
    )


def multitask(argv: Sequence[str]) -> None:
    """Solve several tasks with one predictor, beside a predictor of its own for each."""
    from iwm.evaluation.tasks import multitask as multitask_
    from iwm.evaluation.tasks.finetune import FinetuneSettings
    from iwm.evaluation.tasks.multitask import parse_tasks

    o = parse(options.Multitask, argv, "multitask")
    multitask_.multitask(
        o.run,
        parse_tasks(o.task),
        vals=parse_tasks(o.val, "--val"),
        predictor=o.predictor,
        seed=o.seed,
        settings=o.settings(FinetuneSettings),
        size=o.size,
        speed=o.speed,
        out=o.out,
    )


def segment(argv: Sequence[str]) -> None:
    """Say the class of every pixel, from the encoder's blocks or the predictor's: mIoU, overlay pictures."""
    from iwm.evaluation.tasks import segmentation

    o = parse(options.Segment, argv, "segment")
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


def predict(argv: Sequence[str]) -> None:
    """Say what is on images with a finetuned classifier; writes a CSV."""
    from iwm.evaluation.tasks import predict as predict_

    o = parse(options.Predict, argv, "predict")
    predict_.predict(o.run, o.images, out=o.out, task=o.task, speed=o.speed)


def imagine(argv: Sequence[str]) -> None:
    """What would an image look like after a change: the nearest of a bank to the prediction, and the truth's rank."""
    from iwm.evaluation.world import imagine as imagine_
    from iwm.evaluation.world.imagine import Imagine

    imagine_.imagine(parse(Imagine, argv, "imagine"))


def infer(argv: Sequence[str]) -> None:
    """Which change turned one image into another, or over a source: how well is that found, beside baselines."""
    from iwm.evaluation.world import infer as infer_
    from iwm.evaluation.world.infer import Infer

    infer_.infer(parse(Infer, argv, "infer"))


def look(argv: Sequence[str]) -> None:
    """Look into the world model: maps of its tokens, two changes in a row, predictions averaged over actions."""
    from iwm.evaluation.world import look as look_
    from iwm.evaluation.world.look import Look

    look_.look(parse(Look, argv, "look"))


def undo(argv: Sequence[str]) -> None:
    """Undo corruptions in latent space: what a probe of clean images reads before and after."""
    from iwm.evaluation.world import undo as undo_
    from iwm.evaluation.world.undo import Undo

    undo_.undo(parse(Undo, argv, "undo"))


def compare(argv: Sequence[str]) -> None:
    """One table of the results of several runs."""
    from iwm.reports import compare as compare_

    compare_.compare(parse(options.Runs, argv, "compare").runs)


def doctor(argv: Sequence[str]) -> int:
    """Is the run healthy? A verdict in words; exit code 0 healthy, 1 ill."""
    from iwm.run_folder import read_metrics
    from iwm.runtime.console import console
    from iwm.training import health

    folder = Path(parse(options.OneRun, argv, "doctor").run).expanduser()
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
    from iwm.reports import page
    from iwm.runtime.console import console

    written = page.write(Path(parse(options.OneRun, argv, "report").run).expanduser())
    console.print(f"Written to {written}", soft_wrap=True, markup=False)


def recipes(argv: Sequence[str]) -> None:
    """List the recipes with size and cost."""
    from iwm import recipe_book

    parse(options.Nothing, argv, "recipes")
    recipe_book.show()


def demo(argv: Sequence[str]) -> None:
    """Pretrain on the embedded images, evaluate, finetune the predictor, write report.html."""
    from iwm.cli.demo import run

    o = parse(options.Demo, argv, "demo")
    run(
        Path(o.out or ("runs/demo-quick" if o.quick else "runs/demo")).expanduser(),
        quick=o.quick,
        seed=o.seed,
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
    except Interrupted as saved:
        print(saved, file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `iwm sweep --help | head -3`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor is the rest flushed to nobody at exit
        return 141
    except OSError as error:
        name, reason = error.filename or "A file", error.strerror or error
        print(f"{name} cannot be used ({reason}); check path and space.", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("out of memory|can't allocate memory", str(error)):
            raise
        parts = "keep it and raise optim.accumulate, so that each part is smaller"
        print(f"Out of memory: lower optim.batch_size, or {parts}.", file=sys.stderr)
        return 2


def _load_own_code(argv: list[str]) -> list[str]:
    """The arguments without any `--actions PATH.py:NAME`, whose transformations are now known."""
    while any(word.split("=")[0] == "--actions" for word in argv):
        from iwm.actions import action_sets

        at = max(place for place, word in enumerate(argv) if word.split("=")[0] == "--actions")
        last, text = _taken(argv[at:], "--actions")
        action_sets.import_set(text)
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
    return VERBS[argv[0]][0](_load_own_code(argv[1:])) or 0
