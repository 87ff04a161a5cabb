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
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shardline.pipeline import stored
from shardline.pipeline.cli import log, progress
from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import file_sha256, nobody_reads, remove_strays
from shardline.pipeline.machine import available_cores
from shardline.pipeline.manifest import (
    FILE_NAME,
    Manifest,
    check_files,
    generation_folder,
    index_path,
    shard_name,
    shard_path,
)
from shardline.pipeline.sources_table import SOURCES_FILE, iterate_sources
from shardline.pipeline.split_index import file_name
from shardline.pipeline.stored import FileName, Sha256, stored_path
from shardline.pipeline.stored_arrays import load_arrays, save_arrays
from shardline.pipeline.wording import count, shorten_list
from shardline.tools.conversion.report import remove_report
from shardline.tools.conversion.shard_writer import ShardResult, load_receipt, receipt_path
from shardline.tools.conversion.sources import Sources, hash64, path_text
from shardline.tools.conversion.splits import Plan
from shardline.tools.conversion.tfds_metadata import FILES as TFDS_FILES

WORK = ".convert"
STAMPS = ".sources.json"  # which files, to the stamp, a finished dataset was made of; it lies beside the manifest
NOTE, SOURCES, PLACED = "request.json", "sources.npz", "placed.json"  # in WORK
FORMAT = "shardline conversion 3"  # of all of these
_WORK_FILE = re.compile(rf"{NOTE}|{SOURCES}|{PLACED}|[A-Za-z_]\w*-\d{{5}}(\.receipt\.arrow)?", re.ASCII)
_OVERWRITE = "start over with --overwrite"
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

    files: tuple[FileName, ...]


@dataclass(frozen=True)
class _Stamps:
    stamps: Sha256


def finished_already(
    output: Path, request: Request, sources: Sources, hash_input: Callable[[int], str], *, verify: bool = False
) -> Manifest | None:
    """The finished dataset in `output` if this very request made it; None when there is none.

    Args:
      output: the folder.
      request: what is asked for.
      sources: the inputs; where their stamps are not those of the dataset's, their content is compared.
      hash_input: the SHA-256 of an input, by number.
      verify: read every shard and compare its SHA-256, too, not its size alone.

    Raises:
      UsageError: another dataset, or something else, is there, or the dataset is not whole.
    """
    if not (output / FILE_NAME).exists():
        foreign_files = [] if not output.exists() else [e.name for e in os.scandir(output) if e.name[0] != "."]
        if foreign_files and not (output / WORK).exists():
            raise UsageError(
                f"--output={output} is not empty ({', '.join(sorted(foreign_files)[:3])}) and holds no dataset; name a "
                "new or empty folder"
            )
        return None
    manifest = Manifest.load(output)
    if manifest.num_generations > 1:
        differences = [count(manifest.num_generations, "generation")]
    else:
        differences = _differences(manifest.options.get("request", {}), request.to_json())
        differences = differences or _changed_content(output, sources, hash_input)
    if differences:
        raise UsageError(
            f"--output={output} holds another dataset, {manifest.name!r} ({'; '.join(differences)}); "
            f"add to it with --append, name another folder, or {_OVERWRITE}"
        )
    check_shards(manifest, output, verify)
    return manifest


def _changed_content(output: Path, sources: Sources, hash_input: Callable[[int], str]) -> list[str]:
    """A phrase where the sources are not what the dataset was made of, for all that names and sizes are."""
    try:
        if note_of_stamps(output) == sources.fingerprint(stamps=True):
            return []
        batches = iterate_sources(output, ["path", "sha256"])
        rows = chain.from_iterable(zip(*map(pa.Array.to_pylist, batch.columns), strict=True) for batch in batches)
        then = content_keys(rows)
    except (OSError, UsageError) as error:
        return [f"its {SOURCES_FILE}, by which changed sources could be told, cannot be read: {error}"]
    now = content_keys_of(sources, np.arange(len(sources)), hash_input)
    changed = np.flatnonzero(~np.isin(now, then))
    if len(changed):
        example = path_text(sources.path(int(changed[0])))
        return [f"{count(len(changed), 'input')} changed since, e.g. {example}"]
    write_stamps(output, sources)  # the next time is fast again
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


def check_shards(manifest: Manifest, output: Path, verify: bool) -> None:
    """Hold every shard against the manifest: size and index, and its SHA-256 if asked to."""
    for split in manifest.splits:
        check_files(manifest, output, split, flag="--output", remedy=f"restore the files from a copy, or {_OVERWRITE}")
    shards = [shard for split in manifest.splits.values() for shard in split.shards] if verify else []
    with ThreadPoolExecutor(available_cores()) as pool:
        hashes = pool.map(file_sha256, (shard_path(output, shard) for shard in shards))
        damaged = [shard.file for shard, sha256 in zip(shards, hashes, strict=True) if sha256 != shard.sha256]
    if damaged:
        raise UsageError(
            f"--output={output}: the SHA-256 of {shorten_list(damaged)} is not the manifest's; restore the files from "
            f"a copy, or {_OVERWRITE}"
        )


def write_stamps(output: Path, sources: Sources) -> None:
    """Note which files, to the stamp, the dataset is made of."""
    with contextlib.suppress(OSError):  # it only saves time
        stored.save(output / STAMPS, {"stamps": sources.fingerprint(stamps=True)}, format=FORMAT, durable=False)


def note_of_stamps(output: Path) -> str:
    """Inverse of `write_stamps`; "" where there is none."""
    try:
        return stored.load(output / STAMPS, _Stamps, format=FORMAT, remedy="").stamps
    except (FileNotFoundError, UsageError):
        return ""


# Deleting ----------------------------------------------------------------------------------------------------------


def remove_dataset(output: Path) -> bool:
    """--overwrite: delete what a conversion left there, finished or not, and nothing else. False: there was none.

    Raises:
      UsageError: nobody can tell which files are the dataset's, or somebody else made them.
      Failure: a process reads the dataset.
    """
    names, generations = [FILE_NAME, STAMPS, SOURCES_FILE, *TFDS_FILES], 1
    if (output / FILE_NAME).exists():
        try:
            manifest = Manifest.load(output)
        except UsageError as error:
            raise UsageError(f"--overwrite: {error}") from None
        if manifest.adopted:
            raise UsageError(
                f"--overwrite: --output={output} holds shards that were adopted, not converted; name another folder"
            )
        names += _shard_names(manifest, 1)
        generations = manifest.num_generations
    elif not (output / WORK).exists():
        return False
    names += _placed(output / WORK)
    # Once the manifest is gone, nobody begins to read.
    with nobody_reads(output / FILE_NAME, f"--output={output}"):
        _remove(output, [name for file in names for name in (file, index_path(file).name)])
        for number in range(2, generations + 2):  # and one that was begun
            if (folder := output / generation_folder(number)).is_dir():
                files = [SOURCES_FILE, *TFDS_FILES, *_placed(folder / WORK)]
                files += _shard_names(manifest, number) if number <= generations else []
                _remove(folder, [name for file in files for name in (file, index_path(file).name)])
                remove_report(folder)
                remove_work(folder)
                with contextlib.suppress(OSError):  # files that are not ours
                    folder.rmdir()
    remove_report(output)
    remove_work(output)
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


def remove_work(output: Path) -> None:
    """Delete the folder of unfinished work, but for files that no run puts there."""
    work = output / WORK
    if work.is_symlink() or not work.is_dir():
        return
    remove_strays(work, lambda name: bool(_WORK_FILE.fullmatch(name)))
    _remove(work, sorted(name for name in os.listdir(work) if _WORK_FILE.fullmatch(name)))
    if left := sorted(os.listdir(work)):
        log(f"note: {work} is kept: {shorten_list(left)} {'is' if len(left) == 1 else 'are'} not the conversion's")
    else:
        work.rmdir()


def _remove(directory: Path, names: Sequence[str]) -> None:
    """Delete files of ours, in order, and what killed attempts left of them."""
    for name in names:
        path = stored_path(directory, name, r".+", what=directory)
        if path.is_dir() and not path.is_symlink():
            raise UsageError(f"--overwrite: {path} is a folder where a conversion puts a file; move it away")
        path.unlink(missing_ok=True)
    ours = set(names)
    remove_strays(directory, ours.__contains__)


# Unfinished work ---------------------------------------------------------------------------------------------------


def workspace(output: Path, plan: Plan, request: Request, sources: Sources) -> Path:
    """The folder for unfinished work, swept of what killed attempts left; call within `own_directory`.

    Raises:
      UsageError: an interrupted run was asked to do something else.
    """
    work = output / WORK
    if work.is_symlink():
        raise UsageError(f"--output={output}: {WORK} is a link there; remove it, or name another folder")
    work.mkdir(exist_ok=True)
    remove_strays(work, lambda name: bool(_WORK_FILE.fullmatch(name)))
    _check_request(work, plan, request, sources)
    _remove(output, [name for file in _placed(work) for name in (file, index_path(file).name)])
    return work


def note_placing(output: Path, dataset: str, files: Sequence[str]) -> None:
    """Before shards get their final names: note these, so that another run may delete them.

    Raises:
      UsageError: files of these names, or that TFDS would take for the dataset's, are there; nobody noted them.
    """
    names = {name for file in files for name in (file, index_path(file).name)}
    there = sorted(
        name
        for name in os.listdir(output)
        if name in names or (name.startswith(f"{dataset}-") and ".tfrecord-" in name)
    )
    if there:
        raise UsageError(
            f"--output={output}: {shorten_list(there)} {'is' if len(there) == 1 else 'are'} in the way and not of this "
            "conversion; move what you want to keep and run the same command again, it continues"
        )
    stored.save(output / WORK / PLACED, {"files": list(files)}, format=FORMAT)


def _placed(work: Path) -> tuple[str, ...]:
    """What `note_placing` noted there; () where nothing was placed, or nobody can tell."""
    try:
        return stored.load(work / PLACED, _Placed, format=FORMAT, remedy="").files
    except (FileNotFoundError, UsageError):
        return ()


def finished_tasks(
    work: Path, outputs: Sequence[str], plan: Plan, sources: Sources, hash_input: Callable[[int], str]
) -> dict[int, ShardResult]:
    """Results of the tasks that an interrupted run finished, by task number.

    Each shard is read and held against its receipt, and so are those of its inputs that changed their stamps.
    """
    changed = _other_stamps(work, sources)

    def check(output: str, inputs: np.ndarray) -> ShardResult | None:
        result = load_receipt(output, plan.digest, inputs)
        if result and changed[inputs].any():
            sha256 = result.rows()["sha256"]
            if any(hash_input(int(inputs[i])) != sha256[i].as_py() for i in np.flatnonzero(changed[inputs])):
                return None
        return result

    with ThreadPoolExecutor(available_cores()) as pool:
        results = list(pool.map(check, outputs, (inputs for _, _, inputs in plan.members())))
    for output, result in zip(outputs, results, strict=True):
        if result is None and receipt_path(output).exists():
            log(f"note: {Path(output).name} is written again: it is damaged, or its sources changed")
            receipt_path(output).unlink()
    if changed.any():
        _note_sources(work, sources)
    return {number: result for number, result in enumerate(results) if result}


def _check_request(work: Path, plan: Plan, request: Request, sources: Sources) -> None:
    """Note what this run does, or hold it against what an interrupted one noted."""
    note = work / NOTE
    try:
        noted = stored.load(note, _Note, format=FORMAT, remedy=_OVERWRITE)
    except FileNotFoundError:
        _note_sources(work, sources)
        stored.save(note, {"plan": plan.digest, "request": request.to_json()}, format=FORMAT)
        return
    if noted.plan != plan.digest:
        differences = _differences(noted.request, request.to_json())
        differences += _source_differences(work, sources)
        raise UsageError(
            f"--output={work.parent} holds an interrupted conversion that was asked for something else "
            f"({'; '.join(differences) or 'the plan changed'}); repeat its options to continue it, or {_OVERWRITE}"
        )


_COLUMNS = ("folder", "ends", "label", "size", "stamp")  # of Sources, that are noted


def _note_sources(work: Path, sources: Sources) -> None:
    columns = {name: getattr(sources, name) for name in _COLUMNS}
    columns["folders"] = np.frombuffer(b"\n".join(sources.folders), np.uint8)
    columns["names"] = np.frombuffer(sources.names, np.uint8)
    save_arrays(work / SOURCES, {}, columns, format=FORMAT, durable=False)


def _noted_sources(work: Path) -> dict[str, np.ndarray] | None:
    """Inverse of `_note_sources`; None where it cannot be read."""
    try:
        _, columns = load_arrays(work / SOURCES, format=FORMAT, remedy=_OVERWRITE)
    except (FileNotFoundError, UsageError):
        return None
    inputs = columns["ends"].shape
    well_formed = columns.keys() == {*_COLUMNS, "folders", "names"} and all(
        columns[n].shape == inputs for n in _COLUMNS
    )
    return columns if well_formed else None


def _other_stamps(work: Path, sources: Sources) -> np.ndarray:
    """bool by input: whether it has another stamp than was noted, in a plan that is otherwise the same."""
    noted = _noted_sources(work)
    if noted is None or len(noted["stamp"]) != len(sources):
        return np.ones(len(sources), bool)
    return np.asarray(noted["stamp"] != sources.stamp)


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Options that differ, a phrase each."""
    result = []
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            if name == "sources":
                result.append("other sources")
            elif name == "versions":
                result.append(f"other versions: {then.get(name)}, now {now.get(name)}")
            else:
                result.append(f"--{name}={then.get(name)} then, {now.get(name)} now")
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
