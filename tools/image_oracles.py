"""What others see in a sound image file: Pillow, imagecodecs and, where it is installed, ImageMagick.

Independent of our decoding as far as that goes: of the same libraries they use other builds, other calls and their own
reading of headers. They err, too: their verdicts stand beside ours, the truth is what a variant was made from.
"""

from __future__ import annotations

import io
import logging
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TypeVar

import numpy as np

T = TypeVar("T")
_PILLOW_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")  # not by plugins of others


def pillow(data: bytes) -> np.ndarray:
    """RGB as Pillow shows it: turned, in sRGB, over white, 16 bits scaled."""
    from PIL import Image, ImageCms, ImageOps

    opened = Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS)
    opened.load()
    profile = opened.info.get("icc_profile")
    image: Image.Image = ImageOps.exif_transpose(opened)
    if image.mode == "I" or image.mode.startswith("I;16"):
        return np.repeat(np.rint(np.asarray(image) / 257).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    alpha = None
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha, image = image.getchannel("A"), image.convert("RGB")
    image = image.convert("RGB") if image.mode in ("P", "1", "YCbCr") else image
    if profile:
        try:
            source, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            image = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB") or image
        except ImageCms.PyCMSError:
            pass
    image = image.convert("RGB")
    if alpha is not None:
        white = Image.new("RGB", image.size, (255, 255, 255))
        image = Image.composite(image, white, alpha)
    return np.asarray(image)


def codecs(data: bytes) -> np.ndarray:
    """RGB as imagecodecs decodes it: over white; neither turned nor converted to sRGB."""
    import imagecodecs

    logging.getLogger("imagecodecs").setLevel(logging.CRITICAL)
    for signature, decode in (
        (b"\x89PNG", imagecodecs.png_decode), (b"RIFF", imagecodecs.webp_decode), (b"BM", imagecodecs.bmp_decode),
        (b"GIF8", lambda gif: imagecodecs.gif_decode(gif, index=0)), (b"\xff\xd8", imagecodecs.jpeg8_decode),
        (b"\xff\x0a", lambda jxl: imagecodecs.jpegxl_decode(jxl, index=0)),
    ):  # fmt: skip
        if data.startswith(signature):
            pixels = decode(data)
            break
    else:
        raise ValueError("not one of its formats")
    if data.startswith(b"\xff\x0a") and pixels.dtype != np.uint8:
        raise ValueError("it does not say how many bits")
    if pixels.dtype == np.uint16:
        pixels = np.rint(pixels / 257).astype(np.uint8)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    color, alpha = (pixels[..., :-1], pixels[..., -1:]) if pixels.shape[2] in (2, 4) else (pixels, 255)
    shown = np.rint(color * (alpha / 255) + 255 * (1 - alpha / 255)).astype(np.uint8)
    return np.repeat(shown, 3, axis=2) if shown.shape[2] == 1 else shown


def imagemagick(data: bytes) -> np.ndarray:
    """RGB as ImageMagick shows it: the first frame turned, over white; not converted to sRGB."""
    program = _imagemagick()
    assert program is not None
    flags = "-[0] -auto-orient -background white -alpha remove -alpha off -depth 8 ppm:-"
    done = subprocess.run([*program, *flags.split()], input=data, capture_output=True, timeout=60)
    if done.returncode:
        raise ValueError(done.stderr.decode(errors="replace"))
    _, size, _, samples = done.stdout.split(b"\n", 3)
    width, height = map(int, size.split())
    return np.frombuffer(samples, np.uint8).reshape(height, width, 3)


@lru_cache(1)
def _imagemagick() -> list[str] | None:
    """The command, if it is what it is called."""
    for name in ("magick", "convert"):
        path = shutil.which(name)
        if path and b"imagemagick.org" in subprocess.run([path, "--version"], capture_output=True).stdout:
            return [path]
    return None


def installed() -> dict[str, Callable[[bytes], np.ndarray]]:
    """Name and function of each oracle that is there."""
    found = {"Pillow": pillow, "imagecodecs": codecs}
    return found | ({"ImageMagick": imagemagick} if _imagemagick() else {})


def verdicts(data: bytes, truth: np.ndarray) -> dict[str, float | None]:
    """By oracle: how far it is from the truth, in levels of 255 (mean; 255 for another size); None if it refuses."""
    views = {name: answer(oracle, data) for name, oracle in installed().items()}
    return {
        name: None if rgb is None
        else float(np.abs(rgb.astype(float) - truth).mean()) if rgb.shape == truth.shape else 255.0
        for name, rgb in views.items()
    }  # fmt: skip


def answer(ask: Callable[[bytes], T], data: bytes) -> T | None:
    """What a function of others says of a file; None if it does not read this, of whatever kind its error is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ask(data)
        except Exception:
            return None


def opinions(data: bytes) -> Iterator[tuple[str, np.ndarray]]:
    """Name and RGB of each oracle that reads a file and whose view of it counts.

    The others neither turn images nor convert colors: they are asked where Pillow finds nothing of that kind.
    """
    if answer(_leaves_screen_free, data):
        return
    turned, errs = answer(lambda d: has_orientation(d) or has_profile(d), data), answer(_pillow_errs, data)
    for name, oracle in installed().items():
        if errs is not False if name == "Pillow" else turned:
            continue
        rgb = answer(oracle, data)
        if rgb is not None and not (data.startswith(b"BM") and (rgb == 255).all()):  # empty alpha: they see nothing
            yield name, rgb


def _leaves_screen_free(data: bytes) -> bool:
    """Whether this is a GIF whose first frame covers a part of the screen: each fills the rest in its own way."""
    from PIL import Image

    image = Image.open(io.BytesIO(data), formats=("GIF",))
    return image.tile[0].extents != (0, 0, *image.size)


def _pillow_errs(data: bytes) -> bool:
    """Whether this is of a kind that Pillow is known to misread: see tests/pipeline/test_image_variants.py."""
    if data[4:8] == b"jP  " or data.startswith(b"\xff\x4f\xff\x51"):
        sizes = data.find(b"\xff\x51")  # number of components, and Ssiz of the first: its depth less 1
        boxes, color = data[:sizes], data.find(b"colr", 0, max(sizes, 0))
        told = b"cdef" in boxes or b"pclr" in boxes or (color >= 0 and data[color + 4] != 1)
        return sizes >= 0 and (told or data[sizes + 38 : sizes + 41] not in (b"\0\1\7", b"\0\3\7"))
    if data[:2] == b"BM" and data[28:30] == b"\x10\0" and any(data[66:70]):
        return data[14:18] != b"\x28\0\0\0"
    from PIL import Image, ImageOps

    image = Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS)
    if image.mode.startswith("I") and image.info.get("icc_profile"):  # it does not apply one to 16 bits of gray
        return True
    if data[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return not isinstance(image.getexif().get(ImageOps.ExifTags.Base.Orientation, 1), int)
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        colors = {2: 3, 5: 4, 6: 3}.get(int(page.photometric), 1)
        unsaid = page.samplesperpixel > colors + len(page.extrasamples)
        few = page.colormap is not None and page.colormap.max() < 256
        odd = page.photometric == 0 or page.planarconfig == 2  # white is zero, planes: right for 8 bits only
        unsaid |= "PhotometricInterpretation" not in page.tags  # white is 0, it says
        return unsaid or few or page.bitspersample == 12 or (odd and page.bitspersample == 16)


def has_profile(data: bytes) -> bool:
    """Whether Pillow finds a color profile."""
    from PIL import Image

    return bool(Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS).info.get("icc_profile"))


def has_orientation(data: bytes) -> bool:
    """Whether Pillow finds that the image is to be turned."""
    from PIL import Image, ImageOps

    opened = Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS)
    return bool(opened.getexif().get(ImageOps.ExifTags.Base.Orientation, 1) != 1)
