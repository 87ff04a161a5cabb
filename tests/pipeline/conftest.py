"""The dataset that most reading tests share."""

import pytest

from tests.pipeline.tiny import payloads, write_dataset


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """37 training and 11 test images: numbers that divide by nothing."""
    return write_dataset(tmp_path_factory.mktemp("tiny"), {"train": payloads(37), "test": payloads(11)})
