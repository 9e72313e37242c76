"""Asking a world model "what if?" of one image, answered by what of a bank is nearest to the prediction.

    nearest = argmin_j |p(f(x), a) - target(y_j)|^2     over a bank {y_j} that holds the truth

`iwm imagine` asks one action, or sweeps one parameter over its range (paper figure 1, appendix J). An action that
undoes something is asked of the image carrying it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tyro.conf import Positional

from iwm import config, run_folder
from iwm.actions.action_space import ActionSpace, Parameters, reference_space
from iwm.data.image_sets import Subset
from iwm.data.loader import load_all, load_one
from iwm.data.sources import open_pictures, source_identity
from iwm.data.splits import draw_rows
from iwm.evaluation import ritual
from iwm.evaluation.world import strips
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import devices, drawing
from iwm.runtime.console import console, show
from iwm.runtime.errors import UserError

VALUES = 9
"""Values of a sweep, evenly over the range."""


@dataclass(frozen=True)
class Imagine:
    run: Positional[str]
    """A run folder, exported weights, or hf-hub:user/name."""
    image: Positional[str]
    """An image file."""
    action: str = ""
    """Changes in raw units, brightness=0.3,hue=-0.05; grayscale=1 shows the model a grey image and has it undone."""
    sweep: str = ""
    """Instead of an action: a parameter that is moved over its range, as in --sweep hue."""
    bank: int = 256
    """Versions of the image that are ranked, the truth among them."""
    candidates: str = ""
    """A source whose images join the bank, in as many versions again."""
    seed: int = 0
    out: str = ""
    """Where results go when RUN is not a local run folder."""
    speed: config.Speed = field(default_factory=config.Speed)


def imagine(o: Imagine) -> dict[str, Any]:
    """Write RUN/eval/imagine-ACTION-IMAGE.json and .png, print the rank of the truth, return what was written.

    Raises UserError for an unknown component, an image that is none, or a RUN without predictor.
    """
    if bool(o.action) == bool(o.sweep):
        raise UserError("What is to be imagined? Give --action brightness=0.3,hue=-0.05 or --sweep hue (not both).")
    if o.bank < 2 or o.seed < 0:
        raise UserError(f"--bank {o.bank} --seed {o.seed}: give a bank of 2 or more and a seed of 0 or more.")
    model = run_folder.open_world(o.run, o.speed)
    size = model.settings.data.image_size
    if o.sweep:
        changes = sweep_changes(model.space, o.sweep)
        actions = torch.stack([model.space.encode(**{o.sweep: change}) for change in changes])
    else:
        changes = [0.0]
        actions = model.space.encode(**parse_action(o.action))[None]
    image = load_one(o.image, size).to(model.device)
    candidates = None
    if o.candidates:
        opened = open_pictures(o.candidates, size)
        candidates = load_all(Subset(opened, draw_rows(o.bank, len(opened), o.seed)), size)[0].to(model.device)
    device = model.device
    precision = devices.precision_of(o.speed, device)
    with devices.threads(o.speed), devices.autocast(device, precision):
        rows = asked(model, image, actions, o.bank, o.seed, candidates)
    settings = {
        **{name: getattr(o, name) for name in ("action", "sweep", "bank", "seed")},
        "image": source_identity(o.image),
        "candidates": source_identity(o.candidates) if o.candidates else "",
        "run": ritual.run_identity(o.run, o.out),
        "precision": precision,
    }
    name = run_folder.plain_name(Path(o.image).stem)
    found: dict[str, Any] = {"data": name, "action": rows[0].action, "rank": rows[0].rank, "bank": rows[0].bank}
    if o.sweep:
        found |= {
            "action": f"{o.sweep} over its range",
            "rank": sum(row.rank for row in rows) / len(rows),
            "mrr": sum(1 / row.rank for row in rows) / len(rows),
            "asked": [{o.sweep: c, "rank": row.rank} for c, row in zip(changes, rows, strict=True)],
        }
    variant = f"sweep-{o.sweep}" if o.sweep else o.action
    path = ritual.place(o.run, "imagine", name, settings, variant=variant, out=o.out)
    content = ritual.write(path, found, settings)
    drawn = strips.sweep(rows, o.sweep, changes) if o.sweep else strips.strips(rows)
    drawing.save(drawn, path.with_suffix(".png"))
    show(f"Imagined of {name}", {k: v for k, v in found.items() if k != "asked"}, path)
    for row, change in zip(rows, changes, strict=True) if o.sweep else ():
        console.print(f"  {o.sweep} {change:+.2f}: the truth has rank {row.rank:g}", highlight=False)
    return {**content, "path": str(path)}


def parse_action(text: str) -> dict[str, float]:
    """{"brightness": 0.3, "hue": -0.05} of "brightness=0.3,hue=-0.05". Raises UserError."""
    changes: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not name:
            raise UserError(f"'{part.strip()}' is no change; give NAME=NUMBER, as in brightness=0.3,hue=-0.05.")
        if name in changes:
            raise UserError(f"Action '{name}' is given twice; give it once.")
        try:
            changes[name] = float(value)
        except ValueError:
            raise UserError(f"Action '{name}' is '{value}'; give a number.") from None
    return changes


def sweep_changes(space: ActionSpace, name: str) -> list[float]:
    """Changes of an untouched image that reach every part of a parameter's range.

    Raises UserError for an unknown name, a flag, and what only a source can carry.
    """
    space.encode(**{name: 0.0})  # says what it might have been called
    swept = space.transformations[space.names.index(name)]
    if not (swept.graded and swept.both and swept.range > 0):
        known = ", ".join(t.name for t in space.transformations if t.graded and t.both and t.range > 0)
        raise UserError(f"'{name}' has no range to sweep on a target; sweep one of {known}, or give --action {name}=1.")
    return torch.linspace(swept.low - swept.neutral, swept.high - swept.neutral, VALUES).tolist()


def carried(space: ActionSpace, action: Float[Tensor, " k"]) -> Parameters:
    """What a source must carry for the action to undo it: flags at their strongest, so that they can be seen.

    Raises UserError for an action that no source in the range needs.
    """
    found = space.neutral(1)
    for position, (t, component) in enumerate(zip(space.transformations, action.tolist(), strict=True)):
        if (t.graded and t.both) or not component:
            continue
        value = t.neutral - component * t.range if t.graded else t.strongest
        if (component < 0 and not t.graded) or not t.low - 1e-6 <= value <= t.high + 1e-6:
            raise UserError(f"No source carries what {t.name} {component * (t.range or 1):+g} undoes; change it.")
        found.values[:, position], found.applied[:, position] = value, True
    return found


def asked(
    model: ImageWorldModel,
    image: UInt8[Tensor, "1 3 s s"],
    actions: Float[Tensor, "q k"],
    bank: int,
    seed: int = 0,
    candidates: UInt8[Tensor, "c 3 s s"] | None = None,
) -> list[strips.StripRow]:
    """Ask all actions of one image (which must agree in what they undo) and rank the truths in one bank: the truths,
    jittered versions of the image up to `bank`, and as many of the candidates."""
    space = model.space
    reference = reference_space(space, model.settings.data.image_size)
    clean = image.float() / 255
    truths = space.apply(clean.expand(len(actions), -1, -1, -1), space.reach(actions))
    more = max(bank - len(actions), 1)
    parts = [truths, reference.apply(clean.expand(more, -1, -1, -1), reference.sample_bank(seed, 0, more))]
    if candidates is not None:
        others = candidates[torch.arange(bank, device=candidates.device) % len(candidates)].float() / 255
        parts.append(reference.apply(others, reference.sample_bank(seed, 1, bank)))
    source = space.apply(clean, carried(space, actions[0]))
    return strips.ask(model, source, actions, torch.cat(parts), range(len(actions)))
