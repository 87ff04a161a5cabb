"""All pages in a real browser: as wide as a desk and a phone, light and dark, with few classes and with 1,000."""

import re

import pytest

from shardline.tools.html_report import HtmlReport
from shardline.tools.plot_style import new_figure
from tests.browser import Browser

pytestmark = pytest.mark.browser

INK, BACK = (
    {False: "rgb(27, 31, 36)", True: "rgb(230, 237, 243)"},
    {False: "rgb(255, 255, 255)", True: "rgb(13, 17, 23)"},
)


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture(scope="module")
def many_classes(tmp_path_factory):
    """A page with a plot and a table of 1,000 classes, of long names."""
    page = HtmlReport("1,000 classes")
    figure = new_figure(5.2, 3)
    figure.subplots().plot([1, 2, 3], color="black")
    page.figure("Training", figure, "a curve")
    rows = [(f"a class with a rather long name, number {i}", i, i / 1000) for i in range(1000)]
    page.table("Classes", ("class", "records", "recall"), rows)
    path = tmp_path_factory.mktemp("many") / "report.html"
    page.save(path)
    return path


@pytest.mark.parametrize("name", ["run", "evaluation", "data", "many"])
def test_no_page_is_wider_than_its_window_and_all_follow_dark_mode(name, tab, tiny_run, tiny_evaluation, many_classes):
    pages = {
        "run": tiny_run,
        "evaluation": tiny_evaluation,
        "data": tiny_run.parent / "data",
        "many": many_classes.parent,
    }
    path = pages[name] / "report.html"
    assert path.stat().st_size < 2_000_000
    text = re.sub(r'http-equiv="refresh"', "", path.read_text())
    assert "http:" not in text
    for width in (390, 1200):
        for dark in (False, True):
            tab.size(width, 900, dark=dark)
            tab.open(path.as_uri())
            assert tab.run("document.documentElement.scrollWidth") <= width
            assert tab.run("getComputedStyle(document.body).color") == INK[dark]
            assert tab.run("getComputedStyle(document.body).backgroundColor") == BACK[dark]
            inks = tab.run("[...document.querySelectorAll('svg text')].map(e => getComputedStyle(e).fill)")
            # What is written in gray is for orientation, and gray on both.
            assert inks and INK[dark] in inks and INK[not dark] not in inks
            cut = "[...document.querySelectorAll('.plot')].filter(e => e.scrollWidth > e.clientWidth + 1)"
            unsaid = f"{cut}.filter(e => !getComputedStyle(e, '::before').content.includes('scroll')).length"
            assert tab.run(unsaid) == 0  # a plot that is cut says that it scrolls
    assert tab.problems() == []


def test_a_thousand_rows_are_folded_searched_and_sorted(tab, many_classes):
    tab.size(390, 900)
    tab.open(many_classes.as_uri())
    assert tab.run("document.documentElement.scrollHeight") < 2000
    tab.run("document.querySelector('summary').click()")
    shown = "[...document.querySelectorAll('tbody tr')].filter(e => !e.hidden).map(e => e.cells[1].textContent)"
    search = "const field = document.querySelector('input[type=search]'); field.value = 'NUMBER 99';"
    tab.run(search + " field.dispatchEvent(new Event('input'))")
    assert tab.run(shown) == ["99", *(str(n) for n in range(990, 1000))]
    tab.run("document.querySelectorAll('th button')[1].click(); document.querySelectorAll('th button')[1].click()")
    assert tab.run(shown) == [*(str(n) for n in range(999, 989, -1)), "99"]
