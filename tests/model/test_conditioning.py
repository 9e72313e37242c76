"""The conditionings by name, and one of a user's own beside them."""

from dataclasses import replace

import pytest
import torch
from conftest import SAME_DRAWS, fingerprint, tiny, trained_on
from jaxtyping import Float
from torch import Tensor, nn

import iwm
from iwm import cli, config
from iwm.actions.photometric import PHOTOMETRIC
from iwm.model.conditioning import CONDITIONINGS, conditioning_of
from iwm.model.flops import predictor_parameters
from iwm.model.predictor import Predictor
from iwm.runtime.errors import UserError
from iwm.sweeps import figures, guidance, page
from iwm.training import loop

MLP = [f"condition.{layer}.{part}" for layer in (0, 2, 4) for part in ("weight", "bias")]
NAMES = {
    "none": ["mask_token", "embed.weight", "embed.bias", "BLOCKS", "norm.weight", "norm.bias"],
    "sequence": [
        *("mask_token", "action_weight", "action_bias", "embed.weight", "embed.bias"),
        *("BLOCKS", "norm.weight", "norm.bias"),
    ],
    "feature": ["mask_token", "embed.weight", "embed.bias", "BLOCKS", *MLP, "norm.weight", "norm.bias"],
    "adaln": ["mask_token", "embed.weight", "embed.bias", *MLP[:4], "BLOCKS", "norm.weight", "norm.bias"],
}
"""Names of weights in their order, which saved weights and the state of optimisers go by."""
FINGERPRINTS = {
    ("none", "xavier"): 166.3064889737521,
    ("none", "trunc_normal"): 159.4698910798644,
    ("sequence", "xavier"): 149.50293163547366,
    ("sequence", "trunc_normal"): 159.26445850082467,
    ("feature", "xavier"): 126.90416248930286,
    ("feature", "trunc_normal"): 158.73776874321936,
    ("adaln", "xavier"): 145.52749895959815,
    ("adaln", "trunc_normal"): 159.2313556109248,
}
"""Weighted sums of all weights drawn from seed 0, written down before conditionings were classes."""


def build(kind: str, init: str) -> Predictor:
    torch.manual_seed(0)
    return Predictor(replace(tiny().predictor, conditioning=kind, init=init), 24, 7, (4, 4))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("kind", "init"), FINGERPRINTS)
def test_weights_keep_their_names_their_order_and_their_draws(kind, init):
    predictor = build(kind, init)
    names = ["BLOCKS" if name.startswith("blocks.") else name for name in predictor.state_dict()]
    assert list(dict.fromkeys(names)) == [*NAMES[kind], "project.weight", "project.bias"]
    assert not SAME_DRAWS or fingerprint(predictor) == pytest.approx(FINGERPRINTS[kind, init], rel=1e-6)


@pytest.mark.parametrize("kind", CONDITIONINGS)
def test_parameters_are_counted(kind):
    settings = tiny(predictor=replace(tiny().predictor, conditioning=kind))
    predictor = Predictor(settings.predictor, 32, len(PHOTOMETRIC), (4, 4))
    assert predictor_parameters(settings, len(PHOTOMETRIC), 32) == sum(p.numel() for p in predictor.parameters())


def test_help_names_every_built_in_one(capsys):
    with pytest.raises(SystemExit):
        cli.main(["pretrain", "--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in CONDITIONINGS.built_in)


class Scale(iwm.Conditioning):
    """Every query is scaled channel by channel."""

    name = "scale"

    def build(self, predictor: nn.Module) -> None:
        super().build(predictor)
        predictor.gain = nn.Linear(self.actions, self.width)

    def query(
        self, predictor: nn.Module, query: Float[Tensor, "b q w"], action: Float[Tensor, "b k"]
    ) -> Float[Tensor, "b q w"]:
        return query * (1 + predictor.get_submodule("gain")(action)[:, None])

    def parameter_count(self) -> int:
        return (self.actions + 1) * self.width

    def flops(self, queries: int) -> float:
        return 2 * self.actions * self.width


@pytest.fixture
def settings(tmp_path, pictures: str) -> config.Config:
    settings = trained_on(tiny(), source=pictures, out=str(tmp_path / "run"))
    return replace(settings, predictor=replace(settings.predictor, conditioning="scale"))


def test_one_of_your_own_trains_is_judged_and_loads(settings, monkeypatch, capsys):
    with pytest.raises(UserError, match=r"predictor\.conditioning is 'scale'.*iwm\.register_conditioning"):
        loop.pretrain(settings)
    with monkeypatch.context() as patch:
        patch.setitem(CONDITIONINGS, "scale", Scale)  # so that it is gone again afterwards
        assert iwm.register_conditioning(Scale) is Scale
        run = loop.pretrain(settings)
        assert cli.main(["doctor", str(run)]) in (0, 1)
        assert "conditioning none" not in capsys.readouterr().out
        assert cli.main(["report", str(run)]) == 0
        world = iwm.load(str(run))
        tokens = world.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
        still, moved = (world.predict(tokens, world.action(brightness=b)).values for b in (0.0, 0.4))
        assert not torch.equal(still, moved)
        assert predictor_parameters(settings, len(PHOTOMETRIC), 32) == sum(
            p.numel() for p in world.predictor.parameters()
        )
    with pytest.raises(UserError, match=r"'scale'.*iwm\.register_conditioning"):
        iwm.load(str(run))
    assert cli.main(["report", str(run)]) == 0, "the page of a run shows it, known or not"
    assert "predictor IWM(2, 32), scale" in (run / "report.html").read_text()


@pytest.mark.parametrize("known", [False, True])
def test_a_sweeps_tables_and_pictures_show_one_of_your_own(monkeypatch, known):
    row = {"recipe": "demo", "difficulty": "destructive", "predictor": "2x32", "mrr": 0.5, "cell": "a"}
    runs = [{**row, "conditioning": "adaln"}, {**row, "conditioning": "scale", "mrr": 0.6}]
    if known:
        monkeypatch.setitem(CONDITIONINGS, "scale", Scale)
    tables = guidance.tables(runs)
    assert tables["conditioning"]["mrr"] == {"adaln": 0.5, "scale": 0.6}
    assert tables["conditioning"]["paper"] == {"none": 0.0, "sequence": 0.82, "feature": 0.79}
    assert "scale" in page._conditioning_rows(tables)[0]
    figures.bars(tables)
    assert len({figures.colour_of(name) for name in guidance.columns(["scale"])}) == 5, "a colour for each"


def test_a_name_that_is_not_known_builds_nothing():
    with pytest.raises(UserError, match="did you mean 'feature'"):
        conditioning_of(replace(tiny().predictor, conditioning="features"), 7)
