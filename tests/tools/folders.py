"""Small image folders for the converter's tests, and the converter itself without a new interpreter."""

import contextlib
import hashlib
import importlib
import io
import re
import signal
import sys
from pathlib import Path

import cv2
import numpy as np

from shardline.pipeline.example import parse_example
from shardline.pipeline.manifest import Manifest, check_files
from shardline.pipeline.tfrecord import unframe_record
from shardline.tools.conversion.config import ConvertConfig

ROOT = Path(__file__).parents[2]


def draw(path, seed, height=40, width=60):
    """A smooth random image: unlike any other, and small as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), np.uint8)
    assert cv2.imwrite(str(path), cv2.resize(coarse, (width, height)))
    return path


def class_folders(root, classes=3, images=8, prefix="", **size):
    for c in range(classes):
        for i in range(images):
            draw(root / prefix / f"class{c}" / f"img_{i:03d}.jpg", 1000 * c + i + 10**6 * len(prefix), **size)
    return root


def config(source, output, **changes):
    """A quick conversion: 16 pixels, inline, no report."""
    image = {"size": 16, **changes.pop("image", {})}
    return ConvertConfig(
        **{"source": source, "output": output, "name": "images", "engine": "inline", "report": False} | image | changes
    )


def records(directory, split):
    """Every stored example of a split, read through the index."""
    manifest = Manifest.load(directory)
    index = check_files(manifest, directory, split)
    files = [(Path(directory) / shard.file).read_bytes() for shard in manifest.split(split).shards]
    return [
        parse_example(unframe_record(files[shard][offset : offset + size]), manifest.features)
        for shard, offset, size in index.tolist()
    ]


def shard_hashes(directory):
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(directory).iterdir() if "tfrecord" in p.name
    }


class Run:
    """A command with arguments, in this process: the same parsing, messages and exit codes. Its `cli` if it is not that
    of a module of this name.
    """

    def __init__(self, name, *args, cli=None):
        out, err, argv = io.StringIO(), io.StringIO(), sys.argv
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        sys.argv = [*map(str, (name, *args))]
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                (cli or importlib.import_module(name).cli)()
        except SystemExit as stop:
            self.code = stop.code
        finally:
            sys.argv = argv
            for number, handler in handlers.items():
                signal.signal(number, handler)
        self.stdout, self.stderr = out.getvalue(), without_progress(err.getvalue())


def without_progress(stderr):
    """The messages, without what is being worked on, `convert: 60 images`, and how far, which a busy machine tells."""
    return re.sub(r"^[a-z][\w ]*: ([\d,]+ \w+|[\d,]+/[\d,]+ \w+, \d+%, .*)\n", "", stderr, flags=re.MULTILINE)
