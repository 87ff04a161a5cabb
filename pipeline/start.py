"""Where the installed scripts begin: while a command is being imported, Ctrl-C ends it in one line with exit code 130.

An import that is interrupted would else show a traceback, or take the KeyboardInterrupt for its own failure. Imports
nothing that takes time.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from functools import partial
from types import FrameType


def _start(module: str) -> None:
    """Import the module of a command and run its `cli`, which ends the process."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where Ctrl-C is ignored, as under nohup
        signal.signal(signal.SIGINT, _end)
    try:
        importlib.import_module(module).cli()
    except KeyboardInterrupt:  # a second Ctrl-C, while the first one was reported
        _end(signal.SIGINT)
    finally:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # all is said: nothing that Python could add at its own end


def hand_over() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt: the command is there, and reports it."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None = None) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{os.path.basename(sys.argv[0])}: error: interrupted\n".encode())
    os._exit(128 + number)


# One for each of [project.scripts] in pyproject.toml.
shardline = partial(_start, "shardline.tools.shardline")
convert = partial(_start, "shardline.tools.convert")
adopt = partial(_start, "shardline.tools.adopt")
verify = partial(_start, "shardline.tools.verify")
inspect = partial(_start, "shardline.tools.inspect")
browse = partial(_start, "shardline.tools.browse")
doctor = partial(_start, "shardline.tools.doctor")
sample_data = partial(_start, "shardline.tools.sample_data")
train = partial(_start, "shardline.trainer.train")
evaluate = partial(_start, "shardline.trainer.evaluate")
predict = partial(_start, "shardline.trainer.predict")
export = partial(_start, "shardline.trainer.export")
compare = partial(_start, "shardline.trainer.compare")
benchmark = partial(_start, "shardline.benchmarks.run")
