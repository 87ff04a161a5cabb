"""Find the inputs of a conversion: class folders, split folders, a table, or a prepared TFDS dataset. No TensorFlow.

Nothing is decoded here and nothing is judged: whatever stands where an image is expected becomes an input, and
its worker says what is wrong with it. Only hidden files and those that file managers leave are ignored.
"""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shardline.pipeline.class_gaps import class_gaps
from shardline.pipeline.errors import UsageError
from shardline.pipeline.wording import count, shorten_list
from shardline.tools.conversion.config import is_split_name
from shardline.tools.conversion.labels import LabelOptions, check_split, order_labels, split_rank
from shardline.tools.conversion.scan_tfds import scan_tfds
from shardline.tools.conversion.sources import Sources, SourcesBuilder, file_stamp, hash64, path_text

IGNORED = {b"thumbs.db", b"desktop.ini", b"__macosx", b"@eadir"}
TABLES = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".parquet": ""}
IMAGE_SUFFIXES = (  # only for telling a folder that is named like an image, and for wording errors
    *(b".jpg", b".jpeg", b".jpe", b".png", b".webp", b".bmp", b".gif", b".tif", b".tiff", b".avif", b".heic"),
    *(b".heif", b".jp2", b".jxl"),
)


OnProgress = Callable[[int], None]


def scan(
    source: str,
    *,
    label_from: str = "",
    labels: LabelOptions = LabelOptions(),
    tfds_dir: str = "",
    on_progress: OnProgress = lambda found: None,
) -> Sources:
    """List the inputs under `source`.

    Args:
      source: a folder of class folders, a folder of split folders of class folders, a .csv, .tsv or .parquet table
        with the columns path, label and optionally split and group, or tfds:NAME[:VERSION].
      label_from: for nested class folders: "parent" takes the folder the image lies in, "first" the outermost one.
      labels: what is known of the classes.
      tfds_dir: where prepared TFDS datasets lie.
      on_progress: called now and then with the number of inputs found so far.

    Raises:
      UsageError: in one line, when there is nothing sensible to convert.
    """
    if source.startswith("tfds:"):
        return scan_tfds(source, tfds_dir, labels, on_progress)
    path = Path(source)
    if not path.exists():
        raise UsageError(f"--source={source}: no such folder or table")
    if path.is_dir():
        return _scan_folder(source, label_from, labels, on_progress)
    if path.suffix.lower() in TABLES:
        return _scan_table(path, labels, on_progress)
    raise UsageError(
        f"--source={source} is a file; give a folder of class folders, a table ({', '.join(TABLES)}) with the columns "
        "path,label[,split][,group], or tfds:NAME"
    )


# ----------------------------------------------------------------------------------------------- folders


def _scan_folder(source: str, label_from: str, labels: LabelOptions, on_progress: OnProgress) -> Sources:
    root = os.fsencode(source)
    top, loose = _list_folder(root)
    _refuse_folder_without_classes(source, top, loose)
    splits = _split_folders(root, top)
    walk = _FolderWalk(source, label_from, on_progress)
    ignored = len(loose)
    empty: list[str] = []
    split_names: dict[str, int] = {}
    for prefix in splits or [b""]:
        split = -1
        if splits:
            name_of_split = check_split(path_text(prefix), split_names, f"--source={source}", labels)
            split = split_names.setdefault(name_of_split, len(split_names))
        classes, beside = _list_folder(os.path.join(root, prefix)) if splits else (top, [])
        ignored += len(beside)
        for name in classes:
            before = len(walk.builder)
            walk.add_class_folder(prefix, name, split)
            if len(walk.builder) == before:
                empty.append(path_text(os.path.join(prefix, name)))
    if not len(walk.builder):
        raise UsageError(f"--source={source}: the class folders hold no files")
    if empty and not labels.names:
        raise UsageError(
            f"--source={source}: {shorten_list(empty)} hold{'s' if len(empty) == 1 else ''} no images; "
            "remove the folder or add images, or name every class in --class_names to keep it without images"
        )
    places = _places(walk.builder, walk.labels, list(split_names))
    order = order_labels(list(walk.labels), labels, f"--source={source}", places=places)
    notes = [f"ignored {count(ignored, 'file')} beside the class folders: only files in one have a class"]
    notes = notes if ignored else []
    if empty:
        notes.append(f"classes without images: {shorten_list(empty)}")
    notes += [*order.notes, *_order_note(order.names, labels)]
    return walk.builder.finish(source, order.names, list(split_names), order.relabel, notes)


def _order_note(names: Sequence[str], options: LabelOptions) -> list[str]:
    """Where numbers are not in the order that Keras and torchvision give class folders."""
    as_text = sorted(names)
    if options.names or list(names) == as_text:
        return []
    label = next(label for label, name in enumerate(names) if name != as_text[label])
    return [
        f"the classes are numbers and in numerical order: label {label} is {names[label]!r}; Keras and torchvision, "
        f"which sort folders as text, make it {as_text[label]!r}"
    ]


def _places(builder: SourcesBuilder, labels: Mapping[str, int], splits: Sequence[str]) -> dict[str, str]:
    """For each label that is not in all splits, words that say so."""
    if len(splits) < 2:
        return {}
    pairs = np.array(builder.split, np.int64) * len(labels) + np.array(builder.label, np.int64)
    counts = np.bincount(pairs, minlength=len(splits) * len(labels)).reshape(len(splits), len(labels))
    by_split = {split: row.tolist() for split, row in zip(splits, counts, strict=True)}
    places: dict[str, str] = {}
    for number, label in enumerate(labels):
        if gaps := class_gaps([label], {split: [row[number]] for split, row in by_split.items()}):
            places[label] = "; ".join(gaps)
    return places


def _split_folders(root: bytes, top: Sequence[bytes]) -> list[bytes]:
    """The folders in `root` if they are splits of class folders; [] if they are the class folders themselves."""
    ranks = [split_rank(path_text(name)) for name in top]
    if None in ranks or any(_list_folder(os.path.join(root, name))[1] for name in top):
        return []
    return [name for _, name in sorted(zip(ranks, top, strict=True))]  # type: ignore[type-var]


@dataclass(eq=False)
class _FolderWalk:
    """Collects every file below class folders."""

    source: str
    label_from: str
    on_progress: OnProgress
    builder: SourcesBuilder = field(default_factory=SourcesBuilder)
    labels: dict[str, int] = field(default_factory=dict)

    def add_class_folder(self, prefix: bytes, name: bytes, split: int) -> None:
        """The class folder PREFIX/NAME of a split (-1: none)."""
        root = os.fsencode(self.source)
        above = (_identity(root), _identity(os.path.join(root, prefix)))
        self._add_folder(os.path.join(prefix, name), name, split, above)

    def _add_folder(self, folder: bytes, first: bytes, split: int, above: tuple[tuple[int, int], ...]) -> None:
        """Every file below `folder`, in sorted order, files before sub-folders."""
        path = os.path.join(os.fsencode(self.source), folder)
        above = (*above, _identity(path))
        number = self.builder.enter(folder)
        class_name = path_text(first if self.label_from != "parent" else os.path.basename(folder))
        below: list[bytes] = []
        with os.scandir(path) as entries:
            listed = sorted((entry for entry in entries if not _is_ignored(entry.name)), key=lambda entry: entry.name)
        for entry in listed:
            try:
                facts = entry.stat()
            except OSError:  # a dangling or looping link: an input whose worker will say so
                facts = None
            if facts is not None and _leads_below(entry.name, facts, above):
                below.append(entry.name)
                continue
            label = self.labels.setdefault(class_name, len(self.labels))
            self.builder.add(number, entry.name, label, split, *_size_and_stamp(facts))
        self.on_progress(len(self.builder))
        if below and not self.label_from:
            raise UsageError(
                f"--source={self.source}: {path_text(os.path.join(folder, below[0]))} is a folder inside a class "
                "folder; say --label_from=parent (the folder an image lies in names its class) or --label_from=first "
                "(the outermost folder does)"
            )
        for name in below:
            self._add_folder(os.path.join(folder, name), first, split, above)


def _leads_below(name: bytes, facts: os.stat_result, above: Sequence[tuple[int, int]]) -> bool:
    """A folder named like an image, and a link back up, are inputs gone wrong, not places to look into."""
    is_folder = stat.S_ISDIR(facts.st_mode) and (facts.st_dev, facts.st_ino) not in above
    return is_folder and not name.lower().endswith(IMAGE_SUFFIXES)


def _size_and_stamp(facts: os.stat_result | None) -> tuple[int, int]:
    """Of a regular file, else zeros."""
    return (facts.st_size, file_stamp(facts)) if facts and stat.S_ISREG(facts.st_mode) else (0, 0)


def _list_folder(folder: bytes) -> tuple[list[bytes], list[bytes]]:
    """Names of the sub-folders and of everything else, both sorted."""
    folders: list[bytes] = []
    others: list[bytes] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not _is_ignored(entry.name):
                    # Not entry.is_dir(), which raises for a link to itself.
                    (folders if os.path.isdir(entry.path) else others).append(entry.name)
    except OSError as error:
        raise UsageError(f"--source: cannot list {path_text(folder)}: {error.strerror}") from None
    return sorted(folders), sorted(others)


def _identity(folder: bytes) -> tuple[int, int]:
    """What a folder is, under whatever name."""
    facts = os.stat(folder)
    return facts.st_dev, facts.st_ino


def _refuse_folder_without_classes(source: str, top: Sequence[bytes], loose: Sequence[bytes]) -> None:
    if top:
        return
    images = sum(name.lower().endswith(IMAGE_SUFFIXES) for name in loose)
    if images:
        raise UsageError(
            f"--source={source}: {count(images, 'image')} but no class folders; put the images of each class "
            "into a folder of their own (SOURCE/CLASS/image.jpg; one folder will do), or list path,label in a .csv and "
            "give that"
        )
    what = f"{count(len(loose), 'file')} and no folders" if loose else "the folder is empty"
    raise UsageError(f"--source={source}: {what}; expected one folder a class, with its images inside")


def _is_ignored(name: bytes) -> bool:
    return name.startswith(b".") or name.lower() in IGNORED


# ------------------------------------------------------------------------------------------------ tables


class _Row(NamedTuple):
    """One row of a table; None for a column that the table does not have."""

    path: str
    label: str
    split: str | None = None
    group: str | None = None


def _scan_table(path: Path, options: LabelOptions, on_progress: OnProgress) -> Sources:
    builder = SourcesBuilder()
    folders: dict[bytes, int] = {}
    labels: dict[str, int] = {}
    splits: dict[str, int] = {}
    exist = 0
    root = os.fsencode(path.parent)
    for line, row in _parquet_rows(path) if path.suffix.lower() == ".parquet" else _text_rows(path):
        row = _checked_row(path, line, row, splits, options)
        folder, name = os.path.split(os.fsencode(row.path))
        if folder not in folders:
            folders[folder] = builder.enter(folder)
        try:
            facts = os.stat(os.path.join(root, folder, name))
            exist += stat.S_ISREG(facts.st_mode)
        except (OSError, ValueError):
            facts = None
        label = labels.setdefault(row.label, len(labels))
        split = -1 if row.split is None else splits[row.split]
        builder.add(folders[folder], name, label, split, *_size_and_stamp(facts))
        if row.group is not None:
            builder.group.append(hash64(row.group.encode()) if row.group else 0)
        if len(builder) % 10_000 == 0:
            on_progress(len(builder))
    if not len(builder):
        raise UsageError(f"--source={path}: the table has no rows")
    if not exist:
        first = path_text(os.path.join(builder.folders[0], bytes(builder.names[: builder.ends[0]])))
        raise UsageError(
            f"--source={path}: none of its {count(len(builder), 'path')} exists (the first is {first}); paths are "
            f"relative to the table's folder, {path.parent}"
        )
    order = order_labels(list(labels), options, f"--source={path}", places=_places(builder, labels, list(splits)))
    return builder.finish(str(path.parent), order.names, list(splits), order.relabel, order.notes)


def _checked_row(path: Path, line: int, row: _Row, splits: dict[str, int], options: LabelOptions) -> _Row:
    """Refuse a row that cannot be used; number its split."""
    if not row.path or not row.label:
        raise UsageError(f"--source={path}, row {line}: path and label must not be empty")
    if row.split is None or row.split in splits:
        return row
    if not is_split_name(row.split):
        raise UsageError(f"--source={path}, row {line}: {row.split!r} is no split name; use letters, digits and _")
    split = check_split(row.split, splits, f"--source={path}, row {line}", options)
    if len(splits) == 100:
        raise UsageError(f"--source={path}: the column split has more than 100 values; is it another column?")
    splits.setdefault(split, len(splits))
    return row._replace(split=split)


def _text_rows(path: Path) -> Iterator[tuple[int, _Row]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter=TABLES[path.suffix.lower()], strict=True)
        try:
            columns = _columns(path, next(reader, []))
            width = max(column for column in columns if column is not None) + 1
            for cells in reader:
                if not cells:
                    continue
                if len(cells) < width:
                    raise UsageError(
                        f"--source={path}, line {reader.line_num}: {count(len(cells), 'column')}, expected {width} "
                        "or more"
                    )
                yield reader.line_num, _Row._make(None if c is None else cells[c].strip() for c in columns)
        except UnicodeDecodeError as error:
            raise UsageError(f"--source={path} is not UTF-8 ({error.reason}); save it as UTF-8") from None
        except csv.Error as error:
            raise UsageError(f"--source={path}, line {reader.line_num}: {error}") from None


def _parquet_rows(path: Path) -> Iterator[tuple[int, _Row]]:
    import pyarrow  # only for such a table: a conversion's start should stay instant
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
        header = file.schema_arrow.names
        columns = _columns(path, header)
        line = 0
        for batch in file.iter_batches(65_536, columns=[header[c] for c in columns if c is not None]):
            lists = [None if c is None else batch.column(header[c]).to_pylist() for c in columns]
            for i in range(batch.num_rows):
                line += 1
                yield line, _Row._make(None if v is None else _as_text(v[i]) for v in lists)
    except pyarrow.ArrowInvalid as error:
        raise UsageError(f"--source={path}: {error}") from None


def _as_text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return "" if value is None else str(value)


def _columns(path: Path, header: Sequence[str]) -> list[int | None]:
    """Positions in the header of the columns that a row has, None where there is no such column."""
    found = [name.strip().lower() for name in header]
    for name in ("path", "label"):
        if name not in found:
            raise UsageError(
                f"--source={path}: no column {name!r}; the first line must name the columns path and label, and "
                f"may name split and group; it is {','.join(header)[:80]!r}"
            )
    return [found.index(name) if name in found else None for name in _Row._fields]
