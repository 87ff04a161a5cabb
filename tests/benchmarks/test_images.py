"""Photographs are found among other files and taken evenly; twelve megapixels are twelve megapixels."""

import cv2
import pytest

from shardline.benchmarks.images import evenly_spaced, find_images, twelve_megapixels
from shardline.pipeline.errors import UsageError
from tests.tools.folders import class_folders


def test_evenly_spaced_numbers_hold_the_first_and_the_last():
    assert evenly_spaced(10, 4) == [0, 3, 6, 9]
    assert evenly_spaced(3, 64) == [0, 1, 2]
    assert evenly_spaced(0, 64) == []


def test_only_images_are_found_and_a_folder_without_any_is_refused(tmp_path):
    class_folders(tmp_path / "photos", classes=2, images=4)
    (tmp_path / "photos" / "class0" / "notes.txt").write_text("no image")
    found = find_images(tmp_path / "photos")
    assert len(found) == 8 and found == sorted(found)
    assert find_images(tmp_path / "photos", 3) == [found[0], found[-1]]  # of three files, one is no image
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"raw_images=.*: no image found in it"):
        find_images(tmp_path / "empty")


def test_a_camera_image_is_a_mosaic_of_4000_by_3000(tmp_path):
    photos = find_images(class_folders(tmp_path / "photos", classes=1, images=2))
    (made,) = twelve_megapixels(tmp_path / "camera", photos, 1)
    assert cv2.imread(str(made)).shape == (3000, 4000, 3)
