"""--cache_features: run the frozen layers once over some augmented epochs, then train the head on what they gave.

The stored views are those of the first epochs of the very stream that training without the cache would see. Epoch e
reads view e modulo the number of views, so with as many views as epochs nothing differs but the time it takes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from shardline import pipeline
from shardline.pipeline.cli import progress
from shardline.pipeline.files import atomic_write
from shardline.pipeline.sampler import ReplicaBatches
from shardline.trainer.model import Network, weights_digest
from shardline.trainer.setup import TrainSetup, endless
from shardline.trainer.step import Batch

_ENDLESS = 2**40


class FeatureCache:
    """Features [views, records, size] in a memory-mapped file, with labels and weights beside them."""

    def __init__(self, setup: TrainSetup, network: Network) -> None:
        """Open the cache of this run, filling it first unless it is there."""
        self.setup, self.network = setup, network
        self.views, self.size = setup.config.cache_features, int(network.backbone.output.shape[-1])
        self.folder = Path(setup.config.workdir) / "features"
        if not self._valid():
            self._fill()
        self.features = np.load(self.folder / "features.npy", mmap_mode="r")
        self.labels = np.load(self.folder / "labels.npy")
        self.weights = np.load(self.folder / "weights.npy")

    def batches(self, cursor: int) -> Iterator[Batch]:
        """Iterator of distributed training batches that hold `features` instead of images."""
        setup, sampler = self.setup, self.setup.sampler
        replica_batches = ReplicaBatches(setup.input, replicas=setup.cluster.replicas, cursor=cursor)
        rows = replica_batches.size

        def read(element: np.int64) -> tuple[np.ndarray, ...]:
            position = replica_batches.positions(int(element))
            view, record = position // setup.num_records % self.views, sampler.records(position)
            values = self.features[view, record]
            return values, self.labels[record], self.weights[view, record], record, position

        names = ("features", "label", "weight", "record", "position")
        types = (tf.float32, tf.int32, tf.float32, tf.int64, tf.int64)

        def element(number: tf.Tensor) -> Batch:
            values = tf.numpy_function(read, [number], types)
            shapes = [(rows, self.size), *[(rows,)] * 4]
            return {n: tf.ensure_shape(v, s) for n, v, s in zip(names, values, shapes, strict=True)}

        dataset = tf.data.Dataset.range(_ENDLESS).map(element, num_parallel_calls=2, deterministic=True).prefetch(4)
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        dataset = dataset.with_options(options)
        return endless(setup.cluster.strategy.distribute_datasets_from_function(lambda context: dataset))

    def forward(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """Stored features to logits and targets."""
        classes, smoothing = len(self.setup.labels), self.setup.config.label_smoothing
        targets = tf.one_hot(batch["label"], classes) * (1 - smoothing) + smoothing / classes
        return self.network.head([batch["features"], batch["position"]], training=True), targets

    @property
    def flops(self) -> float:
        """Floating-point operations of one step per example: forward and twice as much backward."""
        return 6.0 * sum(float(np.prod(v.shape)) for v in self.network.trained("head").values())

    def _key(self) -> str:
        config = self.setup.config
        frozen = {path: v for path, v in self.network.weights.items() if path.startswith("block")}
        how = {"global_batch_size", "threads", "cache", "max_bad_records", "augment_on", "workers"}  # change no image
        values = {
            "sampler": self.setup.sampler_key,
            "views": self.views,
            "precision": config.precision,
            "head": config.head,
            "input": {name: value for name, value in vars(self.setup.input).items() if name not in how},
            "weights": weights_digest(frozen),
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def _valid(self) -> bool:
        key = self.folder / "key"
        return key.exists() and key.read_text() == self._key()

    def _fill(self) -> None:
        setup, count = self.setup, self.setup.num_records
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "key").unlink(missing_ok=True)
        features = np.lib.format.open_memmap(
            self.folder / "features.npy", mode="w+", dtype=np.float32, shape=(self.views, count, self.size)
        )
        labels, weights = np.zeros(count, np.int32), np.zeros((self.views, count), np.float32)
        strategy = setup.cluster.strategy

        def on_replica(batch: Batch) -> tf.Tensor:
            batch = pipeline.augment_on_device(batch, setup.input)
            return self.network.backbone(batch["image"], training=False)

        on_replica = tf.function(on_replica, jit_compile=setup.config.jit, autograph=False)
        run = tf.function(lambda batch: strategy.run(on_replica, args=(batch,)), autograph=False)
        total, batches = self.views * count, setup.train_batches(0)
        batch_size = setup.config.global_batch_size
        for _ in progress(range(-(-total // batch_size)), total=-(-total // batch_size), desc="features", unit="step"):
            batch = next(batches)
            parts = [
                strategy.experimental_local_results(x)
                for x in (run(batch), batch["position"], batch["record"], batch["label"], batch["weight"])
            ]
            for found, position, record, label, weight in zip(*parts, strict=True):
                position = position.numpy()
                inside = position < total  # the last batch may run into the next epoch
                view, record = (position // count)[inside], record.numpy()[inside]
                features[view, record] = tf.cast(found, tf.float32).numpy()[inside]
                labels[record] = label.numpy()[inside]
                weights[view, record] = weight.numpy()[inside]
        features.flush()
        np.save(self.folder / "labels.npy", labels)
        np.save(self.folder / "weights.npy", weights)
        atomic_write(self.folder / "key", self._key())  # last: without it the files count for nothing
