"""--cache_features: run the frozen layers once over some augmented epochs, then train the head on what they gave.

The stored views are those of the first epochs of the very stream that training without the cache would see. Epoch e
reads view e modulo the number of views, so with as many views as epochs nothing differs but the time it takes.
Balanced sampling shows some records several times in an epoch and others not at all: there an epoch reads what its view
holds, in the view's own order.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from shardline import pipeline
from shardline.pipeline import stored
from shardline.pipeline.cli import progress
from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import file_sha256
from shardline.pipeline.sampler import ReplicaBatches
from shardline.pipeline.stored import Sha256
from shardline.trainer.checkpoints import weights_digest
from shardline.trainer.model import Network, num_parameters
from shardline.trainer.overlap import one_late
from shardline.trainer.setup import TrainSetup, distribute, endless
from shardline.trainer.step import Batch

ARRAYS, NOTE = ("features.npy", "labels.npy", "weights.npy"), "cache.json"
CACHE_FILES = frozenset({NOTE, *ARRAYS})
FORMAT = "shardline features 3"
# Settings that change where or how fast images are made, not what they are.
_RUNTIME_FIELDS = {
    "global_batch_size",
    "threads",
    "cache",
    "max_bad_records",
    "augment_on",
    "workers",
    "image_timeout",
    "data_cache",
    "data_cache_gb",
    "generation",
}


def open_feature_cache(setup: TrainSetup, network: Network) -> FeatureCache:
    """The cache of this run. Filled first unless it is there: that runs the frozen layers over all stored views."""
    folder, key = Path(setup.config.workdir) / "features", _key(setup, network)
    if not _is_whole(folder, key):
        folder.mkdir(parents=True, exist_ok=True)
        for name in (NOTE, *ARRAYS):  # which may be links to other files
            (folder / name).unlink(missing_ok=True)
        _fill(folder, setup, network)
        files = {name: file_sha256(folder / name) for name in ARRAYS}
        # Last: without it the files count for nothing.
        stored.save(folder / NOTE, {"key": key, "files": files}, format=FORMAT)
    return FeatureCache(setup, network, folder)


@dataclass(frozen=True)
class _Note:
    """What the files of a cache must be: what they were made of, and their SHA-256."""

    key: Sha256
    files: dict[str, Sha256]


def _is_whole(folder: Path, key: str) -> bool:
    """Whether a cache of this key is there, to the last bit as it was written."""
    try:
        note = stored.load(folder / NOTE, _Note, format=FORMAT, remedy="")
        return note.key == key and note.files == {name: file_sha256(folder / name) for name in ARRAYS}
    except (OSError, UsageError):
        return False


class FeatureCache:
    """Features [views, records, size] in a memory-mapped file, with their labels and weights: see `_places`."""

    def __init__(self, setup: TrainSetup, network: Network, folder: Path) -> None:
        self.setup, self.network = setup, network
        self.features = np.load(folder / "features.npy", mmap_mode="r")
        self.labels = np.load(folder / "labels.npy")
        self.weights = np.load(folder / "weights.npy")

    def batches(self, cursor: int) -> Iterator[Batch]:
        """Iterator of distributed training batches that hold `features` [b, size] instead of images."""
        setup = self.setup
        replica_batches = ReplicaBatches(setup.input, replicas=setup.cluster.replicas, cursor=cursor)
        views, _, size = self.features.shape
        spec = {
            "features": ((replica_batches.size, size), tf.float32),
            "label": ((replica_batches.size,), tf.int32),
            "weight": ((replica_batches.size,), tf.float32),
            "record": ((replica_batches.size,), tf.int64),
            "position": ((replica_batches.size,), tf.int64),
        }

        def read(element: np.int64) -> tuple[np.ndarray, ...]:
            position = replica_batches.positions(int(element))
            record, *place = _places(setup, position, views)
            at = tuple(place)
            return self.features[at], self.labels[at], self.weights[at], record, position

        @tf.autograph.experimental.do_not_convert
        def element(number: tf.Tensor) -> Batch:
            values = tf.numpy_function(read, [number], [kind for _, kind in spec.values()])
            return {name: tf.ensure_shape(value, spec[name][0]) for name, value in zip(spec, values, strict=True)}

        dataset = tf.data.Dataset.counter().map(element, num_parallel_calls=2, deterministic=True).prefetch(4)
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        return endless(distribute(setup.cluster, dataset.with_options(options)))

    def forward(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """Stored features to logits and labels."""
        labels = tf.one_hot(batch["label"], len(self.setup.labels))
        return self.network.head([batch["features"], batch["position"]], training=True), labels

    @property
    def flops(self) -> float:
        """Floating-point operations of one step per sample: forward and twice as much backward."""
        return 6.0 * num_parameters(self.network.trained("head"))


def _places(setup: TrainSetup, positions: np.ndarray, views: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The record at each position of the stream, and the view and row where its features are stored."""
    epochs, offsets = np.divmod(positions, setup.num_records)
    view = epochs % views
    if setup.config.balanced_sampling:
        return setup.sampler.records(view * setup.num_records + offsets), view, offsets
    record = setup.sampler.records(positions)
    return record, view, record


def _key(setup: TrainSetup, network: Network) -> str:
    """SHA-256 (hex) over all that the features depend on."""
    frozen = {path: variable for path, variable in network.weights.items() if path.startswith("block")}
    values = {
        "sampler": setup.sampler_key,
        "views": setup.config.cache_features,
        "precision": setup.config.precision,
        "head": setup.config.head,
        "input": {name: value for name, value in vars(setup.input).items() if name not in _RUNTIME_FIELDS},
        "weights": weights_digest({name: variable.numpy() for name, variable in frozen.items()}),
        "input_scale": network.input_scale,
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _fill(folder: Path, setup: TrainSetup, network: Network) -> None:
    """Write features, labels and weights of the first --cache_features epochs."""
    count, views = setup.num_records, setup.config.cache_features
    shape = (views, count, network.backbone.output.shape[-1])
    features = np.lib.format.open_memmap(folder / "features.npy", mode="w+", dtype=np.float32, shape=shape)
    with open(folder / "features.npy", "r+b") as file:  # a disk that is full later would kill who writes to a hole
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    labels, weights = np.zeros((views, count), np.int32), np.zeros((views, count), np.float32)
    for batch in _first_batches(setup, network, views * count):
        inside = batch["position"] < views * count  # the last batch may run into the next epoch
        _, *place = _places(setup, batch["position"][inside], views)
        for array, name in ((features, "features"), (labels, "label"), (weights, "weight")):
            array[tuple(place)] = batch[name][inside]
    features.flush()
    np.save(folder / "labels.npy", labels)
    np.save(folder / "weights.npy", weights)


def _first_batches(setup: TrainSetup, network: Network, samples: int) -> Iterator[dict[str, np.ndarray]]:
    """The replica batches that hold the first samples of the stream, with their `features`."""
    strategy = setup.cluster.strategy
    compute = create_feature_function(setup, network)
    batches, steps = setup.train_batches(0), math.ceil(samples / setup.config.global_batch_size)
    names = ("position", "record", "label", "weight")
    bar = progress(range(steps), total=steps, desc="features", unit="step")
    for batch, features in one_late(compute, (next(batches) for _ in bar)):
        columns = {name: batch[name] for name in names} | {"features": features}
        parts = [strategy.experimental_local_results(column) for column in columns.values()]
        for values in zip(*parts, strict=True):
            yield {name: value.numpy() for name, value in zip(columns, values, strict=True)}


def create_feature_function(setup: TrainSetup, network: Network) -> tf.types.experimental.PolymorphicFunction:
    """A tf.function of a distributed training batch: what the frozen layers make of its augmented images."""

    def backbone(batch: Batch) -> tf.Tensor:
        batch = pipeline.augment_on_device(batch, setup.input)
        return tf.cast(network.backbone(batch["image"], training=False), tf.float32)

    compiled = tf.function(backbone, jit_compile=setup.config.uses_xla, autograph=False)
    strategy = setup.cluster.strategy
    return tf.function(lambda batch: strategy.run(lambda own: compiled(own), args=(batch,)), autograph=False)
