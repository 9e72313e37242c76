"""The objectives by name, and two of a user's own beside them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import SAME_DRAWS, fingerprint, tiny, trained_on
from jaxtyping import Float
from torch import Tensor, nn

import iwm
from iwm import cli, config, recipe_book
from iwm.actions.views import Views
from iwm.model.cost import cost
from iwm.model.masks import Masks
from iwm.model.objectives import OBJECTIVES, PatchPrediction, objective_of
from iwm.model.objectives.objective import Examination, ModelParts, Output, Pixels
from iwm.model.world_model import ImageWorldModel
from iwm.run_folder import read_metrics
from iwm.runtime.errors import UserError
from iwm.training import loop

FINGERPRINTS = {
    "": (976.7763418358129, ["encoder", "target_encoder", "predictor", "target_norm"]),
    "ijepa-style": (1015.1552862275543, ["encoder", "target_encoder", "predictor", "target_norm"]),
    "mae": (974.9359430423399, ["encoder", "target_encoder", "predictor"]),
    "pixel-world": (1006.6763409818141, ["encoder", "target_encoder", "predictor", "target_norm"]),
    "moco": (985.0062694553333, ["encoder", "target_encoder", "joint"]),
    "byol": (916.4901047474153, ["encoder", "target_encoder", "joint"]),
}
"""Weighted sums of all weights drawn from seed 0, and their groups in order, before objectives were classes."""


@pytest.mark.parametrize("family", FINGERPRINTS)
def test_weights_keep_their_names_their_order_and_their_draws(family):
    settings = recipe_book.FAMILIES[family](tiny()) if family else tiny()
    settings = replace(settings, objective=replace(settings.objective, projector_width=32, projector_dim=16))
    torch.manual_seed(0)
    model = ImageWorldModel(settings)
    total, groups = FINGERPRINTS[family]
    assert list(dict.fromkeys(name.split(".")[0] for name in model.state_dict())) == groups
    assert not SAME_DRAWS or fingerprint(model) == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_summary_bears_settings_of_any_age(kind):
    assert "?" in OBJECTIVES.find(kind).summary({})


class Brightness(PatchPrediction):
    """Predict the mean colour of every patch."""

    name = "brightness"
    noun = "a world model of colours"
    predicts_tokens = False

    @property
    def output_width(self) -> int:
        return 3

    def raw_target(self, model: ModelParts, images: Pixels) -> Float[Tensor, "b n r"]:
        colours = F.avg_pool2d(model.encoder.normalise(images), model.encoder.patch_size)
        return colours.flatten(2).transpose(1, 2)


class Alike(iwm.Objective):
    """Pull the mean tokens of both views together through a Linear of its own."""

    name = "alike"
    noun = "a pair of twins"
    predicts = False
    baseline = "stranger_loss"
    ignorance = "another image"
    learner = "the encoder"

    def modules(self) -> dict[str, nn.Module]:
        width = self.settings.encoder.width
        return {"student_head": nn.Linear(width, 8), "teacher_head": nn.Linear(width, 8).requires_grad_(False)}

    def averages(self, model: ModelParts) -> list[tuple[nn.Module, nn.Module]]:
        return [(model.get_submodule("teacher_head"), model.get_submodule("student_head"))]

    def forward(self, model: ModelParts, views: Views, masks: Masks) -> Output:
        prediction = model.get_submodule("student_head")(model.encoder.tokens(views.source))
        with torch.no_grad():
            target = model.get_submodule("teacher_head")(model.target_encoder.tokens(views.target))
        loss = F.mse_loss(prediction, target)
        return Output(loss, loss, prediction, target)

    def health(self, model: ModelParts, seen: Examination) -> dict[str, float]:
        return {"stranger_loss": float(F.mse_loss(seen.output.prediction, seen.output.target.roll(1, 0)))}

    @classmethod
    def remarks(cls, line: Mapping[str, Any]) -> list[str]:
        return ["Twins predict nothing."]

    def parameter_count(self, actions: int) -> int:
        return (self.settings.encoder.width + 1) * 8

    def step_flops(self, actions: int) -> float:
        return 0.0


@pytest.fixture
def settings(tmp_path, pictures: str) -> config.Config:
    return trained_on(tiny(), source=pictures, out=str(tmp_path / "run"))


@pytest.mark.parametrize("own", [Brightness, Alike])
def test_one_of_your_own_trains_is_judged_and_loads(settings, monkeypatch, own, capsys):
    settings = replace(settings, objective=config.Objective(kind=own.name))
    with pytest.raises(UserError, match=rf"objective\.kind is '{own.name}'.*iwm\.register_objective"):
        loop.pretrain(settings)
    with monkeypatch.context() as patch:
        patch.setitem(OBJECTIVES, own.name, own)  # so that it is gone again afterwards
        assert iwm.register_objective(own) is own
        run = loop.pretrain(settings)
        line = read_metrics(run / "metrics.jsonl")[-1]
        assert own.baseline in line
        assert cost(settings).predictor_parameters == objective_of(settings).parameter_count(7)
        again = replace(settings, optim=replace(settings.optim, epochs=3))
        assert loop.pretrain(again) == run, "it resumes"
        assert cli.main(["doctor", str(run)]) in (0, 1)
        assert f"knowing {own.ignorance}" in " ".join(capsys.readouterr().out.split())
        assert cli.main(["report", str(run)]) == 0
        world = iwm.load(str(run))
        images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
        if own.predicts:
            assert world.target(images).values.shape == (2, 16, 3)
            assert world.predict(world.encode(images), world.action()).values.shape == (2, 16, 3)
        else:
            with pytest.raises(UserError, match=r"This run is a pair of twins \(objective\.kind alike\)"):
                world.target(images)
            assert cli.main(["world", str(run), "--data", settings.data.source]) == 2
    with pytest.raises(UserError, match=rf"'{own.name}'.*iwm\.register_objective"):
        iwm.load(str(run))
    assert cli.main(["report", str(run)]) == 0, "the page of a run shows it, known or not"


def test_a_finetuned_head_reads_tokens_of_one_of_your_own(settings, monkeypatch, tmp_path):
    monkeypatch.setitem(OBJECTIVES, Brightness.name, Brightness)
    run = loop.pretrain(replace(settings, objective=config.Objective(kind="brightness")))
    tuning = ["--epochs=1", "--no-baselines", "--lrs", "1e-3", "--ratios", "1", "--train", "predictor"]
    assert cli.main(["finetune", str(run), "--data", settings.data.source, *tuning]) == 0
