"""Pictures come out whole whatever the numbers are, and the strips tell the truth about what is nearest."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from iwm import config, pictures, world
from iwm.actions import ActionSpace
from iwm.errors import UserError
from iwm.masks import sample_masks
from iwm.model import ImageWorldModel, Tokens
from iwm.views import make_views

SIZE, GRID, BANK = 32, (4, 4), 16
CFG = config.Config(data=config.Data(image_size=SIZE))
SPACE = ActionSpace.from_config(CFG.actions, SIZE)


class Oracle(ImageWorldModel):
    """Stands in for a model: pixels are its tokens, and it computes what the action does instead of learning it.

    What was destroyed cannot be computed back: to undo it looks the clean image up.
    """

    def __init__(self, clean: Tensor, wrong: bool = False) -> None:
        torch.nn.Module.__init__(self)
        self.settings, self.space = CFG, SPACE
        self.clean, self.sign = clean, -1 if wrong else 1

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def encode(self, images: Tensor, *, student: bool = False) -> Tokens:
        return Tokens(images.flatten(2).transpose(1, 2), (SIZE, SIZE))

    def target(self, images: Tensor) -> Tokens:
        return self.encode(images)

    def predict(self, tokens: Tokens, action: Tensor) -> Tokens:
        source = tokens.values.transpose(1, 2).unflatten(2, (SIZE, SIZE))
        if action[4:].any():
            return self.encode(self.clean if self.sign > 0 else 1 - self.clean)
        return self.encode(self.space.apply(source, self.space.reach(self.sign * action[None])))


def photo(count: int = 1) -> Tensor:
    """Smooth colourful uint8 images [n, 3, 32, 32]."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bilinear") * 255).byte()


def asked(images: Tensor, wrong: bool = False) -> list[pictures.StripRow]:
    return pictures.strip_rows(Oracle(images[:1].float() / 255, wrong), images, seed=3, bank=BANK)


def frames(figure: Figure) -> list[str]:
    """Colours of the frames around the nearest images, in order."""
    framed = [axes for axes in figure.axes if axes.spines["left"].get_visible()]
    return [to_hex(axes.spines["left"].get_edgecolor()).upper() for axes in framed]


def test_an_oracle_is_framed_as_right() -> None:
    rows = asked(photo())
    assert [row.action.rsplit(", ")[-1] for row in rows[1:]] == ["undo grayscale", "undo blur", "undo solarize"]
    for row in rows:
        assert row.rank == 1
        assert row.bank == BANK
        torch.testing.assert_close(row.nearest, row.truth)
        assert not torch.allclose(row.source, row.truth)
    assert frames(pictures.strips(rows)) == [pictures.GREEN] * len(rows)


def test_a_wrong_model_is_framed_as_wrong() -> None:
    rows = asked(photo(), wrong=True)
    assert all(row.rank > 1 and not torch.allclose(row.nearest, row.truth) for row in rows)
    assert frames(pictures.strips(rows)) == [pictures.ORANGE] * len(rows)


def test_a_tie_is_not_right(monkeypatch: pytest.MonkeyPatch) -> None:
    def constant(self: Oracle, images: Tensor) -> Tokens:
        return Tokens(torch.zeros(len(images), 4, 3), (2, 2))

    monkeypatch.setattr(Oracle, "target", constant)
    monkeypatch.setattr(Oracle, "predict", lambda self, tokens, action: constant(self, tokens.values))
    rows = asked(photo())
    assert [row.rank for row in rows] == [1 + (BANK - 1) / 2] * len(rows)
    assert not any(row.right for row in rows)


def test_strips_ask_the_bank_that_is_ranked() -> None:
    image = photo()[0]
    row = asked(image[None])[0]
    reference = world.reference_space(SPACE, SIZE)
    parameters = reference.sample_bank(3, 0, BANK)
    entries = reference.apply((image[None].float() / 255).expand(BANK, -1, -1, -1), parameters)
    actions = SPACE.difference(SPACE.neutral(BANK), parameters)
    place = [torch.equal(entry, row.truth) for entry in entries].index(True)
    assert row.action == SPACE.describe(actions[place])


def test_a_space_without_destruction_has_nothing_to_undo(monkeypatch: pytest.MonkeyPatch) -> None:
    gentle = ActionSpace.from_config(config.Actions(level="jitter"), SIZE)
    oracle = Oracle(photo().float() / 255)
    monkeypatch.setattr(oracle, "space", gentle)
    rows = pictures.strip_rows(oracle, photo(2), seed=0, bank=BANK)
    assert len(rows) == 2


def test_no_strips_is_an_error() -> None:
    with pytest.raises(UserError, match="at least one image"):
        pictures.strips([])


@pytest.mark.parametrize("predict", ["dropped", "all", "visible"])
def test_the_gallery_covers_exactly_the_dropped_patches(predict: Any) -> None:
    images, indices = photo(3), np.arange(3)
    views = make_views(images, SPACE, CFG.actions, 0, 0, indices, "cpu")
    masks = sample_masks(config.Masks(predict=predict), GRID, 0, 0, indices, "cpu")
    figure = pictures.gallery(images, views, masks, SPACE, GRID, count=2)
    covers = [covered(axes) for axes in figure.axes]
    assert len(covers) == 2 * 5
    dropped, unasked = 16 - masks.context.shape[1], 16 - masks.predicted.shape[1]
    assert covers == [0, 0, dropped, 0, unasked] * 2
    assert SPACE.describe(views.action[0]) in " ".join(text.get_text() for text in figure.texts)


def covered(axes: Axes) -> int:
    return sum(len(c.get_paths()) for c in axes.collections if isinstance(c, PatchCollection))


def test_an_empty_gallery_is_an_error() -> None:
    images, none = photo(1), np.arange(0)
    views = make_views(images[:0], SPACE, CFG.actions, 0, 0, none, "cpu")
    masks = sample_masks(config.Masks(), GRID, 0, 0, np.arange(1), "cpu")
    with pytest.raises(UserError, match="at least one"):
        pictures.gallery(images[:0], views, masks, SPACE, GRID)


def line(step: int, **values: float | None) -> dict[str, Any]:
    usual = {"loss": 0.5, "position_mean_loss": 0.9, "identity_loss": 0.4, "rankme": 20.0, "lr": 1e-3, "ema": 0.99}
    return {
        "step": step,
        **usual,
        "target_variance": 0.5,
        "action_sensitivity": 0.4,
        "images_per_second": 300.0,
        **values,
    }


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


@pytest.mark.parametrize(
    "lines",
    [
        [line(50)],
        [line(50, loss=math.nan, rankme=math.inf), line(100, loss=math.nan, rankme=None)],
        [line(50, loss=1e30), line(100, loss=-1.0, images_per_second=0.0), line(150, loss=math.nan)],
        [line(50, loss=0.1), line(100, loss=1e6)],
        [{"loss": 1.0}, {"loss": 2.0}],
    ],
)
def test_odd_lines_are_drawn(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    path = pictures.save(pictures.curves(lines), tmp_path / "new" / "curves.png")
    with Image.open(path) as drawn:
        assert drawn.width > 1000
    assert [file.name for file in path.parent.iterdir()] == ["curves.png"]


def test_the_probe_is_drawn_when_there_is_one_and_joined_over_the_lines_without() -> None:
    assert not any("probe" in title for title in titles(pictures.curves([line(1), line(2)])))
    figure = pictures.curves([line(1, probe_top1=0.2), line(2), line(3, probe_top1=0.4)])
    assert len(figure.axes) == len(pictures.PANELS)
    (drawn,) = [axes for axes in figure.axes if "probe" in axes.get_title(loc="left")]
    assert np.asarray(drawn.lines[0].get_ydata()).tolist() == [0.2, 0.4]


def test_no_lines_is_an_error() -> None:
    with pytest.raises(UserError, match="no metrics"):
        pictures.curves([])
    with pytest.raises(UserError, match="known curves"):
        pictures.curves([{"step": 3}])


def point(family: str, parameters: int, top1: float, blocks: int) -> dict[str, Any]:
    train = f"last-{blocks}" if family == "encoder" else "predictor"
    depth = blocks if family in ("pretrained", "random") else None
    return {
        "family": family,
        "trainable_parameters": parameters,
        "top1": top1,
        "n_val": 100,
        "train": train,
        "predictor_depth": depth,
    }


def test_efficiency_is_drawn_over_a_logarithmic_axis(tmp_path: Path) -> None:
    points = [point("pretrained", 900_000, 0.5, 4), point("pretrained", 200_000, 0.4, 1)]
    points += [point("encoder", 450_000, 0.36, 1), point("head", 100_000, 0.3, 0)]
    figure = pictures.efficiency(points, 0.1, "objects")
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.texts] == ["1", "4", "1"]
    drawn = {tuple(line.get_xdata()): tuple(line.get_ydata()) for line in (c[0] for c in axes.containers)}
    assert drawn[(200_000, 900_000)] == (0.4, 0.5)
    low, high = axes.get_xlim()
    assert low < 100_000
    assert high > 900_000
    pictures.save(figure, tmp_path / "e.png")
    pictures.save(pictures.efficiency(points[:1], 0.1, "objects"), tmp_path / "one.png")
    with pytest.raises(UserError, match="no points"):
        pictures.efficiency([], 0.1, "objects")
