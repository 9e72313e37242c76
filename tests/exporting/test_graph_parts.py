"""Which parts a run has, what is left out with a sentence, and what is asked for and not there."""

from typing import Any

import pytest
import tiny_encoders  # noqa: F401 - registers them
import torch
from conftest import tiny

from exporting.models import classifier, foreign, options, replaced, segmenter, world
from iwm import config
from iwm.exporting.format import Request
from iwm.exporting.graph_parts import encoder_at, parts_of
from iwm.model import weights
from iwm.run_folder import load_model
from iwm.runtime.errors import UserError


def names(run: Any, **changes: Any) -> list[str]:
    return [part.name for part in parts_of(Request(options(run, **changes)))]


def test_a_run_gives_what_it_has(tmp_path):
    run = world(tmp_path / "run", decoder=True)
    assert names(run) == ["encoder", "predictor", "decoder"]
    assert names(run, part=("decoder", "encoder")) == ["encoder", "decoder"]
    classifier(run, run / "eval" / "finetune-predictor-photos")
    segmenter(run, run / "eval" / "segment-head-boxes", "linear", predicts=False)
    assert names(run) == ["encoder", "predictor", "decoder", "classifier", "segmenter"]
    assert names(run / "eval" / "segment-head-boxes") == ["segmenter"]
    joint = world(
        tmp_path / "joint",
        objective=config.Objective(kind="joint"),
        **replaced(tiny(), "views", geometry="independent"),
    )
    assert names(joint) == ["encoder"]


def test_of_several_classifiers_one_must_be_named(tmp_path, capsys):
    run = world(tmp_path / "run")
    for name in ("finetune-a", "finetune-b"):
        classifier(run, run / "eval" / name)
    assert names(run, part=("encoder",)) == ["encoder"]
    assert "Left out" not in capsys.readouterr().out
    assert names(run) == ["encoder", "predictor"]
    assert "Left out: the 2 classifiers; give one of them as RUN" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match=r"has 2 classifiers; give one of them as RUN: .*finetune-a, .*finetune-b\."):
        names(run, part=("classifier",))
    assert names(run / "eval" / "finetune-a") == ["classifier"]


def test_what_there_is_not_is_said(tmp_path):
    run = world(tmp_path / "run")
    with pytest.raises(UserError, match="has no decoder; it has encoder, predictor"):
        names(run, part=("decoder",))
    with pytest.raises(UserError, match="There is no part 'encodr'; did you mean 'encoder'"):
        names(run, part=("encodr",))
    folder = classifier(run, tmp_path / "classifier")
    with pytest.raises(UserError, match="has no encoder; it has classifier"):
        names(folder, part=("encoder",))
    with pytest.raises(UserError, match="sees 16 px; leave out --size"):
        names(folder, size=32)
    with pytest.raises(UserError, match="Images of 18 px do not divide into patches of 4 px"):
        names(run, size=18)


def test_a_published_encoder_is_left_out_unless_it_is_asked_for(tmp_path, capsys, monkeypatch):
    run = world(tmp_path / "run", **foreign("tiny_class_token", 32, train="none"))
    assert names(run) == ["encoder", "predictor"]  # weights=random: nobody else has them
    monkeypatch.setattr(weights, "is_published", lambda encoder: True)
    assert names(run) == ["predictor"]
    assert "the encoder, timm:tiny_class_token,weights=random as it is published; --part encoder" in " ".join(
        capsys.readouterr().out.split()
    )
    assert names(run, part=("encoder",)) == ["encoder"]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["tiny_class_token", "tiny_registers", "tiny_dinov3", "tiny_siglip"])
def test_an_encoder_at_a_size_resamples_beforehand_as_it_would_by_itself(tmp_path, kind):
    encoder = load_model(world(tmp_path, **foreign(kind, 32, train="all"))).target_encoder
    images = torch.rand(2, 3, 64, 64)
    fixed = encoder_at(encoder, 64)
    assert fixed.grid == (8, 8)
    torch.testing.assert_close(fixed.tokens(images), encoder.tokens(images))
    assert encoder.grid == (4, 4)
