"""Targets of the fuzzer: archives of images, files of labels and words, and settings that a conversion is given."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile

from shardline.pipeline.config_file import read_config_file
from shardline.pipeline.errors import UsageError
from shardline.tools.conversion.archives import open_archive
from shardline.tools.conversion.config import ConvertConfig
from shardline.tools.conversion.label_files import read_class_words, read_label_order, read_split_labels
from tests.fuzz.target import Target, written

MEMBERS = {"cat/1.jpg": b"x" * 30, "dog/deep/2.png": b"y", "dog/3.jpg": b""}


def zips() -> list[bytes]:
    packed = []
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", kind) as archive:
            for name, data in MEMBERS.items():
                archive.writestr(name, data)
        packed.append(buffer.getvalue())
    return packed


def tars() -> list[bytes]:
    packed = []
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
            for name, data in {**MEMBERS, f"{'long' * 20}/{'name' * 20}.jpg": b"z"}.items():
                facts = tarfile.TarInfo(name)
                facts.size = len(data)
                archive.addfile(facts, io.BytesIO(data))
        packed.append(buffer.getvalue())
    return packed


def members(name: str, data: bytes) -> None:
    """What is listed lies within the archive, and no name leads out of it."""
    tree = open_archive(str(written(name, data)))
    folders = [b""]
    while folders:
        folder = folders.pop()
        for entry in tree.entries(folder):
            assert entry.name not in (b"", b".", b"..") and b"/" not in entry.name and b"\0" not in entry.name
            if entry.is_folder:
                folders.append(folder + b"/" + entry.name if folder else entry.name)


def settings(name: str, data: bytes) -> None:
    read_config_file(str(written(name, data)), ConvertConfig)


SETTINGS = {"source": ["photos"], "output": "data", "size": 224, "splits": "train=0.9,test=0.1", "report": True}
TOML = b'source = ["photos"]\noutput = "data"\nsize = 224\nreport = true\n'
YAML = b"source: [photos]\noutput: data\nsize: 224\nsplits: train=0.9,test=0.1\n"
WORDS = [b"n01 tench\nn02 goldfish, Carassius\n", json.dumps({"0": ["n01", "tench"], "1": ["n02", "shark"]}).encode()]
LABELS = [b"a.jpg cat\nb.jpg dog\n", b"1\n2\n1\n", b"path,label\na.jpg,cat\n", b"image_id,label\na,cat\n"]

TARGETS = {
    "zip": Target(lambda data: members("x.zip", data), zips, (UsageError,)),
    "tar": Target(lambda data: members("x.tar", data), tars, (UsageError,)),
    "class_words": Target(lambda data: read_class_words(str(written("words", data))), lambda: WORDS, (UsageError,)),
    "label_order": Target(
        lambda data: read_label_order(str(written("order", data))),
        lambda: [b"1 cat\n2 dog\n", b"cat\ndog\n"],
        (UsageError,),
    ),
    "split_labels": Target(
        lambda data: read_split_labels("--split_labels", str(written("labels", data)), {1: "cat", 2: "dog"}),
        lambda: LABELS,
        (UsageError,),
    ),
    "settings_toml": Target(lambda data: settings("x.toml", data), lambda: [TOML], (UsageError,)),
    "settings_yaml": Target(lambda data: settings("x.yaml", data), lambda: [YAML], (UsageError,)),
    "settings_json": Target(
        lambda data: settings("x.json", data), lambda: [json.dumps(SETTINGS).encode()], (UsageError,)
    ),
}
