"""XLA's flags: the same for every command."""

import os

import pytest

from shardline.trainer import xla


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    return monkeypatch


def flags():
    return os.environ["XLA_FLAGS"].split()


def test_a_run_gives_the_same_bits_each_time():
    xla.set_flags()
    xla.set_flags()  # again, as by a search's trial in a process of its own
    assert flags() == [xla.DETERMINISTIC]


def test_what_the_user_has_set_stays(environment):
    environment.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=false --xla_dump_to=/tmp/x")
    xla.set_flags()
    assert flags() == ["--xla_gpu_deterministic_ops=false", "--xla_dump_to=/tmp/x"]


def test_without_xla_or_determinism_no_order_is_asked_for():
    xla.set_flags(jit=False)
    xla.set_flags(deterministic=False)
    assert flags() == []
