"""The programs under examples/: run as a reader runs them, in a process of their own, on a small dataset."""

import base64
import json
import os
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from shardline import pipeline
from shardline.pipeline.tfrecord import unframe_record
from tests.pipeline.tiny import payloads, write_dataset

EXAMPLES = Path(__file__).parents[1] / "examples"
PROGRAMS = sorted(path.name for path in EXAMPLES.glob("*.py"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), {"train": payloads(37), "test": payloads(11)})


def run(name, *arguments):
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, EXAMPLES / name, *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_every_example_is_named_in_the_page():
    page = (EXAMPLES / "README.md").read_text()
    assert len(PROGRAMS) == 6 and [name for name in PROGRAMS if f"]({name})" not in page] == []


def test_a_plain_loop_continues_to_the_bit(data):
    assert run("plain_loop.py", data).startswith("continued run equals the whole one: True\ntop-1 on train: 0.")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "library"), [("pytorch_loop.py", "torch"), ("jax_loop.py", "jax")])
def test_other_frameworks_continue_to_the_bit(data, name, library):
    if not find_spec(library):
        pytest.skip(f"{library} is not installed")
    assert run(name, data) == "continued run equals the whole one: True\n"


@pytest.mark.slow
def test_a_keras_model_learns_and_goes_on(data):
    assert "Epoch 2/2" in run("keras_model.py", data)


def test_dali_finds_every_record_by_the_index(data):
    """Its format: a line OFFSET SIZE a record (tools/tfrecord2idx of DALI), frame included."""
    shards, indexes = runpy.run_path(str(EXAMPLES / "dali_pipeline.py"))["files"](str(data), "train")
    records = 0
    for shard, index in zip(shards, indexes, strict=True):
        content, end = Path(shard).read_bytes(), 0
        for line in Path(index).read_text().splitlines():
            offset, size = map(int, line.split(" "))
            assert offset == end and len(unframe_record(memoryview(content)[offset : offset + size])) == size - 16
            records, end = records + 1, offset + size
        assert end == len(content)
    assert records == 37


@pytest.mark.slow
def test_dali_reads_a_batch_on_the_cpu(data):
    if not find_spec("nvidia") or not find_spec("nvidia.dali"):
        pytest.skip("nvidia-dali is not installed")
    assert run("dali_pipeline.py", data, "cpu").startswith("(32, 224, 224, 3) [")


def test_a_serving_request_holds_the_files(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8file")
    made = json.loads(runpy.run_path(str(EXAMPLES / "serving_request.py"))["body"]([str(tmp_path / "a.jpg")]))
    assert made["signature_name"] == "serving_default"
    assert [base64.b64decode(instance["b64"]) for instance in made["instances"]] == [b"\xff\xd8file"]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augment_on", ["host", "device"])
def test_numpy_batches_are_those_of_tensorflow(data, workers, augment_on):
    opened = pipeline.open_dataset(data)
    config = pipeline.InputConfig(
        global_batch_size=8, image_size=16, workers=workers, augment_on=augment_on, mixup=0.2, threads=2
    )
    where = {"cursor": 40, "host": 1, "hosts": 2, "replicas": 2}
    theirs = list(opened.train_batches("train", config, **where).take(5).as_numpy_iterator())
    ours = opened.numpy_batches("train", config, **where)
    for expected, found in zip(theirs, ours, strict=False):
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(value, found[name], err_msg=name)
            assert value.dtype == found[name].dtype
    ours.close()
    theirs = list(opened.eval_batches("test", config).as_numpy_iterator())
    ours = list(opened.numpy_batches("test", config, evaluation=True))
    assert len(theirs) == len(ours) == 2
    for expected, found in zip(theirs, ours, strict=True):
        for name, value in expected.items():
            np.testing.assert_array_equal(value, found[name], err_msg=name)


def test_numpy_batches_need_no_tensorflow(data):
    code = (
        "import sys\nfrom shardline import pipeline\n"
        f"data = pipeline.open_dataset({str(data)!r})\n"
        "config = pipeline.InputConfig(global_batch_size=8, image_size=16)\n"
        "batches = data.numpy_batches('train', config)\nassert next(batches)['image'].shape == (8, 16, 16, 3)\n"
        "assert len(list(data.numpy_batches('test', config, evaluation=True))) == 2\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
