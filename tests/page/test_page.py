"""The page in a real browser: it works by keyboard, fits a phone, and asks nobody but this machine."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from browser import Chromium, chromium, executable
from test_pictures import file


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    program = executable()
    if program is None:
        pytest.skip("there is no Chromium here (apt-get install chromium)")
    with chromium(program) as opened:
        yield opened


@pytest.fixture
def page(browser: Chromium, page_address: str) -> Chromium:
    """The page, loaded, with its first answer."""
    browser.requests.clear()
    browser.errors.clear()
    browser.show("about:blank")
    browser.show(page_address)
    browser.wait("document.querySelector('#imagine .verdict b')")
    return browser


def words(page: Chromium, selector: str) -> str:
    return page.run(f"document.querySelector({selector!r}).textContent")


def test_it_asks_nobody_but_the_page_and_has_no_faults(page: Chromium, page_address: str) -> None:
    for tab in ("find", "search", "imagine"):
        page.run(f"document.querySelector('#tab-{tab}').click()")
    page.wait("document.querySelectorAll('#hits-changed img').length == 8")
    places = {urlsplit(url).netloc for url in page.requests if urlsplit(url).scheme not in ("data", "about")}
    assert places == {urlsplit(page_address).netloc}
    assert not page.errors
    refused = "fetch('https://example.org/').then(() => 'came', () => 'refused')"
    assert page.run(refused) == "refused", "nor could it"


def test_a_slider_moved_by_keyboard_changes_every_picture(page: Chromium) -> None:
    pictures = "[...document.querySelectorAll('#imagine figure:not([hidden]) img')].map((one) => one.src)"
    page.wait("!/being encoded/.test(document.querySelector('#imagine .verdict').textContent)")
    before = page.run(pictures)
    assert len(before) == 6
    page.run("document.querySelector('#imagine-brightness').focus()")
    page.press("End")
    page.wait("/brightness \\+0.40/.test(document.querySelector('#imagine [data-picture=truth] span').textContent)")
    after = page.run(pictures)
    changed = [first != second for first, second in zip(before, after, strict=True)]
    assert changed[0] is False, "the source is untouched"
    assert all(changed[1:4])
    assert words(page, "#imagine .slider output") == "+0.40"
    page.press("Home")
    page.wait("/brightness -0.40/.test(document.querySelector('#imagine [data-picture=truth] span').textContent)")


def test_all_of_it_is_reached_with_the_tab_key(page: Chromium) -> None:
    page.run("document.activeElement.blur()")
    reached = []
    for _ in range(20):
        page.press("Tab")
        reached.append(page.run("document.activeElement.id || document.activeElement.name || ''"))
    names = ["brightness", "contrast", "saturation", "hue", "grayscale", "blur", "solarize"]
    wanted = ["tab-imagine", "image", *(f"imagine-{name}" for name in names), "to-find"]
    assert [one for one in reached if one in wanted][: len(wanted)] == wanted
    visible = "getComputedStyle(document.activeElement).outlineStyle"
    page.run("document.querySelector('#imagine-hue').focus()")
    page.press("ArrowRight")
    assert page.run(visible) != "none", "where the focus is can be seen"


def test_arrows_choose_tabs_and_images(page: Chromium) -> None:
    page.run("document.querySelector('#tab-imagine').focus()")
    page.press("ArrowRight")
    assert page.run("document.activeElement.id") == "tab-find"
    assert page.run("!document.querySelector('#find').hidden && document.querySelector('#imagine').hidden")
    page.press("Home")
    page.run("document.querySelector('#imagine .strip input:checked').focus()")
    source = page.run("document.querySelector('#imagine [data-picture=source] img').src")
    page.press("ArrowRight")
    page.wait(f"document.querySelector('#imagine [data-picture=source] img').src !== {source!r}")


def test_a_file_is_uploaded_and_imagined_and_a_wrong_one_is_refused(page: Chromium, tmp_path: Path) -> None:
    (tmp_path / "grey.png").write_bytes(file())
    (tmp_path / "text.png").write_text("no image")
    count = page.run("document.querySelectorAll('#imagine .strip img').length")
    source = page.run("document.querySelector('#imagine [data-picture=source] img').src")
    page.put_file("#imagine input[type=file]", tmp_path / "grey.png")
    page.wait(f"document.querySelectorAll('#imagine .strip img').length == {count + 1}")
    page.wait(f"document.querySelector('#imagine [data-picture=source] img').src !== {source!r}")
    assert page.run("document.querySelector('#imagine .strip input:checked').nextSibling.alt") == "grey.png"
    page.put_file("#imagine input[type=file]", tmp_path / "text.png")
    page.wait("!document.querySelector('#imagine .error').hidden")
    assert "choose JPEG, PNG" in words(page, "#imagine .error")


def test_the_change_is_found_again(page: Chromium) -> None:
    page.run("document.querySelector('#imagine-brightness').focus()")
    page.press("End")
    page.run("document.querySelector('#to-find').click()")
    page.wait("!document.querySelector('#found').hidden")
    row = page.run("[...document.querySelectorAll('#found tbody tr:first-child > *')].map((cell) => cell.textContent)")
    assert row[0] == "brightness"
    assert row[3] == "+0.40"
    assert float(row[2].replace("−", "-")) == pytest.approx(0.4, abs=0.03)


def test_every_control_and_picture_has_a_name(page: Chromium) -> None:
    nameless = """[...document.querySelectorAll('input, button, img')].filter((one) => one.offsetParent
        && ![one, ...(one.labels || [])].some((part) => part.textContent || part.querySelector('[alt]'))
        && !one.alt && !one.getAttribute('aria-label')).map((one) => one.outerHTML.slice(0, 90))"""
    for tab in ("imagine", "find", "search"):
        page.run(f"document.querySelector('#tab-{tab}').click()")
        assert page.run(nameless) == []


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_cut_off(page: Chromium, width: int) -> None:
    page.resize(width, 844)
    for tab in ("imagine", "find", "search"):
        page.run(f"document.querySelector('#tab-{tab}').click()")
        assert page.run("document.documentElement.scrollWidth") <= width, tab
        small = (
            "[...document.querySelectorAll('p, figcaption, label, button, td, li')].filter((one) => one.offsetParent"
        )
        small += " && parseFloat(getComputedStyle(one).fontSize) < 12).length"
        assert page.run(small) == 0, "no words smaller than 12 px"
