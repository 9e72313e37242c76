"""A study knows what its numbers depend on, and which of them lie in its folder already."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import pictures_file, tiny, with_run
from planted_runs import metrics

from iwm import config, recipe_book
from iwm.evaluation import ritual
from iwm.model import weights
from iwm.model.world_model import ImageWorldModel
from iwm.run_folder import RunFolder, identity
from iwm.runtime import devices
from iwm.runtime.errors import UserError
from iwm.sweeps import measurement
from iwm.sweeps.study import Study, is_trained, learned
from iwm.training.validation import with_encoder
from iwm.verbs.sweep import Sweep

ONE: dict[str, Any] = {"conditionings": "adaln", "levels": "destructive", "predictors": "2x32"}
"""The axes of a single cell."""


def study_of(out: Path, settings: config.Config | None = None, **options: Any) -> Study:
    settings = settings or tiny()
    settings = replace(with_run(settings, out=str(out)), recipe="demo")
    return Study(Sweep(settings=settings, **options))


def test_a_recipe_without_a_predictor_says_nothing_of_one(tmp_path):
    moco = recipe_book.of_family("moco", "demo")
    settings = with_run(tiny(), out=str(tmp_path))
    whole = Study(Sweep(settings=settings, others=(replace(moco, recipe="moco-demo"),)))
    cell = next(cell for cell in whole.cells if cell.name == "moco-demo")
    row = whole.row(cell)
    assert [row[name] for name in ("conditioning", "difficulty", "predictor", "mrr")] == [None] * 4
    assert set(whole.evaluations(cell)) == {"linear", "attentive"}, "nothing that it cannot be asked"
    assert set(whole.evaluations(whole.cells[0])) == {"world", "linear", "attentive", "predictor_finetuning"}


def test_everything_a_number_depends_on_is_written_down(tmp_path):
    study = study_of(tmp_path, bank=8, levels="strong")
    settings = study.settings
    assert (settings["recipe"], settings["recipes"], settings["seed"]) == ("demo", [], 0)
    assert settings["axes"]["levels"] == "strong"
    assert list(settings["axes"]) == ["conditionings", "levels", "predictors", "design"]
    assert study_of(tmp_path, invariance="0,1").settings["axes"]["invariance"] == "0,1"
    assert settings["protocol"]["bank"] == 8
    assert settings["protocol"]["finetune_lrs"] == [3e-4, 1e-3, 3e-3]
    assert not {"jobs", "cell", "list", "words", "settings"} & settings["protocol"].keys()
    assert "predictor.depth" not in settings["pretraining"], "varied"
    assert settings["pretraining"]["optim.lr"] == tiny().optim.lr


def test_a_folder_holds_one_sweep(tmp_path):
    study = study_of(tmp_path / "out")
    study.require_same()
    study.folder.mkdir()
    (study.folder / "sweep.json").write_text("{}")
    with pytest.raises(UserError, match=r"sweep\.json is damaged"):
        study.require_same()
    (study.folder / "sweep.json").write_text(json.dumps({"settings": study.settings}))
    study.require_same()
    study_of(tmp_path / "out", levels="strong").require_same()
    with pytest.raises(UserError, match=r"with optim\.epochs = 2, now it is 3"):
        study_of(tmp_path / "out", tiny(optim=replace(tiny().optim, epochs=3))).require_same()
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match="is a file; give a folder"):
        study_of(file).require_same()


def test_weights_count_only_with_the_same_settings(tmp_path):
    study = study_of(tmp_path, **ONE)
    (cell,) = study.cells
    folder = study.run_of(cell)
    assert not is_trained(folder, cell.settings)
    weights.export(ImageWorldModel(cell.settings), folder.model)
    assert is_trained(folder, cell.settings)
    assert is_trained(folder, with_run(cell.settings, out="elsewhere", log_every=7)), "nothing that is learned"
    assert not is_trained(folder, with_run(cell.settings, seed=1))
    assert learned(cell.settings) != learned(with_run(cell.settings, seed=1))


def test_a_run_that_cells_start_from_is_known_by_its_place(tmp_path, monkeypatch):
    """Weights note where it lies; before, they noted what was typed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "first").mkdir()
    (cell,) = study_of(tmp_path / "out", replace(tiny(), init="first"), **ONE).cells
    for noted in (str(tmp_path / "first"), "first"):
        weights.export(ImageWorldModel(replace(cell.settings, init=noted)), RunFolder(tmp_path / "cell").model)
        assert is_trained(RunFolder(tmp_path / "cell"), cell.settings)
        assert not is_trained(RunFolder(tmp_path / "cell"), replace(cell.settings, init="demo"))


def test_a_finished_training_on_an_encoder_of_others_is_known_again(tmp_path):
    """Its export holds the sizes that the encoder brought."""
    encoder = replace(recipe_book.get("demo").encoder, name="timm:test_vit,weights=random", train="none")
    study = study_of(tmp_path, tiny(data=config.Data(image_size=32), encoder=encoder), **ONE)
    (cell,) = study.cells
    folder = study.run_of(cell)
    weights.export(ImageWorldModel(with_encoder(cell.settings)), folder.model)
    assert is_trained(folder, cell.settings)
    other = replace(cell.settings, encoder=replace(encoder, name="timm:test_vit2,weights=random"))
    assert not is_trained(folder, other)


@pytest.fixture
def prepared(tmp_path: Path) -> Study:
    """A study of one cell with two evaluations, on labelled pictures."""
    source = str(pictures_file(tmp_path / "pictures.npz", labelled=True))
    settings = replace(tiny(), data=replace(tiny().data, source=source))
    return study_of(tmp_path / "out", settings, **ONE, attentive_epochs=0, finetune_epochs=0).prepare()


@pytest.fixture
def done(monkeypatch) -> list[str]:
    """Training and measuring are played: what counts is what is done, which is listed here, noted and found again."""
    done = []

    def train(settings):
        done.append("train")
        folder = RunFolder(Path(settings.run.out))
        torch.manual_seed(settings.run.seed)
        weights.export(ImageWorldModel(settings), folder.model)
        config.save(settings, folder.config)
        folder.metrics.write_text(metrics())

    def measure(name, run, data, val, settings, how):
        done.append(name)
        number = {"mrr": 0.5, "mrr_standard_error": 0.01} if name == "world" else {"top1": 0.7}
        precision = devices.precision_of(settings.speed, devices.device_of(settings.speed))
        content = {**number, "precision": precision, "run_weights": identity(run)}
        return ritual.write(RunFolder(Path(run)).eval / f"{name}-{precision}.json", content, {"name": precision, **how})

    monkeypatch.setattr("iwm.training.loop.pretrain", train)
    monkeypatch.setattr(measurement, "measure", measure)
    return done


def test_a_cell_goes_from_waiting_to_finished(prepared, done, monkeypatch):
    study = prepared
    (cell,) = study.cells
    measure = measurement.measure

    def measure_at_last(name, *rest):
        if name == "linear" and name not in done:
            done.append(name)
            raise UserError("There are no labels.")
        return measure(name, *rest)

    monkeypatch.setattr(measurement, "measure", measure_at_last)
    assert study.row(cell)["state"] == "waiting"
    assert study.run(cell)
    row = study.row(cell)
    assert (row["state"], row["mrr"], row["linear"]) == ("partial", 0.5, None)
    assert row["refused"] == {"linear": "There are no labels."}
    assert (row["healthy"], row["mrr_own_range"]) == (True, 0.5)
    assert study.run(cell)
    assert (study.row(cell)["state"], study.row(cell)["linear"]) == ("finished", 0.7)
    assert not study.run(cell)
    assert done == ["train", "world", "linear", "linear"]
    other = replace(study, options=replace(study.options, bank=8))
    assert set(other.results(cell)) == {"linear"}, "the MRR was measured with another bank"


def test_results_of_earlier_weights_are_measured_again(prepared, done):
    (cell,) = prepared.cells
    prepared.run(cell)
    torch.manual_seed(1)
    weights.export(ImageWorldModel(cell.settings), prepared.run_of(cell).model)  # trained anew, elsewhere say
    row = prepared.row(cell)
    assert (row["state"], row["mrr"], row["linear"]) == ("partial", None, None)
    assert prepared.run(cell)
    assert done == ["train", *2 * ["world", "linear"]]
    assert prepared.row(cell)["state"] == "finished"


def test_a_cell_is_finished_only_when_it_is_trained(prepared, done):
    (cell,) = prepared.cells
    prepared.run(cell)
    folder = prepared.run_of(cell)
    shutil.rmtree(folder.model)
    assert not prepared.run(cell), "cleared of its weights, its results stand"
    assert prepared.row(cell)["state"] == "finished"
    folder.checkpoints.mkdir()
    assert prepared.row(cell)["state"] == "partial"
    assert prepared.run(cell)
    assert done == ["train", "world", "linear", "train"]
    for path in folder.eval.glob("*.json"):  # as they were before results named their weights
        content = json.loads(path.read_text())
        del content["run_weights"]
        path.write_text(json.dumps(content))
    weights.export(ImageWorldModel(with_run(cell.settings, seed=1)), folder.model)
    assert prepared.run(cell), "another training lies there"
    assert done[4:] == ["train"]


def test_what_was_measured_on_other_images_is_measured_again(prepared, done):
    (cell,) = prepared.cells
    prepared.run(cell)
    assert prepared.prepare().is_finished(cell)
    record = prepared.record(cell)
    arrays = dict(np.load(prepared.data))
    np.savez(prepared.data, **arrays | {"images": arrays["images"] // 2})
    changed = prepared.prepare()
    assert changed.row(cell)["state"] == "partial"
    for name, answer in record.items():  # as they were before a mark knew the files
        answer["asked"] = changed.marks(cell, name)[1]
    (prepared.run_of(cell).path / "cell.json").write_text(json.dumps(record))
    assert changed.row(cell)["state"] == "finished"


@pytest.mark.parametrize(
    "lack", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")]
)
def test_what_runs_out_of_memory_leaves_the_rest(prepared, done, monkeypatch, lack):
    (cell,) = prepared.cells

    def lacking(*given):
        raise lack

    with monkeypatch.context() as patch:
        patch.setattr("iwm.training.loop.pretrain", lacking)
        assert prepared.run(cell)
    row = prepared.row(cell)
    assert row["state"] == "failed"
    assert row["failed"].startswith("Out of memory: give --speed.checkpoint-blocks or fewer --jobs, end other")
    with monkeypatch.context() as patch:
        measure = measurement.measure
        patch.setattr(measurement, "measure", lambda name, *how: (measure if name == "linear" else lacking)(name, *how))
        assert prepared.run(cell)
    row = prepared.row(cell)
    assert (row["state"], row["failed"], row["mrr"], row["linear"]) == ("partial", None, None, 0.7)
    assert row["refused"]["world"].startswith("Out of memory: give fewer --jobs, end other")


def test_a_mistake_of_our_own_ends_the_sweep(prepared, done, monkeypatch):
    def mistaken(settings):
        raise RuntimeError("a shape does not fit")

    monkeypatch.setattr("iwm.training.loop.pretrain", mistaken)
    with pytest.raises(RuntimeError, match="a shape"):
        prepared.run(prepared.cells[0])


def in_precision(study: Study, precision: str) -> Study:
    """The same study with another --speed.precision."""
    settings = replace(study.base, speed=replace(study.base.speed, precision=precision))
    return replace(study, options=replace(study.options, settings=settings))


def test_results_of_two_precisions_are_no_one_measurement(prepared, done, monkeypatch):
    monkeypatch.setattr(devices, "multiplies_bf16", lambda device: True)
    auto, (cell,) = in_precision(prepared, "auto"), prepared.cells
    assert auto.run(auto.cells[0])
    assert auto.row(auto.cells[0])["precision"] == "bf16"
    monkeypatch.setattr(devices, "multiplies_bf16", lambda device: False)
    elsewhere = in_precision(prepared, "auto")
    assert elsewhere.is_finished(elsewhere.cells[0]), "another machine collects"
    assert "adaln-destructive-2x32 in bf16, and here it would be fp32" in elsewhere.collect()["precision_note"]
    assert (prepared.row(cell)["state"], prepared.row(cell)["precision"]) == ("partial", None), "fp32 was asked for"
    assert prepared.run(cell)
    assert done == ["train", "world", "linear", "world", "linear"]
    content = prepared.collect()
    assert (content["runs"][0]["precision"], content["precision_note"]) == ("fp32", None)


def test_results_that_name_no_precision_go_on(prepared, done):
    (cell,) = prepared.cells
    prepared.run(cell)
    for path in prepared.run_of(cell).eval.glob("*.json"):  # as they were once written
        content = json.loads(path.read_text())
        del content["precision"]
        path.write_text(json.dumps(content))
    other = in_precision(prepared, "bf16")
    assert other.is_finished(other.cells[0])
