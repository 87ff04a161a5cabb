"""A program that ends while batches are still being made ends well."""

import subprocess
import sys

import pytest

UNFINISHED = """
import sys
from shardline import pipeline
data = pipeline.open_dataset(sys.argv[1])
batches = iter(data.train_batches("train", pipeline.InputConfig(global_batch_size=256, image_size=256)))
next(batches)
print("done")
"""


@pytest.mark.slow
def test_a_program_that_stops_in_the_middle_exits_cleanly(tiny):
    result = subprocess.run([sys.executable, "-c", UNFINISHED, str(tiny)], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr
    assert "terminate called" not in result.stderr
