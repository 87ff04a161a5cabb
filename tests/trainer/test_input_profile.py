"""Costs of the input: since the last line, of each host, slowest first, and back from the file."""

import json

import pytest

from shardline import pipeline
from shardline.pipeline.errors import UsageError
from shardline.pipeline.profiling import StageTimes
from shardline.trainer.input_profile import (
    FILE_NAME,
    HostProfile,
    InputProfile,
    StageLaps,
    from_text,
    host_profile,
    slowest_first,
    to_text,
)
from shardline.trainer.synthetic import SyntheticDataset

CPU = {"read": 20.0, "decode": 300.0}


def times(share, read=20.0):
    return StageTimes(64, CPU | {"read": read}, cpu_microseconds=CPU, waiting_share=share)


def test_a_lap_has_the_costs_since_the_lap_before(tiny_data):
    data = pipeline.open_dataset(tiny_data)
    laps = StageLaps(data, "training")
    assert laps.lap() == {}
    timer = data._timers["training"]
    timer.add({"read": 0.004, "decode": 0.1}, {"read": 0.001, "decode": 0.1}, 10)
    assert laps.lap() == {"read": {"cpu": 100.0, "waiting": 300.0}, "decode": {"cpu": 10_000.0, "waiting": 0.0}}
    timer.add({"read": 0.03, "decode": 0.2}, {"read": 0.02, "decode": 0.21}, 100)
    assert laps.lap() == {"read": {"cpu": 200.0, "waiting": 100.0}, "decode": {"cpu": 2_100.0, "waiting": 0.0}}
    assert laps.lap() == {}


def test_synthetic_batches_have_no_stages():
    data = SyntheticDataset(("a", "b"), 8)
    assert StageLaps(data, "training").lap() == {} and not any(host_profile(data, 0, None, None).tables)


def test_the_host_that_waits_longest_for_its_input_comes_first():
    calm, slow, late = HostProfile(0, times(0.1)), HostProfile(1, times(0.4)), HostProfile(2, times(0.1, read=900.0))
    assert [profile.host for profile in slowest_first([calm, slow, late, HostProfile(3)])] == [1, 2, 0, 3]


def test_what_is_saved_is_loaded_and_what_a_host_tells_is_heard(tmp_path):
    profile = InputProfile(7, (HostProfile(1, times(0.4), times(None)), HostProfile(0)))
    profile.save(tmp_path)
    assert InputProfile.load(tmp_path) == profile
    assert [from_text(to_text(host)) for host in profile.hosts] == list(profile.hosts)
    stored = json.loads((tmp_path / FILE_NAME).read_text())["hosts"]
    assert stored[0]["training"]["bottleneck"] == "decode" and "training" not in stored[1]
    assert "input of host 1, training:" in str(profile) and "host" not in str(InputProfile(7, profile.hosts[1:]))


def test_a_damaged_file_is_refused_and_none_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        InputProfile.load(tmp_path)
    InputProfile(7, (HostProfile(0, times(0.4)),)).save(tmp_path)
    path = tmp_path / FILE_NAME
    path.write_text(path.read_text().replace("300.0", "30.0"))
    with pytest.raises(UsageError, match="checksum does not match"):
        InputProfile.load(tmp_path)
