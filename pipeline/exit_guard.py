"""Lets Python functions that tf.data's threads call return before the interpreter shuts down. No TensorFlow.

Python terminates a thread that asks for the interpreter during shutdown, and C++ turns that into an abort of the whole
process. A finished program must not end like that only because batches were still being prefetched.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_QUIET_SECONDS = 0.1  # without a call: tf.data's buffers are full
_TIMEOUT_SECONDS = 10.0

_lock = threading.Lock()
_running = 0
_last_end = 0.0
_exiting = False
_ends: list[Callable[[], None]] = []


def at_exit(end: Callable[[], None]) -> None:
    """Have `end` called when the program ends, after the last call of those below."""
    _ends.append(end)


def run_unless_exiting(fn: Callable[[], T], fallback: Callable[[], T]) -> T:
    """What `fn` returns; once the program is ending, what `fallback`, which must be quick, returns."""
    global _running, _last_end
    with _lock:
        _running += 1
    try:
        return fallback() if _exiting else fn()
    except Exception:
        if _exiting:  # what it needed has ended
            return fallback()
        raise
    finally:
        with _lock:
            _running -= 1
            _last_end = time.monotonic()


@atexit.register
def _wait_for_calls() -> None:
    """Make the remaining calls quick, as many as tf.data's buffers hold, and wait for the last one."""
    global _exiting
    _exiting = True
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while time.monotonic() < deadline and (_running or time.monotonic() - _last_end < _QUIET_SECONDS):
        time.sleep(0.005)
    for end in _ends:
        end()
