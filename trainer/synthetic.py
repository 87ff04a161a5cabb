"""Fake batches from memory, in the shape of the real ones: what training could do if input cost nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from shardline.pipeline import InputConfig


class SyntheticDataset:
    """Stands in for `pipeline.Dataset`: one random batch, again and again, at ever new positions."""

    def __init__(self, labels: tuple[str, ...], num_records: int) -> None:
        self.labels = labels
        self._num_records = num_records

    def num_records(self, split: str) -> int:
        """Examples an epoch pretends to have."""
        return self._num_records

    def train_batches(
        self, split: str, config: InputConfig, *, cursor: int = 0, host: int = 0, hosts: int = 1, replicas: int = 1
    ) -> Any:
        """Endless; elements as `pipeline.Dataset.train_batches` makes them."""
        return self._batches(config, cursor, host, hosts, replicas, tf.int64.max // config.global_batch_size // 2)

    def eval_batches(self, split: str, config: InputConfig, *, host: int = 0, hosts: int = 1, replicas: int = 1) -> Any:
        """As many batches as an epoch has, none of them padded."""
        return self._batches(config, 0, host, hosts, replicas, self._num_records // config.global_batch_size)

    def _batches(self, config: InputConfig, cursor: int, host: int, hosts: int, replicas: int, steps: int) -> Any:
        rows, size = config.replica_batch_size(hosts, replicas), config.image_size
        draw = np.random.default_rng([config.seed, host])
        image = tf.constant(draw.integers(0, 256, (rows, size, size, 3), np.uint8))
        label = tf.constant(draw.integers(0, len(self.labels), rows).astype(np.int32))

        def element(number: Any) -> dict[str, Any]:
            step, replica = number // replicas, number % replicas
            position = (
                cursor
                + step * config.global_batch_size
                + (host * replicas + replica) * rows
                + tf.range(rows, dtype=tf.int64)
            )
            weight = tf.ones([rows])
            return {
                "image": image,
                "label": label,
                "weight": weight,
                "record": position % self._num_records,
                "position": position,
            }

        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        return tf.data.Dataset.range(steps * replicas).map(element).prefetch(2).with_options(options)
