"""Predictions are the classifier's own, one line a readable image, and the classifier is found."""

import csv
import logging
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny
from picture_files import noise, zipped

from iwm import config
from iwm.data.loader import load_all
from iwm.data.sources import open_images
from iwm.evaluation.tasks import classifier, finetune
from iwm.evaluation.tasks.predict import COLUMNS
from iwm.evaluation.tasks.predict import predict as predict_all
from iwm.model import weights
from iwm.model.world_model import ImageWorldModel
from iwm.runtime.devices import CPU
from iwm.runtime.errors import UserError
from iwm.verbs.predict import Predict
from iwm.verbs.shared import Classification

SPEED = config.Speed(precision="fp32", device="cpu", workers=0)


def predict(run: str, images: str, out: str) -> list[dict[str, str]]:
    return predict_all(Predict(run=run, images=images, out=out, speed=SPEED))


def saved(folder: Path, names: tuple[str, ...]) -> Path:
    """An untrained classifier with clear opinions."""
    torch.manual_seed(0)
    # Not AdaLN, which starts blind.
    model = ImageWorldModel(tiny(predictor=config.Predictor(depth=2, width=32, conditioning="feature", init="xavier")))
    built = finetune.build(model, Classification(), names, 16)
    with torch.no_grad():
        built.head.get_submodule("linear").get_parameter("weight").mul_(50)
    classifier.save_classifier(built, model, folder)
    return folder


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("classes", [3, 7])
def test_a_line_an_image_with_the_classifiers_own_probabilities(tmp_path, classes, caplog):
    names = tuple(f"class, {number}" for number in range(classes))
    folder = saved(tmp_path / "tuned", names)
    source = noise(tmp_path / "images" / "test", 9, broken=(4,))
    noise(tmp_path / "images" / "val", 2)
    with caplog.at_level(logging.WARNING, "iwm"):
        predict(str(folder), str(tmp_path / "images"), out=str(tmp_path / "p.csv"))
    assert caplog.text.count("004.png") == 1
    lines = read(tmp_path / "p.csv")
    assert list(lines[0]) == list(COLUMNS)
    assert [Path(line["file"]).name for line in lines] == [f"{i:03}.png" for i in (0, 1, 2, 3, 5, 6, 7, 8, 0, 1)]
    pixels, _ = load_all(open_images(str(source), "all"), 16)
    wanted = classifier.predict(classifier.load_classifier(folder), pixels, CPU)
    for line, values in zip(lines, wanted, strict=False):
        order = values.argsort(descending=True).tolist()
        assert line["prediction"] == line["top_1"] == names[order[0]]
        assert float(line["probability"]) == pytest.approx(float(values.max()), abs=1e-5)
        best = [names[number] for number in order[:5]]
        assert [line[f"top_{place}"] for place in range(1, 6)] == best + [""] * (5 - len(best))
    assert len({line["probability"] for line in lines}) > 5


def test_one_file_an_archive_and_arrays(tmp_path):
    folder = str(saved(tmp_path / "tuned", ("a", "b")))
    source = noise(tmp_path / "images", 3)
    whole = predict(folder, str(source), out=str(tmp_path / "p.csv"))
    one = predict(folder, str(source / "001.png"), out=str(tmp_path / "p.csv"))
    assert one == whole[1:2]
    packed = predict(folder, str(zipped(source, tmp_path / "i.zip")), out=str(tmp_path / "p.csv"))
    assert [line["probability"] for line in packed] == [line["probability"] for line in whole]
    pixels, _ = load_all(open_images(str(source), "all"), 16)
    np.savez(tmp_path / "i.npz", images=pixels.permute(0, 2, 3, 1).numpy())
    arrays = predict(folder, str(tmp_path / "i.npz"), out=str(tmp_path / "p.csv"))
    assert [line["probability"] for line in arrays] == [line["probability"] for line in whole]


def test_the_classifier_of_a_run_is_found(tmp_path):
    run = tmp_path / "run"
    weights.export(ImageWorldModel(tiny()), run / "model")
    images, out = str(noise(tmp_path / "images", 2)), str(tmp_path / "p.csv")
    with pytest.raises(UserError, match=r"no finetuned classifier in .*iwm finetune"):
        predict(str(run), images, out=out)
    first = saved(run / "eval" / "finetune-predictor-a", ("a", "b"))
    assert len(predict(str(run), images, out=out)) == 2
    shutil.copytree(first, run / "eval" / "finetune-head-b")
    with pytest.raises(
        UserError, match=r"2 finetuned classifiers; name one: .*finetune-head-b, .*finetune-predictor-a"
    ):
        predict(str(run), images, out=out)
    with pytest.raises(UserError, match="no run at"):
        predict(str(tmp_path / "absent"), images, out=out)


def test_what_cannot_be_predicted(tmp_path):
    folder = str(saved(tmp_path / "tuned", ("a", "b")))
    with pytest.raises(UserError, match="Not one of the 1 images"):
        predict(folder, str(noise(tmp_path / "images", 1, broken=(0,)) / "000.png"), out=str(tmp_path / "p.csv"))
    with pytest.raises(UserError, match="is a folder"):
        predict(folder, str(noise(tmp_path / "more", 1)), out=str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        predict(folder, str(tmp_path / "empty"), out=str(tmp_path / "p.csv"))
    assert not (tmp_path / "p.csv").exists()


def test_a_place_for_the_predictions_is_found_before_anything_is_read(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"predictions cannot be written to .*/file \(Not a directory\); give --out"):
        predict("no run", "no images", str(tmp_path / "file" / "x.csv"))
    with pytest.raises(UserError, match=r"is a folder; give --out the name of a new \.csv file"):
        predict("no run", "no images", str(tmp_path))


def test_predictions_take_the_place_of_predictions_alone(tmp_path):
    folder, images = str(saved(tmp_path / "tuned", ("a", "b"))), noise(tmp_path / "images", 2)
    photo, labels, out = images / "000.png", tmp_path / "labels.csv", tmp_path / "p.csv"
    labels.write_text("file,label\n000.png,a\n")
    before = photo.read_bytes()
    for path in (photo, labels):
        with pytest.raises(UserError, match=f"{path.name} holds something else than the predictions; give --out"):
            predict(folder, str(images), str(path))
    assert photo.read_bytes() == before
    assert labels.read_text() == "file,label\n000.png,a\n"
    out.touch()  # as mktemp leaves it
    for _ in range(2):
        predict(folder, str(images), str(out))
    assert len(read(out)) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such names")
def test_names_that_are_no_utf_8_keep_their_bytes(tmp_path):
    folder, images = str(saved(tmp_path / "tuned", ("a", "b"))), noise(tmp_path / "images", 2)
    (images / "000.png").rename(images / os.fsdecode(b"b\xe4r.png"))
    predict(folder, str(images), str(tmp_path / "p.csv"))
    assert b"/b\xe4r.png," in (tmp_path / "p.csv").read_bytes()
