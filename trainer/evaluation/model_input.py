"""From bytes to the model's pixels: of stored records and of any image file, for evaluation, prediction and export.

`graph_pixels` does the same in TensorFlow ops, for models that leave this project.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from shardline.pipeline import workers
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.preprocessing import eval_geometry
from shardline.pipeline.shards import BadRecord
from shardline.trainer.data import STORED_OPTIONS

if TYPE_CHECKING:
    from shardline.pipeline.dataset import Dataset
    from shardline.trainer.run_dir import Run


def stored_images(data: Dataset, split: str, records: Iterable[int]) -> Iterator[np.ndarray | None]:
    """Pixels (uint8 RGB [h, w, 3]) of some records, in the order asked for; None for one that cannot be read."""
    for found in workers.stored_images(data.shards(split), data.manifest.image, list(records)):
        yield None if isinstance(found, BadRecord) else found[0]


def preprocess(image: np.ndarray, run: Run) -> np.ndarray:
    """What the model is shown of an image: uint8 RGB [h, w, 3] -> [image_size, image_size, 3]."""
    pixels: np.ndarray = eval_geometry(image, run.config.image_size, run.preprocessing["crop_fraction"])
    return pixels


def converter_options(run: Run) -> ImageOptions:
    """How the converter made the images this run was trained on."""
    stored = run.preprocessing.get("stored", {})
    given = {name: stored[name] for name, kind in STORED_OPTIONS.items() if isinstance(stored.get(name), kind)}
    if stored.get("resize", "none") == "none":
        return ImageOptions(resize="none", **given)
    return ImageOptions(resize=stored["resize"], size=stored.get("size"), **given)


def describe_preprocessing(run: Run) -> dict[str, Any]:
    """How to make what the models take, for those that take no files: plain values and sentences."""
    size, fraction = run.config.image_size, run.preprocessing["crop_fraction"]
    stored, short = run.preprocessing["stored"], max(size, round(size / fraction))
    made = {
        "none": "",
        "short": "short side to {0} pixels",
        "long": "long side to {0} pixels",
        "squash": "both sides to {0} pixels",
        "center_crop": "short side to {0} pixels, then the center of {0}x{0}",
    }[stored.get("resize", "none")].format(stored.get("size"))
    steps = ["decode: sRGB, transparent pixels over white, turned as EXIF says; uint8 [height, width, 3], RGB"]
    if (depth := stored.get("depth_range", "full")) != "full":
        levels = "the lowest and highest level of each image" if depth == "image" else f"levels {depth}"
        steps[0] += f"; of samples with more than 8 bits {levels} become 0 and 255"
    steps += ["cut off borders of one color"] if stored.get("trim_borders") else []
    if made:
        larger = "" if stored.get("upscale") else "; smaller images keep their size"
        steps.append(f"as the converter: resize the {made}, by averaging or an antialiased cubic filter{larger}")
    steps += [
        f"resize the short side to {short} pixels, bilinear with antialiasing (a triangle filter as wide as the "
        "reduction), rounded to uint8",
        f"cut out the center of {size}x{size} pixels",
    ]
    return {
        "input": {"name": "images", "dtype": "uint8", "shape": ["batch", size, size, 3], "color": "RGB, 0 to 255"},
        "steps": steps,
        "normalization": "none: the model subtracts the mean by itself",
        "output": {"name": "probabilities", "dtype": "float32", "shape": ["batch", len(run.labels)]},
    }
