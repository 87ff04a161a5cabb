"""Any decoded samples to what is shown: uint8 BGR in sRGB, turned upright, alpha over white.

The same for the converter, the reader of adopted records and prediction: see `images` and `decode`.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from shardline.pipeline import color, image_headers
from shardline.pipeline.image_types import BadImage, Header, Samples

FEW_LEVELS = r"(?P<few>uses [\d,]+ of [\d,]+ levels)"  # the note on an image of little contrast


class Pixels(NamedTuple):
    """An image as it is shown.

    Attributes:
      bgr: uint8 [height, width, 3].
      color_changed: by a color profile.
      notes: what a person may want to know.
    """

    bgr: np.ndarray
    color_changed: bool
    notes: tuple[str, ...]


def decode_pixels(data: bytes, header: Header, halvings: int = 0, depth_range: str = "full") -> Pixels:
    """The first frame of a file, its sides halved 0 to 3 times and rounded up.

    Raises:
      BadImage: with a reason.
      MemoryError: the machine has too little memory; says nothing about the image.
    """
    in_decoder = halvings if header.format == "jpeg" else 0
    samples = image_headers.decode(data, header, 2**in_decoder)
    plain = samples.is_bgr and not (samples.profile or samples.note) and header.orientation == header.frames == 1
    if plain and in_decoder == halvings:  # as most photographs are
        return Pixels(samples.pixels, False, ())
    samples = color.grayed(samples)
    change = color.conversion_of(samples)
    bgr, depth_note = _to_bgr(samples, header, change, halvings - in_decoder, depth_range)
    frame_note = f"first frame of {header.frames}" if header.frames > 1 else ""
    turn_note = f"EXIF orientation {header.orientation} applied" if header.orientation != 1 else ""
    has_alpha = samples.channels.endswith("A") or (samples.palette is not None and samples.palette[:, 3].min() < 255)
    # As of a clipboard that left alpha empty, or a white sign on nothing.
    blank_note = "transparent or white everywhere" if has_alpha and bgr.min(initial=255) == 255 else ""
    notes = tuple(filter(None, [frame_note, samples.note, change.note, depth_note, turn_note, blank_note]))
    return Pixels(_turned(bgr, header.orientation), change.transform is not None, notes)


def _to_bgr(
    samples: Samples, header: Header, change: color.Conversion, halvings: int, depth_range: str
) -> tuple[np.ndarray, str]:
    """Any samples to uint8 BGR in sRGB, halved 0 to 3 times; and a note on a depth little used.

    In bands of rows: a large image must not need its memory twice.
    """
    pixels = samples.pixels
    if samples.is_bgr and not change.transform and not halvings:
        return pixels, ""
    low, high, note = _levels(samples, header, depth_range)
    height, width = (-(-side // 2**halvings) for side in pixels.shape[:2])
    reusable = pixels.ndim == 3 and pixels.shape[2] >= 3 and pixels.flags.writeable and pixels.flags.c_contiguous
    if reusable and not halvings:
        bgr = pixels.reshape(-1).view(np.uint8)[: height * width * 3].reshape(height, width, 3)  # over what was read
    else:
        bgr = np.empty((height, width, 3), np.uint8)
    rows = 64 >> halvings
    for top in range(0, height, rows):
        band = pixels[top << halvings : (top + rows) << halvings]
        band = _band_to_bgr(band, samples, change, low, high)
        for _ in range(halvings):
            band = halve(band)
        bgr[top : top + rows] = band
    return bgr, note


def _levels(samples: Samples, header: Header, depth_range: str) -> tuple[float, float, str]:
    """Levels to show as black and as white, and a note where the image uses few of those there are."""
    pixels, white = samples.pixels, samples.white
    if 0 < white <= 255 or samples.palette is not None:
        return 0, white, ""
    colors = pixels[..., :-1] if samples.channels.endswith("A") else pixels
    if depth_range == "full":
        if not white:
            raise BadImage(
                f"unsupported-{header.format}",
                f"{pixels.dtype} samples: their range is not known; give --depth_range=image or --depth_range=LOW,HIGH",
            )
        used = int(colors.max()) - int(colors.min())
        return 0, white, f"uses {used:,} of {white:,} levels" if 0 < used < white / 4 else ""
    if depth_range == "image":
        finite = colors[np.isfinite(colors)] if colors.dtype.kind == "f" else colors
        if not finite.size:
            raise BadImage("corrupt-data", f"{header.format}: no sample is a number")
        low, high = float(finite.min()), float(finite.max())
        return low, high if high > low else low + 1, f"levels {low:g} to {high:g} scaled"
    low, high = map(float, depth_range.split(","))
    return low, high, ""


def _band_to_bgr(band: np.ndarray, samples: Samples, change: color.Conversion, low: float, high: float) -> np.ndarray:
    """Scaled to 8 bits, alpha over white, in sRGB."""
    channels, alpha, full = samples.channels, None, 255
    if channels.endswith("A"):
        opaque = samples.white or (1 if band.dtype.kind == "f" else int(np.iinfo(band.dtype).max))
        band, alpha, channels = band[..., :-1], _scaled(band[..., -1], 0, opaque), channels[:-1]
    if samples.palette is not None:
        band, channels = samples.palette[band.reshape(band.shape[:2])], "RGB"
        band, alpha, low, high = band[..., :3], band[..., 3] if alpha is None else alpha, 0, 255
    elif change.transform and not 0 < samples.white <= 255:
        full = 65535  # 8 bits of linear light would be coarse in the shadows
    band = _scaled(band.squeeze(-1) if band.shape[2:] == (1,) else band, low, high, full)
    band = cv2.bitwise_not(band) if samples.inverted else band
    associated = samples.associated
    if alpha is not None and associated and (change.transform or channels == "CMYK"):  # for the color itself
        band, associated = _unassociated(band, alpha), False
    if change.transform:
        band = color.to_srgb(cv2.cvtColor(band, cv2.COLOR_BGR2RGB) if channels == "BGR" else band, change)
    elif channels == "L":
        band = cv2.cvtColor(band, cv2.COLOR_GRAY2BGR)
    elif channels == "CMYK":
        paper = cv2.bitwise_not(band)
        band = cv2.merge([cv2.multiply(paper[:, :, ink], paper[:, :, 3], scale=1 / 255) for ink in (2, 1, 0)])
    elif channels == "RGB":
        band = cv2.cvtColor(band, cv2.COLOR_RGB2BGR)
    return band if alpha is None else _over_white(band, alpha[..., None], associated)


def _scaled(band: np.ndarray, low: float, high: float, full: int = 255) -> np.ndarray:
    """Levels from `low` to `high` as 0 to 255 or 65535; not clipped by OpenCV, which would take the absolute value."""
    if band.dtype == (np.uint8 if full == 255 else np.uint16) and (low, high) == (0, full):
        return band
    scale = full / (high - low)
    if band.dtype == np.uint16 and full == 255 and low == 0 and band.ndim < 4:
        return cv2.convertScaleAbs(band, alpha=scale).reshape(band.shape)
    levels = (np.nan_to_num(band.astype(np.float64), nan=low) - low) * scale
    return np.rint(np.clip(levels, 0, full)).astype(np.uint8 if full == 255 else np.uint16)


def _over_white(color: np.ndarray, alpha: np.ndarray, associated: bool) -> np.ndarray:
    if (alpha == 255).all():
        return color
    if associated:
        return np.asarray(np.minimum(color.astype(np.uint16) + (255 - alpha), 255), np.uint8)
    light = color.astype(np.uint16) * alpha + np.uint16(255) * (255 - alpha) + 127
    return np.asarray((light + 1 + (light >> 8)) >> 8, np.uint8)  # light // 255, exact for what 16 bits hold


def _unassociated(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    alpha = np.maximum(alpha[..., None] if color.ndim == 3 else alpha, 1).astype(np.uint32)
    full = 255 if color.dtype == np.uint8 else 65535
    return np.asarray(np.minimum((color * np.uint32(255) + alpha // 2) // alpha, full), color.dtype)


def _turned(bgr: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation: what the camera stored to what the person saw."""
    if orientation >= 5:
        bgr = cv2.transpose(bgr)  # first swap rows and columns, then mirror
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return bgr if flip is None else cv2.flip(bgr, flip, dst=bgr)  # in place


def halve(pixels: np.ndarray) -> np.ndarray:
    """Average 2x2 pixels. An odd last row or column is repeated, to keep the extent: half, rounded up."""
    height, width = pixels.shape[:2]
    if min(height, width) < 2:
        pixels = cv2.copyMakeBorder(pixels, 0, height & 1, 0, width & 1, cv2.BORDER_REPLICATE)
        return cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    even = pixels[: height & ~1, : width & ~1]
    half = cv2.resize(even, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    return cv2.copyMakeBorder(half, 0, height & 1, 0, width & 1, cv2.BORDER_REPLICATE) if (height | width) & 1 else half
