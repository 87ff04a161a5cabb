"""What is left of a host that was lost."""

import weakref
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import pytest
import tensorflow as tf

from shardline.pipeline.errors import Failure
from shardline.trainer.exchange import lost_hosts
from shardline.trainer.run import errors_in_one_line

SETUP = SimpleNamespace(data=None, cluster=SimpleNamespace(hosts=2))


@pytest.mark.parametrize("in_one_line", [lost_hosts, lambda: errors_in_one_line(SETUP, SimpleNamespace(step=5))])
def test_the_last_line_of_a_lost_host_is_the_last(in_one_line):
    """TensorFlow's collectives leave a running pool in the frame that the error came through: it would complain."""
    pools = []

    def collective():
        pool = ThreadPool(1)
        pools.append(weakref.ref(pool))
        raise tf.errors.UnavailableError(None, None, "gone")

    with pytest.raises(Failure) as caught, in_one_line():
        collective()
    assert caught.value.__cause__.__traceback__ and pools[0]() is None
