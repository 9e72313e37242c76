"""The built-in sets of transformations and those of users: found by name, checked, kept."""

import dataclasses
import itertools
from collections.abc import Iterable
from functools import partial
from typing import Any

from iwm import config
from iwm.actions.camera import CAMERA
from iwm.actions.photometric import (
    PHOTOMETRIC,
    photometric,
)
from iwm.actions.transformation import (
    Apply,
    Transformation,
    read_transformations,
    set_name,
    try_out,
)
from iwm.runtime import errors
from iwm.runtime.errors import UserError

# ---- sets of transformations ---------------------------------------------------------------------------------------

BUILT_IN = {"photometric": PHOTOMETRIC, "camera": CAMERA}
"""The sets that come with the package."""
USERS: dict[str, tuple[Transformation, ...]] = {}
"""Sets read from files of the user's, by FILE.py:NAME."""
REGISTERED: dict[str, Transformation] = {}
"""Transformations of the user's that join every space."""


def register(transformation: Transformation) -> Transformation:
    """Add a transformation to every action space built from now on, whatever its set; to those loaded, where the
    weights were trained with it.

    Raises UserError when the name is taken by a photometric one or is no identifier (it is typed as `name=0.3`), and
    when applying it goes wrong.
    """
    if any(transformation.name == built_in.name for built_in in PHOTOMETRIC):
        raise UserError(f"'{transformation.name}' is a built-in transformation; give yours another name.")
    try_out(transformation)
    REGISTERED[transformation.name] = transformation
    return transformation


def registered() -> tuple[Transformation, ...]:
    """Transformations of the user's that join every space."""
    return tuple(REGISTERED.values())


def import_set(text: str) -> str:
    """Run your PATH.py and keep the transformations it calls NAME, given PATH.py:NAME, under the name FILE.py:NAME,
    which comes back: for `actions.set`, and for weights that were trained with them.

    Nothing else runs code: settings and weights only ever name it. Raises UserError when the file or what it holds is
    not right.
    """
    members = read_transformations(text)
    USERS[set_name(text)] = members
    return set_name(text)


OF_ANY_SET = ("set", "level", "jitter_probability", "jitter_order", "clean", "source_from")
"""Settings that mean something for every set; the others are the photometric set's alone."""


def members_of(cfg: config.Actions, image_size: int) -> tuple[Transformation, ...]:
    """The transformations of `cfg.set`, with the settings worked in."""
    if cfg.set == "photometric":
        return photometric(cfg, image_size)
    members = BUILT_IN.get(cfg.set) or USERS.get(set_name(cfg.set))
    if members is None and ":" in cfg.set:
        raise UserError(
            f"Setting 'actions.set' names code, {cfg.set}, that has not been loaded; if you trust it, add --actions "
            f"{cfg.set} to the command, or call iwm.import_set('{cfg.set}') first."
        )
    if members is None:
        known = errors.did_you_mean(cfg.set, (*BUILT_IN, *USERS))
        raise UserError(f"There is no action set '{cfg.set}', {known.rstrip('.')} (your own: PATH.py:NAME).")
    plain = config.Actions()
    own = [field.name for field in dataclasses.fields(cfg) if field.name not in OF_ANY_SET]
    changed = [name for name in own if getattr(cfg, name) != getattr(plain, name)]
    if changed or cfg.level == "strong":
        name = f"actions.{changed[0]}" if changed else "actions.level strong"
        raise UserError(f"Setting '{name}' belongs to the photometric set, but actions.set is {cfg.set}; leave it out.")
    return with_settings(members, cfg)


def with_settings(members: Iterable[Transformation], cfg: config.Actions) -> tuple[Transformation, ...]:
    """Transformations with what OF_ANY_SET says of their probabilities."""
    jitter = {"probability": cfg.jitter_probability}
    members = tuple(dataclasses.replace(m, **jitter) if m.group == "jitter" else m for m in members)
    if cfg.level == "jitter":
        members = tuple(m if m.both else dataclasses.replace(m, probability=0.0) for m in members)
    return members


def plain_set(name: str) -> str:
    """A set's name as weights and settings hold it: a built-in one, or FILE.py:NAME without the file's folder."""
    return set_name(name) if ":" in name else name


def origin_of(transformation: Transformation) -> str:
    """The built-in set whose code a transformation runs; empty for a user's own."""
    for name, members in BUILT_IN.items():
        for member in members:
            same = member.name == transformation.name and member.sample is transformation.sample
            if same and member.apply is bare(transformation.apply):
                return name
    return ""


def known_transformation(fields: dict[str, Any], named: str) -> Transformation:
    """The code of a transformation of a saved space: of the built-in set it was trained with, else the user's own, of
    the file that it came from."""
    name = fields["name"]
    # Weights older than the sets name no origin: what they call hue is the photometric one.
    built_in = BUILT_IN.get(fields.get("origin", "photometric"), ())
    others = () if ":" in named else USERS.values()  # where it was registered, in whatever file it is now
    places: Iterable[Iterable[Transformation]] = (built_in, USERS.get(named, ()), REGISTERED.values(), *others)
    for member in itertools.chain.from_iterable(places):
        if member.name == name:
            return member
    own = f"add --actions PATH/{named} to the command, or call iwm.import_set or" if ":" in named else "call"
    raise UserError(
        f"The action space uses the transformation '{name}', which is not known here, and code never travels with "
        f"weights; {own} iwm.register with it before loading."
    )


def bare(apply: Apply) -> Apply:
    """An operation without the parameters bound by `_adapted`."""
    return apply.func if isinstance(apply, partial) else apply
