"""Correlations are scipy's, and planted runs give the planted guidance."""

import numpy as np
import pytest
from scipy import stats

from iwm.sweeps import guidance


def run(name: str, mrr: float | None, linear: float | None, tuned: float | None = None, **more: object) -> dict:
    conditioning, difficulty, predictor = name.split("-")
    row = {"cell": name, "recipe": "demo", "conditioning": conditioning, "difficulty": difficulty}
    row |= {"predictor": predictor, "mrr": mrr, "linear": linear, "attentive": None, "predictor_finetuning": tuned}
    row |= {"mrr_standard_error": 0.005, "mrr_chance": 0.024, "mrr_own_range": mrr, "n_val": 10000}
    return row | {"failed": None, "refused": {}, "healthy": True, "health": "Fine.", "state": "finished"} | more


TRADE = [
    run("adaln-destructive-4x96", 0.5, 0.50, 0.70),
    run("none-destructive-4x96", 0.024, 0.60, 0.55),
    run("feature-destructive-4x96", 0.4, 0.52, 0.66),
    run("adaln-strong-4x96", 0.8, 0.40, 0.75),
    run("adaln-jitter-4x96", 0.3, 0.54, 0.62),
]


def said(runs: list[dict]) -> dict[str, tuple[bool | None, str]]:
    return {finding.title: (finding.good, finding.sentence) for finding in guidance.advise(runs)}


@pytest.mark.parametrize("n", [4, 5, 20])
def test_correlation_is_scipys(n):
    x, y = np.random.default_rng(n).normal(size=(2, n))
    found = guidance.correlation(x.tolist(), y.tolist())
    known = stats.pearsonr(x, y)
    assert found["r"] == pytest.approx(known[0], abs=1e-12)
    low, high = known.confidence_interval(0.95)
    assert found["interval"] == pytest.approx([low, high], abs=1e-6)
    assert found["n"] == n


def test_correlation_says_why_there_is_none():
    assert guidance.correlation([1.0, 2, 3], [1.0, 2, 3])["note"] == "n too small: 3 runs, 4 are needed"
    assert "the same in all runs" in guidance.correlation([0.1] * 5, [1.0, 2, 3, 4, 5])["note"]
    assert guidance.correlation([1.0, 2, 3, 4], [2.0, 4, 6, 8])["r"] == pytest.approx(1)


def test_correlations_are_over_the_runs_that_have_both():
    missing = [run("sequence-destructive-4x96", None, 0.9), run("adaln-strong-2x96", 0.9, None, 0.8)]
    missing.append(run("adaln-jitter-9x9", 0.9, 0.9, 0.1, recipe="mae-demo"))  # of another recipe
    found = guidance.correlations(TRADE + missing)
    assert {name: one["n"] for name, one in found.items()} == {"linear": 5, "attentive": 0, "predictor_finetuning": 6}
    assert found["linear"]["r"] == pytest.approx(
        np.corrcoef([r["mrr"] for r in TRADE], [r["linear"] for r in TRADE])[0, 1]
    )
    assert (found["linear"]["paper"], found["attentive"]["paper"]) == (-0.85, None)


ONE = "This is of one pretraining each; another seed may turn it round."


def test_a_planted_trade_off_is_told_and_not_decided_by_one_pretraining_each():
    told = said(TRADE)
    assert {good for good, _ in told.values()} == {None}
    assert "ake " not in " ".join(words for _, words in told.values()), "no choice is advised"
    words = told["Invariant or equivariant?"][1]
    assert "On these images the most invariant is none-destructive-4x96 (linear probe 0.600" in words
    assert "the most equivariant adaln-strong-4x96 (linear probe 0.400, MRR 0.800)" in words
    assert words.endswith(ONE)
    words = told["Which predictor to finetune?"][1]
    assert words.startswith("On these images adaln-strong-4x96 (0.750) is ahead of the next, adaln-destructive-4x96")
    assert words.endswith(f"(0.700). {ONE}")
    words = told["How to tell the predictor the action?"][1]
    assert words.endswith(f"On these images adaln (0.500) is ahead of feature (0.400). {ONE}")
    words = told["What goes with a high MRR?"][1]
    assert words.endswith("All runs share a seed and test images, so this suggests and does not decide.")
    assert "Linear probe: falls with MRR (r = -0.9" in words
    assert "Finetuned predictor: rises with MRR" in words
    assert "Attentive probe: not computed (n too small: 0 runs" in words


def test_other_families_may_be_the_invariant_one_but_their_mrr_is_of_another_space():
    joint = run("none-none-none", None, 0.7, recipe="moco-demo", cell="moco-demo")
    pixels = run("adaln-destructive-9x9", 0.99, 0.3, recipe="pixel-world-demo")
    good, words = said([*TRADE, joint, pixels])["Invariant or equivariant?"]
    assert good is None
    assert words.startswith(
        "On these images the most invariant is moco-demo (linear probe 0.700), the most equivariant"
    )
    assert words.endswith(f"adaln-strong-4x96 (linear probe 0.400, MRR 0.800). {ONE}")


def test_differences_within_noise_support_no_choice():
    few = [{**row, "n_val": 20, "mrr_standard_error": 0.4} for row in TRADE]
    told = said(few)
    for title in ("Invariant or equivariant?", "Which predictor to finetune?"):
        assert told[title][0] is None
    assert "No run is equivariant" in told["Invariant or equivariant?"][1]
    small = [{**row, "n_val": 20} for row in TRADE]
    assert "do not support a choice" in said(small)["Invariant or equivariant?"][1]
    assert "in linear probe they are within noise" in said(small)["Invariant or equivariant?"][1]
    assert "do not single one out" in said(small)["Which predictor to finetune?"][1]


def test_one_best_for_both_is_no_trade_off():
    runs = [run("adaln-destructive-4x96", 0.5, 0.7), run("none-destructive-4x96", 0.024, 0.6)]
    good, words = said(runs)["Invariant or equivariant?"]
    assert good is None
    assert "no trade-off: adaln-destructive-4x96 has both the best linear probe (0.700, ahead of" in words
    ignored = [run("adaln-destructive-4x96", 0.025, 0.7), run("none-destructive-4x96", 0.024, 0.6)]
    assert "No run is equivariant" in said(ignored)["Invariant or equivariant?"][1]
    good, words = said(ignored)["How to tell the predictor the action?"]
    assert good is False
    assert "the predictors ignore it" in words


def test_too_few_runs_say_so():
    for runs in (TRADE[:1], [run("adaln-destructive-4x96", None, None)]):
        assert all(good is None for good, _ in said(runs).values())
        assert "Too few runs" in said(runs)["Invariant or equivariant?"][1]


def test_tables_hold_ours_beside_the_papers():
    runs = [*TRADE, run("adaln-destructive-4x192", 0.6, 0.5), run("none-strong-4x96", 0.03, 0.5)]
    found = guidance.tables([*runs, run("adaln-jitter-9x9", 0.9, 0.9, recipe="other")])
    assert found["conditioning"]["mrr"] == {"none": 0.024, "feature": 0.4, "adaln": 0.5}
    assert found["conditioning"]["paper"] == {"none": 0.0, "sequence": 0.82, "feature": 0.79}
    assert found["difficulty"]["mrr"] == {
        "4x96": {"jitter": 0.3, "destructive": 0.5, "strong": 0.8},
        "4x192": {"destructive": 0.6},
    }
    assert found["difficulty"]["paper"]["18x384"]["destructive"] == 0.79


TITLE = "Does the dial trade MRR for the linear probe?"


@pytest.mark.parametrize(
    ("ends", "places"),
    [
        (((0.7, 0.50), (0.4, 0.55)), ("above", "BELOW")),
        (((0.7, 0.50), (0.6995, 0.55)), ("above", "level with")),
        (((0.7, 0.50), (0.4, 0.4)), ("BELOW", "BELOW")),
    ],
)
def test_what_the_dial_does(ends, places):
    dial = [
        run(f"adaln-destructive-{size}", *numbers, predictor="4x96", invariance=weight)
        for size, numbers, weight in zip(("4x96", "4x96i"), ends, (0.0, 3.0), strict=True)
    ]
    judged = said([*dial, run("adaln-jitter-4x96", 0.1, 0.9, invariance=0.0)])
    good, words = judged[TITLE]
    assert good is None
    assert words.startswith("From weight 0 to 3 the linear probe goes from 0.500 to")
    assert tuple(part.split(")")[0] for part in words.split("(")[1:]) == places
    assert words.endswith(ONE)
    assert TITLE not in said(TRADE)


def test_unlike_precisions_are_said_with_their_cells():
    first, second = (run(name, 0.5, 0.5, precision="bf16") for name in ("adaln-jitter-4x96", "none-jitter-4x96"))
    assert guidance.precision_note([first, second], "bf16") is None
    assert guidance.precision_note([first, second], "") is None, "not known"
    assert guidance.precision_note([run("adaln-jitter-4x96", None, None)], "fp32") is None, "nothing is measured"
    other = guidance.precision_note([first, second], "fp32")
    assert other
    assert (
        "adaln-jitter-4x96, none-jitter-4x96 in bf16, and here it would be fp32; give --speed.precision bf16" in other
    )
    mixed = guidance.precision_note([first, second | {"precision": "fp32"}], "fp32")
    assert mixed
    assert "not measured in one precision: adaln-jitter-4x96 in bf16; none-jitter-4x96 in fp32." in mixed
    within = guidance.precision_note([first | {"precision": "bf16 and fp32"}], "fp32")
    assert within
    assert "adaln-jitter-4x96 in bf16 and fp32" in within
