"""Adding to a finished dataset: what it prescribes, and what it holds already. No TensorFlow.

What is added becomes another generation: a folder of the dataset with shards, indexes, a table of sources, TFDS's
metadata and a report of its own. It is no part of the dataset until the manifest, written last, names it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardline.pipeline.errors import UsageError
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.images import KERNEL
from shardline.pipeline.manifest import FILE_NAME, Features, Manifest
from shardline.pipeline.options import options
from shardline.pipeline.progress import log, progress
from shardline.pipeline.sources_table import WRITTEN, iterate_sources
from shardline.pipeline.wording import as_flag, count
from shardline.tools.conversion.config import ConvertConfig, name_of
from shardline.tools.conversion.deduplicate import Earlier, hash_start
from shardline.tools.conversion.labels import LabelOptions, read_class_names, similar_split, split_notes
from shardline.tools.conversion.output import Output
from shardline.tools.conversion.resume import content_keys, content_keys_of
from shardline.tools.conversion.sources import Sources, hash64, path_text

_KEPT = ("name", "splits", "seed", *options(ImageOptions))  # options that are the dataset's


@dataclass(frozen=True)
class Base:
    """The dataset that is added to, and where its manifest and its tables of sources are."""

    manifest: Manifest
    directory: Path
    read: Callable[[str, int, int], bytes]  # bytes of a shard, by its name, an offset and a size


def base_of(config: ConvertConfig, output: Output) -> Manifest:
    """The finished dataset in `--output`, to which images made in the same way can be added.

    Raises:
      UsageError: there is none, it is not whole, or its images were made in another way.
    """
    what = f"--append: --output={config.output}"
    if output.address and not (output.directory / FILE_NAME).exists():
        raise UsageError(f"{what} holds no {FILE_NAME}, so it is no finished dataset; check the address")
    manifest = Manifest.load(output.directory)
    if manifest.adopted or manifest.features != Features():
        raise UsageError(
            f"{what} holds shards that were adopted, not converted; write what is new as TFRecords with the same "
            "features beside them and run shardline-adopt --overwrite, or convert the images of both together"
        )
    if manifest.image.kernel != KERNEL:
        raise UsageError(
            f"{what} has images that were made by {manifest.image.kernel!r}, this version makes them by {KERNEL!r}; "
            "convert all of it again"
        )
    output.check(manifest, config.verify)
    return manifest


def with_options_of(base: Manifest, config: ConvertConfig) -> ConvertConfig:
    """The config with what the dataset prescribes: name, splits, seed, and how images are made.

    Raises:
      UsageError: something else was asked for.
    """
    kept, changed = {}, []
    for name in _KEPT:
        given = getattr(config, name)
        default = name_of("", config.source[0]) if name == "name" else options(ConvertConfig)[name].default
        then = base.options.get(name, default)
        if given not in (default, then, {}):
            raise UsageError(
                f"--{name}={as_flag(given)}: the dataset was made with {as_flag(then)}, which --append keeps; leave it "
                "out"
            )
        kept[name] = then
        changed += [f"--{name}={as_flag(then)}"] if given != then else []
    if changed:
        log(f"note: as the dataset: {' '.join(changed)}")
    return replace(config, **kept)


def label_options(base: Manifest, config: ConvertConfig) -> LabelOptions:
    """The dataset's classes first, under their numbers, then others."""
    listed = read_class_names(config.class_names) if config.class_names else ()
    if listed and listed[: len(base.labels)] != base.labels:
        raise UsageError(
            f"--class_names={config.class_names} does not begin with the dataset's classes in their order; list those "
            "first, then new ones, or leave it out"
        )
    return LabelOptions(listed or base.labels, config.merge_similar_labels, config.label_kind, open_ended=not listed)


def with_words_of(base: Manifest, sources: Sources) -> Sources:
    """The sources with the words that the dataset shows for its classes, and their own for new ones."""
    before = (*base.words, *[""] * len(sources.labels))
    words = tuple(old or new for old, new in zip(before, sources.words or [""] * len(sources.labels), strict=False))
    return replace(sources, words=words if any(words) else ())


def only_new(base: Manifest, directory: Path, sources: Sources, hash_input: Callable[[int], str]) -> Sources:
    """The inputs that are not in the dataset in `directory` already, under the same path and with the same content.

    Raises:
      UsageError: a split has labels here and none in the dataset, or the other way round, or is written otherwise;
        or an input that the dataset has is of another class here.
    """
    _check_splits(base, sources)
    known = _Known.read(directory, sources.splits)
    key_of = (hash64(path_text(path).encode()) for path in sources.paths())
    again = np.flatnonzero(np.isin(np.fromiter(key_of, np.uint64), known.paths))
    keys = content_keys_of(sources, again, hash_input)
    same = np.isin(keys, known.contents)
    _check_labels(known, sources, again, keys)
    if sources.splits and not base.options.get("splits"):
        stored = known.splits >= 0
        moved = _changed(keys, sources.split[again], known.contents[stored], known.splits[stored])
        if moved.any():
            log(
                f"note: {count(int(moved.sum()), 'input')} in another split than in the dataset, e.g. "
                f"{path_text(sources.path(int(again[moved][0])))}: what the dataset has stays as it is"
            )
    if same.any():
        log(f"left out {count(int(same.sum()), 'input')} that the dataset has already, unchanged")
    if not same.all():
        example = path_text(sources.path(int(again[~same][0])))
        log(
            f"note: {count(int((~same).sum()), 'input')} with a path that the dataset has, but other content, e.g. "
            f"{example}: added, and what was there stays"
        )
    kept = np.ones(len(sources), bool)
    kept[again[same]] = False
    return sources.only(kept)


def _check_splits(base: Manifest, sources: Sources) -> None:
    for name in sources.splits:
        if other := similar_split(name, base.splits):
            raise UsageError(
                f"--append: the split {name} is {other} in the dataset, and differs in case or spaces only; call it so"
            )
        if name in base.splits and base.splits[name].unlabelled != (name in sources.unlabelled):
            have = "has no labels" if base.splits[name].unlabelled else "has labels"
            raise UsageError(f"--append: split {name} of the dataset {have}; give what is added in the same way")
    if not set(sources.splits) <= set(base.splits):
        for note in split_notes(dict.fromkeys((*base.splits, *sources.splits))):
            log(f"note: {note}")


@dataclass(frozen=True, eq=False)
class _Known:
    """The inputs of a dataset, those too that were not stored.

    Attributes:
      paths: uint64, hashes.
      contents: uint64, `content_keys`.
      labels: int64; -1: no class.
      splits: int64, numbers of the splits that are added to, and one more for all others; -1: not stored.
    """

    paths: np.ndarray
    contents: np.ndarray
    labels: np.ndarray
    splits: np.ndarray

    @classmethod
    def read(cls, directory: Path, splits: Sequence[str]) -> _Known:
        batches = iterate_sources(directory, ["path", "sha256", "label", "split"])
        rows = chain.from_iterable(zip(*map(pa.Array.to_pylist, batch.columns), strict=True) for batch in batches)
        split_numbers = {name: number for number, name in enumerate(splits)}
        paths, contents, labels, numbers = [], [], [], []
        for path, sha256, label, split in rows:
            paths.append(hash64(path.encode()))
            contents.append((path, sha256))
            labels.append(label)
            numbers.append(split_numbers.get(split, len(split_numbers)) if split else -1)
        return cls(
            np.array(paths, np.uint64), content_keys(contents), np.array(labels, np.int64), np.array(numbers, np.int64)
        )


def _check_labels(known: _Known, sources: Sources, again: np.ndarray, keys: np.ndarray) -> None:
    """Refuse inputs that the dataset has, by their numbers and content keys, under another label."""
    changed = np.flatnonzero(_changed(keys, sources.label[again], known.contents, known.labels))
    if not len(changed):
        return
    number, then = int(again[changed[0]]), known.labels[np.flatnonzero(known.contents == keys[changed[0]])[0]]
    names = (*sources.labels, "no class")  # -1: none
    raise UsageError(
        f"--append: {count(len(changed), 'input')} that the dataset has already {'is' if len(changed) == 1 else 'are'} "
        f"of another class now, e.g. {path_text(sources.path(number))}: {names[then]!r} there, "
        f"{names[sources.label[number]]!r} here; what the dataset has stays as it is, so convert all of it again, with "
        "--overwrite in place of --append, or leave such inputs out with --exclude"
    )


def _changed(keys: np.ndarray, values: np.ndarray, known: np.ndarray, known_values: np.ndarray) -> np.ndarray:
    """Which of some keys are known, but never with their value."""
    mine, theirs = (
        keys + (values.astype(np.int64) + 1).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        for keys, values in ((keys, values), (known, known_values))
    )
    changed: np.ndarray = np.isin(keys, known) & ~np.isin(mine, theirs)
    return changed


def earlier_images(manifest: Manifest, directory: Path, splits: tuple[str, ...]) -> Earlier:
    """The images that a dataset holds, by their pixels.

    Args:
      splits: to number the splits by, all of the dataset's among them.
    """
    pieces: list[tuple[np.ndarray, ...]] = []
    first = 0
    numbers = {name: number for number, name in enumerate(splits)}
    with progress(total=manifest.ledger.inputs, desc="read dataset", unit="input", leave=False) as bar:
        for batch in iterate_sources(directory, ["status", "pixel_hash", "perceptual_hash", "split", "label"]):
            stored = np.flatnonzero(pc.equal(batch["status"], WRITTEN).to_numpy(zero_copy_only=False))
            rows = batch.take(pa.array(stored))
            pixels = [hash_start(text) for text in rows["pixel_hash"].to_pylist()]
            split = [numbers[name] for name in rows["split"].to_pylist()]
            pieces.append(
                (
                    np.array(pixels, np.uint64),
                    np.array(split, np.int8),
                    rows["label"].to_numpy(),
                    first + stored,
                    rows["perceptual_hash"].to_numpy(),
                )
            )
            first += len(batch)
            bar.update(len(batch))
    columns = [np.concatenate(column) for column in zip(*pieces, strict=True)]
    order = np.argsort(columns[0], kind="stable")
    found, split_numbers, labels, row_numbers, perceptual = (column[order] for column in columns)
    return Earlier(found, split_numbers, labels, row_numbers, perceptual, directory)
