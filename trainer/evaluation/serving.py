"""The SavedModel that takes JPEG and PNG files: converter, evaluation's preprocessing and model in TensorFlow ops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from shardline.trainer.evaluation.graph_pixels import SERVED, images_from_bytes
from shardline.trainer.evaluation.model_input import converter_options

if TYPE_CHECKING:
    from shardline.trainer.run_dir import Run

Answer = dict[str, tf.Tensor]


def save_serving(run: Run, target: Path) -> None:
    """Write a SavedModel with four signatures; empty batches give empty results.

    serving_default: `bytes` string [n], JPEG or PNG files -> the answer, and `status` string [n]: "ok", or why a file
    is refused; then its label is empty and its probabilities are 0.
    preprocess: `bytes` string [n] -> `images` uint8 [n, s, s, 3], what the model is shown, and `status`.
    serve_images: `images` uint8 [n, s, s, 3] RGB -> the answer.
    labels: nothing -> `labels` string [classes], and `words` to show for them where the classes have some.
    The answer is `label` string [n], `probability` float32 [n], `probabilities` float32 [n, classes].
    """
    size, options, names = run.config.image_size, converter_options(run), list(run.labels)

    def answer(images: tf.Tensor) -> Answer:
        # Not the model on no images: convolutions of the CPU crash on them.
        probabilities = tf.cond(
            tf.shape(images)[0] > 0,
            lambda: run.model(images, training=False),
            lambda: tf.zeros((0, len(names))),
        )
        best = tf.argmax(probabilities, axis=1)
        return {
            "label": tf.gather(tf.constant(names), best),
            "probability": tf.reduce_max(probabilities, axis=1),
            "probabilities": tf.ensure_shape(probabilities, (None, len(names))),
        }

    files = tf.TensorSpec([None], tf.string, "bytes")

    @tf.function(autograph=False, input_signature=[files])  # traced once for both signatures
    def preprocess(encoded: tf.Tensor) -> Answer:
        images, status = images_from_bytes(encoded, options, size, run.preprocessing["crop_fraction"])
        return {"images": images, "status": status}

    def from_bytes(encoded: tf.Tensor) -> Answer:
        found = preprocess(encoded)
        served, answers = found["status"] == SERVED, answer(found["images"])
        sure = tf.cast(served, tf.float32)
        return {
            "label": tf.where(served, answers["label"], ""),
            "probability": answers["probability"] * sure,
            "probabilities": answers["probabilities"] * sure[:, None],
            "status": found["status"],
        }

    def labels() -> Answer:
        words = {"words": tf.constant(list(run.shown_labels))} if run.words else {}
        return {"labels": tf.constant(names), **words}

    def traced(function: Callable[..., Answer], *inputs: tf.TensorSpec) -> tf.types.experimental.ConcreteFunction:
        return tf.function(function, autograph=False).get_concrete_function(*inputs)

    signatures = {
        "serving_default": traced(from_bytes, files),
        "preprocess": preprocess.get_concrete_function(),
        "serve_images": traced(answer, tf.TensorSpec([None, size, size, 3], tf.uint8, "images")),
        "labels": traced(labels),
    }
    tf.saved_model.save(variables_of(run.model), str(target), signatures)


def variables_of(model: keras.Model) -> tf.Module:
    """A module with the variables of a Keras model alone: saving the model itself would trace every layer again."""
    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    return module
