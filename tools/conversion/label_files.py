"""Labels, class orders and class words that come in files of their own, as ImageNet's do. No TensorFlow.

LOC_val_solution.csv                    ImageId,PredictionString: a name, then its synset first
synset_labels.txt                       a synset a line, for the images in the order of their names
ILSVRC2012_validation_ground_truth.txt  a number a line; --label_order says which class a number is
val.txt                                 "NAME LABEL" a line
LOC_synset_mapping.txt, words.txt       "SYNSET WORDS" a line
imagenet_class_index.json               {"0": ["n01440764", "tench"], …}
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shardline.pipeline.errors import UsageError
from shardline.pipeline.source_files import read_member
from shardline.pipeline.text import has_control_characters, parse_json
from shardline.pipeline.wording import count, shorten_list
from shardline.tools.conversion.archives import archive_in, open_archive
from shardline.tools.conversion.labels import (
    AFTER_NUMBER,
    BEFORE_NUMBER,
    HEADINGS,
    listed_by_position,
    names_by_number,
    refuse_gaps,
    split_rank,
)
from shardline.tools.conversion.tables import NAMES, check_columns
from shardline.tools.conversion.trees import IMAGE_SUFFIXES

_LIMIT_BYTES = 256 << 20
_COLUMNS = NAMES["path"], (_BOXES := "predictionstring", *NAMES["label"])
_SYNSET = re.compile(r"n\d{8}")
_SUFFIX = b"|".join(map(re.escape, IMAGE_SUFFIXES)).decode()
_NAMED = re.compile(rf"(.+?(?:{_SUFFIX}))[\s,;|:]+(\S.*)", re.IGNORECASE)
_IMAGE = re.compile(rf".*\w(?:{_SUFFIX})(?!\w).*", re.IGNORECASE)
_MORE = re.compile(r".*[/\\\t;,].*|\d+\s+\S.*")  # than a label
_IMAGENET = re.compile(rb"ILSVRC\d+_val_\d{1,9}(?!\d)")  # numbered from 1, as the lines of its label files are


def read_text(path: str, flag: str) -> str:
    """The text of a file, which may lie in an archive. Raises UsageError that names the flag."""
    try:
        archive, inner = archive_in(path)
        data = _member(archive, inner, flag) if inner else Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{flag}={path}: {error.strerror or error}") from None
    for encoding in ("utf-16",) if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig",):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            raise UsageError(f"{flag}={path} is not UTF-8 ({error.reason}); save it as UTF-8") from None
    raise AssertionError("an encoding was tried")


def _member(archive: str, inner: str, flag: str) -> bytes:
    folder, name = os.path.split(os.fsencode(inner))
    tree = open_archive(archive)
    for entry in tree.entries(folder):
        if entry.name == name and entry.place:
            return read_member(tree.origins[0], entry.place, entry.size, _LIMIT_BYTES)
    raise UsageError(f"{flag}={archive}/{inner}: no such member")


# ------------------------------------------------------------------------------------------ labels of a split


@dataclass(frozen=True)
class SplitLabels:
    """The labels of a split's images: by file name, or a line for each image in the order of their names."""

    what: str  # for messages, e.g. `--split_labels=val=FILE`
    # By file name, with or without suffix: the folders that it is listed in, and its labels there.
    by_name: Mapping[bytes, tuple[tuple[bytes, str], ...]] = field(default_factory=dict)
    in_order: tuple[str, ...] = ()

    def match(self, paths: Sequence[bytes], split: str) -> list[str]:
        """The label of each file, by path below the split. Raises UsageError where one has none, or nobody can tell."""
        names = [os.path.basename(path) for path in paths]
        if self.by_name:
            several = Counter(names)
            labels = [
                self._label(os.path.join(os.fsencode(split), path), several[name] == 1)
                for path, name in zip(paths, names, strict=True)
            ]
            missing = [path for path, label in zip(paths, labels, strict=True) if not label]
            if missing:
                example = missing[0].decode(errors="backslashreplace")
                raise UsageError(
                    f"{self.what}: no label for {count(len(missing), 'file')} of {split}, e.g. {example}; complete the "
                    "file, or leave the images out with --exclude"
                )
            return labels
        return [self.in_order[number] for number in self._numbers(names, split)]

    def not_among(self, paths: Sequence[bytes]) -> list[bytes]:
        """The names that are listed and that no path has, with or without suffix."""
        names = {os.path.basename(path) for path in paths}
        return sorted(self.by_name.keys() - names - {os.path.splitext(name)[0] for name in names})

    def _label(self, path: bytes, alone: bool) -> str:
        """The label of one file; folders count where its name is not the only one or is listed with several labels."""
        folder, name = os.path.split(path)
        listed = *self.by_name.get(name, ()), *self.by_name.get(os.path.splitext(name)[0], ())
        split = _split_of(folder)
        listed = tuple((other, label) for other, label in listed if _split_of(other) in (None, split) or split is None)
        found = {label for _, label in listed}
        if not alone or len(found) > 1:
            ends = ((b"/" + other, b"/" + folder, label) for other, label in listed if other)
            found = {label for one, other, label in ends if one.endswith(other) or other.endswith(one)}
            found = found or {label for other, label in listed if alone and not other}
        if len(found) > 1:
            raise _two_labels(self.what, os.fsdecode(path), *sorted(found)[:2])
        return found.pop() if found else ""

    def _numbers(self, names: Sequence[bytes], split: str) -> Sequence[int]:
        """Which line each file's label is in."""
        if names and all(map(_IMAGENET.match, names)):
            numbers = [int(re.findall(rb"\d+", name)[1]) - 1 for name in names]
            if min(numbers) >= 0 and max(numbers) < len(self.in_order):
                return numbers
        elif len(names) == len(self.in_order):
            order = sorted(range(len(names)), key=lambda number: names[number])
            by_number = sorted(order, key=lambda number: _by_number(names[number]))
            if order != by_number and len(set(self.in_order)) > 1:
                place = next(place for place, number in enumerate(order) if number != by_number[place])
                pair = (names[numbers[place]].decode(errors="backslashreplace") for numbers in (order, by_number))
                raise UsageError(
                    f"{self.what}: labels without names are those of the files in order, but line {place + 1} is that "
                    f"of {' or '.join(pair)}, as text or by number; write lines NAME.jpg LABEL"
                )
            ranks = [0] * len(names)
            for rank, number in enumerate(order):
                ranks[number] = rank
            return ranks
        raise UsageError(
            f"{self.what}: {count(len(self.in_order), 'line')}, but {count(len(names), 'image')} in {split}: a file "
            "without names has a line for each image, in the order of the file names"
        )


def _split_of(folder: bytes) -> int | None:
    """The rank of the innermost folder that is a split by name."""
    ranks = (split_rank(os.fsdecode(part)) for part in reversed(folder.split(b"/")))
    return next((rank for rank in ranks if rank is not None), None)


def _by_number(name: bytes) -> list[tuple[int, bytes]]:
    """A key that orders 9.jpg before 10.jpg: numbers by their digits, of which Python reads 4,300 at most."""
    parts = [part.lstrip(b"0") if number % 2 else part for number, part in enumerate(re.split(rb"(\d+)", name))]
    return [(len(part) if number % 2 else 0, part) for number, part in enumerate(parts)]


def read_split_labels(flag: str, path: str, order: Mapping[int, str]) -> SplitLabels:
    """The labels in a file.

    Args:
      flag: that named the file, for messages, up to the file.
      path: of the file.
      order: which class a number is; empty: labels are names.
    """
    what = f"{flag}={path}"
    written = read_text(path, flag).rstrip().splitlines()
    lines = [line for line in written if line.strip()]
    if not lines:
        raise UsageError(f"{what}: the file is empty")
    pairs = _table(lines, what) or _named_lines(lines)
    labels = [label for _, label in pairs] if pairs else [line.strip() for line in lines]
    if order:
        labels = [_numbered(label, order, what) for label in labels]
    if not pairs:
        more = len(lines) == len(set(lines)) > 1 and all(map(_MORE.fullmatch, lines))
        if not order and (more or all(map(_IMAGE.fullmatch, lines))):
            raise UsageError(
                f"{what}: its lines hold more than a label and are all different, e.g. {lines[0].strip()[:80]!r}; "
                "write lines NAME.jpg LABEL, or name columns in the first line (image,label)"
            )
        if len(lines) < len(written) or (labels[0].lower() in HEADINGS and labels.count(labels[0]) == 1):
            fault = "a line is empty" if len(lines) < len(written) else f"its first line, {labels[0]!r}, is a heading"
            raise UsageError(f"{what}: {fault}; write a label a line, in the order of the file names, and nothing else")
        return SplitLabels(what, in_order=tuple(labels))
    by_name: dict[bytes, tuple[tuple[bytes, str], ...]] = {}
    for (path, _), label in zip(pairs, labels, strict=True):
        folder, name = os.path.split(os.fsencode(path.replace("\\", "/").removeprefix("./")))
        before = by_name.get(name, ())
        if other := next((known for where, known in before if where == folder and known != label), ""):
            raise _two_labels(what, path, other, label)
        by_name[name] = (*before, (folder, label))
    return SplitLabels(what, by_name=by_name)


def _two_labels(what: str, path: str, one: str, other: str) -> UsageError:
    return UsageError(f"{what}: {path} has two labels, {one} and {other}; give each image one")


def _table(lines: Sequence[str], what: str) -> list[tuple[str, str]]:
    """Name and label of each row below a header; [] where there is none."""
    delimiter = max(",;\t|", key=lines[0].count)
    rows = list(csv.reader(lines, delimiter=delimiter))
    header = [cell.strip().lower() for cell in rows[0]]
    path, label = (next((header.index(name) for name in names if name in header), -1) for names in _COLUMNS)
    if min(path, label) < 0:
        return []
    check_columns(header, (path, label), what)
    if short := [number for number, row in enumerate(rows, 1) if len(row) <= max(path, label)]:
        raise UsageError(f"{what}, line {short[0]}: fewer columns than the first line")
    if wide := [number for number, row in enumerate(rows, 1) if any(map(str.strip, row[len(header) :]))]:
        raise UsageError(
            f"{what}, line {wide[0]}: more columns than the first line names; a value that holds what separates "
            "columns needs quotes around it"
        )
    boxes = header[label] == _BOXES  # a class and four numbers for each box
    return [(row[path].strip(), row[label].strip().split(" ")[0] if boxes else row[label].strip()) for row in rows[1:]]


def _named_lines(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Name and label of lines that each begin with the name of an image; [] where they do not."""
    pairs = [_NAMED.fullmatch(line.strip()) for line in lines]
    # Of a line with tabs the second column: Tiny ImageNet's have a box after it.
    return [(pair[1], pair[2].partition("\t")[0].strip()) for pair in pairs if pair] if all(pairs) else []


def _numbered(label: str, order: Mapping[int, str], what: str) -> str:
    if not re.fullmatch(r"\d{1,9}", label) or int(label) not in order:
        raise UsageError(f"{what}: {label!r} is no number that --label_order names ({len(order):,} are named)")
    return order[int(label)]


def read_label_order(path: str) -> dict[int, str]:
    """Which class a number is, from lines `NUMBER NAME` or `NAME NUMBER`, or a name a line, from 1, or a meta.mat.

    Raises:
      UsageError: the file is not so, or it has ImageNet's synsets in sorted order, which is not that of its numbers.
    """
    if path.lower().endswith(".mat"):
        return _meta_mat(path)
    text = read_text(path, "--label_order")
    if text.lstrip().startswith("{"):
        try:
            return names_by_number(parse_json(text))
        except (ValueError, RecursionError):
            raise UsageError(
                f"--label_order={path} is no JSON of a number for each name; write lines NUMBER NAME"
            ) from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    pairs = [re.fullmatch(rf"(\d{{1,9}}){AFTER_NUMBER}(\S.*)", line) for line in lines]
    if len(lines) > 2 and not pairs[0] and all(pairs[1:]):  # a heading
        lines, pairs = lines[1:], pairs[1:]
    turned = [re.fullmatch(rf"(\S.*?){BEFORE_NUMBER}(\d{{1,9}})", line) for line in lines]  # Places365's, from 0
    numbers = sorted(int(pair[2]) for pair in turned if pair)
    if lines and all(pairs):
        order = {int(pair[1]): pair[2].strip() for pair in pairs if pair}
    elif lines and all(turned) and numbers in ([*range(len(lines))], [*range(1, len(lines) + 1)]):
        order = {int(pair[2]): pair[1] for pair in turned if pair}
    else:
        refuse_gaps(text.splitlines(), f"--label_order={path}")
        names = [line.split()[0] if _SYNSET.match(line) else line for line in lines]
        lines = names = list(listed_by_position(names, f"--label_order={path}", 1)) if names else []
        order = dict(enumerate(names, 1))
        if len(names) > 1 and all(map(_SYNSET.fullmatch, names)) and names == sorted(names):
            raise UsageError(
                f"--label_order={path}: its synsets are sorted, but ImageNet's ground truth counts in the order of the "
                "devkit's meta.mat, where 1 is n02119789; give that file, or write lines NUMBER SYNSET"
            )
    if not order or len(order) < len(lines) or len(set(order.values())) < len(order):
        raise UsageError(f"--label_order={path}: " + ("a number or a name occurs twice" if lines else "no lines"))
    return order


def _meta_mat(path: str) -> dict[int, str]:
    try:
        from scipy.io import loadmat  # for this one file, which few have
    except ImportError:
        raise UsageError(
            f"--label_order={path} needs SciPy (pip install scipy); or write its lines NUMBER SYNSET into a text file"
        ) from None
    try:
        synsets = loadmat(path, squeeze_me=True)["synsets"]
        leaves = synsets[synsets["num_children"] == 0]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}
    except Exception as error:  # SciPy's own are of many kinds
        raise UsageError(f"--label_order={path} is no meta.mat of ImageNet's devkit ({error})") from None


# ---------------------------------------------------------------------------------------------- class words


def read_class_words(path: str) -> dict[str, str]:
    """Words for people by class name, from `SYNSET WORDS` lines or a JSON class index. Raises UsageError."""
    text = read_text(path, "--class_words")
    pairs = _json_words(text, path) if text.lstrip().startswith("{") else _word_lines(text)
    words: dict[str, str] = {}
    for name, meaning in pairs:
        if has_control_characters(name + meaning):
            raise UsageError(f"--class_words={path}: the words for {name!r} have control characters; rewrite them")
        if words.setdefault(name, meaning) != meaning:
            raise UsageError(f"--class_words={path}: {name!r} stands there twice; leave one")
    if not words:
        raise UsageError(f"--class_words={path}: no line has a class name and words, as in 'n01440764 tench'")
    return words


def _json_words(text: str, path: str) -> Iterable[tuple[str, str]]:
    try:
        content = parse_json(text)
        for key, value in content.items():
            if isinstance(value, list) and len(value) != 2:
                raise ValueError(f"{key!r} has {count(len(value), 'value')}, not a name and words")
            name, meaning = value if isinstance(value, list) else (key, value)
            if not isinstance(name, str) or not isinstance(meaning, str):
                raise ValueError("names and words have to be text")
            yield name, meaning.replace("_", " ")
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"--class_words={path} is no JSON of classes and words ({error})") from None


def _word_lines(text: str) -> Iterable[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line.strip()]
    mark = next(
        (mark for mark in ("\t", ": ") if all(mark in line for line in lines)), r"\s*[,:;=|]\s*|\s+(?:[-=]\s+)?"
    )  # hot dog: Hotdog
    for line in lines:
        name, *meaning = re.split(mark, line.strip(), maxsplit=1)
        if meaning:
            yield name.strip(), meaning[0].strip()


def words_for(names: Sequence[str], words: Mapping[str, str], path: str) -> tuple[str, ...]:
    """The words of each class, "" for none. Raises UsageError when no class has any."""
    found = tuple(words.get(name, "") for name in names)
    if not any(found):
        raise UsageError(f"--class_words={path} has words for none of the classes ({shorten_list(names, 3)})")
    return found
