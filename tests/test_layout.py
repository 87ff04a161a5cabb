"""The shape of the project: imports run one way and in no circle, no TensorFlow where it would be slow, types."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("pipeline", "trainer", "tools", "benchmarks")
# A converter worker starts in a tenth of a second and 50 MB because of this; TensorFlow would cost it 7 s and 560 MB.
NO_TENSORFLOW = [
    "pipeline",
    "pipeline.cli",
    "pipeline.config",
    "pipeline.example",
    "pipeline.executors",
    "pipeline.images",
    "pipeline.manifest",
    "pipeline.preprocessing",
    "pipeline.sampler",
    "pipeline.workers",
    "tools.convert",
    "tools.html_report",
    "tools.conversion.run",
    "tools.conversion.scan",
    "tools.conversion.shard_writer",
    "trainer.callbacks",
    "trainer.config",
    "trainer.data",
    "trainer.schedule",
]


def test_imports_obey_the_contracts_of_pyproject():
    # Circles count inside a folder and inside functions too.
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run(['--no-cache'])"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout[-4000:]


def test_files_marked_so_import_without_tensorflow():
    code = "import importlib, sys\n" + "".join(
        f"importlib.import_module('shardline.{name}')\n"
        f"assert not {{'tensorflow', 'keras'}} & set(sys.modules), {name!r} + ' imports TensorFlow'\n"
        for name in NO_TENSORFLOW
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def commands():
    """Every module that ends in a command line."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "\ndef cli() ->" in path.read_text():
                yield "shardline." + ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_all_commands_live_in_one_process():
    code = "import importlib, sys\n" + "".join(f"importlib.import_module({name!r})\n" for name in commands())
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_help_answers_without_loading_the_heavy_libraries():
    """One command after the other in one process: the first that loads one of them is named."""
    code = (
        "import contextlib, io, runpy, sys\n"
        "for command in sys.argv[1:]:\n"
        "    sys.argv = [command, '--help']\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "        try:\n"
        "            runpy.run_module(command, run_name='__main__', alter_sys=True)\n"
        "        except SystemExit as stop:\n"
        "            assert not stop.code, command\n"
        "    assert '\\n  --' in out.getvalue(), command\n"
        "    heavy = {'tensorflow', 'keras', 'matplotlib', 'cv2', 'pyarrow', 'torch'} & set(sys.modules)\n"
        "    assert not heavy, (command, heavy)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, *commands()], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_every_file_says_what_it_is_for():
    for folder in (*FOLDERS, "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            assert ast.get_docstring(ast.parse(path.read_text())), f"{path.relative_to(ROOT)} has no docstring"


@pytest.mark.parametrize("folder", FOLDERS)
def test_hardly_an_argument_is_typed_any(folder):
    count = loose = 0
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                for argument in (*node.args.args, *node.args.kwonlyargs):
                    if argument.annotation is not None:
                        count += 1
                        loose += ast.unparse(argument.annotation) == "Any"
    assert loose < 0.02 * count, f"{loose} of {count} arguments in {folder}/ are Any"


def test_type_checkers_see_the_public_api(tmp_path):
    links = tmp_path / "links" / "shardline"
    links.mkdir(parents=True)
    for folder in FOLDERS:
        (links / folder).symlink_to(ROOT / folder)
    (tmp_path / "user.py").write_text(
        "from shardline import pipeline\n"
        "data = pipeline.open_dataset('x')\n"
        "reveal_type(data)\n"
        "reveal_type(pipeline.InputConfig().replica_batch_size(1))\n"
    )
    options = ["--config-file=", "--namespace-packages", "--explicit-package-bases", "--ignore-missing-imports"]
    result = subprocess.run(
        [sys.executable, "-m", "mypy", *options, tmp_path / "user.py"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "MYPYPATH": str(links.parent)},
    )  # fmt: skip
    assert 'is "shardline.pipeline.dataset.Dataset"' in result.stdout and 'is "int"' in result.stdout, result.stdout
