"""--selftest: is the trainer right, and is it fast enough, on this very machine? Under two minutes."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow as tf

from shardline import pipeline
from shardline.pipeline.cli import progress
from shardline.pipeline.errors import Failure
from shardline.pipeline.example import encode_example
from shardline.pipeline.manifest import Ledger, Manifest, Split, shard_name, write_shard_file
from shardline.pipeline.tfrecord import frame_record
from shardline.trainer.arithmetic import decided, measured
from shardline.trainer.cluster import Cluster, claim, gpus
from shardline.trainer.config import TrainConfig
from shardline.trainer.model import Network
from shardline.trainer.setup import TrainSetup, create_setup
from shardline.trainer.state import TrainState, create_train_state
from shardline.trainer.step import SCALE_START, Batch, TrainStep

TINY: dict[str, Any] = {
    "width": 0.06,
    "image_size": 32,
    "phases": "all:1@0.05",
    "weights": "none",
    "weights_sha256": "",
    "head": "gap",
    "dropout": 0.3,
    # What belongs to a run and its dataset.
    "recipe": "plain",
    "train_split": "train",
    "eval_split": "auto",
    "best_metric": "none",
    "early_stop_evals": 0,
    "progressive_resizing": "",
    "cache_features": 0,
    "micro_batches": 1,
    "class_weights": "none",
    "balanced_sampling": False,
}
RECORDS = 29  # prime, so that no batch divides it


def selftest(config: TrainConfig) -> None:
    """Run every check, print one line each.

    Raises:
      Failure: one of the checks that are about correctness failed.
    """
    tf.get_logger().setLevel("ERROR")  # else it warns of retracing: each check traces functions of its own
    config = decided(config)
    alone = not gpus(config)
    if alone:
        print(f"arithmetic: images/s of a piece of VGG16 here: {measured()}")
    cluster = claim(dataclasses.replace(config, logical_cpus=config.logical_cpus or 2) if alone else config)
    checks = Checks(config, cluster)
    table = [
        (f"1 and {cluster.replicas} replicas train alike", checks.replicas_agree, True),
        ("an overflow on the last replica is skipped on all", checks.overflow_is_skipped, True),
        ("evaluation sees each record once", checks.each_record_once, True),
        ("mixed precision is not slower than float32", checks.mixed_precision_speed, False),
        ("input keeps up with the training step", checks.input_speed, False),
    ]
    wrong = 0
    bar = progress(table, total=len(table), desc="selftest", unit="check")
    for name, check, about_correctness in bar:
        started = time.perf_counter()
        good, detail = check()
        wrong += about_correctness and not good
        outcome = "ok  " if good else "FAIL" if about_correctness else "slow"
        bar.write(f"{outcome}  {name}: {detail} ({time.perf_counter() - started:.0f} s)")
    print(f"devices: {cluster}")
    if wrong:
        raise Failure(f"{wrong} of the checks failed; training on these devices would be wrong")


class Checks:
    """The checks, on tiny networks and a small dataset made for the purpose. Each returns (passed, detail)."""

    def __init__(self, config: TrainConfig, cluster: Cluster) -> None:
        self.config, self.cluster = config, cluster
        first = f"/{cluster.device_kind}:0"
        one = tf.distribute.MirroredStrategy([first], cross_device_ops=tf.distribute.ReductionToOneDevice())
        self.alone = Cluster(one, 0, 1, 1, cluster.device_kind)
        self.batch = 4 * cluster.replicas
        self.side = 224 if cluster.device_kind == "GPU" else 64  # of the images that speeds are measured with

    def replicas_agree(self) -> tuple[bool, str]:
        """Three float32 steps with clipping, dropout and uneven weights, on one replica and on all.

        Only the latter are compiled as asked for: that takes most of the time, once for each replica.
        """
        found = []
        for cluster, jit in ((self.alone, False), (self.cluster, self.config.jit)):
            _, network, _, step = self._start(cluster, precision="float32", jit=jit)
            for number in range(3):
                step(_spread(cluster, _random_batch(self.batch, number)), tf.constant(0.05))
            found.append({path: v.numpy() for path, v in network.weights.items()})
        difference = max(float(np.abs(found[0][path] - found[1][path]).max()) for path in found[0])
        # GPUs round matrix products to TF32.
        limit = 1e-4 if self.cluster.device_kind == "CPU" else 1e-2
        return difference < limit, f"weights differ by at most {difference:.1e}"

    def overflow_is_skipped(self) -> tuple[bool, str]:
        """Huge weights of samples on the last replica overflow its float16 gradients and no other's."""
        # The decision is made after what XLA would compile.
        _, network, state, step = self._start(self.cluster, precision="mixed_float16", jit=False)
        before = {path: v.numpy() for path, v in network.weights.items()}
        samples = _random_batch(self.batch, 0)
        samples["weight"][-self.batch // self.cluster.replicas :] = 1e9
        finite = bool(step(_spread(self.cluster, samples), tf.constant(0.05))["finite"])
        same = all((before[path] == v.numpy()).all() for path, v in network.weights.items())
        scale = float(state.loss_scale.scale.numpy())
        good = not finite and same and scale == SCALE_START / 2
        return good, f"weights {'unchanged' if same else 'CHANGED'}, loss scale {SCALE_START:g} -> {scale:g}"

    def each_record_once(self) -> tuple[bool, str]:
        """A split that no batch size divides, read over all replicas."""
        with tempfile.TemporaryDirectory() as folder:
            write_dataset(Path(folder), {"train": RECORDS}, side=40)
            config = dataclasses.replace(self.config, **TINY, data=folder, global_batch_size=self.batch)
            setup = dataclasses.replace(create_setup(config, self.cluster), eval_split="train")
            seen: list[int] = []
            for batch in setup.eval_batches():
                local = self.cluster.strategy.experimental_local_results
                for record, weight in zip(local(batch["record"]), local(batch["weight"]), strict=True):
                    seen += record.numpy()[weight.numpy() > 0].tolist()
        return sorted(seen) == list(range(RECORDS)), f"n = {len(seen)}/{RECORDS}"

    @cached_property
    def rates(self) -> dict[str, float]:
        """Images per second that VGG16 trains at, in float32 and in the mixed precision asked for."""
        return {precision: self._rate(precision) for precision in ("float32", self.mixed)}

    @property
    def mixed(self) -> str:
        """The mixed precision to measure."""
        return self.config.precision if self.config.precision != "float32" else "mixed_bfloat16"

    def mixed_precision_speed(self) -> tuple[bool, str]:
        """Step rates of VGG16, in the precision asked for and in float32."""
        ratio = self.rates[self.mixed] / self.rates["float32"]
        advice = "" if ratio >= 1 else "; use --precision=float32 here"
        return ratio >= 0.95, f"{self.mixed} trains {ratio:.2f}× as fast as float32{advice}"

    def input_speed(self) -> tuple[bool, str]:
        """Images decoded and cropped a second, against what the step takes."""
        with tempfile.TemporaryDirectory() as folder:
            write_dataset(Path(folder), {"train": 64}, side=256)
            sizes = {"global_batch_size": 32, "image_size": 224, "width": 1.0}
            config = dataclasses.replace(self.config, **TINY | {"data": folder} | sizes)
            data = iter(pipeline.open_dataset(folder).train_batches("train", config.input_config()))
            next(data)
            started, count = time.perf_counter(), 0
            while time.perf_counter() - started < 2:
                next(data)
                count += 32
            supply = count / (time.perf_counter() - started)
        # The work grows with the number of pixels; logical CPUs share the cores that one replica had to itself.
        replicas = self.cluster.local_replicas if self.cluster.device_kind == "GPU" else 1
        need = replicas * max(self.rates.values()) * (self.side / 224) ** 2
        return supply >= need, f"input {supply:.0f} images/s; VGG16 at 224 px trains about {need:.3g} images/s"

    def _rate(self, precision: str) -> float:
        """Of batches as training has them, with all that the device does to them."""
        size = 64 if self.cluster.device_kind == "GPU" else 16
        changes = {"jit": self.config.jit, "image_size": self.side, "width": 1.0, "global_batch_size": size}
        setup, _, _, step = self._start(self.alone, precision=precision, **changes)
        batches, rate = setup.train_batches(0), tf.constant(0.01)
        float(step(next(batches), rate)["loss"])
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < 2:
            float(step(next(batches), rate)["loss"])
            count += size
        return count / (time.perf_counter() - started)

    def _start(self, cluster: Cluster, **changes: Any) -> tuple[TrainSetup, Network, TrainState, TrainStep]:
        values = {**TINY, "data": "", "synthetic": True, "global_batch_size": self.batch, **changes}
        setup = create_setup(dataclasses.replace(self.config, ema=0.0, **values), cluster)
        return setup, *create_train_state(setup, setup.spans[0])


def _random_batch(size: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "image": random.integers(0, 256, (size, 32, 32, 3), np.uint8),
        "label": random.integers(0, 10, size).astype(np.int32),
        "weight": np.where(np.arange(size) == 0, 0.0, 1.0).astype(np.float32),
        "record": np.arange(size),
        "position": np.arange(size) + 1000 * seed,
    }


def _spread(cluster: Cluster, batch: dict[str, np.ndarray]) -> Batch:
    """One global batch, cut over the replicas."""
    size = len(batch["label"]) // cluster.replicas

    def own(context: tf.distribute.ValueContext) -> Batch:
        first = context.replica_id_in_sync_group * size
        return {name: tf.constant(values[first : first + size]) for name, values in batch.items()}

    spread: Batch = cluster.strategy.experimental_distribute_values_from_function(own)
    return spread


def write_dataset(folder: Path, splits: dict[str, int], side: int) -> None:
    """A small dataset of noise-free color patterns: `splits` gives the records of each split. One shard a split."""
    random, written = np.random.default_rng(0), {}
    labels = tuple("abcdefghij")
    for name, count in splits.items():
        framed = []
        for number in range(count):
            coarse = random.integers(0, 256, (8, 8, 3), np.uint8)
            _, data = cv2.imencode(".jpg", cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC))
            example = encode_example(data.tobytes(), number % len(labels), f"{number}.jpg", side, side)
            framed.append(frame_record(example))
        shard = write_shard_file(folder / shard_name("selftest", name, 0, 1), framed)
        written[name] = Split(name, (shard,))
    total = sum(splits.values())
    counts = {name: tuple(len(range(c, n, len(labels))) for c in range(len(labels))) for name, n in splits.items()}
    Manifest(
        name="selftest",
        labels=labels,
        splits=written,
        ledger=Ledger(inputs=total, written=total),
        class_counts=counts,
    ).save(folder)
