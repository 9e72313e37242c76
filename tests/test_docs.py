"""README and docs tell the truth: their commands and Python run, their links exist."""

import itertools
import re
import runpy
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
import yaml
from conftest import pictures_file, tiny, trained_on
from tyro.conf import Positional

import iwm
from iwm import cli, config, recipe_book, verbs
from iwm.cli import manners, sentences
from iwm.exporting import FORMATS
from iwm.model import weights
from iwm.model.conditioning import CONDITIONINGS
from iwm.model.world_model import ImageWorldModel
from iwm.sweeps.axes import cells_of
from iwm.training import loop
from iwm.training.trackers import TRACKERS, Tracker
from iwm.verbs.sweep import Axes

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
POSITIONAL = Positional[Any].__metadata__[0]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands() -> list[list[str]]:
    """Every `iwm ...` line of every shell block, broken lines joined, comments cut off."""
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.replace("\\\n", "").splitlines()]
    argvs = [shlex.split(re.split(" [|>] ", line)[0], comments=True)[1:] for line in lines if line.startswith("iwm ")]
    return [argv for argv in argvs if argv[0].islower()]


def alternatives(words: list[str]) -> Iterator[list[str]]:
    """Every command that `a|b` stands for."""
    yield from (list(choice) for choice in itertools.product(*(word.split("|") for word in words)))


def mentions() -> list[list[str]]:
    """Every `iwm ...` within a sentence or a table, `[optional]` parts included."""
    pages = [re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL) for page in PAGES]
    spans = [re.sub(r"[\[\]\\]", "", span) for page in pages for span in re.findall(r"`iwm\s([^`]+)`", page)]
    argvs = [argv for span in dict.fromkeys(spans) for argv in alternatives(shlex.split(span))]
    argvs = [manners.verb_first(argv) if argv[0] in manners.OF_ALL else argv for argv in argvs]
    return [argv for argv in argvs if argv[0].islower() and argv[0] not in ("--help", "--version")]


def with_required(verb: verbs.Verb, words: list[str]) -> list[str]:
    """The words of a mention, which may leave out what the verb requires."""
    required = [f.name for f in fields(verb.options) if f.default is MISSING and f.default_factory is MISSING]
    hints = get_type_hints(verb.options, include_extras=True)
    unnamed = {name for name, hint in hints.items() if POSITIONAL in getattr(hint, "__metadata__", ())}
    bare = [name.upper() for name in required if name in unnamed]
    named = [f"--{name.replace('_', '-')}" for name in required if name not in unnamed]
    given = words if words and not words[0].startswith("--") else bare + words
    return [*given, *(word for name in named if name not in words for word in (name, "X"))]


def parsed(argv: list[str]) -> None:
    """Raises UserError where the verb or one of its options does not exist, or does not take the value."""
    verb = verbs.find(argv[0])
    rest, _ = manners.take(argv[1:], verb)
    rest, _ = verbs.without_option(rest, "--actions")
    rest, _ = verbs.without_option(rest, "--config")
    sentences.parse(verb.options, rest, verb, config.Config() if verb.name == "pretrain" else None)


def test_the_tables_of_results_are_those_of_the_committed_files():
    namespace = runpy.run_path(str(ROOT / "results" / "tables.py"))
    assert namespace["page"]() == (ROOT / "docs" / "results.md").read_text(), "run python results/tables.py"


def test_a_table_is_marked_unequal_until_all_of_it_is_measured_again():
    unequal = runpy.run_path(str(ROOT / "results" / "tables.py"))["unequal"]
    old, new = {"train": "encoder"}, {"train": "encoder", "augmentation": "none", "random_encoder_layer_decay": 1.0}
    assert "fresh crops" in unequal([old, new], "views", "scratch")
    assert "fresh crops" not in unequal([{**old, "augmentation": "none"}], "views", "scratch")
    assert unequal([new], "views", "scratch") == unequal([], "attentive") == ""
    assert unequal([{"kind": "linear"}, {"mrr": 0.5}], "attentive") == ""
    for cell in ({"kind": "attentive"}, {"cell": "adaln"}):
        assert "3e-3" in unequal([cell], "attentive")
        assert unequal([{**cell, "at_grid_end": {}}], "attentive") == ""


def test_the_quick_start_runs_as_written(tmp_path, monkeypatch):
    """The README's commands, in order, on a folder of pictures; only the sizes are made tiny."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "path" / "to").mkdir(parents=True)
    source = pictures_file(tmp_path / "path" / "to" / "images.npz", count=100, labelled=True)
    monkeypatch.setattr("iwm.recipe_book.get", lambda name: replace(tiny(), recipe=name))
    text = next(block for block in blocks(ROOT / "README.md", "sh") if "--data.source" in block)
    ran = []
    for line in text.splitlines():
        if line.startswith("iwm "):
            argv = [word.replace("path/to/images", str(source)) for word in shlex.split(line, comments=True)[1:]]
            extra = {"finetune": ["--epochs=1"], "world": ["--images=2", "--bank=8"]}.get(argv[0], [])
            assert cli.main([*argv, *extra]) == (1 if argv[0] == "doctor" else 0), line
            ran.append(argv[0])
    assert ran == ["pretrain", "doctor", "world", "probe", "finetune", "report"]
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()


def test_the_transformation_of_your_own_is_short_and_works_as_written(tmp_path, monkeypatch):
    """docs/actions.md's file and commands, in order; only the sizes are made tiny."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("iwm.actions.action_sets.USERS", {})
    page = ROOT / "docs" / "actions.md"
    code = blocks(page, "python")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    (tmp_path / "mine.py").write_text(code)
    source = pictures_file(tmp_path / "pictures.npz", count=100)
    monkeypatch.setattr("iwm.recipe_book.get", lambda name: replace(tiny(), recipe=name))
    ran = []
    for line in "\n".join(blocks(page, "sh")).splitlines():
        argv = [word.replace("path/to/images", str(source)) for word in shlex.split(line, comments=True)[1:]]
        extra = {"world": ["--images=2", "--bank=8"]}.get(argv[0], []) if argv else []
        if argv:
            assert cli.main([*argv, *extra]) == 0, line
            ran.append(argv[0])
    assert ran == ["pretrain", "world", "pretrain"]
    assert list((tmp_path / "runs" / "sharp" / "eval").glob("world-*.png"))
    monkeypatch.setattr("iwm.actions.action_sets.USERS", {})
    names = {}
    with torch.no_grad():
        exec(blocks(page, "python")[1], names)
    assert names["action"].tolist()[1] == pytest.approx(0.5 / 1.6)


def test_the_conditioning_of_your_own_works_as_written(tmp_path, monkeypatch):
    """docs/classes.md's class trains."""
    names = {}
    monkeypatch.setitem(CONDITIONINGS, "scale", CONDITIONINGS["none"])  # so that it is gone again after the test
    exec(blocks(ROOT / "docs" / "classes.md", "python")[0], names)
    assert CONDITIONINGS["scale"] is names["Scale"]
    settings = tiny(predictor=replace(tiny().predictor, conditioning="scale"), optim=replace(tiny().optim, epochs=1))
    source = str(pictures_file(tmp_path / "pictures.npz"))
    assert loop.pretrain(trained_on(settings, source=source, out=str(tmp_path / "run"))).is_dir()


def test_the_python_example_runs_as_written(tmp_path, monkeypatch, images):
    monkeypatch.chdir(tmp_path)
    source = str(pictures_file(tmp_path / "pictures.npz"))
    loop.pretrain(trained_on(tiny(), source=source, out="runs/mine"))
    names = {"images": images, "changed_images": images.flip(-1)}
    with torch.no_grad():
        exec(blocks(ROOT / "README.md", "python")[0], names)
    future, truth = names["future"], names["truth"]
    assert isinstance(future, iwm.Tokens)
    assert isinstance(truth, iwm.Tokens)
    assert future.values.shape == truth.values.shape


def test_the_model_in_the_package_is_used_as_written(images):
    names = {"images": images}
    with torch.no_grad():
        exec(blocks(ROOT / "docs" / "demo.md", "python")[0], names)
    assert names["picture"].shape == images.shape


def test_the_page_on_python_runs_as_written(tmp_path, monkeypatch):
    """docs/python.md's code, in order; only the sizes are made tiny."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("iwm.recipe_book.get", lambda name: replace(tiny(), recipe=name))
    names = {}
    for block in blocks(ROOT / "docs" / "python.md", "python"):
        exec(block, names)
    assert names["world"].figure().get_axes()
    assert names["probe"].data == "noise"
    assert names["run"].metrics[-1]["patch_weight"] > 0


@pytest.mark.parametrize("format", ["timm", "onnx", "torch"])
def test_the_page_on_exports_runs_as_written(tmp_path, monkeypatch, format):
    """docs/export.md's command, and the Python that reads what it wrote."""
    if format == "onnx":
        pytest.importorskip("onnxruntime", reason="the extra iwm[onnx] is not installed")
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "export.md"
    (line,) = (each for block in blocks(page, "sh") for each in block.splitlines() if f"demo --format {format}" in each)
    assert cli.main(shlex.split(line)[1:]) == 0
    names: dict[str, Any] = {}
    with torch.no_grad():
        for block in blocks(page, "python"):
            if f"exported/{format}" in block:
                exec(block, names)
    if format == "timm":
        tokens = iwm.load("demo").encode(names["images"])
        torch.testing.assert_close(names["tokens"], tokens.values)
        torch.testing.assert_close(names["pooled"], tokens.pooled)
    if format == "onnx":
        assert names["pictures"].shape == names["images"].shape


def test_the_format_of_your_own_works_as_written(tmp_path, monkeypatch):
    """docs/export.md's class exports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(FORMATS, "names", FORMATS["torch"])  # so that it is gone again after the test
    exec(blocks(ROOT / "docs" / "export.md", "python")[-1], {"iwm": iwm})
    assert "pos_embed" in (tmp_path / "exported" / "names" / "names.txt").read_text()


def test_the_page_on_embeddings_runs_as_written(tmp_path, monkeypatch, images):
    monkeypatch.chdir(tmp_path)
    names = {"photo": images[0].permute(1, 2, 0).numpy()[None]}
    exec(blocks(ROOT / "docs" / "embed.md", "python")[0], names)
    assert names["photos"].embeddings.shape == (919, 128)
    assert len(names["darker"].nearest) == 5


def test_the_tracker_of_your_own_runs_as_written(tmp_path, monkeypatch, images, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("iwm.recipe_book.get", lambda name: replace(tiny(), recipe=name))
    monkeypatch.setitem(TRACKERS, "printer", Tracker)  # so that it is gone again after the test
    exec(blocks(ROOT / "docs" / "trackers.md", "python")[0], {"images": images.repeat(3, 1, 1, 1).numpy()})
    assert re.search(r"^told 1 \d", capsys.readouterr().out, re.MULTILINE)
    assert (tmp_path / "runs" / "told" / "trackers" / "printer.json").is_file()


def test_the_verb_of_your_own_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.setattr(verbs, "_REGISTERED", {})
    model = ImageWorldModel(tiny())
    weights.export(model, tmp_path / "model")
    exec(blocks(ROOT / "CONTRIBUTING.md", "python")[0], {})
    assert cli.main(["count", str(tmp_path)]) == 0
    assert verbs.call("count", tmp_path) == {"parameters": sum(p.numel() for p in model.parameters())}


@pytest.mark.parametrize("argv", commands(), ids=" ".join)
def test_every_documented_command_has_a_verb_and_options_that_exist(argv):
    parsed(argv)


@pytest.mark.parametrize("argv", mentions(), ids=" ".join)
def test_every_command_that_is_mentioned_exists(argv):
    verb = verbs.find(argv[0])
    if argv[1:]:  # else only its name
        parsed([argv[0], *with_required(verb, argv[1:])])


def test_every_verb_is_documented_with_all_it_requires():
    complete = {argv[0] for argv in [*commands(), *mentions()] if len(argv) > 1}
    assert complete | {"demo", "recipes"} == set(verbs.ORDER)
    page = (ROOT / "docs" / "commands.md").read_text()
    assert [name for name in verbs.ORDER if not re.search(rf"\| `iwm {name}[ `]", page)] == []


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"({page.name}" not in index] == ["README.md"]


def test_pinned_versions_are_those_of_the_package():
    ruff = re.search(r"^ruff==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert ruff
    assert f"rev: v{ruff[1]} " in (ROOT / ".pre-commit-config.yaml").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])


def test_the_cell_that_is_documented_exists():
    (argv,) = (words for words in commands() if "--cell" in words)
    assert argv[argv.index("--cell") + 1] in [cell.name for cell in cells_of(recipe_book.get(argv[1]), Axes())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
    for name in re.findall(r"`(src/[\w./-]+)`", page.read_text()):
        assert (ROOT / name).exists(), name


def test_every_public_name_is_documented():
    for name in iwm.__all__:
        assert getattr(iwm, name).__doc__, name
