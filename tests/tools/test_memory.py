"""Memory: the parent of a conversion of ten million inputs stays below a gigabyte; a worker stays small."""

import json
import os
import subprocess
import sys

import pytest

from tests.tools.folders import ROOT, draw

SCRIPT = """
import hashlib, json, resource, sys
import numpy as np
import tools.conversion, tools.ledger, tools.scan, tools.shard, tools.convert_report, tools.workspace
from pipeline.records import encode_example, frame_record
from tools.shard import ROW, ShardReceipt, _write_receipt
from pathlib import Path
from tests.tools.folders import config

count, output, picture = int(sys.argv[1]), sys.argv[2], open(sys.argv[3], "rb").read()

def scan(source, tick=None, **options):
    builder = tools.scan.Builder()
    for label in range(1000):
        folder = builder.enter(b"n%08d" % label)
        for i in range(count // 1000):
            builder.add(folder, b"n%08d_%06d.JPEG" % (label, i), label, -1, 110_000, 10**18 + i)
    labels = [f"n{label:08d}" for label in range(1000)]
    return builder.finish("/nowhere", labels, (), np.arange(1000), ())

framed = frame_record(encode_example(picture, 0, "x", 12, 16))

def write_shard(task, tick=None):  # what a worker would leave behind, without its work
    rows = {name: [] for name in ROW}
    digest = hashlib.sha256()
    with open(task.output, "wb") as file:
        for position, (number, path, label) in enumerate(task.inputs):
            looks = hashlib.sha256(path).hexdigest()
            row = {"input": number, "path": path.decode(), "label": label, "status": "written", "sha256": looks,
                   "bytes": 110_000, "format": "jpeg", "source_height": 375, "source_width": 500, "height": 12,
                   "width": 16, "offset": position * len(framed), "size": len(framed), "pixel_hash": looks,
                   "perceptual_hash": int(looks[:16], 16)}
            for name, default in ROW.items():
                rows[name].append(row.get(name, default))
            file.write(framed)
            digest.update(framed)
    receipt = ShardReceipt(task.output, task.digest, len(task), len(task) * len(framed), digest.hexdigest(), len(task))
    _write_receipt(receipt, rows)
    return receipt

tools.conversion.scan = scan
tools.conversion.write_shard = write_shard
shares = {"train": 0.9, "test": 0.1}
manifest = tools.conversion.convert(config("/nowhere", output, size=256, report=True, splits=shares))
assert manifest.ledger.written == count
print(json.dumps({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def peak_of_parent(count, tmp_path):
    picture = draw(tmp_path / "x.jpg", 1, height=12, width=16)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(count), str(tmp_path / "d"), str(picture)],
        capture_output=True, text=True, env=env,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])["peak_mb"]


@pytest.mark.slow
def test_the_parent_stays_below_a_gigabyte_at_ten_million_inputs(tmp_path):
    assert peak_of_parent(10_000_000, tmp_path) < 1000


def test_the_parent_needs_few_bytes_an_input(tmp_path):
    few, many = peak_of_parent(1_000, tmp_path / "few"), peak_of_parent(51_000, tmp_path / "many")
    assert (many - few) * 2**20 / 50_000 < 1000  # what a small run shows: pieces of tables dominate here
