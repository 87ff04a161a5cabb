"""Color profiles: what a file's ICC profile means, in sRGB. LittleCMS through Pillow, imported when a file needs it."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from shardline.pipeline.color_spaces import icc_profile
from shardline.pipeline.image_types import ColorSpace, Samples
from shardline.pipeline.matrix_color import MatrixProfile, matrix_profile


@dataclass(frozen=True)
class Conversion:
    """What to do for one profile."""

    note: str  # for people: the profile's name and what became of it
    mode: str = ""  # of Pillow's, that the transform takes
    transform: Any = None  # Pillow's, from the profile to sRGB; None to leave the pixels as they are
    icc: bytes = b""  # the profile, for samples of 16 bits
    matrix: MatrixProfile | None = None  # the same in less time, where the profile is no more than that


_NOTHING = Conversion("")
_NO_TABLES = 0x100  # LittleCMS's NOOPTIMIZE: its tables for 16 bits are up to 25 levels off in the shadows


def grayed(samples: Samples) -> Samples:
    """Gray that a decoder gave as three equal colors, as gray again where the profile is one of gray."""
    pixels, channels = samples.pixels, samples.channels
    of_gray = isinstance(samples.profile, bytes) and samples.profile[16:20] == b"GRAY"
    if not of_gray or channels[:3] not in ("BGR", "RGB") or (pixels[..., 1:3] != pixels[..., :1]).any():
        return samples
    return samples._replace(pixels=np.delete(pixels, (1, 2), axis=2), channels="L" + channels[3:])


def conversion_of(samples: Samples) -> Conversion:
    """What to do with decoded samples."""
    if not samples.profile:
        return _NOTHING
    channels = samples.channels.removesuffix("A")
    return conversion(samples.profile, {"BGR": "RGB", "P": "RGB"}.get(channels, channels))


@lru_cache(32)
def conversion(profile: bytes | ColorSpace, mode: str) -> Conversion:
    """How pixels of a mode of Pillow's (L, RGB, CMYK) with this profile become sRGB; damaged profiles are ignored."""
    from PIL import Image, ImageCms

    try:
        icc = icc_profile(profile) if isinstance(profile, ColorSpace) else profile
        source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        name = profile.name if isinstance(profile, ColorSpace) else _printable(ImageCms.getProfileDescription(source))
        if mode == "L" and source.profile.xcolor_space.strip() == "RGB":  # a color profile on a gray image
            mode = "RGB"
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, RuntimeError, ValueError, TypeError):
        return Conversion("color profile ignored: damaged, or of another kind of color")
    if mode != "CMYK":
        probe = _probe(mode)
        converted = np.asarray(ImageCms.applyTransform(Image.fromarray(probe), transform)).astype(int)
        if np.abs(converted - probe.reshape(*probe.shape[:2], -1)).max() <= 2:
            return Conversion(f"color profile {name} left out: it is sRGB")
    matrix = _matrix(icc, transform) if mode == "RGB" else None
    return Conversion(f"color profile {name} converted to sRGB", mode, transform, icc, matrix)


def _matrix(profile: bytes, transform: Any) -> MatrixProfile | None:
    """The curves and matrix that answer as the transform does; None where none do, as for profiles of tables."""
    from PIL import Image, ImageCms

    try:
        found = matrix_profile(profile)
    except (RuntimeError, ValueError, TypeError):
        return None
    probe = _probe("RGB", 15)
    wanted = np.asarray(ImageCms.applyTransform(Image.fromarray(probe), transform))
    off = np.abs(found.to_srgb(probe)[..., ::-1].astype(int) - wanted).max()
    return found if off <= 1 else None


def _probe(mode: str, step: int = 51) -> np.ndarray:
    """Pixels over the whole range of a mode."""
    if mode == "L":
        return np.arange(0, 256, 17, dtype=np.uint8)[None]
    levels = np.arange(0, 256, step, dtype=np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)


def _printable(text: str) -> str:
    """A profile's description is free text."""
    return re.sub(r"[^\w .()+-]+", " ", text, flags=re.ASCII).strip()[:40] or "without a name"


def to_srgb(pixels: np.ndarray, change: Conversion) -> np.ndarray:
    """uint8 or uint16 [height, width] gray, [..., 3] RGB or [..., 4] CMYK to uint8 BGR."""
    if pixels.ndim == 2 and change.mode == "RGB":
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    if pixels.dtype == np.uint16:
        import imagecodecs

        space, srgb = {"L": "gray"}.get(change.mode, change.mode), imagecodecs.cms_profile("srgb")
        rgb = imagecodecs.cms_transform(
            pixels, change.icc, srgb, colorspace=space, outcolorspace="rgb", outdtype=np.uint8, flags=_NO_TABLES
        )
        return cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    if change.matrix:
        return change.matrix.to_srgb(pixels)
    from PIL import Image, ImageCms

    image = Image.fromarray(np.ascontiguousarray(pixels), change.mode)
    return cv2.cvtColor(np.asarray(ImageCms.applyTransform(image, change.transform)), cv2.COLOR_RGB2BGR)
