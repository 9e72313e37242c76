"""A sweep from the command line: all its files, nothing twice, nothing mixed up."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import pictures_file, tiny, with_run

from iwm import cli, config, verbs
from iwm.cli import sentences
from iwm.evaluation.tasks import finetune
from iwm.run_folder import RunFolder
from iwm.runtime import files
from iwm.runtime.errors import Interrupted, Preempted, UserError
from iwm.sweeps import measurement, sweep
from iwm.sweeps.study import Study
from iwm.sweeps.sweep import devices, run_apart, stoppable
from iwm.training import loop, step
from iwm.verbs.sweep import Protocol, Sweep

QUICK = {"world-images": 2, "bank": 8, "attentive-epochs": 1, "finetune-epochs": 1, "finetune-views": 1}
QUICK |= {"finetune-lrs": 1e-3, "finetune-ratios": 1}
TWO = {"conditionings": "none,adaln", "levels": "destructive", "predictors": "2x32"}
SHORT = {"attentive-epochs": 0, "finetune-epochs": 0}


def command(source: str, out: Path, recipe: str = "demo", /, **options: object) -> list[str]:
    """The words of a micro sweep of two cells."""
    given = {"data.source": source, "out": out} | TWO | QUICK
    given |= {name.replace("_", "-"): value for name, value in options.items()}
    return ["sweep", recipe, *(f"--{name}={value}" for name, value in given.items())]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr("iwm.recipe_book.get", lambda name: replace(tiny(), recipe=name))


@pytest.fixture
def source(tmp_path: Path) -> str:
    return str(pictures_file(tmp_path / "pictures.npz", count=80, labelled=True))


def counted(monkeypatch, module, name: str) -> list[str]:
    """Notes every call of a function by its first argument."""
    real, calls = getattr(module, name), []

    def noting(first, *rest, **named):
        calls.append(first.run.out if isinstance(first, config.Config) else first)
        return real(first, *rest, **named)

    monkeypatch.setattr(module, name, noting)
    return calls


def test_a_sweep_ends_in_all_its_files_and_does_nothing_twice(tmp_path, source, monkeypatch, capsys):
    out = tmp_path / "out"
    trained = counted(monkeypatch, loop, "pretrain")
    argv = command(source, out)
    assert cli.main(argv) == 0
    assert [Path(path).name for path in trained] == ["adaln-destructive-2x32", "none-destructive-2x32"]
    content = json.loads((out / "sweep.json").read_text())
    assert {"command", "settings", "seed", "hardware", "date"} <= set(content)
    for run in content["runs"]:
        assert run["state"] == "finished"
        for key in ("mrr", "mrr_own_range", "linear", "attentive", "predictor_finetuning"):
            assert 0 <= run[key] <= 1, key
        world = json.loads(next((out / run["cell"] / "eval").glob("world-*.json")).read_text())
        assert (world["mrr"], world["bank"]) == (run["mrr"], 8)
    assert [run["conditioning"] for run in content["runs"]] == ["adaln", "none"]
    assert content["runs"][0]["random_encoder_top1"] is not None  # the controls, once for all
    assert content["correlations"]["linear"]["r"] is None
    assert content["correlations"]["linear"]["n"] == 2
    assert set(content["tables"]["conditioning"]["mrr"]) == {"none", "adaln"}
    for name in ("figure-4.png", "figure-5.png", "tables.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    page = (out / "sweep.html").read_text()
    assert "n too small" in page
    assert "adaln-destructive-2x32" in page
    assert "n too small" in capsys.readouterr().out

    before = {path: path.stat().st_mtime_ns for path in out.glob("*/eval/*.json")}
    trained.clear()
    assert cli.main(argv) == 0
    assert not trained
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/eval/*.json")} == before

    assert cli.main(command(source, out, levels="destructive,strong")) == 0  # it may grow
    assert [Path(path).name for path in trained] == ["adaln-strong-2x32"]
    grown = {run["cell"]: run for run in json.loads((out / "sweep.json").read_text())["runs"]}
    for cell, has_its_own in (("adaln-strong-2x32", True), ("adaln-destructive-2x32", False)):
        world = json.loads(next((out / cell / "eval").glob("world-*.json")).read_text())
        assert ("mrr_own_range" in world) is has_its_own, "of the level that all are measured on the two are one"
    assert grown["adaln-destructive-2x32"]["mrr"] == content["runs"][0]["mrr"]

    assert "holds a sweep of recipe demo" in refused(capsys, *command(source, out, "cifar10"))
    assert "optim.lr = 0.002, now it is 0.1" in refused(capsys, *argv, "--optim.lr=0.1")
    assert "images = 0, now it is 40" in refused(capsys, *argv, "--images=40")
    run = str(out / "none-destructive-2x32")
    assert "holds a run and no sweep" in refused(capsys, *command(source, Path(run)))


def refused(capsys, *argv: str) -> str:
    capsys.readouterr()
    assert cli.main(list(argv)) == 2
    return capsys.readouterr().err.strip()


def test_an_interrupted_sweep_goes_on_where_it_stopped(tmp_path, source, monkeypatch):
    argv = command(source, tmp_path / "out", **SHORT)
    real, steps = step.Training.step, []

    def stopping(self, batch):
        steps.append(batch.step)
        if len(steps) == 14:  # of 10 a cell: in the middle of the second
            signal.raise_signal(signal.SIGINT)
        return real(self, batch)

    monkeypatch.setattr(step.Training, "step", stopping)
    assert cli.main(argv) == 130
    first, second = json.loads((tmp_path / "out" / "sweep.json").read_text())["runs"]
    assert (first["state"], second["state"]) == ("finished", "partial")
    steps.clear()
    assert cli.main(argv) == 0
    assert steps[:6] == [4, 5, 6, 7, 8, 9]
    assert len(steps) == 6
    states = [run["state"] for run in json.loads((tmp_path / "out" / "sweep.json").read_text())["runs"]]
    assert states == ["finished", "finished"]


def test_a_sweep_tells_paths_as_they_were_typed(tmp_path, source, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = command("pictures.npz", Path("out"), conditionings="adaln", eval_data="./pictures.npz", **SHORT)
    assert cli.main(argv) == 0
    text = (tmp_path / "out" / "sweep.json").read_text()
    settings = json.loads(text)["settings"]
    assert settings["pretraining"]["data.source"] == "pictures.npz"
    assert str(tmp_path) not in text
    assert str(tmp_path) not in (tmp_path / "out" / "sweep.html").read_text()

    trained = counted(monkeypatch, loop, "pretrain")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")  # the same pictures, typed from another folder
    again = command("../pictures.npz", Path("../out"), conditionings="adaln", **SHORT)
    assert cli.main([*again, "--eval-data=../pictures.npz"]) == 0
    shutil.copy("../pictures.npz", "pictures.npz")  # other pictures under the same name
    other = command("pictures.npz", Path("../out"), conditionings="adaln", **SHORT)
    assert cli.main(again) == 0
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 0
    monkeypatch.chdir(tmp_path / "below")
    assert "holds a sweep of 'pictures.npz' at another place" in refused(capsys, *other)
    assert not trained


def test_a_sweep_of_an_older_version_goes_on(tmp_path, source, monkeypatch, capsys):
    """Those told the source by its absolute path, and had no mark."""
    monkeypatch.chdir(tmp_path)
    argv = command("pictures.npz", Path("out"), conditionings="adaln", **SHORT)
    assert cli.main(argv) == 0
    path = tmp_path / "out" / "sweep.json"
    content = json.loads(path.read_text())
    del content["settings"]["source_mark"]
    content["settings"]["pretraining"]["data.source"] = str(tmp_path / "pictures.npz")
    path.write_text(json.dumps(content))
    trained = counted(monkeypatch, loop, "pretrain")
    assert cli.main(argv) == 0
    assert not trained
    path.write_text(json.dumps(content))
    shutil.copy("pictures.npz", "others.npz")
    said = refused(capsys, *command("others.npz", Path("out"), conditionings="adaln", **SHORT))
    assert "pictures.npz', now it is 'others.npz'; give another --out" in said


TINY = shlex.split(
    "--data.image-size=16 --encoder.patch-size=4 --encoder.width=32 --encoder.depth=1 --encoder.heads=2 "
    "--objective.target-layers=1 --optim.batch-size=8 --optim.epochs=300 --speed.workers=0 --log-every=50 "
    "--save-every=100000 --levels=destructive --predictors=1x32 --conditionings=adaln,none --attentive-epochs=0 "
    "--finetune-epochs=0 --no-linear --world-images=2 --bank=8"
)


def test_ctrl_c_in_a_terminal_loses_nothing(tmp_path, source):
    """Real processes; the signal goes to the whole group, as a terminal's does."""
    argv = ["sweep", "demo", f"--data.source={source}", f"--out={tmp_path / 'out'}", *TINY, "--jobs=2"]
    # In the background of a script Ctrl-C is ignored, and children inherit that.
    heeds = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    words = [sys.executable, "-c", f"{heeds}from iwm.cli import main; sys.exit(main())", *argv]
    folders = [tmp_path / "out" / name for name in ("adaln-destructive-1x32", "none-destructive-1x32")]
    with (tmp_path / "said.txt").open("w") as said:
        process = subprocess.Popen(words, stdout=said, stderr=said, start_new_session=True)
        deadline = time.monotonic() + 300
        while not all((cell / "metrics.jsonl").exists() for cell in folders) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        code = process.wait(120)
    told = (tmp_path / "said.txt").read_text()
    assert code == 130, told
    assert "the same command goes on" in told
    assert [run["state"] for run in json.loads((tmp_path / "out/sweep.json").read_text())["runs"]] == ["partial"] * 2
    for cell in folders:
        (saved,) = (cell / "checkpoints").glob("step-*")
        lines = (cell / "metrics.jsonl").read_text().splitlines()
        assert int(saved.name[5:]) // 50 == len(lines), "saved where it was stopped"
    assert not list(tmp_path.glob("out/**/*.part"))


def test_a_stop_between_two_evaluations_repeats_neither(tmp_path, source, monkeypatch):
    argv = command(source, tmp_path / "out", conditionings="adaln", finetune_epochs=0)
    real = measurement.measure

    def stopping(name, *rest):
        if name == "attentive":
            raise KeyboardInterrupt
        return real(name, *rest)

    monkeypatch.setattr(measurement, "measure", stopping)
    assert cli.main(argv) == 130
    monkeypatch.setattr(measurement, "measure", real)
    measured = counted(monkeypatch, measurement, "measure")
    trained = counted(monkeypatch, loop, "pretrain")
    assert cli.main(argv) == 0
    assert measured == ["attentive"]
    assert not trained


def test_a_cell_that_fails_leaves_the_others(tmp_path, source, monkeypatch, capsys):
    real = loop.pretrain

    def diverging(settings):
        if settings.predictor.conditioning == "adaln":
            raise UserError("Training diverged: lower optim.lr.")
        return real(settings)

    monkeypatch.setattr(loop, "pretrain", diverging)
    monkeypatch.setattr(finetune, "finetune", lambda o: (_ for _ in ()).throw(UserError("It has no predictor.")))
    out = tmp_path / "out"
    said = refused(capsys, *command(source, out))
    assert "1 of 2 cells failed, first adaln-destructive-2x32 (Training diverged" in said
    failed, other = json.loads((out / "sweep.json").read_text())["runs"]
    assert (failed["state"], failed["mrr"]) == ("failed", None)
    assert (other["state"], other["predictor_finetuning"]) == ("partial", None)
    assert other["linear"] is not None
    page = (out / "sweep.html").read_text()
    assert "It has no predictor." in page
    assert "Training diverged" in page


def test_the_list_does_the_foldersone_by_one_and_collects(tmp_path, source, capsys):
    out = tmp_path / "out"
    own = tmp_path / "own.py"
    own.write_text(
        "import iwm\n"
        "SET = iwm.Transformation(name='plain', apply=lambda images, value: images, graded=True, both=True, low=0.5,\n"
        "                         high=2.0, neutral=1.0, probability=1.0)\n"
    )
    argv = [*command(source, out, images=32, **SHORT), "--eval-images", "40", "8", "--actions", f"{own}:SET"]
    assert cli.main([*argv, "--list"]) == 0
    listed = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert all(f"{own}:SET" in words for words in listed)
    assert [words[-1] for words in listed] == ["adaln-destructive-2x32", "none-destructive-2x32"]
    assert not out.exists()
    assert cli.main(listed[1][1:]) == 0
    waiting, done = json.loads((out / "sweep.json").read_text())["runs"]
    assert (waiting["state"], done["state"]) == ("waiting", "finished")
    probe = json.loads(next((out / done["cell"] / "eval").glob("probe-linear-*.json")).read_text())
    assert (probe["n_train"], probe["n_val"]) == (40, 8)
    assert config.load(out / done["cell"] / "config.yaml").optim.batch_size == 16
    assert len((out / done["cell"] / "metrics.jsonl").read_text().splitlines()) == 2  # 32 images, 2 epochs of 2 steps


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "Which recipe?"),
        (["demo"], "Where should the sweep go?"),
        (
            ["demo", "--conditionings", "none,adalm"],
            "--conditionings adalm: there is no such thing; did you mean 'adaln'",
        ),
        (["demo", "--levels", "strng"], "did you mean 'strong'"),
        (["demo", "--levels", ","], "--levels names nothing"),
        (["demo", "--predictors", "4by96"], "--predictors 4by96 is no size; write DEPTHxWIDTH, for example 2x32"),
        (["demo", "--predictors", "4x97"], "must be a multiple of 4"),
        (["demo", "--cell", "adaln-destructive-2x33"], "did you mean 'adaln-destructive-2x32'"),
        (["demo", "--jobs", "0"], "--jobs 0"),
        (["demo", "--bank", "1"], "--bank 2 or more"),
        (["demo", "--finetune-lrs", "0"], "--finetune-lrs 0.0: give one number or more"),
        (["demo", "--finetune-ratios", "-1"], "--finetune-ratios -1.0: give one number or more"),
        (["demo", "--finetune-views", "-1"], "--finetune-views -1: give 0 or more"),
        (["demo", "--finetune-epochs=-1"], "--finetune-epochs -1: give 0 or more"),
        (["demo", "--eval-images", "-1", "2"], "--eval-images -1 2: give numbers of 0 or more"),
        (
            ["demo", "--world-images=0", "--no-linear", "--attentive-epochs=0", "--finetune-epochs=0"],
            "Nothing is left to measure",
        ),
        (["demo", "--no-resume"], "A sweep always goes on with what is there; leave out --no-resume"),
        (["demo", "--list", "--cell", "adaln-destructive-2x32"], "give one of them"),
        (["demo", "--optim.batchsize", "3"], "did you mean --optim.batch-size?"),
        (["demo", "--optim.lr=-1"], "optim.lr is -1"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(argv, said, tmp_path, source, capsys):
    where = ["--out", str(tmp_path / "out"), "--data.source", source] if len(argv) > 1 else []
    assert said in refused(capsys, "sweep", *argv, *where)
    assert not (tmp_path / "out").exists()


def test_labels_are_asked_for_before_hours_pass(tmp_path, capsys):
    bare = str(pictures_file(tmp_path / "bare.npz"))
    assert "has no labels" in refused(capsys, *command(bare, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_too_few_images_of_a_class_are_noticed_before_hours_pass(tmp_path, source, monkeypatch, capsys):
    trained = counted(monkeypatch, loop, "pretrain")
    said = refused(capsys, *command(source, tmp_path / "out"), "--eval-images", "1", "8")
    assert "--eval-images 1 8 are too few, give more: " in said
    assert not trained


def test_jobs_are_processes_of_their_own(tmp_path, source, monkeypatch):
    """The processes are played by the same command in this one: what counts is who is started, and what is told."""
    started = []

    class Process(subprocess.Popen):
        def __init__(self, words, env, **rest):
            self.returncode = None
            started.append((words[3:], env["OMP_NUM_THREADS"]))

        def poll(self):
            with monkeypatch.context() as patch:
                patch.setenv("OMP_NUM_THREADS", "1")
                self.returncode = cli.main(started[-1][0])
            return self.returncode

    monkeypatch.setattr(sweep.subprocess, "Popen", Process)
    monkeypatch.setattr(sweep, "POLL_SECONDS", 0)
    monkeypatch.setattr(devices, "cores", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    out = tmp_path / "out"
    assert cli.main([*command(source, out, conditionings="adaln", **SHORT), "--jobs=2"]) == 0
    assert [(words[0], words[-1], threads) for words, threads in started] == [("sweep", "adaln-destructive-2x32", "2")]
    assert json.loads((out / "sweep.json").read_text())["runs"][0]["state"] == "finished"
    assert (out / "adaln-destructive-2x32" / "log.txt").exists()
    assert cli.main([*command(source, out, conditionings="adaln", **SHORT), "--jobs=2"]) == 0
    assert len(started) == 1
    monkeypatch.setattr(cli, "main", lambda words: -9)
    argv = command(source, out, **SHORT)[1:]
    whole = Study(planned(argv))
    with pytest.raises(UserError, match="The process of cell none-destructive-2x32 broke down"):
        run_apart(whole, [whole.cells[1]], 2, argv)
    monkeypatch.setattr(cli, "main", lambda words: 75)
    with pytest.raises(Preempted, match="A cell was stopped, and the others with it"):
        run_apart(whole, [whole.cells[1]], 2, argv)


@pytest.fixture
def heeded() -> Iterator[None]:
    """Ctrl-C interrupts, also where the tests run in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)])
def test_every_process_is_asked_once_to_save_and_waited_for(number, code):
    asked = []

    class Process:
        def terminate(self):
            asked.append("terminate")

        def wait(self):
            asked.append("wait")
            if number != signal.SIGINT:
                signal.raise_signal(number)  # schedulers repeat themselves

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    running = {"one": Process(), "two": Process()}
    with pytest.raises(Interrupted, match="goes on where they were") as stopped, stoppable(running):
        signal.raise_signal(number)
    assert stopped.value.code == code
    assert asked == ["terminate", "terminate", "wait", "wait"]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == before


def test_a_sweep_that_a_scheduler_stops_is_to_be_queued_again(tmp_path, source, monkeypatch, capsys):
    """In training, which says itself by whom it was stopped, and around it."""

    def stopped(settings):
        raise Preempted("Saved at step 3.")

    def asked(settings):
        signal.raise_signal(signal.SIGUSR1)

    for train in (stopped, asked):
        monkeypatch.setattr(loop, "pretrain", train)
        assert cli.main(command(source, tmp_path / "out")) == 75
        assert "Stopped in the middle of cell adaln-destructive-2x32" in capsys.readouterr().err
    monkeypatch.setattr(Study, "prepare", asked)
    assert cli.main(command(source, tmp_path / "out")) == 75


def planned(argv: list[str]) -> Sweep:
    verb = verbs.find("sweep")
    assert verb.read
    return verb.read(argv, lambda kind, words, default=None: sentences.parse(kind, words, verb, default))


def test_from_python_it_is_one_process(tmp_path, source):
    settings = replace(tiny(), data=replace(tiny().data, source=source), recipe="demo")
    settings = with_run(settings, out=str(tmp_path / "out"))
    for wrong in ({"jobs": 2}, {"list": True}):
        with pytest.raises(UserError, match="from Python leave out jobs and list"):
            verbs.call("sweep", settings=settings, **wrong)
    with pytest.raises(UserError, match=r"others=\(iwm\.Config"):
        verbs.call("sweep", settings=settings, recipes="cifar10")
    few = {"conditionings": "adaln", "levels": "destructive", "predictors": "2x32"}
    few |= {"linear": False, "attentive_epochs": 0, "finetune_epochs": 0}
    content = verbs.call("sweep", settings=settings, world_images=2, bank=8, **few)
    assert [(run["cell"], run["state"]) for run in content["runs"]] == [("adaln-destructive-2x32", "finished")]
    assert content["settings"]["axes"] == {"design": "tables", **{name: few[name] for name in TWO}}
    assert content["settings"]["protocol"].keys() == verbs.part(Sweep(), Protocol).keys()


def test_a_cell_that_another_process_trains_is_passed_over(tmp_path, source, capsys):
    out = tmp_path / "out"
    cell = RunFolder(out / "adaln-destructive-2x32")
    with files.lock(cell.training_lock, "it is being trained"):
        assert cli.main(command(source, out, **SHORT)) == 0
    assert "adaln-destructive-2x32 is passed over" in capsys.readouterr().err
    first, second = json.loads((out / "sweep.json").read_text())["runs"]
    assert (first["state"], first["failed"], second["state"]) == ("waiting", None, "finished")
    assert cli.main(command(source, out, **SHORT)) == 0
    assert json.loads((out / "sweep.json").read_text())["runs"][0]["state"] == "finished"
