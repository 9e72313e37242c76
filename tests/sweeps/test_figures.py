"""The figures of a sweep show every run, and what is said beside them."""

import numpy as np

from iwm.sweeps import guidance
from iwm.sweeps.figures import scatter, spectrum
from sweeps.test_guidance import TRADE
from sweeps.test_page import JOINT, OTHER


def test_the_scatter_shows_every_run_and_says_r_and_n():
    figure = scatter([*TRADE, OTHER])
    linear, attentive, tuned = figure.axes
    r = guidance.correlations([*TRADE, OTHER])["linear"]["r"]
    assert f"r = {r:+.2f} (n = 5)\npaper: r = -0.85" in linear.get_title(loc="left")
    assert "n too small: 0 runs" in attentive.get_title(loc="left")
    shown = {
        (np.asarray(line.get_xdata())[0], np.asarray(line.get_ydata())[0])
        for line in linear.lines
        if line.get_marker() not in ("None", "|", "_")
    }
    assert shown == {(row["mrr"], row["linear"]) for row in [*TRADE, OTHER]}
    assert [text.get_text() for text in tuned.texts] == ["mae-demo"]


def test_a_joint_embedding_stands_beside_the_axis():
    measured = {**JOINT, "linear": 0.5}
    left, right = spectrum([*TRADE, measured]).axes
    assert next(label.get_text() for label in left.get_yticklabels()) == JOINT["cell"]
    assert [note.get_text() for note in left.texts] == ["no world model"]
    assert any(0.5 in np.asarray(line.get_xdata()) for line in right.lines)
