"""Run by test_train.py in a process of its own: whole runs on two logical CPUs, broken off and continued. JSON."""

import contextlib
import io
import json
import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from shardline.pipeline.errors import Failure, UsageError
from shardline.trainer import loop, metrics_log, run_report, selftest
from shardline.trainer.actions import StepMonitor
from shardline.trainer.checkpoints import list_checkpoints, read_checkpoint
from shardline.trainer.cluster import create_cluster
from shardline.trainer.config import TrainConfig
from shardline.trainer.evaluate import EvaluateConfig, evaluate
from shardline.trainer.evaluation import results as evaluations
from shardline.trainer.run_dir import find_checkpoint, load_run
from shardline.trainer.setup import TrainSetup
from shardline.trainer.train import train as train_run
from tests.pipeline.tiny import edit_stored

FOLDER, SECTIONS = Path(sys.argv[1]), sys.argv[2:]
DATA = str(FOLDER / "data")
BASE = {
    "data": DATA,
    "phases": "head:0.6@0.05,all:0.8@0.05",
    "global_batch_size": 8,
    "image_size": 32,
    "width": 0.03,
    "precision": "float32",
    "jit": False,
    "logical_cpus": 2,
    "dropout": 0.4,
    "ema": 0.9,
    "checkpoint_every_steps": 2,
    "log_every_steps": 1,
    "seed": 3,
    "peak_tflops": 1.0,
    "keep_checkpoints": 2,
    "eval_every_epochs": 5.0,  # so, only where a phase ends
}
STEPS = 7  # 3 for the head, 4 for all: 40 records, 8 a step


def train(name, allow_changes=False, **changes):
    """Result of one run, {} for none; or the line it stopped with, and what it logged before."""
    logged = io.StringIO()
    config = TrainConfig(**{**BASE, "workdir": str(FOLDER / name), **changes})
    try:
        with contextlib.redirect_stderr(logged):
            return train_run(config, allow_changes=allow_changes) or {}
    except (UsageError, Failure) as error:
        return {"error": f"{type(error).__name__}: {error}", "logged": logged.getvalue()}


def weights_of(name):
    return find_checkpoint(FOLDER / name).final_weights


class Killed(Exception):
    pass


def at_step(number, act):
    """Do something in the middle of a run, once."""
    original = StepMonitor.after_step

    def after_step(self, record):
        if record.step == number:
            StepMonitor.after_step = original
            act()
        return original(self, record)

    StepMonitor.after_step = after_step


def killed_at(name, number, **changes):
    def die():
        raise Killed

    at_step(number, die)
    try:
        train(name, **changes)
    except Killed:
        return
    raise AssertionError("the run was not killed")


def steps_of(name):
    return [line["step"] for line in metrics_log.read(FOLDER / name) if line["kind"] == "train"]


def whole():
    found = train("whole")
    folder = FOLDER / "whole"
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    loaded = keras.models.load_model(folder / "model.keras", compile=False)
    read = load_run(folder)
    custom = [layer for layer in loaded.layers if not type(layer).__module__.startswith("keras.")]
    probabilities = np.asarray(loaded(images))
    lines = metrics_log.read(folder)
    return {
        "result": found,
        "steps": steps_of("whole"),
        "custom_layers": len(custom),
        "input": [str(loaded.inputs[0].dtype), list(loaded.inputs[0].shape)],
        "rows_sum": probabilities.sum(-1).tolist(),
        "dtype": str(probabilities.dtype),
        "agree": float(np.abs(probabilities - np.asarray(read.model(images))).max()),
        "labels": len(read.labels),
        "preprocessing": read.preprocessing,
        "files": sorted(path.name for path in folder.iterdir()),
        "checkpoints": [path.name for path in list_checkpoints(folder)],
        "curves_bytes": (folder / "plots" / "curves.png").stat().st_size,
        "evals": [(line["step"], line["n"], line["split"]) for line in lines if line["kind"] == "eval"],
        "phases": [line["phase"] for line in lines if line["kind"] == "train"],
        "again": train("whole"),
        "replicas": [create_cluster("mirrored", count).replicas for count in (2, 0)],
    }


def draw_no_more():
    """Half of what a tiny run costs."""
    run_report.RunReport._write = lambda self, *, finished: None


def killed(number):
    """Killed, and continued. A copy of it as it was killed stays in `changed`, for others to continue."""
    killed_at(f"killed{number}", number)
    shutil.copytree(FOLDER / f"killed{number}", FOLDER / "changed", dirs_exist_ok=True)
    leftover = FOLDER / f"killed{number}" / "config.json.somewhere-1-01234567.tmp"
    leftover.write_bytes(b"half")  # as a kill in the middle of a write leaves it
    return {**train(f"killed{number}"), "steps": steps_of(f"killed{number}"), "leftover": leftover.exists()}


def restarts():
    results = {f"killed{number}": killed(number) for number in (2, 6)}  # in the head's phase; later
    at_step(4, lambda: signal.raise_signal(signal.SIGTERM))
    stopped = train("stopped")
    results["stopped"] = {
        "printed": stopped,
        "kept": [path.name for path in list_checkpoints(FOLDER / "stopped")],
        "model": (FOLDER / "stopped" / "model.keras").exists(),
        **train("stopped"),
    }
    killed_at("damaged", 5)
    newest = list_checkpoints(FOLDER / "damaged")[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    results["damaged"] = train("damaged")
    killed_at("alone", 4)
    results["alone"] = train("alone", strategy="one_device", logical_cpus=0)
    loop.CALL_SECONDS = 1e9
    results["calls"] = train("calls", log_every_steps=100, checkpoint_every_steps=0)  # several steps in a call
    results["calls"]["lines"] = steps_of("calls")
    two, one = (weights_of(name) for name in ("whole", "alone"))
    results["alone"]["difference"] = max(float(np.abs(two[name] - one[name]).max()) for name in two)
    return results


def refusals():
    other = FOLDER / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    return {
        "changed": train("changed", dropout=0.1, log_every_steps=5)["error"],
        "seed": train("changed", seed=4)["error"],
        "model": train("changed", allow_changes=True, width=0.05)["error"],
        "allowed": train(
            "changed", allow_changes=True, optimizer="adam", phases="head:0.6@0.05,all:4@1e2", clip_norm=0.0, ema=0.0
        ),
        "foreign": train("other")["error"],
        "batch": train("new", global_batch_size=9)["error"],
        "micro": train("new", micro_batches=3)["error"],
        "split": train("new", train_split="night")["error"],
        "eval_split": train("new", eval_split="night")["error"],
        "test": train("new", eval_split="test", best_metric="top1")["error"],
        "data": train("new", data=str(FOLDER / "nowhere"))["error"],
        "weights": train("new", weights=str(FOLDER / "nowhere.h5"))["error"],
        "left_behind": (FOLDER / "new").exists(),
    }


def replicas(jit=False):
    """The whole run evaluated on one replica and on two: 5 records in blocks of 4, so that the second replica's last
    block is padding alone."""
    run, metrics, tables = FOLDER / f"evaluated {jit}", [], []
    shutil.copytree(FOLDER / "whole", run)
    edit_stored(run / "config.json", lambda content: content["train"].update(jit=jit))
    for count in (0, 2):
        output = FOLDER / f"evaluation {jit} {count}"
        options = {"split": "test", "batch_size": 4, "logical_cpus": count, "report": False}
        evaluate(EvaluateConfig(run=str(run), data=DATA, output=str(output), **options))
        metrics.append(json.loads((output / "metrics.json").read_text()))
        tables.append(evaluations.read_predictions(output)[0])
    return {"metrics": metrics, "same_predictions": tables[0].equals(tables[1])}


def features():
    """A head trained on stored features, against one trained through the frozen layers, on the same views."""
    plain = train("plain", phases="head:2@0.05")
    cached = train("cached", phases="head:2@0.05", cache_features=2)
    killed = FOLDER / "cached" / "features" / "features.npy"
    weights = [weights_of(name) for name in ("plain", "cached")]
    fewer = train("fewer", phases="head:2@0.05", cache_features=1, jit=True)  # compiled once for each replica
    return {
        "difference": max(float(np.abs(weights[0][n] - weights[1][n]).max()) for n in weights[0]),
        "moved": float(np.abs(weights[0]["predictions/kernel"] - weights_of("whole")["predictions/kernel"]).max()),
        "shape": list(np.load(killed, mmap_mode="r").shape),
        "accuracy": [found["validation_top1"] for found in (plain, cached, fewer)],
        "first_views_differ": fewer["weights_sha256"] != cached["weights_sha256"],
    }


def resizing():
    """Images that grow within a phase; killed before they do, at the last small step, and after."""
    changes = {"image_size": 40, "progressive_resizing": "0.8:0.5", "phases": "all:1@0.05"}
    begun, train_batches = [], TrainSetup.train_batches

    def noted(setup, cursor):
        begun.append((cursor, setup.input.image_size))
        return train_batches(setup, cursor)

    TrainSetup.train_batches = noted
    results = {"whole": train("growing", **changes), "begun": list(begun)}
    for number in (2, 3, 5):
        killed_at(f"growing{number}", number, **changes)
        begun.clear()
        results[f"killed{number}"] = {**train(f"growing{number}", **changes), "begun": list(begun)}
    results["steps"] = steps_of("growing5")
    results["changed"] = train("growing", **{**changes, "progressive_resizing": ""})["error"]
    TrainSetup.train_batches = train_batches
    return results


def stopping():
    options = {
        "phases": "all:8@0",
        "best_metric": "top1",
        "early_stop_evals": 2,
        "eval_every_epochs": 1.0,
        "ema": 0.0,
        "strategy": "one_device",
        "logical_cpus": 0,
    }
    found = train("early", **options)
    best = FOLDER / "early" / "checkpoints" / "best.npz"
    (FOLDER / "early" / "model.keras").unlink()  # as if killed just before it was written
    again = train("early", **options)
    return {
        "step": found["step"],
        "last_step": found["last_step"],
        "best_step": read_checkpoint(best).header["step"],
        "again": {name: again[name] == found[name] for name in ("step", "weights_sha256")},
        "model": (FOLDER / "early" / "model.keras").exists(),
    }


def allreduce():
    """Gradients that travel in bfloat16, against float32."""
    lines, logged = {}, {}
    for dtype in ("float32", "bfloat16"):
        settings = {
            **BASE,
            "phases": "head:1@0.05,all:4@0.05",
            "allreduce_dtype": dtype,
            "workdir": str(FOLDER / dtype),
        }
        with contextlib.redirect_stderr(io.StringIO()) as err:
            train_run(TrainConfig(**settings))
        lines[dtype] = [line for line in metrics_log.read(FOLDER / dtype) if line["kind"] == "train"]
        logged[dtype] = [line for line in err.getvalue().splitlines() if line.startswith("all-reduce")]
    sizes = {name: array.size for name, array in weights_of("float32").items()}
    head = sum(size for name, size in sizes.items() if not name.startswith("block"))
    return {
        "losses": {dtype: [line["loss"] for line in found] for dtype, found in lines.items()},
        "bytes": {dtype: [found[0]["allreduce_bytes"], found[-1]["allreduce_bytes"]] for dtype, found in lines.items()},
        "parameters": [head, sum(sizes.values())],
        "logged": logged,
    }


MORE = {
    "allreduce": allreduce,
    "restarts": restarts,
    "refusals": refusals,
    "replicas": replicas,
    "compiled_replicas": partial(replicas, jit=True),
    "features": features,
    "resizing": resizing,
    "stopping": stopping,
}

if __name__ == "__main__":
    Path(DATA).mkdir()
    selftest.write_dataset(Path(DATA), {"train": 40, "validation": 11, "test": 5}, side=40)
    results = {"whole": whole()}
    draw_no_more()
    results["killed4"] = killed(4)  # just after the border of the phases
    print(json.dumps(results | {name: section() for name, section in MORE.items() if name in SECTIONS}))
