"""One batch as a function of its positions: read, decode, augment. No TensorFlow.

A batch depends on the constructor's arguments and its positions alone: not on the thread or host that asks for it, nor
on when or how often.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
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
from shardline.pipeline.executors import WHY, Show, no_show
from shardline.pipeline.image_types import BadImage
from shardline.pipeline.manifest import UNKNOWN_KERNEL, ImageFormat
from shardline.pipeline.preprocessing import eval_crops
from shardline.pipeline.profiling import StageTimer, Stopwatch
from shardline.pipeline.sampler import PADDING, Sampler, ShuffleSampler, StoredOrder
from shardline.pipeline.shards import BadRecord, Shards

Batch = dict[str, np.ndarray]
Found = tuple[np.ndarray, int] | BadRecord  # pixels uint8 [height, width, 3] RGB and label of a record; or its fault


class BadRecords:
    """The distinct records that could not be used so far, and the failure once they are too many."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, int], BadRecord] = {}
        # Splits and records that nobody may decode, with the reason, a key of WHY: two processes ended over them.
        self.unsafe: dict[tuple[str, int], str] = {}
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
                    "restore the shards from a copy or convert again, or raise --max_bad_records"
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
        show: Show = no_show,  # told each record when it is decoded
    ) -> None:
        self.shards = shards
        self.config = config
        self.image = image
        self._encoding = ENCODINGS[image.encoding]
        self._checked = image.kernel != UNKNOWN_KERNEL  # our converter has decoded every image to its last row
        self.bad = BadRecords() if bad is None else bad
        self.timer = StageTimer() if timer is None else timer
        self._show = show
        self.cache = cache
        self.exact = exact
        self._buffers: Buffers = buffers or BufferPool()
        shuffle = config.seed, config.shuffle_block_size, config.shuffle
        self.sampler = sampler or (StoredOrder(len(shards)) if exact else ShuffleSampler(len(shards), *shuffle))

    def side(self, on_device: bool) -> int:
        """Height and width of a training image as it leaves the host, in pixels."""
        return augment_host.canvas_size(self.config.image_size) if on_device else self.config.image_size

    def train(self, positions: np.ndarray, on_device: bool, found: Mapping[int, Found] | None = None) -> Batch:
        """The training samples at consecutive positions.

        Args:
          positions: int64 [rows].
          on_device: leave the rest of augmentation to the device.
          found: what was decoded elsewhere; by default records are read and decoded here.
        """
        if self.cache and found is None:
            found = self.through_cache(positions, self.find)
        watch = Stopwatch()
        side = self.side(on_device)
        records = self.sampler.records(positions)
        batch = unfilled(positions, records, self._buffers.empty((len(positions), side, side, 3)))
        params = AugmentParams(self.config, positions)
        put = augment_host.send_to_device if on_device else augment_host.augment
        watch.lap("order")
        for row, record in enumerate(records.tolist()):
            pixels = self._image(batch, row, record, watch, found, partial(params.crop, row))
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
        self.timer.add(*watch.sums(), len(positions))
        return batch

    def evaluation(self, positions: np.ndarray, found: Mapping[int, Found] | None = None) -> Batch:
        """The stored records at `positions`, in stored order; padding after the last one. See `train` for `found`."""
        if self.cache and found is None:
            found = self.through_cache(positions, self.find)
        watch, config = Stopwatch(), self.config
        records = self.sampler.records(positions)
        batch = unfilled(positions, records, self._buffers.empty((len(positions), *config.eval_shape)))
        for row, record in enumerate(records.tolist()):
            pixels = self._image(batch, row, record, watch, found) if record != PADDING else None
            if pixels is None:
                batch["image"][row] = 0
            else:
                crops = eval_crops(pixels, config.image_size, config.eval_crop_fraction, config.eval_crops)
                batch["image"][row] = crops.reshape(config.eval_shape)
                watch.lap("preprocess")
        self.timer.add(*watch.sums(), len(positions))
        return batch

    def through_cache(self, positions: np.ndarray, find: Callable[[list[int]], dict[int, Found]]) -> dict[int, Found]:
        """The whole images of the records at `positions`: cached ones, and others, which `find` finds, and are then."""
        assert self.cache
        watch, kept, missing = Stopwatch(), dict[int, Found](), list[int]()
        for record in dict.fromkeys(self.sampler.records(positions).tolist()):
            if record == PADDING:
                continue
            if cached := self.cache.get(record):
                kept[record] = cached
            else:
                missing.append(record)
        watch.lap("read")
        self.timer.add(*watch.sums(), 0)
        found = find(missing)
        for record, image in found.items():
            if not isinstance(image, BadRecord):
                pixels, label = image
                self.cache.put(record, pixels, label)
        return kept | found

    def find(self, records: Iterable[int]) -> dict[int, Found]:
        """The whole images of some records and their labels; or what is wrong with them."""
        watch, found = Stopwatch(), dict[int, Found]()
        for record in records:
            decoded = self._decoded(record, watch)
            found[record] = decoded if isinstance(decoded, BadRecord) else (decoded[0].copy(), decoded[1])
        self.timer.add(*watch.sums(), 0)
        return found

    def _image(
        self,
        batch: Batch,
        row: int,
        record: int,
        watch: Stopwatch,
        found: Mapping[int, Found] | None,
        window: CropBox | None = None,
    ) -> np.ndarray | None:
        """A record's pixels, its label and weight filled in; None when it is bad, which leaves weight 0."""
        image = self._decoded(record, watch, window) if found is None else found[record]
        if isinstance(image, BadRecord):
            self.bad.add(image, self.config.max_bad_records)
            return None
        pixels, batch["label"][row] = image
        batch["weight"][row] = 0.0 if self.shards.unlabelled else 1.0
        return pixels if found is None else cut(pixels, window)

    def _decoded(self, record: int, watch: Stopwatch, window: CropBox | None = None) -> Found:
        """What a window shows of a stored image, valid until this thread decodes another, and its label.

        Raises MemoryError, too.
        """
        try:
            example = self.shards.read_pixels(record)
            watch.lap("read")
            if self.bad.unsafe and (reason := self.bad.unsafe.get((self.shards.split, record))):
                raise BadImage(reason, WHY[reason])
            self._show(record, decoding=True)
            pixels = self._encoding.decode(example, exact=self.exact, window=window, checked=self._checked)
        except ValueError as error:
            shard, offset = self.shards.where(record)
            return BadRecord(self.shards.split, record, shard.name, offset, str(error))
        except MemoryError as error:  # says nothing about the record, but a person will want to know
            raise MemoryError(f"record {record} of {self.shards.split}") from error
        finally:
            self._show(record)
        watch.lap("decode")
        return pixels, example.label


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
