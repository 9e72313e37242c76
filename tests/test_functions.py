"""The verbs from Python: settings with dots, images in memory, results as objects that print and draw themselves."""

import inspect
import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import pictures_file, tiny
from PIL import Image

import iwm
from iwm import config, recipe_book, verbs
from iwm.runtime.errors import UserError


@pytest.fixture
def arrays(tmp_path: Path) -> "dict[str, np.ndarray]":
    with np.load(pictures_file(tmp_path / "arrays.npz", labelled=True)) as file:
        return dict(file)


def test_settings_have_dots_and_build_on_the_recipe(monkeypatch, tmp_path):
    chosen = []
    monkeypatch.setattr(
        "iwm.evaluation.after_pretraining.pretrain", lambda s, callbacks: chosen.append((s, callbacks)) or Path("x")
    )
    run = iwm.pretrain("demo", data="sample", out=tmp_path / "run", callbacks=[3], seed=4, **{"optim.epochs": 3})
    ((settings, callbacks),) = chosen
    recipe = recipe_book.get("demo")
    assert settings == replace(
        recipe,
        data=replace(recipe.data, source="sample"),
        optim=replace(recipe.optim, epochs=3),
        run=replace(recipe.run, out=str(tmp_path / "run"), seed=4),
    )
    assert (callbacks, run) == ([3], iwm.Run(Path("x")))
    iwm.pretrain(settings)
    assert chosen[1][0] == settings


@pytest.mark.parametrize(
    ("values", "keywords", "complaint"),
    [
        (("demmo",), {}, "did you mean 'demo'"),
        ((), {}, "Which recipe"),
        (("demo",), {"optim.epoch": 3}, r"iwm.pretrain has no option 'optim.epoch'; did you mean 'optim.epochs'\?"),
        (("demo",), {"optim.epochs": "many"}, "must be int"),
        (("cifar10",), {}, "brings no pictures; give data="),
        (("demo",), {"labels": [1]}, "belong to images in memory"),
        (("demo",), {"data": "sample", "data_name": "x"}, "sample is a source itself"),
    ],
)
def test_wrong_settings_are_one_sentence(values, keywords, complaint, tmp_path):
    with pytest.raises(UserError, match=complaint):
        iwm.pretrain(*values, out=tmp_path / "run", **keywords)
    assert not (tmp_path / "run").exists()


def test_a_result_holds_what_its_file_holds_prints_and_draws(trained, arrays, capsys):
    result = iwm.world(trained, data=arrays["images"], images=2, bank=8, data_name="mine")
    assert "mrr" not in capsys.readouterr().out.replace("Written", ""), "a result prints itself when it is printed"
    assert result.path == trained / "eval" / "world-2x8-seed0-mine.json"
    content = json.loads(result.path.read_text())
    assert dict(result) == content
    assert (result.mrr, result.data) == (content["mrr"], "mine")
    assert "World model on mine" in str(result)
    assert f"{result.mrr:.4f}" in str(result)
    with Image.open(result.path.with_suffix(".png")) as picture:
        width, height = picture.size
    figure = result.figure()
    assert tuple(figure.get_size_inches() * figure.dpi) == pytest.approx((width, height))
    assert "<table>" in result._repr_html_()
    assert "data:image/png;base64," in result._repr_html_()
    again = iwm.read_result(result.path)
    assert type(again) is type(result)
    assert again == result
    assert "mrr_shuffled" in str(again)
    with pytest.raises(AttributeError):
        result.mrr = 1.0  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(UserError, match="has no picture 'other'"):
        result.figure("other")


COMMITTED = [
    path
    for pattern in ("demo-model/eval/*.json", "long/*/eval/*.json", "seeds/*/seed0/*.json")
    for path in sorted((Path(__file__).parent.parent / "results").glob(pattern))
]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_results_written_before_are_objects_too(path):
    result = iwm.read_result(path)
    content = json.loads(path.read_text())
    assert type(result).__name__.lower() == f"{path.stem.split('-')[0]}result"
    assert dict(result) == content
    for name, value in vars(result).items():
        if name in content and name != "weights":
            assert value == content[name]
    assert len(repr(result)) < 500
    assert str(content["data"]) in str(result)
    assert "<table>" in result._repr_html_()


def test_labels_reach_the_probe_and_another_set_validates(trained, arrays):
    train, val = (arrays["images"], arrays["labels"]), (arrays["val_images"], arrays["val_labels"])
    result = iwm.probe(trained, data=train, val=val, kind="knn", baselines=False)
    assert (result["n_train"], result["n_val"], result.random_encoder_top1) == (64, 16, None)
    whole = iwm.probe(trained, data=arrays["images"], labels=arrays["labels"], kind="knn", baselines=False)
    assert (whole["n_train"], whole["n_val"]) == (58, 6)


def test_pictures_in_memory_are_imagined_and_inferred(trained, arrays):
    one, other = (Image.fromarray(image) for image in arrays["images"][:2])
    result = iwm.imagine(trained, one, action="brightness=0.2", bank=4)
    assert result.path.stem.startswith("imagine-brightness-0.2-memory-")
    assert 1 <= result.rank <= result.bank
    action = iwm.infer(trained, one, other).action
    assert action
    assert "brightness" in action


def test_labels_without_images_in_memory_are_refused(trained):
    with pytest.raises(UserError, match="labels and data_name belong to images in memory"):
        iwm.report(trained, labels=[0, 1])


def test_tasks_in_memory_are_named(monkeypatch, arrays):
    monkeypatch.setattr("iwm.evaluation.tasks.multitask.multitask", lambda o: o)
    options: Any = iwm.multitask("run", task={"one": (arrays["images"], arrays["labels"]), "two": "sample-objects"})
    one, two = options.task
    assert one.startswith("one=memory:")
    assert two == "two=sample-objects"


def test_a_sweep_takes_a_recipe_and_images(monkeypatch, arrays):
    seen = []
    monkeypatch.setattr("iwm.verbs.Verb.run", lambda self, o: seen.append(o))
    iwm.sweep("demo", data=arrays["images"], out="out", data_name="mine", **{"optim.epochs": 1})
    settings = seen[0].settings
    assert settings.data.source.endswith("/mine")
    assert (settings.recipe, settings.optim.epochs, settings.run.out) == ("demo", 1, "out")


def test_a_sweep_is_an_object(monkeypatch, tmp_path, capsys):
    one = {"cell": "none-jitter", "mrr": 0.5, "linear": 0.25, "attentive": None, "predictor_finetuning": None}
    content = {"runs": [{**one, "healthy": True}], "guidance": [{"title": "Which?", "sentence": "Too few runs."}]}
    monkeypatch.setattr("iwm.verbs.Verb.run", lambda self, o: content)
    result = iwm.sweep("demo", data="sample", out=tmp_path)
    assert capsys.readouterr().out == ""
    assert dict(result) == content
    assert result.path == tmp_path / "sweep.json"
    assert "0.2500" in str(result)
    assert "Too few runs." in str(result)
    assert "<td>none-jitter</td><td>0.5000</td><td>0.2500</td><td>True</td>" in result._repr_html_()


def test_a_run_shows_itself(trained):
    run = iwm.Run(trained)
    assert Path(run) == trained
    assert run.metrics[-1]["step"] == 8
    assert run.verdict() == iwm.doctor(run)
    assert "rankme" in str(run)
    assert "<table>" in run._repr_html_()
    assert run.figure().get_axes()
    assert iwm.report(run) == trained / "report.html"
    iwm.world(run, data=trained.parent / "pictures.npz", images=2, bank=4)
    assert [one.path.name for one in run.results] == ["world-2x4-seed0-pictures.json"]
    rows = iwm.compare([run])
    assert {row["metric"] for row in rows} >= {"mrr"}
    assert "mrr" in str(rows)


def test_images_in_memory_are_forgotten_after_the_call(trained, arrays):
    from iwm.data import memory

    iwm.world(trained, data=arrays["images"], images=2, bank=4)
    assert not memory._HELD


def test_functions_tell_their_options():
    assert inspect.signature(iwm.world).parameters["bank"].default == 256
    assert (iwm.world.__doc__ or "").startswith(verbs.find("world").sentence)
    assert list(inspect.signature(iwm.pretrain).parameters)[:4] == ["recipe", "data", "labels", "data_name"]
    assert isinstance(config.Config(), iwm.Config)


def test_masks_come_from_files(arrays, trained):
    with pytest.raises(UserError, match="Masks are read from files"):
        iwm.segment(trained, data=arrays["images"])


def test_a_run_goes_on_with_equal_content_only_and_a_replay_says_what_is_missing(arrays, tmp_path):
    settings, out, pixels = tiny(), tmp_path / "run", arrays["images"][:30]
    iwm.pretrain(settings, data=pixels, data_name="mine", out=out, **{"optim.epochs": 1})
    run = iwm.pretrain(settings, data=list(pixels), data_name="mine", out=out, **{"optim.epochs": 2})
    assert [line["step"] for line in run.metrics] == [1, 2]
    with pytest.raises(UserError, match="was trained on other images in memory"):
        iwm.pretrain(settings, data=pixels[::-1], data_name="mine", out=out, **{"optim.epochs": 3})
    with pytest.raises(UserError, match="'mine' were images in the memory of a Python session"):
        iwm.pretrain(run.folder.config, out=tmp_path / "replay")
    assert not (tmp_path / "replay").exists()
    again = iwm.pretrain(run.folder.config, data=pixels, data_name="mine", out=tmp_path / "replay")
    assert again.metrics[-1]["step"] == 2


def test_a_stopped_run_on_images_in_memory_says_how_it_goes_on(arrays, tmp_path):
    class Stop:
        def on_step(self, state):
            if state.step == 2:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(iwm.Interrupted, match=r"Saved at step 2 of 6. Go on with: the same iwm.pretrain\("):
        iwm.pretrain(tiny(), data=arrays["images"], out=tmp_path / "run", callbacks=[Stop()])
