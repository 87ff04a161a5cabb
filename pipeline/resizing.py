"""Smaller images: halves, a low-pass, then cubic; and the planes of a JPEG.

What most photographs need, `_shrink.c` does in half the time, with the same bytes, where it could be compiled and the
processor has AVX2. Tried and left: compiled halves for the perceptual hash, which save less than 2% of an image.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np

from shardline.pipeline import native
from shardline.pipeline.image_pixels import halve

Extent = tuple[float, float]  # height and width in pixels
_SMALLEST = 4  # pixels: of a side to make; below, areas are averaged
_NO_TAPS = (0, 0, 256)


def halvings(extent: Extent, target: Extent, most: int = 99) -> int:
    """How often to halve before the last resize, leaving it a ratio of at least 2: halving alone is a crude filter."""
    ratio = min(extent[0] / target[0], extent[1] / target[1])
    return min(most, max(0, math.floor(math.log2(ratio / 2))))


def resize(pixels: np.ndarray, target: Extent, extent: Extent, chroma: bool = False) -> np.ndarray:
    """Resize what spans `extent` to span `target`: halve, then a low-pass fitted to the rest, then cubic.

    As true to Lanczos as OpenCV's INTER_AREA or truer (benchmarks/bench_image.py), in a third of its time; chroma,
    which a JPEG stores coarsely anyway, does without low-pass and cubic. `extent` and `target` may end inside their
    last row or column (chroma of an odd size, reduced JPEGs): the grid stays exact.
    """
    if target == extent:
        return pixels
    for _ in range(halvings(extent, target)):
        pixels, extent = halve(pixels), (extent[0] / 2, extent[1] / 2)
    height, width = size = _size(target)
    down, across = extent[0] / target[0], extent[1] / target[1]
    if max(down, across) > 4.5 or min(size) < _SMALLEST:  # squashed very unequally, or tiny
        return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    if not chroma and (shrunk := _shrunk(pixels, (*size, *pixels.shape[2:]), across, down)) is not None:
        return shrunk
    if not chroma and _needs_low_pass(down, across):
        (taps_across, sigma_across), (taps_down, sigma_down) = _low_pass(across), _low_pass(down)
        pixels = cv2.GaussianBlur(pixels, (taps_across, taps_down), sigma_across, sigmaY=sigma_down)
    if chroma:
        pixels = cv2.resize(pixels, None, fx=1 / across, fy=1 / down, interpolation=cv2.INTER_LINEAR)
    else:
        pixels = _cubic(pixels, fx=1 / across, fy=1 / down)
    short, narrow = max(0, height - pixels.shape[0]), max(0, width - pixels.shape[1])
    if short or narrow:
        pixels = cv2.copyMakeBorder(pixels, 0, short, 0, narrow, cv2.BORDER_REPLICATE)
    return pixels[:height, :width]


def ycc(bgr: np.ndarray, target: Extent, extent: Extent) -> list[np.ndarray]:
    """Y, Cb and Cr planes of a 4:2:0 JPEG, resized: half the samples of RGB, and no conversion inside the encoder."""
    half = target[0] / 2, target[1] / 2
    smaller = extent[0] >= target[0] and extent[1] >= target[1]
    luma = color = None
    if smaller and not halvings(extent, target) and min(half) >= _SMALLEST:
        across, down = extent[1] / target[1], extent[0] / target[0]
        luma = _shrunk(bgr, _size(target), across, down)
        color = _chroma_shrunk(bgr, _size(half), across, down)
    if luma is None:
        luma = resize(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY), target, extent)
    if color:
        return [luma, *color]
    if smaller:
        bgr, extent = halve(bgr), (extent[0] / 2, extent[1] / 2)
    mixed = cv2.cvtColor(resize(bgr, half, extent, chroma=True), cv2.COLOR_BGR2YCrCb)
    return [luma, cv2.extractChannel(mixed, 2), cv2.extractChannel(mixed, 1)]


def _size(target: Extent) -> tuple[int, int]:
    return math.ceil(target[0]), math.ceil(target[1])


def _needs_low_pass(down: float, across: float) -> bool:
    return max(down, across) >= 1.2


def _low_pass(ratio: float) -> tuple[int, float]:
    """Taps and sigma of the Gaussian before a cubic resize by `ratio` < 4, fitted to Lanczos on photographs."""
    if ratio > 2.65:
        return 5, 1.2 + 0.65 * (ratio - 3.2)
    outer = min(0.33, max(0.001, 0.225 * (ratio - 1.02)))  # each outer tap; the middle one has the rest
    return 3, math.sqrt(-0.5 / math.log(outer / (1 - 2 * outer)))


def _cubic(pixels: np.ndarray, fx: float, fy: float) -> np.ndarray:
    """INTER_CUBIC as OpenCV has it: IPP's sums differ from one kind of processor to the next."""
    used = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)  # for this thread
    try:
        return cv2.resize(pixels, None, fx=fx, fy=fy, interpolation=cv2.INTER_CUBIC)
    finally:
        cv2.ipp.setUseIPP(used)


# --- The same by _shrink.c ----------------------------------------------------------------------------------


def _shrunk(pixels: np.ndarray, shape: tuple[int, ...], across: float, down: float) -> np.ndarray | None:
    """Low-pass and cubic to an array of `shape`, two numbers for the gray of BGR; None for what is left to OpenCV."""
    out = np.empty(shape, np.uint8)
    taps = (_taps(across), _taps(down)) if _needs_low_pass(down, across) else (_NO_TAPS, _NO_TAPS)
    return out if native.shrink(pixels, out, 1 / across, 1 / down, *taps) else None


def _chroma_shrunk(bgr: np.ndarray, shape: tuple[int, int], across: float, down: float) -> list[np.ndarray] | None:
    """Cb and Cr of `shape` from halves; None for what is left to OpenCV."""
    out = [np.empty(shape, np.uint8), np.empty(shape, np.uint8)]
    return out if native.chroma(bgr, *out, 1 / across, 1 / down) else None


@lru_cache(1024)
def _taps(ratio: float) -> tuple[int, int, int]:
    """The low-pass as GaussianBlur applies it: weights of the outer, the inner neighbors and the middle."""
    count, sigma = _low_pass(ratio)
    sides = [math.exp(-0.5 * (distance / sigma) ** 2) for distance in range(count // 2, 0, -1)]
    share, left_over, weights = 256 / (2 * sum(sides) + 1), 0.0, [0, 0]
    for side in sides:
        exact = side * share + left_over  # what rounding took from one, the next has
        weights.append(round(exact))
        left_over = exact - weights[-1]
    outer, inner = weights[-2:]
    return outer, inner, 256 - 2 * (outer + inner)
