"""What is drawn for each sample has the distribution it promises. No TensorFlow."""

import numpy as np
import pytest
from scipy import stats

from shardline.pipeline import augment_params
from shardline.pipeline.augment_params import AugmentParams
from shardline.pipeline.config import InputConfig

MANY = np.arange(20_000)


def crops(height, width, **options):
    params = AugmentParams(InputConfig(**options), MANY[:4000])
    return np.array([params.crop(row, height, width) for row in range(4000)])


@pytest.mark.parametrize("size", [(256, 341), (341, 256), (40, 40), (1, 1), (1, 900), (900, 2)])
def test_crops_lie_inside_the_image(size):
    top, left, height, width = crops(*size).T
    assert (height >= 1).all() and (width >= 1).all()
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= size[0]).all() and (left + width <= size[1]).all()


def test_crop_areas_and_ratios_are_spread_as_asked():
    _, _, height, width = crops(400, 400, crop_area=(0.1, 0.5)).T
    area = height * width / 160_000
    assert np.histogram(area, 4, (0.1, 0.5))[0] == pytest.approx([1000] * 4, rel=0.12)
    ratio = np.log(width / height)
    assert abs(ratio).max() < np.log(4 / 3) + 0.02
    assert np.histogram(ratio, 4, (-np.log(4 / 3), np.log(4 / 3)))[0] == pytest.approx([1000] * 4, rel=0.12)


def test_the_ratio_is_width_by_height():
    _, _, height, width = crops(200, 200, crop_area=(0.1, 0.2), crop_ratio=(1.5, 2.0)).T
    assert (width > 1.4 * height).all()


def test_crops_are_placed_anywhere():
    top, left, height, width = crops(100, 200, crop_area=(0.1, 0.1), crop_ratio=(1, 1)).T
    assert set(height) == set(width) == {45}
    assert (top.min(), top.max()) == (0, 55)
    assert (left.min(), left.max()) == (0, 155)
    assert left.mean() == pytest.approx(77.5, rel=0.05)


def test_the_whole_image_can_be_asked_for():
    assert (crops(60, 80, crop_area=(1, 1), crop_ratio=(4 / 3, 4 / 3)) == (0, 0, 60, 80)).all()


def test_half_are_flipped_or_none():
    assert AugmentParams(InputConfig(), MANY).values[
        :, augment_params.columns(InputConfig())["flip"]
    ].mean() == pytest.approx(0.5, abs=0.02)
    still = InputConfig(horizontal_flip=False)
    assert not AugmentParams(still, MANY).values[:, augment_params.columns(still)["flip"]].any()


def test_steps_that_are_off_take_no_columns():
    assert set(augment_params.columns(InputConfig())) == {"crop_size", "flip"}
    everything = InputConfig(hue=0.1, random_erasing=0.1, randaugment_layers=2, mixup=0.2)
    assert list(augment_params.columns(everything)) == [
        "crop_size",
        "flip",
        "randaugment",
        "color_jitter",
        "random_erasing",
        "mix",
    ]
    assert augment_params.num_columns(everything) == 3 + 2 * 27 + 18 + 4 + 5


def test_color_without_change_is_the_identity():
    matrix = augment_params._color_matrix(*np.ones((3, 1)), np.zeros(1)).reshape(3, 6)
    np.testing.assert_allclose(matrix, np.eye(3, 6), atol=1e-12)


def test_color_changes_mean_what_they_say():
    pixel, mean = np.array([200.0, 100.0, 50.0]), np.array([90.0, 120.0, 60.0])
    gray = pixel @ (0.299, 0.587, 0.114)

    def change(brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0):
        matrix = augment_params._color_matrix(
            *(np.array([v]) for v in (brightness, contrast, saturation, hue))
        ).reshape(3, 6)
        return matrix[:, :3] @ pixel + matrix[:, 3:] @ mean

    np.testing.assert_allclose(change(brightness=1.5), 1.5 * pixel)
    np.testing.assert_allclose(change(contrast=0.0), [mean @ (0.299, 0.587, 0.114)] * 3)
    np.testing.assert_allclose(change(saturation=0.0), [gray] * 3, rtol=1e-6)
    np.testing.assert_allclose(change(hue=1.0), pixel, rtol=1e-6)  # a full circle
    assert change(hue=0.3) @ (0.299, 0.587, 0.114) == pytest.approx(gray)  # brightness stays
    np.testing.assert_allclose(change(brightness=2, contrast=0), [2 * mean @ (0.299, 0.587, 0.114)] * 3)


def test_erasing_happens_as_often_as_asked_inside_the_image():
    config = InputConfig(image_size=50, random_erasing=0.25)
    boxes = AugmentParams(config, MANY).values[:, augment_params.columns(config)["random_erasing"]]
    assert boxes.min() >= 0 and boxes.max() <= 50
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 2500
    assert (area > 0).mean() == pytest.approx(0.25, abs=0.02)
    assert area[area > 0].min() > 0.01 and area.max() < 0.36


def test_every_operation_of_randaugment_comes_equally_often():
    config = InputConfig(randaugment_layers=2)
    layers = AugmentParams(config, MANY).values[:, augment_params.columns(config)["randaugment"]].reshape(-1, 27)
    kinds, counts = np.unique(layers, axis=0, return_counts=True)
    # Fourteen operations; nine have two signs.
    assert len(kinds) == 5 + 2 * 9
    assert (counts > 0.8 * len(layers) / 28).all() and (counts < 1.15 * len(layers) / 14).all()
    untouched = AugmentParams(InputConfig(randaugment_layers=1, randaugment_magnitude=0), MANY[:5000])
    rows = untouched.values[:, untouched.columns["randaugment"]]
    changed = (rows != augment_params.IDENTITY.astype(np.float32)).any(1)
    assert set(np.unique(rows[changed, 24])) == {
        augment_params.AUTOCONTRAST,
        augment_params.EQUALIZE,
        augment_params.SOLARIZE,
        augment_params.POSTERIZE,
    }


@pytest.mark.parametrize("alpha", [1e-6, 1e-3, 0.2, 1.0])
def test_mixing_shares_follow_the_beta_distribution(alpha):
    config = InputConfig(mixup=alpha)
    share = AugmentParams(config, MANY).values[:, augment_params.columns(config)["mix"]][::2, 0]
    assert share.mean() == pytest.approx(0.5, abs=0.02)
    assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)
    assert share.min() >= 0 and share.max() <= 1
    between = ((share > 0.01) & (share < 0.99)).mean()
    assert between == pytest.approx(np.diff(stats.beta.cdf([0.01, 0.99], alpha, alpha))[0], rel=0.05, abs=0.002)


def test_partners_share_their_numbers_and_cutmix_boxes_have_the_share_left_over():
    config = InputConfig(image_size=100, mixup=0.5, cutmix=1.0)
    mix = AugmentParams(config, MANY).values[:, augment_params.columns(config)["mix"]]
    np.testing.assert_array_equal(mix[::2], mix[1::2])
    cut = mix[:, 3] > mix[:, 1]
    assert cut.mean() == pytest.approx(0.5, abs=0.02)
    assert (mix[cut, 0] == 1).all()  # one or the other, not both
    assert mix[:, 1:].min() >= 0 and mix[:, 1:].max() <= 100
    kept = 1 - (mix[cut, 3] - mix[cut, 1]) * (mix[cut, 4] - mix[cut, 2]) / 10_000
    assert kept.mean() == pytest.approx(0.5, abs=0.02)
    assert kept.var() == pytest.approx(1 / 12, rel=0.06)
