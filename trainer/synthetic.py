"""Synthetic batches from memory, in the shape of the real ones: what training could do if input cost nothing."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from shardline.pipeline import InputConfig, Sampler, augment_host
from shardline.pipeline.augment_params import AugmentParams
from shardline.pipeline.batches import Batch
from shardline.pipeline.dataset import augment_on
from shardline.pipeline.sampler import ReplicaBatches


class SyntheticDataset:
    """Stands in for `pipeline.Dataset`: one random batch, again and again, at ever new positions."""

    def __init__(self, labels: tuple[str, ...], num_records: int) -> None:
        self.labels = labels
        self._num_records = num_records

    def num_records(self, split: str) -> int:
        """Records in an epoch of any split."""
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
        on_device = augment_on(config) == "device"
        side = augment_host.canvas_size(config.image_size) if on_device else config.image_size
        batch = self._images(replica_batches, side)
        params = AugmentParams(config, np.arange(replica_batches.size))
        if on_device:
            params.values[:, params.columns["crop_size"]] = side
            batch["augment_params"] = params.values
        elif config.mixes:
            batch["label_share"] = augment_host.mix(batch["image"], np.ones(replica_batches.size, bool), params)
            batch["other_label"] = batch["label"].reshape(-1, 2)[:, ::-1].reshape(-1)
        return self._repeat(batch, replica_batches, tf.int64.max // config.global_batch_size // 2)

    def eval_batches(
        self, split: str, config: InputConfig, *, host: int = 0, hosts: int = 1, replicas: int = 1
    ) -> tf.data.Dataset:
        """As many batches as an epoch has, none of them padded."""
        replica_batches = ReplicaBatches(config, host, hosts, replicas)
        batch = self._images(replica_batches, config.image_size)
        return self._repeat(batch, replica_batches, self._num_records // config.global_batch_size)

    def _images(self, replica_batches: ReplicaBatches, side: int) -> Batch:
        rng = np.random.default_rng([replica_batches.config.seed, replica_batches.host])
        size = replica_batches.size
        image = rng.integers(0, 256, (size, side, side, 3), np.uint8)
        label = rng.integers(0, len(self.labels), size).astype(np.int32)
        return {"image": image, "label": label, "weight": np.ones(size, np.float32)}

    def _repeat(self, batch: Batch, replica_batches: ReplicaBatches, steps: int) -> tf.data.Dataset:
        constants = {name: tf.constant(values) for name, values in batch.items()}

        @tf.autograph.experimental.do_not_convert
        def element(number: tf.Tensor) -> dict[str, tf.Tensor]:
            position = replica_batches.positions(number)
            return constants | {"record": position % self._num_records, "position": position}

        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        return tf.data.Dataset.range(steps * replica_batches.replicas).map(element).prefetch(2).with_options(options)
