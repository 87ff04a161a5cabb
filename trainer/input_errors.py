"""What TensorFlow raises where input ended with too many bad records, told in their line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

from shardline import pipeline
from shardline.trainer.exchange import let_go


@contextmanager
def bad_records_in_one_line(data: pipeline.TrainingData) -> Iterator[None]:
    """Raise the Failure that ended the input in place of what TensorFlow makes of it."""
    try:
        yield
    except tf.errors.OpError as error:
        failure = data.bad_records.failure if isinstance(data, pipeline.Dataset) else None
        if failure:
            let_go(error)
            raise failure from error
        raise
