"""The commands as Python functions: any of them, twice in one process, with errors that name fields."""

import json
import subprocess
import sys

import pytest

from shardline.pipeline.errors import UsageError
from shardline.pipeline.manifest import Manifest
from shardline.tools.adopt import AdoptConfig, adopt
from shardline.tools.convert import ConvertConfig, convert, estimate
from shardline.tools.inspect import InspectConfig, inspect
from shardline.tools.sample_data import SampleDataConfig, sample_data
from shardline.tools.verify import VerifyConfig, verify
from tests.tools.folders import class_folders


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


def test_an_estimate_is_no_conversion(tmp_path):
    config = ConvertConfig(source=class_folders(tmp_path / "s", 2, 5), output=tmp_path / "d", size=16, dry_run=True)
    told = estimate(config)
    assert (told.inputs, told.sampled, told.bad_fraction) == (10, 10, 0)
    with pytest.raises(UsageError, match=r"^dry_run writes nothing"):
        convert(config)
    assert not (tmp_path / "d").exists()


def test_a_script_without_a_main_guard_can_convert(tmp_path):
    """Workers must not run the caller's script again."""
    class_folders(tmp_path / "s", 2, 5)
    (tmp_path / "script.py").write_text(
        "from shardline.tools.convert import ConvertConfig, convert\n"
        "open('runs', 'a').write('x')\n"
        "print(convert(ConvertConfig(source='s', output='d', size=16, workers=2, report=False)).ledger)\n"
    )
    result = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1].startswith("10 inputs = 10 written"), result.stderr
    assert (tmp_path / "runs").read_text() == "x"


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


@pytest.mark.parametrize("command", ["verify", pytest.param("adopt", marks=pytest.mark.slow)])
def test_a_command_run_as_a_module_has_worker_processes_too(tmp_path, command):
    """What is defined in `__main__` is unknown to them."""
    convert(ConvertConfig(source=class_folders(tmp_path / "s", 2, 2), output=tmp_path / "d", engine="inline", size=16))
    flags = ["--overwrite"] if command == "adopt" else []
    command_line = [sys.executable, "-m", f"shardline.tools.{command}", tmp_path / "d", "--workers=2", *flags]
    done = subprocess.run(command_line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
