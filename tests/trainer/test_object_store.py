"""Runs on datasets, and in run directories, in object stores end with the weights of local ones: installed commands."""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.pipeline.stores import s3_server, store_bucket
from tests.pipeline.tiny import payloads, write_dataset
from tests.test_scripts import BIN
from tests.tools.conversion.test_resume import wait_for

pytestmark = [pytest.mark.object_store, pytest.mark.slow]

TRAIN = [
    *("--phases=all:2@0.05", "--global_batch_size=8", "--image_size=32", "--width=0.03", "--precision=float32"),
    *("--nojit", "--dropout=0.4", "--workers=2", "--augment_on=host", "--log_every_steps=1"),
]


def run(*command, environment):
    environment = os.environ | environment | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def test_train_evaluate_and_predict_give_what_they_give_on_the_folder(tmp_path):
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("moto.server")
    folder = write_dataset(tmp_path / "data", {"train": payloads(40), "test": payloads(12)}, shards=4)
    found = {}
    with s3_server() as environment:
        keys = {name.lower(): environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        client = boto3.client("s3", region_name="us-east-1", endpoint_url=environment["AWS_ENDPOINT_URL"], **keys)
        client.create_bucket(Bucket="bucket")
        for name in os.listdir(folder):
            client.upload_file(str(folder / name), "bucket", f"data/{name}")
        environment["XDG_CACHE_HOME"] = os.environ["XDG_CACHE_HOME"]
        for place, data in {"folder": str(folder), "store": "s3://bucket/data"}.items():
            workdir = tmp_path / place
            cache = f"--data_cache={tmp_path}/cache"
            run(BIN / "shardline-train", data, f"--workdir={workdir}", cache, *TRAIN, environment=environment)
            run(BIN / "shardline-evaluate", f"--run={workdir}", data, cache, environment=environment)
            rows = f"--output={tmp_path}/{place}.csv"
            run(BIN / "shardline-predict", f"--run={workdir}", f"--data={data}", cache, rows, environment=environment)
            config = json.loads((workdir / "config.json").read_text())
            metrics = json.loads((workdir / "evaluation-test" / "metrics.json").read_text())
            assert config["train"]["data"] == data and metrics["data"] == data
            rows = (tmp_path / f"{place}.csv").read_text()
            found[place] = metrics["weights"]["sha256"], metrics["log_loss"], rows
    assert found["folder"] == found["store"]
    assert not [path for path in Path.cwd().glob("s3*")]


COMMAND = [BIN / "shardline-train", *TRAIN, "--checkpoint_every_steps=2", "--keep_checkpoints=2"]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A dataset, a local run on it, and what its command has printed."""
    pytest.importorskip("boto3")
    pytest.importorskip("moto.server")
    folder = tmp_path_factory.mktemp("local")
    data = write_dataset(folder / "data", {"train": payloads(40), "test": payloads(12)}, shards=4)
    result = run(*COMMAND, f"--data={data}", f"--workdir={folder}/run", environment={})
    return SimpleNamespace(data=data, workdir=folder / "run", printed=json.loads(result.stdout))


def start(bucket, local, workdir, cache):
    environment = bucket.environment | {"XDG_CACHE_HOME": str(cache), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [*COMMAND, f"--data={local.data}", f"--workdir={workdir}"]
    return subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.PIPE, text=True)


def wait_for_checkpoint(bucket, step):
    wait_for(lambda: any(re.match(f"PUT .*step-{step:08}.npz", request) for request in bucket.requests))


@pytest.mark.parametrize(("scheme", "same_host"), [("s3", False), ("gs", True)])
def test_a_run_directory_in_a_store_survives_a_kill_and_an_outage_with_the_bits_of_a_local_one(
    local, tmp_path, scheme, same_host
):
    with store_bucket(scheme) as bucket:
        folder, cache = "runs/one", tmp_path / "cache"
        workdir = f"{bucket.url}/{folder}"
        process = start(bucket, local, workdir, cache)
        wait_for_checkpoint(bucket, 4)
        process.kill()
        process.communicate()
        there = bucket.files(folder)
        assert "model.keras" not in there and "config.json" in there and ".lock" in there
        assert list(cache.rglob("config.json"))
        shutil.rmtree(cache)  # nothing but the store is left
        if not same_host:
            bucket.client.delete_object(Bucket="bucket", Key=f"{folder}/.lock")
        bucket.clear(["PUT .*step-00000006", 503, 12])  # a checkpoint that cannot be sent, and then the next one can
        here = bucket.environment | {"XDG_CACHE_HOME": str(cache)}
        again = [*COMMAND, f"--data={local.data}", f"--workdir={workdir}"]
        result = run(*again, environment=here)
        assert re.search("continuing .* at step [24] ", result.stderr)
        assert f"the run directory is {workdir}" in result.stderr
        assert json.loads(result.stdout)["weights_sha256"] == local.printed["weights_sha256"]
        names = {str(path.relative_to(local.workdir)) for path in local.workdir.rglob("*.*")}
        assert bucket.files(folder).keys() == names - {".lock"}
        assert "is complete at step" in run(*again, environment=here).stderr
    assert not [path for path in Path.cwd().iterdir() if path.name.startswith(scheme)]


def test_a_run_directory_in_a_store_is_read_by_all_commands_and_left_when_interrupted(local, tmp_path):
    with store_bucket() as bucket:
        bucket.upload(local.workdir, "runs/one")
        here = bucket.environment | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        trained, output = "s3://bucket/runs/one", tmp_path / "results"
        bucket.clear()
        run(BIN / "shardline-evaluate", f"--run={trained}", local.data, f"--output={output}", environment=here)
        metrics = json.loads((output / "metrics.json").read_text())
        assert metrics["run"] == trained
        assert metrics["weights"]["sha256"] == local.printed["weights_sha256"]
        found = [
            run(BIN / "shardline-predict", f"--run={place}", f"--data={local.data}", environment=here).stdout
            for place in (trained, local.workdir)
        ]
        assert found[0] == found[1] and found[0].count("\n") > 12
        formats = ("--formats=keras", f"--output={output}/exported", "--parity_images=4")
        run(BIN / "shardline-export", f"--run={trained}", f"--data={local.data}", *formats, environment=here)
        assert (output / "exported" / "model.keras").exists()
        compared = run(BIN / "shardline-compare", trained, local.workdir, environment=here).stdout
        assert "no flag differs" in compared
        assert not [request for request in bucket.requests if not request.startswith(("GET", "HEAD"))]
        bucket.put("runs/two/thesis.doc", b"mine")
        refused = start(bucket, local, "s3://bucket/runs/two", tmp_path / "cache")
        message = refused.communicate()[1].splitlines()[-1]
        assert refused.returncode == 2 and "is not empty and no run directory of shardline" in message
        interrupted = start(bucket, local, "s3://bucket/runs/three", tmp_path / "cache")
        wait_for_checkpoint(bucket, 2)
        interrupted.send_signal(signal.SIGTERM)
        interrupted.communicate()
        assert interrupted.returncode == 143 and ".lock" not in bucket.files("runs/three")
