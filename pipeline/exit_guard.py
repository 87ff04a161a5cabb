"""Python called by tf.data's threads: known while it runs, and over before the interpreter is. No TensorFlow.

A thread that comes for the interpreter while that is shutting down is ended by it, which C++ answers by aborting the
whole process. A finished program must not end like that only because batches were still being made ahead.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_QUIET_SECONDS = 0.1  # without a call: the buffers are full and nobody is coming any more
_PATIENCE_SECONDS = 10.0

_lock = threading.Lock()
_running = 0
_last_end = 0.0
_exiting = False


def run_unless_exiting(fn: Callable[[], T], fallback: Callable[[], T]) -> T:
    """What `fn` returns; once the program is ending, what `fallback`, which must be quick, returns."""
    global _running, _last_end
    with _lock:
        _running += 1
    try:
        return fallback() if _exiting else fn()
    finally:
        with _lock:
            _running -= 1
            _last_end = time.monotonic()


@atexit.register
def _wait_for_calls() -> None:
    """Hurry the calls that are still to come (as many as the buffers hold) and wait for the last one."""
    global _exiting
    _exiting = True
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline and (_running or time.monotonic() - _last_end < _QUIET_SECONDS):
        time.sleep(0.005)
