"""Color spaces told by numbers: CICP codes, PNG's gAMA and cHRM, BMP's endpoints, TIFF's tags, EXIF's Adobe RGB.

Each has an ICC profile, so there is one way from any color to sRGB: see `color`.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from shardline.pipeline import exif
from shardline.pipeline.image_types import BadImage, Chromaticities, ColorSpace
from shardline.pipeline.matrix_color import D65, LIGHT, SRGB, matrix_profile, rgb_profile

_C, _DCI = (0.310, 0.316), (0.314, 0.351)
_ADOBE: Chromaticities = (0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
_P3: Chromaticities = (0.68, 0.32, 0.265, 0.69, 0.15, 0.06)

# ITU-T H.273, tables 2 and 3. 0, 2 and 3 say nothing.
_PRIMARIES: dict[int, tuple[str, Chromaticities, Chromaticities]] = {
    1: ("BT.709", SRGB, D65),
    4: ("BT.470 M", (0.67, 0.33, 0.21, 0.71, 0.14, 0.08), _C),
    5: ("BT.470 BG", (0.64, 0.33, 0.29, 0.60, 0.15, 0.06), D65),
    6: ("SMPTE 170M", (0.630, 0.340, 0.310, 0.595, 0.155, 0.070), D65),
    7: ("SMPTE 240M", (0.630, 0.340, 0.310, 0.595, 0.155, 0.070), D65),
    9: ("BT.2020", (0.708, 0.292, 0.170, 0.797, 0.131, 0.046), D65),
    11: ("DCI-P3", _P3, _DCI),
    12: ("Display P3", _P3, D65),
}
# Power, or 0 for sRGB's curve, which is also what viewers apply to video's (1, 6, 11, 12, 14 and 15).
_POWERS = {1: 0.0, 4: 2.2, 5: 2.8, 6: 0.0, 8: 1.0, 11: 0.0, 12: 0.0, 13: 0.0, 14: 0.0, 15: 0.0}
_CURVES = {7: "SMPTE 240M", 9: "logarithmic", 10: "logarithmic", 16: "HDR: PQ", 17: "SMPTE 428", 18: "HDR: HLG"}
_UNSPECIFIED = (0, 2, 3)
_USUAL_POWERS = (2.1, 2.3)  # with sRGB's primaries they stand for its curve
_POWERS_READ = (0.2, 5.0)  # others are damage
_NEAR = 0.003  # of a chromaticity: the same


def icc_profile(space: ColorSpace) -> bytes:
    """By LittleCMS. Raises RuntimeError or ValueError for chromaticities that are no colors."""
    import imagecodecs  # for images that tell a space

    triangle = np.reshape(space.colors, (3, 1, 2)).astype(np.float32)
    if cv2.pointPolygonTest(triangle, space.white, measureDist=False) <= 0:
        raise ValueError("white is no mixture of these colors")
    if space.power:
        return rgb_profile(space.colors, space.white, gamma=space.power)
    light = matrix_profile(imagecodecs.cms_profile("srgb")).light[:, 0, 0]
    curve = np.rint(light / LIGHT * 65535).astype(np.uint16)
    return rgb_profile(space.colors, space.white, transferfunction=curve)


def _has_srgb_colors(space: ColorSpace) -> bool:
    return np.allclose((*space.colors, *space.white), (*SRGB, *D65), atol=_NEAR)


def of_cicp(image_format: str, primaries: int, transfer: int) -> ColorSpace | None:
    """The space of CICP code points; None for sRGB and for what says nothing.

    Raises:
      BadImage: they mean a color that is not converted here, HDR above all.
    """
    refused = ""
    if transfer not in (*_POWERS, *_UNSPECIFIED):
        refused = f"transfer characteristics {transfer} ({_CURVES.get(transfer, 'unknown')})"
    elif primaries not in (*_PRIMARIES, *_UNSPECIFIED):
        refused = f"color primaries {primaries}"
    if refused:
        raise BadImage(f"unsupported-{image_format}", f"{image_format} with {refused}; convert it to sRGB")
    name, colors, white = _PRIMARIES.get(primaries, _PRIMARIES[1])
    power = _POWERS.get(transfer, 0.0)
    space = ColorSpace(f"of gamma {power:.2f}" if power and colors is SRGB else name, colors, white, power)
    return None if not power and _has_srgb_colors(space) else space


def of_numbers(colors: Sequence[float], white: Sequence[float], power: float) -> ColorSpace | None:
    """The space of chromaticities and a power; None for sRGB and for a power that cannot be.

    Args:
      colors: of red, green and blue; () for sRGB's.
      white: () for sRGB's.
      power: that makes light of levels; 0 for sRGB's curve.
    """
    name = f"of gamma {power:.2f}" if power else "of its own primaries"
    space = ColorSpace(name, tuple(colors) or SRGB, tuple(white) or D65, power)
    usual = not power or _USUAL_POWERS[0] <= power <= _USUAL_POWERS[1]
    damaged = power and not _POWERS_READ[0] <= power <= _POWERS_READ[1]
    return None if damaged or (usual and _has_srgb_colors(space)) else space


def of_exif(block: bytes) -> ColorSpace | None:
    """The space that an EXIF block tells, Adobe RGB (1998); None for all others."""
    return ColorSpace("Adobe RGB", _ADOBE, D65, 563 / 256) if exif.is_adobe_rgb(block) else None
