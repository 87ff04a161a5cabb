"""Which TFRecord files lie in a directory, and of which split each is: told by names, or not at all. No TensorFlow.

Every file of a name or content that means TFRecord is in a split, named by --exclude, or a reason to stop: shards that
are passed over in silence are a dataset that is smaller than its owner thinks.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shardline.pipeline.errors import UsageError
from shardline.pipeline.manifest import FILE_NAME
from shardline.pipeline.text import display
from shardline.pipeline.tfrecord import is_tfrecord
from shardline.pipeline.wording import count, shorten_list
from shardline.tools.conversion.config import is_split_name
from shardline.tools.conversion.labels import similar_split, split_rank
from shardline.tools.conversion.trees import Exclusions

_SUFFIX = r"\.(?:tfrecords?|tfrec|tfr|records?)"
_OF = r"[-_.]?\d+[-_]of[-_]\d+"
_NAMED = re.compile(rf".*(?:{_SUFFIX}(?:{_OF})?|{_OF}(?:{_SUFFIX})?)(?:\.(?:gz|gzip|zlib|z))?", re.IGNORECASE)
_TFDS = re.compile(rf".+-(?P<split>[A-Za-z_]\w*){_SUFFIX}-\d+-of-\d+")
_NUMBERS = re.compile(r"(?:[-_.]?\d+(?:x\d+)*)+$")
# Parts of names that tell no split: train_part_3, val-images, part-r-00000.
_NOISE = re.compile(
    r"[a-z]?\d*|parts?|shards?|chunks?|files?|data|dataset|images?|imgs?|sets?|split|records?|tfrecords?|examples?|"
    r"jpe?g|png|bin|dat|rec",
    re.IGNORECASE,
)
_MOST_NAMES = 3  # in a message


@dataclass(frozen=True)
class SplitOptions:
    """What a person says of the files.

    Attributes:
      split: the split that all files belong to; "": told by names.
      pattern: regular expression over the files' paths with a group `split`.
      exclusions: what to leave out.
    """

    split: str = ""
    pattern: str = ""
    exclusions: Exclusions = field(default_factory=Exclusions)


def find_splits(directory: Path, options: SplitOptions) -> dict[str, tuple[str, ...]]:
    """Paths of the TFRecord files in `directory` and its folders, sorted, by split.

    Raises:
      UsageError: there are none, a file's split cannot be told, or shards are missing.
    """
    files = [file for file in tfrecord_files(directory) if not _left_out(file, options.exclusions)]
    _refuse_datasets(directory, files)
    if not files:
        raise UsageError(f"--data={directory}: {_nothing(directory)}")
    if deeper := _deeper(directory, options.exclusions):
        raise UsageError(
            f"--data={directory}: TFRecord files lie deeper, too, in {shorten_list(map(display, deeper), 3)}; move "
            f"them into a folder of {directory} for each split, or leave them out with --exclude={display(deeper[0])}"
        )
    split_of = _by_pattern(options.pattern) if options.pattern else lambda file: options.split or _split_of_path(file)
    found: dict[str, list[str]] = {}
    unknown = []
    for file in files:
        if name := split_of(file):
            found.setdefault(name, []).append(file)
        else:
            unknown.append(file)
    if unknown:
        raise UsageError(f"--data={directory}: {_unknown(unknown, len(files), options)}")
    _check_names(directory, found)
    for split, members in found.items():
        _refuse_gaps(directory, split, members)
    return {split: tuple(members) for split, members in found.items()}


def _left_out(file: str, exclusions: Exclusions) -> bool:
    folder = os.path.dirname(file)
    return bool(folder and exclusions.leaves_out(os.fsencode(folder))) or exclusions.leaves_out(os.fsencode(file))


def exclusion(files: Sequence[str]) -> str:
    """What --exclude takes to leave out all files of a split: their folder, their name, or a pattern of their names."""
    folder = os.path.dirname(files[0])
    if folder:
        return display(folder)
    return display(files[0] if len(files) == 1 else re.sub(r"\d+", "*", files[0]))


def _refuse_datasets(directory: Path, files: Sequence[str]) -> None:
    """A folder that describes itself is a dataset, with names and counts that would be lost."""
    for folder in sorted({os.path.dirname(file) for file in files} - {""}):
        for name in ("dataset_info.json", FILE_NAME):
            if (directory / folder / name).is_file():
                raise UsageError(
                    f"--data={directory}: {display(folder)} is a dataset of its own ({name}); give "
                    f"{directory / folder} as --data, or leave it out with --exclude={display(folder)}"
                )


def tfrecord_files(directory: Path) -> list[str]:
    """Relative paths of the files that are TFRecords by name or content, in `directory` and the folders in it."""
    found = []
    for folder in ("", *sorted(entry.name for entry in _visible(directory) if entry.is_dir())):
        for entry in _visible(directory / folder):
            if entry.is_file() and not entry.name.endswith(".idx") and _is_tfrecord(entry):
                found.append(os.path.join(folder, entry.name))
    return sorted(found)


def _visible(directory: Path) -> Iterator[os.DirEntry[str]]:
    try:
        entries = list(os.scandir(directory))
    except OSError as error:
        raise UsageError(f"--data={directory}: {error.strerror}") from None
    return (entry for entry in entries if not entry.name.startswith("."))


def _is_tfrecord(entry: os.DirEntry[str]) -> bool:
    if _NAMED.fullmatch(entry.name):
        return True
    with open(os.open(entry.path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        return is_tfrecord(file.read(12))


def _deeper(directory: Path, exclusions: Exclusions) -> list[str]:
    """Relative paths of the folders below those in `directory` that hold files named as TFRecords are."""
    found = []
    for folder, below, names in os.walk(directory):
        inside = os.path.relpath(folder, directory)
        paths = {name: os.fsencode(os.path.normpath(os.path.join(inside, name))) for name in below}
        below[:] = [name for name, path in paths.items() if name[0] != "." and not exclusions.leaves_out(path)]
        if os.path.dirname(inside) and any(_NAMED.fullmatch(name) for name in names if not name.startswith(".")):
            found.append(inside)
    return sorted(found)


def _nothing(directory: Path) -> str:
    """Why there is nothing to adopt, with the folder that has something."""
    for folder, _, _ in os.walk(directory):
        if folder != str(directory) and Path(folder).parent != directory and tfrecord_files(Path(folder)):
            return f"no TFRecord files there or in its folders; some lie in {folder}: give that as --data"
    names = sorted(entry.name for entry in _visible(directory))
    found = shorten_list(map(display, names), 3) or "the directory is empty"
    return (
        f"no TFRecord files by name or content ({found}); give the folder that holds them; if their names tell no "
        "split, --split_pattern tells how they are built"
    )


def _by_pattern(pattern: str) -> Callable[[str], str]:
    """The function of a path that `--split_pattern` describes."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--split_pattern={pattern}: {error}") from None
    if "split" not in compiled.groupindex:
        raise UsageError(f"--split_pattern={pattern}: needs a group (?P<split>...)")

    def split_of(path: str) -> str:
        match = compiled.fullmatch(path) or compiled.fullmatch(os.path.basename(path))
        return (match["split"] or "") if match else ""

    return split_of


def _unknown(unknown: Sequence[str], of: int, options: SplitOptions) -> str:
    """What to do about files whose split is not told."""
    names = f"{shorten_list(map(display, unknown), _MOST_NAMES)} ({count(len(unknown), 'file')} of {of:,})"
    if options.pattern:
        return f"--split_pattern={options.pattern} does not match {names}; widen it, or leave files out with --exclude"
    return (
        f"the split of {names} is not told by its name; --split=train takes all files as that one split, "
        "--split_pattern tells how names are built, e.g. '(?P<split>\\w+)_\\d+\\.records', --exclude leaves files out"
    )


def _check_names(directory: Path, found: Mapping[str, Sequence[str]]) -> None:
    known: list[str] = []
    for split, files in found.items():
        if not is_split_name(split):
            raise UsageError(
                f"--data={directory}: {split!r}, of {display(files[0])}, is no split name; use letters, digits and _: "
                "--split_pattern can name another part of it"
            )
        if other := similar_split(split, known):
            raise UsageError(
                f"--data={directory}: the splits {other!r} and {split!r} differ in case only; rename the files of one, "
                "or leave them out with --exclude"
            )
        known.append(split)


def _refuse_gaps(directory: Path, split: str, files: Sequence[str]) -> None:
    """A directory with 1023 of 1024 shards is no dataset, and one with two copies is two."""
    if len(folders := sorted({os.path.dirname(file) or "." for file in files})) > 1:
        raise UsageError(
            f"--data={directory}: split {split!r} has files in {shorten_list(map(display, folders), 3)}; leave a copy "
            f"out with --exclude={display(folders[-1])}, or move the files into one folder"
        )
    totals = Counter(int(text[1]) for file in files if (text := re.search(r"[-_]of[-_](\d+)", os.path.basename(file))))
    if totals and (set(totals) != {len(files)} or sum(totals.values()) != len(files)):
        wanted = ", ".join(map(str, sorted(totals)))
        raise UsageError(
            f"--data={directory}: split {split!r} has {count(len(files), 'shard')}, their names say {wanted}; restore "
            "what is missing, or leave foreign files out with --exclude"
        )


def name_notes(splits: Mapping[str, Sequence[str]]) -> list[str]:
    """On names of files that may tell something else than their split, and on numbers that are missing there."""
    notes = []
    if len(splits) > 1 and all(split_rank(split) is None for split in splits):
        notes.append(
            f"no file is named as splits are, so {shorten_list(splits)} are taken for splits; if they are classes or "
            "parts, --split=train --overwrite takes all files as that one split"
        )
    for split, files in splits.items():
        names = [os.path.basename(file) for file in files]
        kinds = {
            tuple(word for word in re.split(r"[-_. ]+", name) if not re.search(r"\d", word)): name for name in names
        }
        if len(kinds) > 1:
            examples = shorten_list(map(display, kinds.values()), 3)
            notes.append(
                f"split {split!r} has files of several names ({examples}); if those are datasets with classes of their "
                "own, leave all but one out with --exclude"
            )
        if missing := _missing_numbers(names):
            notes.append(
                f"split {split!r} has {count(len(names), 'file')}, but none of number {shorten_list(missing, 3)}; "
                "restore what is missing"
            )
    return notes


def _missing_numbers(names: Sequence[str]) -> list[str]:
    """Numbers that lack in files that are counted; none where they seem not to be."""
    numbers = [[int(number) for number in re.findall(r"\d+", name)] for name in names]
    columns = zip(*numbers, strict=False)
    counted = next((column for column in columns if len(set(column)) == len(names) > 1), ())
    if not counted or max(counted) - min(counted) > 2 * len(names):
        return []
    return [str(number) for number in range(min(counted), max(counted)) if number not in counted]


def _split_of_path(path: str) -> str:
    """The split that a file's folder or name tells; "" for none, or for two that disagree."""
    folder, name = os.path.split(path)
    told = split_of_name(name)
    if not folder:
        return told
    means = split_of_name(folder)
    if split_rank(told) is None:
        return means
    return told if split_rank(means) in (None, split_rank(told)) else ""


def split_of_name(name: str) -> str:
    """The split that the name of a file or folder tells; "" for none.

    Known words in lower case (`train`, `val`, `test`) after whatever else; otherwise the name without its numbers.
    """
    if tfds := _TFDS.fullmatch(name):
        return tfds["split"]
    stem = re.sub(r"\.(?:gz|gzip|zlib|z)$", "", name, flags=re.IGNORECASE)
    stem = re.sub(rf"{_SUFFIX}(?={_OF}|$)", "", stem, flags=re.IGNORECASE)
    stem = _NUMBERS.sub("", re.sub(rf"{_OF}$", "", stem))
    words = re.split(r"[-_. ]+", stem)
    known = {re.sub(r"\d+$", "", word).lower() for word in words if split_rank(word) is not None}
    while words and _NOISE.fullmatch(words[-1]):
        words.pop()
    if not words or len(known) > 1:
        return ""
    if split_rank(words[-1]) is not None:
        return known.pop()
    whole = "_".join(words)
    return whole if is_split_name(whole) else ""
