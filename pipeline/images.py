"""One image's bytes in, one stored image out: check, decode, orient, trim, resize, encode. OpenCV, no TensorFlow.

    process(data, ImageOptions(size=256)).data      # JPEG, PNG or raw RGB bytes for a record
    load_rgb(data, ImageOptions(size=256))          # the same image as an array, for prediction

A pure function of (bytes, options, library versions): the same in every process, thread and order.
"""

from __future__ import annotations

import logging
from importlib import metadata
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
import xxhash

from shardline.pipeline import jpeg
from shardline.pipeline.encodings import ENCODINGS
from shardline.pipeline.image_headers import only_bad_images, read_header
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.image_pixels import Pixels, decode_pixels, halve
from shardline.pipeline.image_types import BadImage, Header
from shardline.pipeline.resizing import Extent, halvings, resize, ycc

# How images are made smaller, and color profiles applied; part of the preprocessing contract. Change it whenever the
# stored bytes of any image change: what was begun or made in another way is not gone on with.
KERNEL = "halves, gaussian, cubic without IPP; matrix profiles in whole numbers, deep ones in 16 bits; CMYK inverted"
LONGEST_JPEG_SIDE = 65_500  # of libjpeg-turbo


class FilteredImage(BadImage):
    """A sound image that the quality filters asked to leave out."""

    status = "filtered"


class ProcessedImage(NamedTuple):
    """One stored image and what was found out on the way."""

    data: bytes
    height: int
    width: int
    source_format: str
    source_height: int  # as shown: after the orientation is applied, before trimming
    source_width: int
    sharpness: float | None  # None unless --min_sharpness asked for it
    pixel_hash: str  # equal for equal pixels at the stored size, whatever file they came in
    perceptual_hash: int  # 64 bits; few differing bits: they look alike
    note: str  # what was done that a person may want to know; "" for nothing


def set_up_process() -> None:
    """One thread, and no codec chatter on stderr: what a codec says of a bad file goes into its BadImage."""
    cv2.setNumThreads(0)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    for name in ("tifffile", "imagecodecs", "PIL"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def versions() -> dict[str, str]:
    """The libraries whose versions decide the stored bytes."""
    return {"opencv": cv2.__version__, "simplejpeg": simplejpeg.__version__} | {
        name: metadata.version(name) for name in ("pillow", "tifffile", "imagecodecs", "pi-heif", "pillow-jxl-plugin")
    }


@only_bad_images
def process(data: bytes, options: ImageOptions) -> ProcessedImage:
    """The stored image of one file's bytes.

    Raises:
      BadImage, FilteredImage: with a reason.
      MemoryError: the machine has too little memory; says nothing about the image.
    """
    header, (bgr, color_changed, notes), target, extent = _load(data, options)
    encoding = ENCODINGS[options.encoding]
    if encoding.subsampled:
        luma, blue, red = ycc(bgr, target, extent)
        luma = _crop(luma, target, options)
        planes = [luma, _crop(blue, target, options, 2), _crop(red, target, options, 2)]
    else:
        bgr = _crop(resize(bgr, target, extent), target, options)
        planes = [bgr]
        luma = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)
    height, width = luma.shape
    source_height, source_width = header.shown
    sharpness = _checked_sharpness(luma, options)
    same = (height, width) == (source_height, source_width) and header.orientation == 1 and not color_changed
    if same and isinstance(header, jpeg.JpegHeader) and header.passes_through and options.encoding == header.format:
        stored = jpeg.strip(data, header)
        notes += ("passed through" + (f" less {len(data) - len(stored)} bytes" if stored is not data else ""),)
    else:
        stored = encoding.encode(planes, options)
    return ProcessedImage(
        stored,
        height,
        width,
        header.format,
        source_height,
        source_width,
        sharpness,
        _pixel_hash(planes),
        _perceptual_hash(luma),
        "; ".join(notes),
    )


@only_bad_images
def load_rgb(data: bytes, options: ImageOptions) -> np.ndarray:
    """The image that `process` would store, as uint8 RGB [height, width, 3], before any encoding. Raises likewise."""
    _, pixels, target, extent = _load(data, options)
    return cv2.cvtColor(_crop(resize(pixels.bgr, target, extent), target, options), cv2.COLOR_BGR2RGB)


# --- Decoding ---------------------------------------------------------------------------------------------


def _check_pixels(height: int, width: int, options: ImageOptions, what: str = "") -> None:
    megapixels = height * width / 1e6
    if megapixels > options.max_megapixels:
        raise BadImage(
            "too-many-pixels",
            f"{what}{width}x{height}, {megapixels:.4g} million > --max_megapixels={options.max_megapixels:g}",
        )


def _check_side(height: int, width: int, options: ImageOptions) -> None:
    if min(height, width) < options.min_side:
        raise FilteredImage("too-small", f"{width}x{height} pixels, short side < --min_side={options.min_side}")


def _checked_target(height: int, width: int, options: ImageOptions) -> tuple[int, int]:
    """The size to store, limited like the source's: enlarged strips become huge."""
    target = _target(height, width, options)
    _check_pixels(*target, options, f"{width}x{height} becomes ")
    if options.encoding == "jpeg" and max(target) > LONGEST_JPEG_SIDE and options.resize != "center_crop":
        raise BadImage(
            "side-too-long",
            f"{target[1]}x{target[0]} pixels to store, but a JPEG's sides have up to {LONGEST_JPEG_SIDE}; use "
            "--encoding=png, or another --resize or --size",
        )
    return target


def _load(data: bytes, options: ImageOptions) -> tuple[Header, Pixels, tuple[int, int], Extent]:
    """Decode, convert to sRGB, orient and trim; also the size to resize to, and how many pixels the image spans.

    What is much larger than its target is reduced by 2, 4 or 8, so it may span a fraction of its last row.
    """
    header = read_header(data)
    height, width = header.shown
    _check_pixels(header.height, header.width, options)
    _check_side(height, width, options)
    target = _checked_target(height, width, options)
    reductions = 0 if options.trim_borders else halvings((height, width), target, most=3)
    pixels = decode_pixels(data, header, reductions, options.depth_range)
    if options.trim_borders:
        bgr = _trim(pixels.bgr)
        if bgr.shape[:2] != (height, width):
            pixels = pixels._replace(bgr=bgr, notes=(*pixels.notes, f"trimmed from {width}x{height}"))
            height, width = bgr.shape[:2]
            _check_side(height, width, options)
            target = _checked_target(height, width, options)
    return header, pixels, target, (height / 2**reductions, width / 2**reductions)


# --- Geometry ---------------------------------------------------------------------------------------------


def _trim(bgr: np.ndarray) -> np.ndarray:
    """Cut frames and bars of one color.

    The box around all contours of the edge map is the content. A side is cut only if everything outside the box is
    one color and the content begins along a straight edge, so skies, walls and objects on white keep their room.
    """
    edges = cv2.Canny(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY), 30, 90)
    contours, _ = cv2.findContours(edges, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    boxes = np.array([cv2.boundingRect(contour) for contour in contours]).reshape(-1, 4)
    boxes = boxes[boxes[:, 2:].max(axis=1) >= 8]  # not the specks that JPEG leaves beside an edge
    if not len(boxes):
        return bgr
    left, top = boxes[:, :2].min(axis=0).tolist()
    right, bottom = (boxes[:, :2] + boxes[:, 2:]).max(axis=0).tolist()
    height, width = edges.shape
    across, along = edges[:, left:right], edges[top:bottom].T
    first, last = _bar(bgr, across, top), height - _bar(bgr[::-1], across[::-1], height - bottom)
    turned = bgr.swapaxes(0, 1)
    start, stop = _bar(turned, along, left), width - _bar(turned[::-1], along[::-1], width - right)
    return bgr[first:last, start:stop] if last - first >= 8 and stop - start >= 8 else bgr


def _bar(bgr: np.ndarray, edges: np.ndarray, rows: int) -> int:
    """How many of the first rows are a bar: `rows`, give or take the width of an edge, or 0 if they are none."""
    if rows < 2 or edges[rows : rows + 3].any(axis=0).mean() < 0.5:
        return 0
    color = np.median(bgr[0], axis=0).astype(np.int16)

    def plain(part: np.ndarray, levels: int, share: float) -> bool:
        return bool((np.abs(part.astype(np.int16) - color).max(axis=-1) <= levels).mean() >= share)

    rows -= 1  # an edge may lie on either side of the last row
    if not plain(bgr[:rows], 16, 0.98):
        return 0
    for row in range(rows, min(rows + 8, len(bgr))):  # through what JPEG's blocks smear over the edge
        if not plain(bgr[row], 32, 0.9):
            return row
    return rows + 8


def _target(height: int, width: int, options: ImageOptions) -> tuple[int, int]:
    """Height and width to resize to (before center_crop's crop)."""
    size = options.size
    if options.resize == "none":
        return height, width
    if options.resize == "squash":
        return (size, size) if options.upscale else (min(size, height), min(size, width))
    side = max(height, width) if options.resize == "long" else min(height, width)
    if side < size and not options.upscale:
        return height, width
    return max(1, round(height * size / side)), max(1, round(width * size / side))


def _crop(pixels: np.ndarray, target: Extent, options: ImageOptions, part: int = 1) -> np.ndarray:
    """center_crop's middle of an image, or of its plane with one sample for each part*part pixels."""
    if options.resize == "center_crop":
        size = -(-options.size // part)
        # An even offset, so that chroma stays in place.
        top, left = (max(0, int(side) - options.size) // 4 * 2 // part for side in target)
        pixels = pixels[top : top + size, left : left + size]
    return np.ascontiguousarray(pixels)


# --- Measuring --------------------------------------------------------------------------------------------


def _checked_sharpness(luma: np.ndarray, options: ImageOptions) -> float | None:
    """Variance of the Laplacian (Pech-Pacheco et al. 2000), low for blurred images; None where nobody asked."""
    if not options.min_sharpness:
        return None
    sharpness = float(cv2.meanStdDev(cv2.Laplacian(luma, cv2.CV_16S))[1][0, 0] ** 2)
    if sharpness < options.min_sharpness:
        raise FilteredImage("blurred", f"sharpness {sharpness:.1f} < --min_sharpness={options.min_sharpness:g}")
    return sharpness


def _pixel_hash(planes: list[np.ndarray]) -> str:
    """XXH3, 128 bits, of what would be encoded: the same pixels are found in a JPEG and in a PNG."""
    digest = xxhash.xxh3_128(b"%dx%d " % planes[0].shape[:2])
    for plane in planes:
        digest.update(plane.data)
    return digest.hexdigest()


def _perceptual_hash(luma: np.ndarray) -> int:
    """dHash (Krawetz 2013): is each of 8x8 cells darker than its right neighbor?"""
    while min(luma.shape) >= 64:  # whole-number averages first: much faster, and the cells hardly move
        luma = halve(luma)
    cells = cv2.resize(luma, (9, 8), interpolation=cv2.INTER_AREA)
    return int.from_bytes(np.packbits(cells[:, :-1] < cells[:, 1:]).tobytes(), "big")
