"""The output directory while a conversion is under way: claim, refuse, resume, or start over. No TensorFlow.

Everything unfinished lies in OUTPUT/.convert: what the run was asked to do, finished shards and their receipts.
It goes away when manifest.json is there. A run that finds it continues if it was asked to do the same, and refuses
with the difference if not: two runs are never mixed. Nothing is deleted but what a run wrote: names that follow from
the manifest, or that the run noted before it placed them.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa

from shardline.pipeline import stored
from shardline.pipeline.cli import log, progress
from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import nobody_reads, remove_strays
from shardline.pipeline.machine import available_cores
from shardline.pipeline.manifest import FILE_NAME, Manifest, index_path, shard_name
from shardline.pipeline.sources_table import SOURCES_FILE, iterate_sources
from shardline.pipeline.split_index import file_name
from shardline.pipeline.stored import Sha256
from shardline.pipeline.stored_arrays import load_arrays, save_arrays
from shardline.pipeline.wording import as_flag, count, shorten_list
from shardline.tools.conversion.output import (
    NOTE,
    OVERWRITE,
    PLACED,
    SOURCES,
    STAMPS,
    WORK,
    WORK_FILE,
    Output,
)
from shardline.tools.conversion.shard_writer import ShardResult, load_receipt, receipt_path
from shardline.tools.conversion.sources import Sources, hash64, path_text
from shardline.tools.conversion.splits import Plan
from shardline.tools.conversion.tfds_metadata import FILES as TFDS_FILES

FORMAT = "shardline conversion 3"  # of all files in WORK, and of STAMPS
_PLACED = r"^[^/\x00]+(\.tfrecord-\d{5,}-of-\d{5,}|-\w+\.index)\Z"  # what a name in the note of placed files must be
_PIECE = 10_000  # inputs in flight when their content is compared


@dataclass(frozen=True)
class Request:
    """What a run was asked to do, as far as it decides the stored bytes."""

    options: Mapping[str, Any]
    versions: Mapping[str, str]
    sources: str  # fingerprint without stamps: the same for a copy of the folder

    def to_json(self) -> dict[str, Any]:
        """As it is stored and compared."""
        content = {**self.options, "versions": self.versions, "sources": self.sources}
        stored: dict[str, Any] = json.loads(json.dumps(content))
        return stored


@dataclass(frozen=True)
class _Note:
    """What an unfinished conversion is: stored beside its shards."""

    plan: Sha256
    request: dict[str, Any]


@dataclass(frozen=True)
class _Placed:
    """Final names of the shards that an unfinished conversion has begun to place."""

    files: tuple[Annotated[str, msgspec.Meta(pattern=_PLACED, max_length=255)], ...]


@dataclass(frozen=True)
class _Stamps:
    stamps: Sha256


def finished_already(
    output: Output, request: Request, sources: Sources, hash_input: Callable[[int], str], *, verify: bool = False
) -> Manifest | None:
    """The finished dataset in `output` if this very request made it; None when there is none.

    Args:
      output: where it is to lie.
      request: what is asked for.
      sources: the inputs; where their stamps are not those of the dataset's, their content is compared.
      hash_input: the SHA-256 of an input, by number.
      verify: read every shard and compare its SHA-256, too, not its size alone.

    Raises:
      UsageError: another dataset, or something else, is there, or the dataset is not whole.
    """
    if not (output.directory / FILE_NAME).exists():
        names = output.names()
        foreign_files = [name for name in names if name[0] != "."]
        if foreign_files and WORK not in names:
            raise UsageError(
                f"--output={output.where} is not empty ({', '.join(sorted(foreign_files)[:3])}) and holds no dataset; "
                "name a new or empty folder"
            )
        return None
    manifest = Manifest.load(output.directory)
    if manifest.num_generations > 1:
        differences = [count(manifest.num_generations, "generation")]
    else:
        differences = _differences(manifest.options.get("request", {}), request.to_json())
        differences = differences or _changed_content(output, sources, hash_input)
    if differences:
        raise UsageError(
            f"--output={output.where} holds another dataset, {manifest.name!r} ({'; '.join(differences)}); "
            f"add to it with --append, name another folder, or {OVERWRITE}"
        )
    output.check(manifest, verify)
    return manifest


def _changed_content(output: Output, sources: Sources, hash_input: Callable[[int], str]) -> list[str]:
    """A phrase where the sources are not what the dataset was made of, for all that names and sizes are."""
    try:
        if note_of_stamps(output.directory) == sources.fingerprint(stamps=True):
            return []
        output.companion(SOURCES_FILE)
        batches = iterate_sources(output.directory, ["path", "sha256"])
        rows = chain.from_iterable(zip(*map(pa.Array.to_pylist, batch.columns), strict=True) for batch in batches)
        then = content_keys(rows)
    except (OSError, UsageError) as error:
        return [f"its {SOURCES_FILE}, by which changed sources could be told, cannot be read: {error}"]
    now = content_keys_of(sources, np.arange(len(sources)), hash_input)
    changed = np.flatnonzero(~np.isin(now, then))
    if len(changed):
        example = path_text(sources.path(int(changed[0])))
        return [f"{count(len(changed), 'input')} changed since, e.g. {example}"]
    write_stamps(output.directory, sources)  # the next time is fast again
    return []


def content_keys_of(sources: Sources, numbers: np.ndarray, hash_input: Callable[[int], str]) -> np.ndarray:
    """`content_keys` of some inputs, which are read."""
    if not len(numbers):
        return np.empty(0, np.uint64)
    with (
        ThreadPoolExecutor(available_cores()) as pool,
        progress(total=len(numbers), desc="compare sources", unit="file") as bar,
    ):

        def hashed(number: int) -> str:
            bar.update()
            return hash_input(number)

        pieces = (numbers[start : start + _PIECE].tolist() for start in range(0, len(numbers), _PIECE))
        hashes = chain.from_iterable(pool.map(hashed, piece) for piece in pieces)
        return content_keys(zip((path_text(sources.path(int(n))) for n in numbers), hashes, strict=True))


def content_keys(pairs: Iterable[tuple[str, str]]) -> np.ndarray:
    """uint64 by input: equal for equal path and content (SHA-256)."""
    return np.fromiter((hash64(f"{path}\0{sha256}".encode()) for path, sha256 in pairs), np.uint64)


def write_stamps(directory: Path, sources: Sources) -> None:
    """Note which files, to the stamp, the dataset is made of."""
    with contextlib.suppress(OSError):  # it only saves time
        stored.save(directory / STAMPS, {"stamps": sources.fingerprint(stamps=True)}, format=FORMAT, durable=False)


def note_of_stamps(directory: Path) -> str:
    """Inverse of `write_stamps`; "" where there is none."""
    try:
        return stored.load(directory / STAMPS, _Stamps, format=FORMAT, remedy="").stamps
    except (FileNotFoundError, UsageError):
        return ""


# Deleting ----------------------------------------------------------------------------------------------------------


def remove_dataset(output: Output) -> bool:
    """--overwrite: delete what a conversion left there, finished or not, and nothing else. False: there was none.

    Raises:
      UsageError: nobody can tell which files are the dataset's, or somebody else made them.
      Failure: a process reads the dataset.
    """
    names, generations = [FILE_NAME, STAMPS, SOURCES_FILE, *TFDS_FILES], 1
    directory = output.directory
    if (directory / FILE_NAME).exists():
        try:
            manifest = Manifest.load(directory)
        except UsageError as error:
            raise UsageError(f"--overwrite: {error}") from None
        if manifest.adopted:
            raise UsageError(
                f"--overwrite: --output={output.where} holds shards that were adopted, not converted; name another "
                "folder"
            )
        names += _shard_names(manifest, 1)
        generations = manifest.num_generations
    elif not (directory / WORK).exists():
        return False
    names += _placed(directory / WORK)
    later = {number: output.generation(number) for number in range(2, generations + 2)}  # and one that was begun
    # Once the manifest is gone, nobody begins to read.
    with nobody_reads(directory / FILE_NAME, f"--output={output.where}"):
        output.remove(_with_indexes(names))
        for number, added in later.items():
            if added.directory.is_dir():
                files = [SOURCES_FILE, *TFDS_FILES, *_placed(added.directory / WORK)]
                files += _shard_names(manifest, number) if number <= generations else []
                added.remove(_with_indexes(files))
                added.remove_report()
                added.remove_work()
                with contextlib.suppress(OSError):  # files that are not ours
                    added.directory.rmdir()
    output.remove_report()
    output.remove_work()
    return True


def _shard_names(manifest: Manifest, generation: int) -> list[str]:
    """In the folder of a generation, with the indexes of its splits."""
    added = manifest.added(generation)
    names = [
        shard_name(manifest.name, split, number, len(added[split]))
        for split in added
        for number in range(len(added[split]))
    ]
    return names + [file_name(manifest.name, split) for split in added]


# Unfinished work ---------------------------------------------------------------------------------------------------


def workspace(output: Output, plan: Plan, request: Request, sources: Sources) -> Path:
    """The folder for unfinished work, swept of what killed attempts left; call within `Output.owned`.

    Raises:
      UsageError: an interrupted run was asked to do something else.
    """
    work = output.directory / WORK
    if work.is_symlink():
        raise UsageError(f"--output={output.where}: {WORK} is a link there; remove it, or name another folder")
    work.mkdir(exist_ok=True)
    remove_strays(work, lambda name: bool(WORK_FILE.fullmatch(name)))
    _check_request(output, work, plan, request, sources)
    output.remove(_with_indexes(name for name in _placed(work) if name.startswith(f"{plan.name}-")))
    output.sync()
    return work


def note_placing(output: Output, dataset: str, files: Sequence[str]) -> None:
    """Before shards get their final names: note these, so that another run may delete them.

    Raises:
      UsageError: files of these names, or that TFDS would take for the dataset's, are there; nobody noted them.
    """
    names = set(_with_indexes(files))
    there = sorted(
        name for name in output.names() if name in names or (name.startswith(f"{dataset}-") and ".tfrecord-" in name)
    )
    if there:
        raise UsageError(
            f"--output={output.where}: {shorten_list(there)} {'is' if len(there) == 1 else 'are'} in the way and not "
            "of this conversion; move what you want to keep and run the same command again, it continues"
        )
    stored.save(output.directory / WORK / PLACED, {"files": list(files)}, format=FORMAT)
    output.sync()


def _with_indexes(files: Iterable[str]) -> list[str]:
    """The files and, of those that are shards, their indexes."""
    return [name for file in files for name in (file, *([index_path(file).name] if ".tfrecord-" in file else []))]


def _placed(work: Path) -> tuple[str, ...]:
    """What `note_placing` noted there; () where nothing was placed, or nobody can tell."""
    try:
        return stored.load(work / PLACED, _Placed, format=FORMAT, remedy="").files
    except (FileNotFoundError, UsageError):
        return ()


def finished_tasks(
    output: Output, shards: Sequence[str], plan: Plan, sources: Sources, hash_input: Callable[[int], str]
) -> dict[int, ShardResult]:
    """Results of the tasks that an interrupted run finished, by task number.

    Each shard is read and held against its receipt, and so are those of its inputs that changed their stamps.
    """
    work = output.directory / WORK
    changed = _other_stamps(work, sources)

    def check(shard: str, inputs: np.ndarray) -> ShardResult | None:
        result = load_receipt(shard, plan.digest, inputs, output.is_whole)
        if result and changed[inputs].any():
            sha256 = result.rows()["sha256"]
            if any(hash_input(int(inputs[i])) != sha256[i].as_py() for i in np.flatnonzero(changed[inputs])):
                return None
        return result

    with ThreadPoolExecutor(available_cores()) as pool:
        results = list(pool.map(check, shards, (inputs for _, _, inputs in plan.members())))
    for shard, result in zip(shards, results, strict=True):
        if result is None and receipt_path(shard).exists():
            log(f"note: {Path(shard).name} is written again: it is damaged, or its sources changed")
            receipt_path(shard).unlink()
    if changed.any():
        _note_sources(work, sources)
    return {number: result for number, result in enumerate(results) if result}


def _check_request(output: Output, work: Path, plan: Plan, request: Request, sources: Sources) -> None:
    """Note what this run does, or hold it against what an interrupted one noted."""
    note = work / NOTE
    try:
        noted = stored.load(note, _Note, format=FORMAT, remedy=OVERWRITE)
    except FileNotFoundError:
        _note_sources(work, sources)
        stored.save(note, {"plan": plan.digest, "request": request.to_json()}, format=FORMAT)
        return
    if noted.plan != plan.digest:
        differences = _differences(noted.request, request.to_json())
        differences += _source_differences(work, sources)
        raise UsageError(
            f"--output={output.where} holds an interrupted conversion that was asked for something else "
            f"({'; '.join(differences) or 'the plan changed'}); repeat its options to continue it, or {OVERWRITE}"
        )


_COLUMNS = ("folder", "ends", "label", "size", "stamp")  # of Sources, that are noted


def _note_sources(work: Path, sources: Sources) -> None:
    columns = {name: getattr(sources, name) for name in _COLUMNS}
    columns["folders"] = np.frombuffer(b"\n".join(sources.folders), np.uint8)
    columns["names"] = np.frombuffer(sources.names, np.uint8)
    save_arrays(work / SOURCES, {}, columns, format=FORMAT, durable=False)


def _noted_sources(work: Path, only: Collection[str] | None = None) -> dict[str, np.ndarray] | None:
    """Inverse of `_note_sources`, of all columns or those named `only`; None where they cannot be read."""
    try:
        _, columns = load_arrays(work / SOURCES, format=FORMAT, remedy=OVERWRITE, only=only)
    except (FileNotFoundError, UsageError):
        return None
    lengths = {columns[name].shape for name in _COLUMNS if name in columns}
    return columns if columns.keys() == set(only or (*_COLUMNS, "folders", "names")) and len(lengths) == 1 else None


def _other_stamps(work: Path, sources: Sources) -> np.ndarray:
    """bool by input: whether it has another stamp than was noted, in a plan that is otherwise the same."""
    noted = _noted_sources(work, ("stamp",))  # of ten million inputs the other columns are half a gigabyte
    if noted is None or noted["stamp"].shape != sources.stamp.shape:
        return np.ones(len(sources), bool)
    return np.asarray(noted["stamp"] != sources.stamp)


def _differences(then: Mapping[str, Any], now: Mapping[str, Any], dashes: str = "--") -> list[str]:
    """Options that differ, or versions, a phrase each."""
    result = []
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            if name == "sources":
                result.append("other sources")
            elif name == "versions":
                found = _differences(then.get(name) or {}, now.get(name) or {}, "")
                result.append(f"other versions: {', '.join(found)}")
            else:
                result.append(f"{dashes}{name}={as_flag(then.get(name, ''))} then, {as_flag(now.get(name, ''))} now")
    return result


def _source_differences(work: Path, sources: Sources) -> list[str]:
    """What was added, removed or changed since, by count and with an example."""
    old = _noted_sources(work)
    if old is None:
        return []
    names, ends = old["names"].tobytes(), old["ends"]
    folders = old["folders"].tobytes().split(b"\n")
    begins = np.concatenate(([0], ends[:-1].astype(np.int64))).tolist()
    then = {
        (folders[folder], names[begin:end]): (size, stamp, label)
        for folder, begin, end, size, stamp, label in zip(
            old["folder"].tolist(), begins, ends.tolist(), old["size"].tolist(), old["stamp"].tolist(),
            old["label"].tolist(), strict=True,
        )
    }  # fmt: skip
    now = {
        tuple(os.path.split(path)): (int(sources.size[i]), int(sources.stamp[i]), int(sources.label[i]))
        for i, path in enumerate(sources.paths())
    }
    kinds: dict[str, list[Any]] = {
        "added": [key for key in now if key not in then],
        "removed": [key for key in then if key not in now],
        "changed": [key for key in now if key in then and now[key] != then[key]],
    }
    return [
        f"{count(len(keys), 'input')} {kind}, e.g. {path_text(b'/'.join(filter(None, keys[0])))}"
        for kind, keys in kinds.items()
        if keys
    ]
