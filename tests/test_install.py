"""What an install gives: one import name, and scripts that work beside a stranger's folders of the same names."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"])


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A new virtual environment with our wheel and nothing else; returns its folder and the new import names."""
    folder = tmp_path_factory.mktemp("installed")
    # A copy, because setuptools writes build/ and *.egg-info beside the sources.
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in map(os.fsdecode, filter(None, tracked)):
        if name.startswith(("pipeline/", "tools/", "trainer/", "benchmarks/")) and not name.endswith((".py", ".typed")):
            continue
        if "/" in name and not name.startswith(("pipeline/", "tools/", "trainer/", "benchmarks/")):
            continue
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "source"])
    run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"])
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    before = set(os.listdir(site))
    (wheel,) = folder.glob("shardline-*.whl")
    run([*pip, "--python", folder / "venv/bin/python", "install", "--no-deps", "--no-index", wheel])
    return folder / "venv", site, set(os.listdir(site)) - before


def run(command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_wheel_brings_exactly_one_import_name(installed):
    _, _, names = installed
    assert {name for name in names if not name.endswith(".dist-info")} == {"shardline"}


def test_every_script_answers_help_beside_a_strangers_folders(installed, tmp_path):
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
    for script in SCRIPTS:
        text = run([venv / "bin" / script, "--help"], cwd=tmp_path, env=environment)
        assert script in text and "\n  --" in text, script
