"""Every command ends in an exit code and at most a line on stderr; none shows a traceback for a user's mistake."""

import os
import re
import subprocess
import sys
from importlib import metadata

import pytest

from shardline.pipeline import cli as command_line
from shardline.pipeline.config import InputConfig
from shardline.pipeline.errors import UsageError
from shardline.pipeline.options import options
from tests.pipeline.command import BaseConfig, CommandConfig, cli
from tests.tools.folders import ROOT


@pytest.fixture
def run(monkeypatch, capsys):
    """The command with arguments, in this process: exit code, stdout and stderr."""

    def run(*args, command=cli):
        monkeypatch.setattr(sys, "argv", ["demo", *args])
        monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)  # pytest's own, under `python -m pytest`
        with pytest.raises(SystemExit) as stop:
            command()
        return stop.value.code, *capsys.readouterr()

    return run


def run_alone(*args):
    return subprocess.run(
        [sys.executable, "-m", "tests.pipeline.command", *args], capture_output=True, text=True, cwd=ROOT
    )


@pytest.mark.parametrize(
    ("args", "code", "line"),
    [
        (["--fail=usage"], 2, "--fail=usage: wrong; use another \\x1b[31m"),
        (["--fail=failure"], 1, "it broke; try --fail=usage"),
        (["--fail=os"], 1, "/nonexistent/file: No such file or directory; check the path"),
        (
            ["--fail=memory"],
            1,
            "out of memory; end other programs, or ask for less at once: fewer workers, smaller batches",
        ),
        (["--fail=no-space"], 1, "/a/file: No space left on device; make room there, or name another place"),
        (["--fail=read-only"], 1, "/a/file: Read-only file system; it cannot be written; name another place"),
        (["--fail=permission"], 1, "/a/\\x1b[31m: Permission denied; get the permission, or name another place"),
        (
            ["--fail=stale"],
            1,
            "/a/file: Stale file handle; the disk or its mount does not answer: look at it (dmesg, df), "
            "then run the same command again",
        ),
        (["--fail=device"], 1, "the memory of the device does not suffice; use smaller batches"),
        (["--fail=threads"], 1, "can't start new thread; end other programs, or use fewer workers"),
        (["--fail=odd"], 1, "words of a library in two lines"),
        (["--fail=full"], 1, f"/dev/shm/{300 * 'x'}: File name too long; use shorter names"),
        (["--fail=pipe"], 1, "Broken pipe"),
        (["--fail=stop"], 130, "interrupted"),
        (["--size=x"], 2, "--size=x: use a whole number from 1 to 1000"),
        (["--size="], 2, "--size=: use a whole number from 1 to 1000"),
        (["--size=1.5"], 2, "--size=1.5: use a whole number from 1 to 1000"),
        (["--size=0"], 2, "--size=0: use a whole number from 1 to 1000"),
        (["--size=13"], 2, "--size=13: brings bad luck; use --size=14, or --mode=slow"),
        (["--rate=x"], 2, "--rate=x: use a number above 0, below 1"),
        (["--rate=nan"], 2, "--rate=nan: use a number above 0, below 1"),
        (["--mode=medium"], 2, "--mode=medium: use one of slow, fast"),
        (["--ratio=1"], 2, "--ratio=1: needs two numbers, e.g. 0.35,1"),
        (["--noquiet=3"], 2, "--noquiet=3 does not take an argument HELP"),
        (["--size"], 2, "Missing value for flag --size HELP"),
        (["--seeds=1"], 2, "--seeds=1: no such flag; use --seed=1 HELP"),
        (["--hidden=1"], 2, "--hidden=1: no such flag HELP"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(run, args, code, line):
    line = line.replace("HELP", "(demo --help lists the flags)")
    assert run(*args) == (code, "", f"{command_line.program()}: error: {line}\n")


def test_a_program_of_its_own_ends_in_the_same_way():
    for args, code, line in ((["--size=0"], 2, "--size=0: use"), (["--fail=stop"], 130, "interrupted")):
        result = run_alone(*args)
        assert (result.returncode, result.stdout) == (code, "")
        assert result.stderr.startswith(f"tests.pipeline.command: error: {line}") and result.stderr.count("\n") == 1


def test_a_bug_keeps_its_traceback():
    result = run_alone("--fail=bug")
    assert result.returncode == 1 and "ZeroDivisionError" in result.stderr and "Traceback" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "end", "code"),
    [
        ("--fail=talk", "| head -2", 141),
        ("--fail=talk", "2>&1 | head -2", 141),
        ("--fail=talk", "| true", 141),
        ("--fail=usage", "2>&1 | sleep 0", 2),
        ("--fail=failure", "2>&1 >&- | true", 1),
    ],
)
def test_who_stops_reading_gets_no_traceback(arguments, end, code):
    command = f"{sys.executable} -m tests.pipeline.command {arguments} {end}; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, result.stderr) == (code, "")
    assert result.stdout in ("", "0\n1\n")


def test_a_full_disk_behind_stdout_is_one_line():
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "tests.pipeline.command"], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
    assert result.returncode == 1
    assert result.stderr == (
        "tests.pipeline.command: error: No space left on device; make room there, or name another place\n"
    )


def test_success_is_quiet_on_stderr():
    result = run_alone("--size=3", "--fail=tensorflow", "--quiet")
    told = result.stderr.splitlines()  # again after some seconds, on a busy machine
    assert (result.returncode, result.stdout, told[0]) == (0, "", "loading TensorFlow …")
    assert all(re.fullmatch(r"loading TensorFlow …, \d+ seconds so far", line) for line in told[1:])


def test_flags_and_arguments_reach_the_config(run):
    args = ["--size", "3", "--seed=4", "--rate=0.25", "--mode=fast", "--quiet", "--noquiet", "--limit=9", "a", "b"]
    expected = CommandConfig(size=3, seed=4, rate=0.25, mode="fast", limit=9, inputs=("a", "b"))
    assert run(*args, "--ratio=1,2", "--inputs=c") == (0, f"{_with(expected, ratio=(1, 2), inputs='cab')}\n", "")


def _with(config, **changes):
    return CommandConfig(**vars(config) | {name: tuple(value) for name, value in changes.items()})


def test_defaults_are_those_of_the_class_to_the_last_digit():
    assert command_line.parse(CommandConfig, ["demo"]) == CommandConfig()
    assert command_line.parse(InputConfig, ["demo"]).crop_ratio == (3 / 4, 4 / 3) == InputConfig().crop_ratio


def test_a_command_without_arguments_refuses_them(run):
    def command():
        command_line.run(print, BaseConfig, "Demo.")

    assert run("stray", command=command) == (
        2, "", f"{command_line.program()}: error: unexpected argument 'stray'; this command takes none "
        f"{command_line._see_help()}\n",
    )  # fmt: skip


@pytest.mark.parametrize("flag", ["--help", "-h", "-help", "--helpfull"])
def test_help_goes_to_stdout_and_ends_with_0(run, flag):
    code, out, err = run("--size=0", flag)
    assert (code, err) == (0, "")
    assert out.startswith("A command with a field of every kind")


def test_help_shows_the_common_flags_and_says_how_many_more_there_are(run, monkeypatch):
    monkeypatch.setattr(CommandConfig, "COMMON", ("mode", "size"), raising=False)
    short, full = run("--help")[1], run("--helpfull")[1]
    flags, every = sum(field.option.flag for field in options(CommandConfig).values()), 6
    assert short.count("\n  --") == 2 + every and f"these and {flags - 2} more flags" in " ".join(short.split())
    assert full.count("\n  --") == flags + every and "--rate" in full and "--rate" not in short


def test_version_names_what_a_ticket_needs(run):
    code, out, _ = run("--version", "--size=0")
    assert code == 0 and out.startswith(f"shardline {metadata.version('shardline')}\nPython 3.")
    assert f"TensorFlow {metadata.version('tensorflow')}, " in out and "Linux" in out


@pytest.mark.parametrize("width", [60, 120])
def test_help_fits_the_terminal_and_lists_every_flag_once(run, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    _, out, _ = run("--help")
    lines = out.splitlines()
    assert max(map(len, lines)) <= width
    assert max(map(len, lines)) > width - 12  # and uses it
    for name, field in options(CommandConfig).items():
        heads = [line for line in lines if line.startswith((f"  --{name}", f"  --[no]{name}"))]
        assert len(heads) == field.option.flag, name
    text = " ".join(out.split())
    assert "--size=256 length of the short side, in pixels; a whole number from 1 to 1000" in text
    assert "--ratio=0.75,1.33333 least and largest ratio" in text
    assert "--mode=slow how to work; one of slow, fast" in text
    assert "--[no]quiet (default: off) say nothing" in text
    assert out.index("Images:") < out.index("Work:") < out.index("Flags:")


def test_commands_share_a_process(run):
    def other():
        command_line.run(lambda config: print(config.size), BaseConfig, "Another.")

    assert run("--size=1", "--quiet") == (0, "", "")
    assert run("--size=2", command=other) == (0, "2\n", "")
    assert run("--mode=fast", "--quiet") == (0, "", "")
    assert run("--mode=fast", command=other)[0] == 2  # a flag of the first command alone
    assert run(command=other) == (0, "256\n", "")  # and nothing is left of earlier command lines


def test_errors_name_flags_on_the_command_line_and_fields_in_python(run):
    with pytest.raises(UsageError, match=r"^size=13: brings bad luck; use size=14, or mode=slow$"):
        CommandConfig(size=13)
    assert "--size=13: brings bad luck; use --size=14, or --mode=slow" in run("--size=13")[2]
    with pytest.raises(UsageError, match=r"^size=13"):  # the command line is left behind
        CommandConfig(size=13)


def test_lines_of_a_kind_are_left_out_of_what_libraries_write_and_others_are_kept(capfd):
    """By whatever writes to the file descriptor: such messages come from C++."""
    with command_line.without_lines("INFO: ") as stderr:
        os.write(2, b"INFO: Created a delegate\nERROR: no memory\n")
        os.write(stderr, b"at once\n")
        assert capfd.readouterr().err == "at once\n"
    assert capfd.readouterr().err == "ERROR: no memory\n"
    with pytest.raises(KeyboardInterrupt), command_line.without_lines("INFO: "):
        os.write(2, b"its last words\n")
        raise KeyboardInterrupt
    assert capfd.readouterr().err == "its last words\n"
