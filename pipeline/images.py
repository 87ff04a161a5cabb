"""One image's bytes in, one stored image out: check, decode, orient, trim, resize, encode. OpenCV, no TensorFlow.

    process(data, ImageOptions(size=256)).data      # JPEG, PNG or raw RGB bytes for a record
    load_rgb(data, ImageOptions(size=256))          # the same image as an array, for prediction

A pure function of (bytes, options, library versions): the same in every process, thread and order.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
import xxhash

from shardline.pipeline import jpeg
from shardline.pipeline.encodings import ENCODINGS
from shardline.pipeline.image_headers import BadImage, Header, read_header, sniff
from shardline.pipeline.image_options import ImageOptions

__all__ = [
    "BadImage",
    "FilteredImage",
    "Header",
    "ImageOptions",
    "ProcessedImage",
    "load_rgb",
    "process",
    "read_header",
    "set_up_process",
    "sniff",
    "versions",
]


KERNEL = "halves, gaussian, cubic"  # how images are made smaller; part of the preprocessing contract
LARGE_BYTES = 16 << 20  # of decoded pixels; from here on their memory matters more than a copy of the file
Extent = tuple[float, float]  # height and width in pixels


class FilteredImage(BadImage):
    """A sound image that the quality filters asked to leave out."""

    status = "filtered"


@dataclass(frozen=True)
class ProcessedImage:
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


def versions() -> dict[str, str]:
    """The libraries whose versions decide the stored bytes."""
    return {"opencv": cv2.__version__, "simplejpeg": simplejpeg.__version__}


def process(data: bytes, options: ImageOptions) -> ProcessedImage:
    """The stored image of one file's bytes. Raises BadImage (or FilteredImage) with a reason."""
    header = _checked_header(data, options)
    bgr, extent, target, notes = _load(data, header, options)
    encoding = ENCODINGS[options.encoding]
    if encoding.subsampled:
        luma, blue, red = _ycc(bgr, target, extent)
        luma = _crop(luma, target, options)
        planes = [luma, _crop(blue, target, options, 2), _crop(red, target, options, 2)]
    else:
        bgr = _crop(_resize(bgr, target, extent), target, options)
        planes = [bgr]
        luma = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)
    height, width = luma.shape
    source_height, source_width = _oriented(header)
    sharpness = None
    if options.min_sharpness:
        sharpness = _sharpness(luma)
        if sharpness < options.min_sharpness:
            raise FilteredImage("blurred", f"sharpness {sharpness:.1f} < --min_sharpness={options.min_sharpness:g}")
    same_size = (height, width) == (source_height, source_width)
    if header.format == options.encoding and header.passes_through and header.orientation == 1 and same_size:
        stored = jpeg.strip(data, header)
        notes.append("passed through" if stored is data else f"passed through less {len(data) - len(stored)} bytes")
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


def load_rgb(data: bytes, options: ImageOptions) -> np.ndarray:
    """The image that `process` would store, as uint8 RGB [height, width, 3], before any encoding."""
    bgr, extent, target, _ = _load(data, _checked_header(data, options), options)
    return cv2.cvtColor(_crop(_resize(bgr, target, extent), target, options), cv2.COLOR_BGR2RGB)


# --- Decoding ---------------------------------------------------------------------------------------------


def _checked_header(data: bytes, options: ImageOptions) -> Header:
    header = read_header(data)
    megapixels = header.height * header.width / 1e6
    if megapixels > options.max_megapixels:
        raise BadImage(
            "too-many-pixels",
            f"{header.width}x{header.height}, {megapixels:.4g} million > --max_megapixels={options.max_megapixels:g}",
        )
    _check_side(header.height, header.width, options)
    return header


def _check_side(height: int, width: int, options: ImageOptions) -> None:
    if min(height, width) < options.min_side:
        raise FilteredImage("too-small", f"{width}x{height} pixels, short side < --min_side={options.min_side}")


def _load(data: bytes, header: Header, options: ImageOptions) -> tuple[np.ndarray, Extent, Extent, list[str]]:
    """Decode, orient and trim: the pixels, how many of them the image spans, the size to store, and the notes.

    What is much larger than its target comes back reduced by 2, 4 or 8, so it may span a fraction of its last row.
    """
    notes = []
    if header.frames > 1:
        notes.append(f"first frame of {header.frames}")
    height, width = _oriented(header)
    target = _target(height, width, options)
    halvings = 0 if options.trim_borders else _halvings((height, width), target, most=3)
    bgr = _decode(data, header, halvings)
    if header.orientation != 1:
        if header.format != "tiff":  # libtiff has done it
            bgr = _orient(bgr, header.orientation)
        notes.append(f"EXIF orientation {header.orientation} applied")
    if options.trim_borders:
        bgr = _trim(bgr)
        if bgr.shape[:2] != (height, width):
            notes.append(f"trimmed from {width}x{height}")
            height, width = bgr.shape[:2]
            _check_side(height, width, options)
            target = _target(height, width, options)
    return bgr, (height / 2**halvings, width / 2**halvings), target, notes


def _decode(data: bytes, header: Header, halvings: int) -> np.ndarray:
    """All pixels as uint8 BGR, not yet oriented, halved 0 to 3 times."""
    if header.format == "jpeg":
        return _decode_jpeg(data, header, 2**halvings)
    try:
        pixels = _decode_as_stored(data, header)
    except cv2.error as error:
        raise BadImage("corrupt-data", f"{header.format}: {error.err}") from None
    if pixels is None:
        raise BadImage("corrupt-data", f"{header.format}: damaged, or of a kind that OpenCV cannot decode")
    return _to_bgr(pixels, header, halvings)


def _decode_as_stored(data: bytes, header: Header) -> np.ndarray | None:
    """What OpenCV makes of it: 16 bits and alpha kept, no orientation applied; None for nothing."""
    turned = header.format == "tiff" and header.orientation >= 5  # by libtiff: imread then expects another size
    if turned or header.height * header.width * 3 < LARGE_BYTES:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    # imdecode copies the pixels on their way into Python; imread with a `dst` decodes them in place.
    with open(os.memfd_create("image"), "wb") as file:
        file.write(data)
        file.flush()
        return cv2.imread(f"/proc/self/fd/{file.fileno()}", dst=None, flags=cv2.IMREAD_UNCHANGED)


def _decode_jpeg(data: bytes, header: Header, reduction: int) -> np.ndarray:
    """libjpeg-turbo through simplejpeg, whose strict mode raises where libjpeg would only warn of corrupt data."""
    jpeg.check_scan(data, header)
    size = {
        "min_height": -(-header.height // reduction),
        "min_width": -(-header.width // reduction),
        "min_factor": reduction,
    }
    try:
        if not header.cmyk:
            return simplejpeg.decode_jpeg(data, "BGR", **size)
        cmyk = simplejpeg.decode_jpeg(data, "CMYK", **size)
    except ValueError as error:
        raise _jpeg_fault(str(error)) from None
    if header.cmyk == "plain":
        cmyk = 255 - cmyk
    black = cmyk[:, :, 3]
    return cv2.merge([cv2.multiply(cmyk[:, :, ink], black, scale=1 / 255) for ink in (2, 1, 0)])


def _jpeg_fault(message: str) -> BadImage:
    if "remature end" in message:
        return BadImage("truncated" if "file" in message else "corrupt-scan", f"JPEG: {message}")
    if "orrupt JPEG data" in message:
        return BadImage("corrupt-scan", f"JPEG: {message}")
    return BadImage("corrupt-data", f"JPEG: {message}")


def _to_bgr(pixels: np.ndarray, header: Header, halvings: int) -> np.ndarray:
    """Any integer gray, BGR or BGRA to uint8 BGR: 16 bits scaled (not clipped), alpha over white, then halved.

    In bands of rows: a large image must not need its memory twice.
    """
    if pixels.dtype not in (np.uint8, np.uint16):
        raise BadImage("unsupported-samples", f"{header.format} with {pixels.dtype} samples: their range is not known")
    if pixels.dtype == np.uint8 and pixels.shape[2:] == (3,) and not halvings:
        return pixels
    height, width = (-(-side // 2**halvings) for side in pixels.shape[:2])
    if pixels.ndim == 3 and not halvings:
        bgr = pixels.reshape(-1).view(np.uint8)[: height * width * 3].reshape(height, width, 3)  # over what was read
    else:
        bgr = np.empty((height, width, 3), np.uint8)
    scale = 255 / (2 ** max(header.depth, 9) - 1)
    premultiplied = header.format == "tiff" and header.depth <= 8  # by libtiff, whatever the file holds
    rows = 64 >> halvings
    for top in range(0, height, rows):
        band = pixels[top << halvings : (top + rows) << halvings]
        if band.dtype == np.uint16:
            band = cv2.convertScaleAbs(band, alpha=scale)
        if band.ndim == 2:
            band = cv2.cvtColor(band, cv2.COLOR_GRAY2BGR)
        elif band.shape[2] == 4:
            band = _over_white(band, premultiplied)
        for _ in range(halvings):
            band = _halve(band)
        bgr[top : top + rows] = band
    return bgr


def _over_white(bgra: np.ndarray, premultiplied: bool) -> np.ndarray:
    color, alpha = bgra[:, :, :3], bgra[:, :, 3:]
    if (alpha == 255).all():
        return cv2.cvtColor(bgra, cv2.COLOR_BGRA2BGR)
    if premultiplied:
        return np.minimum(color.astype(np.uint16) + (255 - alpha), 255).astype(np.uint8)
    light = color.astype(np.uint16) * alpha + np.uint16(255) * (255 - alpha) + 127
    return ((light + 1 + (light >> 8)) >> 8).astype(np.uint8)  # light // 255, exact for what 16 bits hold


def _oriented(header: Header) -> tuple[int, int]:
    """Height and width as shown."""
    return (header.width, header.height) if header.orientation >= 5 else (header.height, header.width)


def _orient(bgr: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation: what the camera stored to what the person saw."""
    if orientation >= 5:
        bgr = cv2.transpose(bgr)  # first swap rows and columns, then mirror
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return bgr if flip is None else cv2.flip(bgr, flip, dst=bgr)  # in place


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


def _halvings(extent: Extent, target: Extent, most: int) -> int:
    """How often to halve before the last resize, leaving it a ratio of at least 2: halving alone is a crude filter."""
    ratio = min(extent[0] / target[0], extent[1] / target[1])
    return min(most, max(0, math.floor(math.log2(ratio / 2))))


def _halve(pixels: np.ndarray) -> np.ndarray:
    """Average 2x2 pixels. An odd last row or column is repeated, to keep the extent: half, rounded up."""
    height, width = pixels.shape[:2]
    if min(height, width) < 2:
        pixels = cv2.copyMakeBorder(pixels, 0, height & 1, 0, width & 1, cv2.BORDER_REPLICATE)
        return cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    even = pixels[: height & ~1, : width & ~1]
    half = cv2.resize(even, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    return cv2.copyMakeBorder(half, 0, height & 1, 0, width & 1, cv2.BORDER_REPLICATE) if (height | width) & 1 else half


def _resize(pixels: np.ndarray, target: Extent, extent: Extent, chroma: bool = False) -> np.ndarray:
    """Resize what spans `extent` to span `target`: halve, then a low-pass fitted to the rest, then cubic.

    As true to Lanczos as OpenCV's INTER_AREA or truer (benchmarks/bench_image.py), in a third of its time; chroma,
    which a JPEG stores coarsely anyway, does without low-pass and cubic. `extent` and `target` may end inside their
    last row or column (chroma of an odd size, reduced JPEGs): the grid stays exact.
    """
    if target == extent:
        return pixels
    size = (math.ceil(target[1]), math.ceil(target[0]))
    for _ in range(_halvings(extent, target, most=99)):
        pixels, extent = _halve(pixels), (extent[0] / 2, extent[1] / 2)
    down, across = extent[0] / target[0], extent[1] / target[1]
    if max(down, across) > 4.5 or min(size) < 4:  # squashed very unequally, or tiny
        return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    if not chroma and max(down, across) >= 1.2:
        (taps_across, sigma_across), (taps_down, sigma_down) = _low_pass(across), _low_pass(down)
        pixels = cv2.GaussianBlur(pixels, (taps_across, taps_down), sigma_across, sigmaY=sigma_down)
    kernel = cv2.INTER_LINEAR if chroma else cv2.INTER_CUBIC
    pixels = cv2.resize(pixels, None, fx=1 / across, fy=1 / down, interpolation=kernel)
    short, narrow = max(0, size[1] - pixels.shape[0]), max(0, size[0] - pixels.shape[1])
    if short or narrow:
        pixels = cv2.copyMakeBorder(pixels, 0, short, 0, narrow, cv2.BORDER_REPLICATE)
    return pixels[: size[1], : size[0]]


def _low_pass(ratio: float) -> tuple[int, float]:
    """Taps and sigma of the Gaussian before a cubic resize by `ratio` < 4, fitted to Lanczos on photographs."""
    if ratio > 2.65:
        return 5, 1.2 + 0.65 * (ratio - 3.2)
    outer = min(0.33, max(0.001, 0.225 * (ratio - 1.02)))  # each outer tap; the middle one has the rest
    return 3, math.sqrt(-0.5 / math.log(outer / (1 - 2 * outer)))


def _ycc(bgr: np.ndarray, target: Extent, extent: Extent) -> list[np.ndarray]:
    """Y, Cb and Cr planes of a 4:2:0 JPEG, resized: half the samples of RGB, and no conversion inside the encoder."""
    luma = _resize(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY), target, extent)
    if extent[0] >= target[0] and extent[1] >= target[1]:
        bgr, extent = _halve(bgr), (extent[0] / 2, extent[1] / 2)
    color = _resize(bgr, (target[0] / 2, target[1] / 2), extent, chroma=True)
    color = cv2.cvtColor(color, cv2.COLOR_BGR2YCrCb)
    return [luma, cv2.extractChannel(color, 2), cv2.extractChannel(color, 1)]


def _crop(pixels: np.ndarray, target: Extent, options: ImageOptions, part: int = 1) -> np.ndarray:
    """center_crop's middle of an image, or of its plane with one sample for each part*part pixels."""
    if options.resize == "center_crop":
        size = -(-options.size // part)
        # An even offset, so that chroma stays in place.
        top, left = (max(0, int(side) - options.size) // 4 * 2 // part for side in target)
        pixels = pixels[top : top + size, left : left + size]
    return np.ascontiguousarray(pixels)


# --- Measuring --------------------------------------------------------------------------------------------


def _sharpness(luma: np.ndarray) -> float:
    """Variance of the Laplacian (Pech-Pacheco et al. 2000): low for blurred images."""
    return float(cv2.meanStdDev(cv2.Laplacian(luma, cv2.CV_16S))[1][0, 0] ** 2)


def _pixel_hash(planes: list[np.ndarray]) -> str:
    """XXH3, 128 bits, of what would be encoded: the same pixels are found in a JPEG and in a PNG."""
    digest = xxhash.xxh3_128(b"%dx%d " % planes[0].shape[:2])
    for plane in planes:
        digest.update(plane.data)
    return digest.hexdigest()


def _perceptual_hash(luma: np.ndarray) -> int:
    """dHash (Krawetz 2013): is each of 8x8 cells darker than its right neighbor?"""
    while min(luma.shape) >= 64:  # whole-number ema_weights first: much faster, and the cells hardly move
        luma = _halve(luma)
    cells = cv2.resize(luma, (9, 8), interpolation=cv2.INTER_AREA)
    return int.from_bytes(np.packbits(cells[:, :-1] < cells[:, 1:]).tobytes(), "big")
