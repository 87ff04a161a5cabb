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
    from shardline.trainer.state import Run

Answer = dict[str, tf.Tensor]


def save_serving(run: Run, target: Path) -> None:
    """Write a SavedModel with three signatures.

    serving_default: `bytes` string [n], JPEG or PNG files -> the answer; serve_images: `images` uint8 [n, s, s, 3]
    RGB -> the answer; labels: nothing -> `labels` string [classes]. The answer is `label` string [n],
    `probability` float32 [n], `probabilities` float32 [n, classes].
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
        "serving_default": traced(from_bytes, tf.TensorSpec([None], tf.string, "bytes")),
        "serve_images": traced(answer, tf.TensorSpec([None, size, size, 3], tf.uint8, "images")),
        "labels": traced(labels),
    }
    tf.saved_model.save(variables_of(run.model), str(target), signatures)


def variables_of(model: keras.Model) -> tf.Module:
    """A module with the variables of a Keras model alone: saving the model itself would trace every layer again."""
    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    return module


# ------------------------------------------------------------------------------------------ pixels


def image_from_bytes(encoded: tf.Tensor, options: ImageOptions, image_size: int, crop_fraction: float) -> tf.Tensor:
    """uint8 [image_size, image_size, 3] of one JPEG or PNG file; `options` are the converter's ImageOptions."""
    jpeg = tf.io.is_jpeg(encoded)
    image = tf.cond(jpeg, lambda: _jpeg(encoded), lambda: _over_white(tf.io.decode_png(encoded, channels=4)))
    image = tf.ensure_shape(image, (None, None, 3))
    return eval_geometry(_as_stored(image, options), image_size, crop_fraction)


def _jpeg(encoded: tf.Tensor) -> tf.Tensor:
    # The fast transforms are what evaluation reads stored records with.
    pixels = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_FAST", fancy_upscaling=False)
    return _orient(pixels, exif_orientation(encoded))


def _over_white(rgba: tf.Tensor) -> tf.Tensor:
    alpha = tf.cast(rgba[..., 3:], tf.int32)
    color = tf.cast(rgba[..., :3], tf.int32)
    return tf.cast((color * alpha + 255 * (255 - alpha) + 127) // 255, tf.uint8)


def _orient(pixels: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Swap rows and columns for 5 to 8, then mirror: see `pipeline.images`."""
    pixels = tf.cond(orientation >= 5, lambda: tf.transpose(pixels, (1, 0, 2)), lambda: pixels)
    mirror_columns = tf.reduce_any(orientation == [2, 3, 6, 7])
    mirror_rows = tf.reduce_any(orientation == [3, 4, 7, 8])
    pixels = tf.cond(mirror_columns, lambda: tf.reverse(pixels, [1]), lambda: pixels)
    return tf.cond(mirror_rows, lambda: tf.reverse(pixels, [0]), lambda: pixels)


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


def exif_orientation(jpeg: tf.Tensor) -> tf.Tensor:
    """int32 1 to 8: the orientation tag of a JPEG file; 1 when it has none or a malformed one."""
    # Tags lie in the first segments; a segment holds at most 64 KiB.
    data = tf.cast(tf.io.decode_raw(tf.strings.substr(jpeg, 0, 1 << 17), tf.uint8), tf.int32)
    data = tf.concat([data, tf.zeros([16], tf.int32)], 0)  # so that every look at a segment's head stays inside
    end = tf.shape(data)[0] - 16

    def more(at: tf.Tensor, found: tf.Tensor) -> tf.Tensor:
        head = data[tf.minimum(at, end) :][:2]
        # 0xFFDA starts the image itself: no tags after it.
        return (found == 0) & (at < end) & (head[0] == 0xFF) & (head[1] != 0xDA)

    def step(at: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        head = data[at : at + 10]
        is_exif = (head[1] == 0xE1) & tf.reduce_all(head[4:] == [69, 120, 105, 102, 0, 0])
        return at + 2 + head[2] * 256 + head[3], tf.where(is_exif, at + 10, 0)

    _, tiff = tf.while_loop(more, step, [tf.constant(2), tf.constant(0)])
    return tf.cond(tiff > 0, lambda: _orientation_tag(data, tiff), lambda: 1)


def _orientation_tag(data: tf.Tensor, tiff: tf.Tensor) -> tf.Tensor:
    """Tag 0x0112 of the first directory of a TIFF header that begins at `tiff`."""
    last = tf.shape(data)[0] - 1
    little = data[tiff] == 0x49  # "II", else "MM"

    def number(at: tf.Tensor, size: int) -> tf.Tensor:
        parts = tf.gather(data, tf.clip_by_value(at + tf.range(size), 0, last))
        parts = tf.cond(little, lambda: parts[::-1], lambda: parts)
        return tf.reduce_sum(parts * tf.constant([1 << 8 * (size - 1 - i) for i in range(size)], tf.int32))

    directory = tiff + tf.clip_by_value(number(tiff + 4, 4), 0, last)
    entries = tf.clip_by_value(number(directory, 2), 0, 512)
    tags = tf.map_fn(lambda i: number(directory + 2 + 12 * i, 2), tf.range(entries))
    values = tf.map_fn(lambda i: number(directory + 2 + 12 * i + 8, 2), tf.range(entries))
    value = tf.reduce_max(tf.concat([tf.where(tags == 0x0112, values, 0), [0]], 0))
    return tf.where((value >= 1) & (value <= 8), value, 1)
