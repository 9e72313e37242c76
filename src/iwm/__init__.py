"""Train, evaluate and use Image World Models.

import iwm
world = iwm.load("RUN")
tokens = world.encode(images)
future = world.predict(tokens, world.action(brightness=0.3))
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iwm.actions.action_sets import import_set, register
    from iwm.actions.action_space import ActionSpace
    from iwm.actions.transformation import Transformation
    from iwm.config import Config
    from iwm.data.sources import open_images
    from iwm.model.world_model import ImageWorldModel, Tokens
    from iwm.run_folder import load_model as load
    from iwm.runtime.errors import UserError
    from iwm.training.loop import pretrain

_HOMES = {
    "ActionSpace": "actions.action_space",
    "Config": "config",
    "ImageWorldModel": "model.world_model",
    "Tokens": "model.world_model",
    "Transformation": "actions.transformation",
    "UserError": "runtime.errors",
    "import_set": "actions.action_sets",
    "load": "run_folder:load_model",
    "open_images": "data.sources",
    "pretrain": "training.loop",
    "register": "actions.action_sets",
}

__all__ = [
    "ActionSpace",
    "Config",
    "ImageWorldModel",
    "Tokens",
    "Transformation",
    "UserError",
    "import_set",
    "load",
    "open_images",
    "pretrain",
    "register",
]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import iwm` is instant."""
    if name not in _HOMES:
        raise AttributeError(f"module 'iwm' has no attribute '{name}'")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f"iwm.{module}"), attribute or name)
