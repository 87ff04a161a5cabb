"""From a JPEG's or PNG's bytes to the model's pixels in TensorFlow ops alone, for models that leave this project.

`pipeline.images.load_rgb` defines what is done, with OpenCV: decode, put alpha over white, orient, resize and crop.
This is the same again, stage by stage and rounded where OpenCV rounds; the tests compare the pixels of both. What a
graph cannot do as the converter does it is refused, image by image; but a JPEG with damage that libjpeg only warns of
is not noticed here, and the converter refuses it.
"""

from __future__ import annotations

import tensorflow as tf

from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.images import LONGEST_JPEG_SIDE
from shardline.pipeline.preprocessing import eval_geometry
from shardline.trainer.evaluation.graph_headers import exif_orientation, few_bits_without_alpha, image_size, refusal

SERVED = "ok"
DAMAGED = "damaged, or of a kind that TensorFlow cannot decode"
TRIMMED = "the converter trims borders, which a TensorFlow graph cannot: trim first, and call serve_images"
SCALED = "16 bits a sample, which the converter scales by --depth_range: convert it first, and call serve_images"
TOO_LARGE = "more pixels than the converter takes"
MOST_HALVINGS = 16  # an image side of at most 2**16


def images_from_bytes(
    encoded: tf.Tensor, options: ImageOptions, size: int, crop_fraction: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """What the model is shown of files, and which it cannot be shown.

    Args:
      encoded: string [n].
      options: the converter's.

    Returns:
      uint8 [n, size, size, 3], zeros where a file is refused; string [n]: "ok", or why it is refused.
    """
    count = tf.size(encoded, tf.int64)
    blank = tf.zeros((size, size, 3), tf.uint8)

    @tf.autograph.experimental.do_not_convert
    def one(place: tf.Tensor, data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        reason = _refusal(data, options)
        image = tf.cond(reason == SERVED, lambda: _shown(data, options, size, crop_fraction), lambda: blank)
        return place, tf.ensure_shape(image, (size, size, 3)), reason

    # An error of a decoder would end the whole batch; only a dataset passes over one.
    sound = tf.data.Dataset.from_tensor_slices(encoded).enumerate().map(one, tf.data.AUTOTUNE).ignore_errors()
    filler = tf.data.Dataset.from_tensors((count, blank, SERVED))  # so that there is one in any case
    places, images, status = sound.concatenate(filler).batch(count + 1).get_single_element()
    places = places[:, None]
    statuses = tf.tensor_scatter_nd_update(tf.fill([count + 1], DAMAGED), places, status)
    return tf.scatter_nd(places, images, [count + 1, size, size, 3])[:-1], statuses[:-1]


def _refusal(data: tf.Tensor, options: ImageOptions) -> tf.Tensor:
    """ "ok", or why a file is refused before anything of it is decoded."""
    if options.trim_borders:
        return tf.constant(TRIMMED)

    def by_size() -> tf.Tensor:
        size = _shown_size(data)
        target = stored_size(size, options)
        too_large = tf.maximum(tf.reduce_prod(size), tf.reduce_prod(target)) > options.max_megapixels * 1e6
        if options.encoding == "jpeg" and options.resize != "center_crop":
            too_large |= tf.reduce_max(target) > LONGEST_JPEG_SIDE
        return tf.where(too_large, TOO_LARGE, SERVED)

    reason = refusal(data)
    if options.depth_range != "full":
        reason = tf.where((reason == "") & ~tf.io.is_jpeg(data) & _is_deep(data), SCALED, reason)
    return tf.cond(reason == "", by_size, lambda: reason)


def _is_deep(png: tf.Tensor) -> tf.Tensor:
    """Whether a PNG has 16 bits a sample."""
    return tf.strings.substr(png, 24, 1) == b"\x10"


def _shown_size(data: tf.Tensor) -> tf.Tensor:
    size = image_size(data)
    return tf.where(exif_orientation(data) >= 5, tf.reverse(size, [0]), size)


def _shown(data: tf.Tensor, options: ImageOptions, image_size: int, crop_fraction: float) -> tf.Tensor:
    """uint8 [image_size, image_size, 3] of a file that is not refused."""
    size = _shown_size(data)
    target = stored_size(size, options)
    count = halvings(size / target, 3)
    pixels = tf.cond(tf.io.is_jpeg(data), lambda: _jpeg(data, count), lambda: _png(data, count))
    pixels = _orient(tf.ensure_shape(pixels, (None, None, 3)), exif_orientation(data))
    extent = size / tf.cast(2**count, tf.float64)
    pixels = tf.cond(
        tf.reduce_all(target == extent),
        lambda: pixels,
        lambda: tf.cast(_resize(tf.cast(pixels, tf.float32), target, extent), tf.uint8),
    )
    if options.resize == "center_crop":
        top, left = tf.unstack(tf.cast(tf.maximum(target - options.size, 0), tf.int32) // 4 * 2)
        pixels = pixels[top : top + options.size, left : left + options.size]
    return eval_geometry(pixels, image_size, crop_fraction)


# ---------------------------------------------------------------------------------------- decoding


_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"


def _jpeg(data: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Halved `count` times while it is decoded; CMYK as stored inverted, marker or not, as by `pipeline.jpeg`."""
    told = tf.strings.join([tf.strings.substr(data, 0, 2), _ADOBE, tf.strings.substr(data, 2, -1)])
    data = tf.cond(tf.io.extract_jpeg_shape(data)[2] == 4, lambda: told, lambda: data)

    def at(ratio: int) -> tf.Tensor:
        return tf.io.decode_jpeg(data, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")

    return tf.switch_case(count, [lambda: at(1), lambda: at(2), lambda: at(4), lambda: at(8)])


def _png(data: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """16 bits scaled to 8, color over white, halved `count` times."""

    def deep() -> tf.Tensor:
        return _rounded(tf.cast(tf.io.decode_png(data, channels=4, dtype=tf.uint16), tf.float32) / 257)

    def plain() -> tf.Tensor:
        return tf.cast(tf.io.decode_png(data, channels=4), tf.float32)

    rgba = tf.cast(tf.cond(_is_deep(data), deep, plain), tf.int32)
    # TensorFlow gives images of 1, 2 and 4 bits without transparency an alpha of 1, 3 and 15 instead of 255.
    alpha = tf.cond(few_bits_without_alpha(data), lambda: 255, lambda: rgba[..., 3:])
    color = tf.cast((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255, tf.float32)
    return tf.cast(_halve(color, count), tf.uint8)


def _orient(pixels: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Swap rows and columns for 5 to 8, then flip."""
    pixels = tf.cond(orientation >= 5, lambda: tf.transpose(pixels, (1, 0, 2)), lambda: pixels)
    flip_columns = tf.reduce_any(orientation == [2, 3, 6, 7])
    flip_rows = tf.reduce_any(orientation == [3, 4, 7, 8])
    pixels = tf.cond(flip_columns, lambda: tf.reverse(pixels, [1]), lambda: pixels)
    return tf.cond(flip_rows, lambda: tf.reverse(pixels, [0]), lambda: pixels)


# ---------------------------------------------------------------------------------------- resizing


def stored_size(size: tf.Tensor, options: ImageOptions) -> tf.Tensor:
    """float64 [2]: height and width that the converter resizes an image of float64 `size` to, before its crop."""
    if options.resize == "none":
        return size
    if options.resize == "squash":
        return (
            tf.fill([2], tf.constant(options.size, tf.float64)) if options.upscale else tf.minimum(size, options.size)
        )
    side = tf.reduce_max(size) if options.resize == "long" else tf.reduce_min(size)
    scaled = tf.maximum(tf.round(size * options.size / side), 1)
    return scaled if options.upscale else tf.where(side < options.size, size, scaled)


def halvings(ratio: tf.Tensor, most: int) -> tf.Tensor:
    """int32: how often to halve before the last resize, leaving it a ratio of at least 2."""
    steps = tf.constant([2.0 ** (step + 1) for step in range(1, most + 1)], tf.float64)
    return tf.reduce_sum(tf.cast(tf.reduce_min(ratio) >= steps, tf.int32))


def _halve(pixels: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Average 2x2 pixels of float32 [h, w, 3] `count` times. An odd last row or column is repeated."""

    def step(left: tf.Tensor, pixels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        odd, thin = tf.shape(pixels)[:2] % 2, tf.reduce_min(tf.shape(pixels)[:2]) < 2
        pixels = _repeat_last(pixels, tf.where(thin, odd, 0))
        even = pixels[: tf.shape(pixels)[0] // 2 * 2, : tf.shape(pixels)[1] // 2 * 2]
        pixels = _rounded((even[::2, ::2] + even[::2, 1::2] + even[1::2, ::2] + even[1::2, 1::2]) / 4)
        return left - 1, tf.ensure_shape(_repeat_last(pixels, tf.where(thin, 0, odd)), (None, None, 3))

    pixels = tf.ensure_shape(pixels, (None, None, 3))
    shapes = (tf.TensorShape([]), tf.TensorShape([None, None, 3]))
    halved: tf.Tensor = tf.while_loop(lambda left, _: left > 0, step, (count, pixels), shapes)[1]
    return halved


def _repeat_last(pixels: tf.Tensor, more: tf.Tensor) -> tf.Tensor:
    """With `more`, int32 [2], 0 or 1 row and column of the last again."""
    return tf.pad(pixels, [[0, more[0]], [0, more[1]], [0, 0]], "SYMMETRIC")


def _resize(pixels: tf.Tensor, target: tf.Tensor, extent: tf.Tensor) -> tf.Tensor:
    """float32 [h, w, 3] that spans float64 `extent` to `target`: halves, then a fitted low-pass, then cubic."""
    count = halvings(extent / target, MOST_HALVINGS)
    pixels = _halve(pixels, count)
    ratio = extent / tf.cast(2**count, tf.float64) / target
    unequal = (tf.reduce_max(ratio) > 4.5) | (tf.reduce_min(target) < 4)
    size = tf.cast(target, tf.int32)
    return tf.cond(unequal, lambda: _area(pixels, size), lambda: _cubic(_low_pass(pixels, ratio), size, ratio))


def _low_pass(pixels: tf.Tensor, ratio: tf.Tensor) -> tf.Tensor:
    """OpenCV's GaussianBlur on bytes, its taps in 1/256; borders reflected."""

    def blur() -> tf.Tensor:
        blurred = pixels
        for axis in (0, 1):
            length = tf.shape(pixels)[axis]
            taps = _gaussian(ratio[axis])
            places = tf.abs(tf.range(length)[:, None] + tf.range(-2, 3))
            places = tf.maximum(length - 1 - tf.abs(length - 1 - places), 0)
            blurred = _weighted(blurred, axis, places, tf.tile(taps[None], [length, 1]))
        return _rounded(blurred)

    return tf.cond(tf.reduce_max(ratio) >= 1.2, blur, lambda: pixels)


def _gaussian(ratio: tf.Tensor) -> tf.Tensor:
    """float64 [5]: taps for a cubic resize by `ratio` < 4."""
    sigma = 1.2 + 0.65 * (ratio - 3.2)
    far, near = tf.exp(-2 / sigma**2), tf.exp(-0.5 / sigma**2)
    total = 1 + 2 * (near + far)
    outer = tf.clip_by_value(0.225 * (ratio - 1.02), 0.001, 0.33)
    wide = ratio > 2.65
    far, near = 256 * tf.where(wide, far / total, 0.0), 256 * tf.where(wide, near / total, outer)
    rounded = tf.round(far)
    near = tf.round(near + far - rounded)
    return tf.stack([rounded, near, 256 - 2 * (rounded + near), near, rounded]) / 256


def _cubic(pixels: tf.Tensor, size: tf.Tensor, ratio: tf.Tensor) -> tf.Tensor:
    """OpenCV's INTER_CUBIC: Keys' kernel with a = -0.75; borders repeated."""
    a = -0.75
    for axis in (0, 1):
        length, grid = tf.shape(pixels)[axis], tf.cast(tf.range(size[axis]), tf.float64)
        center = (grid + 0.5) * ratio[axis] - 0.5
        first = tf.floor(center)
        x = center - first
        before = ((a * (x + 1) - 5 * a) * (x + 1) + 8 * a) * (x + 1) - 4 * a
        here = ((a + 2) * x - (a + 3)) * x * x + 1
        after = ((a + 2) * (1 - x) - (a + 3)) * (1 - x) * (1 - x) + 1
        weights = tf.stack([before, here, after, 1 - before - here - after], 1)
        places = tf.cast(first, tf.int32)[:, None] + tf.range(-1, 3)
        pixels = _weighted(pixels, axis, tf.clip_by_value(places, 0, length - 1), weights)
    return _rounded(pixels)


def _area(pixels: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """OpenCV's INTER_AREA: averages of areas, but where a side grows, its own way to interpolate between two pixels."""
    sides = tf.shape(pixels)[:2]
    scale = sides / size

    def averaged() -> tf.Tensor:
        return tf.einsum("ih,hwc,jw->ijc", _overlaps(sides[0], size[0]), pixels, _overlaps(sides[1], size[1]))

    def interpolated() -> tf.Tensor:
        found = pixels
        for axis in (0, 1):
            grid = tf.cast(tf.range(size[axis]), tf.float64)
            first = tf.floor(grid * scale[axis])
            x = grid + 1 - (first + 1) / scale[axis]
            x = tf.where(x <= 0, tf.zeros_like(x), x - tf.floor(x))
            places = tf.minimum(tf.cast(first, tf.int32)[:, None] + [0, 1], sides[axis] - 1)
            found = _weighted(found, axis, places, tf.stack([1 - x, x], 1))
        return found

    return _rounded(tf.cond(tf.reduce_all(scale >= 1), averaged, interpolated))


def _overlaps(length: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """float32 [size, length]: the share of each pixel in each average."""
    starts = tf.cast(tf.range(size), tf.float64)[:, None] * (length / size)
    pixels = tf.cast(tf.range(length), tf.float64)
    overlap = tf.maximum(tf.minimum(starts + length / size, pixels + 1) - tf.maximum(starts, pixels), 0)
    return tf.cast(overlap / tf.reduce_sum(overlap, 1, keepdims=True), tf.float32)


def _weighted(pixels: tf.Tensor, axis: int, places: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Along one axis of [h, w, 3], sums of pixels at int `places` [out, taps] times `weights` [out, taps]."""
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    taps = zip(tf.unstack(places, axis=1), tf.unstack(tf.cast(weights, tf.float32), axis=1), strict=True)
    return tf.add_n([tf.gather(pixels, place, axis=axis) * tf.reshape(weight, shape) for place, weight in taps])


def _rounded(pixels: tf.Tensor) -> tf.Tensor:
    """To whole levels from 0 to 255, halves up."""
    return tf.clip_by_value(tf.floor(pixels + 0.5), 0, 255)
