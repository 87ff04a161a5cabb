"""Fake batches from memory, in the shape of the real ones: what training could do if input cost nothing."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from shardline.pipeline import InputConfig, Sampler
from shardline.pipeline.sampler import ReplicaBatches


class SyntheticDataset:
    """Stands in for `pipeline.Dataset`: one random batch, again and again, at ever new positions."""

    def __init__(self, labels: tuple[str, ...], num_records: int) -> None:
        self.labels = labels
        self._num_records = num_records

    def num_records(self, split: str) -> int:
        """Examples an epoch pretends to have."""
        return self._num_records

    def train_batches(
        self,
        split: str,
        config: InputConfig,
        *,
        cursor: int = 0,
        host: int = 0,
        hosts: int = 1,
        replicas: int = 1,
        sampler: Sampler | None = None,
    ) -> tf.data.Dataset:
        """Endless; elements as `pipeline.Dataset.train_batches` makes them. The sampler is ignored."""
        replica_batches = ReplicaBatches(config, host, hosts, replicas, cursor)
        return self._batches(replica_batches, tf.int64.max // config.global_batch_size // 2)

    def eval_batches(
        self, split: str, config: InputConfig, *, host: int = 0, hosts: int = 1, replicas: int = 1
    ) -> tf.data.Dataset:
        """As many batches as an epoch has, none of them padded."""
        replica_batches = ReplicaBatches(config, host, hosts, replicas)
        return self._batches(replica_batches, self._num_records // config.global_batch_size)

    def _batches(self, replica_batches: ReplicaBatches, steps: int) -> tf.data.Dataset:
        config, size = replica_batches.config, replica_batches.size
        rng = np.random.default_rng([config.seed, replica_batches.host])
        image = tf.constant(rng.integers(0, 256, (size, config.image_size, config.image_size, 3), np.uint8))
        label = tf.constant(rng.integers(0, len(self.labels), size).astype(np.int32))

        def element(number: tf.Tensor) -> dict[str, tf.Tensor]:
            position = replica_batches.positions(number)
            return {
                "image": image,
                "label": label,
                "weight": tf.ones([size]),
                "record": position % self._num_records,
                "position": position,
            }

        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        return tf.data.Dataset.range(steps * replica_batches.replicas).map(element).prefetch(2).with_options(options)
