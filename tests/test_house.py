"""The house is in order: imports flow downwards, help is quick, files and functions are short, tests mirror them."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src" / "iwm"

ORDER = (
    *("runtime", "config", "recipe_book", "verbs", "data", "actions", "model"),
    *("run_folder", "training", "evaluation", "reports", "sweeps", "exporting", "functions", "page", "cli"),
)
"""The rooms from the ground up: each may import from those before it. `iwm/__init__.py`, the public face, is none."""
UPWARD: dict[tuple[str, str], str] = {}
"""Arrows (importer, imported) that may go up, with the reason."""

LONG_FILES: dict[str, int] = {}
"""Files over LINES, with their present length: shorten them, and the entry with them."""
LONG_FUNCTIONS: dict[str, int] = {}
"""Functions over FUNCTION_LINES, likewise, as "file.py:name"."""
LINES, FUNCTION_LINES = 400, 60

WITHOUT_A_TEST: dict[str, str] = {
    "actions/action_sets.py": "actions/test_transformation.py",
    "evaluation/tasks/classifier.py": "evaluation/tasks/test_finetune.py",
    "evaluation/tasks/overlays.py": "runtime/test_drawing.py",
    "exporting/format.py": "exporting/test_export.py",
    "recipe_book.py": "test_config.py",
    "reports/figures.py": "runtime/test_drawing.py",
    "reports/results.py": "test_functions.py",
    "reports/run.py": "test_functions.py",
    "reports/tables.py": "test_functions.py",
    "runtime/errors.py": "cli/test_dispatch.py",
    "training/gallery.py": "runtime/test_drawing.py",
    "training/metrics.py": "training/test_loop.py",
}
"""Modules without a test file of their own, with the file that tests them."""


def name_of(path: Path) -> str:
    """The dotted name of a module."""
    return ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(SOURCE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports_of(module: str, statements: Iterator[ast.AST]) -> Iterator[str]:
    """The modules of this package that some statements import."""
    for statement in statements:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names if alias.name in MODULES)
        elif isinstance(statement, ast.ImportFrom):
            assert not statement.level, f"{module} imports by dots; write the whole name"
            for alias in statement.names:
                whole = f"{statement.module}.{alias.name}"
                if (target := whole if whole in MODULES else statement.module) in MODULES:
                    yield str(target)


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The statements that run when a module is imported: none of functions or of TYPE_CHECKING blocks."""
    for child in ast.iter_child_nodes(node):
        hidden = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not hidden and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from at_import(child)


def test_every_room_has_its_place_in_the_order() -> None:
    assert {room_of(module) for module in MODULES} - {""} <= set(ORDER)


def test_imports_flow_downwards() -> None:
    upward = []
    for module, tree in TREES.items():
        for target in imports_of(module, ast.walk(tree)) if room_of(module) else ():
            rooms = room_of(module), room_of(target)
            if set(rooms) <= set(ORDER) and ORDER.index(rooms[1]) > ORDER.index(rooms[0]):
                upward.append((module, target))
    arrows = [f"{module} -> {target}" for module, target in sorted(set(upward) - set(UPWARD))]
    assert not arrows, "imports that go up:\n" + "\n".join(arrows)
    assert not set(UPWARD) - set(upward), "UPWARD names an import that is no more"


def test_no_modules_import_each_other_in_a_circle() -> None:
    below = {module: set(imports_of(module, at_import(tree))) - {module} for module, tree in TREES.items()}
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, "a circle: " + " -> ".join((*path[path.index(module) :], module))
        if module not in finished:
            for target in sorted(below[module]):
                visit(target, (*path, module))
            finished.add(module)

    for module in MODULES:
        visit(module, ())


QUICK = """
import contextlib, io, sys
from iwm import cli, verbs
for name in verbs.names():
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        cli.main([name, "--help"])
    assert f"usage: iwm {name}" in printed.getvalue(), name
    with contextlib.redirect_stderr(io.StringIO()) as complaint:
        assert cli.main([name, "--no-such-option"]) == 2, name
    assert complaint.getvalue().count("\\n") == 1, (name, complaint.getvalue())
    heavy = {"torch", "timm", "numpy", "matplotlib"} & set(sys.modules)
    assert not heavy, (name, heavy)
"""


def test_help_and_complaints_of_every_verb_import_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", QUICK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_iwm_itself_imports_nothing_heavy_and_is_quick() -> None:
    code = "import sys, time; start = time.process_time(); import iwm; print(time.process_time() - start)"
    code += "; sys.exit(bool({'torch', 'timm', 'numpy', 'yaml', 'tyro'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.3


def too_long(lengths: dict[str, int], limit: int, known: dict[str, int]) -> list[str]:
    """What is over its limit, and entries of the list that have become too generous."""
    over = [f"{name} has {count} lines" for name, count in lengths.items() if count > known.get(name, limit)]
    loose = [name for name in known if lengths.get(name, 0) < known[name]]
    return over + [f"{name} is listed with {known[name]}, now it has {lengths.get(name, 0)}" for name in loose]


def test_files_are_short() -> None:
    lengths = {str(path.relative_to(SOURCE)): len(path.read_text().splitlines()) for path in MODULES.values()}
    assert not (long := too_long(lengths, LINES, LONG_FILES)), "\n".join(long)


def test_functions_are_short() -> None:
    lengths: dict[str, int] = {}
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{MODULES[module].relative_to(SOURCE)}:{node.name}"
                count = (node.end_lineno or node.lineno) - node.lineno + 1
                lengths[name] = max(count, lengths.get(name, 0))
    assert not (long := too_long(lengths, FUNCTION_LINES, LONG_FUNCTIONS)), "\n".join(long)


def test_tests_mirror_the_tree() -> None:
    missing, needless = [], []
    for path in MODULES.values():
        name = path.relative_to(SOURCE)
        if name.stem in ("__init__", "__main__") or name.parts[0] == "verbs":  # of those, tests/verbs/test_verbs.py
            continue
        mirror = TESTS / name.parent / f"test_{name.name}"
        if not mirror.exists() and str(name) not in WITHOUT_A_TEST:
            missing.append(str(mirror.relative_to(TESTS.parent)))
        if mirror.exists() and str(name) in WITHOUT_A_TEST:
            needless.append(str(name))
    needless += [name for name in WITHOUT_A_TEST if not (SOURCE / name).exists()]
    missing += [f"tests/{test}" for test in WITHOUT_A_TEST.values() if not (TESTS / test).exists()]
    assert not missing, "modules without a test file:\n" + "\n".join(missing)
    assert not needless, f"WITHOUT_A_TEST need not name {', '.join(needless)}"


def test_no_test_file_is_left_of_a_module_that_went_away() -> None:
    """A test file bears the name of a module or of its room; those directly under tests/ are about the whole."""
    left = []
    for path in sorted(TESTS.rglob("test_*.py")):
        place, subject = path.relative_to(TESTS), path.name.removeprefix("test_")
        whole = len(place.parts) == 1 or place.parts[0] == "learning" or path.parent.name == path.stem[5:]
        if not whole and not (SOURCE / place.parent / subject).exists():
            left.append(str(place))
    assert not left, "tests of no module:\n" + "\n".join(left)
