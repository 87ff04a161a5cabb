"""What becomes of Ray's tasks when one of them fails: held against a stand-in, as Ray itself is an extra."""

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

    def __init__(self):
        self.cancelled, self.awaited, self.settings = [], [], {}

    def remote(self, **settings):
        self.settings = settings
        return lambda function: SimpleNamespace(remote=lambda work, task: (function, work, task))

    def wait(self, references, num_returns, timeout=None):
        if timeout:
            self.awaited += references
        return references[:num_returns], references[num_returns:]

    def get(self, reference):
        function, work, task = reference
        try:
            return function(work, task)
        except Failure as error:
            raise self.TaskError(error) from None

    def cancel(self, reference, force):
        self.cancelled.append(reference[2].number)


@pytest.fixture
def ray(monkeypatch):
    found = Ray()
    monkeypatch.setattr(executors, "_start_ray", lambda workers: found)
    return found


def work(task, on_progress):
    if task.number == 1:
        raise MachineFault("x.jpg cannot be read on node-7: Stale file handle")
    return task.number


def test_after_an_error_all_other_tasks_are_cancelled_and_awaited(ray):
    results = executors.run(work, map(Task, range(6)), engine="ray", workers=3)
    assert next(results) == 0
    with pytest.raises(MachineFault, match="on node-7"):
        next(results)
    assert ray.cancelled == [2, 3, 4] and len(ray.awaited) == 3
    assert ray.settings["retry_exceptions"] == [MachineFault]  # on another machine first


def test_a_run_that_is_given_up_cancels_its_tasks(ray):
    results = executors.run(work, map(Task, [0, 2, 3, 4]), engine="ray", workers=2)
    next(results)
    results.close()
    assert ray.cancelled == [2, 3]


def test_a_whole_run_cancels_nothing(ray):
    assert list(executors.run(work, map(Task, [0, 2, 3]), engine="ray", workers=2)) == [0, 2, 3]
    assert not ray.cancelled
