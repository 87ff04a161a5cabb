"""A buffer is used again exactly when nothing can see it any more."""

import gc

import numpy as np
import pytest

from shardline.pipeline.buffers import _MAX_BUFFERS, BufferPool


def test_a_buffer_that_is_let_go_is_used_again():
    pool = BufferPool()
    first = pool.empty((4, 5, 3))
    address = first.ctypes.data
    assert address % 64 == 0
    del first
    assert pool.empty((4, 5, 3)).ctypes.data == address


@pytest.mark.parametrize("hold", [lambda a: a, lambda a: a[2], lambda a: a[:, ::-1].reshape(-1), memoryview])
def test_a_buffer_that_anything_still_shows_is_left_alone(hold):
    pool = BufferPool()
    array = pool.empty((4, 8))
    array[:] = 7
    held = hold(array)
    del array
    for _ in range(3):
        pool.empty((4, 8))[:] = 1
    assert (np.asarray(held) == 7).all()


def test_a_tensor_holds_its_buffer():
    import tensorflow as tf

    pool = BufferPool()
    addresses = []

    def make():
        array = pool.empty((64,))
        array[:] = len(addresses)
        addresses.append(array.ctypes.data)
        return array

    call = tf.function(lambda: tf.numpy_function(make, [], tf.uint8))
    kept = [call() for _ in range(5)]
    assert len(set(addresses)) == 5
    assert [int(tensor[0]) for tensor in kept] == list(range(5))
    del kept
    gc.collect()
    call()
    call()
    assert len(set(addresses)) <= 6  # and is let go with it


def test_only_so_much_is_kept():
    pool = BufferPool()
    arrays = [pool.empty((8,)) for _ in range(2 * _MAX_BUFFERS)]
    assert len({array.ctypes.data for array in arrays}) == 2 * _MAX_BUFFERS
    assert len(pool._kept) == _MAX_BUFFERS
