"""The engines: every task once, whatever dies on the way; and nothing left running."""

import os
import signal
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from shardline.pipeline import executors
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.ray_executor import Cluster


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


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("local", "Ray did not start on this machine: the node timed out; run the same command again, or take "
         "engine=processes, which needs no Ray"),
        ("auto", "Ray did not start (ray_address=auto): the node timed out; run the same command again, or look at "
         "the cluster with ray status"),
    ],
)  # fmt: skip
def test_ray_that_does_not_start_is_one_line_with_a_remedy(address, said, monkeypatch):
    def init(**options):
        raise Exception("the node timed out.\nand more")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False, init=init))
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", SimpleNamespace())
    with pytest.raises(Failure) as caught:
        list(executors.run(work, [Toy(0)], engine="ray", cluster=Cluster(address)))
    assert str(caught.value) == said


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


def wait_for_another(task, show):
    """Of task 2, the first attempt waits until somebody else has done it."""
    if task.number == 2 and first_time(task, 0):
        for _ in range(3000):
            time.sleep(0.1)
        raise Failure("nobody began it again")
    return task.number


@pytest.mark.ray
def test_a_task_that_takes_far_longer_than_others_is_begun_again_once(tmp_path):
    pytest.importorskip("ray")
    tasks = [Toy(number, str(tmp_path), ("",)) for number in range(5)]
    found = executors.run(wait_for_another, tasks, engine="ray", workers=2, image_timeout=0)
    assert sorted(found) == [0, 1, 2, 3, 4]


def wait_to_be_seen(task, show):
    """Goes on once the first of its two inputs is known to be done."""
    show(1)
    for _ in range(3000):
        if (Path(task.folder) / "seen").exists():
            return task.number
        time.sleep(0.1)
    raise Failure("nobody saw it")


@pytest.mark.ray
def test_progress_on_ray_is_told_input_by_input(tmp_path):
    pytest.importorskip("ray")
    told = []

    def on_progress(done):
        told.append(done)
        if sum(told) == 1:
            (tmp_path / "seen").touch()

    tasks = [Toy(0, str(tmp_path), ("", ""))]
    found = executors.run(wait_to_be_seen, tasks, engine="ray", workers=2, image_timeout=0, on_progress=on_progress)
    assert list(found) == [0] and sum(told) == 2


@pytest.mark.ray
def test_a_cluster_that_does_not_answer_is_one_line(monkeypatch):
    ray = pytest.importorskip("ray")
    ray.shutdown()
    with pytest.raises(
        Failure, match=r"ray_address=127\.0\.0\.1:9: no Ray cluster answers there \(Connection refused\)"
    ):
        list(executors.run(work, [Toy(0)], engine="ray", cluster=Cluster("127.0.0.1:9")))
    monkeypatch.setenv("RAY_ADDRESS", "ray://localhost:9")
    with pytest.raises(Failure, match=r"RAY_ADDRESS=ray://localhost:9: no Ray cluster answers there"):
        list(executors.run(work, [Toy(0)], engine="ray"))
    assert run([Toy(0)], engine="ray", workers=1, cluster=Cluster("local")) == [(0, [])]
