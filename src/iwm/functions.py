"""The verbs as Python functions: options as keywords, images in memory as data, objects as results.

    run = iwm.pretrain("cifar10", data=dataset, out="runs/mine", **{"optim.epochs": 3})
    iwm.world(run, data=dataset).mrr

Every function takes the fields of its verb (`iwm VERB --help`), those of a group with a dot in their name.
"""

import dataclasses
import os
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from iwm import config, recipe_book, verbs
from iwm.data import memory
from iwm.evaluation import after_pretraining
from iwm.evaluation.ritual import Content
from iwm.reports import results
from iwm.reports.results import SweepResult, TableResult
from iwm.reports.run import Run
from iwm.runtime import fields, renames
from iwm.runtime.console import tables_returned
from iwm.runtime.errors import UserError
from iwm.sweeps import page

SOURCES = ("data", "val", "images", "image", "source", "target", "candidates", "eval_data", "like")
"""Options that name images, and take images in memory as well."""


def pretrain(
    recipe: str | Path | config.Config = "",
    *,
    data: Any = None,
    labels: Any = None,
    data_name: Any = "",
    out: Any = "",
    callbacks: Any = (),
    **settings: Any,
) -> Run:
    """Train a world model.

    (Texts and paths are annotated as Any: type checkers hold `**{"optim.epochs": 3}` against every keyword.)

    Args:
        recipe: Name of a recipe (`iwm recipes`), an `iwm.Config`, or the path of a config.yaml.
        data: A source of images: a path or name, or images in memory (see docs/python.md). By default the recipe's.
        labels: Of images in memory, whole numbers or texts, for the online probe. Never learned from.
        data_name: Text, the name of images in memory in settings and results; by default `memory-` and 8 hex digits.
        out: Folder of the run, text or path. A run that lies there goes on.
        callbacks: A list of objects with methods of `iwm.Callback`.
        **settings: Any other setting, `**{"optim.epochs": 3}`; those of the run group need no dot, `seed=1`.

    Returns:
        The run, which every verb takes.

    Raises:
        UserError: For unknown or ill-typed settings and for what training refuses.
        Interrupted: After Ctrl-C; the run is saved, and the same call goes on.
    """
    base, settings = _settings_of(recipe), renames.in_keywords(settings, config.RENAMED)
    with memory.held(), tables_returned():
        if isinstance(data, config.Data):
            settings["data"] = data
        elif data is not None:
            settings["data.source"] = _text(data, labels, data_name)
        elif labels is not None or data_name:
            raise UserError("labels and data_name belong to images in memory; give those as data.")
        if os.fspath(out):
            settings["run.out"] = os.fspath(out)
        chosen = fields.with_changes(config.Config, settings, "iwm.pretrain", base)
        if not chosen.data.source:
            raise UserError(f"Recipe '{chosen.recipe}' brings no pictures; give data=FOLDER, or images in memory.")
        return Run(after_pretraining.pretrain(chosen, callbacks=callbacks))


def _settings_of(recipe: "str | Path | config.Config") -> config.Config:
    """The settings to start from."""
    if isinstance(recipe, config.Config):
        return recipe
    if not os.fspath(recipe):
        raise UserError("Which recipe? Give its name, iwm.pretrain('demo', ...), an iwm.Config or a config.yaml.")
    if isinstance(recipe, Path) or recipe.endswith((".yaml", ".yml")):
        return config.load(Path(recipe).expanduser())
    return recipe_book.get(recipe)


def _text(value: Any, labels: Any = None, name: str = "") -> str:
    """The text that an option holds in place of images: a path or name as it is, that of images in memory."""
    if isinstance(value, str | os.PathLike):
        if labels is not None or name:
            raise UserError(f"labels and data_name belong to images in memory; {os.fspath(value)} is a source itself.")
        return os.fspath(value)
    return memory.source_of(value, labels, name)


def verb_function(name: str) -> Callable[..., Any]:
    """A verb as a function with its sentence as docstring and its options as signature."""
    described = verbs.from_python(name)

    def function(*values: Any, **keywords: Any) -> Any:
        return call(name, *values, **keywords)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = described.__doc__
    function.__signature__ = described.__signature__  # pyright: ignore[reportFunctionMemberAccess]
    return function


def call(name: str, *values: Any, **keywords: Any) -> Any:
    """Do a verb's work; returns its result as an object. Raises UserError."""
    verb = verbs.find(name)
    positions = ("recipe",) if name == "sweep" else verb.positions
    if len(values) <= len(positions) and not set(positions[: len(values)]) & set(keywords):
        keywords, values = {**dict(zip(positions, values, strict=False)), **keywords}, ()
    with memory.held(), tables_returned():
        keywords = _with_texts(verb, renames.in_keywords(keywords, config.RENAMED))
        options = verb.fill(*values, **keywords)
        return object_of(name, options, verb.run(options))


def _with_texts(verb: verbs.Verb, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords with texts in place of images in memory."""
    own = {field.name for field in dataclasses.fields(verb.options)}
    extras = {name: keywords[name] for name in ("labels", "data_name") if name in keywords and name not in own}
    rest = {name: value for name, value in keywords.items() if name not in extras}
    if extras and not {"data", "images"} & rest.keys():
        raise UserError("labels and data_name belong to images in memory; give those as data.")
    if verb.name == "sweep" and "data" in rest and not isinstance(rest["data"], config.Data):
        rest["data.source"] = _text(rest.pop("data"), extras.get("labels"), extras.get("data_name", ""))
        return rest
    hints = typing.get_type_hints(verb.options)
    for name in [name for name in SOURCES if name in rest and hints.get(name) is str]:
        mine = extras if name in ("data", "images") else {}
        rest[name] = _text(rest[name], mine.get("labels"), mine.get("data_name", ""))
    for name in ("task", "val"):  # of several tasks: {NAME: data}
        if isinstance(rest.get(name), Mapping) and hints.get(name) is not str:
            rest[name] = tuple(f"{task}={_text(images)}" for task, images in rest[name].items())
    return rest


def object_of(name: str, options: Any, value: Any) -> Any:
    """What the caller gets for what the work returned."""
    if isinstance(value, Mapping) and "path" in value:
        kind = results.KINDS.get(name, results.Result)
        return kind.of(value, Path(value["path"]))
    if not value and name != "doctor":
        return value
    if name == "doctor":  # whose work returns an exit code
        return Run(Path(options.run).expanduser()).verdict() if isinstance(value, int) else value
    if name == "pretrain":
        return Run(typing.cast(Path, value))
    if name == "sweep" and "commands" in value:
        return TableResult("commands", tuple({"command": command} for command in value["commands"]))
    if name == "sweep":
        folder = Path(options.settings.run.out).expanduser()
        content = Content(value)
        content.print = lambda: page.show(value, folder)
        return SweepResult.of(content, folder / "sweep.json")
    if name == "predict":
        path = Path(options.out).expanduser()
        return TableResult(path.name, tuple(value), path)
    return TableResult(name, tuple(value)) if name in ("compare", "recipes") else value
