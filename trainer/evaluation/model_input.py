"""What the model is shown: of a stored record, and of any image file, made as the converter made the records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from shardline.pipeline.encodings import ENCODINGS
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.images import load_rgb
from shardline.pipeline.preprocessing import eval_geometry
from shardline.pipeline.shards import Shards


def stored_images(data: Any, split: str, records: Iterable[int]) -> Iterator[np.ndarray | None]:
    """Pixels (uint8 RGB) of some records, in the order asked for; None for one that cannot be read."""
    shards = Shards(data.manifest, data.directory, split)
    encoding = ENCODINGS[data.manifest.image.encoding]
    for record in records:
        try:
            yield encoding.decode(shards.read(int(record))).copy()
        except ValueError:
            yield None


def preprocess(image: np.ndarray, run: Any) -> np.ndarray:
    """The square that the model is shown of an image."""
    return eval_geometry(image, run.config.image_size, run.preprocessing["crop_fraction"])


def load_image(data: bytes, run: Any, options: ImageOptions) -> np.ndarray:
    """The square that the model is shown of an image file's bytes. Raises shardline.pipeline.images.BadImage."""
    return preprocess(load_rgb(data, options), run)


def stored_options(run: Any) -> ImageOptions:
    """How the converter made the images this run was trained on."""
    stored = run.preprocessing.get("stored", {})
    if stored.get("resize", "none") == "none":
        return ImageOptions(resize="none")
    flags_set = {name: stored[name] for name in ("upscale", "trim_borders") if isinstance(stored.get(name), bool)}
    return ImageOptions(resize=stored["resize"], size=stored["size"], **flags_set)
