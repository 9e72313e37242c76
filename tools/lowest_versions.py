"""Print the lowest versions that pyproject.toml allows, as constraints for pip."""

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parent.parent / "pyproject.toml"
USED = ("app", "onnx", "embed", "track")
"""The extras whose packages iwm itself imports, beside the dependencies; those of development are taken as they are."""


def lowest(requirements: list[str]) -> list[str]:
    """NAME==VERSION for every NAME>=VERSION. Raises ValueError for a requirement without a lower bound."""
    pins = []
    for requirement in requirements:
        match = re.match(r"([\w.-]+)(?:\[[\w,-]+\])?>=([\w.]+)", requirement)
        if not match:
            raise ValueError(f"{requirement} has no lower bound; write NAME>=VERSION")
        pins.append(f"{match[1]}=={match[2]}")
    return pins


def constraints() -> list[str]:
    """The lowest versions of all that iwm imports."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    extras = project["optional-dependencies"]
    return lowest([*project["dependencies"], *(one for name in USED for one in extras.get(name, []))])


if __name__ == "__main__":
    print("\n".join(constraints()))
