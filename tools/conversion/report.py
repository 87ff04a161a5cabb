"""report.html of a conversion: ledger, classes, sizes, contact sheets, what was set aside, duplicates. No TensorFlow.

Drawn from sources.parquet and the stored images, after the shards are in place.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardline.pipeline.encodings import ENCODINGS
from shardline.pipeline.errors import UsageError
from shardline.pipeline.example import parse_example
from shardline.pipeline.files import atomic_write
from shardline.pipeline.image_bytes import encode_rgb
from shardline.pipeline.manifest import Manifest
from shardline.pipeline.near_duplicates import Pair, near_duplicates
from shardline.pipeline.progress import log, progress
from shardline.pipeline.sources_table import DUPLICATE, SOURCES_FILE, WRITTEN, iterate_sources, read_rows
from shardline.pipeline.text import csv_cell
from shardline.pipeline.tfrecord import unframe_record
from shardline.pipeline.wording import as_flag, count, shorten, shorten_list, shorten_middle
from shardline.tools.conversion.deduplicate import DedupResult
from shardline.tools.conversion.sources import Sources, path_text
from shardline.tools.html_report import HtmlReport
from shardline.tools.plot_style import GRAY, PALETTE, SPLIT_COLORS, new_figure, save_figure, whole_numbers

PLOTS = "plots"
PAIRS_FILE = "near_duplicates.csv"
REPORT_FILES = ("report.html", PAIRS_FILE, *(f"{PLOTS}/{name}.png" for name in ("classes", "sizes", "contact_sheet")))
SHEET_CLASSES, SHEET_IMAGES, SHEET_COLUMNS, THUMB = 100, 8, 4, 96  # pixels
SHEET_BYTES = 600_000  # of all contact sheets on the page, about
LISTED, LISTED_CLASSES = 300, 1000  # rows of a table, at most
SHOWN_PAIRS = 24
PLOTTED_SIZES = 20_000  # of source images, at most
COLUMNS = ["path", "label", "split", "status", "reason", "detail", "bytes", "format", "source_height", "source_width",
           "shard", "offset", "size", "note"]  # fmt: skip

Row = dict[str, Any]  # one input's COLUMNS


@dataclass(frozen=True, eq=False)
class Conversion:
    """What a report is about.

    Attributes:
      directory: of the dataset, or of what is added to one; its shards and sources.parquet are in place.
      manifest: of what the conversion wrote.
      digest: of the dataset.
      dedup: what became of the inputs.
      sources: the inputs.
      read: bytes of a shard, by its name, an offset and a size.
    """

    directory: Path
    manifest: Manifest
    digest: str
    dedup: DedupResult
    sources: Sources
    read: Callable[[str, int, int], bytes]

    def path(self, number: int) -> str:
        """Path of an input."""
        return path_text(self.sources.path(number))

    def row(self, facts: _Facts, number: int) -> Row:
        """Path and label, at least, of an input, or of an image of an earlier generation."""
        known = facts.earlier.get(number)
        return known or {"path": self.path(number), "label": int(self.sources.label[number])}


_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")


@dataclass(eq=False)
class _Note:
    """A note on images that differs in its numbers only: `passed through less 12 to 4,096 bytes`."""

    text: str
    images: int = 0
    lowest: list[str] = field(default_factory=list)  # of each number, as it was written
    highest: list[str] = field(default_factory=list)

    def add(self, numbers: list[str], images: int) -> None:
        """The same note with these numbers, on so many images more."""
        self.images += images
        columns = list(zip(numbers, self.lowest or numbers, self.highest or numbers, strict=True))
        self.lowest = [min(number, low, key=_value) for number, low, _ in columns]
        self.highest = [max(number, high, key=_value) for number, _, high in columns]

    def __str__(self) -> str:
        spans = zip(self.lowest, self.highest, strict=True)
        shown = iter([low if low == high else f"{low} to {high}" for low, high in spans])
        return _NUMBER.sub(lambda number: next(shown), self.text)


def _value(number: str) -> float:
    return float(number.replace(",", ""))


@dataclass(eq=False)
class _Facts:
    """What one pass over sources.parquet gathers, bounded however long it is."""

    sizes: list[np.ndarray] = field(default_factory=list)  # int [n, 3]: source width, height, split number; a sample
    samples: dict[int, list[Row]] = field(default_factory=dict)  # label -> rows of its contact sheet
    refused: list[Row] = field(default_factory=list)
    notes: dict[str, _Note] = field(default_factory=dict)  # by text without its numbers
    formats: Counter[str] = field(default_factory=Counter)
    shown: dict[str, Row] = field(default_factory=dict)  # path -> row, of the images that are shown side by side
    earlier: dict[int, Row] = field(default_factory=dict)  # rows of earlier generations that pairs name, by number


def write_report(
    conversion: Conversion, *, performance: Sequence[tuple[str, str, str]], run: Sequence[tuple[str, str]]
) -> int:
    """Write report.html, plots/*.png and, when there are any, near_duplicates.csv.

    Args:
      conversion: what the report is about.
      performance: quantity, estimated, actual.
      run: name and value of what a reader may want to know of this run.

    Returns:
      The number of near-duplicate pairs.
    """
    manifest = conversion.manifest
    if (conversion.directory / PLOTS).is_symlink():
        raise UsageError(f"{conversion.directory / PLOTS} is a link; remove it, then run the same command again")
    (conversion.directory / PLOTS).mkdir(exist_ok=True)
    log(f"near duplicates: {count(manifest.ledger.written, 'image')}")
    pairs = _near_pairs(conversion.dedup, len(conversion.sources))
    facts = _gather(conversion, pairs)
    shards = sum(len(split.shards) for split in manifest.splits.values())
    page = HtmlReport(
        f"Conversion of {manifest.name}",
        f"{count(manifest.ledger.written, 'image')} in {count(shards, 'shard')}, "
        f"{count(len(manifest.labels), 'class')}, digest {conversion.digest[:16]}…",
    )
    page.text("Ledger", f"{manifest.ledger}.", *conversion.sources.notes)
    page.table("Ledger", ("this run", ""), run)
    page.table("Estimated and actual", ("quantity", "estimated", "actual"), performance)
    sections: dict[str, Callable[[], None]] = {
        "classes": lambda: _add_classes(page, conversion),
        "sizes": lambda: _add_sizes(page, conversion, facts),
        "contact sheets": lambda: _add_contact_sheets(page, conversion, facts),
        "set aside": lambda: _add_refused(page, conversion, facts),
        "duplicates": lambda: _add_exact_duplicates(page, conversion, facts),
        "near duplicates": lambda: _add_near_duplicates(page, conversion, facts, pairs),
        "facts": lambda: _add_facts(page, conversion, facts),
    }
    with progress(total=len(sections), desc="report", unit="section", leave=False) as bar:
        for name, add in sections.items():
            bar.set_description_str(f"report: {name}")
            add()
            bar.update()
    page.save(conversion.directory / "report.html")
    if pairs:
        _save_pairs(conversion, facts, pairs)
    return len(pairs)


def _near_pairs(dedup: DedupResult, inputs: int) -> list[Pair]:
    """Look-alikes, equal pixels counted once, also of images that the dataset had: those are numbered from `inputs`."""
    again = [number for group in dedup.groups for number in group.inputs[0 if group.earlier else 1 :]]
    perceptual, earlier = dedup.take_perceptual(), dedup.earlier
    perceptual.hashes[np.searchsorted(perceptual.inputs, np.array(sorted(again), np.uint32))] = 0  # 0 is left out
    pairs = near_duplicates(perceptual.hashes, perceptual.inputs, perceptual.splits)
    if earlier is None:
        return pairs
    counts = len(perceptual.inputs), len(earlier.perceptual)
    numbers = np.concatenate((perceptual.inputs.astype(np.int64), inputs + np.arange(counts[1])))
    hashes = np.concatenate((perceptual.hashes, earlier.perceptual))
    splits = dict(zip(perceptual.inputs.tolist(), perceptual.splits.tolist(), strict=True))
    for pair in near_duplicates(hashes, numbers, np.repeat((0, 1), counts), across_only=True):
        across = splits[pair.first] != earlier.splits[pair.second - inputs]
        pairs.append(replace(pair, across_splits=bool(across)))
    return sorted(pairs, key=lambda pair: (not pair.across_splits, pair.bits, pair.first, pair.second))


def _rows_of_earlier(conversion: Conversion, pairs: Sequence[Pair]) -> dict[int, Row]:
    earlier, inputs = conversion.dedup.earlier, len(conversion.sources)
    if earlier is None:
        return {}
    numbers = np.unique([pair.second for pair in pairs if pair.second >= inputs]).astype(np.int64)
    numbers = numbers[np.argsort(earlier.rows[numbers - inputs])]
    rows = read_rows(earlier.directory, earlier.rows[numbers - inputs], COLUMNS).to_pylist()
    return dict(zip(numbers.tolist(), rows, strict=True))


def _gather(conversion: Conversion, pairs: Sequence[Pair]) -> _Facts:
    facts = _Facts(earlier=_rows_of_earlier(conversion, pairs))
    splits = pa.array(list(conversion.manifest.splits))
    paired = [number for pair in pairs[:SHOWN_PAIRS] for number in (pair.first, pair.second)]
    paired = [number for number in paired if number not in facts.earlier]
    paired += [number for group in conversion.dedup.groups[:SHOWN_PAIRS] for number in group.inputs[:2]]
    paths = pa.array([conversion.path(number) for number in paired], pa.string())
    totals = np.sum([counts for counts in conversion.manifest.class_counts.values() if counts], axis=0)
    facts.samples = {label: [] for label in np.flatnonzero(totals)[:SHEET_CLASSES].tolist()}
    every = -(-conversion.manifest.ledger.inputs // PLOTTED_SIZES)
    for batch in iterate_sources(conversion.directory, COLUMNS):
        facts.shown |= {row["path"]: row for row in batch.filter(pc.is_in(batch["path"], paths)).to_pylist()}
        written = batch.filter(pc.equal(batch["status"], WRITTEN))
        facts.formats += _value_counts(written["format"])
        for note, number in _value_counts(written["note"]).items():
            for part in filter(None, note.split("; ")):
                kind = facts.notes.setdefault(_NUMBER.sub("#", part), _Note(part))
                kind.add(_NUMBER.findall(part), number)
        split = pc.index_in(written["split"], splits)
        facts.sizes.append(np.column_stack([written["source_width"], written["source_height"], split])[::every])
        _add_samples(facts.samples, written)
        if len(facts.refused) < LISTED:
            kept = pc.is_in(batch["status"], pa.array([WRITTEN, DUPLICATE]))
            facts.refused += batch.filter(pc.invert(kept)).slice(0, LISTED - len(facts.refused)).to_pylist()
    return facts


def _value_counts(values: pa.Array) -> Counter[str]:
    return Counter({pair["values"]: pair["counts"] for pair in pc.value_counts(values).to_pylist()})


def _add_samples(samples: dict[int, list[Row]], written: pa.RecordBatch) -> None:
    """Add the first rows of each class that has fewer than a contact sheet shows."""
    wanted = [label for label, rows in samples.items() if len(rows) < SHEET_IMAGES]
    labels = written["label"].to_numpy()
    for index in np.flatnonzero(np.isin(labels, wanted)).tolist() if wanted else ():
        rows = samples[int(labels[index])]
        if len(rows) < SHEET_IMAGES:
            rows += written.slice(index, 1).to_pylist()


# ---------------------------------------------------------------------------------------------- sections


def _add_classes(page: HtmlReport, conversion: Conversion) -> None:
    manifest = conversion.manifest
    counts = {name: np.array(counts) for name, counts in manifest.class_counts.items() if counts}
    total = np.sum(list(counts.values()), axis=0)
    title = _class_message(manifest.shown_labels, total)
    figure = _classes_figure(manifest, counts, total)
    alt = f"Images of each class and split. {title}."
    page.figure("Classes", figure, alt, note=title + ".", png=conversion.directory / PLOTS / "classes.png")
    rows = [
        (label, name, *(int(values[label]) for values in counts.values()), int(total[label]))
        for label, name in enumerate(manifest.shown_labels[:LISTED_CLASSES])
    ]
    note = f"The first {LISTED_CLASSES:,} of {len(manifest.labels):,} classes; manifest.json counts all."
    page.table("Classes", ("label", "class", *counts, "all"), rows, note if len(rows) < len(manifest.labels) else "")


def _classes_figure(manifest: Manifest, counts: dict[str, np.ndarray], total: np.ndarray) -> Any:
    """Bars for a few classes, a curve for many."""
    names, many = manifest.shown_labels, len(manifest.labels) > 40
    figure = new_figure(5.2, 3.2 if many else max(2.0, 0.28 * len(names) * max(1, len(counts)) ** 0.5 + 1.2))
    axes = figure.subplots()
    colors = _split_colors(manifest)
    if many:
        order = np.argsort(-total, kind="stable")
        for name, values in counts.items():
            axes.plot(np.arange(len(names)), values[order], color=colors[name], label=f"{name} ({values.sum():,})")
        axes.set(xlabel="classes, most frequent first", ylabel="images")
        axes.set_ylim(bottom=0)
    else:
        height = 0.8 / len(counts)
        for number, (name, values) in enumerate(counts.items()):
            at = np.arange(len(names)) + (number - (len(counts) - 1) / 2) * height
            axes.barh(at, values, height=height, color=colors[name], label=f"{name} ({values.sum():,})")
        axes.set_yticks(np.arange(len(names)), [shorten_middle(name) for name in names], fontsize=9)
        axes.invert_yaxis()
        axes.set_xlabel("images")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(whole_numbers())
    axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return figure


def _class_message(names: Sequence[str], total: np.ndarray) -> str:
    low, high = int(np.argmin(total)), int(np.argmax(total))
    if total[low] == total[high]:
        return f"Every class has {count(int(total[low]), 'image')}"
    return f"{names[high]} has the most images ({total[high]:,}), {names[low]} the fewest ({total[low]:,})"


def _add_sizes(page: HtmlReport, conversion: Conversion, facts: _Facts) -> None:
    width, height, split = np.concatenate(facts.sizes).T
    side = conversion.manifest.image.size
    message = f"The median source has {int(np.median(width))}×{int(np.median(height))} pixels"
    if conversion.manifest.image.resize != "none":
        smaller = float((np.minimum(width, height) < side).mean())
        message += f"; {smaller:.0%} have a side shorter than --size={side}"
    page.figure(
        "Sizes",
        _sizes_figure(conversion.manifest, width, height, split),
        f"Source sizes and aspects. {message}.",
        note=message + ".",
        png=conversion.directory / PLOTS / "sizes.png",
    )


def _sizes_figure(manifest: Manifest, width: np.ndarray, height: np.ndarray, split: np.ndarray) -> Any:
    figure = new_figure(5.2, 2.8)
    left, right = figure.subplots(1, 2)
    colors = _split_colors(manifest)
    for number, name in enumerate(manifest.splits):
        mine = split == number
        dots = left.scatter(width[mine], height[mine], s=6, alpha=0.35, color=colors[name], label=name, linewidths=0)
        dots.set_rasterized(True)  # there may be thousands
    top = max(1, int(max(width.max(), height.max()) * 1.05))
    if manifest.image.resize != "none":
        side = manifest.image.size
        left.plot([side, side, top], [top, side, side], color=GRAY, lw=1, ls="--")
        left.annotate(f"--size={side}", (top, side), ha="right", va="bottom", fontsize=8, color=GRAY)
    left.set(xlabel="source width, pixels", ylabel="source height, pixels", xlim=(0, top), ylim=(0, top))
    right.hist(np.log2(width / height), bins=np.linspace(-2.05, 2.05, 42), color=PALETTE[0])
    right.set_xticks([-2, -1, 0, 1, 2], ["1:4", "1:2", "1:1", "2:1", "4:1"])
    right.set(xlabel="aspect, width : height", ylabel="images")
    if len(manifest.splits) > 1:
        left.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=4)
    return figure


def _add_contact_sheets(page: HtmlReport, conversion: Conversion, facts: _Facts) -> None:
    labels = conversion.manifest.shown_labels
    sheets, encoded = list[tuple[str, np.ndarray]](), list[tuple[bytes, str]]()
    for label, rows in facts.samples.items():
        name = f"{labels[label]} ({label})"
        sheets.append((name, _sheet([_thumb(conversion, row) for row in rows])))
        encoded.append((encode_rgb(sheets[-1][1], "webp", 75), name))
        if sum(len(data) for data, _ in encoded) > SHEET_BYTES:
            break
    note = "The first stored images of each class, as stored. "
    if len(sheets) < len(labels):
        note += f"The first {len(sheets)} of {count(len(labels), 'class')}. "
    page.gallery("Contact sheets", encoded, note=note, wide=True)
    _save_sheets(conversion.directory / PLOTS / "contact_sheet.png", sheets[:20])


def _save_sheets(path: Path, sheets: Sequence[tuple[str, np.ndarray]]) -> None:
    figure = new_figure(4.4, 0.2 + 2.2 * len(sheets))
    rows = figure.subplots(len(sheets), 1, squeeze=False)[:, 0]
    for axes, (name, sheet) in zip(rows, sheets, strict=True):
        axes.imshow(sheet)
        axes.set_title(shorten(name, 60), fontsize=8, loc="left", pad=2)
        axes.axis("off")
    save_figure(figure, path)


def _add_refused(page: HtmlReport, conversion: Conversion, facts: _Facts) -> None:
    if not facts.refused:
        page.text("Set aside", "Nothing was quarantined or filtered.")
        return
    page.table("Set aside", ("reason", "inputs"), conversion.dedup.reasons.most_common())
    total = conversion.manifest.ledger.quarantined + conversion.manifest.ledger.filtered
    note = f"The first {LISTED} of {total:,}; all are in {SOURCES_FILE}." if total > LISTED else ""
    rows = [[row[name] for name in ("path", "status", "reason", "detail", "bytes")] for row in facts.refused]
    page.table("Set aside", ("file", "status", "reason", "detail", "bytes"), rows, note)


def _add_exact_duplicates(page: HtmlReport, conversion: Conversion, facts: _Facts) -> None:
    groups = conversion.dedup.groups
    if not groups:
        page.text("Exact duplicates", "No two images have the same pixels.")
        return
    page.text("Exact duplicates", " ".join(_duplicate_lines(conversion.dedup)))
    splits = list(conversion.manifest.splits)
    rows = [
        (
            shorten_list(group.paths, 6),
            ", ".join(sorted({conversion.manifest.label_name(label) for label in group.labels})),
            "different labels" if group.conflicting else "",
            ", ".join(sorted({splits[split] for split in group.splits})) if group.across_splits else "",
        )
        for group in groups[:LISTED]
    ]
    page.table("Exact duplicates", ("files", "label", "conflict", "planned for several splits"), rows)
    pairs = ((group.inputs[0], group.inputs[1]) for group in groups[:SHOWN_PAIRS] if len(group.inputs) > 1)
    page.gallery("Exact duplicates", _side_by_side(conversion, facts, pairs), wide=True)


def _duplicate_lines(dedup: DedupResult) -> list[str]:
    extra = sum(len(group.paths) - 1 for group in dedup.groups)
    across_splits = sum(group.across_splits for group in dedup.groups)
    lines = [f"{count(extra, 'image')} {'has' if extra == 1 else 'have'} the pixels of another one."]
    if dedup.dropped:
        lines.append("All but the first of each set were left out.")
    elif dedup.moved:
        lines.append(f"So that equal images lie in one split, {count(len(dedup.moved), 'image')} changed splits.")
    elif across_splits:
        lines.append(f"Sets in several splits, where the evaluation sees training images: {across_splits:,}.")
    if dedup.conflicts:
        lines.append(f"Sets with different labels, of which at least one is wrong: {len(dedup.conflicts):,}.")
    return lines


def _add_near_duplicates(page: HtmlReport, conversion: Conversion, facts: _Facts, pairs: Sequence[Pair]) -> None:
    if not pairs:
        page.text("Near duplicates", "No two images look alike to the perceptual hash (dHash, up to 3 of 64 bits).")
        return
    across_splits = sum(pair.across_splits for pair in pairs)
    page.text(
        "Near duplicates",
        f"{count(len(pairs), 'pair')} of images look alike to the perceptual hash (dHash, up to 3 of 64 bits), "
        f"{across_splits:,} of them across splits, which come first. They are only reported; all are in {PAIRS_FILE}.",
    )
    if facts.earlier:
        number = sum(pair.second in facts.earlier for pair in pairs)
        page.text("Near duplicates", f"In {count(number, 'pair')} the other image is one of an earlier generation.")
    rows = [
        (
            *(conversion.row(facts, number)["path"] for number in (pair.first, pair.second)),
            "across splits" if pair.across_splits else "",
            pair.bits,
        )
        for pair in pairs[:LISTED]
    ]
    page.table("Near duplicates", ("one", "other", "", "bits apart"), rows)
    shown = ((pair.first, pair.second) for pair in pairs[:SHOWN_PAIRS])
    page.gallery("Near duplicates", _side_by_side(conversion, facts, shown), wide=True)


def _add_facts(page: HtmlReport, conversion: Conversion, facts: _Facts) -> None:
    notes = sorted(facts.notes.values(), key=lambda note: -note.images)
    page.table(
        "What the files were",
        ("format or note", "images"),
        [*facts.formats.most_common(), *((str(note), note.images) for note in notes[:40])],
    )
    manifest = conversion.manifest
    options = [(name, as_flag(value)) for name, value in manifest.options.items() if name != "request"]
    page.table(
        "Options and versions", ("name", "value"), [row for row in (*options, *manifest.versions.items()) if row[1]]
    )


# --------------------------------------------------------------------------------------------- images


def _side_by_side(conversion: Conversion, facts: _Facts, pairs: Iterable[tuple[int, int]]) -> list[tuple[bytes, str]]:
    result = []
    for pair in pairs:
        rows = [facts.earlier.get(number) or facts.shown[conversion.path(number)] for number in pair]
        thumbs = [_thumb(conversion, row) if row["shard"] else None for row in rows]
        known = next((thumb for thumb in thumbs if thumb is not None), _blank())  # a dropped one looks the same
        sheet = np.hstack([known if thumb is None else thumb for thumb in thumbs])
        result.append((encode_rgb(sheet, "jpg"), " | ".join(f"{row['split']}: {row['path']}" for row in rows)))
    return result


def _thumb(conversion: Conversion, row: Row) -> np.ndarray:
    """A stored image in a square of THUMB pixels, RGB."""
    framed = conversion.read(row["shard"], row["offset"], row["size"])
    example = parse_example(unframe_record(framed), conversion.manifest.features)
    rgb = ENCODINGS[conversion.manifest.image.encoding].decode(example, exact=True)
    scale = (THUMB - 4) / max(rgb.shape[:2])
    size = max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale))  # a strip has no room for less
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    square: np.ndarray = _blank()
    top, left = (THUMB - small.shape[0]) // 2, (THUMB - small.shape[1]) // 2
    square[top : top + small.shape[0], left : left + small.shape[1]] = small
    return square


def _sheet(thumbs: Sequence[np.ndarray]) -> np.ndarray:
    """Thumbnails in rows of SHEET_COLUMNS."""
    columns = min(SHEET_COLUMNS, len(thumbs))
    tiles = [*thumbs, *[_blank()] * (-len(thumbs) % columns)]
    sheet: np.ndarray = np.vstack([np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)])
    return sheet


def _blank() -> np.ndarray:
    return np.full((THUMB, THUMB, 3), 245, np.uint8)


def _save_pairs(conversion: Conversion, facts: _Facts, pairs: Sequence[Pair]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("path", "other_path", "label", "other_label", "across_splits", "bits"))
    for pair in pairs:
        found = [conversion.row(facts, number) for number in (pair.first, pair.second)]
        labels = (conversion.manifest.label_name(row["label"]) for row in found)
        names = (*(row["path"] for row in found), *labels)
        writer.writerow((*map(csv_cell, names), int(pair.across_splits), pair.bits))
    atomic_write(conversion.directory / PAIRS_FILE, text.getvalue(), durable=False)


def _split_colors(manifest: Manifest) -> dict[str, str]:
    spare = iter(color for color in PALETTE if color not in SPLIT_COLORS.values())
    return {name: SPLIT_COLORS.get(name) or next(spare, GRAY) for name in manifest.splits}


def remove_report(directory: Path) -> None:
    """Delete what `write_report` made."""
    linked = (directory / PLOTS).is_symlink()  # then what has our names there is somebody else's
    for name in REPORT_FILES:
        if not (linked and name.startswith(f"{PLOTS}/")):
            (directory / name).unlink(missing_ok=True)
    if not linked and (directory / PLOTS).is_dir() and not any((directory / PLOTS).iterdir()):
        os.rmdir(directory / PLOTS)
