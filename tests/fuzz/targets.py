"""What the fuzzer feeds: every reader of bytes that may come from elsewhere, with seeds and the errors it may raise.

This file has the readers of images and datasets, sources.py those of what a conversion is given, trained.py those of
runs, evaluations and reports. A target may raise `allowed`, and nothing else, and it must come to an end. Some hold the
result against a second opinion, so that a wrong answer counts as a crash, too.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from functools import cache
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa

from shardline.pipeline.cache import DirectoryCache
from shardline.pipeline.errors import UsageError
from shardline.pipeline.example import encode_example, feature_kinds, parse_example
from shardline.pipeline.image_headers import read_header
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.image_types import BadImage
from shardline.pipeline.images import process, set_up_process
from shardline.pipeline.manifest import (
    FILE_NAME,
    FORMAT,
    Features,
    Manifest,
    check_files,
    index_path,
    load_index,
    shard_name,
)
from shardline.pipeline.sources_table import ROW, SOURCES, SOURCES_FILE, read_sources, sources_writer
from shardline.pipeline.stored_arrays import load_arrays, save_arrays
from shardline.pipeline.tfrecord import frame_record, index_records, unframe_record
from shardline.tools import malformed_images
from shardline.tools.conversion.labels import read_class_names
from shardline.tools.conversion.scan import scan
from shardline.tools.conversion.shard_writer import (
    _HEAD_BYTES,
    RECEIPT_FORMAT,
    ShardResult,
    load_receipt,
    receipt_path,
    write_receipt,
)
from shardline.tools.conversion.tfds_metadata import read_tfds_metadata
from tests.fuzz import sources, trained
from tests.fuzz.target import SOURCE, WORK, Target, sealed, written
from tests.pipeline.tiny import write_dataset

# ------------------------------------------------------------------------------------------------ images


def images() -> list[bytes]:
    """Ours, and small ones out of the folder that `--source` names."""
    folder = os.environ.get(SOURCE)
    given = sorted(path for path in Path(folder).rglob("*") if path.is_file()) if folder else []
    small = [path.read_bytes() for path in given if path.stat().st_size < 40_000]
    return [case.data for case in malformed_images.cases() if len(case.data) < 40_000] + small[:300]


def decode(data: bytes) -> None:
    set_up_process()
    image = process(data, ImageOptions(size=24, max_megapixels=1))
    assert image.height > 0 and image.width > 0 and image.data[:2] == b"\xff\xd8"


# ----------------------------------------------------------------------------------------------- records


def framed() -> list[bytes]:
    record = frame_record(encode_example(b"x" * 20, 3, "a.jpg", 4, 5))
    return [record, record * 3, b"", frame_record(b"")]


def records(data: bytes) -> None:
    path = written("records", data)
    index = index_records(path)
    assert index[:, 1].sum() == len(data)
    for offset, size in index.tolist():
        try:
            unframe_record(data[offset : offset + size])
        except ValueError:
            continue
        # What is taken for sound is what would be written.
        assert frame_record(data[offset + 12 : offset + size - 4]) == data[offset : offset + size]


def examples() -> list[bytes]:
    foreign = b"\n\x12\n\x10\n\x05label\x12\x07\x1a\x05\x08\x01\x08\x02\x08"
    return [encode_example(b"x" * 200, 3, "a/b.jpg", 400, 300), encode_example(b"", 0, "", 0, 0), foreign]


def example(data: bytes) -> None:
    feature_kinds(data)
    found = parse_example(data, Features())
    assert len(found.image) <= len(data) and -(2**63) <= found.label < 2**63


# ---------------------------------------------------------------------------------------------- datasets


@cache
def dataset() -> Path:
    split = [encode_example(b"x" * 20, i % 3, "a.jpg", 4, 5) for i in range(7)]
    return write_dataset(WORK / "dataset", {"train": split}, shards=2)


@cache
def manifests() -> list[bytes]:
    return [(dataset() / FILE_NAME).read_bytes()]


def manifest(data: bytes) -> None:
    (dataset() / FILE_NAME).write_bytes(data)
    found = Manifest.load(dataset())
    for split in found.splits:
        check_files(found, dataset(), split)


class Forged(Manifest):
    """The manifest of somebody who makes its digest right."""

    @property
    def digest(self) -> str:
        return "0" * 64


def bodies() -> list[bytes]:
    """A manifest's content without format and checksum, as mutations would never get past these."""
    content = json.loads(manifests()[0])
    del content["format"], content["checksum"]
    return [json.dumps({**content, "digest": "0" * 64}).encode()]


def sealed_manifest(data: bytes) -> None:
    """The same for somebody who knows how checksum and digest are made."""
    if not sealed(dataset() / FILE_NAME, FORMAT, data):
        return
    found = Forged.load(dataset())
    for name, split in found.splits.items():
        for number, shard in enumerate(split.shards):
            assert found.adopted or shard.file == shard_name(found.name, name, number, len(split.shards))
        check_files(found, dataset(), name)


def indexes() -> list[bytes]:
    return [path.read_bytes() for path in sorted(dataset().glob("*.idx"))] + [b"0 18446744073709551616\n"]


def index(data: bytes) -> None:
    found = load_index(written("index", data))
    text = data.decode("ascii").split()
    assert found.ravel().tolist() == [min(int(number), 2**63 - 1) for number in text]


def shard_index(data: bytes) -> None:
    """An index that is taken for its shard's is the shard's."""
    (dataset() / FILE_NAME).write_bytes(manifests()[0])
    (shard, *_) = Manifest.load(dataset()).split("train").shards
    path = index_path(dataset() / shard.file)
    good = path.read_bytes()
    try:
        path.write_bytes(data)
        rows = check_files(Manifest.load(dataset()), dataset(), "train")
        assert np.array_equal(rows[rows[:, 0] == 0][:, 1:], index_records(dataset() / shard.file))
    finally:
        path.write_bytes(good)


@cache
def array_files() -> list[bytes]:
    save_arrays(WORK / "seed.npz", {"step": 7}, {"a": np.arange(6.0).reshape(2, 3), "b": np.array(3)}, format="x")
    return [(WORK / "seed.npz").read_bytes()]


def arrays(data: bytes) -> None:
    """With the last checksum made right: nobody gets past it by chance."""
    data = data[:-15] + b"crc32c " + google_crc32c.Checksum(data[:-15] + b"crc32c ").hexdigest()
    header, found = load_arrays(written("arrays.npz", data), format="x", remedy="remedy")
    assert header == {"step": 7} and np.array_equal(found["a"], np.arange(6.0).reshape(2, 3)) and found["b"] == 3


# ------------------------------------------------------------------------------------------- tables, text


def tables() -> list[bytes]:
    text = io.StringIO()
    csv.writer(text).writerows(
        [["path", "label", "split", "group"], ["a.jpg", "x", "train", "1"], ["b", "y", "test", ""]]
    )
    (WORK / "a.jpg").write_bytes(b"x")
    return [text.getvalue().encode(), b'\xef\xbb\xbfpath,label\r\n"a.jpg","1"\r\na.jpg,10\r\n']


def table(data: bytes) -> None:
    sources = scan(str(written("table.csv", data)))
    assert len(sources.label) == len(sources) and (sources.label < len(sources.labels)).all()
    list(sources.paths())


def class_names(data: bytes) -> None:
    names = read_class_names(str(written("names.txt", data)))
    assert names and len(set(names)) == len(names)


INFO = {
    "name": "toy",
    "fileFormat": "tfrecord",
    "splits": [{"name": "train", "shardLengths": ["2", "3"], "filepathTemplate": "{DATASET}-{SPLIT}.x-{SHARD_X_OF_Y}"}],
}
FEATURES = {
    "featuresDict": {
        "features": {
            "image": {"pythonClassName": "x.Image", "image": {"encodingFormat": "jpeg"}},
            "label": {"pythonClassName": "x.ClassLabel", "classLabel": {"numClasses": "3"}},
        }
    }
}


def tfds_metadata(data: bytes) -> None:
    info, _, features = data.partition(b"\0")
    written("dataset_info.json", info)
    written("features.json", features)
    layout = read_tfds_metadata(WORK, "--data=x")
    for files in layout.splits.values():
        assert not any(re.search(r"[/\0]", file) for file in files)


# ------------------------------------------------------------------------------------ unfinished and kept


@cache
def receipts() -> list[bytes]:
    """Without the line that carries the checksum."""
    (WORK / "shard").write_bytes(b"x" * 30)
    values = {name: pa.nulls(3, kind) for name, kind in zip(ROW.names, ROW.types, strict=True)}
    rows = pa.table({**values, "input": pa.array([4, 5, 6], pa.uint32())}, schema=ROW)
    sha256 = hashlib.sha256(b"x" * 30).hexdigest()
    result = ShardResult(str(WORK / "shard"), "0" * 64, 3, 30, sha256, 3, 0, 0, 0.5)
    write_receipt(result, rows)
    return [receipt_path(result.output).read_bytes()[_HEAD_BYTES:]]


def receipt(data: bytes) -> None:
    """A receipt that is taken is that of this shard, these inputs and this plan."""
    head = f"{RECEIPT_FORMAT} {hashlib.sha256(data).hexdigest()}".ljust(_HEAD_BYTES - 1) + "\n"
    receipt_path(WORK / "shard").write_bytes(head.encode() + data)
    found = load_receipt(str(WORK / "shard"), "0" * 64, np.array([4, 5, 6]))
    if found:
        assert (found.bytes, found.sha256) == (30, hashlib.sha256(b"x" * 30).hexdigest())
        found.rows()


@cache
def source_tables() -> list[bytes]:
    values = {field.name: pa.array(["" if pa.types.is_string(field.type) else 0] * 2, field.type) for field in SOURCES}
    with sources_writer(WORK) as write:
        write(pa.table(values, schema=SOURCES))
    return [(WORK / SOURCES_FILE).read_bytes()]


def sources_table(data: bytes) -> None:
    written(SOURCES_FILE, data)
    read_sources(WORK, SOURCES.names)


@cache
def pixel_caches() -> list[bytes]:
    """The index, then the pixels, of a cache of one image out of two."""
    kept = DirectoryCache(str(WORK), "kept", 2, 1)
    kept.put(1, np.arange(24, dtype=np.uint8).reshape(2, 4, 3), 7)
    del kept
    return [(WORK / "kept.index").read_bytes() + (WORK / "kept.pixels").read_bytes()]


def pixel_cache(data: bytes) -> None:
    """What a damaged cache gives is what was stored, or nothing."""
    written("kept.index", data[:80])
    written("kept.pixels", data[80:])
    kept = DirectoryCache(str(WORK), "kept", 2, 1)
    assert kept.get(0) is None
    found = kept.get(1)
    assert found is None or (found[1] == 7 and found[0].tobytes() == bytes(range(24)))


TARGETS: dict[str, Target] = {
    "image_header": Target(read_header, images, (BadImage,)),
    "image": Target(decode, images, (BadImage,)),
    "tfrecord": Target(records, framed, (ValueError,)),
    "example": Target(example, examples, (ValueError,)),
    "manifest": Target(manifest, manifests, (UsageError,)),
    "sealed_manifest": Target(sealed_manifest, bodies, (UsageError,)),
    "index": Target(index, indexes, (ValueError,)),
    "shard_index": Target(shard_index, indexes, (UsageError,)),
    "arrays": Target(arrays, array_files, (UsageError,)),
    "table": Target(table, tables, (UsageError,)),
    "class_names": Target(class_names, lambda: [b"a\nb\n", b"\xef\xbb\xbfa\r\nb"], (UsageError,)),
    "tfds_metadata": Target(
        tfds_metadata, lambda: [json.dumps(INFO).encode() + b"\0" + json.dumps(FEATURES).encode()], (UsageError,)
    ),
    "receipt": Target(receipt, receipts, ()),
    "sources_table": Target(sources_table, source_tables, (UsageError,)),
    "pixel_cache": Target(pixel_cache, pixel_caches, ()),
    **sources.TARGETS,
    **trained.TARGETS,
}
