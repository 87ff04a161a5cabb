"""Small image folders for the converter's tests, and the converter itself without a new interpreter."""

import contextlib
import hashlib
import importlib
import io
import signal
import sys
from pathlib import Path

import cv2
import numpy as np
from absl import flags

from shardline.pipeline import cli
from shardline.pipeline.example import parse_example
from shardline.pipeline.images import ImageOptions
from shardline.pipeline.manifest import Manifest, check_files
from shardline.pipeline.tfrecord import unframe_record
from shardline.tools.conversion.run import Config

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
    image = ImageOptions(size=changes.pop("size", 16), **changes.pop("image", {}))
    changes = {"engine": "inline", "splits": {}, "report": False, **changes}
    return Config(source=str(source), output=Path(output), name="images", image=image, **changes)


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


_flags_of: dict[str, dict[str, flags.Flag]] = {}


def command(name):
    """A command's module. Commands define flags of the same names, so its flags leave absl's register at once."""
    before = set(flags.FLAGS)
    module = importlib.import_module(name)
    if name not in _flags_of:
        getattr(module, "define_flags", lambda: None)()  # of those that define none on import
        _flags_of[name] = {flag: flags.FLAGS[flag] for flag in set(flags.FLAGS) - before}
        for flag in _flags_of[name]:
            delattr(flags.FLAGS, flag)
    return module


class Run:
    """A command with arguments, in this process: the same parsing, messages and exit codes."""

    def __init__(self, name, *args):
        out, err, argv = io.StringIO(), io.StringIO(), sys.argv
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        module, mine = command(name), _flags_of[name]
        for flag_name, flag in mine.items():
            flags.FLAGS[flag_name] = flag
            flag.unparse()
        sys.argv = [name, *map(str, args)]
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                cli.run(module.main)
        except SystemExit as stop:
            self.code = stop.code
        finally:
            flags.FLAGS.unparse_flags()
            for flag_name in mine:
                delattr(flags.FLAGS, flag_name)
            sys.argv = argv
            for number, handler in handlers.items():
                signal.signal(number, handler)
        self.stdout, self.stderr = out.getvalue(), err.getvalue()
