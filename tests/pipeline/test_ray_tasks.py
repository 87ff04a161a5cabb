"""What becomes of Ray's tasks when one of them fails: held against a stand-in, as Ray itself is an extra."""

import sys
from types import SimpleNamespace

import pytest

from shardline.pipeline import executors
from shardline.pipeline.errors import Failure
from shardline.pipeline.source_files import MachineFault


class Task:
    def __init__(self, number):
        self.number = number

    def __len__(self):
        return 1

    def describe(self, position):
        return str(self.number)


class Ray:
    """Tasks run when they are asked for; `cancelled` and `awaited` are what was done to the others."""

    class TaskError(Exception):
        def __init__(self, cause):
            self.cause = cause

    exceptions = SimpleNamespace(RayTaskError=TaskError, RayError=type("RayError", (Exception,), {}))

    util = SimpleNamespace(
        scheduling_strategies=SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: node)
    )

    def __init__(self):
        self.cancelled, self.awaited, self.placed = [], [], []

    def remote(self, **settings):
        def options(scheduling_strategy):
            node = "node-0" if scheduling_strategy == "SPREAD" else scheduling_strategy
            return SimpleNamespace(remote=lambda *call: self.place(node, function, *call))

        def take(given):
            nonlocal function
            function = given
            return SimpleNamespace(options=options)

        function = None
        return take

    def place(self, node, *call):
        self.placed.append((call[2].number, node))
        return (node, *call)

    def nodes(self):
        alive = {"node-0": True, "node-1": True, "node-2": False, "node-3": True}
        return [{"NodeID": node, "Alive": is_alive, "Resources": {"CPU": 2}} for node, is_alive in alive.items()]

    def wait(self, references, num_returns, timeout=None):
        if timeout:
            self.awaited += references
        return references[:num_returns], references[num_returns:]

    def get(self, reference):
        node, function, work, task, image_timeout = reference
        self.get_runtime_context = lambda: SimpleNamespace(get_node_id=lambda: node)
        task.node = node
        try:
            return function(work, task, image_timeout)
        except Failure as error:
            raise self.TaskError(error) from None

    def cancel(self, reference, force):
        self.cancelled.append(reference[3].number)


@pytest.fixture
def ray(monkeypatch):
    found = Ray()
    monkeypatch.setattr(executors, "_start_ray", lambda workers: found)
    monkeypatch.setattr(executors, "_processes", executors._inline)  # which each task is done by
    monkeypatch.setitem(sys.modules, "ray", found)
    return found


def work(task, show):
    if task.number == 1 or (task.number == 7 and task.node != "node-3"):
        raise MachineFault(f"x.jpg cannot be read on {task.node}: Stale file handle")
    if task.number == 9:
        raise Failure("it broke")
    return task.number


def test_after_an_error_all_other_tasks_are_cancelled_and_awaited(ray):
    results = executors.run(work, map(Task, [0, 9, 2, 3, 4]), engine="ray", workers=3)
    assert next(results) == 0
    with pytest.raises(Failure, match="it broke"):
        next(results)
    assert ray.cancelled == [2, 3] and len(ray.awaited) == 2


def test_what_one_node_cannot_read_is_tried_on_each_other_one_that_lives(ray):
    assert sorted(executors.run(work, map(Task, [0, 7, 2]), engine="ray", workers=2)) == [0, 2, 7]
    assert [node for number, node in ray.placed if number == 7] == ["node-0", "node-1", "node-3"]
    assert not ray.cancelled


def test_what_no_node_can_read_ends_the_run(ray):
    with pytest.raises(MachineFault, match="on node-3"):
        list(executors.run(work, map(Task, [1, 2]), engine="ray", workers=1))
    assert ray.placed == [(1, "node-0"), (1, "node-1"), (1, "node-3")]


def test_a_run_that_is_given_up_cancels_its_tasks(ray):
    results = executors.run(work, map(Task, [0, 2, 3, 4]), engine="ray", workers=2)
    next(results)
    results.close()
    assert ray.cancelled == [2, 3]


def test_a_whole_run_cancels_nothing(ray):
    assert list(executors.run(work, map(Task, [0, 2, 3]), engine="ray", workers=2)) == [0, 2, 3]
    assert not ray.cancelled
