"""Everything that is decided before the first step: devices, data, phases, network."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from shardline import pipeline
from shardline.pipeline import InputConfig
from shardline.pipeline.class_gaps import class_gaps
from shardline.pipeline.cli import log, progress
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.manifest import Manifest
from shardline.pipeline.paths import absolute
from shardline.trainer import schedule
from shardline.trainer.arithmetic import decided
from shardline.trainer.checkpoints import list_checkpoints
from shardline.trainer.cluster import Cluster
from shardline.trainer.config import TrainConfig
from shardline.trainer.data import choose_eval_split, open_data
from shardline.trainer.model import Network, NetworkConfig, create_network, initialize
from shardline.trainer.run_dir import CONFIG_FILE, read_config
from shardline.trainer.step import Batch, Forward, StepConfig
from shardline.trainer.synthetic import SyntheticDataset
from shardline.trainer.weights import check_weights, load_weights

SYNTHETIC_CLASSES, SYNTHETIC_RECORDS = 1000, 1280
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


@dataclass(frozen=True)
class TrainSetup:
    """A checked run, ready to start.

    Attributes:
      input: what the batches are made of.
      eval_split: the held-out split to report on; "" for none.
      spans: the phases, over the samples they consume.
      weights_sha256: of the file with the starting weights; "" for fresh ones.
    """

    config: TrainConfig
    cluster: Cluster
    data: pipeline.TrainingData
    input: InputConfig
    eval_split: str
    spans: tuple[schedule.PhaseSpan, ...]
    weights_sha256: str = ""

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the model's outputs."""
        return self.data.labels

    @property
    def num_records(self) -> int:
        """Records in an epoch."""
        return self.data.num_records(self.config.train_split)

    @property
    def queues_steps(self) -> bool:
        """Whether calls return before their steps are done: on GPUs, but where float16 decides to skip an update."""
        return self.cluster.device_kind == "GPU" and self.config.precision != "mixed_float16"

    @property
    def manifest(self) -> Manifest | None:
        """The dataset's on disk; None for synthetic data."""
        return self.data.manifest if isinstance(self.data, pipeline.Dataset) else None

    @property
    def class_gaps(self) -> list[str]:
        """Which classes the training and the held-out split do not share, a line each."""
        if not self.manifest or not self.eval_split:
            return []
        return class_gaps(self.labels, self.manifest.class_counts, self.config.train_split, self.eval_split)

    @cached_property
    def sampler(self) -> pipeline.Sampler:
        """Position -> record."""
        config, data = self.config, self.data
        if not config.balanced_sampling or not isinstance(data, pipeline.Dataset):
            return pipeline.ShuffleSampler(self.num_records, config.seed, config.shuffle_block_size, config.shuffle)
        numbers = progress(range(self.num_records), total=self.num_records, desc="labels", unit="record")
        labels: list[int] = []
        try:
            for _, label, _ in data.records(config.train_split, numbers):
                labels.append(label)
        except ValueError as error:
            raise Failure(
                f"record {len(labels)} of {config.train_split} cannot be read ({error}), and --balanced_sampling needs "
                "the label of each; restore the shards from a copy or convert again, or leave it out"
            ) from None
        return pipeline.BalancedSampler(np.array(labels), config.seed)

    @property
    def sampler_key(self) -> dict[str, Any]:
        """What position -> sample depends on. A checkpoint only continues under the key it was written with."""
        return {
            "dataset": self.manifest.digest if self.manifest else "synthetic",
            "split": self.config.train_split,
            "records": self.num_records,
            "seed": self.config.seed,
            "shuffle_block_size": self.config.shuffle_block_size,
            "balanced_sampling": self.config.balanced_sampling,
        }

    @property
    def best_metric(self) -> str:
        """What the best checkpoint is chosen by, e.g. `validation top1`; "" where none is."""
        metric = self.config.best_metric
        return "" if metric == "none" else f"{self.eval_split} {metric}"

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

    def stores_features(self, span: schedule.PhaseSpan) -> bool:
        """Whether a phase trains on the frozen layers' output, stored once, in place of images."""
        return bool(self.config.cache_features) and span.phase.part == "head"

    def stretches(self, span: schedule.PhaseSpan, cursor: int) -> Iterator[tuple[TrainSetup, int]]:
        """What is left of a phase at `cursor` by image size: the setup with batches of that size, and where it ends."""
        config = self.config
        # The frozen layers' output is stored once, of images as the model will see them.
        resizes = () if self.stores_features(span) else config.resizes
        for stretch in schedule.stretches(span, cursor, resizes, config.image_size, self.spans[-1].stop):
            yield replace(self, input=replace(self.input, image_size=stretch.image_size)), stretch.stop

    def train_batches(self, cursor: int) -> Iterator[Batch]:
        """Iterator of distributed training batches from the sample at `cursor` on."""
        sampler = self.sampler if self.config.balanced_sampling else None
        split, place = self.config.train_split, self.cluster.place
        batches = self.data.train_batches(split, self.input, cursor=cursor, sampler=sampler, **place)
        return endless(distribute(self.cluster, batches))

    def eval_batches(self) -> Iterable[Batch]:
        """Distributed batches that hold each record of the evaluation split once."""
        return distribute(self.cluster, self.data.eval_batches(self.eval_split, self.input, **self.cluster.place))


def distribute(cluster: Cluster, dataset: tf.data.Dataset) -> Iterable[Batch]:
    """Distributed batches out of elements that are this host's replica batches, in turn."""
    keep_freed_memory()
    batches: Iterable[Batch] = cluster.strategy.distribute_datasets_from_function(lambda context: dataset)
    return batches


@cache
def keep_freed_memory() -> None:
    """Have the C library keep large freed blocks for the next tensors, unless the environment sets that itself.

    It does, until TensorFlow makes its first GeneratorDataset, of which the batches of a strategy are made: that sets
    M_MMAP_THRESHOLD to 128 KiB, once (and logs M_TRIM_THRESHOLD). From then on every gradient lay in memory fresh from
    the kernel: 36,000 page faults and 40 ms a step of VGG16.
    """
    said = os.environ.get("MALLOC_MMAP_THRESHOLD_"), "mmap_threshold" in os.environ.get("GLIBC_TUNABLES", "")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if mallopt and not any(said):
        list(tf.data.Dataset.from_generator(list, tf.int64))  # the first: empty
        mallopt(_M_MMAP_THRESHOLD, 1 << 25)  # the most it takes
        mallopt(_M_TRIM_THRESHOLD, 1 << 28)


def endless(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Iterator of endless distributed batches, which is never destroyed.

    TensorFlow's auto-tuning may miss that its iterator is to end, and sleep on for as long as the iterator has lived,
    up to a minute; who drops the last reference waits for it. A run told to stop has no such time.
    """
    iterator = iter(batches)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(iterator))
    return iterator


def create_setup(config: TrainConfig, cluster: Cluster, kept_weights: str = "") -> TrainSetup:
    """Check the config against the devices and the data. Raises UsageError for what cannot work.

    Args:
      kept_weights: what `weights_begun_with` found on the chief: hosts need no file of weights then. Else the file is
        read and checked.
    """
    config = decided(config)
    settings = config.input_config()
    size = settings.replica_batch_size(cluster.replicas)
    if size % config.micro_batches or (settings.mixes and size // config.micro_batches % 2):
        even = "an even number of " if settings.mixes else ""
        raise UsageError(
            f"--micro_batches={config.micro_batches} does not cut each replica's {size} samples into equal pieces of "
            f"{even}samples; change it or --global_batch_size={config.global_batch_size}"
        )
    if config.cache_features and cluster.hosts > 1:
        raise UsageError(
            "--cache_features works on one host; use --cache_features=0, or train the head on one host first"
        )
    weights = config.weights, config.head, config.width, config.weights_sha256
    weights_sha256 = kept_weights or check_weights(*weights)
    found = open_data(config)
    data = _training_data(config, found)
    return TrainSetup(
        config=config,
        cluster=cluster,
        data=data,
        input=settings,
        eval_split=choose_eval_split(config, found),
        spans=schedule.spans(config.phase_list, data.num_records(config.train_split)),
        weights_sha256=weights_sha256,
    )


def weights_begun_with(config: TrainConfig) -> str:
    """SHA-256 of the `--weights` that the run in the workdir began with, if it has made steps; else "".

    Also "" where it began with other ones, or none.
    """
    workdir = config.workdir
    if workdir and (Path(workdir) / CONFIG_FILE).exists() and list_checkpoints(workdir):
        begun = read_config(workdir, "--workdir")
        found = str(begun["starting_weights_sha256"])
        same = begun["train"].get("weights") in (config.weights, absolute(config.weights))
        if same and config.weights_sha256.lower() in ("", found):
            return found
    return ""


def _training_data(config: TrainConfig, data: pipeline.Dataset | None) -> pipeline.Dataset | SyntheticDataset:
    if data is None:
        return SyntheticDataset(tuple(map(str, range(SYNTHETIC_CLASSES))), SYNTHETIC_RECORDS)
    if config.synthetic:
        return SyntheticDataset(data.labels, data.num_records(config.train_split))
    return data


def initial_network(setup: TrainSetup, *, input_scale: float | None = None) -> Network:
    """The network this run trains, with fresh weights or those of `--weights`, of which the chief says what was taken.

    Call inside the strategy's scope.

    Args:
      input_scale: of a checkpoint that will replace the weights; then `--weights` are not read.
    """
    config = setup.config
    onednn = setup.cluster.device_kind == "CPU" and not config.jit
    network = create_network(NetworkConfig.of(config, len(setup.labels), input_scale=input_scale, onednn=onednn))
    initialize(network, config.seed)
    if config.weights != "none" and input_scale is None:
        loaded = load_weights(network, config.weights, setup.labels)
        if setup.cluster.chief:
            log(f"--weights={config.weights}: SHA-256 {setup.weights_sha256}; {loaded}")
    return network


def train_forward(setup: TrainSetup, network: Network) -> Forward:
    """Batch -> logits and shares of the labels, with augmentation's device half and mixing."""

    def forward(batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        batch = pipeline.augment_on_device(batch, setup.input)
        shares = pipeline.soft_labels(batch, len(setup.labels))
        return network.train([batch["image"], batch["position"]], training=True), shares

    return forward


def eval_forward(setup: TrainSetup, network: Network) -> Forward:
    """Batch -> logits and labels, as a user of the model would see them."""

    def forward(batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.cast(batch["image"], tf.float32)
        logits = network.train([image, batch["position"]], training=False)
        return logits, tf.one_hot(batch["label"], len(setup.labels))

    return forward


def step_config(setup: TrainSetup) -> StepConfig:
    """The part of the config that a step needs."""
    names = ("global_batch_size", "optimizer", "momentum", "clip_norm", "weight_decay", "ema", "micro_batches", "jit")
    return StepConfig(
        **{name: getattr(setup.config, name) for name in (*names, "allreduce_dtype", "label_smoothing")},
        loss_scaling=setup.config.precision == "mixed_float16",
        class_weights=class_weights(setup),
    )


def class_weights(setup: TrainSetup) -> tuple[float, ...]:
    """1 / frequency of each class, averaging 1 over the records; empty for no weights."""
    if setup.config.class_weights == "none":
        return ()
    assert setup.manifest is not None  # which TrainConfig sees to
    counts = np.array(setup.manifest.class_counts[setup.config.train_split], np.float64)
    weights = counts.sum() / (np.maximum(counts, 1) * np.count_nonzero(counts))
    return tuple(np.where(counts > 0, weights, 0.0).tolist())
