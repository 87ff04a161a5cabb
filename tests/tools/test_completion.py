"""The completion script, sourced in a bash."""

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shardline.pipeline.commands import COMMANDS
from shardline.pipeline.errors import UsageError
from shardline.tools.completion import completion

ROOT = Path(__file__).parents[2]
# What readline does: fills COMP_WORDS, calls the function that `complete` named, reads COMPREPLY.
COMPLETE = """
shopt -s extglob
source "$1"; shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
[[ $(complete -p "${COMP_WORDS[0]}") == *"-F _shardline"* ]] || exit 9
_shardline
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "bash"
    path.write_text(completion("bash"))
    return path


def press_tab(script, *words):
    result = subprocess.run(["bash", "-c", COMPLETE, "-", script, *words], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["shardline", "tr"], ["train"]),
        (["shardline", "completion", ""], ["bash", "zsh"]),
        (["shardline-train", "--weights_"], ["--weights_sha256="]),
        (["shardline", "train", "--workd"], ["--workdir="]),
        (["shardline-train", "--data", "d", "--nodeterm"], ["--nodeterministic"]),
        (
            ["shardline-train", "--head", "=", ""],
            ["gap", "hypercolumn", "flatten256", "fc4096"],
        ),  # as bash cuts --head=
        (["shardline-train", "--head", "=", "f"], ["flatten256", "fc4096"]),
        (["shardline-train", "--head", "="], ["gap", "hypercolumn", "flatten256", "fc4096"]),
        (["shardline-train", "--head=f"], ["--head=flatten256", "--head=fc4096"]),  # as zsh leaves it
        (["shardline-train", "--head", "f"], ["flatten256", "fc4096"]),
        (["shardline-sample-data", "--images"], ["--images_per_class="]),
        (["shardline-train", "--data", "="], []),  # left to bash: files
        (["shardline-train", "x"], []),
    ],
)
def test_tab_offers_commands_flags_and_choices(script, words, offered):
    assert press_tab(script, *words) == offered


def test_every_command_completes_its_flags(script):
    assert press_tab(script, "shardline", "") == [*COMMANDS, "completion"]
    for name in COMMANDS:
        assert "--version" in press_tab(script, f"shardline-{name}", "--v")


def test_another_shell_is_refused():
    with pytest.raises(UsageError, match="fish: name the shell, bash or zsh"):
        completion("fish")


@pytest.mark.skipif(not shutil.which("zsh"), reason="no zsh here")
def test_zsh_takes_the_script(tmp_path):
    (tmp_path / "zsh").write_text(completion("zsh"))
    code = (
        f"autoload -U compinit && compinit -u -d {tmp_path}/dump; source {tmp_path}/zsh; print $_comps[shardline-train]"
    )
    result = subprocess.run(["zsh", "-fc", code], capture_output=True, text=True)
    assert result.returncode == 0 and "_bash_complete" in result.stdout, result.stderr


def wait_for(terminal, text, seconds=60):
    """What a terminal shows until `text` comes."""
    shown, end = "", time.monotonic() + seconds
    while text not in shown:
        assert select.select([terminal], [], [], max(0, end - time.monotonic()))[0], f"no {text!r} in {shown!r}"
        shown += os.read(terminal, 1 << 16).decode(errors="replace")
    return shown


SHELLS = {  # how each starts without a file of the user's, and what has to come before the documented line
    "bash": (["bash", "--norc", "--noprofile", "-i"], ":"),
    "zsh": (["zsh", "-f", "-i"], "autoload -U compinit; compinit -u -d $DUMP; unsetopt prompt_sp"),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_documented_line_completes_in_an_interactive_shell(shell, tmp_path):
    """As the reference says it, typed into a terminal with the installed scripts."""
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    assert "source <(shardline completion bash)" in (
        said := " ".join((ROOT / "docs/reference/commands.md").read_text().split())
    )
    assert "`… zsh)` in `~/.zshrc` after `compinit`" in said
    command, before = SHELLS[shell]
    paths = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    child, terminal = pty.fork()
    if not child:
        environment = {**os.environ, "PATH": paths, "INPUTRC": "/dev/null", "TERM": "dumb", "DUMP": f"{tmp_path}/dump"}
        os.execvpe(shell, command, environment)
    try:
        line = f"{before}; source <(shardline completion {shell}); PS1='ready> '; echo sour''ced"
        os.write(terminal, f"{line}\n".encode())
        wait_for(terminal, "sourced\r\n")
        for typed, offered in (
            ("shardline brow\t", "shardline browse "),
            ("shardline-browse --po\t", "--port="),
            ("shardline-train --head=g\t", "--head=gap"),
            ("shardline verify --sam\t", "--sample="),
            ("shardline comp\t\t", "completion"),
        ):
            os.write(terminal, typed.encode())
            wait_for(terminal, offered)
            os.write(terminal, b"\x15")  # away with the line
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(terminal)
