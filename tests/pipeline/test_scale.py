"""A hundred million records, and a billion, in sparse files: opened, shuffled and sought without reading the index.

What is asserted are bytes and calls; the times are printed.
"""

import json
import subprocess
import sys

import numpy as np
import pytest

from shardline.pipeline.manifest import Ledger, Manifest, Shard, Split, shard_name
from shardline.pipeline.sampler import ShuffleSampler
from shardline.pipeline.split_index import index_writer
from shardline.pipeline.tfrecord import frame_record
from tests.pipeline.tiny import payloads

SHARDS, BATCH = 200, 64

READ = """
import json, re, sys, time
import numpy as np
started = time.perf_counter()
def lap():
    global started
    before, started = started, time.perf_counter()
    return round(started - before, 3)
from shardline import pipeline
from shardline.pipeline import sampler
sorted_tables = []
genuine = sampler._permutation
sampler._permutation = lambda count, key: sorted_tables.append(count) or genuine(count, key)
lap()
data = pipeline.open_dataset(sys.argv[1])
times = {"open": lap()}
config = pipeline.InputConfig(global_batch_size=64, image_size=32, workers=0, threads=1)
batch = next(data.numpy_batches("train", config))
times["first batch"] = lap()
records = data.num_records("train")
order = pipeline.ShuffleSampler(records)
order.records(np.arange(5 * records - 32, 5 * records + 32))
times["epoch change"] = lap()
far = next(data.numpy_batches("train", config, cursor=10**13))
times["seek"] = lap()
status = open("/proc/self/status").read()
smaps = open("/proc/self/smaps").read()
print(json.dumps({
    "times": times, "weights": float(batch["weight"].sum()), "records": batch["record"].tolist(),
    "far": far["record"].tolist(), "tables": sorted_tables,
    # Not getrusage's maximum, which begins with that of the process that started this one.
    "peak": 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]),
    "index": 1024 * sum(map(int, re.findall(r"\\.index\\n(?:.*\\n)*?Rss: +(\\d+) kB", smaps))),
}))
"""


@pytest.mark.slow  # writes an index of 0.8 GB, and one of 8 GB
@pytest.mark.parametrize("records", [10**8, 10**9])
def test_a_hundred_million_records_and_a_billion(tmp_path, records):
    (payload,) = payloads(1)
    framed, each = frame_record(payload), records // SHARDS
    shards = []
    with index_writer(tmp_path, "big") as add:
        for number in range(SHARDS):
            path = tmp_path / shard_name("big", "train", number, SHARDS)
            with open(path, "wb") as file:
                file.truncate(each * len(framed))  # sparse
            shards.append(Shard(path.name, each, each * len(framed), "0" * 64))
            add("train", shards[-1], np.full(each, len(framed)))
    Manifest("big", ("a", "b", "c"), {"train": Split("train", tuple(shards))}, Ledger(records, records)).save(tmp_path)
    first = ShuffleSampler(records).records(np.arange(BATCH))
    far = ShuffleSampler(records).records(np.arange(10**13, 10**13 + BATCH))
    for record in [*first.tolist(), *far.tolist()]:  # there is something to read where the test reads
        with open(tmp_path / shards[record // each].file, "r+b") as file:
            file.seek(record % each * len(framed))
            file.write(framed)
    result = subprocess.run([sys.executable, "-c", READ, str(tmp_path)], capture_output=True, text=True, check=True)
    found = json.loads(result.stdout)
    print(records, found["times"], {name: f"{found[name] / 1e6:,.0f} MB" for name in ("peak", "index")})
    assert (found["records"], found["far"], found["weights"]) == (first.tolist(), far.tolist(), BATCH)
    assert found["tables"] == []  # nothing is sorted
    assert found["index"] < 2 * (BATCH + 2) * (2 << 20)  # at most a huge page for each record that was read
    assert found["peak"] - found["index"] < 1e9
