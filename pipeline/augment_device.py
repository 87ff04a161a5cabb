"""The device half of augmentation: applies `pipeline.augment_params` to batches, in TensorFlow, safe under XLA.

Nothing random happens here: the parameters come with the batch, as `augment_params`.
"""

from __future__ import annotations

import tensorflow as tf

from shardline.pipeline.augment_params import (
    AUTOCONTRAST,
    COLOR,
    EQUALIZE,
    FILL,
    POSTERIZE,
    SHARPNESS,
    SOLARIZE,
    TABLE,
    WARP,
    columns,
)
from shardline.pipeline.config import InputConfig


def augment_on_device(batch: dict[str, tf.Tensor], config: InputConfig) -> dict[str, tf.Tensor]:
    """Finish a training batch: float32 images [b, image_size, image_size, 3] with values from 0 to 255.

    A batch that was augmented on the host, or made for evaluation, only changes its type. When pairs are mixed, the
    batch has `other_label` and `label_share` as well; see `soft_labels`.
    """
    batch = dict(batch)
    image = tf.cast(batch["image"], tf.float32)
    if "augment_params" in batch:
        params = batch.pop("augment_params")
        numbers = {name: params[:, part] for name, part in columns(config).items()}
        image = _crop(image, numbers["crop_size"], numbers["flip"], config.image_size)
        for layer in tf.split(numbers["randaugment"], config.randaugment_layers, 1) if "randaugment" in numbers else ():
            image = _layer(image, layer)
        if "color_jitter" in numbers:
            image = _color(image, numbers["color_jitter"])
        if "random_erasing" in numbers:
            image = tf.where(
                _inside(numbers["random_erasing"], config.image_size), tf.constant(FILL, tf.float32), image
            )
        if "mix" in numbers:
            image, batch["label_share"] = _mix(image, batch["weight"], numbers["mix"])
            batch["other_label"] = _partner(batch["label"])
    return batch | {"image": image}


def soft_labels(batch: dict[str, tf.Tensor], num_classes: int) -> tf.Tensor:
    """float32 [b, num_classes]: the labels as probabilities, mixed where the images were."""
    own = tf.one_hot(batch["label"], num_classes)
    if "label_share" not in batch:
        return own
    share = batch["label_share"][:, None]
    return share * own + (1 - share) * tf.one_hot(batch["other_label"], num_classes)


def _crop(canvas: tf.Tensor, window: tf.Tensor, mirror: tf.Tensor, image_size: int) -> tf.Tensor:
    """Resize each canvas's window and mirror it, as two matrix products: bilinear, as on the host."""
    side = canvas.shape[1]
    rows = _resize_matrix(window[:, 0], side, image_size)
    columns = _resize_matrix(window[:, 1], side, image_size)
    columns = tf.where(mirror[:, :, None] > 0, tf.reverse(columns, [1]), columns)
    image = tf.einsum("bsy,byxc->bsxc", rows, canvas)
    return tf.einsum("btx,bsxc->bstc", columns, image)


def _resize_matrix(length: tf.Tensor, side: int, image_size: int) -> tf.Tensor:
    """float32 [b, image_size, side]: weights that resample the first `length` of `side` pixels."""
    scale = tf.maximum(length, 1.0)[:, None, None] / image_size
    center = (tf.range(image_size, dtype=tf.float32)[None, :, None] + 0.5) * scale - 0.5
    pixel = tf.range(side, dtype=tf.float32)[None, None, :]
    last = tf.maximum(length, 1.0)[:, None, None] - 1.0
    return tf.nn.relu(1.0 - tf.abs(pixel - tf.clip_by_value(center, 0.0, last)))


def _layer(image: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
    """One layer of RandAugment: every step on every image, most of them without effect."""
    image = _warp(image, tf.reshape(numbers[:, WARP], (-1, 2, 3)))
    image = tf.round(_color(image, numbers[:, COLOR]))
    image = _look_up(image, numbers[:, TABLE])
    padded = tf.pad(image, [(0, 0), (1, 1), (1, 1), (0, 0)], "SYMMETRIC")
    height, width = image.shape[1:3]
    around = tf.add_n([padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)])
    sharpness = numbers[:, SHARPNESS, None, None, None]
    return tf.clip_by_value(sharpness * image + (1 - sharpness) * (around + 4 * image) / 13, 0, 255)


def _warp(image: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """Bilinear look-up at matrix (output point), in sides from the center; outside is the fill color."""
    size = image.shape[1]
    center = (size - 1) / 2
    y, x = tf.meshgrid(*2 * [tf.range(size, dtype=tf.float32) - center], indexing="ij")
    points = tf.stack((tf.reshape(x, [-1]), tf.reshape(y, [-1])))
    source = matrix[:, :, :2] @ points + matrix[:, :, 2:] * size + center  # [b, 2, points]: x, y
    low = tf.floor(source)
    part = source - low
    low = tf.cast(low, tf.int32)
    flat = tf.reshape(image, (-1, size * size, 3))
    total = tf.zeros_like(flat)
    for dy in (0, 1):
        for dx in (0, 1):
            at_x, at_y = low[:, 0] + dx, low[:, 1] + dy
            weight = tf.abs(1 - dx - part[:, 0]) * tf.abs(1 - dy - part[:, 1])
            inside = (at_x >= 0) & (at_x < size) & (at_y >= 0) & (at_y < size)
            index = tf.clip_by_value(at_y, 0, size - 1) * size + tf.clip_by_value(at_x, 0, size - 1)
            values = tf.gather(flat, index, batch_dims=1)
            values = tf.where(inside[..., None], values, tf.constant(FILL, tf.float32))
            total += weight[..., None] * values
    return tf.reshape(total, tf.shape(image))


def _color(image: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
    own, mean = tf.split(tf.reshape(numbers, (-1, 3, 6)), 2, 2)
    offset = tf.einsum("bij,bj->bi", mean, tf.reduce_mean(image, (1, 2)))
    return tf.clip_by_value(tf.einsum("bij,byxj->byxi", own, image) + offset[:, None, None], 0, 255)


def _look_up(image: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
    """Replace each value by its entry in the image's table for the channel."""
    kind, value = numbers[:, 0, None, None], numbers[:, 1, None, None]
    values = tf.cast(tf.transpose(image, (0, 3, 1, 2)), tf.int32)
    values = tf.reshape(values, (-1, 3, image.shape[1] * image.shape[2]))
    every = tf.range(256, dtype=tf.float32)
    counts = _counts(values)
    table = tf.broadcast_to(every, tf.shape(counts))
    for code, entries in (
        (AUTOCONTRAST, _autocontrast(counts)),
        (EQUALIZE, _equalize(counts)),
        (SOLARIZE, tf.where(every < value, every, 255 - every)),
        (POSTERIZE, tf.floor(every / tf.maximum(value, 1)) * tf.maximum(value, 1)),
    ):
        table = tf.where(kind == code, entries, table)
    result = tf.gather(table, values, batch_dims=2)
    result = tf.reshape(result, (-1, 3, image.shape[1], image.shape[2]))
    return tf.transpose(result, (0, 2, 3, 1))


def _counts(values: tf.Tensor) -> tf.Tensor:
    """float32 [b, 3, 256]: how often each value occurs in int32 [b, 3, pixels]; exact below 2**24 pixels."""
    channels = tf.shape(values)[0] * 3
    bins = tf.reshape(values, (channels, -1)) + 256 * tf.range(channels)[:, None]
    # Integers: GPUs add them with atomics in any order, and floats, when results must be deterministic, by sorting.
    ones = tf.ones_like(bins)
    counts = tf.math.unsorted_segment_sum(tf.reshape(ones, [-1]), tf.reshape(bins, [-1]), channels * 256)
    return tf.cast(tf.reshape(counts, (-1, 3, 256)), tf.float32)


def _autocontrast(counts: tf.Tensor) -> tf.Tensor:
    every = tf.range(256, dtype=tf.float32)
    low = tf.reduce_min(tf.where(counts > 0, every, 255.0), 2, keepdims=True)
    high = tf.reduce_max(tf.where(counts > 0, every, 0.0), 2, keepdims=True)
    stretched = tf.clip_by_value(tf.round((every - low) * (255 / tf.maximum(high - low, 1))), 0, 255)
    return tf.where(high > low, stretched, every)


def _equalize(counts: tf.Tensor) -> tf.Tensor:
    every = tf.range(256, dtype=tf.float32)
    total = tf.reduce_sum(counts, 2, keepdims=True)
    brightest = tf.reduce_max(tf.where(counts > 0, every, 0.0), 2, keepdims=True)
    last = tf.reduce_sum(tf.where(every == brightest, counts, 0.0), 2, keepdims=True)
    step = tf.floor((total - last) / 255)
    before = tf.cumsum(counts, 2, exclusive=True)
    spread = tf.floor((before + tf.floor(step / 2)) / tf.maximum(step, 1))
    return tf.where(step > 0, tf.clip_by_value(spread, 0, 255), every)


def _inside(box: tf.Tensor, image_size: int) -> tf.Tensor:
    """bool [b, size, size, 1]: which pixels lie in a box (top, left, bottom, right)."""
    along = tf.range(image_size, dtype=tf.float32)
    rows = (along >= box[:, 0:1]) & (along < box[:, 2:3])
    columns = (along >= box[:, 1:2]) & (along < box[:, 3:4])
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def _mix(image: tf.Tensor, weight: tf.Tensor, numbers: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mixed images, and each row's own share; pairs with a bad record stay as they are."""
    usable = (weight > 0) & (_partner(weight) > 0)
    share = tf.where(usable, numbers[:, 0], 1.0)
    box = tf.where(usable[:, None], numbers[:, 1:], 0.0)
    other = _partner(image)
    share_ = share[:, None, None, None]
    mixed = tf.where(_inside(box, image.shape[1]), other, share_ * image + (1 - share_) * other)
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) / float(image.shape[1] * image.shape[2])
    return mixed, share * (1 - area)


def _partner(values: tf.Tensor) -> tf.Tensor:
    """Swap the two rows of every pair."""
    pairs = tf.reshape(values, (-1, 2, *values.shape[1:]))
    return tf.reshape(tf.reverse(pairs, [1]), tf.shape(values))
