"""Verbs are found by name, filled from Python as from the command line, and joined by the user's own."""

import dataclasses
import importlib
import inspect
import os
import pkgutil
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from tyro.conf import Positional

import iwm
from iwm import cli, config, recipe_book, verbs
from iwm.cli import sentences
from iwm.runtime.errors import UserError
from iwm.verbs import Verb
from iwm.verbs.compare import Compare
from iwm.verbs.finetune import Finetune
from iwm.verbs.probe import Probe
from iwm.verbs.shared import Classification
from iwm.verbs.sweep import Axes, Sweep
from iwm.verbs.world import World


@dataclass(frozen=True, kw_only=True)
class Count:
    words: Positional[tuple[str, ...]]
    """What is counted."""
    twice: bool = False


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Verb:
    """A verb of the user's own, forgotten after the test."""
    monkeypatch.setattr(verbs, "_REGISTERED", {})

    def work(o: Count) -> int:
        return len(o.words) * (2 if o.twice else 1)

    return iwm.register_verb(Verb("count", "Count words.", Count, work))


# ---- the table of verbs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", verbs.names())
def test_every_verb_has_a_sentence_options_and_work(name: str) -> None:
    verb = verbs.find(name)
    assert verb.name == name
    assert verb.sentence
    assert dataclasses.is_dataclass(verb.options)
    assert isinstance(verb.work, str)
    module, _, function = verb.work.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("name", verbs.ORDER)
def test_every_option_is_explained_in_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    verb = verbs.find(name)
    with pytest.raises(SystemExit):
        sentences.parse(verb.options, ["--help"], verb, config.Config() if name == "pretrain" else None)
    text = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    assert re.findall(r"(--[a-z][\w.-]*|STR) (?:STR|INT|FLOAT|\W)*\(default", text) == []


@pytest.mark.parametrize("verb", ["pretrain", "sweep"])
@pytest.mark.parametrize(("recipe", "size"), [([], 224), (["cifar10"], 32)])
def test_help_behind_a_recipe_shows_the_recipes_values(verb, recipe, size, capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main([verb, *recipe, "--help"])
    assert f"Side of the square crops, pixels. (default: {size})" in " ".join(
        capsys.readouterr().out.replace("│", " ").split()
    )


def test_the_order_of_help_names_built_in_verbs_only() -> None:
    assert verbs.names() == verbs.ORDER
    assert len(set(verbs.ORDER)) == len(verbs.ORDER)


def test_an_unknown_verb_has_a_nearest_one() -> None:
    with pytest.raises(UserError, match=r"There is no verb 'prob': did you mean 'probe'\?"):
        verbs.find("prob")


# ---- options from Python -------------------------------------------------------------------------------------------


def test_values_without_a_name_are_the_command_lines_then_the_required_ones() -> None:
    assert verbs.find("imagine").positions == ("run", "image")
    assert verbs.find("infer").positions == ("run", "source", "target")
    assert verbs.find("world").positions == ("run", "data")
    assert verbs.find("demo").positions == ("photos",)
    options = verbs.find("world").fill("runs/mine", "photos", bank=8)
    assert options == World(run="runs/mine", data="photos", bank=8)
    assert verbs.find("compare").fill(["one", "two"]) == Compare(runs=("one", "two"))


def test_paths_are_text() -> None:
    options = verbs.find("world").fill(Path("runs") / "mine", data=Path("photos"))
    assert (options.run, options.data) == (str(Path("runs/mine")), os.path.join(os.curdir, "photos"))


def test_groups_have_dots_or_are_given_whole() -> None:
    verb, speed = verbs.find("world"), config.Speed(threads=1, device="cpu")
    assert verb.fill("run", "data", **{"speed.threads": 1, "speed.device": "cpu"}).speed == speed
    assert verb.fill("run", "data", speed=speed).speed == speed


def test_groups_without_a_name_on_the_command_line_have_none_in_python() -> None:
    options = verbs.find("finetune").fill("run", "data", epochs=3, lrs=[1e-3])
    assert (options.schedule.epochs, options.lrs) == (3, (1e-3,))
    assert options.schedule.batch_size == Finetune(run="run", data="data").schedule.batch_size
    assert verbs.find("segment").fill("run", "data", epochs=3).schedule.batch_size == 16
    assert verbs.find("sweep").fill(**{"optim.lr": 0.1, "run.seed": 3}).settings.optim.lr == 0.1
    with pytest.raises(UserError, match="--views -3"):
        verbs.find("segment").fill("run", "data", views=-3)


def test_only_what_can_go_on_from_a_finished_training_has_a_start() -> None:
    for name in ("finetune", "segment"):
        assert verbs.find(name).fill("run", "data", train="both", start="folder").start == "folder"
        with pytest.raises(UserError, match="--start folder is where --train both starts"):
            verbs.find(name).fill("run", "data", train="head", start="folder")
    with pytest.raises(UserError, match="has no option 'start'"):
        verbs.find("efficiency").fill("run", "data", start="folder")
    assert "start" not in verbs.part(Finetune(run="run", data="data"), Classification)


def test_a_bank_of_one_is_told_by_the_bound_beside_its_field() -> None:
    with pytest.raises(UserError, match="--bank 1: give 2 or more"):
        verbs.find("imagine").fill("run", "x.png", action="hue=0.1", bank=1)


def test_a_sweep_from_python_starts_at_its_recipe() -> None:
    settings = verbs.find("sweep").fill(recipe="demo", out="out").settings
    assert (settings.recipe, settings.encoder) == ("demo", recipe_book.get("demo").encoder)
    with pytest.raises(UserError, match="dem"):
        verbs.find("sweep").fill(recipe="dem")


@pytest.mark.parametrize(
    ("keywords", "complaint"),
    [
        ({"kin": "knn"}, r"iwm\.probe has no option 'kin'; did you mean 'kind'\?"),
        ({"epoch": 3}, r"iwm\.probe has no option 'epoch'; did you mean 'epochs'\?"),
        ({"speed.thread": 1}, r"iwm\.probe has no option 'speed\.thread'; did you mean 'speed\.threads'\?"),
        ({"mixup": 0.5}, r"mixup"),
        ({"run": "again"}, r"iwm\.probe was given '?run'? twice"),
        ({"k": "many"}, r"'k' must be int, got 'many'"),
        ({"pooling": "sum"}, r"'pooling' is 'sum'"),
        ({"k": 0}, r"--k 0: give 1 or more"),
    ],
)
def test_wrong_options_are_one_sentence(keywords, complaint) -> None:
    with pytest.raises(UserError, match=complaint):
        verbs.find("probe").fill("run", data="data", **keywords)


def test_a_missing_option_and_too_many_values_are_told() -> None:
    with pytest.raises(UserError, match=r"iwm\.world needs data; give data=\.\.\."):
        verbs.find("world").fill("run")
    with pytest.raises(UserError, match=r"iwm\.world takes 2 "):
        verbs.find("world").fill("run", "data", "val")


@pytest.mark.parametrize("name", ["world", "probe", "finetune", "segment", "imagine", "look", "undo"])
def test_the_command_line_and_python_have_the_same_defaults(name: str) -> None:
    verb = verbs.find(name)
    words = {"imagine": ["run", "x.png", "--action", "hue=0.1"]}.get(name, ["run", "--data", "photos"])
    keywords = {"image": "x.png", "action": "hue=0.1"} if name == "imagine" else {"data": "photos"}
    assert sentences.parse(verb.options, words, verb) == verb.fill("run", **keywords)


def test_a_part_of_the_options_is_what_a_base_brings() -> None:
    assert verbs.part(Sweep(levels="strong"), Axes) == vars(Axes(levels="strong"))


def test_an_option_can_be_taken_out_of_the_words() -> None:
    assert verbs.without_option(["a", "--x", "1", "b"], "--x") == (["a", "b"], "1")
    assert verbs.without_option(["--x=1", "--xy=2"], "--x") == (["--xy=2"], "1")
    with pytest.raises(UserError, match="--x needs a value"):
        verbs.without_option(["a", "--x"], "--x")


# ---- verbs as functions of iwm -------------------------------------------------------------------------------------


def test_no_module_hides_a_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    """A submodule becomes an attribute of its package when it is imported, and would stand in a verb's way."""
    for module in pkgutil.walk_packages(iwm.__path__, "iwm."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    done = []
    monkeypatch.setattr(Verb, "run", lambda self, options: done.append((self.name, options)))
    needed: dict[str, dict[str, object]] = {
        "imagine": {"image": "x.png", "sweep": "hue"},
        "completion": {"shell": "bash"},
        "infer": {"data": "photos"},
        "predict": {"images": "x"},
        "search": {"data": "photos", "like": "x.png"},
    }
    needed |= {name: {} for name in ("demo", "recipes", "sweep", "doctor", "report", "multitask")}
    needed["compare"] = {"runs": ["one"]}
    needed |= {"export": {"format": "onnx", "out": "x"}, "push": {"repository": "me/name"}}
    for name in verbs.names():
        if name == "pretrain":  # takes settings whole
            assert inspect.isfunction(iwm.pretrain)
            continue
        run = {} if name in ("demo", "recipes", "sweep", "compare", "completion") else {"run": "runs/mine"}
        getattr(iwm, name)(**run, **needed.get(name, {"data": "photos"}))
    assert [name for name, _ in done] == [name for name in verbs.names() if name != "pretrain"]


def test_a_verb_from_python_does_the_work_and_returns_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iwm.evaluation.tasks.probes.probe", lambda o: o)
    options = iwm.probe("run", "data", kind="knn", **{"speed.threads": 1})
    assert options == Probe(run="run", data="data", kind="knn", speed=config.Speed(threads=1))


def test_a_verb_has_its_sentence_and_options_for_help() -> None:
    parameters = inspect.signature(iwm.world).parameters
    assert list(parameters)[:2] == ["run", "data"]
    assert parameters["bank"].default == 256
    assert (iwm.world.__doc__ or "").startswith(verbs.find("world").sentence)


def test_every_verb_is_a_public_name() -> None:
    assert set(verbs.names()) <= set(iwm.__all__)
    assert all(hasattr(iwm, name) for name in iwm.__all__)
    with pytest.raises(AttributeError, match="module 'iwm' has no attribute 'nothing'"):
        _ = iwm.nothing


# ---- verbs of the user's own ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("count")
def test_a_verb_of_your_own_runs_from_the_command_line_and_from_python(capsys) -> None:
    assert cli.main(["count", "a", "b", "--twice"]) == 4
    assert verbs.call("count", ["a", "b"]) == 2
    assert iwm.__getattr__("count")(words=["a"], twice=True) == 2
    assert cli.main(["--help"]) == 0
    assert "  count       Count words." in capsys.readouterr().out
    assert cli.main(["count", "--twce"]) == 2
    assert "did you mean --twice?" in capsys.readouterr().err


def test_a_file_of_your_own_brings_a_verb(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(verbs, "_REGISTERED", {})
    own = tmp_path / "own.py"
    own.write_text(
        "from dataclasses import dataclass\n"
        "import iwm\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Greet:\n"
        "    words: tuple[str, ...] = ()\n"
        "def greet(o):\n"
        "    print(*o.words)\n"
        "iwm.register_verb(iwm.Verb('greet', 'Greet.', Greet, greet))\n"
        "def gamma(images, value):\n"
        "    return images ** value[:, None, None, None]\n"
        "SET = iwm.Transformation(name='gamma', apply=gamma, graded=True, both=True, low=0.5, high=2.0, neutral=1.0,\n"
        "                         probability=1.0)\n"
    )
    assert cli.main(["greet", f"--actions={own}:SET", "--words", "hello", "there"]) == 0
    assert capsys.readouterr().out == "hello there\n"


def test_a_verb_of_your_own_takes_no_built_in_name(count: Verb) -> None:
    with pytest.raises(UserError, match="'world' is a built-in verb"):
        verbs.register(dataclasses.replace(count, name="world"))
    assert verbs.names() == (*verbs.ORDER, "count")
