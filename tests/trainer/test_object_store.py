"""Runs on datasets, and in run directories, in object stores end with the weights of local ones: installed commands."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

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


def test_a_run_directory_in_a_store_survives_a_kill_and_an_outage_with_the_bits_of_a_local_one(tmp_path):
    pytest.importorskip("boto3")
    pytest.importorskip("moto.server")
    data = write_dataset(tmp_path / "data", {"train": payloads(40), "test": payloads(12)}, shards=4)
    command = [BIN / "shardline-train", str(data), *TRAIN, "--checkpoint_every_steps=2", "--keep_checkpoints=2"]
    local = json.loads(run(*command, f"--workdir={tmp_path}/local", environment={}).stdout)
    with store_bucket() as bucket:
        here = bucket.environment | {"XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"], "TF_CPP_MIN_LOG_LEVEL": "3"}
        workdir = "--workdir=s3://bucket/runs/one"
        process = subprocess.Popen([*command, workdir], env=os.environ | here, stderr=subprocess.DEVNULL)
        wait_for(lambda: any(re.match("PUT .*step-00000004.npz", request) for request in bucket.requests), 300)
        process.kill()
        process.communicate()
        there = bucket.files("runs/one")
        assert "model.keras" not in there and "config.json" in there and ".lock" in there
        # On another host: with a cache of its own. Its store fails while a checkpoint is sent, and recovers.
        bucket.client.delete_object(Bucket="bucket", Key="runs/one/.lock")
        bucket.clear(["PUT .*step-00000006", 503, 12])
        again = run(*command, workdir, environment=here | {"XDG_CACHE_HOME": str(tmp_path / "cache")})
        assert re.search("continuing .* at step [24] ", again.stderr)
        assert "the run directory is s3://bucket/runs/one" in again.stderr
        assert json.loads(again.stdout)["weights_sha256"] == local["weights_sha256"]
        names = {str(path.relative_to(tmp_path / "local")) for path in (tmp_path / "local").rglob("*.*")}
        assert bucket.files("runs/one").keys() == names - {".lock"}
        assert "is complete at step" in run(*command, workdir, environment=here).stderr
        found = {}
        bucket.clear()
        for place, trained in {"folder": f"{tmp_path}/local", "store": "s3://bucket/runs/one"}.items():
            output = tmp_path / "results" / place
            run(BIN / "shardline-evaluate", f"--run={trained}", data, f"--output={output}", environment=here)
            rows = run(BIN / "shardline-predict", f"--run={trained}", f"--data={data}", environment=here).stdout
            metrics = json.loads((output / "metrics.json").read_text())
            assert metrics["run"] == trained
            found[place] = metrics["log_loss"], metrics["weights"]["sha256"], rows
            formats = ("--formats=keras", f"--output={output}/exported", "--parity_images=4")
            run(BIN / "shardline-export", f"--run={trained}", f"--data={data}", *formats, environment=here)
            assert (output / "exported" / "model.keras").exists()
        assert found["folder"] == found["store"]
        compared = run(BIN / "shardline-compare", "s3://bucket/runs/one", tmp_path / "local", environment=here).stdout
        assert "no flag differs" in compared
        assert not [request for request in bucket.requests if not request.startswith(("GET", "HEAD"))]
        bucket.put("runs/two/thesis.doc", b"mine")
        for where, message in {
            "s3://bucket/runs/two": "is not empty and no run directory of shardline",
            "https://host/run": "https: is not known; name s3://BUCKET/FOLDER",
        }.items():
            refused = [*command, f"--workdir={where}"]
            result = subprocess.run(refused, env=os.environ | here, capture_output=True, text=True)
            assert result.returncode == 2 and message in result.stderr.splitlines()[-1]
        interrupted = subprocess.Popen([*command, "--workdir=s3://bucket/runs/three"], env=os.environ | here,
                                       stderr=subprocess.PIPE, text=True)  # fmt: skip
        wait_for(lambda: any(re.match("PUT .*three.*step-00000002", request) for request in bucket.requests), 300)
        interrupted.send_signal(signal.SIGTERM)
        interrupted.communicate()
        assert interrupted.returncode == 143 and ".lock" not in bucket.files("runs/three")
