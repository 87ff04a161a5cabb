"""One HTML page out of titled sections: text, sortable tables, figures, image galleries. No TensorFlow.

The page is one file that opens from disk without a network: style, script, images and data are inside it.

    page = HtmlReport("Conversion of flowers", subtitle="960 images")
    page.text("Ledger", "inputs 960 = written 960")
    page.table("Faults", ("file", "reason"), rows)
    page.figure("Class histogram", figure, alt="bars: 80 images in each of 12 classes")
    page.save("report.html")
"""

from __future__ import annotations

import base64
import html
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from shardline.pipeline.files import atomic_write
from shardline.pipeline.wording import decimal
from shardline.tools.plot_style import Plot, figure_png, figure_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --back: #ffffff; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa4af; --line: #30363d; --back: #0d1117;
  --card: #161b22; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; color: var(--ink); background: var(--back);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
p { margin: .5rem 0; }
.soft { color: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: 0 1rem; }
@media (max-width: 40rem) { nav { flex-wrap: nowrap; overflow-x: auto; white-space: nowrap; } }
summary { cursor: pointer; padding: .25rem 0; }
input[type=search] { font: inherit; width: min(100%, 20rem); padding: .25rem .5rem; }
.wide { overflow-x: auto; margin: .5rem 0; background: linear-gradient(to right, var(--back) 30%, transparent) local,
  linear-gradient(to left, var(--back) 30%, transparent) 100% 0 local,
  linear-gradient(to right, var(--line), transparent) scroll,
  linear-gradient(to left, var(--line), transparent) 100% 0 scroll;
  background-repeat: no-repeat; background-size: 2rem 100%, 2rem 100%, .5rem 100%, .5rem 100%; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: normal; }
.number { text-align: right; white-space: nowrap; }
.whole { white-space: nowrap; }
.long { min-width: 12rem; }
th button { all: unset; cursor: pointer; font-weight: 600; white-space: nowrap; }
th button:focus-visible { outline: 2px solid #0072B2; }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
img { max-width: 100%; height: auto; }
figure { margin: .5rem 0; }
figure.plot { overflow-x: auto; container-type: inline-size; }
figure.plot svg { display: block; width: min(100%, var(--full)); min-width: var(--least); height: auto; }
figure.plot svg * { stroke-linejoin: round; stroke-linecap: butt; }
figure.plot svg text { fill: currentColor; }
@media (max-width: 40rem) { figure.scrolls::before { content: "scroll sideways ↔"; position: sticky; left: 0;
  color: var(--soft); font-size: .75rem; } }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); gap: .5rem; }
.gallery figure { margin: 0; background: var(--card); padding: .25rem; }
.gallery img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; }
.gallery.pairs { grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }
.gallery.pairs img { aspect-ratio: auto; width: auto; }
.gallery.small { grid-template-columns: repeat(auto-fill, minmax(4.75rem, 1fr)); }
.groups { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21.5rem), 1fr)); column-gap: 2rem; }
.right { border-bottom: 3px solid #009E73; }
.wrong { border-bottom: 3px solid #D55E00; }
h3 { font-size: 1rem; margin: 1rem 0 .25rem; }
.gallery figcaption { font-size: .75rem; color: var(--soft); }
pre { overflow-x: auto; background: var(--card); padding: .75rem; }
"""

_SCRIPT = """
document.querySelectorAll('th button').forEach(button => button.addEventListener('click', () => {
  const head = button.parentElement, table = head.closest('table'), body = table.tBodies[0];
  const up = head.getAttribute('aria-sort') !== 'ascending', column = head.cellIndex;
  const key = row => { const cell = row.cells[column]; return cell.dataset.value ?? cell.textContent; };
  const compare = (a, b) => { const x = key(a), y = key(b), d = x - y;
    return isNaN(d) || x === '' || y === '' ? x.localeCompare(y) : d; };
  const rows = [...body.rows].sort((a, b) => up ? compare(a, b) : compare(b, a));
  table.querySelectorAll('th').forEach(th => th.removeAttribute('aria-sort'));
  head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
  body.append(...rows);
}));
document.querySelectorAll('input[type=search]').forEach(input => input.addEventListener('input', () => {
  const wanted = input.value.toLowerCase(), rows = input.closest('details').querySelectorAll('tbody tr');
  rows.forEach(row => {
    row.hidden = ![...row.cells].some(cell => cell.textContent.toLowerCase().includes(wanted)); });
}));
"""


@dataclass(frozen=True)
class Link:
    """A cell of a table that leads to a file: its text, and the path relative to the page."""

    text: str
    path: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Example:
    """An encoded image with a caption, and whether it was answered right."""

    image: bytes
    caption: str
    right: bool


LEGIBLE = 0.7  # of its own size, at which the lettering of a plot is still legible: on a phone it scrolls below that
PHONE = 358  # pixels of width that a page has on one
LONG = 24  # characters of a cell, which gets room for about as many in a line
FOLDED_FROM = 50  # rows of a table, beyond which it is folded


class HtmlReport:
    """Collects sections in order, then renders them to one self-contained HTML document."""

    def __init__(self, title: str, subtitle: str = "", refresh_seconds: int = 0):
        """`refresh_seconds`: how often an open page is read again, for one that is written again; 0: never."""
        self.title = title
        self.subtitle = subtitle
        self.refresh_seconds = refresh_seconds
        self._sections: list[tuple[str, list[str]]] = []

    def text(self, title: str, *paragraphs: str) -> None:
        """A section of plain paragraphs."""
        self._add(title, *(f"<p>{html.escape(paragraph)}</p>" for paragraph in paragraphs))

    def folded(self, title: str, summary: str, *paragraphs: str) -> None:
        """Paragraphs that are shown when their summary is pressed."""
        text = "".join(f"<p>{html.escape(paragraph)}</p>" for paragraph in paragraphs)
        self._add(title, f"<details><summary>{html.escape(summary)}</summary>{text}</details>")

    def pre(self, title: str, text: str) -> None:
        """A section of text whose line breaks count, such as a listing."""
        self._add(title, f"<pre>{html.escape(text)}</pre>")

    def table(self, title: str, header: Sequence[str], rows: Iterable[Sequence[Any]], note: str = "") -> None:
        """A section with a table that sorts when a head is pressed; numbers stand right and sort as numbers.

        Many rows are folded away, with a field that searches them.
        """
        rows = list(rows)
        styles = [_style([row[column] for row in rows]) for column in range(len(header))]
        heads = "".join(
            f'<th scope="col"{style.kind}><button type="button">{html.escape(name)}</button></th>'
            for name, style in zip(header, styles, strict=True)
        )
        body = "".join("<tr>" + "".join(map(_cell, row, styles)) + "</tr>\n" for row in rows)
        table = f'<div class="wide"><table><thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table></div>'
        if len(rows) > FOLDED_FROM:
            search = '<input type="search" placeholder="search these rows" aria-label="search these rows">'
            table = f"<details><summary>{len(rows):,} rows</summary>{search}{table}</details>"
        self._add(title, _note(note), table)

    def links(self, title: str, links: Iterable[tuple[str, str]]) -> None:
        """A section of links to files beside the page: what each is, and its relative path."""
        self._add(title, _link_list(links))

    def figure(
        self, title: str, figure: Figure | Plot, alt: str, note: str = "", png: str | os.PathLike[str] | None = None
    ) -> None:
        """A section with a plot, embedded as SVG in the page's own ink.

        Args:
          title: the message of the image.
          figure: a Matplotlib figure, which is closed, or what was rendered of one.
          alt: what the image shows, for those who cannot see it.
          note: a paragraph above it.
          png: also save it here, on white.
        """
        svg = figure.svg if isinstance(figure, Plot) else figure_svg(figure)
        if png is not None:
            atomic_write(png, figure.png if isinstance(figure, Plot) else figure_png(figure), durable=False)
        elif not isinstance(figure, Plot):
            figure.clear()
        self._add(title, _note(note), _plot(svg, alt))

    def image(self, title: str, data: bytes, alt: str, note: str = "") -> None:
        """A section with one encoded image (PNG, JPEG or WebP)."""
        self._add(title, _note(note), f"<figure>{_img(data, alt)}</figure>")

    def gallery(self, title: str, images: Iterable[tuple[bytes, str]], note: str = "", wide: bool = False) -> None:
        """A section with a grid of encoded images and their captions; `wide` for pairs of images."""
        cells = "".join(
            f"<figure>{_img(data, caption)}<figcaption>{html.escape(caption)}</figcaption></figure>"
            for data, caption in images
        )
        kind = "gallery pairs" if wide else "gallery"
        self._add(title, _note(note), f'<div class="{kind}">{cells}</div>')

    def examples(self, title: str, groups: Iterable[tuple[str, Sequence[Example]]], note: str = "") -> None:
        """A section with rows of small images, each row under what it is of; right and wrong are marked."""
        parts = [_note(note)]
        for heading, images in groups:
            cells = "".join(
                f'<figure class="{"right" if one.right else "wrong"}">{_img(one.image, one.caption)}<figcaption>'
                f"{'✓' if one.right else '✗'} {html.escape(one.caption)}</figcaption></figure>"
                for one in images
            )
            parts.append(f'<div><h3>{html.escape(heading)}</h3><div class="gallery small">{cells}</div></div>')
        self._add(title, parts[0], f'<div class="groups">{"".join(parts[1:])}</div>')

    def render(self) -> str:
        """The whole document."""
        links = "".join(
            f'<a href="#s{n}">{html.escape(title)}</a> ' for n, (title, _) in enumerate(self._sections) if title
        )
        sections = "".join(
            f'<section id="s{n}">'
            + (f"<h2>{html.escape(title)}</h2>" if title else "")
            + "\n".join(parts)
            + "</section>\n"
            for n, (title, parts) in enumerate(self._sections)
        )
        again = f'<meta http-equiv="refresh" content="{self.refresh_seconds}">\n' if self.refresh_seconds else ""
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"{again}"
            f'<title>{html.escape(self.title)}</title>\n<link rel="icon" href="data:,">\n'
            f"<style>{STYLE}</style>\n</head>\n<body>\n"
            f'<h1>{html.escape(self.title)}</h1>\n<p class="soft">{html.escape(self.subtitle)}</p>\n'
            f"<nav>{links}</nav>\n{sections}<script>{_SCRIPT}</script>\n</body>\n</html>\n"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the document to `path`."""
        atomic_write(path, self.render().encode(errors="replace"), durable=False)

    def _add(self, title: str, *parts: str) -> None:
        """Parts under the title before join its section, so text, table and figure can share one heading."""
        if self._sections and self._sections[-1][0] == title:
            self._sections[-1][1].extend(parts)
        else:
            self._sections.append((title, list(parts)))


def replace_links(path: str | os.PathLike[str], title: str, links: Iterable[tuple[str, str]]) -> None:
    """Give the section of links of a page that is there, as `HtmlReport.links` made it, other links."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    heading = f"<h2>{html.escape(title)}</h2>"
    before, found, after = text.partition(f"{heading}<ul>")
    if found:
        _, _, rest = after.partition("</ul>")
        atomic_write(path, (before + heading + _link_list(links) + rest).encode(errors="replace"), durable=False)


def _link_list(links: Iterable[tuple[str, str]]) -> str:
    items = "".join(f'<li><a href="{html.escape(quote(path))}">{html.escape(text)}</a></li>' for text, path in links)
    return f"<ul>{items}</ul>"


_WHOLE = re.compile(r"--\w+|[0-9.]+%? to [0-9.]+%?")  # flags and intervals, which no line breaks
_PERCENT = re.compile(r"-?[0-9.]+%")


@dataclass(frozen=True)
class _Style:
    """Of a column: the attribute that sets numbers, and their head, to the right; their decimals, None: as needed."""

    kind: str = ""
    places: int | None = None


def _style(column: Sequence[Any]) -> _Style:
    known = [value for value in column if value != ""]
    if not known or not all(map(_is_number, known)):
        return _Style()
    sizes = [abs(value) for value in known if isinstance(value, float) and value and math.isfinite(value)]
    if not sizes:
        return _Style(' class="number"')
    # So that they stand below each other digit by digit, with about four of the largest.
    wanted = max(len(decimal(size).partition(".")[2]) for size in sizes)
    places = min(wanted, max(0, 3 - math.floor(math.log10(max(sizes))))) if max(sizes) > 1 else 4
    return _Style(' class="number"', places if min(sizes) >= 10**-places else None)


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return bool(_PERCENT.fullmatch(value))
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cell(value: Any, style: _Style = _Style()) -> str:
    kind = style.kind
    if isinstance(value, Link):
        kind = ' class="long"' if len(value.text) > LONG else ""
        return f'<td{kind}><a href="{html.escape(quote(value.path))}">{html.escape(value.text)}</a></td>'
    if not _is_number(value):
        text = str(value)
        kind = kind or (' class="whole"' if _WHOLE.fullmatch(text) else ' class="long"' if len(text) > LONG else "")
        return f"<td{kind}>{html.escape(text)}</td>"
    if isinstance(value, str):
        return f'<td{kind} data-value="{value[:-1]}">{value}</td>'
    text = f"{value:,}" if isinstance(value, int) else decimal(value)
    if isinstance(value, float) and style.places is not None and math.isfinite(value):
        text = f"{value:,.{style.places}f}"
    return f'<td{kind} data-value="{value}">{text}</td>'


def _plot(svg: str, alt: str) -> str:
    width = round(float(svg[svg.index('width="') + 7 :].partition("pt")[0]) * 96 / 72)
    named = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" ', 1)
    least = round(width * LEGIBLE)
    kind = "plot scrolls" if least > PHONE else "plot"
    return f'<figure class="{kind}" style="--full: {width}px; --least: {least}px">{named}</figure>'


def _note(text: str) -> str:
    return f'<p class="soft">{html.escape(text)}</p>' if text else ""


def _img(data: bytes, alt: str) -> str:
    kind = "png" if data[:4] == b"\x89PNG" else "webp" if data[8:12] == b"WEBP" else "jpeg"
    text = base64.b64encode(data).decode()
    return f'<img alt="{html.escape(alt)}" loading="lazy" src="data:image/{kind};base64,{text}">'
