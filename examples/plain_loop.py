"""A loop of one's own on NumPy batches, without TensorFlow: a linear classifier that stops and goes on to the bit.

python examples/plain_loop.py data
"""

from __future__ import annotations

import sys

import numpy as np

from shardline import pipeline

CONFIG = pipeline.InputConfig(global_batch_size=16, image_size=32, seed=1)


def features(images: np.ndarray) -> np.ndarray:
    """float64 [b, 193]: means of 8 x 8 fields of the images, and a 1."""
    rows, side = len(images), images.shape[1] // 8
    means = images.reshape(rows, 8, side, 8, side, 3).mean(axis=(2, 4)) / 127.5 - 1
    return np.concatenate([means.reshape(rows, -1), np.ones((rows, 1))], axis=1)


def train(data: pipeline.Dataset, weights: np.ndarray, cursor: int, steps: int) -> tuple[np.ndarray, int]:
    """The weights after some more steps, and the cursor there: together they are all the state there is."""
    batches = data.numpy_batches("train", CONFIG, cursor=cursor)
    for _, batch in zip(range(steps), batches, strict=False):
        inputs = features(batch["image"])
        scores = np.exp(inputs @ weights)
        error = scores / scores.sum(axis=1, keepdims=True) - np.eye(weights.shape[1])[batch["label"]]
        error *= batch["weight"][:, None] / max(batch["weight"].sum(), 1)  # rows that could not be read weigh nothing
        weights = weights - 0.5 * inputs.T @ error
        cursor += CONFIG.global_batch_size
    return weights, cursor


def accuracy(data: pipeline.Dataset, weights: np.ndarray, split: str) -> float:
    """The share of a split's images that are classified right."""
    right = total = 0.0
    for batch in data.numpy_batches(split, CONFIG, evaluation=True):
        found = (features(batch["image"]) @ weights).argmax(axis=1)
        right += float(((found == batch["label"]) * batch["weight"]).sum())
        total += float(batch["weight"].sum())
    return right / total


def main(directory: str) -> None:
    """Train twice: in one go, and stopped half way."""
    data = pipeline.open_dataset(directory)
    start = np.zeros((193, len(data.labels)))
    whole, _ = train(data, start, cursor=0, steps=40)
    half, cursor = train(data, start, cursor=0, steps=20)
    continued, _ = train(data, half, cursor, steps=20)
    print("continued run equals the whole one:", np.array_equal(whole, continued))
    print(f"top-1 on train: {accuracy(data, whole, 'train'):.3f}")


if __name__ == "__main__":
    main(sys.argv[1])
