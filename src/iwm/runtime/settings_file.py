"""Settings as plain values in a YAML file, config.yaml."""

from pathlib import Path
from typing import Any

import yaml

from iwm.runtime.errors import UserError
from iwm.runtime.files import write_text


def write(values: dict[str, Any], path: Path) -> None:
    """Write them in their order, whole or not at all."""
    write_text(path, yaml.safe_dump(values, sort_keys=False))


def read(path: Path) -> dict[str, Any]:
    """What the file says. Raises UserError when it is missing, not YAML or holds no settings."""
    try:
        values = yaml.safe_load(path.read_text())
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"There is no file {path}; give the config.yaml of a run.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text; give the config.yaml of a run.") from None
    except yaml.YAMLError as error:
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
