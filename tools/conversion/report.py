"""report.html of a conversion: ledger, classes, sizes, contact sheets, what was set aside, duplicates. No TensorFlow.

Drawn from sources.parquet and the stored images, after the shards are in place.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from shardline.pipeline.encodings import ENCODINGS
from shardline.pipeline.example import parse_example
from shardline.pipeline.manifest import Manifest
from shardline.pipeline.near_duplicates import Pair, near_duplicates
from shardline.pipeline.tfrecord import read_framed, unframe_record
from shardline.pipeline.wording import shorten
from shardline.tools.conversion.deduplicate import SOURCES_FILE, DedupResult
from shardline.tools.conversion.shard_writer import QUARANTINED, WRITTEN
from shardline.tools.conversion.sources import Sources, path_text
from shardline.tools.html_report import HtmlReport
from shardline.tools.plot_style import GRAY, PALETTE, SPLIT_COLORS, new_figure

PLOTS = "plots"
PAIRS_FILE = "near_duplicates.csv"
SHEET_CLASSES, SHEET_COLUMNS, THUMB = 100, 8, 96  # pixels
LISTED = 300  # rows of a table, at most
SHOWN_PAIRS = 24


@dataclass(eq=False)
class _Facts:
    """What one pass over sources.parquet gathers, bounded however long it is."""

    sizes: list[tuple[int, int, int]] = field(default_factory=list)  # width, height, split number
    samples: dict[int, list[dict[str, Any]]] = field(default_factory=dict)  # class -> rows to show
    refused: list[dict[str, Any]] = field(default_factory=list)
    refused_total: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    source_bytes: int = 0
    where: dict[int, dict[str, Any]] = field(default_factory=dict)  # input -> row, for those to be shown in pairs


def write_report(
    directory: Path,
    manifest: Manifest,
    dedup: DedupResult,
    sources: Sources,
    *,
    performance: Sequence[tuple[str, str, str]],
    run: Sequence[tuple[str, str]],
) -> int:
    """Write report.html, plots/*.png and, when there are any, near_duplicates.csv.

    Args:
      directory: of the dataset, its shards and sources.parquet in place.
      manifest: about to be saved.
      dedup: what became of the inputs.
      sources: the inputs.
      performance: quantity, predicted, actual.
      run: name and value of what a reader may want to know of this run.

    Returns:
      The number of near-duplicate pairs.
    """
    plots = directory / PLOTS
    plots.mkdir(exist_ok=True)
    pairs = _near_pairs(dedup)
    shown = {number for pair in pairs[:SHOWN_PAIRS] for number in (pair.first, pair.second)}
    shown |= {number for twins in dedup.twins[:SHOWN_PAIRS] for number in twins.inputs[:2]}
    facts = _gather(directory, manifest, {path_text(sources.path(number)): number for number in shown})
    account = manifest.ledger
    page = HtmlReport(
        f"Conversion of {manifest.name}",
        f"{account.written:,} images in {sum(len(split.shards) for split in manifest.splits.values())} shards, "
        f"{len(manifest.labels)} classes, digest {manifest.digest[:16]}…",
    )
    page.text(
        "Ledger",
        f"{account.inputs:,} inputs = {account.written:,} written + {account.quarantined:,} quarantined "
        f"+ {account.duplicates:,} duplicates + {account.filtered:,} filtered.",
        *sources.notes,
    )
    page.table("Ledger", ("this run", ""), run)
    page.table("Predicted and actual", ("quantity", "predicted", "actual"), performance)
    _classes(page, manifest, plots)
    _sizes(page, facts, manifest, plots)
    _contact_sheets(page, facts, manifest, directory)
    _refused(page, facts, dedup)
    _exact(page, dedup, manifest, facts, directory)
    _near(page, pairs, sources, manifest, facts, directory)
    _facts(page, facts, manifest)
    page.save(directory / "report.html")
    if pairs:
        _save_pairs(directory / PAIRS_FILE, pairs, sources, manifest)
    return len(pairs)


def _near_pairs(dedup: DedupResult) -> list[Pair]:
    """Look-alikes, equal pixels counted once."""
    again = np.array(sorted(number for twins in dedup.twins for number in twins.inputs[1:]), np.uint32)
    looks = dedup.perceptual
    looks["hash"][np.searchsorted(looks["input"], again)] = 0  # left out; in place, because there may be millions
    return near_duplicates(looks["hash"], looks["input"], looks["split"])


def _gather(directory: Path, manifest: Manifest, shown: Mapping[str, int]) -> _Facts:
    import pyarrow.parquet as parquet

    facts = _Facts()
    split_number = {name: number for number, name in enumerate(manifest.splits)}
    total = max(1, manifest.ledger.inputs)
    every = -(-total // 20_000)  # plots of sizes take a sample
    columns = [
        "path",
        "label",
        "split",
        "status",
        "reason",
        "detail",
        "bytes",
        "format",
        "source_height",
        "source_width",
    ]
    columns += ["shard", "offset", "size", "note", "label_name"]
    seen = 0
    for batch in parquet.ParquetFile(directory / SOURCES_FILE).iter_batches(10_000, columns=columns):
        for row in batch.to_pylist():
            seen += 1
            facts.source_bytes += row["bytes"]
            if row["path"] in shown:
                facts.where[shown[row["path"]]] = row
            if row["status"] == WRITTEN:
                facts.formats[row["format"]] += 1
                facts.notes.update(filter(None, row["note"].split("; ")))
                if seen % every == 0 or total < 20_000:
                    facts.sizes.append((row["source_width"], row["source_height"], split_number[row["split"]]))
                samples = facts.samples.setdefault(row["label"], [])
                if len(samples) < SHEET_COLUMNS:
                    samples.append(row)
            elif row["reason"] != "equal-pixels":
                facts.refused_total += 1
                if len(facts.refused) < LISTED:
                    facts.refused.append(row)
    return facts


# ---------------------------------------------------------------------------------------------- sections


def _classes(page: HtmlReport, manifest: Manifest, plots: Path) -> None:
    title = _class_message(manifest)
    names, counts = manifest.labels, {name: np.array(manifest.class_counts[name]) for name in manifest.splits}
    many = len(names) > 40
    figure = new_figure(6, 3.5 if many else max(2.0, 0.28 * len(names) * max(1, len(counts)) ** 0.5 + 1.2))
    axes = figure.subplots()
    colors = _split_colors(manifest)
    if many:
        order = np.argsort(-sum(counts.values()), kind="stable")
        for name, values in counts.items():
            axes.plot(np.arange(len(names)), values[order], color=colors[name], label=f"{name} ({values.sum():,})")
        axes.set_xlabel("classes, most frequent first")
        axes.set_ylabel("images")
        axes.set_ylim(bottom=0)
    else:
        height = 0.8 / len(counts)
        for number, (name, values) in enumerate(counts.items()):
            at = np.arange(len(names)) + (number - (len(counts) - 1) / 2) * height
            axes.barh(at, values, height=height, color=colors[name], label=f"{name} ({values.sum():,})")
        axes.set_yticks(np.arange(len(names)), [shorten(name, 28) for name in names], fontsize=9)
        axes.invert_yaxis()
        axes.set_xlabel("images")
        axes.set_xlim(left=0)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=4)
    alt = f"Images of each class and split. {title}."
    page.figure("Classes", figure, alt, note=title + ".", png=plots / "classes.png")
    rows = [
        (
            number,
            name,
            *(int(values[number]) for values in counts.values()),
            sum(int(v[number]) for v in counts.values()),
        )
        for number, name in enumerate(names[:1000])
    ]
    page.table("Classes", ("label", "class", *counts, "all"), rows)


def _class_message(manifest: Manifest) -> str:
    totals = np.sum([counts for counts in manifest.class_counts.values()], axis=0)
    low, high = int(np.argmin(totals)), int(np.argmax(totals))
    if totals[low] == totals[high]:
        return f"Every class has {totals[low]:,} images"
    return (
        f"{manifest.labels[high]} has the most images ({totals[high]:,}), {manifest.labels[low]} the fewest "
        f"({totals[low]:,})"
    )


def _sizes(page: HtmlReport, facts: _Facts, manifest: Manifest, plots: Path) -> None:
    if not facts.sizes:
        return
    width, height, split = np.array(facts.sizes).T
    figure = new_figure(6, 3)
    left, right = figure.subplots(1, 2)
    colors = _split_colors(manifest)
    for number, name in enumerate(manifest.splits):
        mine = split == number
        left.scatter(width[mine], height[mine], s=6, alpha=0.35, color=colors[name], label=name, linewidths=0)
    top = max(1, int(max(width.max(), height.max()) * 1.05))
    if manifest.image.resize != "none":
        side = manifest.image.size
        left.plot([side, side, top], [top, side, side], color=GRAY, lw=1, ls="--")
        left.annotate(f"--size={side}", (top, side), ha="right", va="bottom", fontsize=8, color=GRAY)
    left.set(xlabel="source width, pixels", ylabel="source height, pixels", xlim=(0, top), ylim=(0, top))
    aspects = np.log2(width / height)
    right.hist(aspects, bins=np.linspace(-2.05, 2.05, 42), color=PALETTE[0])
    right.set_xticks([-2, -1, 0, 1, 2], ["1:4", "1:2", "1:1", "2:1", "4:1"])
    right.set(xlabel="aspect, width : height", ylabel="images")
    if len(manifest.splits) > 1:
        left.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=4)
    median = f"{int(np.median(width))}×{int(np.median(height))}"
    smaller = float((np.minimum(width, height) < manifest.image.size).mean())
    message = f"The median source has {median} pixels"
    if manifest.image.resize != "none":
        message += f"; {smaller:.0%} have a side shorter than --size={manifest.image.size}"
    page.figure(
        "Sizes", figure, f"Source sizes and aspects. {message}.", note=message + ".", png=plots / "sizes.png"
    )  # fmt: skip


def _contact_sheets(page: HtmlReport, facts: _Facts, manifest: Manifest, directory: Path) -> None:
    sheets = []
    for label in sorted(facts.samples)[:SHEET_CLASSES]:
        thumbs = [_thumb(directory, row, manifest) for row in facts.samples[label]]
        sheets.append(
            (f"{manifest.labels[label]} ({label})", np.hstack(thumbs + [_blank()] * (SHEET_COLUMNS - len(thumbs))))
        )
    if not sheets:
        return
    note = "The first stored images of each class, as stored."
    if len(facts.samples) > SHEET_CLASSES:
        note += f" The first {SHEET_CLASSES} of {len(facts.samples)} classes."
    for number, (name, sheet) in enumerate(sheets):
        page.image(
            "Contact sheets", _jpeg(sheet), f"images of class {name}", note=(note + " " if not number else "") + name
        )
    _save_sheet(directory / PLOTS / "contact_sheet.png", sheets[:40])


def _save_sheet(path: Path, sheets: Sequence[tuple[str, np.ndarray]]) -> None:
    figure = new_figure(8, 0.2 + 1.0 * len(sheets))
    rows = figure.subplots(len(sheets), 1, squeeze=False)[:, 0]
    for axes, (name, sheet) in zip(rows, sheets, strict=True):
        axes.imshow(sheet)
        axes.set_title(shorten(name, 60), fontsize=8, loc="left", pad=2)
        axes.axis("off")
    figure.savefig(path, dpi=100, metadata={"Software": None})


def _refused(page: HtmlReport, facts: _Facts, dedup: DedupResult) -> None:
    if not facts.refused:
        page.text("Set aside", "Nothing was quarantined or filtered.")
        return
    page.table("Set aside", ("reason", "inputs"), dedup.reasons.most_common())
    note = (
        f"The first {LISTED} of {facts.refused_total:,}; all are in {SOURCES_FILE}."
        if facts.refused_total > LISTED
        else ""
    )
    rows = [
        (
            row["path"],
            "quarantined" if row["status"] == QUARANTINED else "filtered",
            row["reason"],
            row["detail"],
            row["bytes"],
        )
        for row in facts.refused
    ]
    page.table("Set aside", ("file", "status", "reason", "detail", "bytes"), rows, note)


def _exact(page: HtmlReport, dedup: DedupResult, manifest: Manifest, facts: _Facts, directory: Path) -> None:
    twins = dedup.twins
    if not twins:
        page.text("Exact duplicates", "No two images have the same pixels.")
        return
    extra = sum(len(each.inputs) - 1 for each in twins)
    conflicts = len(dedup.conflicts)
    splits = list(manifest.splits)
    lines = [f"{extra:,} image{'s have' if extra > 1 else ' has'} the pixels of another one."]
    if dedup.dropped:
        lines.append("All but the first of each set were left out.")
    elif dedup.moved:
        lines.append(f"So that equal images lie in one split, {len(dedup.moved):,} changed theirs.")
    if conflicts:
        lines.append(f"Sets with different labels, of which at least one is wrong: {conflicts:,}.")
    across_splits = sum(each.across_splits for each in twins)
    if across_splits and not dedup.dropped and not dedup.moved:
        lines.append(f"Sets in several splits, where the evaluation sees training images: {across_splits:,}.")
    page.text("Exact duplicates", " ".join(lines))
    rows = [
        (
            "; ".join(each.paths[:6]) + (" …" if len(each.paths) > 6 else ""),
            ", ".join(sorted({manifest.labels[label] for label in each.labels})),
            "different labels" if each.conflicting else "",
            ", ".join(sorted({splits[split] for split in each.splits})) if each.across_splits else "",
        )
        for each in twins[:LISTED]
    ]
    page.table("Exact duplicates", ("files", "label", "conflict", "planned for several splits"), rows)
    page.gallery(
        "Exact duplicates",
        _side_by_side(((each.inputs[0], each.inputs[1]) for each in twins[:SHOWN_PAIRS]), manifest, facts, directory),
        wide=True,
    )


def _near(
    page: HtmlReport, pairs: Sequence[Pair], sources: Sources, manifest: Manifest, facts: _Facts, directory: Path
) -> None:
    if not pairs:
        page.text("Near duplicates", "No two images look alike to the perceptual hash (dHash, up to 3 of 64 bits).")
        return
    across = sum(pair.across_splits for pair in pairs)
    page.text(
        "Near duplicates",
        f"{len(pairs):,} pairs look alike to the perceptual hash (dHash, up to 3 of 64 bits), {across:,} of them "
        f"across splits, which come first. They are only reported; all are in {PAIRS_FILE}.",
    )
    rows = [
        (
            path_text(sources.path(pair.first)),
            path_text(sources.path(pair.second)),
            "across splits" if pair.across_splits else "",
            pair.bits,
        )
        for pair in pairs[:LISTED]
    ]
    page.table("Near duplicates", ("one", "other", "", "bits apart"), rows)
    page.gallery(
        "Near duplicates",
        _side_by_side(((pair.first, pair.second) for pair in pairs[:SHOWN_PAIRS]), manifest, facts, directory),
        wide=True,
    )


def _facts(page: HtmlReport, facts: _Facts, manifest: Manifest) -> None:
    page.table(
        "What the files were",
        ("format or note", "images"),
        [*facts.formats.most_common(), *facts.notes.most_common(40)],
    )
    options = [(name, str(value)) for name, value in manifest.options.items() if name != "request"]
    page.table("Options and versions", ("name", "value"), [*options, *manifest.versions.items()])


# --------------------------------------------------------------------------------------------- images


def _side_by_side(
    pairs: Iterable[tuple[int, int]], manifest: Manifest, facts: _Facts, directory: Path
) -> list[tuple[bytes, str]]:
    result = []
    for first, second in pairs:
        rows = [facts.where.get(first), facts.where.get(second)]
        if all(rows):
            thumbs = [_thumb(directory, row, manifest) if row["shard"] else None for row in rows if row]
            known = next((thumb for thumb in thumbs if thumb is not None), _blank())  # a dropped one looks the same
            sheet = np.hstack([known if thumb is None else thumb for thumb in thumbs])
            result.append((_jpeg(sheet), " | ".join(f"{row['split']}: {row['path']}" for row in rows if row)))
    return result


def _thumb(directory: Path, row: Mapping[str, Any], manifest: Manifest) -> np.ndarray:
    """A stored image in a square of THUMB pixels, RGB."""
    example = parse_example(
        unframe_record(read_framed(directory / row["shard"], row["offset"], row["size"])), manifest.features
    )
    rgb = ENCODINGS[manifest.image.encoding].decode(example, exact=True)
    scale = (THUMB - 4) / max(rgb.shape[:2])
    small = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    square: np.ndarray = _blank()
    top, left = (THUMB - small.shape[0]) // 2, (THUMB - small.shape[1]) // 2
    square[top : top + small.shape[0], left : left + small.shape[1]] = small
    return square


def _blank() -> np.ndarray:
    return np.full((THUMB, THUMB, 3), 245, np.uint8)


def _jpeg(rgb: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


def _save_pairs(path: Path, pairs: Sequence[Pair], sources: Sources, manifest: Manifest) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "other_path", "label", "other_label", "across_splits", "bits"))
        for pair in pairs:
            labels = (manifest.labels[sources.label[number]] for number in (pair.first, pair.second))
            paths = (path_text(sources.path(number)) for number in (pair.first, pair.second))
            writer.writerow((*paths, *labels, int(pair.across_splits), pair.bits))


def _split_colors(manifest: Manifest) -> dict[str, str]:
    spare = iter(color for color in PALETTE if color not in SPLIT_COLORS.values())
    return {name: SPLIT_COLORS.get(name) or next(spare, GRAY) for name in manifest.splits}


def remove_report(directory: Path) -> None:
    """Delete what `write_report` made."""
    for name in ("report.html", PAIRS_FILE):
        (directory / name).unlink(missing_ok=True)
    for name in ("classes.png", "sizes.png", "contact_sheet.png"):
        (directory / PLOTS / name).unlink(missing_ok=True)
    if (directory / PLOTS).is_dir() and not any((directory / PLOTS).iterdir()):
        os.rmdir(directory / PLOTS)
