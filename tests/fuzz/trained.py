"""Targets of the fuzzer: what runs, evaluations and benchmark reports keep and commands read back."""

from __future__ import annotations

import hashlib
import json
import math
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shardline.benchmarks.measure import Measurement, append_results, load_machine, load_results
from shardline.pipeline import stored
from shardline.pipeline.errors import UsageError
from shardline.pipeline.evaluation_files import predictions_schema
from shardline.pipeline.run_input import RUN_FORMAT
from shardline.pipeline.stored_arrays import save_arrays
from shardline.trainer import metrics_log
from shardline.trainer.checkpoints import FORMAT as CHECKPOINT_FORMAT
from shardline.trainer.checkpoints import read_checkpoint
from shardline.trainer.config import TrainConfig
from shardline.trainer.evaluation import results
from shardline.trainer.run_dir import CONFIG_FILE, is_finished, read_config
from tests.fuzz.target import WORK, Target, sealed, written

RUN = {
    "train": TrainConfig(data="data", workdir="run").to_dict(),
    "labels": ["a", "b"],
    "dataset": {"name": "toy", "records": 7},
    "preprocessing": {"crop_fraction": 0.875, "stored": {"encoding": "jpeg", "size": 40}},
    "versions": {"shardline": "1"},
    "starting_weights_sha256": "",
    "words": ["ant", "bee"],
}


HEADER = {
    "step": 9, "cursor": 72, "phase": 0, "best_metric": "", "best": None, "best_step": 0, "evals_since_best": 0,
    "evaluation": {}, "train": RUN["train"], "sampler": {"records": 40}, "input_scale": 1.0, "labels": ["a", "b"],
}  # fmt: skip


def run_config(data: bytes) -> None:
    """A run's config that is taken is one that training could have had."""
    if sealed(WORK / CONFIG_FILE, RUN_FORMAT, data):
        content = read_config(WORK)
        config = TrainConfig.from_dict(content["train"])
        assert config.global_batch_size >= 1 and 0 < content["preprocessing"]["crop_fraction"] <= 1


def checkpoint(data: bytes) -> None:
    """The header of a checkpoint whose checksums are right."""
    try:
        header = json.loads(data)
        arrays = {"model/w": np.ones(3, np.float32)}
        save_arrays(WORK / "step.npz", header, arrays, format=CHECKPOINT_FORMAT, durable=False)
    except (ValueError, TypeError, RecursionError):
        return
    found = read_checkpoint(WORK / "step.npz")
    is_finished(TrainConfig.from_dict(found.header["train"]), 10, found.header)


def log_lines() -> list[bytes]:
    train = {"step": 3, "kind": "train", "epoch": 0.5, "loss": 1.5, "top1": 0.25, "learning_rate": 0.1}
    train |= {"images_per_second": 10.0, "waiting_percent": 3.0}
    held_out = {"step": 4, "kind": "eval", "epoch": 1.0, "loss": 1.0, "top1": 0.5}
    lines = [stored.sealed_line(values) for values in (train, held_out)]
    return ["".join(lines).encode(), (json.dumps(train) + "\n").encode()]


def log(data: bytes) -> None:
    written(metrics_log.FILE_NAME, data)
    for line in metrics_log.read(WORK):
        assert line["step"] >= 0 and isinstance(line["loss"], int | float)


@cache
def result_lines() -> list[bytes]:
    rows = [Measurement("stages", name, "images/s", (1.0, 2.0), cpu_seconds=(0.1, 0.1)) for name in ("decode", "step")]
    append_results(WORK, rows)
    sealed_lines = (WORK / "results.jsonl").read_bytes()
    plain = [{"suite": "s", "name": "a", "unit": "x/s", "repeats": [1.0, 2], "machine": {"cpu": "x", "cores": 2}}]
    return [sealed_lines, "".join(json.dumps(line) + "\n" for line in plain).encode()]


def measurements(data: bytes) -> None:
    written("results.jsonl", data)
    for row in load_results(WORK):
        assert row.repeats and (math.isnan(row.median) or row.spread[0] <= row.median <= row.spread[1])
    load_machine(WORK)


METRICS = {
    "run": "run", "split": "test", "n": 7, "top1": 0.5, "top5": 1.0, "macro_f1": 0.5, "ece": None,
    "interval95": {"top1": [0.4, 0.6]}, "predictions_sha256": "0" * 64, "leakage": {"records": 0},
}  # fmt: skip


def metrics(data: bytes) -> None:
    if sealed(WORK / results.METRICS, results.FORMAT, data):
        found = results.read_metrics(WORK)
        assert 0 <= found["top1"] <= 1 and len(found["interval95"]["top1"]) == 2


@cache
def predictions_files() -> list[bytes]:
    columns = [[1, 2], ["a", "b"], ["x", "y"], ["x", "x"], [True, False], [[0.5, 0.5], [0.25, 0.75]]]
    table = pa.table(dict(zip(predictions_schema(2).names, columns, strict=True)), schema=predictions_schema(2))
    pq.write_table(table.replace_schema_metadata({"labels": "[]"}), WORK / results.PREDICTIONS)
    return [(WORK / results.PREDICTIONS).read_bytes()]


def predictions(data: bytes) -> None:
    """Of somebody who notes the right SHA-256."""
    written(results.PREDICTIONS, data)
    sha256 = hashlib.sha256(data).hexdigest()
    stored.save(WORK / results.METRICS, {**METRICS, "predictions_sha256": sha256}, format=results.FORMAT, durable=False)
    table, _ = results.read_predictions(WORK)
    table["correct"].to_pylist()


def bodies(content: object) -> list[bytes]:
    return [json.dumps(content).encode()]


TARGETS = {
    "run_config": Target(run_config, lambda: bodies(RUN), (UsageError,)),
    "checkpoint": Target(checkpoint, lambda: bodies(HEADER), (UsageError,)),
    "metrics_log": Target(log, log_lines, ()),
    "results": Target(measurements, result_lines, (UsageError,)),
    "metrics": Target(metrics, lambda: bodies(METRICS), (UsageError,)),
    "predictions": Target(predictions, predictions_files, (UsageError,)),
}
