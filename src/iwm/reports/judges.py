"""What one verb's numbers say beside their controls, in words, with a sign whether it is good."""

from collections.abc import Mapping, Sequence
from typing import Any

from iwm.evaluation.uncertainty import (
    average_error,
    combined_error,
    difference_error,
    is_unbalanced,
    seed_error,
    standing,
    t_quantile,
)
from iwm.reports.finding import Finding, Result, by_seed, data_of, join, number, numbers, settings_of


def judge_world(result: Result) -> Finding:
    """MRR against chance, shuffled and null actions, and the twin with a frozen random encoder."""
    title, mrr = f"World model on {data_of(result)}", number(result, "mrr")
    if mrr is None:
        return Finding(title, False, "The mean reciprocal rank is not finite: the model's tokens are broken.")
    names = {"mrr_chance": "chance", "mrr_shuffled": "shuffled actions", "mrr_null": "null action"}
    controls = numbers(result, names)
    twin = number(result, "frozen_random_twin_mrr")
    error = number(result, "mrr_standard_error")
    bars = [("this model", mrr), *([("frozen random twin", twin)] if twin is not None else []), *controls.items()]
    beside = join([f"{value:.3f} for {name}" for name, value in controls.items()]) or "no control at all"
    bank = f" (bank of {result['bank']})" if result.get("bank") else ""
    measured = f"MRR {mrr:.3f} against {beside}{bank}"
    if not controls:
        return Finding(title, None, f"{measured}, so it cannot be judged.", tuple(bars))
    if error is None:
        words = f"{measured}, on a single image, so its error is not known; measure more with --images."
        return Finding(title, None, words, tuple(bars))
    above = [standing(mrr, value, error) == "above" for value in controls.values()]
    chance = controls.get("chance")
    good = all(above)
    if good:
        words = f"The world model follows the action: {measured}."
    elif chance is not None and standing(mrr, chance, error) == "BELOW":
        words = f"The world model is BELOW chance: {measured}. "
        words += "The usual cause is a collapsed target space, full of ties."
    else:
        words = f"The world model does not follow the action: {measured}."
    words += _of_change(result)
    if twin is None:
        words += " No twin with a frozen random encoder was measured, so this says nothing about the representation."
        return Finding(title, good, words, tuple(bars))
    sentence, above_twin = _beside_twin(result, mrr, twin)
    return Finding(title, good and above_twin, f"{words} {sentence}", tuple(bars))


def _of_change(result: Result) -> str:
    """How much of the true change is predicted, and what shrinking it costs; empty for older results."""
    slope, calibrated = number(result, "slope"), number(result, "mrr_calibrated")
    if slope is None:
        return ""
    words = f" The predicted change has slope {slope:.2f} on the true one (1 is all of it)"
    return words + ("." if calibrated is None else f"; divided by its slope, it has MRR {calibrated:.3f} (calibrated).")


def _beside_twin(result: Result, mrr: float, twin: float) -> tuple[str, bool | None]:
    """The sentence on the twin with a frozen random encoder, and whether the run is above it in the one space for both;
    None where that was not measured, for each model's MRR is taken in its own."""
    of_twin = result.get("frozen_random_twin")
    of_twin = of_twin if isinstance(of_twin, dict) else {}
    common, theirs = number(result, "mrr_common"), number(of_twin, "mrr_common")
    if common is None or theirs is None:
        words = f"Its twin with a frozen random encoder has {twin:.3f} in a target space of its own, which does not "
        return f"{words}compare; measure again with iwm world --frozen-random-twin.", None
    error = number(result, "mrr_common_difference_standard_error")  # on the same images; older results lack it
    if error is None:
        error = combined_error(*(number(part, "mrr_common_standard_error") or 0.0 for part in (result, of_twin)))
    place = standing(common, theirs, error)
    words = f"In one space for both, the picture's 8 x 8 colours, it has {common:.3f}, {place} its twin with a frozen "
    words += f"random encoder ({theirs:.3f}); each in its own space {mrr:.3f} and {twin:.3f}, which do not compare."
    return words, place == "above"


def judge_imagination(result: Result) -> Finding:
    """Ranks of the truth for single changes of some photos, against the same model told no change and a guess: places
    gained, over the photos; both gains must be above 0. A single photo decides nothing."""
    title, rank = f"Imagined changes of {data_of(result)}", number(result, "rank")
    untold, bank = number(result, "rank_untold"), number(result, "bank")
    if rank is None or untold is None or not bank:
        return Finding(title, False, "The ranks are not finite: the model's tokens are broken.")
    guess = (bank + 1) / 2
    words = f"Told the change, the model ranks the really changed photo {rank:.1f} of {bank:g} on average, 1 is right; "
    words += f"told no change {untold:.1f}, by a guess {guess:.1f}."
    bars = (("told the change", 1 / rank), ("told no change", 1 / untold), ("a guess", 1 / guess))
    of_photos = _ranks_by_photo(result)
    count = len(of_photos)
    if count < 2:
        why = "All questions are of one photo, and one photo decides nothing" if count else "No question is kept"
        return Finding(title, None, f"{words} {why}; give several photos. Bars: one over the rank.", bars)
    gains = {"no change": [b - a for a, b in of_photos], "a guess": [guess - a for a, _ in of_photos]}
    means = {control: sum(values) / count for control, values in gains.items()}
    errors = {control: seed_error(values) for control, values in gains.items()}
    parts = []
    for control, mean in means.items():
        half = t_quantile(count) * errors[control]
        parts.append(f"{mean:+.1f} places on {control} (95 % interval {mean - half:+.1f} to {mean + half:+.1f})")
    good = all(standing(mean, 0, errors[control], seeds=count) == "above" for control, mean in means.items())
    words += f" Over {count} photos it gains {join(parts)}, by Student's t: "
    words += "the model follows the change." if good else "it cannot be shown that the model follows the change."
    return Finding(title, good, f"{words} Bars: one over the rank.", bars)


def _ranks_by_photo(result: Result) -> list[tuple[float, float]]:
    """(rank, rank told no change) of every photo, the mean over its questions; photos in several folders may be called
    alike, so the number of photos counts where it is known."""
    asked = result.get("asked")
    questions = [one for one in asked if isinstance(one, dict)] if isinstance(asked, list) else []
    alone = number(result, "photos") == len(questions)
    photos: dict[Any, list[tuple[float, float]]] = {}
    for place, question in enumerate(questions):
        rank, untold = number(question, "rank"), number(question, "rank_untold")
        if rank is not None and untold is not None:
            photos.setdefault(place if alone else question.get("photo"), []).append((rank, untold))
    return [(sum(a for a, _ in each) / len(each), sum(b for _, b in each) / len(each)) for each in photos.values()]


def what_is_read(result: Result) -> str:
    """What of the encoder a probe reads, in brackets; "" for the EMA encoder's last block, by tokens or their mean."""
    layers, layer, depth = (number(result, key) for key in ("layers", "layer", "depth"))
    words = ["the student"] if settings_of(result).get("student") else []
    if layers:
        words.append(f"{'all' if layers == depth else 'the last'} {layers:g} blocks side by side")
    elif layer and depth and layer < depth:
        words.append(f"block {layer:g} of {depth:g}")
    if (pooling := result.get("pooling")) in ("max", "2x2"):
        words.append(f"pooling {pooling}")
    return f" ({', '.join(words)})" if words else ""


def judge_probe(result: Result) -> Finding:
    """A probe's accuracy against the same probe on a random encoder and on raw pixels, and, where classes are unequal,
    against the most frequent one for every image."""
    kind = str(result.get("kind") or "").replace("knn", "kNN")
    title, top1 = f"{kind} probe{what_is_read(result)} on {data_of(result)}".strip(), number(result, "top1")
    title = title[0].upper() + title[1:] if kind != "kNN" else title
    if top1 is None:
        return Finding(title, False, "The probe's accuracy is not finite.")
    names = {"raw_pixels_top1": "raw pixels", "random_encoder_top1": "a random encoder"}
    controls = numbers(result, names)
    frequent = "the most frequent class"
    guesses = numbers(result, {"majority_top1": frequent, "chance": "chance"})
    bars = (("this encoder", top1), *controls.items(), *guesses.items())
    ours = f"The {title[0].lower() + title[1:]} ({top1:.1%} right)"
    if not controls:
        return Finding(title, None, f"{ours} was measured without baselines, so it cannot be judged.", bars)
    if {frequent, "chance"} <= guesses.keys() and is_unbalanced(result):
        controls[frequent] = guesses[frequent]
    places = {name: standing(top1, value, _error(top1, value, result)) for name, value in controls.items()}
    behind = [name for name, place in places.items() if place != "above"]
    words = f"{ours} is " + join([f"{place} {name} ({controls[name]:.1%})" for name, place in places.items()])
    if "raw pixels" in behind or frequent in behind:
        words += ": the representation has learned nothing useful yet."
    elif behind:
        words += ": training has added nothing to what a random encoder already gives."
    else:
        words += ": the representation has learned something the pixels do not show by themselves."
    return Finding(title, not behind, words, bars)


def judge_instance(result: Result) -> Finding:
    """How many images an encoder finds again by a changed crop, against a random encoder and pixels."""
    title, top1 = f"Instance probe{what_is_read(result)} on {data_of(result)}", number(result, "top1")
    if top1 is None:
        return Finding(title, False, "The share of images found again is not finite.")
    names = {"raw_pixels": "raw pixels", "random_encoder": "a random encoder"}
    controls = numbers(result, {f"{key}_top1": name for key, name in names.items()})
    bars = (("this encoder", top1), *controls.items(), *numbers(result, {"chance": "chance"}).items())
    among = f"Of {result.get('n_val', '?')} images {top1:.1%} are found again by a changed crop{what_is_read(result)}"
    crop = number(result, "crop_top1")
    among += "" if crop is None else f" ({crop:.1%} by the crop unchanged)"
    if not controls:
        return Finding(title, None, f"{among}; without baselines this cannot be judged.", bars)
    places = {}
    for key, name in names.items():
        if name in controls:
            error = number(result, f"{key}_difference_standard_error")
            error = _error(top1, controls[name], result) if error is None else error
            places[name] = standing(top1, controls[name], error)
    words = f"{among}: " + join([f"{place} {name} ({controls[name]:.1%})" for name, place in places.items()]) + "."
    undone = numbers(result, {"target_top1": "as it is", "undo_inferred_top1": "action inferred"})
    undone |= numbers(result, {"undo_known_top1": "action known"})
    if undone:
        told = join([f"{value:.1%} with the {name}" for name, value in list(undone.items())[1:]])
        words += f" In target space it is {undone.get('as it is', 0):.1%}, and where the predictor undoes the change "
        words += f"first {told}."
    return Finding(title, all(place == "above" for place in places.values()), words, bars)


def judge_finetuning(pretrained: Sequence[Result], random: Sequence[Result], others: Sequence[Result] = ()) -> Finding:
    """Finetuning from the pretrained predictor against a randomly initialised one, over the seeds both were run with.

    `others` are finetunings without a predictor on the same data, shown beside.
    """
    first = pretrained[0]
    title = f"Finetuning the {first.get('train') or 'predictor'} on {data_of(first)}".replace("the both", "both")
    controls = by_seed(random)
    pairs = [
        (ours, control)
        for seed, a in by_seed(pretrained).items()
        if (ours := number(a, "top1")) is not None and (control := number(controls.get(seed, {}), "top1")) is not None
    ]
    beside = [(f"{r.get('train')} only", value) for r in others if (value := number(r, "top1")) is not None]
    names = {"random_encoder_top1": "nothing pretrained", "raw_pixels_top1": "raw pixels", "chance": "chance"}
    more = numbers(first, names)
    if not pairs:
        top1 = number(first, "top1")
        if top1 is None:
            return Finding(title, False, "The accuracy is not finite.")
        words = f"The pretrained predictor reaches {top1:.1%}; "
        words += "no random predictor of the same seed and settings is there to compare it with."
        return Finding(title, None, words, (("pretrained", top1), *beside, *more.items()))
    count = len(pairs)
    ours, control = (sum(pair[i] for pair in pairs) / count for i in (0, 1))
    differences = [a - b for a, b in pairs]
    mean = sum(differences) / count
    if count > 1:
        error = seed_error(differences)
        half = t_quantile(count) * error
        how = (
            f"over {count} seeds, 95 % interval {100 * (mean - half):+.1f} to {100 * (mean + half):+.1f} (Student's t "
        )
        how += f"of n = {count}, standard error {100 * error:.1f})"
    else:
        error, how = _error(ours, control, first), "one seed"
    place = standing(ours, control, error, seeds=count if count > 1 else 0)
    words = f"The pretrained predictor ({ours:.1%}) is {place} a random one ({control:.1%}): "
    words += f"{100 * mean:+.1f} points, {how}. "
    words += {
        "above": "What pretraining taught it is of use.",
        "level with": "No use of pretraining it can be shown here.",
        "BELOW": "Pretraining it has done harm here.",
    }[place]
    bars = (("pretrained", ours), ("random", control), *beside, *more.items())
    return Finding(title, place == "above", words, bars)


def judge_without_predictor(result: Result) -> Finding:
    """A finetuned head or encoder against the same training with nothing pretrained, and against raw pixels."""
    train = str(result.get("train") or "encoder")
    part = f"encoder's last {train.removeprefix('last-')} blocks" if train.startswith("last-") else train
    title, top1 = f"Finetuning the {part} on {data_of(result)}", number(result, "top1")
    if top1 is None:
        return Finding(title, False, "The accuracy is not finite.")
    names = {"random_encoder_top1": "nothing pretrained", "raw_pixels_top1": "raw pixels"}
    controls = numbers(result, names)
    bars = (("this run", top1), *controls.items(), *numbers(result, {"chance": "chance"}).items())
    ours = f"Finetuning the {part} ({top1:.1%} right)"
    if len(controls) < len(names):
        return Finding(title, None, f"{ours} was measured without baselines, so it cannot be judged.", bars)
    places = {name: standing(top1, value, _error(top1, value, result)) for name, value in controls.items()}
    words, good = _of_use(places, {name: f"{value:.1%}" for name, value in controls.items()})
    return Finding(title, good, f"{ours} is {words}", bars)


TWINS = {"single_task": "equal total steps", "single_task_equal_updates": "equal updates"}
"""The predictors of a task of its own, by the beginning of their keys."""


def judge_multitask(result: Result) -> Finding:
    """One predictor for all tasks against the better of its twins, one for each task with as many steps in total or as
    many updates: it does its work where it is not behind, for it is smaller, but beats them only where it is ahead."""
    tasks = result.get("tasks")
    of_tasks = [task for task in tasks.values() if isinstance(task, dict)] if isinstance(tasks, dict) else []
    title = f"One predictor, {len(of_tasks)} tasks"
    kinds = [kind for kind in TWINS if number(result, f"average_{kind}_top1") is not None]
    ours = number(result, "average_top1")
    if ours is None:
        return Finding(title, False, "The accuracies are not finite.")
    if not kinds:
        sentence = (
            f"{ours:.1%} right on average was measured without a predictor for each task, so it cannot be judged."
        )
        return Finding(title, None, sentence)
    twin = max(kinds, key=lambda kind: number(result, f"average_{kind}_top1") or 0.0)
    alone = number(result, f"average_{twin}_top1") or 0.0
    errors = [_error(number(t, "top1") or 0.0, number(t, f"{twin}_top1") or 0.0, t) for t in of_tasks]
    place = standing(ours, alone, average_error(errors))
    words = f"One predictor told the task by a token ({ours:.1%} right on average) is {place} one predictor a task "
    words += f"({TWINS[twin]}, {alone:.1%}): {100 * (ours - alone):+.1f} points"
    sizes = [number(result, key) for key in ("trainable_parameters", "single_task_trainable_parameters")]
    if sizes[0] and sizes[1]:
        words += f", with {sizes[0] / sizes[1]:.0%} of the trained parameters"
    bars = (("one for all", ours), ("one each", alone), *numbers(result, {"average_chance": "chance"}).items())
    return Finding(title, {"above": True, "level with": None, "BELOW": False}[place], words + ".", bars)


def judge_segmentation(result: Result) -> Finding:
    """mIoU against the same training with nothing pretrained, and against the majority class everywhere."""
    what = " ".join(str(part) for part in (result.get("train"), result.get("predictor"), result.get("head")) if part)
    title, miou = f"Segmentation of {data_of(result)} ({what})", number(result, "miou")
    if miou is None:
        return Finding(title, False, "The mean IoU is not finite.")
    names = {"random_encoder_miou": "nothing pretrained", "majority_miou": "the majority class everywhere"}
    controls = numbers(result, names)
    bars = (("this run", miou), *controls.items())
    if len(controls) < len(names):
        return Finding(title, None, f"mIoU {miou:.3f} was measured without baselines, so it cannot be judged.", bars)
    error = number(result, "miou_standard_error")
    if error is None or number(result, "n_val") == 1:  # older results claim an error of 0
        words = f"mIoU {miou:.3f}, on a single image, so its error is not known; measure on more."
        return Finding(title, None, words, bars)
    # Of a difference, as if the control were measured on other images with the same error: on the safe side.
    error = combined_error(error, error)
    places = {name: standing(miou, value, error) for name, value in controls.items()}
    words, good = _of_use(places, {name: f"{value:.3f}" for name, value in controls.items()})
    return Finding(title, good, f"mIoU {miou:.3f} is {words}", bars)


def _of_use(places: Mapping[str, str], shown: Mapping[str, str]) -> tuple[str, bool]:
    """Where a number stands beside each control, and whether that shows pretraining to be of use: above all of them."""
    words = join([f"{place} {name} ({shown[name]})" for name, place in places.items()])
    good = all(place == "above" for place in places.values())
    return words + (": pretraining is of use here." if good else ": no use of pretraining can be shown here."), good


def _error(a: float, b: float, result: Result) -> float:
    """Standard error of a difference of two accuracies on the test images; 0 when their number is not known."""
    count = number(result, "n_val")
    return difference_error(a, b, count) if count else 0.0
