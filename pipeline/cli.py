"""What every command line shares: a config class in, one-line errors and exit codes out. No TensorFlow.

A command is a frozen dataclass of `pipeline.options` and a function of it:

    def cli() -> None:
        command_line.run(main, ConvertConfig, __doc__)

Flags exist only while a command runs, in a register of its own, so any number of commands can be imported, and run,
in one process.

Exit codes: 0 success, 2 usage (a flag, value or input the user can mend), 1 failure while running, 130 Ctrl-C, 141 who
read the output has gone (`| head`), 143 SIGTERM.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import select
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from absl import flags, logging

from shardline.pipeline import start
from shardline.pipeline.command_help import FLAGS_OF_EVERY_COMMAND, help_text, version_text
from shardline.pipeline.config_file import read_config_file, write_config_text
from shardline.pipeline.errors import Failure, Interrupted, UsageError, command_line, explain
from shardline.pipeline.habits import OTHER_VALUES, meant, unknown
from shardline.pipeline.options import Field, from_text, options, value_of
from shardline.pipeline.progress import log, progress, saying
from shardline.pipeline.text import display
from shardline.pipeline.wording import shorten_list

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "help_text",
    "import_tensorflow",
    "log",
    "parse",
    "program",
    "progress",
    "run",
    "show",
    "stop_on_sigterm",
    "without_lines",
]

C = TypeVar("C", bound="DataclassInstance")

_HELP, _FULL_HELP, _VERSION = {"--help", "-help", "-h"}, {"--helpfull", "-helpfull"}, {"--version", "-version"}
MACHINE = {"--machine", "-machine"}  # with the version or without


def program() -> str:
    """Name of the running command, as the user typed it: `shardline-convert` or `shardline.tools.convert`."""
    main_spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return main_spec.name if main_spec else os.path.basename(sys.argv[0])


def run(main: Callable[[C], None], config: type[C], doc: str | None) -> NoReturn:
    """Parse the command line into a `config`, call `main` with it, and leave with an exit code and no traceback.

    Exceptions that are neither `UsageError` nor `Failure`, nor the machine's (`OSError`, `MemoryError`), are our own
    bugs: they keep their traceback.
    """
    words = set(sys.argv[1:])
    if words & (_HELP | _FULL_HELP):
        exit_code_of(lambda: print(help_text(config, doc, full=bool(words & _FULL_HELP))))
    if words & (_VERSION | MACHINE):
        exit_code_of(lambda: print(version_text(machine=bool(words & MACHINE))))
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if config.__module__ == "__main__" and spec:  # python -m: worker processes know what it defines by its own name
        importlib.import_module(spec.name).cli()
    exit_code_of(lambda: _run(main, config))


def exit_code_of(work: Callable[[], None]) -> NoReturn:
    """Do a command's work, and leave with an exit code and at most one line on stderr."""
    _quiet_start_up()
    with start.last_words(), command_line():
        try:
            start.hand_over()
            work()
            # Flushed here, so that a closed pipe or a full disk is reported like any other failure.
            sys.stdout.flush()
        except UsageError as error:
            _leave(2, error)
        except Interrupted as error:
            _leave(128 + error.number, error)
        except Failure as error:
            _leave(1, error)
        except KeyboardInterrupt:
            _leave(128 + (_stopped_by or signal.SIGINT), "interrupted")
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _nobody_reads():
                _leave(128 + signal.SIGPIPE)
            if not (reason := explain(error)):
                raise
            _leave(1, reason)
    sys.exit(0)


_stopped_by = 0  # number of the signal that `stop_on_sigterm` heard


def stop_on_sigterm() -> None:
    """From here on SIGTERM ends this command as Ctrl-C does: children stopped, what was for the time being removed."""

    def stop(number: int, frame: object) -> NoReturn:
        global _stopped_by
        _stopped_by = number
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def _run(main: Callable[[C], None], config: type[C]) -> None:
    register, values = _read(config, sys.argv)
    if register["print_config"].value:
        show(write_config_text(config, values))
    else:
        main(config(**values))


def parse(config: type[C], argv: Sequence[str]) -> C:
    """The config that a command line describes; `argv[0]` is the command's name.

    Raises:
      UsageError: an unknown flag or argument, or a value that cannot work.
    """
    return config(**_read(config, argv)[1])


def _read(config: type[DataclassInstance], argv: Sequence[str]) -> tuple[flags.FlagValues, dict[str, Any]]:
    """The flags, and the fields of the config that they, the arguments and the file of `--config` give."""
    register = _define(config)
    try:
        arguments = register(list(argv))[1:]
    except flags.UnrecognizedFlagError as error:
        raise UsageError(f"{_unknown_flag(config, argv[1:], error.flagname)} {_see_help()}") from None
    except (flags.Error, ValueError) as error:  # ValueError: --noflag=value
        raise UsageError(f"{error} {_see_help()}") from None
    _set_verbosity(register)
    # Flags that are not given are left to the class: as text, a default may have lost digits.
    given = [field for field in _flags(config) if not register[field.name].using_default_value]
    values = {field.name: from_text(field, register[field.name].value) for field in given}
    values = _with_arguments(config, values, arguments)
    file = register["config"].value
    if file is not None:
        values = read_config_file(file, config) | values
    # A class may have settings that decide what others are where they are not given.
    completed: Callable[[dict[str, Any]], dict[str, Any]] = getattr(config, "completed", dict)
    return register, completed(values)


def _unknown_flag(config: type[DataclassInstance], words: Sequence[str], name: str) -> str:
    """What is said of a flag that the command has not, as it was typed, its value where that is right for ours, too."""
    known = [*(field.name for field in _flags(config)), *FLAGS_OF_EVERY_COMMAND]
    said, ours = unknown(name, known), options(config).get(meant(name, known).removeprefix("--"))
    place = next((i for i, word in enumerate(words) if word.lstrip("-").partition("=")[0] == name), len(words))
    typed, attached, value = [*words, f"--{name}"][place].partition("=")
    value = value if attached else "".join(words[place + 1 : place + 2])
    if ours and ours.kind is not bool and value[:1] not in ("", "-") and name not in OTHER_VALUES:
        with contextlib.suppress(UsageError):
            value_of(ours, from_text(ours, value))
            return f"{typed}{attached or ' '}{value}: {said}={value}"
    return f"{typed}{attached}{value if attached else ''}: {said}"


def _see_help() -> str:
    main_spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return f"({'python -m ' if main_spec else ''}{program()} --help lists the flags)"


def _flags(config: type[DataclassInstance]) -> list[Field]:
    return [field for field in options(config).values() if field.option.flag]


def _define(config: type[DataclassInstance]) -> flags.FlagValues:
    """One absl flag for each field; absl only takes the command line apart, the config checks the values."""
    register = flags.FlagValues()
    for field in _flags(config):
        if field.is_switch:
            flags.DEFINE_flag(_Switch(field.name, None, field.option.help), register)
            continue
        define: Callable[..., object] = flags.DEFINE_string
        if field.kind in (bool, tuple):
            define = flags.DEFINE_boolean if field.kind is bool else flags.DEFINE_multi_string
        define(field.name, None, field.option.help, flag_values=register)
    flags.DEFINE_string("config", None, "file of settings", flag_values=register)
    flags.DEFINE_boolean("print_config", False, "print the settings", flag_values=register)
    flags.FLAGS["verbosity"].unparse()
    register["verbosity"] = flags.FLAGS["verbosity"]  # absl's own
    flags.FLAGS.mark_as_parsed()  # libraries may ask it
    return register


class _Switch(flags.BooleanFlag):
    """`--name`, `--noname` or `--name=auto`."""

    def _parse(self, argument: str | bool) -> bool | None:
        return None if argument == "auto" else super()._parse(argument)


def _with_arguments(config: type[DataclassInstance], values: dict[str, Any], arguments: list[str]) -> dict[str, Any]:
    """The values, with the arguments that are no flags where they belong."""
    if not arguments:
        return values
    takers = [field for field in options(config).values() if field.option.positional]
    if not takers:
        named = shorten_list((f"--{field.name}" for field in _flags(config) if field.option.path), 2)
        use = f"name it with a flag: {named}" if named else "this command takes none"
        raise UsageError(f"unexpected argument {arguments[0]!r}; {use} {_see_help()}")
    (taker,) = takers
    if taker.kind is tuple:
        return values | {taker.name: (*values.get(taker.name, ()), *arguments)}
    if len(arguments) > 1 or taker.name in values:
        raise UsageError(f"unexpected argument {arguments[-1]!r}; name one, as an argument or as --{taker.name}")
    return values | {taker.name: arguments[0]}


def import_tensorflow() -> Any:
    """The module `tensorflow`, imported without the start-up messages that no setting of its own can silence.

    Other lines are passed on. For command lines; a library module imports TensorFlow as usual.
    """
    loading = "loading TensorFlow …"
    if "tensorflow" not in sys.modules:
        log(loading)
    with (
        without_lines(_START_UP_MESSAGES) as stderr,
        saying(loading, lambda line: os.write(stderr, f"{line}\n".encode())),
    ):
        import tensorflow as tf

        tf.config.list_physical_devices()
    return tf


@contextlib.contextmanager
def without_lines(silenced: str) -> Iterator[int]:
    """Hold what is written to stderr, also by C++, until the end, and then leave out lines that begin like a pattern.

    Yields:
      The file descriptor of stderr itself.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield stderr
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            lines = held.read().decode(errors="replace").splitlines(keepends=True)
            sys.stderr.writelines(line for line in lines if not re.match(silenced, line))


_START_UP_MESSAGES = r"WARNING: All log messages before absl::InitializeLog|[IW]\d{4} |E\d{4} .*cuInit"


def show(text: str) -> None:
    """Results on stdout, a line or several, with the control characters of names in them escaped."""
    print("\n".join(map(display, text.split("\n"))))


def _quiet_start_up() -> None:
    """Silence TensorFlow's start-up messages, which it prints before it can be asked not to."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")


def _set_verbosity(register: flags.FlagValues) -> None:
    logging.use_absl_handler()
    if register["verbosity"].using_default_value:
        logging.set_verbosity(logging.WARNING)
        logging.set_stderrthreshold("warning")


def _nobody_reads() -> bool:
    """Whether what stdout or stderr is piped to has ended."""
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _leave(code: int, error: BaseException | str = "") -> NoReturn:
    """End the process with one line on stderr, harmless on a terminal; with none for no error."""
    message = " ".join(str(error).split()) or type(error).__name__
    try:
        if error:
            print(display(f"{program()}: error: {message}"), file=sys.stderr, flush=True)
        sys.stdout.flush()
    except OSError:  # a full disk, or nobody reads: what is left would be tried again at exit, with a traceback
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
    sys.exit(code)
