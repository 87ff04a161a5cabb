"""What OpenCV does to one image on the host, beside NumPy."""

import cv2
import numpy as np
import pytest

from shardline.pipeline import InputConfig
from shardline.pipeline.augment_host import augment
from shardline.pipeline.augment_params import AugmentParams
from tests.pipeline.tiny import image


@pytest.mark.parametrize("side", [31, 32, 224])
def test_a_flip_is_numpys_and_touches_no_neighbor(side):
    config = InputConfig(image_size=side)
    params = AugmentParams(config, np.arange(16))
    flips = params.values[:, params.columns["flip"]].any(1)
    assert 0 < flips.sum() < 16
    window = image(3, 60, 71)[2:50, 1:40]
    batch = np.zeros((16, side, side, 3), np.uint8)
    for row in range(1, 15):
        augment(window, params, row, batch[row])
    resized = cv2.resize(window, (side, side))
    for row in range(1, 15):
        np.testing.assert_array_equal(batch[row], resized[:, ::-1] if flips[row] else resized)
    assert not batch[0].any() and not batch[15].any()
