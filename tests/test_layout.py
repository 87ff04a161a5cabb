"""The shape of the project: who may import TensorFlow, which way imports run, and that --help is instant."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("pipeline", "trainer", "tools", "benchmarks")
LEAVES = {
    "shardline.tools.html_report",
    "shardline.pipeline.images",
}
MAY_IMPORT = {
    "pipeline": {"pipeline"},
    "tools": {"pipeline", "tools"},
    "trainer": {"pipeline", "trainer"},
    "benchmarks": {"pipeline", "trainer", "tools", "benchmarks"},
}
NO_TENSORFLOW = [
    "pipeline",
    "shardline.pipeline.cli",
    "shardline.pipeline.manifest",
    "shardline.pipeline.sampler",
    "shardline.pipeline.config",
    "shardline.pipeline.example",
    "shardline.tools.conversion.scan",
    "shardline.tools.conversion.splits",
    "shardline.pipeline.images",
    "shardline.tools.conversion.shard_writer",
    "shardline.tools.conversion.executors",
    "shardline.tools.convert",
    "shardline.tools.html_report",
    "shardline.trainer.schedule",
]


def imported_names(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_run_one_way(folder):
    for path in (ROOT / folder).rglob("*.py"):
        for name in imported_names(path):
            top = name.split(".")[0]
            allowed = MAY_IMPORT[folder] | (set() if folder == "pipeline" else {"tools"} if is_leaf(name) else set())
            assert top not in FOLDERS or top in allowed, f"{path.relative_to(ROOT)} imports {name}"


def is_leaf(name):
    return name == "tools" or any(name == leaf or name.startswith(leaf + ".") for leaf in LEAVES)


def test_files_marked_so_import_without_tensorflow():
    code = "import importlib, sys\n" + "".join(
        f"importlib.import_module({name!r})\n"
        f"assert not {{'tensorflow', 'keras'}} & set(sys.modules), {name!r} + ' imports TensorFlow'\n"
        for name in NO_TENSORFLOW
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr


def commands():
    """Every module that ends in a command line."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "def cli()" in path.read_text():
                yield ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("command", list(commands()))
def test_help_answers_without_loading_the_heavy_libraries(command):
    # What is loaded is asserted, not how long it takes: machines differ.
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{command!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_module({command!r}, run_name='__main__', alter_sys=True)\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "heavy = {'tensorflow', 'keras', 'matplotlib', 'cv2', 'pyarrow', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    started = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert "--" in result.stdout
    assert time.perf_counter() - started < 20  # a hang, not a speed


def test_every_file_says_what_it_is_for():
    for folder in (*FOLDERS, "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            assert ast.get_docstring(ast.parse(path.read_text())), f"{path.relative_to(ROOT)} has no docstring"
