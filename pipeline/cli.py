"""What every command line shares: a config class in, one-line errors and exit codes out. No TensorFlow.

A command is a frozen dataclass of `pipeline.options` and a function of it:

    def cli() -> None:
        command_line.run(main, ConvertConfig, __doc__)

Flags exist only while a command runs, in a register of its own, so any number of commands can be imported, and run,
in one process.

Exit codes: 0 success, 2 usage (a flag, value or input the user can mend), 1 failure while running, 130 Ctrl-C, 141 who
read the output has gone (`| head`), 143 a training run that SIGTERM stopped before its end.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from absl import flags, logging

from shardline.pipeline.errors import Failure, Interrupted, UsageError, command_line, explain
from shardline.pipeline.options import Field, options
from shardline.pipeline.text import display

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from tqdm import tqdm

C = TypeVar("C", bound="DataclassInstance")
T = TypeVar("T")

_HELP = {"--help", "-help", "-h", "--helpfull"}


def program() -> str:
    """Name of the running command, as the user typed it: `shardline-convert` or `shardline.tools.convert`."""
    main_spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return main_spec.name if main_spec else os.path.basename(sys.argv[0])


def run(main: Callable[[C], None], config: type[C], doc: str | None) -> NoReturn:
    """Parse the command line into a `config`, call `main` with it, and leave with an exit code and no traceback.

    Exceptions that are neither `UsageError` nor `Failure`, nor the machine's (`OSError`, `MemoryError`), are our own
    bugs: they keep their traceback.
    """
    _quiet_start_up()
    with command_line():
        try:
            if _HELP & set(sys.argv[1:]):
                print(help_text(config, doc))
            else:
                main(parse(config, sys.argv))
            # Flushed here, so that a closed pipe or a full disk is reported like any other failure.
            sys.stdout.flush()
        except UsageError as error:
            _leave(2, error)
        except Interrupted as error:
            _leave(128 + error.number, error)
        except Failure as error:
            _leave(1, error)
        except KeyboardInterrupt:
            _leave(130, "interrupted")
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _nobody_reads():
                _leave(128 + signal.SIGPIPE)
            if not (reason := explain(error)):
                raise
            _leave(1, reason)
    sys.exit(0)


def parse(config: type[C], argv: Sequence[str]) -> C:
    """The config that a command line describes; `argv[0]` is the command's name.

    Raises:
      UsageError: an unknown flag or argument, or a value that cannot work.
    """
    register = _define(config)
    try:
        arguments = register(list(argv))[1:]
    except (flags.Error, ValueError) as error:  # ValueError: --noflag=value
        raise UsageError(f"{error} (--help lists the flags)") from None
    _set_verbosity(register)
    # Flags that are not given are left to the class: as text, a default may have lost digits.
    given = [field for field in _flags(config) if not register[field.name].using_default_value]
    values = {field.name: _value(field, register[field.name].value) for field in given}
    return config(**_with_arguments(config, values, arguments))


def _flags(config: type[DataclassInstance]) -> list[Field]:
    return [field for field in options(config).values() if field.option.flag]


def _define(config: type[DataclassInstance]) -> flags.FlagValues:
    """One absl flag for each field; absl only takes the command line apart, the config checks the values."""
    register = flags.FlagValues()
    for field in _flags(config):
        define: Callable[..., object] = flags.DEFINE_string
        if field.kind in (bool, tuple):
            define = flags.DEFINE_boolean if field.kind is bool else flags.DEFINE_multi_string
        define(field.name, None, field.option.help, flag_values=register)
    flags.FLAGS["verbosity"].unparse()
    register["verbosity"] = flags.FLAGS["verbosity"]  # absl's own
    flags.FLAGS.mark_as_parsed()  # libraries may ask it
    return register


def _value(field: Field, given: str | bool | list[str] | None) -> object:
    """What the config's class takes for the text of a flag."""
    if field.kind not in (int, float) or not isinstance(given, str):
        return given
    try:
        return int(given) if field.kind is int else float(given)
    except ValueError:
        raise UsageError(f"--{field.name}={given}: use {field.wanted}") from None


def _with_arguments(config: type[DataclassInstance], values: dict[str, Any], arguments: list[str]) -> dict[str, Any]:
    """The values, with the arguments that are no flags where they belong."""
    if not arguments:
        return values
    takers = [field for field in options(config).values() if field.option.positional]
    if not takers:
        raise UsageError(f"unexpected argument {arguments[0]!r}; every input is a flag (--help lists them)")
    (taker,) = takers
    if taker.kind is tuple:
        return values | {taker.name: (*values.get(taker.name, ()), *arguments)}
    if len(arguments) > 1 or taker.name in values:
        raise UsageError(f"unexpected argument {arguments[-1]!r}; name one, as an argument or as --{taker.name}")
    return values | {taker.name: arguments[0]}


def help_text(config: type[DataclassInstance], doc: str | None) -> str:
    """What the command does and each flag with its default, grouped, for a terminal of the present width."""
    width = min(shutil.get_terminal_size().columns, 120)
    groups: dict[str, list[str]] = {name: [] for name in getattr(config, "GROUPS", ())}
    for field in _flags(config):
        groups.setdefault(field.option.group or "flags", []).append(_flag_help(field, width))
    paragraphs = [_fill(paragraph, width) for paragraph in (doc or "").strip().split("\n\n")]
    listed = [f"{group.capitalize()}:\n" + "\n".join(lines) for group, lines in groups.items() if lines]
    return "\n\n".join([*paragraphs, *listed])


def _flag_help(field: Field, width: int) -> str:
    option = field.option
    if field.kind is bool:
        head = f"--[no]{field.name}  (default: {'on' if field.default else 'off'})"
    else:
        head = f"--{field.name}" + (f"={field.default_text}" if field.default_text else "")
    text = option.help
    if option.choices:
        text += f"; one of {', '.join(filter(None, option.choices))}"
    if option.high is not None or option.below is not None:
        text += f"; {field.wanted}"
    return f"  {head}\n" + textwrap.fill(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _fill(paragraph: str, width: int) -> str:
    """A paragraph of a docstring in lines of a width; lists and examples, which are indented, as they are."""
    return paragraph if "\n " in f"\n{paragraph}" else textwrap.fill(paragraph, width, break_on_hyphens=False)


def import_tensorflow() -> Any:
    """The module `tensorflow`, imported without the start-up messages that no setting of its own can silence.

    Other lines are passed on. For command lines; a library module imports TensorFlow as usual.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)  # the file descriptor, because the messages come from C++
        try:
            import tensorflow as tf

            tf.config.list_physical_devices()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            lines = held.read().decode(errors="replace").splitlines(keepends=True)
            sys.stderr.writelines(line for line in lines if not re.match(_START_UP_MESSAGES, line))
    return tf


_START_UP_MESSAGES = r"WARNING: All log messages before absl::InitializeLog|[IW]\d{4} |E\d{4} .*cuInit"


def show(text: str) -> None:
    """Results on stdout, a line or several, with the control characters of names in them escaped."""
    print("\n".join(map(display, text.split("\n"))))


def log(text: str) -> None:
    """A line on stderr, above the progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write("\n".join(map(display, text.split("\n"))), file=sys.stderr)


def progress(
    iterable: Iterable[T] | None = None, *, total: int | None, desc: str, unit: str, **settings: Any
) -> tqdm[T]:
    """A tqdm bar with rate and time left, on stderr; silent when stderr is not a terminal."""
    from tqdm import tqdm

    settings.setdefault("dynamic_ncols", True)
    return tqdm(
        iterable, total=total, desc=desc, unit=unit, disable=not sys.stderr.isatty(), file=sys.stderr, **settings
    )


def _quiet_start_up() -> None:
    """Silence TensorFlow's start-up messages, which it prints before anybody can ask it not to."""
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
