"""The commands as Python functions: any of them, twice in one process, with errors that name fields."""

import json

import pytest

from shardline.pipeline.errors import UsageError
from shardline.pipeline.manifest import Manifest
from shardline.tools.adopt import AdoptConfig, adopt
from shardline.tools.convert import ConvertConfig, convert
from shardline.tools.inspect import InspectConfig, inspect
from shardline.tools.sample_data import SampleDataConfig, sample_data
from shardline.tools.verify import VerifyConfig, verify


def test_all_of_them_twice_in_one_process(tmp_path):
    digests = []
    for number in "12":
        images, data = tmp_path / f"images{number}", tmp_path / f"data{number}"
        assert sample_data(SampleDataConfig(output=images, classes=2, images_per_class=2)) == (8, 4)
        config = ConvertConfig(source=images, output=data, name="two", size=16, engine="inline", report=False)
        digests.append(convert(config).digest)
        result = verify(VerifyConfig(data=data, workers=1))
        assert (result.shards, result.records, result.checked, result.faults) == (1, 7, 7, ())
        assert "7 records in 1 shard," in inspect(InspectConfig(data=data))
        adopted = adopt(AdoptConfig(data=data, workers=1, overwrite=True))
        assert adopted.splits == Manifest.load(data).splits
        assert json.loads((data / "manifest.json").read_text())["options"] == {"adopted": True}
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: verify(VerifyConfig(data=d, sample=0)), r"^sample=0: use a number above 0, at most 1$"),
        (lambda d: verify(VerifyConfig()), r"^data is missing: name a dataset directory$"),
        (lambda d: verify(VerifyConfig(data=d)), r"^data=\S+: no manifest.json there"),
        (lambda d: inspect(InspectConfig(data=d, augmented=True)), r"^augmented draws a grid: give save=FILE.png"),
        (lambda d: adopt(AdoptConfig(data=d)), r"^data=\S+: no TFRecord files by name .* split_pattern tells"),
        (lambda d: sample_data(SampleDataConfig(output=d / "x", classes=1)), r"^classes=1: use a whole number from 2"),
        (lambda d: convert(ConvertConfig(source=d / "x", output=d / "y")), r"^source=\S+: no such folder or table"),
    ],
)
def test_messages_name_fields_when_called_from_python(tmp_path, call, message):
    with pytest.raises(UsageError, match=message):
        call(tmp_path)
