"""What a dataset on disk is: manifest.json, the shards it names and their indexes. No TensorFlow.

The manifest is written last, so a directory without one is not a dataset, and one with it is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shardline.pipeline.errors import UsageError
from shardline.pipeline.wording import count

FILE_NAME = "manifest.json"
FORMAT = "shardline/1"
UNKNOWN_KERNEL = "unknown"  # images that somebody else stored


@dataclass(frozen=True)
class Shard:
    """One TFRecord file: its name, its count, and what its bytes must be."""

    file: str
    records: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """The shards of one split, in file-name order: record numbers run through them in that order."""

    name: str
    shards: tuple[Shard, ...]

    @property
    def records(self) -> int:
        """Number of records in all shards."""
        return sum(shard.records for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)


@dataclass(frozen=True)
class Features:
    """Names of the `tf.train.Example` features. An empty name: foreign records do not have it."""

    image: str = "image"
    label: str = "label"
    filename: str = "image/filename"
    height: str = "image/height"
    width: str = "image/width"
    label_offset: int = 0  # added to the stored label; ImageNet's shards count from 1, so -1 there


@dataclass(frozen=True)
class ImageFormat:
    """How the stored images were made: part of the preprocessing contract."""

    encoding: str = "jpeg"  # jpeg, png, raw (height * width * 3 RGB bytes), or any (adopted, mixed)
    resize: str = "short"  # short, long, squash, center_crop, none
    size: int = 256  # pixels
    max_height: int = 0  # of the largest stored image; 0: not known
    max_width: int = 0
    color: str = "rgb"
    kernel: str = UNKNOWN_KERNEL  # that resized them


@dataclass(frozen=True)
class Ledger:
    """What became of every input. Raises ValueError unless inputs = written + quarantined + duplicates + filtered."""

    inputs: int
    written: int
    quarantined: int = 0
    duplicates: int = 0
    filtered: int = 0

    def __post_init__(self) -> None:
        accounted = self.written + self.quarantined + self.duplicates + self.filtered
        if self.inputs != accounted:
            raise ValueError(f"the ledger does not balance: {accounted} of the inputs are accounted for in {self}")

    def __str__(self) -> str:
        return (
            f"{count(self.inputs, 'input')} = {self.written:,} written + {self.quarantined:,} quarantined "
            f"+ {count(self.duplicates, 'duplicate')} + {self.filtered:,} filtered"
        )


@dataclass(frozen=True)
class Manifest:
    """Everything a reader needs to know before it opens a shard."""

    name: str
    labels: tuple[str, ...]
    splits: Mapping[str, Split]
    ledger: Ledger
    features: Features = Features()
    image: ImageFormat = ImageFormat()
    class_counts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # per split, in label order
    options: Mapping[str, Any] = field(default_factory=dict)  # the converter's, for people and for resume
    versions: Mapping[str, str] = field(default_factory=dict)  # of the tools whose change could change bytes

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over what batches depend on: labels, features, format and every shard's bytes."""
        content = {
            "format": FORMAT,
            "labels": self.labels,
            "features": asdict(self.features),
            "image": asdict(self.image),
            "splits": {
                name: [(shard.records, shard.bytes, shard.sha256) for shard in split.shards]
                for name, split in self.splits.items()
            },
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def split(self, name: str) -> Split:
        """The split called `name`. Raises UsageError that lists the ones there are."""
        if name not in self.splits:
            raise UsageError(f"--split={name}: this dataset has {', '.join(self.splits)}")
        return self.splits[name]

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write manifest.json under a temporary name, then rename: it is there whole or not at all."""
        target = Path(directory) / FILE_NAME
        temporary = target.with_name(FILE_NAME + ".tmp")
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(self.to_json(), file, indent=1, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Manifest:
        """Read DIRECTORY/manifest.json. Raises UsageError, in one line, when it is missing, foreign or damaged."""
        path = Path(directory) / FILE_NAME
        if not Path(directory).is_dir():
            raise UsageError(f"--data={directory}: no such directory; make one with shardline-convert")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(
                f"--data={directory}: no {FILE_NAME} there, so it is no finished dataset; run shardline-convert "
                "(an interrupted conversion continues), or shardline-adopt for TFRecords made elsewhere"
            ) from None
        except ValueError as error:
            raise UsageError(f"{path} is damaged ({error}); convert again, or restore it from a copy") from None
        found = content.get("format") if isinstance(content, dict) else None
        if found != FORMAT:
            raise UsageError(f"{path} has format {found!r}, this program reads {FORMAT!r}; convert again or upgrade")
        try:
            manifest = cls.from_json(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"{path} is damaged ({error!r}); convert again, or restore it from a copy") from None
        if manifest.digest != content["digest"]:
            raise UsageError(f"{path} was edited: its digest no longer matches; convert again, or restore it")
        return manifest

    def to_json(self) -> dict[str, Any]:
        """The content of manifest.json; `from_json` is its inverse."""
        return {
            "format": FORMAT,
            "name": self.name,
            "digest": self.digest,
            "ledger": asdict(self.ledger),
            "labels": list(self.labels),
            "features": asdict(self.features),
            "image": asdict(self.image),
            "splits": {
                name: {
                    "records": split.records,
                    "class_counts": list(self.class_counts.get(name, ())),
                    "shards": [asdict(shard) for shard in split.shards],
                }
                for name, split in self.splits.items()
            },
            "options": dict(self.options),
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Manifest:
        """Inverse of `to_json`. Raises KeyError, TypeError or ValueError for content of another shape."""
        return cls(
            name=content["name"],
            labels=tuple(content["labels"]),
            splits={
                name: Split(name, tuple(Shard(**shard) for shard in split["shards"]))
                for name, split in content["splits"].items()
            },
            ledger=Ledger(**content["ledger"]),
            features=Features(**content["features"]),
            image=ImageFormat(**content["image"]),
            class_counts={name: tuple(split["class_counts"]) for name, split in content["splits"].items()},
            options=content["options"],
            versions=content["versions"],
        )


def check_files(manifest: Manifest, directory: str | os.PathLike[str], split: str) -> np.ndarray:
    """Hold every shard of `split` against the manifest and return the split's index.

    Reads file sizes and indexes, no records: a missing, renamed, empty, truncated or replaced shard and a
    stale index are found here; flipped bits inside a shard are found when its records are read.

    Returns:
      int64 [records, 3]: shard number, offset and framed size in bytes of each record of the split.

    Raises:
      UsageError: naming each faulty file (the first five) and the remedy.
    """
    faults: list[str] = []
    rows = np.empty((manifest.split(split).records, 3), np.int64)
    end = 0
    for number, shard in enumerate(manifest.split(split).shards):
        path = Path(directory) / shard.file
        try:
            size = path.stat().st_size
            index = load_index(index_path(path))
        except FileNotFoundError as error:
            faults.append(f"{os.path.basename(error.filename)} is missing")
            continue
        except ValueError as error:
            faults.append(f"{index_path(path).name} is damaged ({error})")
            continue
        if size != shard.bytes:
            faults.append(f"{shard.file} has {size:,} bytes, not {shard.bytes:,}")
        elif not _tiles(index, records=shard.records, size_bytes=shard.bytes):
            faults.append(f"{index_path(path).name} does not fit its shard")
        else:
            start, end = end, end + len(index)
            rows[start:end, 0] = number
            rows[start:end, 1:] = index
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise UsageError(
            f"--data={directory}: {'; '.join(faults[:5])}{more}; restore the files from a copy, or convert again"
        )
    return rows


def _tiles(index: np.ndarray, *, records: int, size_bytes: int) -> bool:
    """Whether the records lie end to end from byte 0 to the last."""
    ends = index.sum(axis=1)
    return (
        len(index) == records
        and bool(np.all(index[:, 1] > 0))
        and bool(np.array_equal(index[:, 0], np.concatenate(([0], ends))[:-1]))
        and (int(ends[-1]) if records else 0) == size_bytes
    )


def shard_name(name: str, split: str, number: int, count: int) -> str:
    """TFDS's file name of a shard: `flowers-train.tfrecord-00000-of-00016`."""
    return f"{name}-{split}.tfrecord-{number:05d}-of-{count:05d}"


def index_path(shard: str | os.PathLike[str]) -> Path:
    """Where a shard's index lies: beside it, with `.idx` appended."""
    return Path(f"{os.fspath(shard)}.idx")


def write_index(path: str | os.PathLike[str], index: np.ndarray) -> None:
    """Write NVIDIA DALI's `tfrecord2idx` format: a line "offset size" a record, in bytes, frame included."""
    Path(path).write_text("".join(f"{offset} {size}\n" for offset, size in index.tolist()), encoding="ascii")


def write_shard_file(path: str | os.PathLike[str], framed: Sequence[bytes]) -> Shard:
    """Write framed records, held in memory, as one shard with its index; returns the manifest's entry."""
    content = b"".join(framed)
    Path(path).write_bytes(content)
    sizes = np.array([len(record) for record in framed], np.int64)
    write_index(index_path(path), np.column_stack((np.cumsum(sizes) - sizes, sizes)))
    return Shard(Path(path).name, len(framed), len(content), hashlib.sha256(content).hexdigest())


def load_index(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an index: int64 [records, 2], offset and framed size in bytes. Raises ValueError when it is none."""
    numbers = np.fromstring(Path(path).read_text(encoding="ascii"), dtype=np.int64, sep=" ")  # 14 M records/s
    if len(numbers) % 2:
        raise ValueError("odd count of numbers")
    return numbers.reshape(-1, 2)
