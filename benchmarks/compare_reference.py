"""Are two references (`benchmarks/reference.sh`) the same, number by number?

    python benchmarks/compare_reference.py A B

JSON, JSON lines, YAML, CSV and arrays are compared value by value, weights and checkpoints tensor by tensor, all
exactly; so is every line that was printed. Pictures and pages need only be there. What a clock or a person says is left
out: dates, speeds, machine, command. Prints every difference and how much was compared; exit code 1 on differences.
"""

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import load_file

IGNORED = re.compile(r"date|hardware|command|waited_share|encode_seconds|.*per_second")
"""Keys whose values may differ."""
CLOCK = re.compile(r"images/s|per_second|\d:\d\d:\d\d|:…")
"""Printed lines that tell a speed or a time; a progress bar is one of them."""
PRESENT = (".png", ".html", ".err")
"""Files that need only be there."""

Values = Iterator[tuple[str, Any]]


def leaves(value: Any, where: str = "") -> Values:
    """Every value of nested dictionaries and lists with its place; an empty one is a value too."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if items is None or not value:
        yield where, value
        return
    for key, item in items:
        if not IGNORED.fullmatch(str(key)):
            yield from leaves(item, f"{where}.{key}" if where else str(key))


def of_json(path: Path) -> Values:
    return leaves(json.loads(path.read_text()))


def of_lines(path: Path) -> Values:
    return leaves([json.loads(line) for line in path.read_text().splitlines()])


def of_yaml(path: Path) -> Values:
    return leaves(yaml.safe_load(path.read_text()))


def of_table(path: Path) -> Values:
    with path.open(newline="") as file:
        return leaves(list(csv.reader(file)))


def of_text(path: Path) -> Values:
    """Lines without the widths of columns, which a speed among the rows may decide."""
    lines = path.read_text().splitlines()
    return leaves([re.sub(r"[\s─━]+", " ", line).strip() for line in lines if not CLOCK.search(line)])


def of_tensors(path: Path) -> Values:
    return ((name, tensor) for name, tensor in sorted(load_file(path).items()))


def of_arrays(path: Path) -> Values:
    with np.load(path) as arrays:
        return iter(sorted(arrays.items()))


READERS: dict[str, Callable[[Path], Values]] = {
    ".json": of_json,
    ".jsonl": of_lines,
    ".yaml": of_yaml,
    ".csv": of_table,
    ".txt": of_text,
    ".safetensors": of_tensors,
    ".npz": of_arrays,
}


def plain(value: Any, root: Path) -> Any:
    """A value as it is compared: an array by its bytes, text without the folder it was made in, a number exactly."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, str):
        return value.replace(str(root), "OUT")
    return type(value).__name__, repr(value)


def shown(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 160 else text[:157] + "..."


def apart(one: Any, other: Any) -> str:
    """How far arrays of one shape are apart."""
    both = isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and one.shape == other.shape
    if both and one.size and one.dtype.kind in "fiub" and other.dtype.kind in "fiub":
        return f" (largest difference {np.abs(one.astype(float) - other.astype(float)).max():.3g})"
    return ""


def compare(first: Path, second: Path) -> tuple[int, list[str]]:
    """Number of values compared, and a sentence for every difference."""
    first, second = first.resolve(), second.resolve()
    files = [{path.relative_to(root) for path in root.rglob("*") if path.is_file()} for root in (first, second)]
    differences = [f"{name}: only in {first}" for name in sorted(files[0] - files[1])]
    differences += [f"{name}: only in {second}" for name in sorted(files[1] - files[0])]
    count = 0
    for name in sorted(files[0] & files[1]):
        count += 1
        if name.suffix in PRESENT:
            continue
        read = READERS.get(name.suffix)
        if read is None:
            if (first / name).read_bytes() != (second / name).read_bytes():
                differences.append(f"{name}: other bytes")
            continue
        before, after = dict(read(first / name)), dict(read(second / name))
        for where in [*before, *(where for where in after if where not in before)]:
            count += 1
            if where not in before or where not in after:
                there, value = (first, before[where]) if where in before else (second, after[where])
                differences.append(f"{name}: {where}: only in {there}: {shown(value)}")
            elif plain(before[where], first) != plain(after[where], second):
                told = f"{shown(before[where])} | {shown(after[where])}{apart(before[where], after[where])}"
                differences.append(f"{name}: {where}: {told}")
    return count, differences


def main() -> int:
    if len(sys.argv) != 3 or not all(Path(folder).is_dir() for folder in sys.argv[1:]):
        print(__doc__, file=sys.stderr)
        return 2
    count, differences = compare(Path(sys.argv[1]), Path(sys.argv[2]))
    for difference in differences:
        print(difference)
    print(f"{count:,} values and files compared, {len(differences):,} differences.")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
