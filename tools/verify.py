"""Check a dataset to the last byte: hashes, checksums, counts, indexes, labels, and that every image decodes.

    shardline-verify data                 # exit code 1 if anything is wrong
    shardline-verify data --sources photos   # also compares images with the files they were made of
    shardline-verify data --sample=0.05   # a part of the records, chosen by number; shard hashes are left out

Each fault is a line on stdout with the shard and the byte offset. Records are checked in several processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path

import numpy as np

from shardline.pipeline import cli as command_line
from shardline.pipeline import executors
from shardline.pipeline.encodings import ENCODINGS, Encoding
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.example import Example, parse_example
from shardline.pipeline.executors import WHY, Show, Task, image_timeout_option, no_show, workers_option
from shardline.pipeline.files import open_regular
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.machine import available_cores
from shardline.pipeline.manifest import (
    NO_LABEL,
    Features,
    Manifest,
    Shard,
    generation_folder,
    index_path,
    load_index,
)
from shardline.pipeline.options import option
from shardline.pipeline.paths import is_remote
from shardline.pipeline.remote import DataCacheOptions, Mirror, open_mirror
from shardline.pipeline.split_index import directory_of, file_name, map_index
from shardline.pipeline.tfrecord import FRAME_BYTES, index_records, unframe_record
from shardline.pipeline.wording import count
from shardline.tools.dataset_config import DatasetConfig, check_sources
from shardline.tools.verify_sources import Comparison, compare_sources, read_table, table_faults

Fault = tuple[int, str]  # byte offset (-1: the file as a whole), what is wrong


@dataclass(frozen=True)
class VerifyConfig(DatasetConfig):
    """What to check: `verify(VerifyConfig(data=…))`. One field, one flag."""

    data: str = option(
        "", "dataset directory, also s3://BUCKET/FOLDER or gs://…; may be given without the flag, as the one argument",
        positional=True, path="dataset",
    )  # fmt: skip
    sample: float = option(1.0, "share of the records to read and decode", above=0, high=1)
    sources: tuple[str, ...] = option(
        (),
        "folder that was converted: compare stored images with the files they were made of, as other decoders read "
        "them; may be repeated",
        path="folder",
    )
    source_images: int = option(200, "images to compare with --sources, spread evenly over the dataset", low=1)
    workers: int = workers_option()
    image_timeout: float = image_timeout_option("that is a fault")
    max_faults: int = option(100, "faults to print; the rest are counted", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sources(self.sources)


@dataclass(frozen=True)
class CheckTask(Task):
    """One shard to check."""

    directory: str
    shard: Shard
    features: Features
    encoding: str
    num_labels: int
    unlabelled: bool
    adopted: bool
    every: int  # check each record whose number is a multiple of this
    mirror: Mirror | None = None  # fetches the shard into `directory`, which is left without it

    def __len__(self) -> int:
        return self.shard.records

    def describe(self, position: int) -> str:
        """Shard and record."""
        return f"{self.shard.file}, record {position}"


@dataclass(frozen=True)
class CheckResult:
    """What the check of a shard found."""

    file: str
    checked: int = 0  # records
    faults: tuple[Fault, ...] = ()
    labels: tuple[tuple[int, int], ...] = ()  # label, records


@dataclass(frozen=True)
class Verification:
    """What the check of a dataset found: a line for each fault, none for a sound dataset."""

    shards: int
    records: int
    checked: int  # records that were read
    faults: tuple[str, ...]
    compared: int = 0  # images compared with their sources
    not_compared: tuple[str, ...] = ()  # with why


def verify(config: VerifyConfig) -> Verification:
    """Check every shard of a dataset and all, or a sample, of its records.

    Raises:
      UsageError: there is no dataset, or in an object store shards are missing.
      Failure: another process is replacing it, or an object store gives no answer.
    """
    if not is_remote(config.data):
        with Manifest.opened(config.directory) as manifest:
            return _verify(config, config.directory, manifest)
    if config.sources:
        raise UsageError("--sources compares a dataset on disk; copy it from the store first")
    from shardline.pipeline.sources_table import SOURCES_FILE  # pyarrow and TFDS: not for --help
    from shardline.tools.conversion.tfds_metadata import FILES

    with tempfile.TemporaryDirectory(prefix="shardline-") as folder:  # what lies in a cache is not what is checked
        mirror, manifest = open_mirror(config.data, DataCacheOptions(folder), text_indexes=True)
        indexes = [file_name(manifest.name, split) for split in manifest.splits]
        for generation in range(1, manifest.num_generations + 1):
            for name in (SOURCES_FILE, *FILES, *indexes):
                with contextlib.suppress(FileNotFoundError):
                    mirror.companion(generation_folder(generation) + name)
        return _verify(config, mirror.folder, manifest, mirror)


def _verify(config: VerifyConfig, directory: Path, manifest: Manifest, mirror: Mirror | None = None) -> Verification:
    tasks = [
        CheckTask(
            directory=str(directory),
            mirror=mirror,
            shard=shard,
            features=replace(manifest.features, label="")
            if manifest.adopted and split.unlabelled
            else manifest.features,
            encoding=manifest.image.encoding,
            num_labels=len(manifest.labels),
            unlabelled=split.unlabelled,
            adopted=manifest.adopted,
            every=round(1 / config.sample),
        )
        for split in manifest.splits.values()
        for shard in split.shards
    ]
    results = _check_shards(tasks, config)
    names = mirror.store.files() if mirror else _names_in(directory, manifest)
    faults = _manifest_faults(manifest) + _foreign_files(manifest, names)
    if not manifest.adopted:
        faults += _description_faults(manifest, directory) + _index_faults(manifest, directory)
    for task in tasks:
        for offset, what in results[task.shard.file].faults:
            faults.append(f"{task.shard.file}{f' @ {offset}' if offset >= 0 else ''}: {what}")
    if config.sample == 1.0:
        faults += _count_faults(manifest, results)
    sources = Comparison(0, (), ())
    if config.sources:
        sources = compare_sources(
            manifest,
            directory,
            config.sources,
            config.source_images,
            workers=config.workers,
            image_timeout=config.image_timeout,
        )
    return Verification(
        shards=len(tasks),
        records=sum(len(task) for task in tasks),
        checked=sum(result.checked for result in results.values()),
        faults=(*faults, *sources.faults),
        compared=sources.compared,
        not_compared=sources.not_compared,
    )


def _check_shards(tasks: list[CheckTask], config: VerifyConfig) -> dict[str, CheckResult]:
    engine = "inline" if config.workers == 1 else "processes"
    with command_line.progress(total=sum(map(len, tasks)), desc="verify", unit="record") as bar:
        results = executors.run(
            check_shard,
            tasks,
            engine=engine,
            workers=min(config.workers or available_cores(), len(tasks)),
            on_progress=bar.update,
            image_timeout=config.image_timeout,
        )
        return {result.file: result for result in results}


def _manifest_faults(manifest: Manifest) -> list[str]:
    faults = [
        f"manifest.json: class counts of split {split.name!r} do not sum to its {count(split.records, 'record')}"
        for split in manifest.splits.values()
        if (counts := manifest.class_counts.get(split.name, ()))
        and (len(counts) != len(manifest.labels) or sum(counts) != split.records)
    ]
    for generation in range(1, manifest.num_generations):
        try:
            manifest.at(generation)
        except UsageError as error:
            faults.append(str(error))
    return faults


def _names_in(directory: Path, manifest: Manifest) -> list[str]:
    """Names of the dataset's files, with the folder of their generation."""
    folders = [generation_folder(number) for number in range(1, manifest.num_generations + 1)]
    there = [folder for folder in folders if (directory / folder).is_dir()]
    return [folder + name for folder in there for name in sorted(os.listdir(directory / folder))]


def _foreign_files(manifest: Manifest, names: Iterable[str]) -> list[str]:
    own = {shard.file for split in manifest.splits.values() for shard in split.shards}
    folders = [generation_folder(number).rstrip("/") for number in range(1, manifest.num_generations + 1)]
    return [
        f"{name}: not part of the dataset, but TFDS would take it for one of its shards"
        for name in names
        if os.path.dirname(name) in folders
        and os.path.basename(name).startswith(f"{manifest.name}-")
        and ".tfrecord-" in name
        and name.removesuffix(".idx") not in own
    ]


def _description_faults(manifest: Manifest, directory: Path) -> list[str]:
    """What people and TFDS read beside the manifest: the table of sources, and TFDS's own metadata."""
    from shardline.pipeline.sources_table import SOURCES_FILE  # pyarrow and TFDS: not for --help
    from shardline.tools.conversion.tfds_metadata import tfds_metadata

    try:
        table = read_table(directory)
    except (OSError, UsageError) as error:
        return [f"{SOURCES_FILE}: cannot be read: {error}"]
    faults = [f"{SOURCES_FILE}: {fault}" for fault in table_faults(table, manifest)]
    for generation in range(1, manifest.num_generations + 1):
        folder = generation_folder(generation)
        sizes = table.sizes.get(folder.rstrip("/"), set())
        common_size = next(iter(sizes)) if len(sizes) == 1 else None
        for name, content in tfds_metadata(_part(manifest, generation), common_size).items():
            path = directory / folder / name
            there = path.is_file() and path.stat().st_size == len(content)
            if not there or path.read_bytes() != content:
                faults.append(
                    f"{folder}{name}: not what this dataset's says; TFDS and people would read something else from it"
                )
    return faults


def _index_faults(manifest: Manifest, directory: Path) -> list[str]:
    """Where the index of a split is not what those of its shards say, which are held against the shards themselves."""
    faults = []
    for generation in range(1, manifest.num_generations + 1):
        for split, shards in manifest.added(generation).items():
            path = directory_of(directory, generation) / file_name(manifest.name, split)
            if not path.exists():  # made by a version that wrote none
                continue
            try:
                ends = map_index(path, shards, check=True)
                sizes = np.diff(ends.astype(np.int64), prepend=0)
                texts = [load_index(index_path(directory / shard.file), shard.records)[:, 1] for shard in shards]
                if len(shards) and not np.array_equal(sizes, np.concatenate(texts)):
                    raise ValueError("the indexes of its shards say otherwise")
            except (OSError, ValueError) as error:
                faults.append(
                    f"{generation_folder(generation)}{path.name}: {error}; remove it, or restore it from a copy"
                )
    return faults


def _part(manifest: Manifest, generation: int) -> Manifest:
    """What a generation added, as a dataset of its own."""
    splits = {
        name: replace(manifest.splits[name], shards=shards)
        for name, shards in manifest.added(generation).items()
        if shards or generation == 1
    }
    labels = manifest.generations[generation - 1].labels if manifest.generations else None
    return replace(manifest, labels=manifest.labels[:labels], splits=splits)


def check_shard(task: CheckTask, show: Show = no_show) -> CheckResult:
    """Check one shard against the manifest, and each of its records against itself."""
    from shardline.pipeline.images import set_up_process  # OpenCV: not for --help

    set_up_process()
    path = Path(task.directory) / task.shard.file
    if not task.mirror:
        return _check_file(task, path, show)
    try:
        task.mirror.fetch(task.shard)
    except Failure as error:
        return CheckResult(task.shard.file, faults=((-1, f"cannot be had: {error}"),))
    try:
        return _check_file(task, path, show)
    finally:
        path.unlink()


def _check_file(task: CheckTask, path: Path, show: Show) -> CheckResult:
    try:
        with open_regular(path) as file:
            faults = _size_and_hash_faults(task, file)
    except OSError as error:
        return CheckResult(task.shard.file, faults=((-1, f"cannot be read: {error.strerror}"),))
    index, index_faults = _records_index(task, path)
    faults += index_faults
    rows, row_faults = _table_rows(task, index)
    faults += row_faults
    labels: Counter[int] = Counter()
    checked = 0
    with open(path, "rb") as file:
        for number, (offset, length) in enumerate(index.tolist()):
            if number % task.every:
                continue
            show(number, decoding=True)
            checked += 1
            file.seek(offset)
            try:
                example = parse_example(unframe_record(file.read(length)), task.features)
            except ValueError as error:
                faults.append((offset, str(error)))
                continue
            labels[example.label] += 1
            stored = (example.label, example.filename, example.height, example.width)
            if rows and stored != rows[number]:
                label, name, height, width = rows[number]
                faults.append(
                    (offset, f"sources.parquet has label {label}, path {name} and {width}x{height} pixels for it")
                )
            faults += [(offset, what) for what in _example_faults(example, task, number)]
    return CheckResult(task.shard.file, checked, tuple(faults), tuple(sorted(labels.items())))


def _size_and_hash_faults(task: CheckTask, file: BufferedReader) -> list[Fault]:
    faults: list[Fault] = []
    size = os.fstat(file.fileno()).st_size
    if size != task.shard.bytes:
        faults.append((-1, f"has {size:,} bytes, the manifest says {task.shard.bytes:,}"))
    if task.every == 1 and hashlib.file_digest(file, "sha256").hexdigest() != task.shard.sha256:
        faults.append((-1, "its SHA-256 is not the manifest's"))
    return faults


def _records_index(task: CheckTask, path: Path) -> tuple[np.ndarray, list[Fault]]:
    """Where the records lie, int64 [n, 2], and what is wrong with the shard's framing and with its index file."""
    faults: list[Fault] = []
    found = stored = None
    try:
        size = path.stat().st_size
        stored = load_index(index_path(path), size // FRAME_BYTES)
        if np.any(stored > size):
            raise ValueError("it leads out of its shard")
    except (OSError, ValueError) as error:
        faults.append((-1, f"its index {index_path(path).name} cannot be read: {error}"))
    try:
        found = index_records(path)
    except ValueError as error:
        faults.append((-1, str(error)))
    if found is not None and stored is not None and task.adopted:  # which may have left records out
        found = found[np.isin(found[:, 0], stored[:, 0])]
    if found is not None and stored is not None and not np.array_equal(found, stored):
        faults.append((-1, f"its index {index_path(path).name} does not fit"))
    if found is not None and len(found) != task.shard.records:
        faults.append((-1, f"has {count(len(found), 'record')}, the manifest says {task.shard.records:,}"))
    if found is None:  # a broken header: the index may still find the other records
        found = np.empty((0, 2), np.int64) if stored is None else stored
    return found, faults


def _table_rows(task: CheckTask, index: np.ndarray) -> tuple[list[tuple[int, str, int, int]], list[Fault]]:
    """Label, path, height and width of each record of a shard by sources.parquet; none where its rows do not fit."""
    from shardline.pipeline.sources_table import SOURCES_FILE, read_part  # pyarrow: not for --help

    if task.adopted:
        return [], []
    try:
        rows = read_part(
            Path(task.directory, task.shard.file).parent / SOURCES_FILE,
            ["offset", "size", "label", "path", "height", "width"],
            [("shard", "=", task.shard.file)],
        ).to_pydict()
    except (OSError, UsageError):
        return [], []  # which is told once
    if not np.array_equal(np.column_stack((rows["offset"], rows["size"])).reshape(-1, 2), index):
        return [], [(-1, "its records do not lie where sources.parquet says")]
    return list(zip(rows["label"], rows["path"], rows["height"], rows["width"], strict=True)), []


def _example_faults(example: Example, task: CheckTask, number: int) -> list[str]:
    faults = []
    if task.unlabelled and example.label != NO_LABEL:
        faults.append(f"label {example.label} in a split without labels")
    elif not task.unlabelled and not 0 <= example.label < task.num_labels:
        faults.append(f"label {example.label} is not one of {task.num_labels} (0 to {task.num_labels - 1})")
    unsafe = dict(task.unsafe).get(number)
    fault = f"{unsafe}: {WHY[unsafe]}" if unsafe else _image_fault(example, ENCODINGS[task.encoding])
    return [*faults, fault] if fault else faults


def _image_fault(example: Example, encoding: Encoding) -> str:
    """What is wrong with a stored image; "" for nothing."""
    from shardline.pipeline.image_types import BadImage
    from shardline.pipeline.images import load_rgb  # OpenCV: not for --help

    if not encoding.self_describing:
        return encoding.fault(example)
    try:
        rgb = load_rgb(bytes(example.image), ImageOptions(resize="none", max_megapixels=1000))
    except BadImage as error:
        return str(error)
    size = example.height, example.width
    if not encoding.fault(example) and all(size) and rgb.shape[:2] != size:
        return f"decodes to {rgb.shape[0]}x{rgb.shape[1]} pixels, its record says {size[0]}x{size[1]}"
    return encoding.fault(example)


def _count_faults(manifest: Manifest, results: Mapping[str, CheckResult]) -> list[str]:
    faults = []
    for split in manifest.splits.values():
        counts = manifest.class_counts.get(split.name, ())
        found: Counter[int] = Counter()
        for shard in split.shards:
            found.update(dict(results[shard.file].labels))
        wrong = [label for label, expected in enumerate(counts) if found[label] != expected]
        if wrong:
            label = wrong[0]
            others = f" (and {count(len(wrong) - 1, 'more class', 'more classes')})" if len(wrong) > 1 else ""
            faults.append(
                f"split {split.name!r}: class {manifest.labels[label]!r} has {count(found[label], 'sound record')}, "
                f"the manifest says {counts[label]:,}{others}"
            )
    return faults


def main(config: VerifyConfig) -> None:
    """The command: check one dataset, a line for each fault."""
    result = verify(config)
    for line in result.faults[: config.max_faults]:
        command_line.show(line)
    for line in result.not_compared[: config.max_faults]:
        command_line.log(f"note: not compared with its source: {line}")
    what = f"{result.checked:,} of {count(result.records, 'record')} in {count(result.shards, 'shard')} checked"
    if config.sources:
        what += f", {count(result.compared, 'image')} compared with the source"
    if result.faults:
        hidden = len(result.faults) - config.max_faults
        more = f" ({hidden:,} not shown)" if hidden > 0 else ""
        raise Failure(f"{config.data}: {count(len(result.faults), 'fault')}{more}; {what}")
    command_line.show(f"{config.data}: {what}, no faults")


def cli() -> None:
    """Run the console script `shardline-verify`."""
    command_line.run(main, VerifyConfig, __doc__)


if __name__ == "__main__":
    cli()
