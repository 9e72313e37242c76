"""A RUN: one folder whatever its spelling, one sentence for what is none, no file name of it anywhere else."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import tiny

import iwm
from iwm import config, run_folder
from iwm.evaluation import ritual
from iwm.model import weights
from iwm.model.world_model import ImageWorldModel
from iwm.run_folder import RunFolder, init_identity, same_init
from iwm.runtime.errors import UserError
from iwm.runtime.files import sha256_of

NOT_A_RUN = r"give the --out folder of an `iwm pretrain`\."


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run folder with settings and a place for weights."""
    folder = RunFolder(tmp_path / "run")
    folder.model.mkdir(parents=True)
    config.save(tiny(), folder.config)
    return folder


# ---- one folder ----------------------------------------------------------------------------------------------------


def test_a_run_has_one_folder_whatever_its_spelling(folder: RunFolder, tmp_path: Path) -> None:
    file = folder.model / weights.TENSORS
    file.touch()
    for run in (str(folder.path), folder.path, f"{folder.path}/", f"{folder.path}/model", str(file)):
        assert RunFolder.of(run) == folder
    assert RunFolder.of(str(folder.path), str(tmp_path)).path == tmp_path
    with pytest.raises(UserError, match="no run at"):
        RunFolder.of(str(tmp_path / "nowhere"))


def test_what_is_no_local_folder_has_one_by_its_name(tmp_path: Path) -> None:
    remote = "timm:vit_tiny_patch16_224,weights=w.pth"
    assert RunFolder.of(remote).path == Path("iwm-eval/timm-vit_tiny_patch16_224")
    assert RunFolder.of("hf-hub:user/name").path == Path("iwm-eval/hf-hub-user-name")
    assert RunFolder.of("hf-hub:user/name", str(tmp_path)).path == tmp_path


def test_a_folder_of_weights_that_is_no_part_of_a_run_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert RunFolder.of(tmp_path / "model").path == tmp_path / "model"


def test_a_run_below_the_home_folder(folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunFolder.of("~/run") == folder
    assert RunFolder.of("~/run", "~/out").path == tmp_path / "out"


def test_a_run_to_start_from_is_one_whatever_its_spelling(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for init in ("run", "./run/", "~/run", "run/model", str(folder.model)):
        assert init_identity(init) == str(folder.path)
        assert same_init(init, str(folder.path))
    for init in ("", "demo", "timm:vit_tiny_patch16_224,weights=w.pth", "hf-hub:user/run", "gone/run"):
        assert init_identity(init) == init
        assert same_init(init, init)
        assert same_init(init, str(folder.path)) is (init == "gone/run"), "moved"
    (tmp_path / "other" / "run").mkdir(parents=True)
    assert not same_init("other/run", "run"), "it is still there"


def test_what_lies_in_a_run_lies_where_the_contract_says(folder: RunFolder) -> None:
    places = {
        "config": "config.yaml",
        "metrics": "metrics.jsonl",
        "gallery": "gallery.png",
        "checkpoints": "checkpoints",
        "model": "model",
        "eval": "eval",
        "report": "report.html",
        "cache": "eval/cache",
    }
    for part, place in places.items():
        assert getattr(folder, part) == folder.path / place
    assert folder.twin.path == folder.path / "eval" / "frozen-random-twin"
    assert folder.name == "run"
    assert folder.settings() == tiny()


# ---- what is none --------------------------------------------------------------------------------------------------


def test_a_folder_that_lacks_everything_is_not_a_run(folder: RunFolder, tmp_path: Path) -> None:
    assert folder.require("config") is folder
    assert folder.require("metrics", "config") is folder
    lacks = f"^{re.escape(str(folder.path))} is not a run: it has no metrics.jsonl or eval; {NOT_A_RUN}$"
    with pytest.raises(UserError, match=lacks):
        folder.require("metrics", "eval")
    with pytest.raises(UserError, match=f"nowhere is not a run: it has no config.yaml; {NOT_A_RUN}"):
        RunFolder(tmp_path / "nowhere").require("config")


def test_weights_are_found_wherever_a_run_keeps_them(folder: RunFolder) -> None:
    model = ImageWorldModel(tiny())
    weights.export(model, folder.model)
    for run in (folder.path, folder.model, folder.model / weights.TENSORS):
        assert run_folder.find_weights(str(run)) == folder.model
    assert run_folder.load_model(folder.path).settings == model.settings
    assert run_folder.identity(str(folder.path)) == sha256_of(folder.model / weights.TENSORS)
    assert run_folder.identity(str(folder.model)) == run_folder.identity(str(folder.path))


def test_the_weights_are_known_by_the_hash_that_they_note(folder: RunFolder, tmp_path: Path) -> None:
    weights.export(ImageWorldModel(tiny()), folder.model)
    noted, meta = run_folder.identity(str(folder.path)), folder.model / weights.CONFIG
    content = json.loads(meta.read_text())
    assert content["sha256"] == noted
    meta.write_text(json.dumps(content | {"sha256": "ab"}))
    assert run_folder.identity(str(folder.path)) == "ab", "without reading all of them"
    meta.write_text(json.dumps({key: value for key, value in content.items() if key != "sha256"}))
    assert run_folder.identity(str(folder.path)) == noted, "older weights note none"
    assert run_folder.identity_if_any(str(folder.path)) == noted
    meta.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        run_folder.identity(str(folder.path))
    for run in (str(folder.path), str(tmp_path / "nowhere"), "timm:vit_tiny_patch16_224"):
        assert run_folder.identity_if_any(run) == ""


def test_results_of_earlier_weights_are_marked(folder: RunFolder, tmp_path: Path) -> None:
    weights.export(ImageWorldModel(tiny()), folder.model)
    present = run_folder.identity(str(folder.path))
    settings = {"run": ""}
    contents: dict[str, dict[str, object]] = {
        "a": {"settings": settings, "run_weights": present},
        "b": {"settings": settings, "run_weights": "ab"},
        "c": {"settings": settings},  # of an older version
        "d": {"settings": {"run": "", "weights": "ab"}},  # as `iwm efficiency` names them
        "e": {"settings": {"run": "hf-hub:a/b"}, "run_weights": "ab"},  # the hub is not asked
        "f": {"settings": {"run": str(tmp_path / "gone")}, "run_weights": "ab"},
        "g": {"settings": "damaged", "run_weights": 3},
    }
    folder.eval.mkdir()
    for name, content in contents.items():
        (folder.eval / f"{name}.json").write_text(json.dumps({"fingerprint": "x", **content}))
    assert [one["file"] for one in folder.results() if one.get(run_folder.EARLIER)] == ["b", "d"]
    shared = RunFolder(tmp_path / "shared")
    shared.eval.mkdir(parents=True)
    for name, mark in (("a", present), ("b", "ab")):
        content = {"fingerprint": "x", "settings": {"run": str(folder.path)}, "run_weights": mark}
        (shared.eval / f"{name}.json").write_text(json.dumps(content))
    assert [one["file"] for one in shared.results() if one.get(run_folder.EARLIER)] == ["b"]


def test_the_pixel_decoder_lies_beside_the_weights(folder: RunFolder) -> None:
    weights.export(ImageWorldModel(tiny()), folder.model)
    for run in (folder.path, folder.model):
        assert run_folder.decoder_file(str(run)) == folder.model / weights.DECODER
    assert run_folder.decoder_file("hf-hub:user/name") == Path("iwm-eval/hf-hub-user-name") / weights.DECODER


def test_a_run_without_weights_is_named_in_a_sentence(folder: RunFolder, tmp_path: Path) -> None:
    lacks = f"is not a run: it has no model/model.safetensors and config.json; {NOT_A_RUN}"
    with pytest.raises(UserError, match=lacks):
        run_folder.find_weights(str(folder.path))
    folder.checkpoints.mkdir()
    with pytest.raises(UserError, match="has no finished weights yet; let its `iwm pretrain` write model/ first"):
        run_folder.find_weights(str(folder.path))
    with pytest.raises(UserError, match=f"^There is no run at .*nowhere; {NOT_A_RUN}$"):
        run_folder.find_weights(str(tmp_path / "nowhere"))


def test_damaged_weights_are_named(folder: RunFolder) -> None:
    weights.export(ImageWorldModel(tiny()), folder.model)
    (folder.model / weights.TENSORS).write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"The weights in .* cannot be read .*; export them again"):
        run_folder.load_model(folder.path)


def test_an_encoder_alone_is_no_world() -> None:
    with pytest.raises(UserError, match="an encoder without a predictor"):
        run_folder.open_world("timm:vit_tiny_patch16_224", run_folder.Session.of(config.Speed(device="cpu")))


# ---- metrics and results -------------------------------------------------------------------------------------------


def test_a_run_without_metrics_has_no_lines(folder: RunFolder) -> None:
    assert folder.metric_lines() == []


def test_a_torn_last_line_is_left_out(folder: RunFolder) -> None:
    folder.metrics.write_text('{"step": 2, "loss": 0.5}\n{"step": 4, "loss": null}\n{"step": 6, "lo')
    assert folder.metric_lines() == [{"step": 2, "loss": 0.5}, {"step": 4, "loss": None}]


@pytest.mark.parametrize("damaged", ["{", '{"loss": 1}', '{"step": "2"}', "[]", "", "\udcff\udcfe"])
def test_a_damaged_line_is_named(folder: RunFolder, damaged: str) -> None:
    text = f'{{"step": 2}}\n{damaged}\n{{"step": 6}}\n'
    folder.metrics.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"^Line 2 of .*metrics\.jsonl is damaged; delete that line\.$"):
        folder.metric_lines()


def test_damaged_results_are_named_and_left_out(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("probe", "world"):
        ritual.write(folder.eval / f"{name}.json", {"data": name}, {"seed": 0})
    for name, text in (("broken", "{"), ("list", "[]"), ("foreign", "{}")):
        (folder.eval / f"{name}.json").write_text(text)
    results = folder.results()
    assert [(row["file"], row["data"]) for row in results] == [("probe", "probe"), ("world", "world")]
    printed = " ".join(capsys.readouterr().err.split())
    assert printed.count("is no readable result and is left out") == 3
    assert folder.picture_of(results[0]) == folder.eval / "probe.png"


def test_weights_of_results_lie_beside_them(folder: RunFolder) -> None:
    weights.write_weights(folder.eval / "finetune-predictor", {}, {})
    (folder.eval / "cache").mkdir()
    assert folder.weights_of_results() == [folder.eval / "finetune-predictor"]


def test_settings_of_old_runs_can_be_shown_as_they_stand(folder: RunFolder) -> None:
    folder.config.write_text(json.dumps({"optim": {"unknown": 1}}))
    assert folder.settings_unchecked() == {"optim": {"unknown": 1}}
    with pytest.raises(UserError, match="unknown"):
        folder.settings()
    folder.config.write_text("{")
    assert folder.settings_unchecked() == {}


# ---- nowhere else --------------------------------------------------------------------------------------------------

SOURCES = Path(iwm.__file__).parent
FILES = {"config.yaml", "metrics.jsonl", "gallery.png", "report.html", "checkpoints", "frozen-random-twin"}
"""Names that mean a part of a RUN wherever they stand."""
WORDS = {"model", "eval"}
"""Names that are words besides: they count as an operand of `/`, as an argument of a path's method, and with a `/`."""
PATH_METHODS = {"Path", "joinpath", "with_name", "glob", "rglob"}
EXEMPT = {
    "run_folder.py",  # the one place that knows them
}


def names_of_a_run(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every string that names a part of a RUN.

    Exempt are docstrings, and sentences for people: strings with a space, and what stands in an f-string.
    """
    tree = ast.parse(source)
    exempt: set[ast.AST] = set()
    operands: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            exempt.add(node.value)
        elif isinstance(node, ast.JoinedStr):
            exempt.update(ast.walk(node))
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            operands.update((node.left, node.right))
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            operands.update(node.args if called in PATH_METHODS else ())
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or node in exempt:
            continue
        text = node.value
        parts = set(text.split("/"))
        is_word = bool(parts & WORDS) and (node in operands or "/" in text)
        if " " not in text and (parts & FILES or is_word):
            yield node.lineno, text


@pytest.mark.parametrize("module", sorted(str(path.relative_to(SOURCES)) for path in SOURCES.rglob("*.py")))
def test_no_other_module_knows_a_file_name_of_a_run(module: str) -> None:
    if module not in EXEMPT:
        assert list(names_of_a_run((SOURCES / module).read_text())) == []


def test_the_search_for_file_names_sees_what_it_should() -> None:
    guilty = ['folder / "eval"', 'Path(run, "model")', 'x = "config.yaml"', 'run + "/model"', 'run.glob("eval/*.json")']
    innocent = [
        '"""RUN/config.yaml is read."""',
        'UserError("It has no config.yaml.")',
        'f"{run}/config.yaml"',
        'line["model"]',
        'folder.require("eval")',
        '"model.world_model"',
    ]
    assert all(list(names_of_a_run(line)) for line in guilty)
    assert not any(list(names_of_a_run(line)) for line in innocent)
