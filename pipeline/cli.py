"""What every command line shares: a config class in, one-line errors and exit codes out. No TensorFlow.

A command is a frozen dataclass of `pipeline.options` and a function of it:

    def cli() -> None:
        command_line.run(main, ConvertConfig, __doc__)

Flags exist only while a command runs, in a register of its own, so any number of commands can be imported, and run,
in one process.

Exit codes: 0 success, 2 usage (a flag, value or input the user can mend), 1 failure while running, 130 Ctrl-C.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from absl import flags, logging

from shardline.pipeline.errors import Failure, UsageError, command_line
from shardline.pipeline.options import Option, options

C = TypeVar("C")

_HELP = {"--help", "-help", "-h", "--helpfull"}
_ABSL_FLAGS = ("verbosity",)  # of absl's own, those that a command offers


def program() -> str:
    """Name of the running command, as the user typed it: `shardline-convert` or `shardline.tools.convert`."""
    main_spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return main_spec.name if main_spec else os.path.basename(sys.argv[0])


def run(main: Callable[[C], None], config: Callable[..., C], doc: str | None) -> NoReturn:
    """Parse the command line into a `config`, call `main` with it, and leave with an exit code and no traceback.

    Exceptions that are neither `UsageError`, `Failure` nor `OSError` are our own bugs: they keep their traceback.
    """
    _quiet_start_up()
    with command_line():
        if _HELP & set(sys.argv[1:]):
            print(help_text(config, doc))
            sys.exit(0)
        try:
            parsed = parse(config, sys.argv)
            main(parsed)
            # Flushed here, so that a closed pipe or a full disk is reported like any other failure.
            sys.stdout.flush()
        except flags.Error as error:
            _leave(2, f"{_one_line(error)} (--help lists the flags)")
        except UsageError as error:
            _leave(2, _one_line(error))
        except (Failure, OSError) as error:
            _leave(1, _one_line(error))
        except KeyboardInterrupt:
            _leave(130, "interrupted")
    sys.exit(0)


def parse(config: Callable[..., C], argv: Sequence[str]) -> C:
    """The config that a command line describes; `argv[0]` is the command's name.

    Raises:
      UsageError, absl.flags.Error: an unknown flag or argument, or a value that cannot work.
    """
    register = _define(config)
    rest = register(list(argv))[1:]
    _set_verbosity(register)
    # Defaults are left to the class: as text they may have lost digits.
    given = [name for name in _flags(config) if not register[name].using_default_value]
    return config(**_with_arguments(config, {name: register[name].value for name in given}, rest))


def _flags(config: Any) -> dict[str, tuple[Option, type, bool, Any]]:
    return {name: facts for name, facts in options(config).items() if facts[0].flag}


def _define(config: Any) -> flags.FlagValues:
    """One absl flag for each field."""
    register = flags.FlagValues()
    for name, (facts, kind, _, default) in _flags(config).items():
        where: Any = {"flag_values": register}
        if facts.parse:
            flags.DEFINE_string(name, _default_text(facts, default), facts.help, **where)
        elif facts.choices:
            flags.DEFINE_enum(name, default or None, list(facts.choices), facts.help, **where)
        elif kind is bool:
            flags.DEFINE_boolean(name, default, facts.help, **where)
        elif kind is int:
            flags.DEFINE_integer(name, default, facts.help, **where)
        elif kind is float:
            flags.DEFINE_float(name, default, facts.help, **where)
        elif kind is tuple:
            flags.DEFINE_multi_string(name, list(default), facts.help, **where)
        else:
            flags.DEFINE_string(name, default, facts.help, **where)
    for name in _ABSL_FLAGS:
        flags.FLAGS[name].unparse()
        register[name] = flags.FLAGS[name]
    flags.FLAGS.mark_as_parsed()  # libraries may ask it
    return register


def _with_arguments(config: Any, values: dict[str, Any], rest: list[str]) -> dict[str, Any]:
    """The values, with the arguments that are no flags where they belong."""
    if not rest:
        return values
    takers = [name for name, (facts, _, _, _) in options(config).items() if facts.positional]
    if not takers:
        raise UsageError(f"unexpected argument {rest[0]!r}; every input is a flag (--help lists them)")
    (taker,) = takers
    if options(config)[taker][1] is tuple:
        return values | {taker: (*values.get(taker, ()), *rest)}
    if len(rest) > 1 or taker in values:
        raise UsageError(f"unexpected argument {rest[-1]!r}; name one, as an argument or as --{taker}")
    return values | {taker: rest[0]}


def _default_text(facts: Option, default: Any) -> str:
    if default is None or isinstance(default, str):
        return default or ""
    if facts.parse:
        return facts.text(default)
    return " ".join(default) if isinstance(default, tuple) else str(default)


def help_text(config: Any, doc: str | None) -> str:
    """What the command does and each flag with its default, grouped, for a terminal of the present width."""
    width = min(shutil.get_terminal_size().columns, 120)
    groups: dict[str, list[str]] = {name: [] for name in getattr(config, "GROUPS", ())}
    for name, (facts, kind, _, default) in _flags(config).items():
        if kind is bool:
            head = f"--[no]{name}  (default: {'on' if default else 'off'})"
        else:
            shown = _default_text(facts, default)
            head = f"--{name}" + (f"={shown}" if shown != "" else "")
        choices = f"; one of {', '.join(filter(None, facts.choices))}" if facts.choices else ""
        bounded = facts.high is not None or facts.below is not None
        text = facts.help + choices + (f"; {facts.range_text(kind is int)}" if bounded else "")
        groups.setdefault(facts.group or "flags", []).append(
            f"  {head}\n" + textwrap.fill(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
        )
    parts = [(doc or "").strip()]
    parts += [f"{group.capitalize()}:\n" + "\n".join(lines) for group, lines in groups.items()]
    return "\n\n".join(parts)


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


def progress(iterable: Any = None, *, total: int | None, desc: str, unit: str, **settings: Any) -> Any:
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


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__


def _leave(code: int, message: str) -> NoReturn:
    print(f"{program()}: error: {message}", file=sys.stderr)
    sys.exit(code)
