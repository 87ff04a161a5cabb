"""InputConfig: what the batches are made of, checked once, on creation. No TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shardline.pipeline.errors import UsageError

AUGMENT_ON = ("host", "device", "auto")


@dataclass(frozen=True)
class InputConfig:
    """How records become batches. Raises UsageError for a value that cannot work.

    The order of records depends on `seed`, `shuffle_block_size` and `shuffle` alone; the pixels also on `image_size`
    and the augmentation. `augment_on`, `cache`, `threads` and `workers` change where and how fast work is done, not
    what comes out.
    """

    global_batch_size: int = 256
    image_size: int = 224  # pixels, square
    seed: int = 0
    shuffle: bool = True
    shuffle_block_size: int = 1  # stored records read together; 1 shuffles exactly

    augment_on: str = "host"  # host, device, or auto: on the device when it is a GPU
    crop_area: tuple[float, float] = (0.08, 1.0)  # share of the image a random crop covers
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height of a random crop
    flip: bool = True  # mirror left-right, half of the time
    brightness: float = 0.0  # color jitter: factors from [1 - x, 1 + x]
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # turn by up to this share of a full circle, at most 0.5
    erase: float = 0.0  # probability that a random box is blanked with the image's mean color
    randaugment_layers: int = 0  # operations applied one after another; 2 is usual
    randaugment_magnitude: int = 9  # 0 to 10
    mixup: float = 0.0  # alpha of the Beta distribution; 0.2 is usual
    cutmix: float = 0.0  # alpha; 1.0 is usual. With mixup too, each pair gets one of them, half and half

    eval_crop_fraction: float = 0.875  # the center crop's share of the resized short side
    eval_crops: int = 1  # 1: center; 5: corners too; 10: those mirrored too (image becomes [b, crops, s, s, 3])

    cache: str = "none"  # decoded images: none, memory, or a directory on a local disk
    max_bad_records: int = 10  # distinct unreadable records after which the run stops
    threads: int = 0  # that read and decode; 0: one for each core
    workers: int = -1  # processes that do it for the threads; 0: none; -1: one for each core, in runs that last

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the flag, the value and what would."""
        self._need("global_batch_size", self.global_batch_size >= 1, "use 1 or more")
        self._need("image_size", self.image_size >= 1, "use 1 pixel or more")
        self._need("shuffle_block_size", self.shuffle_block_size >= 1, "use 1 (exact shuffle) or more")
        self._need("augment_on", self.augment_on in AUGMENT_ON, f"use one of {', '.join(AUGMENT_ON)}")
        for name, upper in (("crop_area", 1.0), ("crop_ratio", float("inf"))):
            value = getattr(self, name)
            self._need(name, isinstance(value, (tuple, list)) and len(value) == 2, "use two numbers")
            object.__setattr__(self, name, tuple(value))  # a config out of JSON equals the one that went in
            low, high = value
            self._need(name, 0 < low <= high <= upper, f"use two numbers with 0 < low <= high <= {upper:g}")
        for name in ("brightness", "contrast", "saturation", "erase"):
            self._need(name, 0 <= getattr(self, name) <= 1, "use a number from 0 to 1")
        self._need("hue", 0 <= self.hue <= 0.5, "use a number from 0 to 0.5")
        self._need("randaugment_layers", self.randaugment_layers >= 0, "use 0 (off) or more")
        self._need("randaugment_magnitude", 0 <= self.randaugment_magnitude <= 10, "use 0 to 10")
        self._need("mixup", 0 <= self.mixup <= 1, "use a number from 0 (off) to 1")
        self._need("cutmix", 0 <= self.cutmix <= 1, "use a number from 0 (off) to 1")
        self._need("eval_crop_fraction", 0 < self.eval_crop_fraction <= 1, "use a number above 0, at most 1")
        self._need("eval_crops", self.eval_crops in (1, 5, 10), "use 1, 5 or 10")
        self._need("cache", bool(self.cache), "use none, memory or a directory")
        self._need("max_bad_records", self.max_bad_records >= 0, "use 0 or more")
        self._need("threads", self.threads >= 0, "use 0 (one for each core) or more")
        self._need("workers", self.workers >= -1, "use 0 (threads alone) or more, or -1 (one for each core)")
        # Mixing pairs each even position with the next one, so that pairs never straddle hosts or batches.
        self._need(
            "global_batch_size",
            not self.mixes or self.global_batch_size % 2 == 0,
            "--mixup and --cutmix mix neighbors, so use an even number",
        )

    @property
    def mixes(self) -> bool:
        """Whether pairs of images are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    def rows(self, hosts: int, replicas: int = 1) -> int:
        """Rows in each piece when the global batch is cut over `hosts` and each host's share over `replicas`."""
        pieces = hosts * replicas
        unit = 2 * pieces if self.mixes else pieces
        if self.global_batch_size % unit:
            below = self.global_batch_size // unit * unit
            examples = f"e.g. {below} or {below + unit}" if below else f"e.g. {unit}"
            why = f"{pieces} replicas" + (" in pairs (--mixup, --cutmix)" if self.mixes else "")
            raise UsageError(
                f"--global_batch_size={self.global_batch_size} does not divide over {why}; "
                f"use a multiple of {unit}, {examples}"
            )
        return self.global_batch_size // pieces

    def _need(self, name: str, good: bool, remedy: str) -> None:
        value: Any = getattr(self, name)
        if not good:
            raise UsageError(f"--{name}={value}: {remedy}")
