"""All pages in a real browser: as wide as a desk and a phone, light and dark, with few classes and with 1,000."""

import pytest

from shardline.tools.html_report import HtmlReport
from shardline.tools.plot_style import new_figure
from tests import pages
from tests.browser import Browser

pytestmark = pytest.mark.browser


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


def test_links_to_many_sections_are_all_seen_on_a_desk(tab, tmp_path):
    page = HtmlReport("Sections")
    for number in range(12):
        page.text(f"Section number {number}", "words")
    page.save(tmp_path / "page.html")
    assert pages.faults(tab, (tmp_path / "page.html").as_uri(), 1200, dark=False) == []
    assert pages.faults(tab, (tmp_path / "page.html").as_uri(), 390, dark=False) == []  # there they scroll
    right = "Math.max(...[...document.querySelectorAll('nav a')].map(link => link.getBoundingClientRect().right))"
    tab.size(1200, 900)
    assert tab.run(right) <= 1200


@pytest.mark.parametrize("classes", pages.CLASSES)
def test_no_page_is_cut_or_unreadable(classes, tab, tmp_path):
    assert pages.look(tab, pages.make(tmp_path, classes)) == []
    with pages.browsed(tmp_path, classes) as addresses:
        assert pages.look(tab, addresses) == []


def test_no_report_of_a_benchmark_is_cut_or_unreadable(tab, tmp_path):
    assert pages.look(tab, pages.benchmarks(tmp_path)) == []


def test_what_no_page_may_have_is_seen(tab, tmp_path):
    page = HtmlReport("Faults")
    page.text("Words", "1 files", "{'a': 1}")
    page.table("Long", ("a",), [(n,) for n in range(50)])
    page.image("Image", b"\xff\xd8\xff", "a broken one")
    page.save(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    style = "<p style='color: #888'>pale</p><p style='width: 2000px'>wide</p></body>"
    rows = "".join(f"<tr><td>{n}</td></tr>" for n in range(51))
    (tmp_path / "page.html").write_text(text.replace("</body>", f"<table>{rows}</table>{style}"))
    for width, dark in ((390, False), (1200, True)):
        found = " | ".join(pages.faults(tab, (tmp_path / "page.html").as_uri(), width, dark=dark))
        told = ["'1 files'", '"{\'"', "broken image: a broken one", "51 rows that are not folded", "pixels wide: <p"]
        assert [fault for fault in told if fault not in found] == []
        assert dark or "contrast 3.5 of 'pale'" in found


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
