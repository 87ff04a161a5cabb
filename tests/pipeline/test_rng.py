"""Draws depend on (seed, purpose, counter) alone, and never change."""

import numpy as np

from shardline.pipeline import rng


def test_draws_never_change():
    # Checkpoints rely on these: other numbers would continue a run with other batches.
    assert rng.key(0, "order", 3) == 10345768136545442123
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # SplitMix64 seeded with 0
    assert rng.bits(0, np.array([1, 2, 3])).tolist() == published


def test_a_draw_does_not_depend_on_its_neighbors():
    key = rng.key(7, "crop")
    together = rng.uniform(key, np.arange(100), 5)
    alone = np.concatenate([rng.uniform(key, np.array([i]), 5) for i in range(100)])
    np.testing.assert_array_equal(together, alone)


def test_draws_are_uniform_and_unrelated():
    numbers = rng.uniform(rng.key(1, "a"), np.arange(50_000), 4)
    others = rng.uniform(rng.key(1, "b"), np.arange(50_000), 4)
    counts = np.array([np.histogram(column, 20, (0, 1))[0] for column in numbers.T])
    assert abs(counts - 2500).max() < 5 * 2500**0.5
    columns = np.column_stack((numbers, others, np.roll(numbers[:, :1], 1)))
    related = np.corrcoef(columns.T) - np.eye(9)
    assert abs(related).max() < 0.025
