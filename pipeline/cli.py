"""What every command line shares: flags in, one-line errors and exit codes out. No TensorFlow.

Exit codes: 0 success, 2 usage (a flag, value or input the user can mend), 1 failure while running, 130 Ctrl-C.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NoReturn

from absl import flags, logging


class UsageError(ValueError):
    """A flag, value or input is wrong; the message is one line: flag, value, remedy. Exit code 2."""


class Failure(RuntimeError):
    """The run failed for a reason a person can act on; the message is one line. Exit code 1."""


def program() -> str:
    """Name of the running command, as a user would type it: `tools.convert` or `shardline-convert`."""
    main_spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return main_spec.name if main_spec else os.path.basename(sys.argv[0])


def run(main: Callable[..., None]) -> NoReturn:
    """Parse the flags, call `main`, and leave with a line and an exit code instead of a traceback.

    A `main` with a parameter is given the list of arguments that are no flags; any other refuses them.
    Exceptions that are neither `UsageError`, `Failure` nor `OSError` are our own bugs: they keep their traceback.
    """
    _quiet_start_up()
    if {"--help", "-help", "-h"} & set(sys.argv[1:]):
        _print_help()
    try:
        rest = flags.FLAGS(sys.argv)[1:]
    except flags.Error as error:
        _leave(2, f"{_one_line(error)} (--help lists the flags)")
    takes_arguments = bool(inspect.signature(main).parameters)
    if rest and not takes_arguments:
        _leave(2, f"unexpected argument {rest[0]!r}; every input is a flag (--help lists them)")
    _set_verbosity()
    try:
        main(rest) if takes_arguments else main()
        # Flushed here, so that a closed pipe or a full disk is reported like any other failure.
        sys.stdout.flush()
    except UsageError as error:
        _leave(2, _one_line(error))
    except (Failure, OSError) as error:
        _leave(1, _one_line(error))
    except KeyboardInterrupt:
        _leave(130, "interrupted")
    sys.exit(0)


def import_tensorflow() -> Any:
    """The module `tensorflow`, imported without the start-up talk that no setting of its own can silence.

    Lines other than that talk are passed on. For command lines; a library module imports TensorFlow as usual.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)  # the file descriptor, because the talk comes from C++
        try:
            import tensorflow as tf

            tf.config.list_physical_devices()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            lines = held.read().decode(errors="replace").splitlines(keepends=True)
            sys.stderr.writelines(line for line in lines if not re.match(_START_UP_TALK, line))
    return tf


_START_UP_TALK = r"WARNING: All log messages before absl::InitializeLog|[IW]\d{4} |E\d{4} .*cuInit"


def progress(iterable: Any = None, *, total: int | None, desc: str, unit: str, **options: Any) -> Any:
    """A tqdm bar with rate and time left, on stderr; silent when stderr is not a terminal."""
    from tqdm import tqdm

    options.setdefault("dynamic_ncols", True)
    return tqdm(
        iterable, total=total, desc=desc, unit=unit, disable=not sys.stderr.isatty(), file=sys.stderr, **options
    )


def _quiet_start_up() -> None:
    """Silence TensorFlow's start-up talk, which it prints before anybody can ask it not to."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")


def _set_verbosity() -> None:
    logging.use_absl_handler()
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.WARNING)
        logging.set_stderrthreshold("warning")


def _print_help() -> NoReturn:
    module = sys.modules["__main__"]
    print((module.__doc__ or program()).strip(), end="\n\n")
    print(flags.FLAGS.main_module_help())  # absl's own --help would leave with exit code 1
    sys.exit(0)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__


def _leave(code: int, message: str) -> NoReturn:
    print(f"{program()}: error: {message}", file=sys.stderr)
    sys.exit(code)
