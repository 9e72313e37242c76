"""What is said before a training is so: of blocks, of the learning rate, and of a tenth that was trained on before."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import pictures_file, tiny, trained_on
from PIL import Image

from iwm import config
from iwm.data.sources import open_images
from iwm.model.cost import cost
from iwm.training import estimate, loop, remarks
from iwm.training.schedule import Schedule


def said(settings: config.Config) -> list[str]:
    return remarks.before(settings, open_images(settings.data.source, "train"), Schedule(settings.optim, 4))


@pytest.fixture
def settings(tmp_path: Path) -> config.Config:
    return trained_on(tiny(), source=str(pictures_file(tmp_path / "p.npz")), out=str(tmp_path / "run"))


def test_the_ordinary_needs_no_words(settings):
    assert said(settings) == []


def test_a_rate_that_never_reaches_its_peak(settings):
    late = replace(settings.optim, warmup_epochs=2.0, epochs=2)
    assert (
        "still rises when training ends (optim.warmup_epochs 2 are 8 steps)" in said(replace(settings, optim=late))[0]
    )


def test_blocks_behind_the_one_that_is_predicted(settings):
    middle = replace(settings, encoder=replace(settings.encoder, depth=4, layer=2))
    assert said(middle) == ["Blocks 3 to 4 stay as drawn: nothing is asked there without objective.invariance_weight."]
    assert said(replace(middle, encoder=replace(middle.encoder, layer=3)))[0].startswith("Block 4 stays")
    weighted = replace(middle, objective=replace(middle.objective, invariance_weight=1.0))
    ratio = cost(weighted).train_flops / cost(middle).train_flops
    assert ratio > 1
    assert said(weighted) == [
        "Block 2 of 4 is predicted, the last one made invariant (weight 1): "
        f"{ratio:.1f} times the operations of a step without."
    ]


def test_a_held_out_tenth_that_was_trained_on_before(tmp_path, capsys):
    """Who adds pictures and goes on from the old weights learns at once that no number will come of the tenth."""
    photos = tmp_path / "photos"
    photos.mkdir()
    draw = np.random.default_rng(0)

    def add(name: str) -> None:
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(photos / f"{name}.png")

    for number in range(40):
        add(f"{number:03}")
    first, second = (trained_on(tiny(), source=str(photos), out=str(tmp_path / name)) for name in ("old", "new"))
    loop.pretrain(first)
    second = replace(second, init=str(tmp_path / "old"))
    assert said(second) == []
    add("040")
    sentence = f"{photos} held 40 images when {tmp_path / 'old'} was trained and holds 41 now, so most of the tenth"
    assert [words[: len(sentence)] for words in said(second)] == [sentence]
    estimate.pretrain(second)
    assert "no command will measure this run on it" in " ".join(capsys.readouterr().err.split())
    loop.pretrain(second)
    assert "no command will measure this run on it" in " ".join(capsys.readouterr().out.split())
