"""The SavedModel that takes JPEG and PNG files: the converter's and evaluation's preprocessing in TensorFlow ops alone.

A graph cannot call Python, so this is a second implementation of `model_input.load_image`; the tests hold both equal.
Unlike TensorFlow's decoders, it applies the EXIF orientation and puts transparency over white.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.preprocessing import eval_geometry
from shardline.trainer.evaluation.model_input import converter_options

if TYPE_CHECKING:
    from shardline.trainer.run_dir import Run

Answer = dict[str, tf.Tensor]


def save_serving(run: Run, target: Path) -> None:
    """Write a SavedModel with three signatures.

    serving_default: `bytes` string [n], JPEG or PNG files -> the answer, left out where `unserved` gives a reason;
    serve_images: `images` uint8 [n, s, s, 3] RGB -> the answer; labels: nothing -> `labels` string [classes]. The
    answer is `label` string [n], `probability` float32 [n], `probabilities` float32 [n, classes].
    """
    size, options, names = run.config.image_size, converter_options(run), list(run.labels)

    def answer(images: tf.Tensor) -> Answer:
        probabilities = run.model(images, training=False)
        best = tf.argmax(probabilities, axis=1)
        return {
            "label": tf.gather(tf.constant(names), best),
            "probability": tf.reduce_max(probabilities, axis=1),
            "probabilities": probabilities,
        }

    def from_bytes(encoded: tf.Tensor) -> Answer:
        return answer(
            tf.map_fn(
                lambda one: image_from_bytes(one, options, size, run.preprocessing["crop_fraction"]),
                encoded,
                fn_output_signature=tf.TensorSpec((size, size, 3), tf.uint8),
            )
        )

    def labels() -> Answer:
        return {"labels": tf.constant(names)}

    def traced(function: Callable[..., Answer], *inputs: tf.TensorSpec) -> tf.types.experimental.ConcreteFunction:
        return tf.function(function, autograph=False).get_concrete_function(*inputs)

    signatures = {
        "serve_images": traced(answer, tf.TensorSpec([None, size, size, 3], tf.uint8, "images")),
        "labels": traced(labels),
    }
    if not unserved(run):
        signatures["serving_default"] = traced(from_bytes, tf.TensorSpec([None], tf.string, "bytes"))
    tf.saved_model.save(variables_of(run.model), str(target), signatures)


def unserved(run: Run) -> str:
    """Why files cannot be served as predict reads them; empty where they can."""
    if converter_options(run).trim_borders:
        return "the converter trimmed borders, which a TensorFlow graph cannot; trim first, and call serve_images"
    return ""


def variables_of(model: keras.Model) -> tf.Module:
    """A module with the variables of a Keras model alone: saving the model itself would trace every layer again."""
    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    return module


# ------------------------------------------------------------------------------------------ pixels


def image_from_bytes(encoded: tf.Tensor, options: ImageOptions, image_size: int, crop_fraction: float) -> tf.Tensor:
    """uint8 [image_size, image_size, 3] of one JPEG or PNG file; `options` are the converter's."""
    image = tf.cond(tf.io.is_jpeg(encoded), lambda: _jpeg(encoded), lambda: _png(encoded))
    image = _orient(tf.ensure_shape(image, (None, None, 3)), exif_orientation(encoded))
    return eval_geometry(_as_stored(image, options), image_size, crop_fraction)


def _jpeg(encoded: tf.Tensor) -> tf.Tensor:
    # The fast transforms are what evaluation reads stored records with.
    return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_FAST", fancy_upscaling=False)


def _png(encoded: tf.Tensor) -> tf.Tensor:
    """Color over white."""
    rgba = tf.cast(tf.io.decode_png(encoded, channels=4), tf.int32)
    # TensorFlow gives images of 1, 2 and 4 bits without transparency an alpha of 1, 3 and 15 instead of 255.
    depth = tf.io.decode_raw(tf.strings.substr(encoded, 24, 1), tf.uint8)[0]
    alpha = tf.cond((depth < 8) & ~_has_chunk(encoded, "tRNS"), lambda: 255, lambda: rgba[..., 3:])
    return tf.cast((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255, tf.uint8)


def _orient(pixels: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Swap rows and columns for 5 to 8, then flip: see `pipeline.images`."""
    pixels = tf.cond(orientation >= 5, lambda: tf.transpose(pixels, (1, 0, 2)), lambda: pixels)
    flip_columns = tf.reduce_any(orientation == [2, 3, 6, 7])
    flip_rows = tf.reduce_any(orientation == [3, 4, 7, 8])
    pixels = tf.cond(flip_columns, lambda: tf.reverse(pixels, [1]), lambda: pixels)
    return tf.cond(flip_rows, lambda: tf.reverse(pixels, [0]), lambda: pixels)


def _as_stored(image: tf.Tensor, options: ImageOptions) -> tf.Tensor:
    """The converter's resize, approximately: TensorFlow has no op with its kernel, and averages areas instead."""
    if options.resize == "none":
        return image
    size = tf.shape(image)[:2]
    if options.resize == "squash":
        target = tf.fill([2], options.size) if options.upscale else tf.minimum(size, options.size)
    else:
        side = tf.reduce_max(size) if options.resize == "long" else tf.reduce_min(size)
        scaled = tf.cast(tf.round(size * options.size / side), tf.int32)
        target = tf.maximum(scaled, 1)
        if not options.upscale:
            target = tf.where(side < options.size, size, target)
    grows = tf.reduce_any(target > size)
    resized = tf.cond(
        grows,
        lambda: tf.image.resize(image, target, "bicubic"),
        lambda: tf.image.resize(image, target, "area"),
    )
    image = tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
    if options.resize == "center_crop":
        offset = tf.maximum(target - options.size, 0) // 2
        image = image[offset[0] : offset[0] + options.size, offset[1] : offset[1] + options.size]
    return image


# -------------------------------------------------------------------------------------------- EXIF

_TYPE_BYTES = (0, 1, 1, 2, 4, 0, 1, 1, 2, 4, 0, 0, 0, 4)  # of TIFF's integer types, by their number; 0 for others
_ORIENTATION = 0x0112


def exif_orientation(encoded: tf.Tensor) -> tf.Tensor:
    """int64 1 to 8: the EXIF orientation of a JPEG or PNG file, 1 when it has none or a malformed one.

    `pipeline.image_headers` is where this is defined: the tests hold both equal. It alone reads XMP packets, too.
    """
    found = tf.cond(tf.io.is_jpeg(encoded), lambda: _jpeg_orientation(encoded), lambda: _png_orientation(encoded))
    return tf.maximum(found, 1)


def _jpeg_orientation(encoded: tf.Tensor) -> tf.Tensor:
    """Of the first segment that has one; 0 for none."""

    def more(at: tf.Tensor, found: tf.Tensor) -> tf.Tensor:
        head = _bytes(encoded, at, 2)
        return (
            (found == 0) & (at + 4 <= _length(encoded)) & (head[0] == 0xFF) & (head[1] != 0xDA)
        )  # 0xFFDA: the image itself

    def step(at: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        head = _bytes(encoded, at, 10)
        size = head[2] * 256 + head[3]
        is_exif = (head[1] == 0xE1) & tf.reduce_all(head[4:] == [69, 120, 105, 102, 0, 0])
        found = tf.cond(
            is_exif,
            lambda: _tiff_orientation(tf.strings.substr(encoded, at + 10, tf.maximum(size - 8, 0))),
            lambda: found,
        )
        is_fill, is_bare = head[1] == 0xFF, (head[1] == 1) | ((head[1] >= 0xD0) & (head[1] <= 0xD8))
        return at + tf.where(is_fill, _int64(1), tf.where(is_bare, _int64(2), 2 + size)), found

    return tf.while_loop(more, step, (_int64(2), _int64(0)))[1]


def _png_orientation(encoded: tf.Tensor) -> tf.Tensor:
    """Of the chunk eXIf; 0 for none."""
    at, size = _find_chunk(encoded, "eXIf")
    return tf.cond(size > 0, lambda: _tiff_orientation(tf.strings.substr(encoded, at + 8, size)), lambda: _int64(0))


def _has_chunk(encoded: tf.Tensor, kind: str) -> tf.Tensor:
    return _find_chunk(encoded, kind)[1] > 0


def _find_chunk(encoded: tf.Tensor, kind: str) -> tuple[tf.Tensor, tf.Tensor]:
    """Where the first chunk of this kind begins in a PNG file, and how many bytes are in it; 0 when there is none."""

    def size(at: tf.Tensor) -> tf.Tensor:
        return _number(_bytes(encoded, at, 4), False)

    def inside(at: tf.Tensor) -> tf.Tensor:
        return at + 12 <= _length(encoded)

    def wanted(at: tf.Tensor) -> tf.Tensor:
        return tf.reduce_all(_bytes(encoded, at + 4, 4) == list(kind.encode()))

    (at,) = tf.while_loop(lambda at: inside(at) & ~wanted(at), lambda at: (at + 12 + size(at),), (_int64(8),))
    return at, tf.where(inside(at), size(at), 0)


def _tiff_orientation(block: tf.Tensor) -> tf.Tensor:
    """Tag 0x0112 of the first directory of a TIFF block: 1 to 8, 1 for another value, 0 for none."""
    data = tf.cast(tf.io.decode_raw(block, tf.uint8), tf.int64)
    size = tf.size(data, tf.int64)
    little = tf.strings.substr(block, 0, 2) == "II"
    known = (little | (tf.strings.substr(block, 0, 2) == "MM")) & (size >= 8)
    start = tf.cond(known, lambda: _number(data[4:8], little) + 2, lambda: size)  # of the directory's first entry
    count = tf.cond(start <= size, lambda: _number(data[start - 2 : start], little), lambda: _int64(0))
    count = tf.maximum(tf.minimum(count, (size - start) // 12), 0)
    entries = tf.reshape(data[start : start + 12 * count], (count, 12))
    tag, kind, values = (_number(entries[:, a:b], little) for a, b in ((0, 2), (2, 4), (4, 8)))
    width = tf.gather(tf.constant(_TYPE_BYTES, tf.int64), tf.where(kind < len(_TYPE_BYTES), kind, 0))
    # Values of up to 4 bytes lie in the entry itself, others elsewhere in the block.
    inside = start + 12 * tf.range(count) + 8
    where = tf.where(width * values <= 4, inside, _number(entries[:, 8:], little))
    readable = (tag == _ORIENTATION) & (width > 0) & (values > 0) & (where + width <= size)
    spot = tf.boolean_mask(tf.stack([where, width], 1), readable)
    found = tf.map_fn(lambda one: _number(data[one[0] : one[0] + one[1]], little), spot)
    valid = tf.boolean_mask(found, (found >= 1) & (found <= 8))
    none = tf.cond(tf.reduce_any(tag == _ORIENTATION), lambda: _int64([1]), lambda: _int64([0]))
    return tf.concat([none, valid], 0)[-1]


def _length(encoded: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.strings.length(encoded), tf.int64)


def _bytes(encoded: tf.Tensor, at: tf.Tensor, count: int) -> tf.Tensor:
    """int64 [count]: bytes from a place on; zeros after the end."""
    part = tf.strings.substr(encoded, tf.minimum(at, _length(encoded)), count)
    return tf.cast(tf.io.decode_raw(part, tf.uint8, fixed_length=count), tf.int64)


def _int64(value: int | list[int]) -> tf.Tensor:
    return tf.constant(value, tf.int64)


def _number(digits: tf.Tensor, little: tf.Tensor | bool) -> tf.Tensor:
    """int64 [...]: unsigned numbers of bytes [..., n]."""
    places = tf.range(tf.shape(digits, tf.int64)[-1])
    places = tf.where(little, places, tf.reverse(places, [0]))
    return tf.reduce_sum(digits * tf.bitwise.left_shift(tf.ones_like(places), 8 * places), -1)
