"""Color spaces told by numbers, as ICC profiles: CICP codes, PNG's gAMA and cHRM, BMP's endpoints, EXIF's Adobe RGB.

So there is one way from any color to sRGB: see `color`. No OpenCV.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from shardline.pipeline import exif
from shardline.pipeline.image_types import BadImage

Chromaticities = tuple[float, float, float, float, float, float]  # x and y of red, green and blue

_D50 = np.array([0.9642, 1.0, 0.8249])  # of ICC's connection space
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D65, _C, _DCI = (0.3127, 0.3290), (0.310, 0.316), (0.314, 0.351)
SRGB: Chromaticities = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_ADOBE: Chromaticities = (0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
_P3: Chromaticities = (0.68, 0.32, 0.265, 0.69, 0.15, 0.06)

# ITU-T H.273, tables 2 and 3. 0, 2 and 3 say nothing.
_PRIMARIES: dict[int, tuple[str, Chromaticities, tuple[float, float]]] = {
    1: ("BT.709", SRGB, _D65),
    4: ("BT.470 M", (0.67, 0.33, 0.21, 0.71, 0.14, 0.08), _C),
    5: ("BT.470 BG", (0.64, 0.33, 0.29, 0.60, 0.15, 0.06), _D65),
    6: ("SMPTE 170M", (0.630, 0.340, 0.310, 0.595, 0.155, 0.070), _D65),
    7: ("SMPTE 240M", (0.630, 0.340, 0.310, 0.595, 0.155, 0.070), _D65),
    9: ("BT.2020", (0.708, 0.292, 0.170, 0.797, 0.131, 0.046), _D65),
    11: ("DCI-P3", _P3, _DCI),
    12: ("Display P3", _P3, _D65),
}
# Power, or 0 for sRGB's curve, which is also what viewers apply to video's (1, 6, 11, 12, 14 and 15).
_POWERS = {1: 0.0, 4: 2.2, 5: 2.8, 6: 0.0, 8: 1.0, 11: 0.0, 12: 0.0, 13: 0.0, 14: 0.0, 15: 0.0}
_CURVES = {7: "SMPTE 240M", 9: "logarithmic", 10: "logarithmic", 16: "HDR: PQ", 17: "SMPTE 428", 18: "HDR: HLG"}
_UNSPECIFIED = (0, 2, 3)
_USUAL_POWERS = (2.1, 2.3)  # with sRGB's primaries they stand for its curve
_POWERS_READ = (0.2, 5.0)  # others are damage
_NEAR = 0.003  # of a chromaticity: the same

ADOBE_RGB = "Adobe RGB"


def of_cicp(image_format: str, primaries: int, transfer: int) -> bytes:
    """The profile of CICP code points; empty for sRGB and for what says nothing.

    Raises:
      BadImage: they mean a color that is not converted here, HDR above all.
    """
    if transfer not in (*_POWERS, *_UNSPECIFIED):
        curve = _CURVES.get(transfer, "unknown")
        raise BadImage(
            f"unsupported-{image_format}",
            f"{image_format} with transfer characteristics {transfer} ({curve}); convert it to sRGB",
        )
    if primaries not in (*_PRIMARIES, *_UNSPECIFIED):
        raise BadImage(
            f"unsupported-{image_format}", f"{image_format} with color primaries {primaries}; convert it to sRGB"
        )
    name, colors, white = _PRIMARIES.get(primaries, _PRIMARIES[1])
    return _profile_unless_srgb(name, colors, white, _POWERS.get(transfer, 0.0))


def of_numbers(colors: Sequence[float], white: Sequence[float], power: float) -> bytes:
    """The profile of chromaticities and a power; empty for sRGB and for what cannot be.

    Args:
      colors: x and y of red, green and blue; () for sRGB's.
      white: x and y; () for sRGB's.
      power: that makes light of levels; 0 for sRGB's curve.
    """
    if power and not _POWERS_READ[0] <= power <= _POWERS_READ[1]:
        return b""
    red_x, red_y, green_x, green_y, blue_x, blue_y = colors or SRGB
    white_x, white_y = white or _D65
    given = red_x, red_y, green_x, green_y, blue_x, blue_y
    if _USUAL_POWERS[0] <= power <= _USUAL_POWERS[1] and _is_srgb(given, (white_x, white_y)):
        return b""
    name = f"of gamma {power:.2f}" if power else "of its own primaries"
    try:
        return _profile_unless_srgb(name, given, (white_x, white_y), power)
    except (np.linalg.LinAlgError, ZeroDivisionError, ValueError, struct.error):
        return b""


def of_exif(block: bytes) -> bytes:
    """The profile of the color that an EXIF block tells, Adobe RGB (1998); empty for all others."""
    return _profile(ADOBE_RGB, _ADOBE, _D65, 563 / 256) if exif.is_adobe_rgb(block) else b""


def _profile_unless_srgb(name: str, colors: Chromaticities, white: tuple[float, float], power: float) -> bytes:
    if not power and _is_srgb(colors, white):
        return b""
    return _profile(name if colors != SRGB or not power else f"of gamma {power:.2f}", colors, white, power)


def _is_srgb(colors: Chromaticities, white: tuple[float, float]) -> bool:
    return np.allclose((*colors, *white), (*SRGB, *_D65), atol=_NEAR)


@lru_cache(32)
def _profile(name: str, colors: Chromaticities, white: tuple[float, float], power: float) -> bytes:
    """ICC.1:2010 (version 4): three columns of XYZ relative to D50, and one parametric curve."""
    columns = _rgb_to_xyz(colors, white)
    text = name.encode("utf-16-be")
    curve = (0, [power]) if power else (3, [2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045])
    parametric = b"para" + struct.pack(">4xH2x", curve[0]) + _fixed(curve[1])
    tags = {
        b"desc": b"mluc" + struct.pack(">4xII2s2sII", 1, 12, b"en", b"US", len(text), 28) + text,
        b"wtpt": b"XYZ \0\0\0\0" + _fixed(_D50),
        **{b"%cXYZ" % color: b"XYZ \0\0\0\0" + _fixed(columns[:, i]) for i, color in enumerate(b"rgb")},
        **{b"%cTRC" % color: parametric for color in b"rgb"},
    }
    start = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for tag, data in tags.items():
        table += struct.pack(">4sII", tag, start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4xI4s4s4s", start + len(body), 0x04200000, b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + _fixed(_D50)
    return head.ljust(128, b"\0") + table + body


def _fixed(numbers: Sequence[float] | np.ndarray) -> bytes:
    return struct.pack(f">{len(numbers)}i", *(round(float(number) * 65536) for number in numbers))


def _rgb_to_xyz(colors: Chromaticities, white: tuple[float, float]) -> np.ndarray:
    """Linear RGB to XYZ relative to D50 (Bradford), [3, 3]. Raises LinAlgError and ZeroDivisionError for no colors."""

    def xyz(x: float, y: float) -> np.ndarray:
        return np.array([x / y, 1.0, (1 - x - y) / y])

    columns = np.stack([xyz(*colors[i : i + 2]) for i in (0, 2, 4)], axis=1)
    columns = columns * np.linalg.solve(columns, xyz(*white))
    gain = np.diag(_BRADFORD @ _D50 / (_BRADFORD @ xyz(*white)))
    return np.asarray(np.linalg.inv(_BRADFORD) @ gain @ _BRADFORD @ columns)
