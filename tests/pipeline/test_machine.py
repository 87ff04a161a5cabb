"""Cores and memory that this process may use, of control groups as version 1 and version 2 lay them out."""

import os
import subprocess
import sys

import numpy as np
import psutil
import pytest

from shardline.pipeline.machine import available_cores, available_memory, cpu_quota, memory_limit, peak_memory

GB = 1 << 30


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Eight cores and 64 GB, 48 of them free."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    memory = psutil.virtual_memory()._replace(total=64 * GB, available=48 * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def groups(folder, own, **files):
    """A tree of control groups: {"path/file": content}; returns what the functions take."""
    (folder / "own").write_text(own)
    for name, content in files.items():
        path = folder / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return folder / "root", folder / "own"


def v2(folder, own="0::/\n", **files):
    return groups(folder, own, **{name.replace("__", "/").replace("_", "."): text for name, text in files.items()})


@pytest.mark.parametrize(
    ("content", "quota", "cores"),
    [
        ("150000 100000", 1.5, 2),
        ("10000 100000", 0.1, 1),
        ("max 100000", None, 8),
        ("1600000 100000", 16.0, 8),  # more than there are
        ("", None, 8),
        ("nonsense", None, 8),
    ],
)
def test_quota_of_version_2(tmp_path, content, quota, cores):
    where = v2(tmp_path, cpu_max=content)
    assert cpu_quota(*where) == quota
    assert available_cores(*where) == cores


@pytest.mark.parametrize(
    ("quota_us", "quota", "cores"), [("150000", 1.5, 2), ("-1", None, 8), ("50000", 0.5, 1), ("0", None, 8)]
)
@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_quota_of_version_1(tmp_path, mount, quota_us, quota, cores):
    files = {f"{mount}/pod/cpu.cfs_quota_us": quota_us, f"{mount}/pod/cpu.cfs_period_us": "100000"}
    where = groups(tmp_path, "5:memory:/pod\n4:cpu,cpuacct:/pod\n", **files)
    assert cpu_quota(*where) == quota
    assert available_cores(*where) == cores


def test_the_tightest_of_nested_groups_counts(tmp_path):
    where = v2(
        tmp_path,
        "0::/pod/container\n",
        pod__container__cpu_max="500000 100000",
        pod__cpu_max="300000 100000",
        cpu_max="max 100000",
        pod__container__memory_max=f"{9 * GB}",
        pod__container__memory_current=f"{GB}",
        pod__memory_max=f"{6 * GB}",
        pod__memory_current=f"{2 * GB}",
    )
    assert available_cores(*where) == 3
    assert memory_limit(*where) == 6 * GB
    assert available_memory(*where) == 4 * GB


def test_a_path_of_the_host_s_does_not_hide_the_container_s_own_limit(tmp_path):
    # Seen from inside, the group is mounted at the root, while /proc/self/cgroup still has the host's path.
    where = v2(tmp_path, "0::/kubepods/pod1/abc\n", cpu_max="200000 100000", memory_max=f"{GB}", memory_current="0")
    assert available_cores(*where) == 2
    assert memory_limit(*where) == GB


def test_memory_of_version_2(tmp_path):
    where = v2(tmp_path, memory_max=f"{4 * GB}", memory_current=f"{3 * GB}")
    assert (memory_limit(*where), available_memory(*where)) == (4 * GB, GB)


def test_memory_of_version_1(tmp_path):
    files = {"memory/pod/memory.limit_in_bytes": 4 * GB, "memory/pod/memory.usage_in_bytes": 3 * GB}
    where = groups(tmp_path, "5:memory:/pod\n", **files)
    assert (memory_limit(*where), available_memory(*where)) == (4 * GB, GB)


@pytest.mark.parametrize("version", [1, 2])
def test_files_that_were_read_do_not_count_as_used(tmp_path, version):
    if version == 1:
        files = {"memory.limit_in_bytes": 4 * GB, "memory.usage_in_bytes": 4 * GB}
        stat = f"cache {3 * GB}\ninactive_file 7\ntotal_inactive_file {3 * GB}"
        where = groups(
            tmp_path, "5:memory:/\n", **{f"memory/{n}": c for n, c in (files | {"memory.stat": stat}).items()}
        )
    else:
        where = v2(tmp_path, memory_max=4 * GB, memory_current=4 * GB, memory_stat=f"anon 5\ninactive_file {3 * GB}")
    assert available_memory(*where) == 3 * GB


def test_an_overdrawn_group_leaves_nothing(tmp_path):
    assert available_memory(*v2(tmp_path, memory_max=f"{GB}", memory_current=f"{2 * GB}")) == 0


@pytest.mark.parametrize("limit", ["max", str(2**63 - 4096)])
def test_no_limit_leaves_what_the_machine_has(tmp_path, limit):
    where = v2(tmp_path, memory_max=limit, memory_current="5")
    assert (memory_limit(*where), available_memory(*where)) == (64 * GB, 48 * GB)


def test_without_control_groups_the_machine_counts(tmp_path):
    nowhere = tmp_path / "no", tmp_path / "none"
    assert cpu_quota(*nowhere) is None
    assert (available_cores(*nowhere), memory_limit(*nowhere), available_memory(*nowhere)) == (8, 64 * GB, 48 * GB)


def test_affinity_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3})
    assert available_cores(*v2(tmp_path, cpu_max="400000 100000")) == 1


def test_this_machine():
    assert 1 <= available_cores() <= 8
    assert 0 < available_memory() <= memory_limit() <= 64 * GB


def test_peak_memory_is_this_program_s_own_whatever_started_it():
    """getrusage's maximum begins at the peak of the process that called exec(2), as a shell or a test does."""
    held = np.ones(200 << 20, np.uint8)
    code = "from shardline.pipeline.machine import peak_memory; print(peak_memory())"
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 2**22 < child < held.nbytes < peak_memory()
    del held
    assert peak_memory() > 200 << 20
