"""Ctrl-C while an installed script is still importing: one line and exit code 130, at whatever module it comes."""

import signal
import subprocess
import sys
import tomllib

import pytest

from shardline.pipeline import start
from shardline.pipeline.commands import COMMANDS
from tests.few import few
from tests.test_scripts import BIN, FEW, type_in
from tests.tools.folders import ROOT

# Runs an installed script in which a signal comes when the module named first begins to be imported.
INTERRUPTED = """
import runpy, signal, sys
class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == wanted:
            signal.raise_signal(int(number))
wanted, number, sys.argv = sys.argv[1], sys.argv[2], sys.argv[3:]
sys.meta_path.insert(0, Interrupter())
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def interrupted(module, script, *arguments, number=signal.SIGINT):
    """Exit code and what a terminal shows."""
    return type_in(sys.executable, "-c", INTERRUPTED, module, int(number), BIN / script, *arguments)


def test_every_script_starts_here_with_the_module_of_its_command():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    modules = {f"shardline-{name}": command.module for name, command in COMMANDS.items()}
    modules["shardline"] = "shardline.tools.shardline"
    assert set(scripts) == set(modules)
    for script, place in scripts.items():
        module, _, function = place.partition(":")
        assert module == start.__name__
        assert getattr(start, function).args == (modules[script],), script


@pytest.mark.parametrize("script", FEW)
def test_ctrl_c_during_the_first_imports_is_one_line(script):
    assert interrupted("shardline.pipeline.cli", script, "--help") == (130, f"{script}: error: interrupted\n")


MODULES = ["shardline.trainer.train", "absl.flags", "msgspec", "shardline.pipeline.dataset"]


@pytest.mark.parametrize("module", few(MODULES, "absl.flags", "shardline.pipeline.dataset"))
def test_ctrl_c_is_one_line_at_any_module(module):
    """Of a command that goes on to read a dataset, which it is given none of."""
    code, shown = interrupted(module, "shardline-train", "nowhere", "--workdir=nowhere")
    assert (code, shown) == (130, "shardline-train: error: interrupted\n")


# Imported by Python at its start: a signal comes when the module named first begins to be imported.
AT_THE_START = """
import atexit, os, signal, sys
class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPT_AT"]:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupter())
if os.environ["INTERRUPT_AT"] == "the end":
    atexit.register(signal.raise_signal, signal.SIGINT)
"""


@pytest.fixture
def interrupted_at(tmp_path, monkeypatch):
    """Exit code and what is shown of a program of Python's that Ctrl-C meets at a module; its exact command line."""
    (tmp_path / "sitecustomize.py").write_text(AT_THE_START)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHON_COLORS", "0")  # from 3.13 on, tracebacks on a terminal have colors

    def run(module, *command):
        monkeypatch.setenv("INTERRUPT_AT", module)
        return type_in(*command)

    return run


@pytest.mark.parametrize("module", few(["json", "shardline.pipeline.cli", *MODULES[1:]], "json", MODULES[-1]))
def test_ctrl_c_is_one_line_of_python_m_too(module, interrupted_at):
    """`json` is the first import of this command's module, before any of ours that it names."""
    command = (sys.executable, "-m", "shardline.trainer.train", "nowhere", "--workdir=nowhere")
    assert interrupted_at(module, *command) == (130, "shardline.trainer.train: error: interrupted\n")


@pytest.mark.parametrize("command", [(BIN / "shardline-train",), (sys.executable, "-m", "shardline.trainer.train")])
def test_ctrl_c_after_the_last_word_of_any_command_shows_nothing(command, interrupted_at):
    code, shown = interrupted_at("the end", *command, "--version")
    assert code == -signal.SIGINT and shown.startswith("shardline ") and "Traceback" not in shown


@pytest.mark.parametrize(
    "program", ["import shardline.trainer, json.tool", "from runpy import run_module as run; run('json.tool')"]
)
def test_other_programs_keep_their_ctrl_c(program, interrupted_at):
    """Also those that import this package, or are started by `python -m`."""
    code, shown = interrupted_at("json.tool", sys.executable, "-c", f"import shardline.pipeline\n{program}")
    assert code == -signal.SIGINT and shown.endswith("KeyboardInterrupt\n")


@pytest.mark.slow
@pytest.mark.parametrize("module", ["tensorflow", "numpy.linalg", "keras", "tensorflow.python.ops.math_ops", "h5py"])
def test_ctrl_c_is_one_line_while_tensorflow_is_imported(module):
    code, shown = interrupted(module, "shardline-train", "--synthetic", "--dry_run")
    assert code == 130 and shown.endswith("shardline-train: error: interrupted\n") and "Traceback" not in shown, shown


def test_sigterm_ends_it_as_it_ends_any_program():
    """143 to a shell."""
    code, shown = interrupted("absl.flags", "shardline-train", "--help", number=signal.SIGTERM)
    assert (code, shown) == (-signal.SIGTERM, "")


def test_a_script_that_was_told_to_ignore_ctrl_c_does():
    """As of one that a shell script starts with `&`."""
    arguments = [sys.executable, "-c", INTERRUPTED, "absl.flags", "2", BIN / "shardline-train", "--version"]
    ignore = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731
    done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, preexec_fn=ignore)
    assert done.returncode == 0 and done.stdout.startswith("shardline ") and done.stderr == ""


AT_THE_END = """
import atexit, signal, sys
from shardline.pipeline.start import train
atexit.register(signal.raise_signal, signal.SIGINT)
sys.argv = ["shardline-train", "--version"]
train()
"""


def test_ctrl_c_after_the_last_word_shows_nothing():
    done = subprocess.run([sys.executable, "-c", AT_THE_END], capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT and done.stdout.startswith("shardline ") and done.stderr == ""


TWICE = """
import signal, sys
from shardline.pipeline import cli, start
def leave(code, error=""):
    signal.raise_signal(signal.SIGINT)  # while the first one is reported
cli._leave = leave
cli._run = lambda *_: signal.raise_signal(signal.SIGINT)
sys.argv = ["shardline-train"]
start.train()
"""


def test_a_second_ctrl_c_while_the_first_is_reported_shows_no_traceback():
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "shardline-train: error: interrupted\n")
