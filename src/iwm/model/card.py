"""The model card of a world model: what it is, how to load it, its action space, results with controls, licence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import nn

from iwm.model import weights
from iwm.model.foreign_encoder import ForeignEncoder
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import fields


@dataclass(frozen=True)
class Measured:
    """One line of the card's results."""

    title: str
    ours: str
    controls: str
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a card says beyond what the model itself shows."""

    repository: str = "USER/NAME"
    encoder_repository: str = ""
    """Where the encoder lies for timm."""
    licence: str = ""
    results: Sequence[Measured] = ()
    strip: str = ""
    """File of a picture of imagined changes, beside the card."""
    own_text: str = ""
    """A card that came with the weights."""


def text_of(model: ImageWorldModel, card: Card) -> str:
    """The card as the hub's Markdown, with its front matter."""
    environment = Environment(
        loader=PackageLoader("iwm.model", "assets"),
        autoescape=False,  # Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    predicts = model.objective.predicts
    lines = [(one.title, one.ours, one.controls, one.sentence) for one in card.results]
    return environment.get_template("card.md.jinja").render(
        title=card.repository.split("/")[-1],
        repository=card.repository,
        encoder_repository=card.encoder_repository,
        licence=card.licence,
        encoder_licence=_encoder_licence(model),
        predictor=predicts,
        noun=model.objective.noun,
        decodes=model.decodes,
        example=_example(model) if predicts else "",
        facts=facts_of(model),
        actions=actions_of(model) if predicts else [],
        results=lines,
        strip=card.strip,
        own_text=card.own_text,
    )


def facts_of(model: ImageWorldModel) -> list[tuple[str, str]]:
    """What the model is and was trained on; paths are cut to their last name."""
    s = model.settings
    length = f"{s.optim.steps:,} steps" if s.optim.steps else f"{s.optim.epochs} epochs"
    source = weights.without_paths(s.data.source) or "not recorded"
    facts = [("encoder", _encoder_words(model))]
    if model.objective.predicts:
        summary = model.objective.summary(fields.flatten(fields.to_dict(s)))
        facts.append(("predictor", summary.removeprefix("predictor ")))
        facts.append(("target space", f"{model.objective.output_width} numbers a patch, `{s.objective.target_norm}`"))
    facts += [
        ("image size", f"{s.data.image_size} x {s.data.image_size} px in training; other sizes resample positions"),
        ("pixels", f"mean {_numbers(s.encoder.mean)}, deviation {_numbers(s.encoder.std)}: applied inside the model"),
        ("trained on", f"`{source}`, recipe `{s.recipe}`, {length}, seed {s.run.seed}, without labels"),
        ("parameters", _parameters(model)),
    ]
    if s.init:
        facts.append(("started from", f"`{weights.without_paths(s.init)}`"))
    return facts


def actions_of(model: ImageWorldModel) -> list[tuple[str, str, str]]:
    """Name, meaning and range of every component of an action."""
    return [
        (t.name, f"change of the raw parameter / {t.range:g}", f"{t.low:g} to {t.high:g}")
        if t.graded
        else (t.name, "1: the image carries it, undo it", "a flag")
        for t in model.space.transformations
    ]


def _parameters(model: ImageWorldModel) -> str:
    parts: dict[str, nn.Module] = {"encoder": model.target_encoder}
    if model.objective.predicts:
        parts["predictor"] = model.predictor
    return ", ".join(f"{name} {sum(p.numel() for p in part.parameters()):,}" for name, part in parts.items())


def _encoder_words(model: ImageWorldModel) -> str:
    s, encoder = model.settings.encoder, model.target_encoder
    if not isinstance(encoder, ForeignEncoder):
        sizes = f"{s.depth} blocks of width {s.width}, {s.heads} heads, patches of {s.patch_size} px"
        return f"vision transformer, {sizes}" + (f", {s.registers} registers" if s.registers else "")
    name = weights.without_paths(s.name)
    block = "" if encoder.layer == encoder.depth else f", tokens of block {encoder.layer} of {encoder.depth}"
    if weights.is_published(fields.to_dict(s)):
        return f"`{name}` as it is published{block}; it is no part of these files and is fetched when they are loaded"
    return f"`{name}`{block}" + ("" if s.train == "none" else f", trained on (`{s.train}`)")


def _encoder_licence(model: ImageWorldModel) -> str:
    """A sentence on the licence of an encoder of others, as timm records it."""
    encoder = model.target_encoder
    if not isinstance(encoder, ForeignEncoder):
        return ""
    licence: Any = (getattr(encoder.body, "pretrained_cfg", None) or {}).get("license")
    name = weights.without_paths(model.settings.encoder.name)
    return f"The encoder comes from `{name}`, whose licence ({licence or 'not recorded by timm'}) holds for it."


def _example(model: ImageWorldModel) -> str:
    """Keywords of a change that this model knows."""
    one = next((t for t in model.space.transformations if t.graded), None)
    return "" if one is None else f"{one.name}={0.5 * (one.high - one.neutral):.2g}"


def _numbers(values: Sequence[float]) -> str:
    return " / ".join(f"{value:g}" for value in values)
