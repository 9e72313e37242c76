"""What the page is told of the model, and what it may ask of the images it holds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import pictures_file, tiny
from planted_page import plant_answers
from test_pictures import file

from iwm import config
from iwm.model.world_model import ImageWorldModel
from iwm.page.answers import Answers, Unknown
from iwm.runtime.errors import UserError
from iwm.verbs.app import App


@pytest.fixture
def answers(tmp_path: Path) -> Answers:
    return plant_answers(tmp_path)


def test_the_page_draws_itself_from_what_it_is_told(answers: Answers) -> None:
    world = answers.world()
    assert (world["run"], world["local"], world["size"], world["decodes"]) == ("tiny", True, 16, True)
    assert [slider["name"] for slider in world["sliders"]] == list(answers.model.space.names)
    assert len(world["images"]) == 16, "the held-out ones"
    assert world["limits"] == "JPEG, PNG, WebP, GIF or BMP, up to 1 MB and 2 megapixels."
    for image in world["images"]:
        assert answers.png(image["key"]).startswith(b"\x89PNG")


def test_an_uploaded_image_is_asked_like_the_others(answers: Answers) -> None:
    key = answers.upload(file(), "grey.png")["key"]
    answer = answers.imagine({"image": key, "action": {"brightness": 0.4}})
    assert answer["words"] == "brightness +0.40"
    assert set(answer["pictures"]) == {"source", "truth", "imagined", "decoded", "nearest", "map"}


def test_the_changed_image_is_held_with_the_change(answers: Answers) -> None:
    asked = {"image": "f1", "action": {"brightness": -0.4, "grayscale": 1}}
    changed = answers.changed(asked)
    after, before = answers.picture(changed["key"]), answers.picture("f1")
    assert after.pixels.float().mean() < 0.75 * before.pixels.float().mean()
    rows = {row["name"]: row for row in answers.infer({"source": "f1", "target": changed["key"]})["rows"]}
    assert (rows["brightness"]["truth"], rows["hue"]["truth"]) == (-0.4, 0)
    assert rows["grayscale"]["truth"] == 0, "what only a source carries was not done"
    assert rows["brightness"]["pixels"] == pytest.approx(-0.4, abs=0.02)


@pytest.mark.parametrize(
    "groups",
    [
        {"objective": config.Objective(kind="pixels", target_norm="batch")},
        {"actions": config.Actions(set="camera")},
        {
            "actions": config.Actions(level="jitter"),
            "predictor": config.Predictor(depth=1, width=32, conditioning="none"),
        },
    ],
    ids=["pixels", "camera", "blind"],
)
def test_other_kinds_of_world_models_are_asked_alike(tmp_path: Path, groups: dict[str, Any]) -> None:
    source = str(pictures_file(tmp_path / "pictures.npz"))
    model = ImageWorldModel(tiny(**groups)).eval().requires_grad_(False)
    answers = Answers(model, App(run="runs/other", data=source, bank=12))
    while answers.prepare():
        pass
    for slider in answers.world()["sliders"]:
        action = {slider["name"]: slider["high"] or slider["low"]}
        answer = answers.imagine({"image": "f0", "action": action})
        assert answer["words"] != "as it is"
        assert ("imagined" in answer["pictures"]) == model.decodes
        assert len(answers.search({"image": "f0", "action": action})["nearest"]) == 8
    key = answers.changed({"image": "f0", "action": {answers.world()["sliders"][0]["name"]: 0.2}})["key"]
    assert answers.infer({"source": "f0", "target": key, "undo": True})["rows"]


def test_background_work_ends_with_everything_encoded(answers: Answers) -> None:
    pieces = 0
    while answers.prepare():
        pieces += 1
        assert pieces < 100
    assert answers.folder.complete
    assert answers.banks.of("f0", answers.folder.pixels[0]).complete
    assert answers.search({"image": "f0"})["searched"] == 64 + 16


@pytest.mark.parametrize("key", [None, 3, "u00", "f1000", ["f0"]])
@pytest.mark.parametrize("question", ["imagine", "changed", "search"])
def test_an_image_that_is_not_held_is_said_so(answers: Answers, question: str, key: object) -> None:
    with pytest.raises(Unknown, match="choose it again"):
        getattr(answers, question)({"image": key})


def test_what_nobody_can_ask_is_refused(answers: Answers) -> None:
    with pytest.raises(UserError, match="outside"):
        answers.imagine({"image": "f0", "action": {"hue": 5}})
    with pytest.raises(Unknown):
        answers.infer({"source": "f0"})


def test_memory_does_not_grow_with_the_questions(answers: Answers) -> None:
    """Uploads and banks are forgotten again: the bounds are those of bytes, whatever is asked."""
    answers.pictures.most_bytes = 5 * 3 * 16 * 16
    answers.banks.most_bytes = 3 * answers.banks.of("f0", answers.folder.pixels[0]).bytes
    for number in range(12):
        torch.manual_seed(number)
        key = answers.changed({"image": f"f{number}", "action": {"brightness": 0.2}})["key"]
        answers.imagine({"image": key, "action": {}})
    assert len(answers.pictures._kept) == 5
    assert len(answers.banks._kept) == 3
