"""What the numbers of a run say: every result beside its controls, in words, with a sign whether it is good.

It reads dictionaries only, the lines of a RUN's metrics and its results (`RunFolder`).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from iwm.reports.finding import Finding, Result, by_weights, data_of, groups, plainest, settings_of, verb_of
from iwm.reports.judges import (
    judge_finetuning,
    judge_imagination,
    judge_instance,
    judge_multitask,
    judge_probe,
    judge_segmentation,
    judge_without_predictor,
    judge_world,
    what_is_read,
)
from iwm.run_folder import EARLIER, weights_of
from iwm.runtime.errors import UserError
from iwm.training import health

VERBS = ("world", "probe", "finetune", "multitask", "segment")
"""Whose results are judged, in the order in which they are told."""


def judge_training(lines: Sequence[Mapping[str, Any]], kind: str = "") -> Finding:
    """The health verdict on the last line of metrics of a run with this objective.kind."""
    last = lines[-1] if lines else {}
    try:
        verdict = health.judge(last, kind)
    except UserError:
        return Finding("Training", None, "The metrics hold no health numbers yet.")
    words = f"Training is {verdict.word} at step {last.get('step', '?')}. "
    return Finding("Training", verdict.healthy, "\n".join([words + " ".join(verdict.findings), *verdict.instruments]))


def judge_results(results: Sequence[Result]) -> list[Finding]:
    """One finding for every question asked: per data, the plainest result of each kind.

    Only results of the same weights are set beside each other; those of earlier weights than the run now holds come
    last, and say so.
    """
    findings = []
    for group in by_weights(results):
        judged = _judge_same_weights(group)
        findings += [one.of_earlier_weights() for one in judged] if group[0].get(EARLIER) else judged
    return findings


def judge_result(name: str, results: Sequence[Result]) -> list[Finding]:
    """The findings of one of a RUN's results, by the name of its file; of a finetuning all its seeds and their control
    are judged together, where they are there. None where there is no such result, or no judge of its verb."""
    result = next((one for one in results if one["file"] == name), None)
    if result is None:
        return []
    if verb_of(result) != "finetune":
        return _judge_same_weights([result])
    tunings = [one for one in results if verb_of(one) == "finetune" and weights_of(one) == weights_of(result)]
    return _judge_same_weights([one for one in tunings if _tuning(one) == _tuning(result)])


def _judge_same_weights(results: Sequence[Result]) -> list[Finding]:
    """The findings of results that were measured on the same weights."""
    findings = []
    for group in groups([r for r in results if verb_of(r) == "world"], data_of):
        # With a twin the question is answered in full; else the result under the plain name.
        findings.append(judge_world(min(group, key=lambda r: ("frozen_random_twin_mrr" not in r, len(r["file"])))))
    findings += [judge_imagination(r) for r in results if verb_of(r) == "imagine" and "rank_untold" in r]
    probes = sorted((r for r in results if verb_of(r) == "probe"), key=lambda r: r.get("kind") != "linear")
    for group in groups(probes, lambda r: (data_of(r), r.get("kind"), what_is_read(r))):
        judge = judge_instance if group[0].get("kind") == "instance" else judge_probe
        findings.append(judge(min(group, key=plainest)))
    tuned = [r for r in results if verb_of(r) == "finetune"]
    for group in groups([r for r in tuned if r.get("predictor") == "pretrained"], _tuning):
        random = [r for r in tuned if r.get("predictor") == "random" and _tuning(r) == _tuning(group[0])]
        plain = [r for r in tuned if not r.get("predictor") and data_of(r) == data_of(group[0])]
        findings.append(judge_finetuning(sorted(group, key=plainest), random, plain))
    for group in groups([r for r in tuned if not r.get("predictor")], _tuning):
        findings.append(judge_without_predictor(min(group, key=plainest)))
    many = [r for r in results if verb_of(r) == "multitask" and r.get("predictor") != "random"]
    for group in groups(many, data_of):
        findings.append(judge_multitask(min(group, key=lambda r: len(r["file"]))))
    segmented = [r for r in results if verb_of(r) == "segment" and r.get("predictor") != "random"]
    for group in groups(segmented, lambda r: (data_of(r), r.get("train"), r.get("head"))):
        findings.append(judge_segmentation(min(group, key=plainest)))
    return findings


def _tuning(result: Result) -> str:
    """What a finetuning and its control must have in common: everything but where the predictor starts, the seed, and
    whether baselines were measured beside."""
    settings = {k: v for k, v in settings_of(result).items() if k not in ("predictor", "seed", "start", "baselines")}
    return json.dumps([data_of(result), result.get("train"), settings], sort_keys=True)


def headline(training: Finding | None, findings: Sequence[Finding]) -> str:
    """The verdict in one sentence; None: it was trained elsewhere."""
    judged = [finding for finding in findings if finding.good is not None]
    behind = [finding for finding in judged if not finding.good]
    if training is None:
        start = "The model was trained elsewhere"
    elif training.good is None:
        start = "Nothing is known of the training"
    else:
        start = "The training is healthy" if training.good else "The training is ill"
    if not judged:
        whose = " of its present weights" if any(finding.earlier for finding in findings) else ""
        return f"{start}; no evaluation{whose} has been compared with its controls yet."
    joined = "and" if (training is None or bool(training.good)) == (not behind) else "but"
    ahead = len(judged) - len(behind)
    if not behind:
        return f"{start}, {joined} every evaluation beats its controls."
    if not ahead:
        return f"{start}, {joined} no evaluation beats its controls."
    beat = "beats its" if ahead == 1 else "beat their"
    return f"{start}, {joined} of {len(judged)} evaluations only {ahead} {beat} controls."
