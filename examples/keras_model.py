"""A Keras model of one's own on our shards, stopped after an epoch and continued at the next sample.

python examples/keras_model.py data
"""

from __future__ import annotations

import sys

import keras
import tensorflow as tf

from shardline import pipeline

CONFIG = pipeline.InputConfig(global_batch_size=16, image_size=32, seed=1)


def model(classes: int) -> keras.Model:
    """uint8 [b, 32, 32, 3] -> probabilities [b, classes]."""
    return keras.Sequential(
        [
            keras.Input((32, 32, 3), dtype="uint8"),
            keras.layers.Rescaling(1 / 127.5, -1),
            keras.layers.Conv2D(16, 3, strides=2, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(classes, activation="softmax"),
        ]
    )


def batches(data: pipeline.Dataset, epochs_done: int, steps: int) -> tf.data.Dataset:
    """(image, label, weight) from the first sample after some epochs on."""
    found = data.train_batches("train", CONFIG, cursor=epochs_done * steps * CONFIG.global_batch_size)
    return found.map(lambda batch: (batch["image"], batch["label"], batch["weight"]))


def main(directory: str) -> None:
    """Two epochs, with a stop between them."""
    data = pipeline.open_dataset(directory)
    network = model(len(data.labels))
    network.compile("adam", "sparse_categorical_crossentropy", weighted_metrics=["accuracy"])
    steps = -(-data.num_records("train") // CONFIG.global_batch_size)
    for epoch in range(2):
        network.fit(
            batches(data, epoch, steps), steps_per_epoch=steps, epochs=epoch + 1, initial_epoch=epoch, verbose=2
        )


if __name__ == "__main__":
    main(sys.argv[1])
