"""The programs that are compiled are those that the trainer runs, in the shapes it runs them in."""

import dataclasses

import pytest
import tensorflow as tf

from shardline.benchmarks.gpu import programs


def traced(program, monkeypatch):
    """The program at a size that a test can afford."""
    small = dataclasses.replace(program.config, width=0.03, image_size=32)
    monkeypatch.setattr(programs.Program, "config", small)
    return programs.trace(program)


@pytest.mark.parametrize("kind", ["step", "evaluation", "inference", "features"])
def test_each_kind_has_one_part_that_xla_compiles(kind, monkeypatch):
    graph = traced(programs.Program(kind=kind, batch=4), monkeypatch)
    (module,) = programs.hlo_modules(graph)
    assert b"convolution" in module and b"reduce-window" in module
    assert b"scatter" not in module


def test_an_augmented_step_is_given_what_it_augments_by_at_canvas_size(monkeypatch):
    graph = traced(programs.Program(batch=4, augmented=True), monkeypatch)
    shapes = {tuple(x.shape) for x in graph.inputs if x.dtype in (tf.uint8, tf.float32)}
    crop, flip, randaugment, color, erasing, mixing = 2, 1, 2 * 27, 18, 4, 5
    assert {(4, 40, 40, 3), (4, crop + flip + randaugment + color + erasing + mixing)} <= shapes
