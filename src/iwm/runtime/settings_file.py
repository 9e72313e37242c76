"""Settings as plain values in a YAML file, config.yaml."""

from pathlib import Path
from typing import Any

import yaml

from iwm.runtime.errors import UserError
from iwm.runtime.files import write_text


class _Loader(yaml.SafeLoader):
    """Plain values, and no name twice: YAML would take the last and drop the others."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(problem=f"it has '{twice}' twice")
        return super().construct_mapping(node, deep)


def write(values: dict[str, Any], path: Path) -> None:
    """Write them in their order, whole or not at all."""
    write_text(path, yaml.safe_dump(values, sort_keys=False))


def read(path: Path) -> dict[str, Any]:
    """What the file says. Raises UserError when it is missing, not YAML or holds no settings."""
    try:
        values = yaml.load(path.read_text(), _Loader)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"There is no file {path}; give the config.yaml of a run.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text; give the config.yaml of a run.") from None
    except (yaml.YAMLError, ValueError) as error:  # an impossible date, say
        raise UserError(
            f"{path} is not valid YAML ({str(error).splitlines()[0]}); restore it or start a new run."
        ) from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no settings; give the config.yaml of a run.")
    return values


def read_unchecked(path: Path) -> dict[str, Any]:
    """The file as it stands, empty when it cannot be read: old runs must still be shown."""
    try:
        return read(path)
    except (UserError, OSError, ValueError):
        return {}
