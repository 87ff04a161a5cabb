"""InputConfig: what the batches are made of, checked once, on creation. No TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass

from shardline.pipeline.errors import UsageError
from shardline.pipeline.executors import image_timeout_option
from shardline.pipeline.options import check_options, option, pair, pair_text
from shardline.pipeline.remote import DataCacheOptions

AUGMENT_ON = ("auto", "host", "device")


@dataclass(frozen=True)
class InputConfig(DataCacheOptions):
    """How records become batches. Raises UsageError for a value that cannot work.

    The order of records depends on `seed`, `shuffle_block_size` and `shuffle` alone; the pixels also on `image_size`
    and the augmentation. `augment_on`, `cache`, `threads` and `workers` change where and how fast work is done, not
    what comes out. `trainer.config.TrainConfig` inherits these fields: one definition, one default.
    """

    global_batch_size: int = option(32, "samples a step, over all devices and hosts", low=1, high=1e9, group="input")
    image_size: int = option(224, "side of the square the model sees, in pixels", low=1, high=65500, group="input")
    seed: int = option(
        0, "seed of the order, the augmentation, the initial weights and dropout", low=0, high=2**32 - 1, group="recipe"
    )
    shuffle: bool = option(True, "shuffle the records anew in every epoch", group="input")
    shuffle_block_size: int = option(
        1, "stored records read together; 1 shuffles exactly, more saves seeks on slow storage", low=1, group="input"
    )
    augment_on: str = option(
        "auto", "where images are cropped and augmented; auto: on the device when it is a GPU",
        choices=AUGMENT_ON, group="augmentation",
    )  # fmt: skip
    crop_area: tuple[float, float] = option(
        (0.35, 1.0), "least and largest share of the image that a random resized crop covers",
        parse=pair, text=pair_text, group="augmentation",
    )  # fmt: skip
    crop_ratio: tuple[float, float] = option(
        (3 / 4, 4 / 3), "least and largest width / height of a random resized crop",
        parse=pair, text=pair_text, group="augmentation",
    )  # fmt: skip
    horizontal_flip: bool = option(True, "flip left and right, half of the time", group="augmentation")
    brightness: float = option(
        0.0, "color jitter: brightness factors from 1 - x to 1 + x", low=0, high=1, group="augmentation"
    )
    contrast: float = option(
        0.0, "color jitter: contrast factors from 1 - x to 1 + x", low=0, high=1, group="augmentation"
    )
    saturation: float = option(
        0.0, "color jitter: saturation factors from 1 - x to 1 + x", low=0, high=1, group="augmentation"
    )
    hue: float = option(
        0.0, "color jitter: turn hues by up to this share of a full circle", low=0, high=0.5, group="augmentation"
    )
    random_erasing: float = option(
        0.0, "probability that a random box is filled with the mean color", low=0, high=1, group="augmentation"
    )
    randaugment_layers: int = option(
        0, "RandAugment operations applied one after another; 0: off, 2 is usual", low=0, group="augmentation"
    )
    randaugment_magnitude: int = option(
        9, "strength of the RandAugment operations", low=0, high=10, group="augmentation"
    )
    mixup: float = option(
        0.0, "alpha of mixup's Beta distribution; 0: off, 0.2 is usual", low=0, high=1, group="augmentation"
    )
    cutmix: float = option(
        0.0, "alpha of CutMix's Beta distribution; 0: off, 1 is usual. With mixup too, each pair gets one of them",
        low=0, high=1, group="augmentation",
    )  # fmt: skip
    eval_crop_fraction: float = option(
        0.875, "the center crop's share of the resized short side in evaluation", above=0, high=1, group="input"
    )
    eval_crops: int = option(
        1, "crops of each evaluated image: 1: center; 5: corners too; 10: those flipped too", group="input", flag=False
    )
    cache: str = option(
        "none", "where decoded images are kept: none, memory, or a directory on a local disk", group="input", path="any"
    )
    max_bad_records: int = option(10, "distinct unreadable records after which the run stops", low=0, group="input")
    threads: int = option(0, "threads that read and decode; 0: one for each core", low=0, group="input")
    workers: int = option(
        -1,
        "processes that make batches; -1: one for each core; 0: threads of this process, which a decoder that crashes "
        "or hangs then ends or stalls",
        low=-1, group="input",
    )  # fmt: skip
    image_timeout: float = image_timeout_option("its record is bad", group="input")

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the field, the value and what would."""
        check_options(self)
        for name, upper in (("crop_area", 1.0), ("crop_ratio", float("inf"))):
            low, high = getattr(self, name)
            if not 0 < low <= high <= upper:
                raise UsageError(
                    f"--{name}={pair_text((low, high))}: use two numbers with 0 < low <= high <= {upper:g}"
                )
        if self.eval_crops not in (1, 5, 10):
            raise UsageError(f"--eval_crops={self.eval_crops}: use 1, 5 or 10")
        if not self.cache:
            raise UsageError("--cache is empty: use none, memory or a directory")
        # Mixing pairs each even position with the next one, so that pairs never straddle hosts or batches.
        if self.mixes and self.global_batch_size % 2:
            raise UsageError(
                f"--global_batch_size={self.global_batch_size}: --mixup and --cutmix mix neighbors; use an even number"
            )

    @property
    def mixes(self) -> bool:
        """Whether pairs of images are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def eval_shape(self) -> tuple[int, ...]:
        """Shape of what evaluation shows of an image: [size, size, 3], or [crops, size, size, 3] for several crops."""
        image = (self.image_size, self.image_size, 3)
        return image if self.eval_crops == 1 else (self.eval_crops, *image)

    def replica_batch_size(self, hosts: int, replicas: int = 1) -> int:
        """Samples in a replica batch: the global batch cut over `hosts`, each host batch over `replicas`.

        Raises:
          UsageError: it does not divide evenly, in pairs when pairs are mixed.
        """
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
