"""Counters of a made-up proc file system become shares of the time between two looks."""

import os
from dataclasses import astuple

import pytest

from shardline.benchmarks import strain


def test_counters_become_shares(tmp_path, monkeypatch):
    stopped, clock = iter((1.0, 2.5)), iter((100.0, 110.0))
    monkeypatch.setattr(strain, "throttled_seconds", lambda: next(stopped))
    cpus = sorted(os.sched_getaffinity(0))
    ticks = os.sysconf("SC_CLK_TCK")

    def write(pressure, stolen):
        (tmp_path / "pressure").mkdir(exist_ok=True)
        (tmp_path / "pressure" / "cpu").write_text(
            f"some avg10=9.0 avg60=9.0 avg300=9.0 total={pressure}\nfull total=0\n"
        )
        lines = [f"cpu{cpu} 1 2 3 4 5 6 7 {stolen} 9 10" for cpu in (*cpus, max(cpus) + 1)]
        (tmp_path / "stat").write_text("\n".join(["cpu  1 2 3 4 5 6 7 999999 9 10", *lines]))

    write(2_000_000, 0)
    end = strain.watch(tmp_path, lambda: next(clock))
    write(7_000_000, 2 * ticks)
    assert astuple(end()) == pytest.approx((0.5, 0.2, 0.15))


def test_a_kernel_that_tells_nothing_gives_zeros(tmp_path, monkeypatch):
    monkeypatch.setattr(strain, "throttled_seconds", lambda: 0.0)
    assert strain.watch(tmp_path)() == strain.Strain()
