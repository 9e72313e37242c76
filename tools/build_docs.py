"""Build the site of the documentation, strictly: python tools/build_docs.py [--out build/site] [--pages-only].

The pages are docs/*.md as they are, README.md as the home, and three that are made from the code: every setting, every
command with its options, and the Python names. Their order is that of the table in docs/README.md. Links to other files
of the repository become downloads; folders become plain text. Every link and anchor that leads nowhere ends the build.
"""

import argparse
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import iwm
from iwm import config, recipe_book, verbs
from iwm.cli.completion import words_of
from iwm.runtime.options import Option, options, type_name, typed

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
CONF = """\

project, author = "iwm", "the authors of iwm"
extensions = ["myst_parser"]
myst_heading_anchors = 4
html_theme, html_title = "furo", "iwm"
html_show_copyright, html_show_sourcelink, html_copy_source = False, False, False
html_static_path, html_css_files = ["_static"], ["own.css"]
highlight_language = "none"
nitpicky = True
suppress_warnings = ["myst.header"]  # lab notes begin sections at their own depth
"""
CSS = """\
table { display: block; overflow-x: auto; }
.content img { max-width: 100%; height: auto; }
td:first-child code { white-space: nowrap; }
td:nth-child(4) { min-width: 13em; }
.highlight-text pre, .highlight-python pre { white-space: pre-wrap; }
"""

# ---- pages that are made from the code -----------------------------------------------------------------------------


def settings_page() -> str:
    """Every setting: its default, which is the paper's, its type, what it does, and what the small recipe sets."""
    small = {option.name: option.default for option in options(config.Config, recipe_book.get("cifar10"))}
    lines = [
        "# Settings",
        "",
        "Everything that `iwm pretrain` takes, made from `src/iwm/config.py`. Defaults are the paper's for ImageNet",
        "with ViT-B/16; the last column is what the recipe `cifar10` sets otherwise. `iwm recipes RECIPE` shows one.",
    ]
    group = None
    for option in options(config.Config):
        place = option.name.split(".")[0] if "." in option.name else ""
        if place != group:
            group = place
            kind = getattr(config, place.capitalize(), None) if place else None
            words = " ".join((kind.__doc__ or "").split()) if kind else "What a run starts from."
            lines += ["", f"## {place or 'General'}", "", words, ""]
            lines += ["| setting | default | type | what it does | `cifar10` |", "|---|---|---|---|---|"]
        own = small[option.name]
        differs = f"`{typed(own) or '-'}`" if own != option.default and option.name != "recipe" else ""
        name = option.flags[0] if option.flags else "RECIPE"
        cells = (f"`{name}`", f"`{typed(option.default) or '-'}`", type_name(option.kind), option.sentence, differs)
        lines.append(_row(*cells))
    return "\n".join(lines) + "\n"


def options_page() -> str:
    """Every command by what one wants to do, with its example and its options; those of training stand in settings."""
    of_training = {option.flags for option in options(config.Config)}
    of_speed = {option.flags for option in options(config.Config) if option.name.startswith("speed.")}
    lines = ["# Options of every command", "", "Made from `src/iwm/verbs`; the same as `iwm VERB --help`."]
    for group, names in verbs.GROUPS.items():
        lines += ["", f"## {group}"]
        for name in names:
            verb = verbs.find(name)
            lines += ["", f"### iwm {name}", "", _escaped(verb.sentence), "", "```sh", verb.example, "```", ""]
            shared = of_training if name in ("pretrain", "sweep") else of_speed
            own = [option for option in words_of(verb) if option.placed or option.flags not in shared]
            lines += ["| option | default | type | what it does |", "|---|---|---|---|"]
            lines += [_option_row(option) for option in own]
            taken = [option for option in options(verb.options) if option.flags in shared and not option.placed]
            if taken:
                which = (
                    "every [setting](settings.md)" if shared is of_training else "those of [speed](settings.md#speed)"
                )
                lines += ["", f"And {which}."]
    return "\n".join(lines) + "\n"


def _option_row(option: Option) -> str:
    name = option.name.split(".")[-1].upper() if option.placed else option.flags[0]
    default = "" if typed(option.default) == "" else f"`{typed(option.default)}`"
    return _row(f"`{name}`", default, type_name(option.kind), option.sentence)


def names_page() -> str:
    """The public names of the package with their signatures and docstrings."""
    lines = ["# Python names", "", "Everything `iwm` exports. [python.md](python.md) shows their use.", ""]
    functions = sorted(name for name in iwm.__all__ if not inspect.isclass(getattr(iwm, name)))
    for title, names in (("Functions", functions), ("Classes", sorted(set(iwm.__all__) - set(functions)))):
        lines += [f"## {title}", ""]
        for name in names:
            lines += [f"### iwm.{name}", "", *_described(name, getattr(iwm, name), f"iwm.{name}")]
            for method, value in _methods(getattr(iwm, name)):
                lines += [f"**{method}**", "", *_described(method, value, method)]
    return "\n".join(lines) + "\n"


def _described(name: str, value: Any, title: str) -> list[str]:
    """Signature and docstring in a block each, so that nothing of them is read as markup."""
    try:
        signature = str(inspect.signature(value)) if callable(value) else ""
    except (TypeError, ValueError):
        signature = ""
    signature = re.sub(r" at 0x[0-9a-f]+", "", signature)
    signature = signature if len(signature) < 2000 else "(...)"
    text = inspect.getdoc(value) or ""
    return ["```python", f"{title}{signature}", "```", "", "```text", text, "```", ""]


def _methods(value: Any) -> Iterator[tuple[str, Any]]:
    """The methods and properties of a class that are its own and public."""
    if inspect.isclass(value):
        for name, one in vars(value).items():
            member = one.__func__ if isinstance(one, classmethod | staticmethod) else one
            if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                yield name, member


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell if cell.startswith("`") else _escaped(cell) for cell in cells) + " |"


def _escaped(text: str) -> str:
    return re.sub(r"([|<>*_\[\]])", r"\\\1", text)


MADE: dict[str, Callable[[], str]] = {"settings.md": settings_page, "options.md": options_page, "api.md": names_page}
"""The pages that are made from the code, by their file name."""


# ---- pages as they are written -------------------------------------------------------------------------------------


def groups_of(index: str) -> dict[str, list[str]]:
    """The pages of docs/README.md by its groups, in their order, each once; the made ones join the reference."""
    groups: dict[str, list[str]] = {}
    group = ""
    for name, page in re.findall(r"^\| (?:\*\*([^*]+)\*\*)? ?\| \[[^\]]+\]\(([\w-]+\.md)[^)]*\)", index, re.MULTILINE):
        group = name or group
        if not any(page in pages for pages in groups.values()):
            groups.setdefault(group, []).append(page)
    groups["Reference"] += MADE
    return groups


def staged(text: str, page: Path, folder: Path) -> str:
    """A page's text for the site, with the files it links to copied beside it. Raises ValueError for a dead link."""

    def replaced(match: re.Match[str]) -> str:
        mark, words, target = match.groups()
        if target.startswith(("http:", "https:", "mailto:", "#")):
            return match[0]
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve()
        if not there.exists():
            raise ValueError(f"{page.relative_to(ROOT)} links to {target}, which is not there")
        if there.is_dir():
            return words
        if there.suffix == ".md" and there.parent in (DOCS, ROOT):
            name = {DOCS / "README.md": "contents.md", ROOT / "README.md": "index.md"}.get(there, there.name)
            known = there.parent == DOCS or there == ROOT / "README.md"
            return f"{mark}[{words}]({name}{'#' * bool(anchor)}{anchor})" if known else words
        copy = folder / "files" / there.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        # What the site would take for a page of its own is text there.
        copy = copy.with_suffix(".txt") if copy.suffix in (".md", ".rst") else copy
        shutil.copyfile(there, copy)
        return f"{mark}[{words}]({copy.relative_to(folder)})"

    parts = re.split(r"(```.*?```)", text, flags=re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(replaced, part) for part in parts)


def stage(folder: Path) -> None:
    """Write all pages, the table of contents and the site's settings into a folder. Raises ValueError."""
    (folder / "_static").mkdir(parents=True)
    (folder / "_static" / "own.css").write_text(CSS)
    (folder / "conf.py").write_text(CONF)
    for page in sorted(DOCS.glob("*.md")):
        name = "contents.md" if page.name == "README.md" else page.name
        (folder / name).write_text(staged(page.read_text(), page, folder))
    for name, make in MADE.items():
        (folder / name).write_text(make())
    home = staged((ROOT / "README.md").read_text(), ROOT / "README.md", folder)
    tree = "```{toctree}\n:hidden:\n"
    groups = groups_of((DOCS / "README.md").read_text())
    trees = [f"{tree}:caption: {group}\n\n{_listed(pages)}\n```" for group, pages in groups.items()]
    (folder / "index.md").write_text("\n\n".join([home, f"{tree}\ncontents\n```", *trees]) + "\n")


def _listed(pages: list[str]) -> str:
    return "\n".join(page.removesuffix(".md") for page in pages)


def build(pages: Path, out: Path) -> int:
    """Turn the pages into HTML; returns the exit code of Sphinx, which takes every warning for an error."""
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-j", "1"]
    return subprocess.run([*command, str(pages), str(out)], check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site", help="folder of the site, made anew")
    parser.add_argument("--pages-only", action="store_true", help="write the Markdown beside it, build no HTML")
    given = parser.parse_args()
    pages = given.out.with_name(given.out.name + "-pages")
    for folder in (pages, given.out):
        shutil.rmtree(folder, ignore_errors=True)
    stage(pages)
    if given.pages_only:
        return 0
    code = build(pages, given.out)
    if not code:
        print(f"Open {os.path.relpath(given.out / 'index.html')}")
    return code


if __name__ == "__main__":
    sys.exit(main())
