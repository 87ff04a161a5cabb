"""Inputs out of a prepared TFDS dataset: every record is one. No TensorFlow, no TFDS.

An input's path is "FILE@OFFSET:SIZE", relative to the version's directory.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from shardline.pipeline.errors import UsageError
from shardline.pipeline.example import parse_example
from shardline.pipeline.tfrecord import index_records, unframe_record
from shardline.tools.conversion.labels import LabelOptions, order_labels
from shardline.tools.conversion.sources import Sources, SourcesBuilder, file_stamp
from shardline.tools.conversion.tfds_metadata import read_tfds_metadata


def scan_tfds(source: str, tfds_dir: str, labels: LabelOptions, on_progress: Callable[[int], None]) -> Sources:
    """List the records of `tfds:NAME[/CONFIG][:VERSION]`; each is read once, for its label."""
    folder = find_dataset(source, tfds_dir)
    layout = read_tfds_metadata(folder, f"--source={source}")
    builder = SourcesBuilder()
    inside = builder.enter(b"")
    splits = list(layout.splits)
    for split, files in enumerate(layout.splits.values()):
        for name in files:
            try:
                index = index_records(folder / name)
            except (OSError, ValueError) as error:
                raise UsageError(f"--source={source}: {folder / name}: {error}") from None
            stamp = file_stamp(os.stat(folder / name))
            with open(folder / name, "rb") as file:
                for offset, size in index.tolist():
                    try:
                        label = parse_example(unframe_record(file.read(size)), layout.features).label
                    except ValueError as error:
                        raise UsageError(f"--source={source}: {name}, byte {offset:,}: {error}") from None
                    if not 0 <= label < len(layout.labels):
                        raise UsageError(f"--source={source}: {name}, byte {offset:,}: label {label} has no name")
                    builder.add(inside, f"{name}@{offset}:{size}".encode(), label, split, size, stamp)
            on_progress(len(builder))
    if not len(builder):
        raise UsageError(f"--source={source}: {folder} holds no records")
    # TFDS's own order, unless --class_names says otherwise: label numbers stay what its users know.
    order = order_labels(layout.labels, labels, f"--source={source}", listed=True)
    return builder.finish(str(folder), order.names, splits, order.relabel, order.notes, layout.features)


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
