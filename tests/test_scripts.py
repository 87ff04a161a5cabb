"""The installed console scripts under a pseudo-terminal: what a person who types them sees."""

import fcntl
import importlib
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import tomllib
from pathlib import Path
from unittest.mock import patch

import pytest

from shardline.pipeline import cli as command_line
from shardline.pipeline.options import options

ROOT = Path(__file__).parent.parent
ENTRIES = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
SCRIPTS = sorted(ENTRIES)
BIN = Path(sys.executable).parent


def command(script):
    """The function behind a script."""
    module, _, function = ENTRIES[script].partition(":")
    return getattr(importlib.import_module(module), function)


def config_of(script):
    """The config class whose fields are a script's flags."""
    with patch.object(command_line, "run") as run:
        command(script)()
    return run.call_args.args[1]


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


PATHS = [(script, field) for script in SCRIPTS for field in options(config_of(script)).values() if field.option.path]


def test_every_flag_that_names_a_file_or_folder_is_marked_as_one():
    """So that a new one is taken apart where all are."""
    words = re.compile(r"\b(files?|folders?|director(y|ies))\b")
    not_names = {"name", "split", "split_pattern", "weights_sha256"}  # tell of files and name none
    for script in SCRIPTS:
        for name, field in options(config_of(script)).items():
            if field.kind in (str, tuple) and not field.option.choices and words.search(field.option.help):
                assert field.option.path or name in not_names, f"{script} --{name}: {field.option.help}"


@pytest.mark.parametrize(("script", "field"), PATHS, ids=[f"{script}-{field.name}" for script, field in PATHS])
def test_no_path_flag_takes_an_object_store_for_a_local_folder(script, field, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, f"--{field.name}=s3://b/x"])
    with pytest.raises(SystemExit) as stop:
        command(script)()
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "") and err.count("\n") == 1
    assert f"--{field.name}=s3://b/x: s3: cannot be read or written yet; name a local place" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS)
def test_installed_scripts_refuse_an_object_store_in_one_line(script, tmp_path):
    """All path flags of a command at once, as a person types them."""
    given = [f"--{field.name}=s3://b/x" for other, field in PATHS if other == script]
    code, shown = type_in(BIN / script, *given, columns=400, cwd=tmp_path)
    assert code == 2 and shown.count("\n") == 1 and "s3: cannot be read or written yet" in shown, shown
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_into_a_pipe_that_closes_is_quiet(script, tmp_path):
    line = f"{BIN / script} --help | head -1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode in (0, 141) and result.stderr == "" and result.stdout.count("\n") == 1
