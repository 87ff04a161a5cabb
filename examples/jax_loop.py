"""JAX on our shards: the same order, cursor and pixels as every other reader.

    python examples/jax_loop.py data

On several hosts, pass host=jax.process_index() and hosts=jax.process_count().
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp

from shardline import pipeline

CONFIG = pipeline.InputConfig(global_batch_size=16, image_size=32, seed=1)


def loss(weights: jax.Array, images: jax.Array, labels: jax.Array, weight: jax.Array) -> jax.Array:
    """Mean cross-entropy of a linear classifier on the images' mean colors in 4 x 4 fields."""
    fields = images.reshape(len(images), 4, 8, 4, 8, 3).mean((2, 4)).reshape(len(images), -1) / 127.5 - 1
    losses = -jax.nn.log_softmax(fields @ weights)[jnp.arange(len(labels)), labels]
    return (losses * weight).sum() / weight.sum()


def train(directory: str, steps: int, weights: jax.Array | None = None, cursor: int = 0) -> tuple[jax.Array, int]:
    """The weights after some more steps, and the cursor there."""
    data = pipeline.open_dataset(directory)
    if weights is None:
        weights = jnp.zeros((48, len(data.labels)))
    gradient = jax.jit(jax.grad(loss))
    batches = data.numpy_batches("train", CONFIG, cursor=cursor)
    for _, batch in zip(range(steps), batches, strict=False):
        # A copy: JAX would take over the array's memory, which is used again.
        images = jnp.array(batch["image"], jnp.float32)
        weights -= 0.5 * gradient(weights, images, jnp.array(batch["label"]), jnp.array(batch["weight"]))
        cursor += CONFIG.global_batch_size
    return weights, cursor


if __name__ == "__main__":
    whole, _ = train(sys.argv[1], 20)
    continued, _ = train(sys.argv[1], 10, *train(sys.argv[1], 10))
    print("continued run equals the whole one:", bool((whole == continued).all()))
