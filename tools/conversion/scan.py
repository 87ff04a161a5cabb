"""Find the inputs of a conversion: folders, archives, a table, or a prepared TFDS dataset. No TensorFlow.

Nothing is decoded here and no image is judged: whatever stands where an image is expected becomes an input, and
its worker says what is wrong with it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from shardline.pipeline.errors import UsageError
from shardline.pipeline.object_store import Store
from shardline.pipeline.paths import is_remote
from shardline.pipeline.wording import count, shorten_list
from shardline.tools.conversion.archives import archive_in, is_archive, open_archive
from shardline.tools.conversion.config import split_and_path
from shardline.tools.conversion.label_files import read_label_order, read_split_labels
from shardline.tools.conversion.labels import LabelOptions
from shardline.tools.conversion.layouts import LayoutOptions, scan_tree, unwrapped
from shardline.tools.conversion.scan_tfds import scan_tfds
from shardline.tools.conversion.sources import Sources, path_text
from shardline.tools.conversion.store_tree import StoreTree
from shardline.tools.conversion.tables import SUFFIXES, TableOptions, scan_table
from shardline.tools.conversion.trees import (
    Exclusions,
    FolderTree,
    Mount,
    MountedTree,
    ReducedTree,
    SourceTree,
    read_exclusions,
)

OnProgress = Callable[[int], None]
_MANY_CLASSES = 10
_UNREADABLE = (".7z", ".rar", ".tar.zst", ".gz", ".bz2", ".xz", ".zst", ".lz4")


@dataclass(frozen=True)
class ScanOptions:
    """What a person says of the sources; the converter's flags of these names say more.

    Attributes:
      labels: of the classes.
      label_from, tfds_dir, path_column, label_column, path_format: as the flags.
      unlabelled: splits whose images have no labels.
      split_labels: files of labels, by split.
      label_order: file that says which class a number in those files is.
      exclude: files of paths and names to leave out, or such names.
      spool_beside: compressed archives are decompressed beside this path.
    """

    labels: LabelOptions = field(default_factory=LabelOptions)
    label_from: str = ""
    tfds_dir: str = ""
    unlabelled: tuple[str, ...] = ()
    split_labels: Mapping[str, str] = field(default_factory=dict)
    label_order: str = ""
    exclude: tuple[str, ...] = ()
    path_column: str = ""
    label_column: str = ""
    path_format: str = "{}"
    spool_beside: str = ""


def scan(
    sources: str | Sequence[str],
    options: ScanOptions = ScanOptions(),
    on_progress: OnProgress = lambda found: None,
) -> Sources:
    """List the inputs.

    Args:
      sources: one or more of: a folder or archive of class folders or of split folders of class folders, SPLIT=SOURCE
        for a whole split; or one .csv, .tsv or .parquet table with the columns path, label and optionally split and
        group; or tfds:NAME[:VERSION].
      options: what is known of them.
      on_progress: called now and then with the number of inputs found so far.

    Raises:
      UsageError: in one line, when there is nothing sensible to convert.
    """
    given = [sources] if isinstance(sources, str) else list(sources)
    named = [split_and_path(source) for source in given]
    alone = [(split, path) for split, path in named if path.startswith("tfds:") or _is_table(path)]
    if alone and len(given) > 1:
        raise UsageError(
            f"--source={alone[0][1]}: a table or TFDS dataset is the only source; give folders or archives, or make "
            "one table of several, with a column split"
        )
    if alone and alone[0][0]:
        split, path = alone[0]
        raise UsageError(
            f"--source={split}={path}: a table or TFDS dataset tells splits itself; give it without {split}=, or fill "
            "the table's column split"
        )
    exclusions = read_exclusions(options.exclude)
    if alone:
        found = _scan_alone(alone[0][1], options, exclusions, on_progress)
    else:
        found = _scan_trees(named, options, exclusions, on_progress)
        found = replace(found, notes=(*found.notes, *exclusions.notes()))
    return replace(found, notes=(*found.notes, *_notes_on_counts(found, options.labels)))


def _notes_on_counts(found: Sources, labels: LabelOptions) -> list[str]:
    """On listed classes without images, and on labels that seem to tell images apart, and not classes."""
    counts = found.class_counts()
    empty = [name for name, images in zip(found.labels, counts, strict=True) if not images]
    if empty and not labels.open_ended and len(empty) < len(counts):
        have = "has no image" if len(empty) == 1 else "have no image"
        return [f"{len(empty):,} of {count(len(counts), 'class')} {have}: {shorten_list(empty)}"]
    if len(counts) < _MANY_CLASSES or counts.max() > 1 or counts.min() < 1:
        return []
    return [f"each of the {len(counts):,} classes has one image: if the labels are names of images, name others"]


def _scan_alone(source: str, options: ScanOptions, exclusions: Exclusions, on_progress: OnProgress) -> Sources:
    if options.split_labels:
        raise UsageError("--split_labels is for folders and archives: this source has its labels")
    if options.label_from:
        raise UsageError(f"--label_from={options.label_from} is for folders and archives: this source has its labels")
    if source.startswith("tfds:"):
        _refuse_columns(options)
        if exclusions.names:
            raise UsageError("--exclude is for folders, archives and tables: TFDS records have no names")
        return scan_tfds(source, options.tfds_dir, options.labels, options.unlabelled, on_progress)
    table = TableOptions(
        options.labels, options.path_column, options.label_column, options.path_format, options.unlabelled, exclusions
    )
    found = _scan_stored_table(source, table, on_progress) if is_remote(source) else None
    found = found or scan_table(Path(source), table, on_progress)
    return replace(found, notes=(*found.notes, *exclusions.notes()))


def _refuse_columns(options: ScanOptions) -> None:
    """What says how to read a table says nothing of another source."""
    for name in ("path_column", "label_column", "path_format"):
        if (value := getattr(options, name)) != getattr(ScanOptions, name):
            raise UsageError(f"--{name}={value} is for tables; give the table as --source, or leave it out")


def _scan_stored_table(source: str, options: TableOptions, on_progress: OnProgress) -> Sources:
    """The images of a table in an object store, beside which they lie."""
    parent, _, name = source.rpartition("/")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        try:
            Store(parent).fetch(name, path)
        except FileNotFoundError:
            raise UsageError(f"--source={source}: there is no such table") from None
        return scan_table(path, options, on_progress, store=Store(parent))


def _is_table(path: str) -> bool:
    return path.lower().endswith(SUFFIXES) and (is_remote(path) or os.path.isfile(path))


# ----------------------------------------------------------------------------------- folders and archives


def _scan_trees(
    named: Sequence[tuple[str, str]], options: ScanOptions, exclusions: Exclusions, on_progress: OnProgress
) -> Sources:
    if options.labels.kind == "onehot":
        raise UsageError("--label_kind=onehot is for tables and adopted shards: a folder's name is the label")
    order = read_label_order(options.label_order) if options.label_order else {}
    layout = LayoutOptions(
        labels=options.labels,
        label_from=options.label_from,
        unlabelled=options.unlabelled,
        split_labels={
            split: read_split_labels(f"--split_labels={split}", path, order)
            for split, path in options.split_labels.items()
        },
        splits=tuple(dict.fromkeys(split for split, _ in named if split)),
    )
    opened = [_open(path, options) for _, path in named]
    _refuse_columns(options)
    if order and not options.split_labels:
        raise UsageError(
            f"--label_order={options.label_order} says which classes the numbers in --split_labels are; give that, or "
            "leave it out"
        )
    what = f"--source={shorten_list(path for _, path in named)}"
    if len(named) == 1 and not layout.splits:
        tree, wrapper = unwrapped(ReducedTree(opened[0], b"", exclusions), layout)
        wrappers: Sequence[bytes] = [wrapper]
        root = _below(named[0][1], wrapper)
        what = f"--source={root}"
    else:
        trees, wrappers = zip(*(unwrapped(tree, layout) for tree in opened), strict=True)
        roots = [_below(path, wrapper) for (_, path), wrapper in zip(named, wrappers, strict=True)]
        mounts = [Mount(tree, os.fsencode(split)) for tree, (split, _) in zip(trees, named, strict=True)]
        tree, root = ReducedTree(MountedTree(mounts, roots), b"", exclusions), ""
    found = scan_tree(tree, root, what, layout, on_progress)
    notes = [
        f"{path}: everything lies in {os.fsdecode(wrapper)}/, so paths start there"
        for (_, path), wrapper in zip(named, wrappers, strict=True)
        if wrapper
    ]
    if hidden := [path_text(name) for tree in opened for name in tree.hidden_images()]:
        notes.append(f"left out {count(len(hidden), 'hidden folder')} with images ({shorten_list(hidden)})")
    return replace(found, notes=(*notes, *found.notes), keep=opened)


def _below(path: str, folder: bytes) -> str:
    return os.path.join(path, os.fsdecode(folder)) if folder else path


def _open(path: str, options: ScanOptions) -> SourceTree:
    if is_remote(path):
        if is_archive(path):
            raise UsageError(f"--source={path}: archives are read from disk only; copy it, or unpack it in the store")
        return StoreTree(path)
    archive, inner = archive_in(path)
    if archive:
        return open_archive(archive, inner, spool_beside=options.spool_beside)
    if os.path.isdir(path):
        return FolderTree(path)
    if not os.path.exists(path):
        raise UsageError(f"--source={path}: no such folder or table; check the path")
    if path.lower().endswith(_UNREADABLE) or is_archive(path):
        raise UsageError(f"--source={path} is an archive of a kind that is not read; unpack it and give the folder")
    raise UsageError(
        f"--source={path} is a file; give a folder or archive (.zip, .tar, .tar.gz) of class folders, a table "
        f"({', '.join(SUFFIXES)}) with the columns path,label[,split][,group], or tfds:NAME"
    )
