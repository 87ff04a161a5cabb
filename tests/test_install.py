"""What an install gives: one import name, and scripts that work beside a stranger's folders of the same names."""

import os
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.pipeline.conftest import build_native
from tests.shell_commands import follow

ROOT = Path(__file__).parent.parent
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
SCRIPTS = sorted(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Our sdist and the wheel that is built out of it: (sdist, wheel)."""
    folder = tmp_path_factory.mktemp("built")
    # A copy, because setuptools writes build/ and *.egg-info beside the sources.
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in map(os.fsdecode, filter(None, tracked)):
        if not name.startswith("benchmarks/results/") and (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source"])
    (sdist,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A new virtual environment with our wheel and nothing else; returns its folder and the new import names."""
    venv = tmp_path_factory.mktemp("installed") / "venv"
    run([sys.executable, "-m", "venv", "--without-pip", venv])
    (site,) = venv.glob("lib/python*/site-packages")
    before = set(os.listdir(site))
    run([*PIP, "--python", venv / "bin/python", "install", "--no-deps", "--no-index", built[1]])
    return venv, site, set(os.listdir(site)) - before


def run(command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_wheel_brings_exactly_one_import_name(installed):
    _, _, names = installed
    assert {name for name in names if not name.endswith(".dist-info")} == {"shardline"}


def test_the_module_is_compiled_out_of_the_sdist_as_it_is_here(installed, tmp_path):
    here, _ = build_native(tmp_path)
    assert (installed[1] / "shardline/pipeline/_native.abi3.so").exists() == (here is not None)


def test_scripts_answer_help_beside_a_strangers_folders(installed, tmp_path):
    venv, site, _ = installed
    import numpy

    (site / "dependencies.pth").write_text(f"{Path(numpy.__file__).parents[1]}\n")
    for name in ("tools", "pipeline", "trainer", "benchmarks", "json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('a stranger was imported')")
    (tmp_path / "json.py").write_text("raise RuntimeError('a stranger was imported')")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    where = run([venv / "bin/python", "-P", "-c", "import shardline.pipeline as p; print(p.__file__)"], cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(site)
    assert all((venv / "bin" / script).is_file() for script in SCRIPTS)
    for script in ("shardline", "shardline-convert", "shardline-train"):  # all begin in one module
        text = run([venv / "bin" / script, "--help"], cwd=tmp_path, env=environment)
        assert script in text and "\n  --" in text, script


@pytest.mark.slow
def test_packages_are_as_an_index_takes_them(built):
    for module, arguments in (("twine", ["check", "--strict", *built]), ("check_wheel_contents", [built[1]])):
        if not find_spec(module):
            pytest.skip(f"{module} is not installed: it comes with the extra 'release'")
        run([sys.executable, "-m", module, *arguments])


@pytest.mark.slow
def test_a_wheel_with_its_dependencies_does_the_main_job_in_any_folder(built, tmp_path):
    """In an empty environment, without the repository: the tutorial, from drawn photographs to an exported model."""
    probe = [*PIP, "download", "--no-deps", "--retries=0", "--timeout=15", "--dest", tmp_path / "probe", "absl-py"]
    if subprocess.run(list(map(str, probe)), capture_output=True).returncode:
        pytest.skip("no package index answers here")
    python = tmp_path / "venv/bin/python"
    run([sys.executable, "-m", "venv", tmp_path / "venv"])
    run([python, "-m", *PIP[2:], "install", "--constraint", ROOT / "constraints.txt", built[1]])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    where = run(
        [python, "-P", "-c", "import shardline.pipeline as p; print(p.__file__)"], cwd=tmp_path, env=environment
    )
    assert Path(where.strip()).is_relative_to(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    follow(ROOT / "docs/tutorial.md", tmp_path / "elsewhere", python)
