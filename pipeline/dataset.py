"""open_dataset -> train_batches, eval_batches: the tf.data graph around `pipeline.batches`.

The graph is a counter, one parallel call that makes a whole batch, and a prefetch. A call hands the batch to a worker
process (`pipeline.workers`), which scales better than threads and may crash; or it makes the batch itself, in native
code that releases the interpreter lock. TensorFlow is imported with the first batches: opening a dataset and reading
its records work without it.
"""

from __future__ import annotations

import contextlib
import math
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from shardline.pipeline import exit_guard
from shardline.pipeline.augment_params import num_columns
from shardline.pipeline.batches import BadRecords, Batch, BatchBuilder
from shardline.pipeline.blocks_ahead import BlocksAhead
from shardline.pipeline.cache import Cache, DirectoryCache, MemoryCache
from shardline.pipeline.config import InputConfig
from shardline.pipeline.errors import UsageError
from shardline.pipeline.machine import available_cores
from shardline.pipeline.manifest import ImageFormat, Manifest, Split, generation_folder
from shardline.pipeline.paths import is_remote, local_path
from shardline.pipeline.profiling import StageTimer, StageTimes
from shardline.pipeline.remote import PIECE_BYTES, DataCacheOptions, Mirror, open_mirror
from shardline.pipeline.sampler import ReplicaBatches, Sampler, ShuffleSampler
from shardline.pipeline.shards import BadRecord, Shards
from shardline.pipeline.wording import count
from shardline.pipeline.workers import PREFETCHED, Workers, pieces_in_flight, start_ahead, stored_images

if TYPE_CHECKING:
    import tensorflow as tf

Spec = dict[str, tuple[tuple[int, ...], type[np.generic]]]  # shape and type of each part of a batch

_ENDLESS = 2**62  # elements
_LOOK_AHEAD = 1 << 20  # samples, to find out which shards are needed first


def open_dataset(
    directory: str | os.PathLike[str], options: DataCacheOptions | None = None, *, digest: str = ""
) -> Dataset:
    """Open a converted or adopted dataset: a directory, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER.

    Args:
      directory: where it is.
      options: which generation, and where shards from an object store are kept.
      digest: open the generation that has it, if there is one; it goes before that of `options`.

    Raises:
      UsageError: names what is missing, damaged or replaced.
      Failure: an object store gave no answer.
    """
    return Dataset(directory, options, digest=digest)


class TrainingData(Protocol):
    """What a trainer needs of its data; `Dataset` has it, and so does a stand-in for input that costs nothing."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, by label."""
        ...

    def num_records(self, split: str) -> int:
        """Number of records of a split."""
        ...

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
        """See `Dataset.train_batches`."""
        ...

    def eval_batches(
        self, split: str, config: InputConfig, *, host: int = 0, hosts: int = 1, replicas: int = 1
    ) -> tf.data.Dataset:
        """See `Dataset.eval_batches`."""
        ...


class Dataset:
    """A dataset on disk or in an object store: its manifest, and batches of its splits.

    Attributes:
      where: as it was opened.
      manifest: of the generation that was asked for; `latest` of the last one.
      directory: where its manifest is, and, once they were read, its shards: `where` itself, or a mirror of it.
      builder: what makes its batches.
    """

    builder = BatchBuilder

    def __init__(
        self, directory: str | os.PathLike[str], options: DataCacheOptions | None = None, *, digest: str = ""
    ) -> None:
        self.where, options = _located(directory), options or DataCacheOptions()
        self._mirror: Mirror | None = None
        if is_remote(self.where):
            self._mirror, self.manifest = open_mirror(self.where, options)
        else:
            opened = contextlib.ExitStack()
            self.manifest = opened.enter_context(Manifest.opened(self.where))
            weakref.finalize(self, opened.close)  # as long as this object lives, nobody replaces its files
        self.latest = self.manifest
        self.manifest = self.latest.at(self.latest.generation_of(digest) or options.generation)
        self.directory = self._mirror.folder if self._mirror else Path(self.where)
        self.labels = self.manifest.labels
        self.bad_records = BadRecords()  # of all batches made so far
        self._timers = {"training": StageTimer(), "evaluation": StageTimer()}
        self._caches: dict[tuple[str, str, bool], Cache] = {}
        self._worker_pools: dict[tuple[str, InputConfig, int, bool], Workers] = {}
        self._error: Exception | None = None
        self._shards = {
            name: Shards(self.manifest, self.directory, name, self._mirror) for name in self.manifest.splits
        }

    def num_records(self, split: str) -> int:
        """Number of stored records of a split."""
        return self.manifest.split(split).records

    def records(self, split: str, numbers: Sequence[int]) -> Iterator[tuple[bytes, int, str]]:
        """Stored image bytes, label and source file name of some records, in the given order."""
        shards = self.shards(split)
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
        sampler: Sampler | None = None,
    ) -> tf.data.Dataset:
        """Endless replica batches of one host, from the sample at position `cursor` on.

        Elements are dictionaries: image uint8 [b, h, w, 3], label int32 [b], weight float32 [b] (0 where the record
        was bad), record int64 [b], position int64 [b]; b is the replica batch size. `ReplicaBatches` says which
        positions an element holds; their order is the one in which
        `tf.distribute.Strategy.distribute_datasets_from_function` hands elements to the replicas of a host.

        Args:
          split: one of `manifest.splits`.
          config: sizes, augmentation, order and speed.
          cursor: position of the first sample, e.g. from a checkpoint.
          host: number of this host, from 0.
          hosts: how many there are.
          replicas: devices of this host.
          sampler: replaces the shuffle that `config` describes.

        Raises:
          UsageError: the split holds no records, or the arguments do not fit each other.
        """
        replica_batches = ReplicaBatches(config, host, hosts, replicas, cursor)
        on_device = augment_on(config) == "device"
        make, side = self._train_maker(split, config, replica_batches, on_device, sampler)
        return self._graph(make, _ENDLESS, _train_spec(replica_batches.size, side, config, on_device), config)

    def eval_batches(
        self, split: str, config: InputConfig, *, host: int = 0, hosts: int = 1, replicas: int = 1
    ) -> tf.data.Dataset:
        """Each record once, in stored order; the last batch is padded with elements of weight 0 and record -1.

        Records of a split without labels have label -1 and weight 0.

        Every host gets the same number of batches, all of the same size. Elements and arguments are those of
        `train_batches`, without augmentation.
        """
        replica_batches = ReplicaBatches(config, host, hosts, replicas)
        make, elements = self._eval_maker(split, config, replica_batches)
        return self._graph(make, elements, _spec(replica_batches.size, config.eval_shape), config)

    def numpy_batches(
        self,
        split: str,
        config: InputConfig,
        *,
        evaluation: bool = False,
        cursor: int = 0,
        host: int = 0,
        hosts: int = 1,
        replicas: int = 1,
        sampler: Sampler | None = None,
    ) -> Iterator[Batch]:
        """The elements of `train_batches`, or of `eval_batches`, as NumPy arrays and without TensorFlow.

        For PyTorch, JAX or a loop of one's own: the same order, cursor and bits. Images are augmented on the host
        unless `config.augment_on` is device. An array's memory is used again once nothing refers to it.

        Raises:
          UsageError: as those do.
          Failure: too many records are bad.
        """
        replica_batches = ReplicaBatches(config, host, hosts, replicas, 0 if evaluation else cursor)
        elements = _ENDLESS
        if evaluation:
            make, elements = self._eval_maker(split, config, replica_batches)
        else:
            make, _ = self._train_maker(split, config, replica_batches, config.augment_on == "device", sampler)
        return _in_order(make, elements, max(_threads(config), config.workers))

    def start_workers(self, config: InputConfig | None = None) -> None:
        """Start worker processes in the background, while something else is done: TensorFlow imported, a model made."""
        start_ahead(_count_workers(config or InputConfig()))

    def stage_times(self, iterator: tf.data.Iterator | None = None, *, of: str = "training") -> StageTimes:
        """What each stage has cost so far, and which one limits the rest.

        Args:
          of: training or evaluation, each with batches of its own kind.
          iterator: adds tf.data's view of it (threads, whether the consumer waits). It must be one of batches made
            here, with the option `autotune.enabled`, without which tf.data keeps no model.
        """
        return self._timers[of].times(iterator)

    @contextlib.contextmanager
    def failures(self) -> Iterator[None]:
        """Within it, a batch that fails raises its own error (Failure, OSError) instead of TensorFlow's wrapping."""
        import tensorflow as tf

        try:
            yield
        except tf.errors.OpError as error:
            if self._error is None:
                raise
            raise self._error from error

    def shards(self, split: str) -> Shards:
        """Random access to the records of a split. Raises UsageError when there is no such split."""
        self.manifest.split(split)
        return self._shards[split]

    def companion(self, name: str) -> Path:
        """Where a file of the dataset beside its shards is, e.g. sources.parquet. Raises FileNotFoundError.

        Those of later generations are then in their folders.
        """
        if self._mirror:
            for generation in range(1, self.latest.num_generations + 1):
                self._mirror.companion(generation_folder(generation) + name)
        return self.directory / name

    def read_pieces(self) -> None:
        """Have pieces of shards fetched from an object store, and not whole ones, from now on: for few records."""
        for shards in self._shards.values():
            shards.in_pieces = True

    def _train_maker(
        self, split: str, config: InputConfig, batches: ReplicaBatches, on_device: bool, sampler: Sampler | None
    ) -> tuple[Callable[[int], Batch], int]:
        """What makes each training batch, and the side of its images in pixels."""
        if not self.num_records(split):
            raise UsageError(f"--split={split} holds no records to train on")
        self.manifest.refuse_unlabelled(split, "--split")
        builder = self._builder(split, config, sampler=sampler)
        ahead = self._fetch_ahead(split, builder.sampler, batches, once=False)

        def make(number: int) -> Batch:
            positions = batches.positions(number)
            if ahead:
                ahead.reach(number)
            return workers.train(builder, positions, on_device) if workers else builder.train(positions, on_device)

        side = builder.side(on_device)
        workers = self._workers(split, config, batches.size * side * side * 3, batches.replicas)
        return make, side

    def _eval_maker(
        self, split: str, config: InputConfig, batches: ReplicaBatches
    ) -> tuple[Callable[[int], Batch], int]:
        """What makes each batch of an evaluation, and how many there are on a host."""
        num_records = self.num_records(split)
        builder = self._builder(split, config, exact=True)
        ahead = self._fetch_ahead(split, builder.sampler, batches, once=True)

        def make(number: int) -> Batch:
            positions = batches.positions(number)
            if ahead:
                ahead.reach(number)
            return workers.evaluation(builder, positions) if workers else builder.evaluation(positions)

        workers = self._workers(
            split, config, batches.size * math.prod(config.eval_shape), batches.replicas, exact=True
        )
        return make, -(-num_records // config.global_batch_size) * batches.replicas

    def _fetch_ahead(self, split: str, sampler: Sampler, batches: ReplicaBatches, *, once: bool) -> BlocksAhead | None:
        """Have a split's shards fetched, if they lie in an object store, in the order in which they are needed first.

        Args:
          once: each record is read once, in stored order.

        Returns:
          Where not all shards fit into the cache, what has to be told of each batch that is made.

        Raises:
          UsageError: they do not fit, and are read in random order.
        """
        if not self._mirror:
            return None
        found, limit = self.manifest.split(split), self._mirror.limit_bytes
        if found.bytes > limit:
            return self._blocks_ahead(found, sampler, batches, once)
        positions = np.arange(batches.cursor, batches.cursor + min(found.records, _LOOK_AHEAD))
        ends = np.cumsum([shard.records for shard in found.shards])
        numbers, first = np.unique(np.searchsorted(ends, sampler.records(positions), side="right"), return_index=True)
        order = dict.fromkeys([*numbers[np.argsort(first)].tolist(), *range(len(found.shards))])
        self._mirror.fetch_ahead([found.shards[number] for number in order])
        return None

    def _blocks_ahead(self, split: Split, sampler: Sampler, batches: ReplicaBatches, once: bool) -> BlocksAhead | None:
        assert self._mirror
        mean, limit = split.bytes / split.records, self._mirror.limit_bytes
        block = math.ceil(PIECE_BYTES / mean)
        in_order = once or (isinstance(sampler, ShuffleSampler) and not sampler.shuffle)
        if not in_order:
            block = sampler.shuffle_block_size if isinstance(sampler, ShuffleSampler) else 1
            if block * mean < PIECE_BYTES:
                raise UsageError(too_large(split, limit))

        def records(number: int) -> np.ndarray:
            positions = batches.positions(number)
            assert isinstance(positions, np.ndarray)
            return sampler.records(positions[positions < split.records] if once else positions)

        ahead = BlocksAhead(self._mirror, self._shards[split.name], records, batches.size, block, int(limit / 2 / mean))
        if 2 * ahead.samples * mean > limit:
            if in_order:
                return None  # one shard after another
            raise UsageError(
                f"--data_cache_gb={limit / 1e9:g}: {ahead.samples:,} records are fetched ahead, "
                f"{ahead.samples * mean / 1e9:.2g} GB; use {2 * ahead.samples * mean / 1e9:.2g} or more"
            )
        self._shards[split.name].in_pieces = True
        return ahead

    def _builder(
        self, split: str, config: InputConfig, *, exact: bool = False, sampler: Sampler | None = None
    ) -> BatchBuilder:
        return self.builder(
            self._shards[split],
            config,
            self.manifest.image,
            bad=self.bad_records,
            timer=self._timers["evaluation" if exact else "training"],
            cache=self._cache(split, config.cache, exact),
            exact=exact,
            sampler=sampler,
        )

    def _workers(
        self, split: str, config: InputConfig, batch_bytes: int, replicas: int, exact: bool = False
    ) -> Workers | None:
        """The processes that make a split's batches, the same ones for every cursor; None for threads."""
        count = _count_workers(config)
        if not count:
            return None
        key = (split, config, batch_bytes, exact)
        if key not in self._worker_pools:
            pieces = pieces_in_flight(max(_threads(config), count), replicas, batch_bytes)
            self._worker_pools[key] = Workers(count, batch_bytes, pieces)
        return self._worker_pools[key]

    def _cache(self, split: str, where: str, exact: bool) -> Cache | None:
        """The cache of a split's images, shared by all batches made from this object."""
        if where == "none":
            return None
        key = (split, where, exact)
        if key not in self._caches:
            shards = self._shards[split]
            size = mean_image_bytes(shards, self.manifest.image)
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
                batch = exit_guard.run_unless_exiting(lambda: make(int(element)), lambda: _blank(spec))
            except Exception as error:
                self._error = error
                raise
            return [batch[name] for name in spec]

        @tf.autograph.experimental.do_not_convert
        def element(number: tf.Tensor) -> dict[str, tf.Tensor]:
            kinds = [kind for _, kind in spec.values()]
            values = tf.numpy_function(call, [number], kinds, stateful=False)  # so that iterators can be saved
            return {name: tf.ensure_shape(value, spec[name][0]) for name, value in zip(spec, values, strict=True)}

        threads = max(_threads(config), config.workers)
        options = tf.data.Options()
        options.deterministic = True
        # Nothing is left to tune, and the tuner can delay the end of an iterator by a minute: it sleeps through a
        # request to stop that arrives just before.
        options.autotune.enabled = False
        options.threading.private_threadpool_size = threads
        # Batches are split over hosts by position: if tf.distribute split them again, samples would be lost.
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        dataset = tf.data.Dataset.range(elements).map(element, num_parallel_calls=threads)
        return dataset.prefetch(PREFETCHED).with_options(options)


def _located(directory: str | os.PathLike[str]) -> str:
    """The address or local path that a name means. Raises UsageError where it can be neither."""
    try:
        return local_path(os.fspath(directory), "dataset")
    except ValueError as error:
        raise UsageError(f"--data={os.fspath(directory)}: {error}") from None


def _in_order(make: Callable[[int], Batch], elements: int, threads: int) -> Iterator[Batch]:
    """make(0), make(1), … in that order, some of them made ahead."""
    with ThreadPoolExecutor(threads, thread_name_prefix="batches") as pool:
        ahead: deque[Future[Batch]] = deque()
        try:
            for number in range(elements):
                ahead.append(pool.submit(make, number))
                if len(ahead) > threads + PREFETCHED:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for unwanted in ahead:
                unwanted.cancel()


def too_large(split: Split, limit_bytes: int) -> str:
    """What an exact shuffle would fetch of a split that does not fit into the cache."""
    share = 1 - limit_bytes / split.bytes
    often = share * split.records / len(split.shards)
    mean = split.bytes / split.records
    block = max(64, math.ceil(PIECE_BYTES / mean))
    return (
        f"--data_cache_gb={limit_bytes / 1e9:,.1f}: split {split.name} has {split.bytes / 1e9:,.1f} GB, and shuffled "
        f"records would have each of its {count(len(split.shards), 'shard')} fetched about {often:,.0f} times an "
        f"epoch, {often * split.bytes / 1e9:,.0f} GB in all; use {math.ceil(split.bytes / 1e9)} or more, "
        f"--shuffle_block_size={block} or more, by which blocks of {block * mean / 1e6:,.1f} MB are fetched once, or "
        "--noshuffle"
    )


def mean_image_bytes(shards: Shards, image: ImageFormat) -> float:
    """Mean decoded size in bytes of up to 200 images, spread evenly over the split."""
    records = np.unique(np.linspace(0, len(shards) - 1, 200).astype(int)).tolist()
    # A bad record is counted and named when a batch needs it.
    sizes = [found[0].size for found in stored_images(shards, image, records) if not isinstance(found, BadRecord)]
    return float(np.mean(sizes)) if sizes else 0.0


def _count_workers(config: InputConfig) -> int:
    return _threads(config) if config.workers < 0 else config.workers


def _threads(config: InputConfig) -> int:
    return config.threads or available_cores()


def augment_on(config: InputConfig) -> str:
    """`host` or `device`: where the second half of augmentation runs; auto means on the GPU if there is one."""
    if config.augment_on != "auto":
        return config.augment_on
    import tensorflow as tf

    return "device" if tf.config.get_visible_devices("GPU") else "host"


def _spec(size: int, image_shape: tuple[int, ...]) -> Spec:
    return {
        "image": ((size, *image_shape), np.uint8),
        "label": ((size,), np.int32),
        "weight": ((size,), np.float32),
        "record": ((size,), np.int64),
        "position": ((size,), np.int64),
    }


def _train_spec(size: int, side: int, config: InputConfig, on_device: bool) -> Spec:
    spec = _spec(size, (side, side, 3))
    if on_device:
        spec["augment_params"] = ((size, num_columns(config)), np.float32)
    elif config.mixes:
        spec["label_share"] = ((size,), np.float32)
        spec["other_label"] = ((size,), np.int32)
    return spec


def _blank(spec: Spec) -> Batch:
    return {name: np.zeros(shape, kind) for name, (shape, kind) in spec.items()}
