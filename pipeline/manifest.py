"""What a dataset on disk is: manifest.json, the shards it names and their indexes. No TensorFlow.

The manifest is written last, so a directory without one is not a dataset, and one with it is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from shardline.pipeline import stored
from shardline.pipeline.encodings import ENCODINGS
from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import atomic_write, being_read, open_regular
from shardline.pipeline.stored import Count, Sha256
from shardline.pipeline.text import has_control_characters
from shardline.pipeline.tfrecord import FRAME_BYTES
from shardline.pipeline.wording import count

FILE_NAME = "manifest.json"
FORMAT = "shardline/2"
NO_LABEL = -1  # stored label of an image that has none, as TFDS's
UNKNOWN_KERNEL = "unknown"  # images that somebody else stored
REMEDY = "convert again, or restore it from a copy"
_RESTORE = "restore the files from a copy, or convert again"

Name = Annotated[str, msgspec.Meta(pattern=r"^[^/\x00-\x1f\x7f]+\Z", max_length=200)]  # of a dataset: starts file names
SplitName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*\Z", max_length=200)]
EncodingName = Annotated[str, msgspec.Meta(pattern=rf"^({'|'.join(ENCODINGS)})\Z")]
# Of an adopted shard it may lie in a folder of the dataset's: Kaggle's train/00-192x192-798.tfrec.
ShardFile = Annotated[str, msgspec.Meta(pattern=r"^([^/\x00.][^/\x00]*/)?[^/\x00]+\Z", max_length=511)]
LabelKind = Annotated[str, msgspec.Meta(pattern=r"^(|index|name|onehot)\Z")]


@dataclass(frozen=True)
class Shard:
    """One TFRecord file: its name, its count, and what its bytes must be."""

    file: ShardFile
    records: Count
    bytes: Count
    sha256: Sha256

    def __post_init__(self) -> None:
        if self.records * FRAME_BYTES > self.bytes:
            raise ValueError(f"{self.records:,} records do not fit into the {self.bytes:,} bytes of {self.file}")


@dataclass(frozen=True)
class Split:
    """The shards of one split, in file-name order: record numbers run through them in that order."""

    name: str
    shards: tuple[Shard, ...]
    unlabelled: bool = False  # its images have no labels: they are stored with NO_LABEL, to be predicted

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
    """Names of the `tf.train.Example` features. An empty name: foreign records do not have it.

    Without a label's name, all records have NO_LABEL.
    """

    image: str = "image"
    label: str = "label"
    filename: str = "image/filename"
    height: str = "image/height"
    width: str = "image/width"
    label_offset: int = 0  # added to the stored label; ImageNet's shards count from 1, so -1 there
    label_kind: LabelKind = ""  # "": an integer; "index": a number of any type; "name": text; "onehot": a list
    names: tuple[str, ...] = ()  # of the classes, where labels are names: the manifest's labels, not stored twice

    def stored(self) -> dict[str, Any]:
        """As the manifest has them; what is at its default there since format 2 began, is left out."""
        facts = asdict(self)
        del facts["names"]
        return facts if self.label_kind else {name: value for name, value in facts.items() if name != "label_kind"}


@dataclass(frozen=True)
class ImageFormat:
    """How the stored images were made: part of the preprocessing contract."""

    encoding: EncodingName = "jpeg"
    resize: str = "short"  # short, long, squash, center_crop, none
    size: Count = 256  # pixels
    max_height: Count = 0  # of the largest stored image; 0: not known
    max_width: Count = 0
    color: str = "srgb"  # color profiles are gone: their images were converted
    kernel: str = UNKNOWN_KERNEL  # that resized them


@dataclass(frozen=True)
class Ledger:
    """What became of every input. Raises ValueError unless inputs = written + quarantined + duplicates + filtered."""

    inputs: Count
    written: Count
    quarantined: Count = 0
    duplicates: Count = 0
    filtered: Count = 0

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
class Generation:
    """What a dataset was after a conversion added to it (`shardline-convert --append`).

    Attributes:
      digest: of the dataset then.
      labels: how many of the labels it had.
      shards: how many of each split's shards it had.
      class_counts, ledger: as a manifest has them.
      max_height, max_width: of the largest stored image, in pixels.
      options, versions: of what was added last.
    """

    digest: Sha256
    labels: Count
    shards: Mapping[SplitName, Count]
    class_counts: Mapping[SplitName, tuple[Count, ...]]
    ledger: Ledger
    max_height: Count
    max_width: Count
    options: Mapping[str, Any]
    versions: Mapping[str, str]


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
    words: tuple[str, ...] = ()  # to show for each label; () or "": the label itself
    options: Mapping[str, Any] = field(default_factory=dict)  # the converter's, for people and for resume
    versions: Mapping[str, str] = field(default_factory=dict)  # of the tools whose change could change bytes
    generations: tuple[Generation, ...] = ()  # this and all before it, the first one first; () where nothing was added

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over what batches depend on: labels, features, format and every shard's name and bytes."""
        content = {
            "format": FORMAT,
            "labels": self.labels,
            "features": self.features.stored(),
            "image": asdict(self.image),
            "splits": {
                name: [(shard.file, shard.records, shard.bytes, shard.sha256) for shard in split.shards]
                for name, split in self.splits.items()
            },
        }
        if unlabelled := [name for name, split in self.splits.items() if split.unlabelled]:
            content["unlabelled"] = unlabelled
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def split(self, name: str) -> Split:
        """The split called `name`. Raises UsageError that lists the ones there are."""
        if name not in self.splits:
            raise UsageError(f"--split={name}: this dataset has {', '.join(self.splits)}")
        return self.splits[name]

    def refuse_unlabelled(self, split: str, flag: str) -> None:
        """Raise UsageError when a split that needs labels has none; `flag` named it."""
        if split in self.splits and self.splits[split].unlabelled:
            labelled = ", ".join(name for name, other in self.splits.items() if not other.unlabelled)
            raise UsageError(
                f"{flag}={split}: this split was converted without labels (--unlabelled), so it can only be predicted; "
                f"name one with labels: {labelled or 'there is none'}"
            )

    @property
    def num_generations(self) -> int:
        """How often the dataset was added to, and once."""
        return max(1, len(self.generations))

    def at(self, generation: int) -> Manifest:
        """The dataset as it was after a generation, counted from 1; 0: as it is.

        Raises:
          UsageError: there is no such generation, or this is not what it was.
        """
        if generation in (0, self.num_generations):
            return self
        if not 0 < generation < self.num_generations:
            raise UsageError(f"--generation={generation}: this dataset has {count(self.num_generations, 'generation')}")
        then = self.generations[generation - 1]
        found = replace(
            self,
            labels=self.labels[: then.labels],
            words=self.words[: then.labels],
            splits={
                name: replace(split, shards=split.shards[: then.shards[name]])
                for name, split in self.splits.items()
                if name in then.shards
            },
            ledger=then.ledger,
            image=replace(self.image, max_height=then.max_height, max_width=then.max_width),
            class_counts=then.class_counts,
            options=then.options,
            versions=then.versions,
            generations=self.generations[:generation] if generation > 1 else (),
        )
        if found.digest != then.digest:
            raise UsageError(f"{FILE_NAME} was edited or damaged: generation {generation} is not what it was; {REMEDY}")
        return found

    def generation_of(self, digest: str) -> int:
        """Number of the generation that has a digest; 0 where none has."""
        digests = [then.digest for then in self.generations] or [self.digest]
        return digests.index(digest) + 1 if digest in digests else 0

    def added(self, generation: int) -> dict[str, tuple[Shard, ...]]:
        """The shards that a generation added, by split."""
        if not self.generations:
            return {name: split.shards for name, split in self.splits.items()}
        before = self.generations[generation - 2].shards if generation > 1 else {}
        return {
            name: self.splits[name].shards[before.get(name, 0) : number]
            for name, number in self.generations[generation - 1].shards.items()
        }

    def grown(self, added: Manifest) -> Manifest:
        """This dataset and another generation.

        Args:
          added: what is added: of this dataset's name, features and format, with all of its labels and perhaps more;
            its shards lie in `generation_folder`.
        """
        splits = {
            name: replace(
                (self.splits.get(name) or added.splits[name]),
                shards=tuple(
                    shard for part in (self, added) if name in part.splits for shard in part.splits[name].shards
                ),
            )
            for name in {**self.splits, **added.splits}
        }
        empty = (0,) * len(added.labels)
        class_counts = {
            name: ()
            if split.unlabelled
            else tuple(
                before + now
                for before, now in zip_longest(
                    self.class_counts.get(name, ()), added.class_counts.get(name, empty), fillvalue=0
                )
            )
            for name, split in splits.items()
        }
        ledger = Ledger(**{name: value + getattr(added.ledger, name) for name, value in asdict(self.ledger).items()})
        image = replace(
            self.image,
            max_height=max(self.image.max_height, added.image.max_height),
            max_width=max(self.image.max_width, added.image.max_width),
        )
        grown = replace(
            self,
            labels=added.labels,
            words=added.words,
            splits=splits,
            class_counts=class_counts,
            ledger=ledger,
            image=image,
            options=added.options,
            versions=added.versions,
        )
        generations = self.generations or (self._as_generation(),)
        return replace(grown, generations=(*generations, grown._as_generation()))

    def _as_generation(self) -> Generation:
        return Generation(
            digest=self.digest,
            labels=len(self.labels),
            shards={name: len(split.shards) for name, split in self.splits.items()},
            class_counts=self.class_counts,
            ledger=self.ledger,
            max_height=self.image.max_height,
            max_width=self.image.max_width,
            options=self.options,
            versions=self.versions,
        )

    def label_name(self, label: int) -> str:
        """The class of a stored label; "" for NO_LABEL."""
        return self.labels[label] if label != NO_LABEL else ""

    @property
    def shown_labels(self) -> tuple[str, ...]:
        """What people are shown for each label: the first of its words where it has some, made unlike all others."""
        return shown_labels(self.labels, self.words)

    @property
    def adopted(self) -> bool:
        """Whether somebody else wrote the shards, whose names are then their own."""
        return bool(self.options.get("adopted"))

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write manifest.json, whole or not at all."""
        content = {
            "name": self.name,
            "digest": self.digest,
            "ledger": asdict(self.ledger),
            "labels": self.labels,
            "features": self.features.stored(),
            "image": asdict(self.image),
            "splits": {
                name: {
                    "records": split.records,
                    "class_counts": self.class_counts.get(name, ()),
                    "shards": [asdict(shard) for shard in split.shards],
                    **({"unlabelled": True} if split.unlabelled else {}),
                }
                for name, split in self.splits.items()
            },
            **({"words": self.words} if self.words else {}),
            "options": self.options,
            "versions": self.versions,
            **({"generations": [asdict(then) for then in self.generations]} if self.generations else {}),
        }
        stored.save(Path(directory) / FILE_NAME, content, format=FORMAT)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Manifest:
        """Inverse of `save`. Raises UsageError, in one line, when the file is missing, foreign, damaged or edited."""
        path = Path(directory) / FILE_NAME
        if not Path(directory).is_dir():
            raise UsageError(f"--data={directory}: no such directory; make one with shardline-convert")
        try:
            content = stored.read_bytes(path, remedy=REMEDY)
        except FileNotFoundError:
            raise UsageError(
                f"--data={directory}: no {FILE_NAME} there, so it is no finished dataset; run shardline-convert "
                "(an interrupted conversion continues), or shardline-adopt for TFRecords made elsewhere"
            ) from None
        return cls.parse(content, what=path)

    @classmethod
    @contextlib.contextmanager
    def opened(cls, directory: str | os.PathLike[str]) -> Iterator[Manifest]:
        """The same of a dataset that nobody replaces while the context lasts.

        Raises Failure, too, while another process replaces it.
        """
        with being_read(Path(directory) / FILE_NAME, f"--data={directory}"):
            yield cls.load(directory)

    @classmethod
    def parse(cls, content: bytes, *, what: object) -> Manifest:
        """A manifest from the bytes that `save` wrote. Raises UsageError, in one line, that names `what` they are."""
        found = stored.unsealed(content, _StoredManifest, format=FORMAT, what=what, remedy=REMEDY)
        manifest = cls(
            name=found.name,
            labels=found.labels,
            splits={name: Split(name, split.shards, split.unlabelled) for name, split in found.splits.items()},
            ledger=found.ledger,
            features=replace(found.features, names=found.labels if found.features.label_kind == "name" else ()),
            image=found.image,
            class_counts={name: split.class_counts for name, split in found.splits.items()},
            words=found.words,
            options=found.options,
            versions=found.versions,
            generations=found.generations,
        )
        if fault := _contradiction(manifest, found):
            raise UsageError(f"{what} was edited or damaged: {fault}; {REMEDY}")
        return manifest


@dataclass(frozen=True)
class _StoredSplit:
    """A split as manifest.json has it."""

    records: Count
    class_counts: tuple[Count, ...]
    shards: tuple[Shard, ...]
    unlabelled: bool = False


@dataclass(frozen=True)
class _StoredManifest:
    """The content of manifest.json."""

    name: Name
    digest: Sha256
    ledger: Ledger
    labels: tuple[str, ...]
    features: Features
    image: ImageFormat
    splits: Mapping[SplitName, _StoredSplit]
    options: Mapping[str, Any]
    versions: Mapping[str, str]
    words: tuple[str, ...] = ()
    generations: tuple[Generation, ...] = ()


def shown_labels(labels: Sequence[str], words: Sequence[str]) -> tuple[str, ...]:
    """The first of each class's words, `tench` of `tench, Tinca tinca`; the class is added where two are alike."""
    if not words:
        return tuple(labels)
    first = [meaning.split(",")[0].strip() or label for label, meaning in zip(labels, words, strict=True)]
    often = Counter(first)
    return tuple(
        name if often[name] == 1 or name == label else f"{name} ({label})"
        for name, label in zip(first, labels, strict=True)
    )


def _contradiction(manifest: Manifest, found: _StoredManifest) -> str:
    """What cannot be true of a manifest that is well typed; "" for nothing."""
    if manifest.digest != found.digest:
        return "its digest no longer matches"
    if any(map(has_control_characters, manifest.labels)) or len(set(manifest.labels)) < len(manifest.labels):
        return "a label occurs twice or has control characters"
    if any(map(has_control_characters, manifest.words)) or len(manifest.words) not in (0, len(manifest.labels)):
        return "its class words do not fit its labels"
    files = [shard.file for split in manifest.splits.values() for shard in split.shards]
    if len(set(files)) < len(files):
        return "a shard occurs twice"
    for name, split in manifest.splits.items():
        counts = manifest.class_counts[name]
        if found.splits[name].records != split.records:
            return f"split {name} has {count(split.records, 'record')} in its shards"
        if counts and (split.unlabelled or len(counts) != len(manifest.labels) or sum(counts) > split.records):
            return f"the class counts of split {name} do not fit its labels and records"
    if fault := _wrong_generations(manifest):
        return fault
    for generation in range(1, manifest.num_generations + 1):
        folder = generation_folder(generation)
        for name, shards in manifest.added(generation).items():
            own = [folder + shard_name(manifest.name, name, number, len(shards)) for number in range(len(shards))]
            if not manifest.adopted and [shard.file for shard in shards] != own:
                return f"split {name} names files that are not its shards"
    return ""


def _wrong_generations(manifest: Manifest) -> str:
    """What cannot be true of a manifest's generations; "" for nothing. Digests of earlier ones: see `Manifest.at`."""
    then = manifest.generations
    if not then:
        return ""
    last = then[-1]
    totals = {name: len(split.shards) for name, split in manifest.splits.items()}
    if len(then) < 2 or last.digest != manifest.digest or last.labels != len(manifest.labels) or last.shards != totals:
        return "its last generation is not what it is"
    for before, after in pairwise(then):
        grows = all(number <= after.shards.get(name, -1) for name, number in before.shards.items())
        if not grows or before.labels > after.labels:
            return "a generation has less than the one before"
    return ""


def generation_folder(generation: int) -> str:
    """Where the files of a generation lie in their dataset, with a slash at its end; "" for the first one."""
    return f"generation-{generation:05d}/" if generation > 1 else ""


def check_files(
    manifest: Manifest,
    directory: str | os.PathLike[str],
    split: str,
    *,
    flag: str = "--data",
    remedy: str = _RESTORE,
    mirrored: bool = False,
) -> np.ndarray:
    """Hold every shard of `split` against the manifest and return the split's index.

    Reads file sizes and indexes, no records: a missing, renamed, empty, truncated or replaced shard and a
    stale index are found here; flipped bits inside a shard are found when its records are read.

    Args:
      mirrored: a shard that is not here lies in an object store (`pipeline.remote`), which was looked at.

    Returns:
      int64 [records, 3]: shard number, offset and framed size in bytes of each record of the split.

    Raises:
      UsageError: naming each faulty file (the first five) and the remedy.
    """
    faults: list[str] = []
    rows = np.empty((manifest.split(split).records, 3), np.int64)
    end = 0
    for number, shard in enumerate(manifest.split(split).shards):
        path = shard_path(directory, shard)
        try:
            size = shard.bytes if mirrored and not path.exists() else path.stat().st_size
            index = load_index(index_path(path), shard.records)
        except FileNotFoundError as error:
            faults.append(f"{os.path.basename(error.filename)} is missing")
            continue
        except OSError as error:
            faults.append(f"{os.path.basename(error.filename or path)} cannot be read ({error.strerror})")
            continue
        except ValueError as error:
            faults.append(f"{index_path(path).name} is damaged ({error})")
            continue
        if size != shard.bytes:
            faults.append(f"{shard.file} has {size:,} bytes, not {shard.bytes:,}")
        elif not _fits(index, shard, gaps=manifest.adopted):
            faults.append(f"{index_path(path).name} does not fit its shard")
        else:
            start, end = end, end + len(index)
            rows[start:end, 0] = number
            rows[start:end, 1:] = index
    refuse_faults(faults, f"{flag}={directory}", remedy)
    return rows


def check_sizes(
    shards: Sequence[Shard], directory: str | os.PathLike[str], faults: Sequence[str] = (), *, mirrored: bool = False
) -> None:
    """Hold the size of every shard against the manifest. Arguments are those of `check_files`, and `faults` so far.

    Raises:
      UsageError: naming each faulty file (the first five) and the remedy.
    """
    found = list(faults)
    for shard in shards:
        path = shard_path(directory, shard)
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            if not mirrored:
                found.append(f"{os.path.basename(path)} is missing")
            continue
        if size != shard.bytes:
            found.append(f"{shard.file} has {size:,} bytes, not {shard.bytes:,}")
    refuse_faults(found, f"--data={directory}", _RESTORE)


def refuse_faults(faults: Sequence[str], what: str, remedy: str) -> None:
    """Raise UsageError where files have faults: the first five, how many more, and the remedy."""
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise UsageError(f"{what}: {'; '.join(faults[:5])}{more}; {remedy}")


def _fits(index: np.ndarray, shard: Shard, *, gaps: bool) -> bool:
    """Whether the records lie end to end from byte 0 to the last; with gaps, where adoption left records out."""
    ends = index.sum(axis=1)
    if len(index) != shard.records or np.any(index > shard.bytes) or np.any(index[:, 1] < FRAME_BYTES):
        return False  # nor does any sum of such numbers overflow
    between = index[:, 0] - np.concatenate(([0], ends))[:-1]
    rest = shard.bytes - (int(ends[-1]) if len(index) else 0)
    return bool(np.all(between >= 0)) and rest >= 0 if gaps else not (np.any(between) or rest)


def shard_name(name: str, split: str, number: int, count: int) -> str:
    """TFDS's file name of a shard: `flowers-train.tfrecord-00000-of-00016`."""
    return f"{name}-{split}.tfrecord-{number:05d}-of-{count:05d}"


def shard_path(directory: str | os.PathLike[str], shard: Shard) -> Path:
    """Where a shard lies: in the dataset's own directory or a folder of it, whatever its manifest says."""
    folder, _, name = shard.file.rpartition("/")
    place = stored.stored_path(directory, folder, r"(?!\.).+", what=FILE_NAME) if folder else directory
    return stored.stored_path(place, name, r"(?!\.).+", what=FILE_NAME)


def index_path(shard: str | os.PathLike[str]) -> Path:
    """Where a shard's index lies: beside it, with `.idx` appended."""
    return Path(f"{os.fspath(shard)}.idx")


def write_index(path: str | os.PathLike[str], index: np.ndarray) -> None:
    """Write NVIDIA DALI's `tfrecord2idx` format: a line "offset size" a record, in bytes, frame included."""
    atomic_write(path, "".join(f"{offset} {size}\n" for offset, size in index.tolist()))


def write_shard_file(path: str | os.PathLike[str], framed: Sequence[bytes]) -> Shard:
    """Write framed records, held in memory, as one shard with its index; returns the manifest's entry."""
    content = b"".join(framed)
    atomic_write(path, content)
    sizes = np.array([len(record) for record in framed], np.int64)
    write_index(index_path(path), np.column_stack((np.cumsum(sizes) - sizes, sizes)))
    return Shard(Path(path).name, len(framed), len(content), hashlib.sha256(content).hexdigest())


def load_index(path: str | os.PathLike[str], records: int | None = None) -> np.ndarray:
    """Read an index: int64 [records, 2], offset and framed size in bytes.

    Args:
      path: of the file.
      records: how many there are at most; None for any number.

    Raises:
      OSError: there is no such file, or it cannot be read.
      ValueError: it is damaged or far too large.
    """
    with open_regular(path) as file:
        if records is not None and os.fstat(file.fileno()).st_size > records * _LINE_BYTES:
            raise ValueError(f"more bytes than {records:,} records need")
        data = file.read()
    lines = data.count(b"\n")
    # What NumPy's parser would pass over.
    if data.translate(None, b"0123456789 \n") or data.count(b" ") != lines or (data and data[-1:] != b"\n"):
        raise ValueError("not a line of two numbers for each record")
    numbers = np.fromstring(data, dtype=np.int64, sep=" ")  # 14 M records/s
    if len(numbers) != 2 * lines:
        raise ValueError("a line without two numbers")
    return numbers.reshape(-1, 2)


_LINE_BYTES = 2 * 20 + 2  # of an index, at most
