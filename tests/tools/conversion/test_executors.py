"""The engines: every task once, whatever dies on the way; and nothing left running."""

import os
import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest

from shardline.pipeline.errors import Failure, UsageError
from shardline.tools.conversion import executors


@dataclass(frozen=True)
class Toy:
    """A task whose work is to follow instructions."""

    number: int
    folder: str = ""
    does: tuple[str, ...] = ("", "", "")
    left_out: frozenset = field(default_factory=frozenset)

    def __len__(self):
        return len(self.does)

    def without(self, position):
        return replace(self, left_out=self.left_out | {position})

    def describe(self, position):
        return f"toy{self.number}[{position}]"


def work(task, show):
    """Module-level, so that a spawned process can import it."""
    for position, what in enumerate(task.does):
        show(position)
        if position in task.left_out:
            continue
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if what == "die once" and first_time(task, position):
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "fail":
            raise Failure("as asked")
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
    assert run([Toy(0), Toy(1, does=("", "crash", "")), Toy(2)], workers=1) == [(0, []), (1, [1]), (2, [])]


def test_a_worker_killed_again_and_again_ends_the_run_with_the_input():
    with pytest.raises(Failure, match=r"killed by signal 9 2 times over one shard, last while it read toy5\[2\]"):
        run([Toy(5, does=("", "", "die"))], workers=1)


@pytest.mark.parametrize(
    ("does", "error", "message"), [("fail", Failure, "as asked"), ("bug", RuntimeError, "ZeroDivision")]
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
    ("does", "message"), [("fail", "as asked"), ("crash", r"lost the shard of toy1\[0\] 4 times .*--engine=processes")]
)
def test_errors_on_ray_end_the_run(does, message):
    pytest.importorskip("ray")
    with pytest.raises(Failure, match=message):
        run([Toy(0), Toy(1, does=("", does))], engine="ray", workers=2)
