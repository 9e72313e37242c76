"""Pictures come out whole whatever the numbers are, and the strips tell the truth about what is nearest."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from oracle import photo
from PIL import Image

from iwm import config
from iwm.actions.action_space import ActionSpace
from iwm.actions.views import make_views
from iwm.evaluation.tasks import overlays
from iwm.model.masks import sample_masks
from iwm.reports import figures
from iwm.runtime import drawing
from iwm.runtime.errors import UserError
from iwm.training import gallery

SIZE, GRID, BANK = 32, (4, 4), 16
CFG = config.Config(data=config.Data(image_size=SIZE))
SPACE = ActionSpace.from_config(CFG.actions, SIZE)


@pytest.mark.parametrize("predict", ["dropped", "all", "visible"])
def test_the_gallery_covers_exactly_the_dropped_patches(predict: Any) -> None:
    images, indices = photo(3), np.arange(3)
    views = make_views(images, SPACE, CFG.actions, 0, 0, indices, "cpu")
    masks = sample_masks(config.Masks(predict=predict), GRID, 0, 0, indices, "cpu")
    figure = gallery.gallery(images, views, masks, SPACE, GRID, count=2)
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
        gallery.gallery(images[:0], views, masks, SPACE, GRID)


def line(step: int, **values: float | list[float] | None) -> dict[str, Any]:
    usual = {"loss": 0.5, "position_mean_loss": 0.9, "identity_loss": 0.4, "rankme": 20.0, "lr": 1e-3, "ema": 0.99}
    usual |= {"target_pixel_r2": 0.7, "target_position_share": 0.3, "photometric_share": 1.6, "target_rankme": 9.0}
    usual |= {"action_slope": 0.5, "action_correlation": -0.1}
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
    path = drawing.save(figures.curves(lines), tmp_path / "new" / "curves.png")
    with Image.open(path) as drawn:
        assert drawn.width > 1000
    assert [file.name for file in path.parent.iterdir()] == ["curves.png"]


def test_the_probe_is_drawn_when_there_is_one_and_joined_over_the_lines_without() -> None:
    assert not any("probe" in title for title in titles(figures.curves([line(1), line(2)])))
    figure = figures.curves([line(1, probe_top1=0.2), line(2), line(3, probe_top1=0.4)])
    assert len(figure.axes) == len(figures.PANELS)
    (drawn,) = [axes for axes in figure.axes if "probe" in axes.get_title(loc="left")]
    assert np.asarray(drawn.lines[0].get_ydata()).tolist() == [0.2, 0.4]


def test_the_loss_beside_the_baselines_is_that_of_the_same_images() -> None:
    """The training loss has spread terms and whole sources, which no baseline has; it is a line of its own."""
    axes = figures.curves([line(step, loss=9.0, health_loss=0.5) for step in (1, 2)]).axes[0]
    heights = {str(drawn.get_label()): np.asarray(drawn.get_ydata()).tolist() for drawn in axes.lines}
    assert heights["this run, masked source"] == [0.5, 0.5]
    assert heights["training batches, all terms"] == [9.0, 9.0]


def test_the_photometric_share_is_no_part_of_the_targets() -> None:
    """It reaches 2, where shares of a whole end at 1: a chart of its own. Every instrument is in some chart."""
    panels = {panel.title: [key for key, _, _ in panel.lines] for panel in figures.PANELS}
    (share,) = [keys for keys in panels.values() if "photometric_share" in keys]
    assert share == ["photometric_share", "photometric_share_last"]
    drawn = {key for keys in panels.values() for key in keys}
    assert drawn >= {"target_rankme", "target_pixel_r2", "target_pixel_r2_blocks", "target_position_share"}
    assert drawn >= {"action_slope", "action_correlation"}
    (axes,) = [axes for axes in figures.curves([line(1), line(2)]).axes if "Photometric" in axes.get_title(loc="left")]
    assert axes.get_ylim()[1] > 1.6


def test_what_is_measured_of_every_block_is_a_numbered_line_each() -> None:
    """A run that was resumed with another depth, or a line without it, leaves a gap and stops nothing."""
    lines = [line(1, target_pixel_r2_blocks=[0.9, 0.4]), line(2), line(3, target_pixel_r2_blocks=[0.8, math.nan, 0.1])]
    (axes,) = [axes for axes in figures.curves(lines).axes if "predictable" in axes.get_title(loc="left")]
    drawn = {str(each.get_label()): np.asarray(each.get_ydata()).tolist() for each in axes.lines}
    assert drawn["block 1, 2..."] == [0.9, 0.8]
    blocks = [np.asarray(each.get_ydata()) for each in axes.lines if each.get_color() == drawing.PALE]
    np.testing.assert_array_equal(blocks, [[0.9, 0.8], [0.4, math.nan], [math.nan, 0.1]])
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3"]


def test_no_lines_is_an_error() -> None:
    with pytest.raises(UserError, match="no metrics"):
        figures.curves([])
    with pytest.raises(UserError, match="known curves"):
        figures.curves([{"step": 3}])


def test_overlays_show_truth_prediction_and_mistakes_with_a_legend(tmp_path):
    truth = np.zeros((8, 12), dtype=np.int64)
    truth[:, 6:] = 1
    truth[0] = -100
    guess = truth.copy()
    guess[0] = 0
    guess[4, 2] = 1
    image = torch.full((3, 8, 12), 128, dtype=torch.uint8)
    figure = overlays.overlays([overlays.Overlay(image, truth, guess)], ["sky", "road", "never seen"])
    words = [text.get_text() for text in figure.texts]
    assert {"sky", "road", "does not count", "truth", "prediction"} <= set(words)
    assert "never seen" not in words
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes[:4]]
    assert [len(np.unique(part.reshape(-1, 3), axis=0)) for part in shown] == [1, 3, 2, 3]
    assert np.argwhere((shown[3] == 0).all(axis=-1)).tolist() == [[4, 2]]
    assert (shown[1][0] == 255).all()
    assert not (shown[2][1, 0] == shown[2][1, 8]).all()
    assert drawing.save(figure, tmp_path / "overlay.png").stat().st_size > 1000


def test_overlays_of_many_classes():
    colours = overlays.class_colours(150)
    assert len(np.unique(colours.round(3), axis=0)) == 150
    assert colours.min() >= 0
    assert colours.max() <= 1
    kinds = np.arange(150).reshape(10, 15)
    figure = overlays.overlays(
        [overlays.Overlay(torch.zeros(3, 10, 15, dtype=torch.uint8), kinds, kinds)], [f"kind {n}" for n in range(150)]
    )
    assert "and 126 rarer classes" in [text.get_text() for text in figure.texts]
    with pytest.raises(UserError, match="no segmented images"):
        overlays.overlays([], ["a"])


def test_a_name_that_is_no_utf_8_is_drawn(tmp_path: Path) -> None:
    figure = drawing.blank(2, 1)
    drawing.put_words(figure, "b\udce4r", 0.1, 0.1)
    assert drawing.save(figure, tmp_path / "a.png").is_file()
    assert drawing.drawable("Bär 猫") == "Bär 猫"


def names_drawn(name: str) -> tuple[Figure, bytes]:
    figure = drawing.grouped_bars(name, "top-1", [name], {name: [0.5]})
    return figure, drawing.png_of(figure)


@pytest.mark.filterwarnings("error")
def test_a_name_that_the_usual_font_lacks_is_drawn_with_one_that_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Bold script letters, which of matplotlib's own fonts those for formulas have."""
    figure, png = names_drawn("𝓐")
    assert not any(capsys.readouterr())
    family = drawing._font_with("𝓐")
    assert all(text.get_fontfamily()[-1] == family for text in figure.findobj(Text))
    for text in figure.findobj(Text):
        text.set_fontfamily(["DejaVu Sans"])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(drawing, "_choose_fonts", lambda figure: None)
        assert drawing.png_of(figure) != png, "a box in its place"


@pytest.mark.filterwarnings("error")
def test_a_name_that_no_font_has_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(drawing, "_font_with", lambda character: "")
    names_drawn("猫 and 犬")
    words = " ".join(capsys.readouterr().err.split())
    assert words == (
        "No font on this machine has 犬猫, so pictures show boxes there; install one that does, such as Noto Sans CJK, "
        "and measure again."
    )


def test_a_name_with_dollars_is_no_formula() -> None:
    figure, _ = names_drawn(r"$\frac$ of $x_{$")
    assert figure.axes[0].get_xticklabels()[0].get_text().startswith(r"$\frac$")
