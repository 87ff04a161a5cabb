"""What all tests share: order, Ctrl-C, and a cache folder of their own, where this machine's arithmetic is known."""

import os
import signal

import pytest

from shardline.trainer import arithmetic


def pytest_collection_modifyitems(items):
    """The trainer's files first: they take longest, and whoever gets one last works alone."""
    items.sort(key=lambda item: item.path.parent.name != "trainer")


def pytest_configure():
    """Let programs that tests start hear Ctrl-C, also where a script put the tests into the background with `&`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory):
    """Also for the commands that tests start. bfloat16 with XLA is made out to be the fastest."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    arithmetic.keep(arithmetic.Rates(arithmetic._machine(), (1.0, 1.0, 2.0, 2.0)))
    yield
    del os.environ["XDG_CACHE_HOME"]
    if before is not None:
        os.environ["XDG_CACHE_HOME"] = before
