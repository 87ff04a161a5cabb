"""Ten million records: opened in seconds of CPU time, in memory of the index's size."""

import json
import subprocess
import sys

import numpy as np
import pytest

from shardline.pipeline.manifest import Ledger, Manifest, Shard, Split, index_path, shard_name, write_index

RECORDS, SHARDS, RECORD_BYTES = 10_000_000, 100, 120

OPEN = """
import json, re, sys, time
import numpy as np
started = time.process_time()
from shardline import pipeline
from shardline.pipeline.batches import BatchBuilder
from shardline.pipeline.manifest import ImageFormat
data = pipeline.open_dataset(sys.argv[1])
opened = time.process_time()
config = pipeline.InputConfig(global_batch_size=64, image_size=32, max_bad_records=10**9)
batches = BatchBuilder(data._shards["train"], config, ImageFormat("jpeg"))
records = batches.sampler.records(np.arange(10**13, 10**13 + 64))
ordered = time.process_time()
seen = np.zeros(data.num_records("train"), bool)
for start in range(0, len(seen), 1_000_000):
    seen[batches.sampler.records(np.arange(start, start + 1_000_000))] = True
print(json.dumps({
    "open": opened - started, "order": ordered - opened, "all": bool(seen.all()),
    # Not getrusage's maximum, which begins with that of the process that started this one.
    "peak": 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]),
}))
"""


@pytest.mark.slow  # writes 200 MB of indexes
def test_ten_million_records_open_in_seconds(tmp_path):
    each = RECORDS // SHARDS
    index = np.column_stack((np.arange(each) * RECORD_BYTES, np.full(each, RECORD_BYTES)))
    shards = []
    for number in range(SHARDS):
        path = tmp_path / shard_name("big", "train", number, SHARDS)
        with open(path, "wb") as file:
            file.truncate(each * RECORD_BYTES)  # sparse: only sizes and indexes are read at the start
        write_index(index_path(path), index)
        shards.append(Shard(path.name, each, each * RECORD_BYTES, "0" * 64))
    Manifest("big", ("a",), {"train": Split("train", tuple(shards))}, Ledger(RECORDS, RECORDS)).save(tmp_path)
    result = subprocess.run([sys.executable, "-c", OPEN, str(tmp_path)], capture_output=True, text=True, check=True)
    found = json.loads(result.stdout)
    print(found)
    assert found["all"]
    assert found["open"] < 10
    assert found["order"] < 10
    index_bytes = RECORDS * 3 * 8  # shard, offset and size of each record as 64-bit numbers
    assert found["peak"] < 2.5 * index_bytes, found
