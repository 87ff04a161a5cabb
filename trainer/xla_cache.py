"""What XLA has compiled for this CPU, kept for later runs: a minute of compiling becomes seconds, and the bits stay.

TensorFlow can keep compiled programs in a folder, but finds them there by the program alone, and one that is damaged
ends the run. So each machine, TensorFlow and set of flags has a folder of its own, in which a program's name ends with
its SHA-256; and each process lets TensorFlow work in a folder of links to those that are whole. No TensorFlow.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import platform
import shutil
import stat
from importlib import metadata
from pathlib import Path

from shardline.pipeline.files import file_sha256, user_cache
from shardline.pipeline.machine import processor_lines

MOST_PROGRAMS = 64  # that are kept; the oldest go
_PROGRAMS = "xla_compile_cache__*.pb"  # as TensorFlow names them
_OWN = "process-"  # name of a process's folder, before its number
_FLAGS = "--tf_xla_persistent_cache_directory={} --tf_xla_persistent_cache_device_types=CPU"


def use() -> None:
    """Have TensorFlow, which has not compiled yet, use what is kept, and keep at its end what is new.

    To be called when XLA_FLAGS are settled. Where a user has set a cache of TensorFlow's, that stays.
    """
    present = os.environ.get("TF_XLA_FLAGS", "")
    if "tf_xla_persistent_cache" in present:
        return
    with contextlib.suppress(OSError):  # no home, a full disk: compiled each time
        kept = _kept_at()
        own = kept / f"{_OWN}{os.getpid()}"
        lay_out(kept, own)
        atexit.register(keep, kept, own)
        os.environ["TF_XLA_FLAGS"] = f"{present} {_FLAGS.format(own)}".strip()
        if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "2":  # as our commands have it: TensorFlow calls each program that
            os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # it finds an error of parsing, and tuning hints missing features


def _kept_at() -> Path:
    """The folder of this machine, TensorFlow and XLA_FLAGS. Raises OSError where others may write to it."""
    processor = "\n".join(sorted(processor_lines("model name", "flags", "Features"))) or platform.processor()
    facts = (platform.node(), processor, metadata.version("tensorflow"), os.environ.get("XLA_FLAGS", ""))
    folder = user_cache() / "xla" / hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder}: others may write there, and what lies there is run")
    return folder


def lay_out(kept: Path, own: Path) -> None:
    """Make a process's folder of links to the newest programs that are whole; remove all else, and dead processes'."""
    for folder in kept.glob(f"{_OWN}*"):
        if not Path("/proc", folder.name.removeprefix(_OWN)).exists() or folder == own:
            shutil.rmtree(folder, ignore_errors=True)
    own.mkdir()
    programs = sorted(kept.glob(f"{_PROGRAMS}.*"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for number, path in enumerate(programs):
        name, _, sha256 = path.name.rpartition(".")
        if number < MOST_PROGRAMS and file_sha256(path) == sha256 and not (own / name).exists():
            (own / name).hardlink_to(path)
        else:
            path.unlink(missing_ok=True)


def keep(kept: Path, own: Path) -> None:
    """Give what was compiled in a process's folder its name among those that are kept; remove the folder."""
    with contextlib.suppress(OSError):
        for path in own.glob(_PROGRAMS):
            os.replace(path, kept / f"{path.name}.{file_sha256(path)}")
    shutil.rmtree(own, ignore_errors=True)
