"""A run on a dataset in an object store ends with the weights of the same run on the folder: the installed commands."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.pipeline.stores import s3_server
from tests.pipeline.tiny import payloads, write_dataset
from tests.test_scripts import BIN

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
