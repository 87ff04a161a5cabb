"""Find the inputs of a conversion: class folders, split folders, a table, or a prepared TFDS dataset. No TensorFlow.

The result is a `Sources`: columns, not objects, because ten million inputs must fit into a few hundred megabytes.
Nothing is decoded here and nothing is judged: whatever stands where an image is expected becomes an input, and
its worker says what is wrong with it. Only dot files and the droppings of file managers are passed over.
"""

from __future__ import annotations

import csv
import hashlib
import os
import stat
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shardline.pipeline.errors import UsageError
from shardline.pipeline.manifest import Features
from shardline.tools.conversion.config import is_split_name

SPLIT_FOLDERS = {  # names that make a folder of folders a split, and the order they are listed in
    **dict.fromkeys(("train", "training"), 0),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval"), 1),
    **dict.fromkeys(("test", "testing"), 2),
}
IGNORED = {b"thumbs.db", b"desktop.ini", b"__macosx", b"@eadir"}
TABLES = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".parquet": ""}
IMAGE_SUFFIXES = (  # only for telling a folder that is named like an image, and for wording errors
    *(b".jpg", b".jpeg", b".jpe", b".png", b".webp", b".bmp", b".gif", b".tif", b".tiff", b".avif", b".heic"),
    *(b".heif", b".jp2", b".jxl"),
)


@dataclass(frozen=True, eq=False)
class Sources:
    """Every input of a conversion, as columns of equal length."""

    root: str  # paths are relative to it
    labels: tuple[str, ...]
    splits: tuple[str, ...]  # those the source itself names; () when it names none
    folders: tuple[bytes, ...]
    folder: np.ndarray  # int32: which of `folders` the input lies in
    names: bytearray  # all file names, end to end
    ends: np.ndarray  # uint32: where in `names` each ends
    label: np.ndarray  # int32
    split: np.ndarray  # int8: number in `splits`, -1 for none
    group: np.ndarray  # uint64: hash of the group's name, 0 for none; empty when the source has no groups
    size: np.ndarray  # uint32: bytes, at most 4 G; 0 also when it cannot be told
    stamp: np.ndarray  # uint32: changes with the modification time
    newest: int  # latest modification time, nanoseconds
    notes: tuple[str, ...] = ()  # what a person should know, a line each
    features: Features | None = None  # for inputs that are records, "FILE@OFFSET:SIZE": names of their features

    def __len__(self) -> int:
        return len(self.ends)

    def path(self, number: int) -> bytes:
        """Path of one input relative to the root, as the file system spells it."""
        folder = self.folders[self.folder[number]]
        name = self.names[int(self.ends[number - 1]) if number else 0 : int(self.ends[number])]
        return folder + b"/" + bytes(name) if folder else bytes(name)

    def paths(self) -> Iterator[bytes]:
        """Every path, in order."""
        begin = 0
        for start in range(0, len(self), 100_000):  # Python's own integers are large: few at a time
            piece = slice(start, start + 100_000)
            for folder, end in zip(self.folder[piece].tolist(), self.ends[piece].tolist(), strict=True):
                prefix, name = self.folders[folder], bytes(self.names[begin:end])
                yield prefix + b"/" + name if prefix else name
                begin = end

    def fingerprint(self, *, times: bool) -> str:
        """SHA-256 over paths, labels, splits, groups and sizes, and modification times if asked for."""
        digest = hashlib.sha256(repr((self.labels, self.splits, self.folders)).encode())
        columns = [self.folder, self.ends, self.label, self.split, self.group, self.size]
        digest.update(self.names)
        for column in [*columns, *([self.stamp] if times else [])]:
            digest.update(column.data)
        return digest.hexdigest()


class Builder:
    """Collects inputs one by one into packed columns."""

    def __init__(self) -> None:
        self.folders: list[bytes] = []
        self.folder, self.label, self.split = array("i"), array("i"), array("b")
        self.ends, self.size, self.stamp = array("I"), array("I"), array("I")
        self.newest = 0
        self.group = array("Q")
        self.names = bytearray()

    def add(self, folder: int, name: bytes, label: int, split: int, size: int, mtime: int) -> None:
        """One input: split -1 for none, size and mtime 0 when they cannot be told."""
        self.names += name
        if len(self.names) >= 2**32:
            raise UsageError("the names of all files together exceed 4 GB; convert the source in parts")
        self.ends.append(len(self.names))
        self.folder.append(folder)
        self.label.append(label)
        self.split.append(split)
        self.size.append(min(size, 2**32 - 1))
        self.stamp.append((mtime ^ mtime >> 32) & 0xFFFFFFFF)
        self.newest = max(self.newest, mtime)

    def enter(self, folder: bytes) -> int:
        """A new folder; returns its number."""
        self.folders.append(folder)
        return len(self.folders) - 1

    def finish(
        self,
        root: str,
        labels: Sequence[str],
        splits: Sequence[str],
        relabel: np.ndarray,
        notes: Sequence[str],
        features: Features | None = None,
    ) -> Sources:
        """`relabel` maps the label numbers used while collecting to their final ones."""
        return Sources(
            root=root,
            labels=tuple(labels),
            splits=tuple(splits),
            folders=tuple(self.folders),
            folder=np.array(self.folder, np.int32, copy=None),
            names=self.names,
            ends=np.array(self.ends, np.uint32, copy=None),
            label=relabel.astype(np.int32)[np.array(self.label, np.int32, copy=None)],
            split=np.array(self.split, np.int8, copy=None),
            group=np.array(self.group, np.uint64, copy=None),
            size=np.array(self.size, np.uint32, copy=None),
            stamp=np.array(self.stamp, np.uint32, copy=None),
            newest=self.newest,
            notes=tuple(notes),
            features=features,
        )


def scan(
    source: str,
    *,
    label_from: str = "",
    class_names: Sequence[str] = (),
    tfds_dir: str = "",
    on_progress: Callable[[int], None] = lambda count: None,
) -> Sources:
    """List the inputs under `source`.

    Args:
      source: a folder of class folders, a folder of split folders of class folders, a .csv, .tsv or .parquet table
        with the columns path, label and optionally split and group, or tfds:NAME[:VERSION].
      label_from: for nested class folders: "parent" takes the folder the image lies in, "first" the outermost one.
      class_names: the classes in label order; empty: sorted.
      tfds_dir: where prepared TFDS datasets lie.
      on_progress: called now and then with the number of inputs found so far.

    Raises:
      UsageError: in one line, when there is nothing sensible to convert.
    """
    if source.startswith("tfds:"):
        from shardline.tools.conversion.scan_tfds import scan_tfds

        return scan_tfds(source, tfds_dir, class_names, on_progress)
    path = Path(source)
    if not path.exists():
        raise UsageError(f"--source={source}: no such folder or table")
    if path.is_dir():
        return _scan_folder(source, label_from, class_names, on_progress)
    if path.suffix.lower() in TABLES:
        return _scan_table(path, class_names, on_progress)
    raise UsageError(
        f"--source={source} is a file; give a folder of class folders, a table ({', '.join(TABLES)}) with the columns "
        "path,label[,split][,group], or tfds:NAME"
    )


# ----------------------------------------------------------------------------------------------- folders


def _scan_folder(
    source: str, label_from: str, class_names: Sequence[str], on_progress: Callable[[int], None]
) -> Sources:
    root = os.fsencode(source)
    top, loose = _list_folder(root)
    try_splits = bool(top) and all(_text(name).lower() in SPLIT_FOLDERS for name in top)
    if try_splits and not any(_list_folder(os.path.join(root, name))[1] for name in top):
        splits = sorted(top, key=lambda name: (SPLIT_FOLDERS[_text(name).lower()], name))
        tops = [(number, split, split) for number, split in enumerate(splits)]
    else:
        splits = []
        tops = [(-1, b"", b"")]
    _refuse_folder_without_classes(source, top, loose)

    builder = Builder()
    labels: dict[str, int] = {}
    skipped = len(loose)
    empty: list[str] = []
    for split, _, prefix in tops:
        classes, beside = _list_folder(os.path.join(root, prefix)) if splits else (top, [])
        skipped += len(beside)
        for name in classes:
            before = len(builder.ends)
            above = (_identity(root), _identity(os.path.join(root, prefix)))
            _collect(
                builder, root, os.path.join(prefix, name), name, split, label_from, labels, source, on_progress, above
            )
            if len(builder.ends) == before:
                empty.append(_text(os.path.join(prefix, name)))
    if not len(builder.ends):
        raise UsageError(f"--source={source}: the class folders hold no files")
    if empty and not class_names:
        raise UsageError(
            f"--source={source}: {_shorten_list(empty)} hold{'s' if len(empty) == 1 else ''} no images; "
            "remove the folder or add images, or name every class in --class_names to keep it without images"
        )
    ordered, relabel = order_labels(list(labels), class_names)
    notes = [f"{skipped} files beside the class folders have no class and are no inputs"] if skipped else []
    if empty:
        notes.append(f"classes without images: {_shorten_list(empty)}")
    return builder.finish(source, ordered, [_text(split) for split in splits], relabel, notes)


def _collect(
    builder: Builder,
    root: bytes,
    folder: bytes,
    first: bytes,
    split: int,
    label_from: str,
    labels: dict[str, int],
    source: str,
    on_progress: Callable[[int], None],
    above: tuple[tuple[int, int], ...],
) -> None:
    """Add every file below `folder`, in sorted order, files before sub-folders."""
    above = (*above, _identity(os.path.join(root, folder)))
    number = builder.enter(folder)
    class_name = _text(first if label_from != "parent" else os.path.basename(folder))
    below: list[bytes] = []
    with os.scandir(os.path.join(root, folder)) as entries:
        listed = sorted((entry for entry in entries if not _ignored(entry.name)), key=lambda entry: entry.name)
    for entry in listed:
        try:
            facts = entry.stat()
        except OSError:  # a dangling or looping link: an input whose worker will say so
            facts = None
        if facts is not None and stat.S_ISDIR(facts.st_mode):
            # A folder named like an image, and a link back up, are inputs gone wrong, not places to look into.
            looping = (facts.st_dev, facts.st_ino) in above
            if not looping and not entry.name.lower().endswith(IMAGE_SUFFIXES):
                below.append(entry.name)
                continue
        label = labels.setdefault(class_name, len(labels))
        size, mtime = (facts.st_size, facts.st_mtime_ns) if facts and stat.S_ISREG(facts.st_mode) else (0, 0)
        builder.add(number, entry.name, label, split, size, mtime)
    on_progress(len(builder.ends))
    if below and not label_from:
        raise UsageError(
            f"--source={source}: {_text(os.path.join(folder, below[0]))} is a folder inside a class folder; say "
            "--label_from=parent (the folder an image lies in names its class) or --label_from=first (the outermost "
            "folder does)"
        )
    for name in below:
        _collect(
            builder, root, os.path.join(folder, name), first, split, label_from, labels, source, on_progress, above
        )


def _list_folder(folder: bytes) -> tuple[list[bytes], list[bytes]]:
    """Names of the sub-folders and of everything else, both sorted."""
    folders: list[bytes] = []
    others: list[bytes] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not _ignored(entry.name):
                    # Not entry.is_dir(), which raises for a link to itself.
                    (folders if os.path.isdir(entry.path) else others).append(entry.name)
    except OSError as error:
        raise UsageError(f"--source: cannot list {_text(folder)}: {error.strerror}") from None
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
            f"--source={source}: {images} images but no class folders; put the images of each class into a folder of "
            "their own (SOURCE/CLASS/image.jpg; one folder will do), or list path,label in a .csv and give that"
        )
    what = f"{len(loose)} files and no folders" if loose else "the folder is empty"
    raise UsageError(f"--source={source}: {what}; expected one folder a class, with its images inside")


def _ignored(name: bytes) -> bool:
    return name.startswith(b".") or name.lower() in IGNORED


# ------------------------------------------------------------------------------------------------ tables


def _scan_table(path: Path, class_names: Sequence[str], on_progress: Callable[[int], None]) -> Sources:
    rows = _parquet_rows(path) if path.suffix.lower() == ".parquet" else _text_rows(path)
    builder = Builder()
    folders: dict[bytes, int] = {}
    labels: dict[str, int] = {}
    splits: dict[str, int] = {}
    exist = 0
    root = os.fsencode(path.parent)
    for line, (name, label, split, group) in rows:
        if not name or label == "":
            raise UsageError(f"--source={path}, row {line}: path and label must not be empty")
        folder, base = os.path.split(os.fsencode(name))
        number = folders.get(folder)
        if number is None:
            number = folders[folder] = builder.enter(folder)
        try:
            facts = os.stat(os.path.join(root, folder, base))
            size, mtime = (facts.st_size, facts.st_mtime_ns) if stat.S_ISREG(facts.st_mode) else (0, 0)
            exist += stat.S_ISREG(facts.st_mode)
        except (OSError, ValueError):
            size, mtime = 0, 0
        if split is not None:
            if not is_split_name(split):
                raise UsageError(f"--source={path}, row {line}: {split!r} is no split name; use letters, digits and _")
            splits.setdefault(split, len(splits))
            if len(splits) > 100:
                raise UsageError(f"--source={path}: the column split has more than 100 values; is it another column?")
        builder.add(
            number, base, labels.setdefault(label, len(labels)), -1 if split is None else splits[split], size, mtime
        )
        if group is not None:
            builder.group.append(hash64(group.encode()) if group else 0)
        if len(builder.ends) % 10_000 == 0:
            on_progress(len(builder.ends))
    if not len(builder.ends):
        raise UsageError(f"--source={path}: the table has no rows")
    if not exist:
        first = _text(os.path.join(builder.folders[0], bytes(builder.names[: builder.ends[0]])))
        raise UsageError(
            f"--source={path}: none of its {len(builder.size):,} paths exists (the first is {first}); paths are "
            f"relative to the table's folder, {path.parent}"
        )
    ordered, relabel = order_labels(list(labels), class_names, by_number=True)
    return builder.finish(str(path.parent), ordered, list(splits), relabel, ())


Row = tuple[str, str, str | None, str | None]


def _text_rows(path: Path) -> Iterator[tuple[int, Row]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter=TABLES[path.suffix.lower()], strict=True)
        try:
            columns = _columns(path, next(reader, []))
            width = max(c for c in columns if c is not None) + 1
            for cells in reader:
                if not cells:
                    continue
                if len(cells) < width:
                    raise UsageError(
                        f"--source={path}, line {reader.line_num}: {len(cells)} columns, expected {width} or more"
                    )
                yield reader.line_num, tuple(None if c is None else cells[c].strip() for c in columns)  # type: ignore[misc]
        except UnicodeDecodeError as error:
            raise UsageError(f"--source={path} is not UTF-8 ({error.reason}); save it as UTF-8") from None
        except csv.Error as error:
            raise UsageError(f"--source={path}, line {reader.line_num}: {error}") from None


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        columns = _columns(path, names)
        wanted = [names[c] for c in columns if c is not None]
        line = 0
        for batch in file.iter_batches(65_536, columns=wanted):
            lists = [None if c is None else batch.column(names[c]).to_pylist() for c in columns]
            for i in range(batch.num_rows):
                line += 1
                yield line, tuple(None if v is None else "" if v[i] is None else str(v[i]) for v in lists)  # type: ignore[misc]
    except pyarrow.ArrowInvalid as error:
        raise UsageError(f"--source={path}: {error}") from None


def _columns(path: Path, header: Sequence[str]) -> list[int | None]:
    """Positions of path, label, split and group in the header."""
    found = [name.strip().lower() for name in header]
    for name in ("path", "label"):
        if name not in found:
            raise UsageError(
                f"--source={path}: no column {name!r}; the first line must name the columns path and label, and "
                f"may name split and group; it is {','.join(header)[:80]!r}"
            )
    return [found.index(name) if name in found else None for name in ("path", "label", "split", "group")]


# ------------------------------------------------------------------------------------------------ shared


def order_labels(
    found: Sequence[str], class_names: Sequence[str], *, by_number: bool = False
) -> tuple[list[str], np.ndarray]:
    """The final label order, and for each found label its number in it.

    Sorted as text, as Keras and torchvision do; a table whose labels are all whole numbers is sorted by number, so
    that label 10 does not become class 2.
    """
    if class_names:
        unknown = sorted(set(found) - set(class_names))
        if unknown:
            raise UsageError(
                f"--class_names does not list {_shorten_list(unknown)}; add the names or remove the images"
            )
        ordered = list(class_names)
    elif by_number and all(name.isdecimal() for name in found):
        ordered = sorted(found, key=lambda name: (int(name), name))
    else:
        ordered = sorted(found)
    numbers = {name: number for number, name in enumerate(ordered)}
    return ordered, np.array([numbers[name] for name in found], np.int32)


def read_class_names(path: str) -> list[str]:
    """Class names, one a line, in label order."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(f"--class_names={path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"--class_names={path} is not UTF-8 ({error.reason}); save it as UTF-8") from None
    names = [line.strip() for line in lines if line.strip()]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if not names or twice:
        raise UsageError(
            f"--class_names={path}: " + (f"{_shorten_list(twice)} listed twice" if names else "the file is empty")
        )
    return names


def hash64(data: bytes, key: bytes = b"") -> int:
    """A keyed 64-bit hash that is the same on every machine and in every Python."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, key=key).digest(), "little")


def display(path: bytes) -> str:
    """A path as text that can be stored and printed, whatever bytes the file system allowed."""
    return _text(path)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _shorten_list(names: Iterable[str], limit: int = 5) -> str:
    listed = list(names)
    return ", ".join(listed[:limit]) + (f" and {len(listed) - limit} more" if len(listed) > limit else "")
