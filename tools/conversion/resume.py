"""The output directory while a conversion is under way: refuse, resume, or start over. No TensorFlow.

Everything unfinished lies in OUTPUT/.convert: what the run was asked to do, finished shards and their receipts.
It goes away when manifest.json is there. A run that finds it continues if it was asked to do the same, and refuses
with the difference if not: two runs are never mixed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shardline.pipeline import stored
from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import TEMPORARY, atomic_writer, exclusive
from shardline.pipeline.manifest import FILE_NAME, Manifest, index_path
from shardline.pipeline.sources_table import SOURCES_FILE
from shardline.pipeline.wording import count
from shardline.tools.conversion.report import remove_report
from shardline.tools.conversion.shard_writer import ShardResult, load_receipt
from shardline.tools.conversion.sources import Sources, path_text
from shardline.tools.conversion.splits import Plan
from shardline.tools.conversion.tfds_metadata import FILES as TFDS_FILES

WORK = ".convert"
FORMAT = "shardline conversion 2"  # of request.json


@dataclass(frozen=True)
class Request:
    """What a run was asked to do, as far as it decides the stored bytes."""

    options: Mapping[str, Any]
    versions: Mapping[str, str]
    sources: str  # fingerprint without times: the same for a copy of the folder

    def to_json(self) -> dict[str, Any]:
        """As it is stored and compared."""
        content = {**self.options, "versions": self.versions, "sources": self.sources}
        stored: dict[str, Any] = json.loads(json.dumps(content))
        return stored


@dataclass(frozen=True)
class _Note:
    """What an unfinished conversion is: stored beside its shards."""

    plan: str  # digest
    request: dict[str, Any]


def finished_already(output: Path, request: Request, sources: Sources) -> Manifest | None:
    """The finished dataset in `output` if this very request made it; None when there is none.

    Raises:
      UsageError: another dataset, or something else, is there.
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
    differences = _differences(manifest.options.get("request", {}), request.to_json())
    if not differences and sources.newest > (output / FILE_NAME).stat().st_mtime_ns:
        differences = ["some sources were modified since"]
    if differences:
        raise UsageError(
            f"--output={output} holds another dataset, {manifest.name!r} ({'; '.join(differences)}); "
            "name another folder, or start over with --overwrite"
        )
    return manifest


def remove_dataset(output: Path) -> bool:
    """--overwrite: delete what a conversion left there, finished or not, and nothing else. False: there was none.

    Raises:
      UsageError: the manifest cannot be read, so that nobody knows which files are the dataset's.
      Failure: another run is writing here.
    """
    work = output / WORK
    files = [FILE_NAME, SOURCES_FILE, *TFDS_FILES]
    if (output / FILE_NAME).exists():
        try:
            manifest = Manifest.load(output)
        except UsageError as error:
            raise UsageError(f"--overwrite: {error}") from None
        for split in manifest.splits.values():
            for shard in split.shards:
                files += [shard.file, index_path(shard.file).name]
    elif not work.exists():
        return False
    with exclusive(work / "lock", f"--output={output}") if work.exists() else nullcontext():
        for name in files:  # the manifest goes first: from here on it is no dataset
            (output / name).unlink(missing_ok=True)
        remove_report(output)
        _remove_partial_files(output)
        remove_work(output)
    return True


@contextmanager
def workspace(output: Path, plan: Plan, request: Request, sources: Sources) -> Iterator[Path]:
    """The folder for unfinished work, ours alone while the context lasts.

    Raises:
      UsageError: the output cannot be written, or an interrupted run was asked to do something else.
      Failure: another run is writing here.
    """
    work = output / WORK
    with ExitStack() as stack:
        try:
            work.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive(work / "lock", f"--output={output}"))
        except OSError as error:
            raise UsageError(f"--output={output} cannot be written: {error.strerror}") from None
        _check_request(work, plan, request, sources)
        _remove_partial_files(output)
        yield work


def remove_work(output: Path) -> None:
    """After the manifest is there: the unfinished work is no longer needed."""
    shutil.rmtree(output / WORK, ignore_errors=True)


def finished_tasks(outputs: Sequence[str], digest: str) -> dict[int, ShardResult]:
    """Receipts of the tasks that an interrupted run finished, by task number."""
    found = ((number, load_receipt(path, digest)) for number, path in enumerate(outputs))
    return {number: receipt for number, receipt in found if receipt}


def _check_request(work: Path, plan: Plan, request: Request, sources: Sources) -> None:
    """Note what this run does, or hold it against what an interrupted one noted."""
    note = work / "request.json"
    if note.exists():
        noted = stored.load(note, _Note, format=FORMAT, remedy="start over with --overwrite")
        if noted.plan == plan.digest:
            return
        differences = _differences(noted.request, request.to_json())
        differences += _source_differences(work / "sources.npz", sources)
        raise UsageError(
            f"--output={work.parent} holds an interrupted conversion that was asked for something else "
            f"({'; '.join(differences) or 'the plan changed'}); repeat its options to continue it, or start over with "
            "--overwrite"
        )
    columns = {name: getattr(sources, name) for name in ("folder", "ends", "label", "size", "stamp")}
    with atomic_writer(work / "sources.npz", durable=False) as file:
        folders = np.frombuffer(b"\n".join(sources.folders), np.uint8)
        np.savez(file, folders=folders, names=np.frombuffer(sources.names, np.uint8), **columns)
    stored.save(note, {"plan": plan.digest, "request": request.to_json()}, format=FORMAT)


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


def _source_differences(noted: Path, sources: Sources) -> list[str]:
    """What was added, removed or changed since, by count and with an example."""
    try:
        with np.load(noted) as file:
            old = {name: file[name] for name in file.files}
    except (OSError, ValueError):
        return []
    names, ends = old["names"].tobytes(), old["ends"]
    folders = old["folders"].tobytes().split(b"\n")
    begins = np.concatenate(([0], ends[:-1])).tolist()
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


def _remove_partial_files(output: Path) -> None:
    """Temporary files that a killed run left while it put shards in place."""
    if output.is_dir() and not (output / FILE_NAME).exists():
        for entry in os.scandir(output):
            if entry.name.endswith(TEMPORARY) or ".tfrecord-" in entry.name:
                os.unlink(entry.path)
