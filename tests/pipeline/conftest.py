"""The dataset that most reading tests share, and the compiled module."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.tiny import payloads, write_dataset

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """37 training and 11 test images: numbers that divide by nothing."""
    return write_dataset(tmp_path_factory.mktemp("tiny"), {"train": payloads(37), "test": payloads(11)})


def build_native(folder, **environment):
    """What setup.py compiles, as on anybody's machine, or None; and what it said."""
    where = ["--build-lib", folder / "lib", "--build-temp", folder / "temp"]
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", *where],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return next(folder.glob("lib/**/_native*"), None), done.stderr


@pytest.fixture(scope="session")
def native(tmp_path_factory):
    path, said = build_native(tmp_path_factory.mktemp("native"))
    if path is None:
        pytest.skip(f"no compiler here: {said[-200:]}")
    assert path.name == "_native.abi3.so" and "_native.c" not in said and "_shrink.c" not in said, said  # no warnings
    spec = importlib.util.spec_from_file_location("_native", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        pytest.skip(str(error))  # of a processor that it is not written for
    return module
