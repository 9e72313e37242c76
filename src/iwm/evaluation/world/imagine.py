"""Asking a world model "what if?" of one image, answered by what of a bank is nearest to the prediction.

    nearest = argmin_j |p(f(x), a) - target(y_j)|^2     over a bank {y_j} that holds the truth

`iwm imagine` asks one action, or sweeps one parameter over its range (paper figure 1, appendix J). An action that
undoes something is asked of the image carrying it. Where a pixel decoder was fitted, the prediction itself is shown.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from iwm.actions.action_space import ActionSpace, Parameters
from iwm.actions.action_text import parse_action, require_possible
from iwm.actions.pixel_search import reach_with_flags
from iwm.actions.reference import reference_space
from iwm.actions.transformation import amount
from iwm.data.loader import load_one
from iwm.data.shares import load_draw
from iwm.data.sources import open_pictures
from iwm.evaluation import ritual
from iwm.evaluation.ritual import Outcome
from iwm.evaluation.world import strips
from iwm.evaluation.world.strips import StripRow
from iwm.model.world_model import ImageWorldModel
from iwm.run_folder import open_world, plain_name
from iwm.runtime.console import console, show
from iwm.runtime.errors import UserError
from iwm.verbs.imagine import Imagine

VALUES = 9
"""Values of a sweep, evenly over the range."""


def imagine(o: Imagine) -> dict[str, Any]:
    """Write RUN/eval/imagine-ACTION-IMAGE.json and .png, print the rank of the truth, return what was written.

    Raises UserError for an unknown component, an image that is none, or a RUN without predictor.
    """
    with ritual.evaluation("imagine", o) as work:
        model = open_world(o.run, work.session)
        size = model.settings.data.image_size
        changes, actions = questions(model.space, o)
        image = load_one(o.image, size).to(model.device)
        candidates = _load_candidates(o, size).to(model.device) if o.candidates else None
        with work.session.autocast():
            rows = rank_truths(model, image, actions, o.bank, o.seed, candidates)
        name = plain_name(Path(o.image).stem)
        payload = _numbers(name, rows, changes, o.sweep)
        outcome = Outcome(
            data=name,
            payload=payload,
            settings=work.chosen(o, "action", "sweep", "bank", "seed", image=o.image, candidates=o.candidates),
            variant=(f"sweep-{o.sweep}" if o.sweep else o.action,),
            figures={"": lambda: strips.sweep(rows, o.sweep, changes) if o.sweep else strips.strips(rows)},
        )
        content = work.conclude(outcome, lambda _: _show(payload, o.sweep))
        strips.say_how_to_see(model, o.run)
        return content


def _load_candidates(o: Imagine, size: int) -> UInt8[Tensor, "c 3 s s"]:
    images = open_pictures(o.candidates, size)
    return load_draw(images, o.bank, size, o.seed)[0]


def _numbers(name: str, rows: Sequence[StripRow], changes: Sequence[float], sweep: str) -> dict[str, Any]:
    """The rank of the truth; of a sweep the mean rank, and that of every change. With a decoder PSNR (dB) likewise."""
    if not sweep:
        return {
            "data": name,
            "action": rows[0].action,
            "rank": rows[0].rank,
            "bank": rows[0].bank,
            **rows[0].decibels,
        }
    return {
        "data": name,
        "action": f"{sweep} over its range",
        "rank": sum(row.rank for row in rows) / len(rows),
        "bank": rows[0].bank,
        "mrr": sum(1 / row.rank for row in rows) / len(rows),
        **{key: sum(row.decibels[key] for row in rows) / len(rows) for key in rows[0].decibels},
        "asked": [{sweep: change, "rank": row.rank, **row.decibels} for change, row in zip(changes, rows, strict=True)],
    }


def _show(numbers: Mapping[str, Any], sweep: str) -> None:
    show(f"Imagined of {numbers['data']}", {name: value for name, value in numbers.items() if name != "asked"})
    asked = numbers.get("asked", ())
    for row in asked:
        change = amount(row[sweep], asked[-1][sweep] - asked[0][sweep])
        console.print(f"  {sweep} {change}: the truth has rank {row['rank']:g}", highlight=False)
    console.print(f"Rank of the really changed image: 1 is right, a guess has {(numbers['bank'] + 1) / 2:g}.")


# ---- questions -----------------------------------------------------------------------------------------------------


def questions(space: ActionSpace, o: Imagine) -> tuple[list[float], Float[Tensor, "q k"]]:
    """The changes of a sweep and their actions; one change of 0 and the action where there is no sweep."""
    if not o.sweep:
        return [0.0], parse_action(o.action, space)[None]
    changes = sweep_changes(space, o.sweep)
    return changes, torch.stack([space.encode(**{o.sweep: change}) for change in changes])


def sweep_changes(space: ActionSpace, name: str) -> list[float]:
    """Changes of an untouched image that reach every part of a parameter's range.

    Raises UserError for an unknown name, a flag, and what only a source can carry.
    """
    space.encode(**{name: 0.0})  # says what it might have been called
    swept = space.transformations[space.names.index(name)]
    if swept.graded:
        require_possible(space, {name: 1.0})  # says what was not trained with
    if not (swept.graded and swept.both):
        known = ", ".join(space.names[place] for place in space.amounts)
        other = f"sweep one of {known}, or " if known else ""
        raise UserError(f"'{name}' has no range to sweep on a target; {other}give --action {name}=1.")
    return torch.linspace(swept.low - swept.neutral, swept.high - swept.neutral, VALUES).tolist()


def source_to_undo(space: ActionSpace, action: Float[Tensor, " k"]) -> Parameters:
    """What a source must carry for the action to undo it: flags at their strongest, so that they can be seen.

    Raises UserError for an action that no source in the range needs.
    """
    parameters = space.neutral(1)
    for position, (t, component) in enumerate(zip(space.transformations, action.tolist(), strict=True)):
        if (t.both and (t.graded or component < 0)) or not component:  # the target's
            continue
        value = t.neutral - component * t.range if t.graded else t.strongest
        if (component < 0 and not t.graded) or not t.low - 1e-6 <= value <= t.high + 1e-6:
            raise UserError(f"No source carries what {t.name} {component * (t.range or 1):+g} undoes; change it.")
        parameters.values[:, position], parameters.applied[:, position] = value, True
    return parameters


def rank_truths(
    model: ImageWorldModel,
    image: UInt8[Tensor, "1 3 s s"],
    actions: Float[Tensor, "q k"],
    bank: int,
    seed: int = 0,
    candidates: UInt8[Tensor, "c 3 s s"] | None = None,
) -> list[StripRow]:
    """Ask all actions of one image (which must agree in what they undo) and rank the truths in one bank: the truths,
    jittered versions of the image up to `bank`, and as many of the candidates."""
    space = model.space
    reference = reference_space(space, model.settings.data.image_size)
    clean = image.float() / 255
    truths = space.apply(clean.expand(len(actions), -1, -1, -1), reach_with_flags(space, actions))
    more = max(bank - len(actions), 1)
    parts = [truths, reference.apply(clean.expand(more, -1, -1, -1), reference.sample_bank(seed, 0, more))]
    if candidates is not None:
        others = candidates[torch.arange(bank, device=candidates.device) % len(candidates)].float() / 255
        parts.append(reference.apply(others, reference.sample_bank(seed, 1, bank)))
    source = space.apply(clean, source_to_undo(space, actions[0]))
    return strips.ask(model, source, actions, torch.cat(parts), range(len(actions)))
