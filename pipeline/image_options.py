"""ImageOptions: what to make of each image, checked once, on creation. No OpenCV, no TensorFlow."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shardline.pipeline.encodings import WRITABLE
from shardline.pipeline.options import check_options, option


def parse_depth_range(value: str) -> str:
    """`full`, `image` or `LOW,HIGH`. Raises ValueError for anything else."""
    if value in ("full", "image"):
        return value
    try:
        low, high = (float(number) for number in value.split(","))
    except (ValueError, AttributeError):
        low = high = 0.0
    if not -math.inf < low < high < math.inf:
        raise ValueError("use full, image, or the lowest and the highest level, e.g. 0,4095")
    return f"{low:.15g},{high:.15g}"


@dataclass(frozen=True)
class ImageOptions:
    """What to make of each image. The fields carry the names of the converter's flags."""

    resize: str = option(
        "short", "what --size sets: the short side, the long side, both sides (squash), the side of a center crop, or "
        "nothing",
        choices=("short", "long", "squash", "center_crop", "none"), group="images",
    )  # fmt: skip
    size: int = option(256, "length of the side or sides that --resize names, in pixels", low=1, high=65500,
                       group="images")  # fmt: skip
    upscale: bool = option(False, "enlarge images that are smaller than --size, too", group="images")
    encoding: str = option(
        "jpeg", "how images are stored; raw: height x width x 3 RGB bytes", choices=WRITABLE,
        group="images",
    )  # fmt: skip
    quality: int = option(90, "JPEG quality; 90 is visually lossless for photographs", low=1, high=100, group="images")
    trim_borders: bool = option(False, "cut uniform frames off", group="images")
    depth_range: str = option(
        "full", "levels that become black and white where samples have more than 8 bits: the lowest and highest that "
        "the format has (full) or that each image uses (image), or the same two numbers for all images (LOW,HIGH)",
        parse=parse_depth_range, group="images",
    )  # fmt: skip
    max_megapixels: float = option(
        128.0, "refuse larger images before decoding them, in megapixels; the largest common camera makes 108",
        above=0, high=1000, group="images",
    )  # fmt: skip
    min_side: int = option(
        0, "leave out images whose source has a shorter side, in pixels; 0: none", low=0, group="images"
    )
    min_sharpness: float = option(
        0.0, "leave out images whose variance of the Laplacian, at the stored size, is lower, e.g. 50; 0: none", low=0,
        group="images",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_options(self)
