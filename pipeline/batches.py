"""One batch as a function of its positions: read, decode, augment. No TensorFlow.

A batch depends on the constructor's arguments and its positions alone: not on the thread or host that asks for it, nor
on when or how often.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

import numpy as np

from shardline.pipeline import augment_host
from shardline.pipeline.augment_params import AugmentParams
from shardline.pipeline.buffers import BufferPool, Buffers
from shardline.pipeline.cache import Cache
from shardline.pipeline.config import InputConfig
from shardline.pipeline.decode import CropBox, cut
from shardline.pipeline.encodings import ENCODINGS
from shardline.pipeline.errors import Failure
from shardline.pipeline.executors import CRASH, WHY
from shardline.pipeline.image_types import BadImage
from shardline.pipeline.manifest import UNKNOWN_KERNEL, ImageFormat
from shardline.pipeline.preprocessing import eval_crops
from shardline.pipeline.profiling import StageTimer, Stopwatch
from shardline.pipeline.sampler import PADDING, Sampler, ShuffleSampler, StoredOrder
from shardline.pipeline.shards import BadRecord, Shards

Batch = dict[str, np.ndarray]


class BadRecords:
    """The distinct records that could not be used so far, and the failure once they are too many."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, int], BadRecord] = {}
        self.unsafe: set[tuple[str, int]] = set()  # splits and records that nobody may decode: it ended a process twice
        self.failure: Failure | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.records)

    def add(self, bad: BadRecord, limit: int) -> None:
        """Count and log a record. Raises Failure when it is one more than `limit`."""
        with self._lock:
            key = (bad.split, bad.record)
            if key not in self.records:
                self.records[key] = bad
                logging.getLogger(__name__).warning("skipped bad %s", bad)
            if len(self.records) > limit and self.failure is None:
                self.failure = Failure(
                    f"{len(self.records)} bad records, more than --max_bad_records={limit}; the last: {bad}; "
                    "restore the shards from a copy or convert again, or allow more"
                )
            if self.failure:
                raise self.failure


class BatchBuilder:
    """Makes the batches of one split."""

    def __init__(
        self,
        shards: Shards,
        config: InputConfig,
        image: ImageFormat,
        *,
        bad: BadRecords | None = None,
        timer: StageTimer | None = None,
        cache: Cache | None = None,
        exact: bool = False,  # for evaluation: exact decoding, in stored order
        sampler: Sampler | None = None,  # None: the shuffle that the config describes
        buffers: Buffers | None = None,  # where the images are put
        on_record: Callable[[int], None] = lambda record: None,  # called with each record before it is decoded
    ) -> None:
        self.shards = shards
        self.config = config
        self.image = image
        self._encoding = ENCODINGS[image.encoding]
        self._checked = image.kernel != UNKNOWN_KERNEL  # our converter has decoded every image to its last row
        self.bad = BadRecords() if bad is None else bad
        self.timer = StageTimer() if timer is None else timer
        self._on_record = on_record
        self._cache = cache
        self.exact = exact
        self._buffers: Buffers = buffers or BufferPool()
        shuffle = config.seed, config.shuffle_block_size, config.shuffle
        self.sampler = sampler or (StoredOrder(len(shards)) if exact else ShuffleSampler(len(shards), *shuffle))

    def side(self, on_device: bool) -> int:
        """Height and width of a training image as it leaves the host, in pixels."""
        return augment_host.canvas_size(self.config.image_size) if on_device else self.config.image_size

    def train(self, positions: np.ndarray, on_device: bool) -> Batch:
        """The training samples at consecutive positions; `on_device` leaves the rest of augmentation to the device."""
        watch = Stopwatch()
        side = self.side(on_device)
        batch = unfilled(
            positions, self.sampler.records(positions), self._buffers.empty((len(positions), side, side, 3))
        )
        params = AugmentParams(self.config, positions)
        put = augment_host.send_to_device if on_device else augment_host.augment
        watch.lap("order")
        for row, record in enumerate(batch["record"].tolist()):
            pixels = self._image(batch, row, record, watch, partial(params.crop, row))
            if pixels is None:
                batch["image"][row] = 0
            else:
                put(pixels, params, row, batch["image"][row])
                watch.lap("augment")
        if on_device:
            batch["augment_params"] = params.values
        elif self.config.mixes:
            batch["label_share"] = augment_host.mix(batch["image"], batch["weight"] > 0, params)
            batch["other_label"] = batch["label"].reshape(-1, 2)[:, ::-1].reshape(-1)
            watch.lap("augment")
        self.timer.add(watch.seconds, watch.cpu_seconds, len(positions))
        return batch

    def evaluation(self, positions: np.ndarray) -> Batch:
        """The stored records at `positions`, in stored order; padding after the last one."""
        watch, config = Stopwatch(), self.config
        records = self.sampler.records(positions)
        batch = unfilled(positions, records, self._buffers.empty((len(positions), *config.eval_shape)))
        for row, record in enumerate(records.tolist()):
            pixels = self._image(batch, row, record, watch) if record != PADDING else None
            if pixels is None:
                batch["image"][row] = 0
            else:
                crops = eval_crops(pixels, config.image_size, config.eval_crop_fraction, config.eval_crops)
                batch["image"][row] = crops.reshape(config.eval_shape)
                watch.lap("preprocess")
        self.timer.add(watch.seconds, watch.cpu_seconds, len(positions))
        return batch

    def _image(
        self, batch: Batch, row: int, record: int, watch: Stopwatch, window: CropBox | None = None
    ) -> np.ndarray | None:
        """Read and decode a record, and fill in its label and weight; None when it is bad, which leaves weight 0."""
        kept = self._cache.get(record) if self._cache else None
        if kept:
            pixels, batch["label"][row] = kept
            watch.lap("read")
        else:
            try:
                example = self.shards.read(record, self.shards.pixel_features)
                watch.lap("read")
                self._on_record(record)
                if self.bad.unsafe and (self.shards.split, record) in self.bad.unsafe:
                    raise BadImage(CRASH, WHY[CRASH])
                pixels = self._encoding.decode(
                    example,
                    exact=self.exact,
                    window=None if self._cache else window,
                    checked=self._checked,
                )
                watch.lap("decode")
            except ValueError as error:
                shard, offset = self.shards.where(record)
                bad = BadRecord(self.shards.split, record, shard.name, offset, str(error))
                self.bad.add(bad, self.config.max_bad_records)
                return None
            batch["label"][row] = example.label
            if self._cache:
                self._cache.put(record, pixels, example.label)
        batch["weight"][row] = 0.0 if self.shards.unlabelled else 1.0
        return cut(pixels, window) if self._cache else pixels


def mean_image_bytes(shards: Shards, encoding: str) -> float:
    """Mean decoded size in bytes of up to 200 images, spread evenly over the split."""
    sizes = []
    for record in np.unique(np.linspace(0, len(shards) - 1, 200).astype(int)).tolist():
        try:
            sizes.append(ENCODINGS[encoding].decode(shards.read(record)).size)
        except ValueError:
            continue  # it is counted and named when a batch needs it
    return float(np.mean(sizes)) if sizes else 0.0


def unfilled(positions: np.ndarray, records: np.ndarray, image: np.ndarray) -> Batch:
    """A batch of weight 0, its images and labels not filled in yet."""
    rows = len(positions)
    return {
        "image": image,
        "label": np.zeros(rows, np.int32),
        "weight": np.zeros(rows, np.float32),
        "record": records.astype(np.int64),
        "position": positions.astype(np.int64),
    }
