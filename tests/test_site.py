"""The site shows every page, setting, option and public name, and no link that leads nowhere."""

import dataclasses
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import iwm
from iwm import config, verbs
from iwm.runtime.options import options

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tools" / "build_docs.py"))


def test_every_setting_is_on_the_page_of_settings(site):
    page = site["settings_page"]()
    for option in options(config.Config):
        if option.flags:
            assert f"| `{option.flags[0]}` |" in page
    for field in dataclasses.fields(config.Config):
        if dataclasses.is_dataclass(field.default_factory):
            assert f"\n## {field.name}\n" in page
    (line,) = re.findall(r"^\| `--data.image-size` .*$", page, re.MULTILINE)
    assert line == "| `--data.image-size` | `224` | whole number | Side of the square crops, pixels. | `32` |"


def test_every_command_and_option_is_on_the_page_of_options(site):
    page = site["options_page"]()
    for name in verbs.names():
        part = page.split(f"\n### iwm {name}\n")[1].split("\n### ")[0]
        assert verbs.find(name).example in part
        for option in options(verbs.find(name).options):
            of_settings = option.flags and (name in ("pretrain", "sweep") or option.name.startswith("speed."))
            assert of_settings or (option.flags[0] if option.flags else option.name.split(".")[-1].upper()) in part


def test_every_public_name_is_on_the_page_of_names(site):
    page = site["names_page"]()
    assert [name for name in iwm.__all__ if f"\n### iwm.{name}\n" not in page] == []


def test_every_page_has_its_place(site):
    groups = site["groups_of"]((DOCS / "README.md").read_text())
    placed = [page for pages in groups.values() for page in pages]
    assert len(placed) == len(set(placed))
    assert set(placed) == {page.name for page in DOCS.glob("*.md")} - {"README.md"} | set(site["MADE"])
    assert set(groups) >= {"Get started", "Concepts", "How to", "Reference", "Results"}


def test_links_are_carried_over_or_complained_of(site, tmp_path):
    def staged(text: str, page: str = "docs/page.md") -> str:
        return site["staged"](text, ROOT / page, tmp_path)

    assert staged("[a](faq.md#does-it-matter-that-the-loss-rises) [b](../README.md#install)") == (
        "[a](faq.md#does-it-matter-that-the-loss-rises) [b](index.md#install)"
    )
    assert staged("[a](docs/faq.md) [b](docs/README.md)", "README.md") == "[a](faq.md) [b](contents.md)"
    assert staged("[a folder](../results), [web](https://example.org)") == "a folder, [web](https://example.org)"
    assert staged("[tables](../results/tables.py)") == "[tables](files/results/tables.py)"
    assert (tmp_path / "files" / "results" / "tables.py").is_file()
    assert staged("```sh\n[a](absent.md)\n```") == "```sh\n[a](absent.md)\n```"
    with pytest.raises(ValueError, match=r"docs/page.md links to absent.md"):
        staged("[a](absent.md)")


def test_the_site_builds_strictly(site, tmp_path):
    pytest.importorskip("myst_parser", reason="needs Sphinx and MyST; `make docs` builds the whole")
    site["stage"](tmp_path / "pages")
    assert site["build"](tmp_path / "pages", tmp_path / "site") == 0
    (tmp_path / "pages" / "faq.md").write_text("# Questions\n\n[nowhere](concepts.md#no-such-part)\n")
    assert site["build"](tmp_path / "pages", tmp_path / "site") != 0
