"""The report page: one file, nothing from the network, everything escaped, readable without a script."""

import itertools
import re

import numpy as np
import pytest

from shardline.tools.html_report import HtmlReport, Link, _cell, _style, replace_links
from shardline.tools.plot_style import GRAY, PALETTE, figure_png, figure_svg, ink_on, new_figure


@pytest.fixture
def page():
    page = HtmlReport("A & B", "sub")
    page.text("One", "first <b>", "second")
    page.table("Faults", ("file", "bytes"), [("<x>.jpg", 12345), ("b", 7)])
    figure = new_figure(2, 1)
    figure.subplots().plot([1, 2], color=PALETTE[0])
    page.figure("Plot", figure, 'a "line"')
    page.gallery("Images", [(b"\xff\xd8\xff", "cap & tion")])
    return page.render()


def test_page_stands_alone(page):
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)
    assert "http" not in page
    assert page.startswith("<!doctype html>") and 'name="viewport"' in page


def test_text_is_escaped_and_numbers_sort_as_numbers(page):
    assert "<title>A &amp; B</title>" in page
    assert "first &lt;b&gt;" in page and "&lt;x&gt;.jpg" in page
    assert 'data-value="12345">12,345<' in page
    assert re.findall('<th scope="col"(.*?)>', page) == ["", ' class="number"']  # a head stands above its numbers


@pytest.mark.parametrize(
    ("column", "shown"),
    [
        ((0.5, 1.0, 0.0), ["0.5000", "1.0000", "0.0000"]),
        ((2e-5, 0.5), ["0.00002", "0.5"]),
        ((0.1, 95.0, 35.75), ["0.10", "95.00", "35.75"]),
        ((4600.0, 1234.56, ""), ["4,600", "1,235", ""]),
        ((1.119, 2.08), ["1.119", "2.080"]),
        ((12, 3000), ["12", "3,000"]),
    ],
)
def test_numbers_of_a_column_stand_below_each_other(column, shown):
    page = HtmlReport("t")
    page.table("Numbers", ("n",), [(value,) for value in column])
    assert re.findall(r'<td class="number"[^>]*>(.*?)</td>', page.render()) == shown


def test_percentages_stand_and_sort_as_numbers():
    assert (
        _cell("8.2%", _style(["8.2%"])) == '<td class="number" data-value="8.2">8.2%</td>'
        and _cell("8.2% of it") == "<td>8.2% of it</td>"
        and _style(["8.2%", "8.2% of it"]).kind == ""
    )


def test_images_have_words(page):
    (image,) = re.findall(r"<img [^>]*>", page)
    assert 'alt="cap &amp; tion"' in image and "data:image/jpeg;base64," in image
    assert '<svg role="img" aria-label="a &quot;line&quot;"' in page


def test_plots_are_drawn_in_the_ink_of_the_page_also_those_of_many_points():
    figure = new_figure(4, 2)
    axes = figure.subplots()
    axes.plot([1, 2], [3, 4], color="black")
    axes.set_title("a <b> & c")
    page, points = HtmlReport("t"), np.random.default_rng(0).random((2, 20_000))
    page.figure("Line", figure, "line")
    assert "a &lt;b&gt; &amp; c</text>" in page.render()  # text can be searched and selected
    assert "currentColor" in page.render() and "#000000" not in page.render() and "<img" not in page.render()
    many = new_figure(4, 2)
    axes = many.subplots()
    axes.plot(*points, ".")
    axes.set_xlabel("lettering", color=GRAY)
    page.figure("Many", many, "many points")
    assert page.render().count("<svg ") == 2 and "<image " in page.render() and "lettering</text>" in page.render()
    assert "var(--soft)" in page.render().split("<svg ")[2] and len(page.render()) < 300_000


def test_what_is_written_on_a_colored_cell_can_be_read():
    def luminance(*rgb):
        parts = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in rgb]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    for rgb in itertools.product(np.linspace(0, 1, 9), repeat=3):
        cell, ink = luminance(*rgb), 1.0 if ink_on(*rgb) == "white" else 0.0
        assert (max(cell, ink) + 0.05) / (min(cell, ink) + 0.05) > 4.5
    assert ink_on(1, 1, 1) not in ("black", "#000000")  # which becomes the ink of the page


def test_equal_figures_give_equal_bytes():
    def draw():
        figure = new_figure(2, 1)
        figure.subplots().plot([1, 3])
        return figure_png(figure)

    assert draw() == draw()
    svgs = []
    for _ in range(2):
        figure = new_figure(2, 1)
        figure.subplots().plot([1, 3])
        svgs.append(figure_svg(figure))
    assert svgs[0] == svgs[1] and "http" not in svgs[0]


def test_parts_under_one_title_share_a_section():
    page = HtmlReport("t")
    page.text("Same", "one")
    page.table("Same", ("a",), [(1,)])
    assert page.render().count("<h2>") == 1


def test_many_rows_are_folded_and_can_be_searched():
    page = HtmlReport("t")
    page.table("Few", ("class",), [(f"few{n}",) for n in range(50)])
    page.table("Many", ("class",), [(f"many{n}",) for n in range(1000)])
    few, many = page.render().split('<section id="s')[1:]
    assert "<details" not in few
    assert "<summary>1,000 rows</summary>" in many and '<input type="search"' in many and "many999" in many


def test_links_of_a_page_that_is_there_are_replaced_and_nothing_else(tmp_path):
    page = HtmlReport("t")
    page.links("Files", [("old", "old.html")])
    page.text("After", "text")
    page.save(tmp_path / "p.html")
    before = (tmp_path / "p.html").read_text()
    replace_links(tmp_path / "p.html", "Files", [("old", "old.html"), ("new & more", "new page.html")])
    added = '<li><a href="new%20page.html">new &amp; more</a></li>'
    assert (tmp_path / "p.html").read_text() == before.replace("old</a></li>", f"old</a></li>{added}")
    replace_links(tmp_path / "p.html", "None such", [("x", "x")])
    assert added in (tmp_path / "p.html").read_text()


def test_a_cell_can_lead_to_a_file():
    page = HtmlReport("t")
    page.table("Runs", ("run",), [(Link("a & b", "a b/report.html"),)])
    assert '<td><a href="a%20b/report.html">a &amp; b</a></td>' in page.render()


def test_links_are_relative_and_quoted_and_a_live_page_is_read_again():
    page = HtmlReport("t", refresh_seconds=30)
    page.links("Files", [("a & b", "my run/report.html")])
    assert '<a href="my%20run/report.html">a &amp; b</a>' in page.render()
    assert '<meta http-equiv="refresh" content="30">' in page.render()
    assert "http-equiv" not in HtmlReport("t").render()
