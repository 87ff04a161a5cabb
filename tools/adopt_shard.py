"""The unit of work of an adoption: one TFRecord file read from its first byte to its last. No TensorFlow."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from shardline.pipeline.encodings import ENCODINGS, recognize
from shardline.pipeline.errors import Failure
from shardline.pipeline.example import Example, feature_values, label_text, parse_example
from shardline.pipeline.executors import WHY, Show, Task, no_show
from shardline.pipeline.manifest import NO_LABEL, Features, Shard, index_path, write_index
from shardline.pipeline.source_files import machine_fault
from shardline.pipeline.tfrecord import index_records, unframe_record
from shardline.pipeline.wording import count

SAMPLE = 32  # images of a file that are decoded when not all are


@dataclass(frozen=True)
class ShardFile(Task):
    """One file to adopt. Positions are byte offsets: how many records there are is not known yet."""

    directory: str
    file: str  # relative path
    features: Features
    unlabelled: bool
    decode_all: bool = True

    def __len__(self) -> int:
        return os.path.getsize(self.path)

    @property
    def path(self) -> str:
        """Where it lies."""
        return os.path.join(self.directory, self.file)

    def describe(self, position: int) -> str:
        """File and offset."""
        return f"{self.file}, byte {position:,}"


@dataclass
class ShardContent:
    """What one file holds.

    Attributes:
      shard: its entry in the manifest; without the records that are left out.
      labels: records of each label, which is text where labels are names.
      encodings: records of each encoding.
      faults: what is wrong with which records, which are left out: of the first ten; `faulty` counts all.
      without_label: records left out because their label is -1, TFDS's mark of an image without one.
      images: encoded ones, sound or not.
      decoded: how many of them were decoded.
      turned: images with an EXIF orientation.
      widths: lengths of one-hot labels.
    """

    shard: Shard
    labels: Counter[int | str] = field(default_factory=Counter)
    encodings: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    faulty: int = 0
    without_label: int = 0
    images: int = 0
    decoded: int = 0
    turned: int = 0
    max_height: int = 0
    max_width: int = 0
    widths: set[int] = field(default_factory=set)

    def add_fault(self, offset: int, what: str) -> None:
        """Count and, while there are few, keep."""
        self.faulty += 1
        if len(self.faults) < 10:
            self.faults.append(f"byte {offset:,}: {what}")


def read_shard(task: ShardFile, show: Show = no_show) -> ShardContent:
    """Check every record of a file, and write the index of those that can be used beside it."""
    from shardline.pipeline.images import set_up_process  # OpenCV: not for --help

    set_up_process()
    try:
        index = index_records(task.path)
    except ValueError as error:
        raise Failure(f"{task.path}: {error}") from None
    content = ShardContent(Shard(task.file, 0, os.path.getsize(task.path), ""))
    digest = hashlib.sha256()
    kept = np.ones(len(index), bool)
    step = 1 if task.decode_all else -(-len(index) // SAMPLE)
    with open(task.path, "rb") as data:
        for number, (offset, size) in enumerate(index.tolist()):
            show(offset, decoding=True)
            framed = data.read(size)
            digest.update(framed)
            if reason := dict(task.unsafe).get(offset):
                content.add_fault(offset, f"{reason}: {WHY[reason]}")
                kept[number] = False
                continue
            try:
                kept[number] = _add(content, unframe_record(framed), task, decode=not number % step)
            except ValueError as error:
                content.add_fault(offset, str(error))
                kept[number] = False
            except MemoryError:
                raise machine_fault(task.file, "out of memory; use fewer --workers") from None
    write_index(index_path(task.path), index[kept])
    content.shard = replace(content.shard, records=int(kept.sum()), sha256=digest.hexdigest())
    return content


def _add(content: ShardContent, payload: bytes, task: ShardFile, *, decode: bool) -> bool:
    """Add what one record holds; False for one without a label. Raises ValueError for one that cannot be used."""
    features = task.features
    label, example = _labelled(content, payload, features, task.unlabelled)
    if label is None and not task.unlabelled:
        content.without_label += 1
        return False
    _add_image(content, example, decode)
    if label is not None:
        content.labels[label] += 1
    return True


def _labelled(
    content: ShardContent, payload: bytes, features: Features, unlabelled: bool
) -> tuple[int | str | None, Example]:
    """The label, as text where labels are names, and None where there is none; and the record."""
    if unlabelled:
        return None, parse_example(payload, replace(features, label=""))
    values = feature_values(payload, features.label)
    if features.label_kind == "onehot":
        content.widths.add(len(values))
    elif len(values) > 1:
        raise ValueError(f"feature {features.label!r} holds {len(values)} labels; shardline takes one label an image")
    if features.label_kind == "name":
        example = parse_example(payload, replace(features, label=""))
        if not values or not isinstance(values[0], bytes):
            raise ValueError(f"feature {features.label!r} holds no text")
        return label_text(values[0]), example
    example = parse_example(payload, features)
    stored = example.label - features.label_offset
    return None if stored == NO_LABEL and features.label_offset <= 0 else example.label, example


def _add_image(content: ShardContent, example: Example, decode: bool) -> None:
    """Raises BadImage, a ValueError."""
    from shardline.pipeline.image_headers import read_header  # OpenCV: not for --help
    from shardline.pipeline.image_types import BadImage

    encoding = recognize(example)
    if encoding == "raw":
        height, width = example.height, example.width
    else:
        data = bytes(example.image)
        try:
            header = read_header(data)
        except BadImage as error:
            raise ValueError(f"{error}{_raw_hint(example)}") from None
        content.images += 1
        if decode:
            content.decoded += 1
            ENCODINGS[encoding].decode(example, exact=True)
        height, width = header.shown
        content.turned += header.orientation != 1
    content.encodings[encoding] += 1
    content.max_height, content.max_width = max(content.max_height, height), max(content.max_width, width)


def _raw_hint(example: Example) -> str:
    """What the bytes may be instead of an image file, told by their number."""
    pixels, size = example.height * example.width, len(example.image)
    only = "; of raw pixels, only height*width*3 bytes (uint8, RGB) are read"
    if not pixels:
        return f"{only}, in records with features height and width"
    for channels, samples in ((1, 1), (4, 1), (1, 4), (3, 4), (3, 8), (1, 8), (1, 2), (3, 2)):
        if size == pixels * channels * samples:
            kind = f"{example.height}x{example.width}x{channels} samples of {count(samples, 'byte')}"
            return f": perhaps {kind}{only}"
    return f"; {size:,} bytes are not {example.height}x{example.width}x3 raw pixels either"
