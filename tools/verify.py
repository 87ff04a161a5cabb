"""Check a dataset to the last byte: hashes, checksums, counts, indexes, labels, and that every image decodes.

    shardline-verify data                 # exit code 1 if anything is wrong
    shardline-verify data --sample=0.05   # a part of the records, chosen by number; shard hashes are left out

Each fault is a line on stdout with the shard and the byte offset. Records are checked in several processes.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from absl import flags

from shardline.pipeline.cli import progress, run
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.machine import available_cores
from shardline.pipeline.manifest import Features, Manifest, Shard, index_path, load_index

_SAMPLE = flags.DEFINE_float("sample", 1.0, "share of the records to read and decode", lower_bound=1e-9, upper_bound=1)
_WORKERS = flags.DEFINE_integer("workers", 0, "processes at a time; 0: one a core; 1: none but this one", lower_bound=0)
_MAX_FAULTS = flags.DEFINE_integer("max_faults", 100, "lines to print; the rest are counted", lower_bound=1)


@dataclass(frozen=True)
class Check:
    """One shard to check."""

    directory: str
    shard: Shard
    features: Features
    encoding: str
    num_labels: int
    every: int  # check each record whose number is a multiple of this

    def __len__(self) -> int:
        return self.shard.records

    def without(self, position: int) -> Check:
        """A record that kills its decoder is a fault we must not hide: give up instead."""
        raise Failure(f"{self.shard.file}, record {position}: its decoder ended the process")

    def describe(self, position: int) -> str:
        """Shard and record."""
        return f"{self.shard.file}, record {position}"


@dataclass(frozen=True)
class Verdict:
    """What a check found."""

    file: str
    checked: int  # records
    faults: tuple[tuple[int, str], ...]  # byte offset (-1: the file as a whole), what
    labels: tuple[tuple[int, int], ...]  # label, records


def main(arguments: list[str]) -> None:
    """One dataset directory."""
    if len(arguments) != 1:
        raise UsageError(f"give one dataset directory, e.g. shardline-verify DIR; got {len(arguments)} arguments")
    checked, faults = verify(Path(arguments[0]), sample=_SAMPLE.value, workers=_WORKERS.value or available_cores())
    for line in faults[: _MAX_FAULTS.value]:
        print(line)
    manifest = Manifest.load(arguments[0])
    shards = sum(len(split.shards) for split in manifest.splits.values())
    total = sum(split.records for split in manifest.splits.values())
    what = f"{checked:,} of {total:,} records in {shards} shards checked"
    if faults:
        more = f" ({len(faults) - _MAX_FAULTS.value} not shown)" if len(faults) > _MAX_FAULTS.value else ""
        raise Failure(f"{arguments[0]}: {len(faults):,} faults{more}; {what}")
    print(f"{arguments[0]}: {what}, no faults")


def verify(directory: Path, *, sample: float = 1.0, workers: int = 1) -> tuple[int, list[str]]:
    """Check every shard. Returns the number of records checked and a line for each fault."""
    from shardline.tools.conversion import executors

    manifest = Manifest.load(directory)
    faults = []
    tasks = []
    for split in manifest.splits.values():
        counts = manifest.class_counts.get(split.name, ())
        if counts and (len(counts) != len(manifest.labels) or sum(counts) != split.records):
            faults.append(
                f"manifest.json: class counts of split {split.name!r} do not sum to its {split.records:,} records"
            )
        for shard in split.shards:
            check = Check(
                str(directory),
                shard,
                manifest.features,
                manifest.image.encoding,
                len(manifest.labels),
                round(1 / sample),
            )
            tasks.append(check)
    named = {shard.file for split in manifest.splits.values() for shard in split.shards}
    for entry in sorted(os.listdir(directory)):
        if entry.startswith(f"{manifest.name}-") and ".tfrecord-" in entry and entry.removesuffix(".idx") not in named:
            faults.append(f"{entry}: not part of the dataset, but TFDS would take it for one of its shards")
    total = sum(shard.records for shard in (task.shard for task in tasks))
    verdicts = {}
    engine = "inline" if workers == 1 else "processes"
    with progress(total=total, desc="verify", unit="rec") as bar:
        for verdict in executors.run(
            check_shard, tasks, engine=engine, workers=min(workers, len(tasks)), tick=bar.update
        ):
            verdicts[verdict.file] = verdict
    for task in tasks:
        for offset, what in verdicts[task.shard.file].faults:
            faults.append(f"{task.shard.file}{f' @ {offset}' if offset >= 0 else ''}: {what}")
    if sample == 1.0:
        faults += _count_faults(manifest, verdicts)
    return sum(verdict.checked for verdict in verdicts.values()), faults


def check_shard(task: Check, tick: Callable[[int], None] = lambda position: None) -> Verdict:
    """Check one shard against the manifest, and each of its records against itself."""
    from shardline.pipeline.example import parse_example
    from shardline.pipeline.images import set_up_process
    from shardline.pipeline.tfrecord import index_records, unframe_record

    set_up_process()
    path = Path(task.directory) / task.shard.file
    faults: list[tuple[int, str]] = []
    labels: Counter[int] = Counter()
    try:
        size = path.stat().st_size
    except OSError as error:
        return Verdict(task.shard.file, 0, ((-1, f"cannot be read: {error.strerror}"),), ())
    if size != task.shard.bytes:
        faults.append((-1, f"has {size:,} bytes, the manifest says {task.shard.bytes:,}"))
    if task.every == 1:
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != task.shard.sha256:
                faults.append((-1, "its SHA-256 is not the manifest's"))
    index, stored = None, None
    try:
        stored = load_index(index_path(path))
    except (OSError, ValueError) as error:
        faults.append((-1, f"its index {index_path(path).name} cannot be read: {error}"))
    try:
        index = index_records(path)
    except ValueError as error:
        faults.append((-1, str(error)))
    if index is not None and stored is not None and (index.shape != stored.shape or (index != stored).any()):
        faults.append((-1, f"its index {index_path(path).name} does not fit"))
    if index is not None and len(index) != task.shard.records:
        faults.append((-1, f"has {len(index):,} records, the manifest says {task.shard.records:,}"))
    walk = index if index is not None else stored  # a broken header: the index may still find the others
    checked = 0
    with open(path, "rb") as file:
        for number, (offset, length) in enumerate([] if walk is None else walk.tolist()):
            if number % task.every:
                continue
            tick(number)
            checked += 1
            file.seek(offset)
            try:
                example = parse_example(unframe_record(file.read(length)), task.features)
            except ValueError as error:
                faults.append((offset, str(error)))
                continue
            labels[example.label] += 1
            if not 0 <= example.label < task.num_labels:
                faults.append(
                    (offset, f"label {example.label} is not one of {task.num_labels} (0 to {task.num_labels - 1})")
                )
            fault = _image_fault(example.image, example.height, example.width, task.encoding)
            if fault:
                faults.append((offset, fault))
    return Verdict(task.shard.file, checked, tuple(faults), tuple(sorted(labels.items())))


def _image_fault(image: memoryview, height: int, width: int, encoding: str) -> str:
    """What is wrong with a stored image; "" for nothing."""
    from shardline.pipeline.image_options import ImageOptions
    from shardline.pipeline.images import BadImage, load_rgb, sniff

    if encoding == "raw":
        expected = height * width * 3
        return "" if len(image) == expected else f"{len(image):,} raw bytes, {height}x{width} pixels need {expected:,}"
    data = bytes(image)
    try:
        rgb = load_rgb(data, ImageOptions(resize="none", max_megapixels=1000))
    except BadImage as error:
        return str(error)
    if encoding in ("jpeg", "png") and sniff(data) != encoding:
        return f"a {sniff(data)} image in a dataset of {encoding}"
    if height and width and rgb.shape[:2] != (height, width):
        return f"decodes to {rgb.shape[0]}x{rgb.shape[1]} pixels, its record says {height}x{width}"
    return ""


def _count_faults(manifest: Manifest, verdicts: dict[str, Verdict]) -> list[str]:
    faults = []
    for split in manifest.splits.values():
        counts = manifest.class_counts.get(split.name, ())
        found: Counter[int] = Counter()
        for shard in split.shards:
            found.update(dict(verdicts[shard.file].labels))
        wrong = [label for label, count in enumerate(counts) if found[label] != count]
        if wrong:
            label = wrong[0]
            others = f" (and {len(wrong) - 1} classes more)" if len(wrong) > 1 else ""
            faults.append(
                f"split {split.name!r}: class {manifest.labels[label]!r} has {found[label]:,} sound records, "
                f"the manifest says {counts[label]:,}{others}"
            )
    return faults


def cli() -> None:
    """Console script."""
    run(main)


if __name__ == "__main__":
    cli()
