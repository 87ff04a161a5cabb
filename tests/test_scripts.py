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
from importlib import metadata
from pathlib import Path

import pytest

from shardline.pipeline.commands import COMMANDS
from shardline.pipeline.machine import available_cores, memory_limit
from shardline.pipeline.options import options
from tests.few import few
from tests.pipeline.tiny import payloads, write_dataset
from tests.tools.folders import Run

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"])
BIN = Path(sys.executable).parent


def command(script):
    """The function behind a script, without what `pipeline.start` adds in a process of its own."""
    name = script.removeprefix("shardline-")
    return importlib.import_module(COMMANDS[name].module if name in COMMANDS else "shardline.tools.shardline").cli


def config_of(script):
    """The config class whose fields are a script's flags."""
    return COMMANDS[script.removeprefix("shardline-")].config_class()


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


# All begin in `pipeline.start`: one that only hands on, one that converts and one that trains stand for the rest.
FEW = few(SCRIPTS, "shardline", "shardline-convert", "shardline-train")


@pytest.fixture(params=[80, pytest.param(140, marks=pytest.mark.slow)])
def columns(request):
    return request.param


@pytest.fixture(params=["here", pytest.param("terminal", marks=pytest.mark.slow)])
def typed(request, columns, tmp_path, monkeypatch):
    """Exit code and what is shown of a script with arguments, in an empty folder: of the function behind it in this
    process, which costs no start of Python; among the slow tests of the installed script at a terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)  # pytest's own, under `python -m pytest`

    def here(script, *arguments):
        run = Run(BIN / script, *arguments, cli=command(script))
        return run.code, run.stdout + run.stderr

    yield here if request.param == "here" else lambda script, *rest: type_in(BIN / script, *rest, columns=columns)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_tells_what_the_command_does_and_its_flags(script, typed, columns):
    code, shown = typed(script, "--help")
    assert code == 0
    assert script in shown.split("\n  --")[0]  # an example to copy
    if script == "shardline":
        assert all(f"\n  {name[len('shardline-') :]} " in shown for name in SCRIPTS if name != script)
        return
    prose = [line for line in shown.split("\n  --")[0].splitlines() if not line.startswith(" ")]
    assert [line for line in prose if re.search(rf"{script} +(--\w|#)", line)] == []  # examples keep their lines
    heads = re.findall("\n  (--.*)", shown)
    told = re.compile(r"=.|\(default: |\(no default\)|^--(version|machine|helpfull)")
    assert all(told.search(head) or told_default(shown, head) for head in heads), heads
    assert max(map(len, shown[shown.index("\n  --") :].splitlines())) <= columns
    assert script == "shardline-doctor" or len(heads) > 5


def told_default(shown, head):
    """Whether the text below a flag says what leaving it out means."""
    text = " ".join(shown[shown.index(f"  {head}\n") :].split("\n  --")[0].split())
    return "default: " in text or "empty: " in text


def test_help_of_many_flags_shows_common_ones_and_helpfull_the_rest():
    short, full = (type_in(BIN / "shardline-train", flag)[1] for flag in ("--help", "--helpfull"))
    assert "--phases=" in short and "--peak_tflops" not in short and "--peak_tflops" in full
    assert "--progressive_resizing=" in short  # a part of a recipe
    assert [group for group in ("Run:", "Model:", "Recipe:", "Augmentation:", "Input:", "Devices:", "Cadence:")
            if f"\n{group}\n" not in short] == []  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_version_is_told(script, typed):
    code, shown = typed(script, "--version")
    assert code == 0 and shown.startswith(f"shardline {metadata.version('shardline')}\nPython 3.")


def test_version_and_machine_are_what_a_ticket_needs():
    code, shown = type_in(BIN / "shardline", "--version", "--machine")
    facts = dict(line.split(": ", 1) for line in shown.splitlines())
    assert code == 0
    heads = ["shardline", "packages", "compiled module", "Python", "system", "processor", "cores", "memory", "GPUs"]
    assert [*facts] == heads and re.match("used|none, (there|not for)", facts["compiled module"])
    packages = dict(fact.rsplit(" ", 1) for fact in facts["packages"].split(", "))
    for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        name = re.split(r"[^\w.-]", line)[0]
        assert packages[name] == metadata.version(name)
    assert facts["cores"].split(" of ")[0] == str(available_cores()) and all(facts.values())
    assert facts["memory"].startswith(f"{memory_limit() / 2**30:.1f} GiB, ")
    private = {Path.home().name, os.uname().nodename, str(Path.home())} - {"root", "/root"}
    assert not [word for word in private if re.search(rf"\b{re.escape(word)}\b", shown)]
    template = (ROOT / ".github/ISSUE_TEMPLATE/fault.yml").read_text()
    assert "`shardline --version --machine`" in template
    other = type_in(BIN / "shardline-train", "--machine")[1]
    assert [line for line in other.splitlines() if not line.startswith("memory")] == [
        line for line in shown.splitlines() if not line.startswith("memory")
    ]


def test_cards_are_told_as_their_driver_names_them(tmp_path):
    """A stand-in for nvidia-smi answers as a machine with two H100 does."""
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nprintf 'NVIDIA H100 80GB HBM3, 580.1, 9.0\\n%.0s' 1 2\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run([BIN / "shardline", "--machine"], env=environment, capture_output=True, text=True)
    card = "NVIDIA H100 80GB HBM3, compute capability 9.0, driver 580.1"
    assert result.stdout.splitlines()[-1] == f"GPUs: 2 × {card}, hidden by CUDA_VISIBLE_DEVICES"


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_mistyped_flag_is_one_line_with_exit_code_2(script, typed):
    code, shown = typed(script, "--no_such_flag=1")
    assert code == 2 and shown.count("\n") == 1, shown
    assert script in shown and "no_such_flag" in shown and "Traceback" not in shown


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script != "shardline-doctor"])
def test_no_arguments_is_one_line_with_exit_code_2(script, typed):
    code, shown = typed(script)
    assert code == 2 and shown.count("\n") == 1 and "error" in shown, shown


OWN = [script for script in SCRIPTS if script != "shardline"]  # that one has no flags of its own
PATHS = [(script, field) for script in OWN for field in options(config_of(script)).values() if field.option.path]


def test_every_flag_that_names_a_file_or_folder_is_marked_as_one():
    """So that a new one is taken apart where all are."""
    words = re.compile(r"\b(files?|folders?|director(y|ies))\b")
    not_names = {"name", "split", "split_pattern", "weights_sha256"}  # tell of files and name none
    for script in OWN:
        for name, field in options(config_of(script)).items():
            if field.kind in (str, tuple) and not field.option.choices and words.search(field.option.help):
                assert field.option.path or name in not_names, f"{script} --{name}: {field.option.help}"


LOCAL = "s3://b/x", "s3: cannot be read or written yet; name a local place"


@pytest.mark.parametrize(("script", "field"), PATHS, ids=[f"{script}-{field.name}" for script, field in PATHS])
def test_no_path_flag_takes_an_object_store_for_a_local_folder(script, field, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    in_stores = field.option.path in ("dataset", "source")
    address, fault = ("hf://b/x", "hf: is not known") if in_stores else LOCAL
    monkeypatch.setattr(sys, "argv", [script, f"--{field.name}={address}"])
    with pytest.raises(SystemExit) as stop:
        command(script)()
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "") and err.count("\n") == 1
    assert f"--{field.name}={address}: {fault}" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", OWN)
def test_scripts_refuse_an_object_store_in_one_line(script, typed):
    """All path flags of a command at once."""
    local = [field.name for other, field in PATHS if other == script and field.option.path not in ("dataset", "source")]
    given = [f"--{name}=s3://b/x" for name in local]
    code, shown = typed(script, *given)
    assert code == 2 and shown.count("\n") == 1 and "s3: cannot be read or written yet" in shown, shown


@pytest.mark.parametrize("script", FEW)
def test_help_into_a_pipe_that_closes_is_quiet(script, tmp_path):
    line = f"{BIN / script} --help | head -1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode in (0, 141) and result.stderr == "" and result.stdout.count("\n") == 1


# Whatever a command reads, named as a file that is not there. TensorFlow is loaded by none of them.
MISSING = {
    "shardline": ["nowhere"],
    "shardline-adopt": ["nowhere"],
    "shardline-benchmark": ["nowhere", "--output=out"],
    "shardline-browse": ["nowhere"],
    "shardline-compare": ["nowhere", "elsewhere"],
    "shardline-convert": ["--source=nowhere", "--output=out"],
    "shardline-doctor": ["--config=nowhere.toml"],
    "shardline-evaluate": ["--run=nowhere"],
    "shardline-export": ["--run=nowhere", "--output=out"],
    "shardline-inspect": ["nowhere"],
    "shardline-merge": ["nowhere", "--output=out"],
    "shardline-predict": ["--run=nowhere", "x.jpg"],
    "shardline-sample-data": ["--config=nowhere.toml"],
    "shardline-train": ["nowhere", "--workdir=run"],
    "shardline-verify": ["nowhere"],
}
LATER = {  # what a command reads after something else that takes its time
    "shardline-browse": ["{data}", "--run=nowhere"],
    "shardline-train": ["{data}", "--workdir=run", "--weights=nowhere"],
    "shardline-verify": ["{data}", "--sources=nowhere"],
    "shardline-inspect": ["{data}", "--record=nowhere:1"],
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_missing_file_is_one_line_with_exit_code_2(script, typed):
    code, shown = typed(script, *MISSING[script])
    assert code == 2 and shown.count("\n") == 1 and "nowhere" in shown and "Traceback" not in shown, shown


@pytest.mark.parametrize("script", FEW)
def test_installed_scripts_are_typed_at_a_terminal(script, tmp_path):
    """As above, of few among the fast tests."""
    for arguments, wanted in (("--help",), 0), (("--version",), 0), (("--no_such_flag=1",), 2), (MISSING[script], 2):
        code, shown = type_in(BIN / script, *arguments, cwd=tmp_path)
        assert (code, shown.count("\n") == 1) == (wanted, wanted == 2) and "Traceback" not in shown, shown
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", LATER)
def test_a_second_missing_file_is_refused_before_any_work(script, tmp_path):
    data = write_dataset(tmp_path / "data", {"train": payloads(9)})
    code, shown = type_in(BIN / script, *(word.format(data=data) for word in LATER[script]), cwd=tmp_path)
    *said, line = shown.splitlines()
    assert code == 2 and "nowhere" in line and all(line.startswith(("data: ", "run: ")) for line in said), shown


def test_one_command_has_all_the_others(tmp_path):
    for typed, said in (
        (("train", "--epochs=3"), "shardline train: error: --epochs=3: no such flag; use --phases="),
        (
            ("convert", "--image_size", "160"),
            "error: --image_size 160: no such flag; use --size=160 (shardline convert ",
        ),
        (("train", "--batch-size=8"), "--batch-size=8: no such flag; use --global_batch_size=8 (shardline train --he"),
        (("train", "--batch_size=many"), "--batch_size=many: no such flag; use --global_batch_size (shardline train "),
        (("train", "--amp", "data"), "--amp: no such flag; use --precision (shardline train --help lists the flags)\n"),
        (("train", "--warmup_steps=500"), "--warmup_steps=500: no such flag; use --warmup_epochs (shardline train "),
        (("inspect", "nowhere"), "no such directory; make one with shardline convert\n"),
        (("trian",), "shardline: error: trian: no such command; use train "),
    ):
        code, shown = type_in(BIN / "shardline", *typed, cwd=tmp_path)
        assert code == 2 and shown.count("\n") == 1 and said in shown, shown
    assert type_in(BIN / "shardline", "help", "verify") == type_in(BIN / "shardline", "verify", "--help")
