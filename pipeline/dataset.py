"""open_dataset -> train_batches, eval_batches: the tf.data graph around `pipeline.batches`.

The graph is a counter, one parallel call that makes a whole batch, and a prefetch. A call makes the batch itself, in
native code that lets other Python threads run, or has it made by a worker process (`pipeline.workers`), which scales
better. TensorFlow is imported with the first batches: opening a dataset, and reading raw examples, do without.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shardline.pipeline import exit_guard
from shardline.pipeline.augment_params import num_columns
from shardline.pipeline.batches import BadRecords, Batch, BatchBuilder, mean_image_bytes
from shardline.pipeline.cache import Cache, DirectoryCache, MemoryCache
from shardline.pipeline.config import InputConfig
from shardline.pipeline.errors import UsageError
from shardline.pipeline.machine import available_cores
from shardline.pipeline.manifest import Manifest
from shardline.pipeline.profiling import StageTimer, StageTimes
from shardline.pipeline.sampler import Sampler
from shardline.pipeline.shards import Shards
from shardline.pipeline.workers import Workers

if TYPE_CHECKING:
    import tensorflow as tf

Spec = dict[str, tuple[tuple[int, ...], type[np.generic]]]  # shape and type of each part of a batch

_LAST = 2**62  # an endless stream must end somewhere


def open_dataset(directory: str | os.PathLike[str]) -> Dataset:
    """Open a converted or adopted dataset. Raises UsageError that names what is missing, damaged or replaced."""
    return Dataset(directory)


class Dataset:
    """A dataset on disk: its manifest, and batches of its splits."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self.manifest = Manifest.load(directory)
        self.labels = self.manifest.labels
        self.bad_records = BadRecords()  # of all batches made so far
        self._clock = StageTimer()
        self._caches: dict[tuple[str, str, bool], Cache] = {}
        self._worker_pools: dict[tuple[str, InputConfig, int], Workers] = {}
        self._error: Exception | None = None
        self._shards = {name: Shards(self.manifest, directory, name) for name in self.manifest.splits}

    def num_records(self, split: str) -> int:
        """Number of stored records of a split."""
        return self.manifest.split(split).records

    def records(self, split: str, numbers: Sequence[int]) -> Iterator[tuple[bytes, int, str]]:
        """Stored image bytes, label and source file name of some records, in the order asked for."""
        shards = self._split(split)
        for number in numbers:
            example = shards.read(int(number))
            yield bytes(example.image), example.label, example.filename

    def train_batches(
        self,
        split: str,
        config: InputConfig,
        *,
        cursor: int = 0,
        host: int = 0,
        hosts: int = 1,
        replicas: int = 1,
        order: Sampler | None = None,
    ) -> tf.data.Dataset:
        """Endless batches of this host's share, from the sample at position `cursor` on.

        Elements are dictionaries: image uint8 [b, h, w, 3], label int32 [b], weight float32 [b] (0 where the record
        was bad), record int64 [b], position int64 [b]. Host h of H gets rows [h * B / H, (h + 1) * B / H) of each
        global batch. With `replicas` = R each share comes in R consecutive elements of b / R rows, which is what
        `tf.distribute.Strategy.distribute_datasets_from_function` hands to the replicas of a host. `order`, or
        anything with its method `records`, replaces the shuffle that `config` describes.
        """
        if not self.num_records(split):
            raise UsageError(f"--split={split} holds no records to train on")
        if cursor < 0 or (config.mixes and cursor % 2):
            raise UsageError(f"cursor={cursor}: use 0 or more{', even when pairs are mixed' if config.mixes else ''}")
        _check_host(host, hosts)
        rows = config.replica_batch_size(hosts, replicas)
        batches = self._batches(split, config, order=order)
        on_device = augment_on(config) == "device"

        def make(element: int) -> Batch:
            step, replica = divmod(element, replicas)
            first = cursor + step * config.global_batch_size + (host * replicas + replica) * rows
            positions = np.arange(first, first + rows)
            made = workers.train(batches, positions, on_device) if workers else None
            return made or batches.train(positions, on_device)

        side = batches.side(on_device)
        workers = self._workers(split, config, rows * side * side * 3)
        spec = _spec(rows, (side, side, 3))
        if on_device:
            spec["edits"] = ((rows, num_columns(config)), np.float32)
        elif config.mixes:
            spec["label_share"] = ((rows,), np.float32)
            spec["other_label"] = ((rows,), np.int32)
        return self._graph(make, _LAST, spec, config)

    def eval_batches(
        self, split: str, config: InputConfig, *, host: int = 0, hosts: int = 1, replicas: int = 1
    ) -> tf.data.Dataset:
        """Each record once, in stored order; the last batch is filled up with rows of weight 0 and record -1.

        Every host gets the same number of batches, all of the same size. Elements, and the meaning of `replicas`,
        are those of `train_batches`, without augmentation.
        """
        from shardline.pipeline.preprocessing import eval_crops

        num_records = self.num_records(split)
        _check_host(host, hosts)
        rows = config.replica_batch_size(hosts, replicas)
        batches = self._batches(split, config, exact=True)

        def show(pixels: np.ndarray) -> np.ndarray:
            crops = eval_crops(pixels, config.image_size, config.eval_crop_fraction, config.eval_crops)
            return crops if config.eval_crops > 1 else crops[0]

        def make(element: int) -> Batch:
            step, replica = divmod(element, replicas)
            first = step * config.global_batch_size + (host * replicas + replica) * rows
            return batches.evaluation(np.arange(first, first + rows), show)

        steps = -(-num_records // config.global_batch_size)
        size, crops = config.image_size, config.eval_crops
        shape = (size, size, 3) if crops == 1 else (crops, size, size, 3)
        return self._graph(make, steps * replicas, _spec(rows, shape), config)

    def stage_times(self, iterator: Any = None) -> StageTimes:
        """What each stage has cost so far, and which one holds the rest up.

        Args:
          iterator: of a dataset made here and given the option `autotune.enabled`, without which tf.data keeps no
            model of it, if tf.data's view (threads, whether the consumer waits) is wanted too.
        """
        return self._clock.times(iterator)

    @contextlib.contextmanager
    def failures(self) -> Iterator[None]:
        """Within it, a batch that failed raises what went wrong (Failure, OSError), not TensorFlow's wrapping of it."""
        import tensorflow as tf

        try:
            yield
        except tf.errors.OpError as error:
            if self._error is None:
                raise
            raise self._error from error

    def _split(self, split: str) -> Shards:
        self.manifest.split(split)
        return self._shards[split]

    def _batches(
        self, split: str, config: InputConfig, *, exact: bool = False, order: Sampler | None = None
    ) -> BatchBuilder:
        return BatchBuilder(
            self._shards[split],
            config,
            self.manifest.image,
            bad=self.bad_records,
            clock=self._clock,
            cache=self._cache(split, config.cache, exact),
            exact=exact,
            order=order,
        )

    def _workers(self, split: str, config: InputConfig, batch_bytes: int) -> Workers | None:
        """The processes that make a split's training batches: the same ones wherever they begin."""
        later = config.workers < 0
        count = _threads(config) if later else config.workers
        if config.cache != "none" or count <= later:
            return None  # one process fills a cache, and one core has no use for a second process
        key = (split, config, batch_bytes)
        if key not in self._worker_pools:
            self._worker_pools[key] = Workers(count, batch_bytes, at_once=not later)
        return self._worker_pools[key]

    def _cache(self, split: str, where: str, exact: bool) -> Cache | None:
        """The cache of a split's images: one for all batches that are made from this object."""
        if where == "none":
            return None
        key = (split, where, exact)
        if key not in self._caches:
            shards = self._shards[split]
            size = mean_image_bytes(shards, self.manifest.image.encoding)
            name = f"{self.manifest.digest[:16]}-{split}-{'exact' if exact else 'fast'}"
            self._caches[key] = (
                MemoryCache(len(shards), size) if where == "memory" else DirectoryCache(where, name, len(shards), size)
            )
        return self._caches[key]

    def _graph(self, make: Callable[[int], Batch], elements: int, spec: Spec, config: InputConfig) -> tf.data.Dataset:
        """The batches make(0), make(1), … in that order, made by several threads."""
        import tensorflow as tf

        def call(element: np.int64) -> list[np.ndarray]:
            try:
                batch = exit_guard.run(lambda: make(int(element)), lambda: _blank(spec))
            except Exception as error:
                self._error = error
                raise
            return [batch[name] for name in spec]

        def element(number: tf.Tensor) -> dict[str, tf.Tensor]:
            kinds = [kind for _, kind in spec.values()]
            values = tf.numpy_function(call, [number], kinds, stateful=False)  # so that iterators can be saved
            return {name: tf.ensure_shape(value, spec[name][0]) for name, value in zip(spec, values, strict=True)}

        threads = max(_threads(config), config.workers)
        options = tf.data.Options()
        options.deterministic = True
        # Nothing here is left to tune, and the tuner may hold up the end of an iterator for a minute: told to stop
        # just before it goes to sleep, it sleeps.
        options.autotune.enabled = False
        options.threading.private_threadpool_size = threads
        # Shares are cut here, by row: another cut by tf.distribute would lose samples.
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        dataset = tf.data.Dataset.range(elements).map(element, num_parallel_calls=threads)
        return dataset.prefetch(2).with_options(options)


def _threads(config: InputConfig) -> int:
    return config.threads or available_cores()


def augment_on(config: InputConfig) -> str:
    """`host` or `device`: where the second half of augmentation runs; auto means on the GPU if there is one."""
    if config.augment_on != "auto":
        return config.augment_on
    import tensorflow as tf

    return "device" if tf.config.list_physical_devices("GPU") else "host"


def _check_host(host: int, hosts: int) -> None:
    if not 0 <= host < hosts:
        raise UsageError(f"host={host} of hosts={hosts}: hosts count from 0")


def _spec(rows: int, image_shape: tuple[int, ...]) -> Spec:
    return {
        "image": ((rows, *image_shape), np.uint8),
        "label": ((rows,), np.int32),
        "weight": ((rows,), np.float32),
        "record": ((rows,), np.int64),
        "position": ((rows,), np.int64),
    }


def _blank(spec: Spec) -> Batch:
    return {name: np.zeros(shape, kind) for name, (shape, kind) in spec.items()}
