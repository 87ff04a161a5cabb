"""The engines: every task once, whatever dies on the way; and nothing left running."""

import os
import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest

from shardline.pipeline import executors
from shardline.pipeline.errors import Failure, UsageError


@dataclass(frozen=True)
class Toy:
    """A task whose work is to follow instructions."""

    number: int
    folder: str = ""
    does: tuple[str, ...] = ("", "", "")
    left_out: frozenset = field(default_factory=frozenset)

    def __len__(self):
        return len(self.does)

    def without(self, position, reason):
        return replace(self, left_out=self.left_out | {(position, reason)})

    def describe(self, position):
        return f"toy{self.number}[{position}]"


def work(task, show):
    """Module-level, so that a spawned process can import it."""
    for position, what in enumerate(task.does):
        show(position)
        if position in dict(task.left_out):
            continue
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if what == "die once" and first_time(task, position):
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "read":
            time.sleep(1.5)
        if what in ("hang", "hang once") and (what == "hang" or first_time(task, position)):
            show(position, decoding=True)
            time.sleep(60)
        if what == "fail":
            raise Failure("as asked")
        if what == "memory":
            raise MemoryError
        if what == "bug":
            raise ZeroDivisionError
        if what == "sleep":
            (Path(task.folder) / f"pid{os.getpid()}").touch()
            time.sleep(60)
    return task.number, sorted(task.left_out)


def first_time(task, position):
    mark = Path(task.folder) / f"{task.number}-{position}"
    seen = mark.exists()
    mark.touch()
    return not seen


def run(tasks, **options):
    return sorted(executors.run(work, tasks, **options))


@pytest.mark.parametrize("engine", ["inline", "processes"])
def test_every_task_once_and_every_position_reported(engine):
    worked = []
    assert run([Toy(n) for n in range(7)], engine=engine, workers=2, on_progress=worked.append) == [
        (n, []) for n in range(7)
    ]
    assert sum(worked) == 21


def test_a_killed_worker_costs_one_task_which_is_run_again(tmp_path):
    tasks = [Toy(n, str(tmp_path), ("", "die once" if n == 1 else "", "")) for n in range(4)]
    worked = []
    assert run(tasks, workers=2, on_progress=worked.append) == [(n, []) for n in range(4)]
    assert sum(worked) == 12


def test_an_input_that_crashes_the_decoder_is_left_out_and_named():
    tasks = [Toy(0), Toy(1, does=("", "crash", "")), Toy(2)]
    assert run(tasks, workers=1) == [(0, []), (1, [(1, "crashes-decoder")]), (2, [])]


def test_an_input_whose_decoder_hangs_twice_is_left_out_and_named(tmp_path):
    tasks = [Toy(0, does=("", "hang", "")), Toy(1, str(tmp_path), ("hang once", "", "")), Toy(2)]
    found = run(tasks, workers=2, image_timeout=0.3)
    assert found == [(0, [(1, "decoder-timeout")]), (1, []), (2, [])]


def test_reading_is_not_timed(tmp_path):
    """A server that answers late says nothing about the image."""
    tasks = [Toy(0, str(tmp_path), ("read", "")), Toy(1, does=("hang",))]
    assert run(tasks, workers=2, image_timeout=0.3) == [(0, []), (1, [(0, "decoder-timeout")])]


def test_a_worker_killed_again_and_again_ends_the_run_with_the_input():
    with pytest.raises(Failure, match=r"killed by signal 9 2 times over one shard, last while it read toy5\[2\]"):
        run([Toy(5, does=("", "", "die"))], workers=1)


@pytest.mark.parametrize(
    ("does", "error", "message"),
    [
        ("fail", Failure, "as asked"),
        ("bug", RuntimeError, "ZeroDivision"),
        ("memory", Failure, r"out of memory at toy1\[1\]; use fewer workers"),
    ],
)
def test_errors_in_a_worker_end_the_run_and_every_worker(tmp_path, does, error, message):
    tasks = [Toy(0, str(tmp_path), ("sleep",)), Toy(1, str(tmp_path), ("", does))]
    with pytest.raises(error, match=message):
        run(tasks, workers=2)
    assert not [p for p in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]


def test_wrong_settings_are_refused():
    with pytest.raises(UsageError, match=r"^workers=0"):
        run([], workers=0)
    with pytest.raises(UsageError, match=r"^engine=threads"):
        run([], engine="threads")


@pytest.mark.ray
def test_ray_runs_every_task_once():
    pytest.importorskip("ray")
    assert run([Toy(n) for n in range(5)], engine="ray", workers=2) == [(n, []) for n in range(5)]


@pytest.mark.ray
@pytest.mark.parametrize(
    ("does", "message"),
    [("fail", "as asked"), ("die", r"killed by signal 9 2 times .* toy1\[1\]"), ("memory", "out of memory at toy1")],
)
def test_errors_on_ray_end_the_run(does, message):
    pytest.importorskip("ray")
    with pytest.raises(Failure, match=message):
        run([Toy(0), Toy(1, does=("", does))], engine="ray", workers=2)


@pytest.mark.ray
def test_a_decoder_that_crashes_or_hangs_on_ray_costs_one_input():
    pytest.importorskip("ray")
    tasks = [Toy(0, does=("", "crash", "")), Toy(1, does=("hang", "")), Toy(2)]
    found = run(tasks, engine="ray", workers=2, image_timeout=0.5)
    assert found == [(0, [(1, "crashes-decoder")]), (1, [(0, "decoder-timeout")]), (2, [])]
