"""Workers answer or leave their last words; commands in slices never run at the same time."""

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from shardline.benchmarks import processes
from shardline.benchmarks.processes import (
    ProcessError,
    Rate,
    WorkerProcess,
    missing_packages,
    outsiders,
    repeat_for,
    run_time_sliced,
    timed,
)
from tests.tools.folders import ROOT

HERE = {"PYTHONPATH": str(ROOT)}  # where a worker finds this file


def doubler(offset):
    print("what libraries print does not disturb the answers")
    return lambda number: Rate(2 * number + offset, 0.25)


def cores():
    return lambda: Rate(len(os.sched_getaffinity(0)), min(os.sched_getaffinity(0)))


def burn(seconds):
    def work():
        until = time.thread_time() + seconds
        while time.thread_time() < until:
            pass
        return 1

    return work


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this kernel does not tell")
def test_a_thread_that_must_share_a_core_was_ready_for_it():
    """Two programs on one core, and half of its time for each; the other one's CPU time is not ours."""
    core = {min(os.sched_getaffinity(0))}
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, core)
    try:
        with outsiders(2, burn(60.0)):
            shared = timed(burn(0.2))
    finally:
        os.sched_setaffinity(0, before)
    assert shared.delay_seconds > 0.1 and shared.cpu_seconds == pytest.approx(0.2, rel=0.25)
    assert shared.delay_seconds + shared.cpu_seconds == pytest.approx(1 / shared.rate, rel=0.25)


@pytest.mark.parametrize(
    "children, delay, others, counted",
    [
        (0.0, 0.5, 0.1, 0.1),  # ours waited for each other as well
        (0.0, 0.2, 0.9, 0.2),
        (0.0, 0.5, -0.01, 0.0),
        (2.0, 0.2, 0.9, 0.03),  # children worked: their delay
    ],
)
def test_a_delay_counts_as_far_as_others_had_the_cpus(monkeypatch, children, delay, others, counted):
    now = {"delay": (3.0, 1.0), "busy": 40.0, "children": 5.0, "cpu": 7.0}
    monkeypatch.setattr(processes, "run_delay_seconds", lambda: now["delay"])
    monkeypatch.setattr(processes, "cpus_busy_seconds", lambda: now["busy"])
    monkeypatch.setattr(processes, "children_cpu_seconds", lambda: now["children"])
    monkeypatch.setattr(processes.time, "process_time", lambda: now["cpu"])

    def work():
        now["delay"], now["children"], now["cpu"] = (3.0 + delay, 1.03), 5.0 + children, 7.0 + 1.5
        now["busy"] = 40.0 + 1.5 + children + others
        return 1

    found = timed(work)
    assert (found.cpu_seconds, found.delay_seconds) == (pytest.approx(1.5 + children), pytest.approx(counted))


def test_outsiders_end_with_the_context(tmp_path):
    def tell():
        (tmp_path / str(os.getpid())).touch()
        time.sleep(60)

    with outsiders(2, tell):
        deadline = time.monotonic() + 10
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        started = [int(path.name) for path in tmp_path.iterdir()]
        assert len(started) == 2 and not set(started) & set(processes._children())
    while any(alive(pid) for pid in started) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(alive(pid) for pid in started)


def alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def failing():
    raise SystemExit("no such loader")


def failing_later():
    def work():
        raise ValueError("out of images")

    return work


def test_a_worker_calls_what_it_made_whenever_it_is_told_to():
    with WorkerProcess(partial(doubler, 1), environment=HERE) as worker:
        assert worker(10) == Rate(21, 0.25) and worker(20) == Rate(41, 0.25)
        worker.start(30)
        assert worker.result() == Rate(61, 0.25)


def test_a_stopped_worker_rests_between_its_calls_and_ends():
    with WorkerProcess(partial(doubler, 1), environment=HERE, stopped=True) as worker:
        for number in range(3):
            assert worker(number) == Rate(2 * number + 1, 0.25)
            stat = Path(f"/proc/{worker._process.pid}/stat")
            while (state := stat.read_text().rpartition(")")[2].split()[0]) != "T":
                assert state in "RSD"  # the signal is on its way
    assert worker._process.returncode is not None


def test_a_worker_is_pinned():
    last = max(os.sched_getaffinity(0))
    with WorkerProcess(cores, cores=[last], environment=HERE) as worker:
        assert worker() == Rate(1, last)


@pytest.mark.parametrize(
    ("make", "message"), [(failing, "no such loader"), (failing_later, "ValueError: out of images")]
)
def test_a_worker_that_ends_leaves_its_last_words(make, message):
    with WorkerProcess(make, environment=HERE) as worker, pytest.raises(ProcessError, match=f"code 1: {message}"):
        worker()


def test_workers_end_with_the_process_that_started_them(tmp_path):
    code = (
        "import os, time\n"
        "from shardline.benchmarks.processes import WorkerProcess\n"
        "from tests.benchmarks.test_processes import cores\n"
        "worker = WorkerProcess(cores).wait_until_ready()\n"
        "print(worker._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **HERE})
    for _ in range(100):
        try:
            state = Path(f"/proc/{int(done.stdout)}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the worker lives on")


def test_another_python_needs_nothing_of_ours(tmp_path):
    # The same interpreter under another name, without site-packages: no shardline, no NumPy, no psutil.
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    (tmp_path / "python").chmod(0o755)
    from shardline.benchmarks.baselines import input as loaders

    make = partial(loaders.loader, "nothing", "", 1, 1, 1)
    other = WorkerProcess(make, python=str(tmp_path / "python"))
    with other, pytest.raises(ProcessError, match="KeyError: 'nothing'"):  # it got as far as our function
        other.wait_until_ready()
    assert missing_packages(str(tmp_path / "python"), ["numpy", "json", "no.such"]) == ["numpy", "no.such"]
    assert missing_packages(sys.executable, ["numpy", "json"]) == []


def test_a_busy_core_counts_as_one():
    def spin():
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
        return 10

    rate, cpu_seconds, *_ = timed(spin)
    assert cpu_seconds == pytest.approx(0.005, rel=0.1)
    assert 0 < rate * cpu_seconds <= 1.1  # busy cores


def test_work_is_done_at_least_once_and_counted():
    assert repeat_for(0, lambda: 3) == 3
    assert timed(lambda: 0) == Rate(0, 0)


BUSY = """
import sys, time
with open(sys.argv[1], "w") as file:
    while time.process_time() < 0.5:
        print(time.monotonic(), file=file)
        time.sleep(0.002)
        sum(range(100_000))
"""


def test_commands_in_slices_never_run_at_the_same_time(tmp_path):
    cores = sorted(os.sched_getaffinity(0))
    commands = {name: ([sys.executable, "-c", BUSY, str(tmp_path / name)], cores) for name in ("a", "b")}
    spent = run_time_sliced(commands, 0.1)
    assert all(0.4 < cpu <= wall + 0.1 for wall, cpu in spent.values())
    ticks = sorted((float(tick), name) for name in commands for tick in (tmp_path / name).read_text().split())
    turns = [name for (_, name), (_, before) in zip(ticks[1:], ticks, strict=False) if name != before]
    assert 4 <= len(turns) <= 2 * max(wall for wall, _ in spent.values()) / 0.1 + 2


def test_a_command_that_fails_in_slices_says_why_and_takes_the_others_along(tmp_path):
    own = tmp_path / "pid"
    forever = f"import os, time; open({str(own)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    broken = "import time; time.sleep(1); raise SystemExit('no disk')"
    cores = sorted(os.sched_getaffinity(0))
    commands = {name: ([sys.executable, "-c", code], cores) for name, code in [("1", forever), ("2", broken)]}
    with pytest.raises(ProcessError, match="no disk"):
        run_time_sliced(commands, 0.3)
    with pytest.raises(ProcessLookupError):
        os.kill(int(own.read_text()), 0)
