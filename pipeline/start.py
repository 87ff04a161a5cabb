"""Where commands begin: from the first import of ours on, Ctrl-C ends one in one line with exit code 130, as later.

An import that is interrupted would else show a traceback, or take the KeyboardInterrupt for its own failure. So the
packages import this module before all else, and it imports what Python has loaded already until it has seen to that.
"""

import _signal  # what `signal` is made of, without its imports
import os
import sys

_module = ""  # of a command that was started by `python -m`
_begun = False  # whether this process is a command


def _is_command() -> bool:
    """Whether this process was started as a script of ours or by `python -m` with a module of ours."""
    global _module
    typed, words = sys.argv[0] if getattr(sys, "argv", None) else "", sys.orig_argv
    if typed == "-m":  # while Python imports the packages of the module
        after = words.index("-m") + 1 if "-m" in words else len(words)
        _module = words[after] if words[after:] and words[after].startswith("shardline.") else ""
        return bool(_module)
    # Processes of multiprocessing have the arguments of their parent.
    return typed in words and os.path.basename(typed).partition("-")[0] == "shardline"


def _begin() -> None:
    global _begun
    _begun = True
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:  # not where it is ignored, as under nohup
        _signal.signal(_signal.SIGINT, _end)


def _end(number: int, frame: object = None) -> None:
    line = f"{_module or os.path.basename(sys.argv[0])}: error: interrupted\n"
    try:
        os.write(2, line.encode())
    finally:
        os._exit(128 + number)


if _is_command():
    _begin()

import importlib  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from functools import partial  # noqa: E402


def hand_over() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt: the command is there, and reports it."""
    if _signal.getsignal(_signal.SIGINT) is _end:
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)


@contextmanager
def last_words() -> Iterator[None]:
    """Of a command: a second Ctrl-C while the first is reported is told like the first, one after the block not."""
    try:
        yield
    except KeyboardInterrupt:
        if not _begun:
            raise
        _end(_signal.SIGINT)
    finally:
        if _begun and _signal.getsignal(_signal.SIGINT) != _signal.SIG_IGN:
            _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # all is said: nothing that Python could add at its own end


def _start(module: str) -> None:
    """Import the module of a command and run its `cli`, which ends the process."""
    _begin()
    importlib.import_module(module).cli()


# One for each of [project.scripts] in pyproject.toml.
shardline = partial(_start, "shardline.tools.shardline")
convert = partial(_start, "shardline.tools.convert")
adopt = partial(_start, "shardline.tools.adopt")
merge = partial(_start, "shardline.tools.merge")
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
