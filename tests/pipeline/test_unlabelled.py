"""A split without labels: read with label -1 and weight 0, refused where labels are needed."""

import pytest

from shardline import pipeline
from shardline.pipeline.errors import UsageError
from shardline.pipeline.manifest import Manifest
from tests.tools.folders import Run, draw


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("unlabelled")
    for number, name in enumerate(("train/a/1", "train/a/2", "train/b/1", "train/b/2", "test/1", "test/2", "test/3")):
        draw(root / "s" / f"{name}.jpg", number)
    result = Run("shardline.tools.convert", f"--source={root}/s", f"--output={root}/d", "--unlabelled=test",
                 "--noreport", "--engine=inline", "--size=16")  # fmt: skip
    assert result.code == 0, result.stderr
    return root / "d"


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_evaluation_batches_have_label_minus_one_and_weight_zero(data, cache):
    dataset = pipeline.open_dataset(data)
    config = pipeline.InputConfig(global_batch_size=2, image_size=16, workers=0, cache=cache)
    for _ in range(2):
        batches = list(dataset.eval_batches("test", config).as_numpy_iterator())
        assert [batch["label"].tolist() for batch in batches] == [[-1, -1], [-1, 0]]  # the last is padding
        assert [batch["weight"].tolist() for batch in batches] == [[0, 0], [0, 0]]
        assert [batch["record"].tolist() for batch in batches] == [[0, 1], [2, -1]]
        assert all(batch["image"][0].any() for batch in batches)
    assert not dataset.bad_records
    assert {label for _, label, _ in dataset.records("test", range(3))} == {-1}


def test_training_on_it_is_refused(data):
    with pytest.raises(UsageError, match=r"split=test: this split was converted without labels.*: train$"):
        pipeline.open_dataset(data).train_batches("test", pipeline.InputConfig(global_batch_size=2, image_size=16))


def test_the_digest_tells_it_from_a_split_with_labels(data):
    manifest = Manifest.load(data)
    assert manifest.split("test").unlabelled and manifest.label_name(-1) == ""
    content = (data / "manifest.json").read_text()
    assert '"unlabelled": true' in content and content.count('unlabelled": true') == 1
