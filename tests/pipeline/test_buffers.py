"""Memory is used again exactly when nobody can see it any more."""

import gc

import numpy as np
import pytest

from shardline.pipeline.buffers import _MOST, BufferPool


def test_memory_that_is_let_go_is_used_again():
    memory = BufferPool()
    first = memory.empty((4, 5, 3))
    place = first.ctypes.data
    assert place % 64 == 0
    del first
    assert memory.empty((4, 5, 3)).ctypes.data == place


@pytest.mark.parametrize("hold", [lambda a: a, lambda a: a[2], lambda a: a[:, ::-1].reshape(-1), memoryview])
def test_memory_that_anything_still_shows_is_left_alone(hold):
    memory = BufferPool()
    array = memory.empty((4, 8))
    array[:] = 7
    held = hold(array)
    del array
    for _ in range(3):
        memory.empty((4, 8))[:] = 1
    assert (np.asarray(held) == 7).all()


def test_a_tensor_holds_its_memory():
    import tensorflow as tf

    memory = BufferPool()
    places = []

    def make():
        array = memory.empty((64,))
        array[:] = len(places)
        places.append(array.ctypes.data)
        return array

    call = tf.function(lambda: tf.numpy_function(make, [], tf.uint8))
    kept = [call() for _ in range(5)]
    assert len(set(places)) == 5
    assert [int(tensor[0]) for tensor in kept] == list(range(5))
    del kept
    gc.collect()
    call()
    call()
    assert len(set(places)) <= 6  # and is let go with it


def test_only_so_much_is_kept():
    memory = BufferPool()
    arrays = [memory.empty((8,)) for _ in range(2 * _MOST)]
    assert len({array.ctypes.data for array in arrays}) == 2 * _MOST
    assert len(memory._kept) == _MOST
