"""What shardline-browse shows: pages of images that fit a query, one record, and the images themselves. No TensorFlow.

Stored images go out as they are stored; a browser reads JPEG and PNG. Raw pixels become PNG. Of what is large, a grid
gets thumbnails. Those and files that were not stored are decoded in a process of their own, as a conversion does it,
and shown as JPEG.
"""

from __future__ import annotations

import html
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from urllib.parse import urlencode

import numpy as np

from shardline.pipeline.encodings import ENCODINGS
from shardline.pipeline.errors import UsageError
from shardline.pipeline.image_bytes import encode_rgb, fit
from shardline.pipeline.image_files import ImageLoader
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.sniff import sniff
from shardline.pipeline.source_files import find_source
from shardline.pipeline.text import display
from shardline.pipeline.wording import as_flag, count, shorten_middle
from shardline.tools.browse_index import ORDERS, WRONG, Index, Query
from shardline.tools.browse_server import Answer
from shardline.tools.html_report import STYLE

PAGE_IMAGES = 120
THUMBNAIL = 320  # pixels of the longer side of a thumbnail, and of an image that is not stored
LIGHT = 40_000  # bytes of a stored image that a grid shows as it is
RELATIVES = 60  # of a record that are shown
SHOWN_BY_BROWSERS = ("jpeg", "png", "webp", "gif", "bmp", "avif")
RANGES = {"side": ("shorter side", "px"), "confidence": ("confidence", "%")}

_STYLE = """
body { max-width: 100rem; }
form { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: end; }
label { display: grid; font-size: .8rem; color: var(--soft); }
select, input, button { font: inherit; color: var(--ink); background: var(--card); border: 1px solid var(--line);
  border-radius: .25rem; padding: .25rem .5rem; max-width: 14rem; }
input[type=number] { width: 5.5rem; }
.range { display: flex; gap: .25rem; }
.pager { display: flex; flex-wrap: wrap; gap: 1rem; align-items: center; margin: 1rem 0; }
a { color: inherit; }
.gallery { grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); }
.gallery a { text-decoration: none; }
.gallery figure { height: 100%; border-top: 3px solid transparent; }
.gallery img { font-size: .7rem; }
.gallery .wrong { border-color: #d55e00; }
.gallery .absent { display: grid; aspect-ratio: 1; place-content: center; text-align: center; font-size: .8rem; }
.record { display: grid; grid-template-columns: minmax(0, 32rem) minmax(0, 1fr); gap: 1.5rem; align-items: start; }
.record img { width: 100%; image-rendering: auto; background: var(--card); }
th { text-align: left; font-weight: normal; color: var(--soft); vertical-align: top; padding-right: 1rem; }
td { overflow-wrap: anywhere; }
@media (max-width: 40rem) { .record { grid-template-columns: minmax(0, 1fr); }
  .gallery { grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); } }
"""

_SCRIPT = """
document.querySelectorAll('form select').forEach(select =>
  select.addEventListener('change', () => select.form.submit()));
document.querySelectorAll('form').forEach(form => form.addEventListener('formdata', event => {
  for (const [name, value] of [...event.formData]) if (!value) event.formData.delete(name);
}));
document.querySelectorAll('img').forEach(image => {
  const place = Object.assign(document.createElement('div'), { className: 'absent', textContent: 'cannot be shown' });
  const gone = () => image.replaceWith(place);
  if (image.complete && !image.naturalWidth) gone(); else image.addEventListener('error', gone);
});
document.addEventListener('keydown', event => {
  if (event.target.matches('input, select') || event.ctrlKey || event.altKey || event.metaKey) return;
  const rel = { ArrowLeft: 'prev', ArrowRight: 'next' }[event.key];
  document.querySelector(`a[rel=${rel}]`)?.click();
});
"""

_ICON = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 2"><path fill="#0072b2" d="M0 0h1v2h1V1H0z"/></svg>'


def text(value: object) -> str:
    """A value as HTML, harmless whatever it is."""
    return html.escape(display(str(value)))


class Site:
    """The pages about one index. Safe to share between threads."""

    def __init__(self, index: Index, sources: Sequence[str] = ()) -> None:
        self.index = index
        self.sources = tuple(sources)
        limit = index.manifest.options.get("max_megapixels", 128.0)
        self._loader = ImageLoader(ImageOptions(resize="long", size=THUMBNAIL, max_megapixels=limit))
        self._source_image = lru_cache(1000)(self._load_source)
        self._thumbnail = lru_cache(1000)(self._load_thumbnail)

    def answer(self, path: Sequence[str], query: Mapping[str, str]) -> Answer:
        """What stands at a path: see `browse_server.Content`."""
        match path:
            case [""]:
                return self._grid(query)
            case ["record", number]:
                return self._record(self._row(number))
            case ["image", number]:
                return self._image(self._row(number))
            case ["thumbnail", number]:
                return self._thumbnail(self._row(number))
            case ["browse.css"]:
                return Answer((STYLE + _STYLE).encode(), "text/css", lasting=True)
            case ["browse.js"]:
                return Answer(_SCRIPT.encode(), "text/javascript", lasting=True)
            case ["icon.svg"]:
                return Answer(_ICON, "image/svg+xml", lasting=True)
        raise LookupError(path)

    def _row(self, number: str) -> int:
        if not (number.isascii() and number.isdecimal() and len(number) < 12 and int(number) < len(self.index)):
            raise LookupError(number)
        return int(number)

    # -------------------------------------------------------------------------------------------------- images

    def _image(self, row: int) -> Answer:
        if self.index.records[row] < 0:
            return self._source_image(row)
        stored = self._stored(row)
        if isinstance(stored, np.ndarray):
            return Answer(encode_rgb(stored, "png"), "image/png", lasting=True)
        if (kind := sniff(stored)) in SHOWN_BY_BROWSERS:
            return Answer(stored, f"image/{kind}", lasting=True)
        return self._decoded(stored)

    def _load_thumbnail(self, row: int) -> Answer:
        stored = self._stored(row) if self.index.records[row] >= 0 else b""
        if isinstance(stored, np.ndarray) and max(stored.shape) > THUMBNAIL:
            return Answer(encode_rgb(fit(stored, THUMBNAIL), "jpg"), "image/jpeg", lasting=True)
        return self._decoded(stored) if isinstance(stored, bytes) and len(stored) > LIGHT else self._image(row)

    def _stored(self, row: int) -> bytes | np.ndarray:
        """The file of a stored image, or its pixels where they are stored raw."""
        example = self.index.data.shards(self.index.split(row)).read(int(self.index.records[row]))
        encoding = ENCODINGS[self.index.manifest.image.encoding]
        return bytes(example.image) if encoding.self_describing else encoding.decode(example, exact=True)

    def _load_source(self, row: int) -> Answer:
        file = find_source(self.sources, self.index.paths[row].as_py())
        if not file:
            raise LookupError(row)
        return self._decoded(file)

    def _decoded(self, file: str | bytes) -> Answer:
        image = self._loader.load(file)
        if isinstance(image, str):
            raise ValueError(image)
        return Answer(encode_rgb(image, "jpg", 90), "image/jpeg", lasting=True)

    # --------------------------------------------------------------------------------------------------- pages

    def _grid(self, given: Mapping[str, str]) -> Answer:
        query = parse_query(given, self.index)
        selection = self.index.select(query)
        total = len(selection.rows)
        pages = max(1, -(-total // PAGE_IMAGES))
        page = min(int(_number("page", given.get("page") or "1")), pages)
        start = (max(page, 1) - 1) * PAGE_IMAGES
        rows = selection.rows[start : start + PAGE_IMAGES].tolist()
        pager = self._pager(given, page, pages, f"{start + 1 if rows else 0:,} to {start + len(rows):,} of {total:,}")
        body = [self._form(given, selection.counts), pager, self._gallery(rows, ""), pager if pages > 1 else ""]
        ledger = self.index.manifest.ledger
        return _page(self.index.manifest.name, f"{ledger}.", "".join(body), "")

    def _form(self, given: Mapping[str, str], counts: Mapping[str, np.ndarray]) -> str:
        fields = []
        for name, facet in self.index.facets.items():
            options = [
                (value, f"{value} ({number:,})")
                for value, number in zip(facet.values, counts[name].tolist(), strict=True)
                if number or value == given.get(name)
            ]
            if options:
                fields.append(_select(name, facet.title, [("", "any"), *options], given.get(name, "")))
        for name in self.index.numbers:
            title, unit = RANGES[name]
            ends = "".join(
                f'<input type="number" step="any" name="{name}_{end}" value="{text(given.get(f"{name}_{end}", ""))}" '
                f'placeholder="{words}" aria-label="{title}, {words}, {unit}">'
                for end, words in (("low", "from"), ("high", "to"))
            )
            fields.append(f'<label>{title}, {unit}<span class="range">{ends}</span></label>')
        search = f'<input type="search" name="text" value="{text(given.get("text", ""))}">'
        fields.append(f"<label>part of the path{search}</label>")
        orders = [
            (name, name or "as stored") for name, (column, _) in ORDERS.items() if column in {"", *self.index.numbers}
        ]
        fields.append(_select("order", "order", orders, given.get("order", "")))
        return f'<form>{"".join(fields)}<button>show</button><a href="./">all</a></form>'

    @staticmethod
    def _pager(given: Mapping[str, str], page: int, pages: int, words: str) -> str:
        def link(number: int, rel: str, shown: str) -> str:
            kept = {name: value for name, value in given.items() if value and name != "page"}
            address = urlencode({**kept, "page": number}, errors="replace")
            return f'<a rel="{rel}" href="?{html.escape(address)}">{shown}</a>' if 1 <= number <= pages else ""

        before, after = link(page - 1, "prev", "← before"), link(page + 1, "next", "next →")
        where = f" · page {page:,} of {pages:,}" if pages > 1 else ""
        return f'<div class="pager"><strong>{words}</strong>{where} {before} {after}</div>'

    def _gallery(self, rows: Sequence[int], up: str) -> str:
        return f'<div class="gallery">{"".join(self._card(row, up) for row in rows)}</div>'

    def _card(self, row: int, up: str) -> str:
        path, name = self.index.paths[row].as_py(), self.index.value("class", row)
        lines = [name, shorten_middle(path.rpartition("/")[2], 24)]
        if shown := self._predicted(row):
            lines.append(shown)
        if self.index.records[row] < 0:
            lines.append(f"{self.index.value('status', row)}: {self.index.value('reason', row)}")
        kind = ' class="wrong"' if self._is_wrong(row) else ""
        caption = "<br>".join(map(text, lines))
        return (
            f'<a href="{up}record/{row}" title="{text(path)}"><figure{kind}>{self._picture(row, up, small=True)}'
            f"<figcaption>{caption}</figcaption></figure></a>"
        )

    def _picture(self, row: int, up: str, *, small: bool = False) -> str:
        """The image of a row, small as one of many, or a place where none can be shown."""
        path = self.index.paths[row].as_py()
        if self.index.records[row] < 0 and not find_source(self.sources, path):
            return f'<div class="absent">{text(self.index.value("reason", row))}</div>'
        kind, loading = ("thumbnail", ' loading="lazy"') if small else ("image", "")
        return f'<img src="{up}{kind}/{row}" alt="{text(path or f"record {self.index.records[row]}")}"{loading}>'

    def _is_wrong(self, row: int) -> bool:
        return self.index.top is not None and self.index.value("prediction", row) == WRONG

    def _predicted(self, row: int) -> str:
        """`✗ rose 93%`; "" for a row without a prediction."""
        if self.index.top is None or not self.index.value("prediction", row):
            return ""
        sign = "✗" if self._is_wrong(row) else "✓"
        return f"{sign} {self.index.value('predicted', row)} {self.index.top[1][row, 0]:.0%}"

    def _record(self, row: int) -> Answer:
        index = self.index
        stored = index.records[row] >= 0
        name = f"{index.split(row)}:{index.records[row]}" if stored else index.paths[row].as_py()
        facts = [("class", index.value("class", row)), *self._place(row)]
        facts += [
            (title.replace("_", " "), _shown(value))
            for title, value in index.facts(row).items()
            if _tells(value) and title != "perceptual_hash"
        ]
        body = f'<div class="record">{self._picture(row, "../")}<div>{_table(facts)}</div></div>'
        if self._predicted(row) and index.top:
            names = [index.manifest.shown_labels[label] for label in index.top[0][row].tolist()]
            shares = [f"{share:.1%}" for share in index.top[1][row].tolist()]
            body += f"<h2>Predicted: {text(self._predicted(row))}</h2>{_table(zip(names, shares, strict=True))}"
        for title, others in index.relatives(row).items():
            if others:
                body += f"<h2>{title.capitalize()}: {count(len(others), 'other')}</h2>"
                body += self._gallery(others[:RELATIVES], "../")
        made = {**index.manifest.options, **index.manifest.versions}
        body += (
            f"<h2>How it was made</h2>{_table((k, _shown(v)) for k, v in made.items() if _tells(v) and k != 'request')}"
        )
        return _page(name, index.paths[row].as_py(), f'<p><a href="../">all images</a></p>{body}', "../")

    def _place(self, row: int) -> list[tuple[str, str]]:
        """Where a record lies, and how it is had elsewhere; for an adopted one what it says itself."""
        index, record = self.index, int(self.index.records[row])
        if record < 0:
            return []
        split = index.split(row)
        shards = index.data.shards(split)
        path, offset = shards.where(record)
        facts = [("where", f"{path.name}, byte {offset:,}")]
        facts.append(
            (
                "elsewhere",
                f"shardline-inspect {shlex.quote(index.data.where)} --record {split}:{record} --save image.png",
            )
        )
        if index.adopted:
            example = shards.read(record)
            facts += [("file", example.filename), ("bytes", f"{len(example.image):,}")]
        return facts


def parse_query(given: Mapping[str, str], index: Index) -> Query:
    """What the fields of the form ask for. Raises UsageError for a value that cannot be."""
    order = given.get("order", "")
    if ORDERS.get(order, ("?", True))[0] not in {"", *index.numbers}:
        raise UsageError(f"order={order}: use one of {', '.join(filter(None, ORDERS))}")
    ends = {
        end: {
            name: _number(f"{name}_{end}", given[f"{name}_{end}"])
            for name in index.numbers
            if given.get(f"{name}_{end}")
        }
        for end in ("low", "high")
    }
    facets = {name: given[name] for name in index.facets if given.get(name)}
    return Query(facets, ends["low"], ends["high"], given.get("text", ""), order)


def _number(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"{name}={value}: use a number")
    return number


def _select(name: str, title: str, options: Sequence[tuple[str, str]], chosen: str) -> str:
    listed = "".join(
        f'<option value="{html.escape(value)}"{" selected" if value == chosen else ""}>{text(shown)}</option>'
        for value, shown in options
    )
    return f'<label>{text(title)}<select name="{name}">{listed}</select></label>'


def _table(rows: Iterable[tuple[str, object]]) -> str:
    body = "".join(f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>' for name, value in rows)
    return f'<div class="wide"><table><tbody>{body}</tbody></table></div>'


def _tells(value: object) -> bool:
    """Whether a value of a table says anything."""
    return value is not None and value not in ("", -1) and not isinstance(value, dict)


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else as_flag(value)


def _page(title: str, subtitle: str, body: str, up: str) -> Answer:
    return Answer(
        (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<title>{text(title)}</title>\n<link rel="stylesheet" href="{up}browse.css">\n'
            f'<link rel="icon" href="{up}icon.svg">\n'
            f'<script src="{up}browse.js" defer></script>\n</head>\n<body>\n<h1>{text(title)}</h1>\n'
            f'<p class="soft">{text(subtitle)}</p>\n{body}\n</body>\n</html>\n'
        ).encode(errors="replace")
    )
