"""The training step outside XLA: a GPU kernel for all of it, and where its kernels would wait for the host."""

import dataclasses

import pytest
import tensorflow as tf

from shardline.benchmarks.gpu import kernels, programs
from shardline.trainer.cluster import create_cluster
from shardline.trainer.setup import create_setup
from tests.trainer.networks import make_shallow


def step_graph(precision, jit):
    config = programs.Program(precision=precision, batch=4, augmented=True).config
    config = dataclasses.replace(config, width=0.03, image_size=32, jit=jit)
    return programs.trace_step(create_setup(config, create_cluster("one_device", 0)))


@pytest.mark.parametrize(
    ("precision", "jit"),
    [
        ("mixed_bfloat16", False),
        ("mixed_float16", True),
        pytest.param("mixed_bfloat16", True, marks=pytest.mark.slow),
        pytest.param("mixed_float16", False, marks=pytest.mark.slow),
    ],
)
def test_the_step_runs_on_a_gpu_and_waits_for_the_host_in_float16_only(precision, jit, monkeypatch):
    """There the host decides whether the gradients are applied."""
    make_shallow(monkeypatch.setattr)
    graph = step_graph(precision, jit)
    assert kernels.operations_without_kernel(graph) == set()
    assert kernels.host_arguments(graph) == ({"If": {"cond"}} if precision == "mixed_float16" else {})


def traced(function):
    return tf.function(function, autograph=False).get_concrete_function(tf.TensorSpec([4], tf.float32))


def test_operations_without_a_gpu_kernel_are_named_wherever_they_are():
    inner = tf.function(lambda x: tf.numpy_function(lambda y: y, [x], tf.float32), autograph=False)
    assert kernels.operations_without_kernel(traced(lambda x: inner(x) + 1)) == {"PyFunc"}
    assert kernels.operations_without_kernel(traced(lambda x: tf.strings.as_string(x[0] + 1))) == {"AsString"}
    assert kernels.operations_without_kernel(traced(lambda x: tf.cast(x, tf.bfloat16) + 1)) == set()


def test_arguments_that_wait_for_the_device_are_named():
    def fills(x):
        return tf.fill([tf.cast(tf.reduce_max(x), tf.int32)], 1.0)  # the host must know the shape

    def reshapes(x):
        return tf.reshape(x, [2, tf.size(x) // 2])  # known to the host already

    assert kernels.host_arguments(traced(fills)) == {"Pack": {"values"}}
    assert kernels.host_arguments(traced(reshapes)) == {}
