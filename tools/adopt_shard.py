"""The unit of work of an adoption: one TFRecord file, or a part of a large one, record by record. No TensorFlow."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from shardline.pipeline.encodings import ENCODINGS, recognize
from shardline.pipeline.errors import Failure
from shardline.pipeline.example import Example, feature_kinds, feature_values, label_text, parse_example
from shardline.pipeline.executors import WHY, Show, Task, no_show
from shardline.pipeline.manifest import NO_LABEL, Features, Shard
from shardline.pipeline.source_files import machine_fault
from shardline.pipeline.tfrecord import index_records, unframe_record
from shardline.pipeline.wording import count

TEXTS = (  # features that name a class beside its number
    *("image/class/text", "class/text", "image/class/name", "class_name", "label_name", "label_text", "label/text"),
    *("class", "category"),
)
MOST_TEXTS = 100_000  # pairs of a label and its text; where they are more, each image has a text of its own
SAMPLE = 32  # images of a file that are decoded when not all are
MOST_FAULTS = 10  # of a file that are told in words
PART_BYTES = 256 << 20  # of a file, or of the part of a larger one that is read by itself


@dataclass(frozen=True)
class ShardFile(Task):
    """One file to adopt, or a part of it. Positions are byte offsets from `start`.

    Attributes:
      start, stop: byte offsets of the first record and of the end.
      first: number of the first record in the file.
      step: every how manieth record of the file is decoded; 0: to be found out, of a whole file.
    """

    directory: str
    file: str  # relative path
    features: Features
    unlabelled: bool
    decode_all: bool = True
    start: int = 0
    stop: int = 0
    first: int = 0
    step: int = 0

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def path(self) -> str:
        """Where it lies."""
        return os.path.join(self.directory, self.file)

    def describe(self, position: int) -> str:
        """File and offset."""
        return f"{self.file}, byte {self.start + position:,}"

    def parts(self) -> Iterator[ShardFile]:
        """Itself, or parts of some PART_BYTES that end between records. Raises Failure for a damaged large file."""
        size = os.path.getsize(self.path)
        if size <= PART_BYTES:
            yield replace(self, stop=size)
            return
        offsets = _index(self)[:, 0]
        firsts = np.unique(np.searchsorted(offsets, np.arange(0, size, PART_BYTES)))
        firsts = firsts[firsts < len(offsets)]
        edges = [*offsets[firsts].tolist(), size]
        for first, start, stop in zip(firsts.tolist(), edges[:-1], edges[1:], strict=True):
            yield replace(self, start=start, stop=stop, first=first, step=_step(self, len(offsets)))


@dataclass
class ShardContent:
    """What one file holds.

    Attributes:
      start, stop: the bytes that were read.
      index: offset and framed size of its records, without those that are left out.
      shard: its entry in the manifest; without the records that are left out; its SHA-256 is the first part's.
      labels: records of each label, which is text where labels are names.
      encodings: records of each encoding.
      faults: what is wrong with which records, which are left out: of the first ten; `faulty` counts all.
      without_label: records left out because their label is -1, TFDS's mark of an image without one.
      images: encoded ones, sound or not.
      decoded: how many of them were decoded.
      turned: images with an EXIF orientation.
      raw: images of raw pixels that were looked at.
      orders: how many of them seem to be stored in which other order than they are read.
      widths: lengths of one-hot labels.
      text: the feature with the class's name beside its number; None: not looked for.
      texts: records of each label and text.
    """

    start: int
    stop: int
    index: np.ndarray
    shard: Shard
    labels: Counter[int | str] = field(default_factory=Counter)
    encodings: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    faulty: int = 0
    without_label: int = 0
    images: int = 0
    decoded: int = 0
    turned: int = 0
    raw: int = 0
    orders: Counter[str] = field(default_factory=Counter)
    max_height: int = 0
    max_width: int = 0
    widths: set[int] = field(default_factory=set)
    text: str | None = None
    texts: Counter[tuple[int, str]] = field(default_factory=Counter)

    @property
    def held(self) -> int:
        """Its records, with those that are left out."""
        return self.shard.records + self.faulty + self.without_label

    def add_fault(self, offset: int, what: str) -> None:
        """Count and, while there are few, keep."""
        self.faulty += 1
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(f"byte {offset:,}: {what}")


def joined(parts: Sequence[ShardContent]) -> ShardContent:
    """What a file holds whose parts were read one by one."""
    first, *others = sorted(parts, key=lambda part: part.start)
    copies = {name: getattr(first, name).copy() for name in ("labels", "encodings", "orders", "texts", "widths")}
    whole = replace(first, **copies)
    for part in others:
        whole.labels.update(part.labels)
        whole.encodings.update(part.encodings)
        whole.orders.update(part.orders)
        whole.texts.update(part.texts)
        whole.widths |= part.widths
        whole.faults = [*whole.faults, *part.faults][:MOST_FAULTS]
        for name in ("faulty", "without_label", "images", "decoded", "turned", "raw"):
            setattr(whole, name, getattr(whole, name) + getattr(part, name))
        for name in ("max_height", "max_width", "stop"):
            setattr(whole, name, max(getattr(whole, name), getattr(part, name)))
    whole.index = np.concatenate([first.index, *(part.index for part in others)])
    whole.shard = replace(first.shard, records=len(whole.index))
    return whole


def read_shard(task: ShardFile, show: Show = no_show) -> ShardContent:
    """Check every record of a file or part. The first part has the SHA-256 of the file."""
    from shardline.pipeline.images import set_up_process  # OpenCV: not for --help

    set_up_process()
    index = _index(task)
    content = ShardContent(task.start, task.stop, index, Shard(task.file, 0, os.path.getsize(task.path), ""))
    digest = hashlib.sha256()
    kept = np.ones(len(index), bool)
    step = task.step or _step(task, len(index))
    unsafe = dict(task.unsafe)
    with open(task.path, "rb") as data:
        data.seek(task.start)
        for number, (offset, size) in enumerate(index.tolist()):
            show(offset - task.start, decoding=True)
            framed = data.read(size)
            digest.update(framed)
            if reason := unsafe.get(offset - task.start):
                content.add_fault(offset, f"{reason}: {WHY[reason]}")
                kept[number] = False
                continue
            try:
                decode = not (task.first + number) % step
                kept[number] = _add(content, unframe_record(framed), task, decode=decode)
            except ValueError as error:
                content.add_fault(offset, str(error))
                kept[number] = False
            except MemoryError:
                raise machine_fault(task.file, "out of memory; use fewer --workers") from None
        show(task.stop - task.start)
        while task.start == 0 and (rest := data.read(1 << 20)):
            digest.update(rest)
    content.index = index[kept]
    content.shard = replace(content.shard, records=len(content.index), sha256=digest.hexdigest())
    return content


def _index(task: ShardFile) -> np.ndarray:
    """Offset and framed size of the records of a file or part, int64 [records, 2]."""
    try:
        return index_records(task.path, task.start, task.stop)
    except ValueError as error:
        raise Failure(f"{task.path}: {error}") from None


def _step(task: ShardFile, records: int) -> int:
    return 1 if task.decode_all else -(-records // SAMPLE)


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
    if features.label_kind != "onehot" and len(values) > 1:
        raise ValueError(f"feature {features.label!r} holds {len(values)} labels; shardline takes one label an image")
    if features.label_kind == "name":
        example = parse_example(payload, replace(features, label=""))
        if not values or not isinstance(values[0], bytes):
            raise ValueError(f"feature {features.label!r} holds no text")
        return label_text(values[0]), example
    example = parse_example(payload, features)
    if features.label_kind == "onehot":
        content.widths.add(len(values))
    stored = example.label - features.label_offset
    if stored == NO_LABEL and features.label_offset <= 0:
        return None, example
    _add_text(content, payload, example.label)
    return example.label, example


def _add_text(content: ShardContent, payload: bytes, label: int) -> None:
    """Count the name that a record gives to its label's number."""
    if content.text is None:
        kinds = feature_kinds(payload)
        content.text = next((name for name in TEXTS if kinds.get(name) == "bytes"), "")
    for value in feature_values(payload, content.text)[:1] if content.text else ():
        pair = (label, label_text(value))
        if pair in content.texts or len(content.texts) < MOST_TEXTS:
            content.texts[pair] += 1


def _add_image(content: ShardContent, example: Example, decode: bool) -> None:
    """Raises BadImage, a ValueError."""
    from shardline.pipeline.image_headers import read_header  # OpenCV: not for --help
    from shardline.pipeline.image_types import BadImage

    encoding = recognize(example)
    if encoding == "raw":
        height, width = example.height, example.width
        content.raw += decode
        if decode and (order := _other_order(example)):
            content.orders[order] += 1
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


def _other_order(example: Example) -> str:
    """How else raw pixels seem to be stored, by which they would be clearly smoother; "" for as they are read.

    Of photographs of 28 x 28 to 300 x 200 pixels, the ratio is 1.0 at most as they are read, else 1.3 at least.
    """
    height, width = example.height, example.width
    levels = np.frombuffer(example.image, np.uint8).astype(np.int16)

    def roughness(channels: int, columns: int) -> float:
        steps = (channels, channels * columns)
        return sum(float(np.abs(levels[step:] - levels[:-step]).mean()) for step in steps)

    if min(height, width) < 2:
        return ""
    others = {"channel by channel": roughness(1, width), "with height and width exchanged": roughness(3, height)}
    other = min(others, key=others.__getitem__)
    return other if roughness(3, width) > 1.2 * others[other] > 0 else ""


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
