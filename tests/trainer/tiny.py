"""How the tests of trained runs start commands, read their refusals, and draw pictures."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).parents[2]
COLOURS = {"blue": (30, 60, 200), "green": (40, 160, 60), "red": (200, 40, 30)}


def command(module, *arguments, check=0, cwd=ROOT):
    """Run `python -m module`; the finished process, which left with `check`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, env=environment
    )
    assert result.returncode == check, f"{module} left with {result.returncode}: {result.stderr[-3000:]}"
    return result


def refusal(module, *arguments, code=2, cwd=ROOT):
    """The one line with which a command refuses."""
    result = command(module, *arguments, check=code, cwd=cwd)
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if "error:" in line]
    assert len(lines) == 1 and not result.stdout
    return lines[0].partition("error: ")[2]


def draw(random, colour):
    """A noisy picture of a disc."""
    height, width = random.integers(40, 56, size=2)
    picture = random.integers(60, 130, (height, width, 3), dtype=np.uint8)
    centre = tuple(int(x) for x in random.integers(15, 35, size=2))
    return cv2.circle(picture, centre, int(random.integers(8, 14)), colour, -1)


def save(path, rgb, *options):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), list(options))
