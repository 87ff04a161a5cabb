"""The one place where XLA's flags are set: for training, evaluation, prediction, export, searches and benchmarks alike.

XLA reads its flags once in a process, when it first compiles. No TensorFlow until it is started.
"""

from __future__ import annotations

import os
from typing import Any

from shardline.pipeline import cli as command_line
from shardline.pipeline import nvidia
from shardline.trainer import xla_cache

# The same bits each time: no additions in no fixed order, and the first good kernel instead of the one that a timing
# prefers. On an H200 with TensorFlow 2.21 this costs nothing measurable (4,347 images/s against 4,332 without), while
# `--xla_gpu_exclude_nondeterministic_ops`, which goes on timing kernels, had not finished a step after 90 seconds.
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def set_flags(*, deterministic: bool = True, jit: bool = True) -> None:
    """Set XLA_FLAGS for a run, and on CPUs keep what it compiles; what the user has set there stays as it is."""
    present = os.environ.get("XLA_FLAGS", "").split()
    if deterministic and jit and not any(flag.startswith(DETERMINISTIC.partition("=")[0]) for flag in present):
        os.environ["XLA_FLAGS"] = " ".join([*present, DETERMINISTIC])
    if jit and (nvidia.hidden() or not nvidia.cards()):
        xla_cache.use()


def start_tensorflow(*, deterministic: bool = True, jit: bool = True) -> Any:
    """The module `tensorflow`, imported under our flags, without its start-up messages. For command lines."""
    set_flags(deterministic=deterministic, jit=jit)
    return command_line.import_tensorflow()
