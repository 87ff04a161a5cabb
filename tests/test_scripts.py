"""The installed console scripts under a pseudo-terminal: what a person who types them sees."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"])
BIN = Path(sys.executable).parent


def type_in(*command, columns=80, cwd=None):
    """Exit code and everything a terminal of that many columns shows."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        list(map(str, command)), stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=environment
    )
    os.close(theirs)
    shown = b""
    while True:
        ready, _, _ = select.select([ours], [], [], 120)
        assert ready, f"{command}: silent for two minutes after {shown[-500:]!r}"
        try:
            data = os.read(ours, 1 << 16)
        except OSError:  # how Linux tells that the other end was closed
            break
        if not data:
            break
        shown += data
    os.close(ours)
    return process.wait(60), shown.decode(errors="replace").replace("\r\n", "\n")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_tells_what_the_command_does_and_its_flags(script):
    code, shown = type_in(BIN / script, "--help")
    assert code == 0
    assert script in shown.split("\n  --")[0]  # an example to copy
    assert shown.count("\n  --") >= 1
    assert all("\n      " + line.strip() in shown for line in shown.splitlines() if line.startswith("      "))


@pytest.mark.parametrize("columns", [80, 140])
def test_help_fits_the_terminal(columns):
    for script in ("shardline-convert", "shardline-train"):
        code, shown = type_in(BIN / script, "--help", columns=columns)
        flags = shown[shown.index("\n  --") :]
        assert code == 0 and max(map(len, flags.splitlines())) <= columns


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_mistyped_flag_is_one_line_with_exit_code_2(script, tmp_path):
    code, shown = type_in(BIN / script, "--no_such_flag=1", cwd=tmp_path)
    assert code == 2 and shown.count("\n") == 1, shown
    assert script in shown and "no_such_flag" in shown and "Traceback" not in shown
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script != "shardline-doctor"])
def test_no_arguments_is_one_line_with_exit_code_2(script, tmp_path):
    code, shown = type_in(BIN / script, cwd=tmp_path)
    assert code == 2 and shown.count("\n") == 1 and "error" in shown, shown
    assert not list(tmp_path.iterdir())
