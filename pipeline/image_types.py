"""BadImage, Header and Samples: what the modules of all image formats share. No OpenCV, no TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from shardline.pipeline.text import display

Chromaticities = tuple[float, ...]  # x and y, of red, green and blue or of white


class ColorSpace(NamedTuple):
    """A space of RGB colors, told by numbers."""

    name: str
    colors: Chromaticities
    white: Chromaticities
    power: float  # that makes light of levels; 0 for sRGB's curve


Profile = bytes | ColorSpace | None  # ICC, or a space told by numbers; empty or None for sRGB


class BadImage(ValueError):
    """This input cannot become an image. `reason` is a short stable slug to count by; `detail` is for people."""

    status = "quarantined"

    def __init__(self, reason: str, detail: str):
        detail = display(detail)  # it may quote the file
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple:
        return type(self), (self.reason, self.detail)  # crosses process boundaries whole


@dataclass(frozen=True)
class Header:
    """What a file says about itself before any pixel is decoded. Width and height are as stored, not yet oriented."""

    format: str
    width: int
    height: int
    orientation: int = 1  # EXIF's numbering, 1..8: what is still to be undone after decoding
    frames: int = 1
    profile: Profile = b""  # where it is told before decoding

    @property
    def shown(self) -> tuple[int, int]:
        """Height and width after the orientation is undone."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


class Samples(NamedTuple):
    """Decoded samples, and what they mean.

    Attributes:
      pixels: [height, width] or [height, width, channels], as the decoder gave them.
      channels: L (gray), LA, BGR, BGRA, RGB, RGBA, CMYK (0 is no ink) or P (numbers of colors in `palette`).
      white: the level that means full intensity, of alpha, too; 0 where the format defines none.
      associated: the color is already multiplied by alpha.
      palette: uint8 [colors, 4], RGBA.
      profile: of its colors; empty for the header's.
      note: what a person may want to know; "" for nothing.
      inverted: low levels are light and high ones dark.
    """

    pixels: np.ndarray
    channels: str
    white: int = 255
    associated: bool = False
    palette: np.ndarray | None = None
    profile: Profile = b""
    note: str = ""
    inverted: bool = False

    @property
    def is_bgr(self) -> bool:
        """Whether these are 8-bit BGR."""
        return self.channels == "BGR" and self.white == 255 and self.pixels.dtype == np.uint8
