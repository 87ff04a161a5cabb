"""The one place where XLA's flags are set: for training, evaluation, prediction, export, searches and benchmarks alike.

XLA reads its flags once in a process, when it first compiles, and TensorFlow its own when it first lists devices. No
TensorFlow until it is started.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from shardline.pipeline import cli as command_line
from shardline.trainer.nvidia import Card, cards

# Operations whose additions come in no fixed order are refused or replaced. Which of several good kernels is taken is
# then a matter of timing, and decides over bits: what was taken first is kept, and taken again.
REPEATABLE = "--xla_gpu_exclude_nondeterministic_ops=true"
AUTOTUNE_CACHE = "--xla_gpu_per_fusion_autotune_cache_dir="
# The same, and the first kernel instead of the best: needs no memory of earlier runs.
WITHOUT_CHOICE = "--xla_gpu_deterministic_ops=true"
PROGRAM_CACHE = "--tf_xla_persistent_cache_directory="
GPU_PROGRAMS = "--tf_xla_persistent_cache_device_types=GPU"


def set_flags(*, deterministic: bool = True, jit: bool = True) -> None:
    """Set XLA_FLAGS and TF_XLA_FLAGS for a run; what the user has set there stays as it is.

    On a machine with NVIDIA cards, XLA's choices of kernels and its compiled programs are kept in `cache_directory`.
    """
    if not jit:
        return
    found = cards()
    folder = _writable(cache_directory(found, deterministic)) if found else None
    if deterministic and found and not folder:
        _add("XLA_FLAGS", WITHOUT_CHOICE)
    elif deterministic:
        _add("XLA_FLAGS", REPEATABLE)
    if folder:
        _add("XLA_FLAGS", f"{AUTOTUNE_CACHE}{folder / 'autotune'}")
        _add("TF_XLA_FLAGS", f"{PROGRAM_CACHE}{folder / 'programs'}", GPU_PROGRAMS)


def cache_directory(found: Sequence[Card], deterministic: bool) -> Path:
    """Where this user keeps what XLA found out about these cards, under $XDG_CACHE_HOME or ~/.cache.

    A folder of its own for each TensorFlow, kind of card, driver and set of flags: a program compiled for one is none
    for another, and TensorFlow itself tells programs apart by what they compute alone.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    ours = (REPEATABLE, WITHOUT_CHOICE, AUTOTUNE_CACHE)  # there since an earlier call, or from the process before
    users = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(ours)]
    facts = [metadata.version("tensorflow"), str(deterministic), *users]
    key = hashlib.sha256("\n".join([*facts, *sorted(map(str, found))]).encode()).hexdigest()
    return Path(base) / "shardline" / f"xla-{key[:16]}"


def start_tensorflow(*, deterministic: bool = True, jit: bool = True) -> Any:
    """The module `tensorflow`, imported under our flags, without its start-up messages. For command lines."""
    set_flags(deterministic=deterministic, jit=jit)
    return command_line.import_tensorflow()


def _writable(folder: Path) -> Path | None:
    """The folder with its two parts, made if need be; None where it cannot be written."""
    try:
        for name in ("autotune", "programs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def _add(variable: str, *flags: str) -> None:
    """Add flags to an environment variable, but for those whose name it has already."""
    present = os.environ.get(variable, "").split()
    names = {flag.partition("=")[0] for flag in present}
    os.environ[variable] = " ".join([*present, *(flag for flag in flags if flag.partition("=")[0] not in names)])
