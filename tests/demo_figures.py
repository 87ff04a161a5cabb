"""The demo's figures, as the README has them: `python -m tests.demo_figures` runs `make demo` and saves what it gave.

Writes benchmarks/results/demo.json and the demo's two images, on an otherwise idle machine; what the README then has
to say, tests/test_readme_figures.py tells. With --seconds: of a demo that was run already and took so long. With
--tutorial the images of docs/tutorial.md instead, which need no idle machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from shardline.benchmarks.measure import machine
from shardline.pipeline.evaluation_files import read_metrics
from shardline.pipeline.manifest import Manifest
from shardline.trainer import predict
from tests.shell_commands import follow
from tests.tools.test_sample_data import color_top1

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "benchmarks" / "results" / "demo.json"
TUTORIAL = {"grid.png": "grid.jpg", "run/plots/curves.png": "curves.jpg", "gallery.png": "gallery.jpg"}
IN_README = 12  # images of the gallery


def main() -> None:
    """Run the demo unless it was, and save its figures and images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help="how long the demo took that was run already")
    parser.add_argument("--demo", type=Path, default=ROOT / "demo", help="where it lies")
    parser.add_argument("--tutorial", action="store_true", help="follow the tutorial, and keep its images")
    settings = parser.parse_args()
    if settings.tutorial:
        return tutorial()
    start = time.monotonic()
    if settings.seconds is None:
        subprocess.run(["make", "demo"], cwd=ROOT, check=True)
    seconds = time.monotonic() - start if settings.seconds is None else settings.seconds
    values = read_metrics(settings.demo / "evaluation")
    data = settings.demo / "data"
    figures = {
        "seconds": round(seconds),
        "training_images": Manifest.load(data).split("train").records,
        "test_images": values["n"],
        "top1": values["top1"],
        "top1_interval95": values["interval95"]["top1"],
        "nearest_mean_color_top1": color_top1(data),
        "weights": values["weights"],
        "machine": {name: fact for name, fact in machine().items() if name != "argv"},
    }
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    shutil.copyfile(settings.demo / "run/plots/curves.png", ROOT / "docs" / "demo_curves.png")
    predict.GALLERY_IMAGES = IN_README
    gallery = str(ROOT / "docs" / "demo_predictions.png")
    predict.predict(
        predict.PredictConfig(run=str(settings.demo / "run"), data=str(data), split="test", gallery=gallery)
    )


def tutorial() -> None:
    """Follow the tutorial, and save its images under docs/tutorial."""
    with tempfile.TemporaryDirectory() as folder:
        follow(ROOT / "docs" / "tutorial.md", folder, sys.executable)
        (ROOT / "docs" / "tutorial").mkdir(exist_ok=True)
        for source, name in TUTORIAL.items():
            with Image.open(Path(folder, source)) as image:  # a quarter of the bytes
                image.convert("RGB").save(ROOT / "docs" / "tutorial" / name, quality=90)


if __name__ == "__main__":
    main()
