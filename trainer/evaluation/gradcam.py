"""Grad-CAM: maps of where the evidence for a class lies in an image, and overlays that show them."""

from __future__ import annotations

import cv2
import keras
import numpy as np
import tensorflow as tf

from shardline.pipeline.image_bytes import encode_rgb


def clone_functional(model: keras.Model) -> keras.Model:
    """The same model in layers of its own. The trainer's layers belong to several models, so that the `output` of one
    may be another model's tensor; and what stands between layers (the flip to BGR) is not in `layers`."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


class GradCam:
    """Grad-CAM (Selvaraju et al. 2017) on the convolutions that the head sees: the last one, or one of each block."""

    def __init__(self, model: keras.Model, jit: bool = False) -> None:
        """`jit` compiles with XLA: without it, a CPU takes ten times as long in bfloat16."""
        model = clone_functional(model)
        convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
        pooled = [layer.input for layer in model.layers if isinstance(layer, keras.layers.GlobalAveragePooling2D)]
        seen = [layer for layer in convolutions if any(layer.output is one for one in pooled)]
        dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)][-1]
        outputs = [layer.output for layer in seen or convolutions[-1:]]
        self._run = keras.Model(model.input, [*outputs, dense.output])  # logits: a softmax near 1 has no slope left
        self._maps = tf.function(self._weighted, jit_compile=jit, autograph=False)

    def __call__(self, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """float32 [n, h, w] from 0 to 1 for uint8 images [n, s, s, 3]; all 0 where nothing speaks for the class."""
        *finer, last = (maps.numpy() for maps in self._maps(tf.constant(images), tf.constant(classes)))
        size = last.shape[:0:-1]
        for maps in finer:
            last = last + np.stack([cv2.resize(one, size, interpolation=cv2.INTER_AREA) for one in maps])
        maps = np.maximum(last, 0)
        peak = maps.max((1, 2), keepdims=True)
        scaled: np.ndarray = np.divide(maps, peak, out=np.zeros_like(maps), where=peak > 0)
        return scaled

    def _weighted(self, images: tf.Tensor, classes: tf.Tensor) -> list[tf.Tensor]:
        """For each convolution its channels, added by how much each speaks for the class, per share of the image."""
        with tf.GradientTape() as tape:
            *activations, logits = self._run(images, training=False)
            own = tf.gather(logits, classes, axis=1, batch_dims=1)
        gradients = tape.gradient(own, activations)
        return [
            _spoken(tf.cast(a, tf.float32), tf.cast(g, tf.float32)) for a, g in zip(activations, gradients, strict=True)
        ]


def _spoken(activations: tf.Tensor, gradients: tf.Tensor) -> tf.Tensor:
    """[n, h, w] of both [n, h, w, c]."""
    return tf.reduce_sum(tf.reduce_sum(gradients, (1, 2), keepdims=True) * activations, -1)


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The image, tinted where `heat` (any size, 0 to 1) is high."""
    size = image.shape[1::-1]
    strength = np.clip(cv2.resize(heat, size, interpolation=cv2.INTER_CUBIC), 0, 1)
    colors = cv2.cvtColor(cv2.applyColorMap((strength * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return (0.5 * gray + 0.5 * colors).astype(np.uint8)


def side_by_side(*images: np.ndarray, height: int = 192) -> bytes:
    """Images scaled to one height, next to each other, as JPEG bytes."""
    scaled = [
        cv2.resize(p, (max(1, round(p.shape[1] * height / p.shape[0])), height), interpolation=cv2.INTER_CUBIC)
        for p in images
    ]
    gap = np.full((height, 4, 3), 255, np.uint8)
    row = np.hstack([part for p in scaled for part in (p, gap)][:-1])
    return encode_rgb(row, "jpg", 88)
