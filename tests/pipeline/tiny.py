"""Small datasets for the reading tests, written with the shared core alone."""

import json

import cv2
import numpy as np

from shardline.pipeline import stored
from shardline.pipeline.example import encode_example
from shardline.pipeline.manifest import Features, ImageFormat, Ledger, Manifest, Split, shard_name, write_shard_file
from shardline.pipeline.tfrecord import frame_record

LABELS = ("cat", "dog", "emu")


def image(number, height, width):
    """A smooth image that differs from number to number, so that JPEG keeps it nearly as it is."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    rng = np.random.default_rng(number)
    waves = [np.sin(x * fx + y * fy + p) for fx, fy, p in rng.uniform((0.02, 0.02, 0), (0.15, 0.15, 6), (3, 3))]
    return np.uint8(np.clip(127 + 100 * np.stack(waves, -1), 0, 255))


def encode(pixels, encoding):
    if encoding == "raw":
        return pixels.tobytes()
    options = {"jpeg": (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 95]), "png": (".png", [])}[encoding]
    ok, data = cv2.imencode(options[0], cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options[1])
    assert ok
    return data.tobytes()


def payloads(count, encoding="jpeg"):
    """Serialized examples of `count` images of varied size and label."""
    for number in range(count):
        height, width = 40 + number * 7 % 17, 36 + number * 5 % 29
        data = encode(image(number, height, width), encoding)
        yield encode_example(data, number % len(LABELS), f"{number}.jpg", height, width)


def write_split(directory, split, records, shards=3, name="tiny"):
    """Write serialized examples as shards with their indexes; returns the manifest's entry."""
    records, entries = list(records), []
    for number in range(shards):
        part = records[len(records) * number // shards : len(records) * (number + 1) // shards]
        framed = [frame_record(record) for record in part]
        entries.append(write_shard_file(directory / shard_name(name, split, number, shards), framed))
    return Split(split, tuple(entries))


def write_dataset(directory, splits, *, encoding="jpeg", features=Features(), labels=LABELS, shards=3):
    """A dataset of {split: serialized examples}; returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    splits = {name: write_split(directory, name, list(records), shards) for name, records in splits.items()}
    count = sum(split.records for split in splits.values())
    Manifest(
        name="tiny",
        labels=labels,
        splits=splits,
        ledger=Ledger(inputs=count, written=count),
        features=features,
        image=ImageFormat(encoding=encoding, max_height=56, max_width=64),
    ).save(directory)
    return directory


def edit_stored(path, change):
    """Change the content of a stored JSON file as somebody would who knows how its checksum is made."""
    content = json.loads(path.read_text())
    change(content)
    stored.save(path, {k: v for k, v in content.items() if k not in ("format", "checksum")}, format=content["format"])
