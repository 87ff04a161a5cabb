"""Every command ends in a line and an exit code; none shows a traceback for a user's mistake."""

import subprocess
import sys

import pytest

SCRIPT = """
from absl import flags
from shardline.pipeline import cli
_N = flags.DEFINE_integer("n", 1, "a number", lower_bound=0)
_DO = flags.DEFINE_string("do", "", "what")
def main():
    what = _DO.value
    if what == "usage": raise cli.UsageError("--do=usage: wrong\\n  use another")
    if what == "failure": raise cli.Failure("it broke")
    if what == "os": open("/nonexistent/file")
    if what == "stop": raise KeyboardInterrupt
    if what == "bug": raise ZeroDivisionError
    if what == "tensorflow":
        tf = cli.import_tensorflow()
        tf.zeros(1)
    print("n is", _N.value)
cli.run(main)
"""

ARGUMENTS = """
from shardline.pipeline import cli
def main(arguments): print(arguments)
cli.run(main)
"""


def run(*args):
    return subprocess.run([sys.executable, "-c", SCRIPT, *args], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--do=usage"], 2, "error: --do=usage: wrong use another"),
        (["--do=failure"], 1, "error: it broke"),
        (["--do=os"], 1, "No such file or directory: '/nonexistent/file'"),
        (["--do=stop"], 130, "interrupted"),
        (["--n=x"], 2, "--n"),
        (["--n=-1"], 2, "--n"),
        (["--nn=1"], 2, "nn"),
        (["stray"], 2, "stray"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(args, code, said):
    result = run(*args)
    assert (result.returncode, result.stdout) == (code, "")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr


def test_a_bug_keeps_its_traceback():
    result = run("--do=bug")
    assert result.returncode == 1 and "ZeroDivisionError" in result.stderr and "Traceback" in result.stderr


def test_success_is_quiet_on_stderr():
    for args in (["--n=3"], ["--n=3", "--do=tensorflow"]):
        result = run(*args)
        assert (result.returncode, result.stdout, result.stderr) == (0, "n is 3\n", "")


def test_help_goes_to_stdout_and_exits_with_0():
    result = run("--help")
    assert result.returncode == 0 and "--n" in result.stdout and "a number" in result.stdout


def test_a_command_may_take_arguments():
    result = subprocess.run([sys.executable, "-c", ARGUMENTS, "a", "b"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "['a', 'b']\n")
