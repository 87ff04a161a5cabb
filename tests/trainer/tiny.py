"""How the tests of trained runs start commands, read their refusals, and draw images."""

import os
import subprocess
import sys

import cv2
import numpy as np

from shardline.tools.plot_style import figure_png
from tests.tools.folders import ROOT, Run

COLORS = {"blue": (30, 60, 200), "green": (40, 160, 60), "red": (200, 40, 30)}


def command(name, *arguments, check=0):
    """Run a command in this process, where TensorFlow is loaded already; the finished Run, which left with `check`."""
    run = Run(name, *arguments)
    assert run.code == check, f"{name} left with {run.code}: {run.stderr[-3000:]}"
    return run


def process(name, *arguments, check=0):
    """Run `python -m name` in a process of its own: for several devices, or none of this project's state."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-m", name, *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    assert result.returncode == check, f"{name} left with {result.returncode}: {result.stderr[-3000:]}"
    return result


def refusal(name, *arguments, code=2):
    """The one line with which a command refuses."""
    run = command(name, *arguments, check=code)
    *said, line = run.stderr.splitlines()
    assert all(text.startswith("weights: ") for text in said), run.stderr  # which ones, once they are known to be there
    assert not run.stdout
    return line.partition("error: ")[2]


def draw(random, color):
    """A noisy image of a disc."""
    height, width = random.integers(40, 56, size=2)
    image = random.integers(60, 130, (height, width, 3), dtype=np.uint8)
    center = tuple(int(x) for x in random.integers(15, 35, size=2))
    return cv2.circle(image, center, int(random.integers(8, 14)), color, -1)


def save(path, rgb, *options):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), list(options))


def drawn(figure):
    """Pixels of the rendered figure, and every text on it, its lines joined."""
    figure.canvas.draw()
    texts = [" ".join(text.get_text().split()) for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    return cv2.imdecode(np.frombuffer(figure_png(figure), np.uint8), cv2.IMREAD_COLOR), [t for t in texts if t]
