"""Everything that is decided before the first step: devices, data, phases, network."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import tensorflow as tf

from shardline import pipeline
from shardline.pipeline import InputConfig
from shardline.pipeline.cli import progress
from shardline.pipeline.errors import UsageError
from shardline.trainer import model, schedule
from shardline.trainer.cluster import Cluster
from shardline.trainer.config import TrainConfig
from shardline.trainer.step import Batch
from shardline.trainer.synthetic import SyntheticDataset

SYNTHETIC_CLASSES, SYNTHETIC_RECORDS = 1000, 1280


@dataclass(frozen=True)
class Plan:
    """A checked run, ready to start."""

    config: TrainConfig
    cluster: Cluster
    data: Any  # pipeline.Dataset or SyntheticDataset
    input: InputConfig
    eval_split: str  # "" for none
    spans: tuple[schedule.PhaseSpan, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the model's outputs."""
        return self.data.labels

    @property
    def num_records(self) -> int:
        """Examples in an epoch."""
        return self.data.num_records(self.config.train_split)

    @cached_property
    def order(self) -> pipeline.Sampler:
        """Position -> record."""
        config = self.config
        if not config.balanced_sampling or config.synthetic:
            return pipeline.ShuffleSampler(self.num_records, config.seed, config.shuffle_block_size)
        numbers = progress(range(self.num_records), total=self.num_records, desc="labels", unit="record")
        labels = np.array([label for _, label, _ in self.data.records(config.train_split, numbers)])
        return pipeline.BalancedSampler(labels, config.seed)

    @property
    def order_key(self) -> dict[str, Any]:
        """What position -> sample depends on. A checkpoint only continues under the key it was written with."""
        digest = "synthetic" if self.config.synthetic else self.data.manifest.digest
        return {
            "dataset": digest,
            "split": self.config.train_split,
            "records": self.num_records,
            "seed": self.config.seed,
            "shuffle_block_size": self.config.shuffle_block_size,
            "balanced_sampling": self.config.balanced_sampling,
        }

    def epoch(self, cursor: int) -> float:
        """Epochs after `cursor` samples."""
        return cursor / self.num_records

    def learning_rate(self, span: schedule.PhaseSpan, cursor: int) -> float:
        """Rate of the step that starts at `cursor`."""
        return schedule.learning_rate(
            span,
            cursor,
            num_records=self.num_records,
            schedule=self.config.schedule,
            warmup_epochs=self.config.warmup_epochs,
            batch=self.config.global_batch_size,
        )

    def train_batches(self, cursor: int) -> Any:
        """Iterator of distributed training batches from the sample at `cursor` on."""
        make = self.data.train_batches
        if self.config.balanced_sampling and not self.config.synthetic:
            make = partial(make, sampler=self.order)
        return endless(self._distribute(make, self.config.train_split, self.input, cursor=cursor))

    def eval_batches(self) -> Any:
        """Distributed batches that hold each record of the evaluation split once."""
        return self._distribute(self.data.eval_batches, self.eval_split, self.input)

    def _distribute(self, make: Any, split: str, config: InputConfig, **where: int) -> Any:
        cluster = self.cluster
        dataset = make(split, config, host=cluster.host, hosts=cluster.hosts, replicas=cluster.local_replicas, **where)
        # The elements are already this host's replicas' shares, in turn.
        return cluster.strategy.distribute_datasets_from_function(lambda context: dataset)


def endless(batches: Any) -> Any:
    """Iterator of endless distributed batches, which is never destroyed.

    TensorFlow's auto-tuning may miss the news that its iterator is to end, and sleep on for as long as the iterator
    has lived, up to a minute; who drops the last reference waits for it. A run told to stop has no such time.
    """
    iterator = iter(batches)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(iterator))
    return iterator


def make(config: TrainConfig, cluster: Cluster) -> Plan:
    """Check the config against the devices and the data. Raises UsageError for what cannot work."""
    settings = config.input_config()
    rows = settings.replica_batch_size(cluster.replicas)
    if rows % config.micro_batches or (settings.mixes and rows // config.micro_batches % 2):
        even = "an even number of " if settings.mixes else ""
        raise UsageError(
            f"--micro_batches={config.micro_batches} does not cut each replica's {rows} examples into equal pieces of "
            f"{even}examples; change it or --global_batch_size={config.global_batch_size}"
        )
    if config.cache_features and cluster.hosts > 1:
        raise UsageError("--cache_features works on one host; leave it out, or train the head on one host first")
    model.check_weights(config.weights, config.head)
    data = _open(config)
    return Plan(
        config=config,
        cluster=cluster,
        data=data,
        input=settings,
        eval_split=_eval_split(config, data),
        spans=schedule.spans(config.phase_list, data.num_records(config.train_split)),
    )


def _open(config: TrainConfig) -> Any:
    if config.synthetic and not config.data:
        return SyntheticDataset(tuple(map(str, range(SYNTHETIC_CLASSES))), SYNTHETIC_RECORDS)
    if not config.data:
        raise UsageError("--data is missing: give a dataset directory made by shardline-convert, or --synthetic")
    data = pipeline.open_dataset(config.data)
    if config.train_split not in data.manifest.splits:
        raise UsageError(f"--train_split={config.train_split}: this dataset has {', '.join(data.manifest.splits)}")
    if not data.num_records(config.train_split):
        raise UsageError(f"--train_split={config.train_split} of --data={config.data} holds no records")
    if config.synthetic:
        return SyntheticDataset(data.labels, data.num_records(config.train_split))
    return data


def _eval_split(config: TrainConfig, data: Any) -> str:
    """The held-out split to report on. What is chosen by it must not be the test split."""
    if config.synthetic or config.eval_split == "none":
        return ""
    splits = [name for name in data.manifest.splits if data.num_records(name)]
    if config.eval_split == "auto":
        held_out = [name for name in ("validation", "val", "test") if name in splits]
        name = held_out[0] if held_out else ""
    else:
        name = config.eval_split
        if name not in splits:
            raise UsageError(f"--eval_split={name}: this dataset has {', '.join(splits)}")
    if config.best_metric != "none" and name in ("", "test"):
        raise UsageError(
            f"--best_metric={config.best_metric} would choose the model by {name or 'nothing'}: convert with a "
            "validation split (--splits), or leave it out; a model chosen on test has no honest test result"
        )
    return name


def build_network(plan: Plan) -> model.Network:
    """The network this run trains, with fresh weights or those of `--weights`. Call inside the strategy's scope."""
    config = plan.config
    network = model.build(
        classes=len(plan.labels),
        head=config.head,
        image_size=config.image_size,
        dropout=config.dropout,
        seed=config.seed,
        precision=config.precision,
        width=config.width,
        input_scale=input_scale(config),
    )
    model.initialize(network, config.seed)
    if config.weights != "none":
        model.load_weights(network, config.weights, config.head)
    return network


def input_scale(config: TrainConfig) -> float:
    """Pretrained convolutions want pixels as they are; fresh ones learn better from numbers around 1."""
    return model.PIXEL_SPREAD if config.weights == "none" else 1.0


def train_forward(plan: Plan, network: model.Network) -> Callable[[Batch], tuple[Any, Any]]:
    """Batch -> logits and targets, with augmentation's device half, mixing and label smoothing."""
    classes, smoothing = len(plan.labels), plan.config.label_smoothing

    def forward(batch: Batch) -> tuple[Any, Any]:
        batch = pipeline.augment_on_device(batch, plan.input)
        targets = pipeline.soft_labels(batch, classes)
        targets = targets * (1 - smoothing) + smoothing / classes
        return network.train([batch["image"], batch["position"]], training=True), targets

    return forward


def eval_forward(plan: Plan, network: model.Network) -> Callable[[Batch], tuple[Any, Any]]:
    """Batch -> logits and targets, as a user of the model would see them."""

    def forward(batch: Batch) -> tuple[Any, Any]:
        image = tf.cast(batch["image"], tf.float32)
        logits = network.train([image, batch["position"]], training=False)
        return logits, tf.one_hot(batch["label"], len(plan.labels))

    return forward


def class_weights(plan: Plan) -> Any:
    """1 / frequency of each class, averaging 1 over the records; None for no weights."""
    if plan.config.class_weights == "none" or plan.config.synthetic:
        return None
    counts = np.array(plan.data.manifest.class_counts[plan.config.train_split], np.float64)
    weights = counts.sum() / (np.maximum(counts, 1) * np.count_nonzero(counts))
    return tf.constant(np.where(counts > 0, weights, 0.0), tf.float32)
