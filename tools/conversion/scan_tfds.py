"""Inputs out of a prepared TFDS dataset: every record is one. No TensorFlow, no TFDS.

An input's path is "FILE@OFFSET:SIZE", relative to the version's directory.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from shardline.pipeline.errors import UsageError
from shardline.pipeline.example import parse_example
from shardline.pipeline.files import open_regular
from shardline.pipeline.tfrecord import index_records, unframe_record
from shardline.pipeline.wording import count, shorten_list
from shardline.tools.conversion.labels import LabelOptions, order_labels
from shardline.tools.conversion.sources import Sources, SourcesBuilder, file_stamp
from shardline.tools.conversion.tfds_metadata import TfdsLayout, lost_records, read_tfds_metadata

UNLABELLED = -1  # TFDS's label of an image that has none


def scan_tfds(
    source: str, tfds_dir: str, labels: LabelOptions, unlabelled: Sequence[str], on_progress: Callable[[int], None]
) -> Sources:
    """List the records of `tfds:NAME[/CONFIG][:VERSION]`; each is read once, for its label.

    Records that TFDS gives no label (-1) are left out, but for those of the splits in `unlabelled`.
    """
    folder = find_dataset(source, tfds_dir)
    layout = read_tfds_metadata(folder, f"--source={source}")
    if missing := [name for name in unlabelled if name not in layout.splits]:
        raise UsageError(f"--unlabelled={missing[0]}: the dataset has the splits {', '.join(layout.splits)}")
    if missing := [name for files in layout.splits.values() for name in files if not (folder / name).is_file()]:
        raise UsageError(
            f"--source={source}: {folder / missing[0]} is missing; restore it, or prepare it with TFDS again"
        )
    if twice := [name for name, times in Counter(layout.labels).items() if times > 1]:
        raise UsageError(
            f"--source={source}: {shorten_list(twice)} listed twice in {folder}, so two labels would be one class; "
            "restore the list of names from a copy, or prepare it with TFDS again"
        )
    builder = SourcesBuilder()
    inside = builder.enter(b"")
    splits: dict[str, int] = {}
    left_out: Counter[str] = Counter()
    held: Counter[str] = Counter()
    for split, files in layout.splits.items():
        for name in files:
            stamp = file_stamp(os.stat(folder / name))
            for offset, size, label in _labels(source, folder / name, layout):
                held[name] += 1
                if split in unlabelled:
                    label = UNLABELLED
                elif label == UNLABELLED:
                    left_out[split] += 1
                    continue
                number = splits.setdefault(split, len(splits))
                builder.add(inside, f"{name}@{offset}:{size}".encode(), label, number, size, stamp)
            on_progress(len(builder))
    notes = [
        f"left out {count(number, 'record')} of {split} without a label (-1); --unlabelled={split} converts all of it "
        "as a split without labels"
        for split, number in left_out.items()
    ]
    notes += lost_records({name: held[name] for name in layout.records}, layout.records)
    if not len(builder):
        raise UsageError(f"--source={source}: {folder} holds no records" + " with a label" * bool(left_out))
    # TFDS's own order, unless --class_names says otherwise: label numbers stay what its users know.
    order = order_labels(layout.labels, labels, f"--source={source}", listed=True)
    return builder.finish(
        str(folder), order.names, list(splits), order.relabel, [*notes, *order.notes], layout.features,
        unlabelled=unlabelled,
    )  # fmt: skip


def _labels(source: str, path: Path, layout: TfdsLayout) -> Iterator[tuple[int, int, int]]:
    """Offset, size and label of each record of a file."""
    try:
        index, opened = index_records(path), open_regular(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"--source={source}: {path}: {error}") from None
    with opened as file:
        for offset, size in index.tolist():
            try:
                label = parse_example(unframe_record(file.read(size)), layout.features).label
            except ValueError as error:
                raise UsageError(f"--source={source}: {path.name}, byte {offset:,}: {error}") from None
            if not UNLABELLED <= label < len(layout.labels):
                raise UsageError(f"--source={source}: {path.name}, byte {offset:,}: label {label} has no name")
            yield offset, size, label


def find_dataset(source: str, tfds_dir: str) -> Path:
    """The version directory of tfds:NAME[/CONFIG][:VERSION]; the highest version when none is named."""
    name, _, version = source.removeprefix("tfds:").partition(":")
    root = Path(tfds_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    folder = root / name
    if not name or not folder.is_dir():
        raise UsageError(
            f"--source={source}: no folder {folder}; prepare it with TFDS, or name its parent in --tfds_dir"
        )
    if version:
        if not (folder / version).is_dir():
            raise UsageError(f"--source={source}: no version {version} in {folder}; there is {_versions(folder)}")
        return folder / version
    versions = _versions(folder)
    if not versions:
        raise UsageError(f"--source={source}: no version in {folder}; is a config missing, as in tfds:NAME/CONFIG?")
    return folder / versions[-1]


def _versions(folder: Path) -> list[str]:
    found = [entry.name for entry in folder.iterdir() if (entry / "dataset_info.json").exists()]
    numbers = [name for name in found if all(part.isdecimal() for part in name.split("."))]
    return sorted(numbers, key=lambda name: [int(part) for part in name.split(".")])
