"""What becomes of Ray's tasks when one of them fails: held against a stand-in, as Ray itself is an extra."""

import os
import socket
import sys
import threading
from importlib import metadata
from types import SimpleNamespace

import pytest

from shardline.pipeline import executors, ray_executor
from shardline.pipeline.errors import Failure
from shardline.pipeline.source_files import MachineFault


class Task:
    def __init__(self, number):
        self.number = number

    def __len__(self):
        return 1

    def describe(self, position):
        return str(self.number)


class Board:
    show = SimpleNamespace(remote=lambda number, count: None)


class Ray:
    """Tasks run when they are asked for; `cancelled` and `awaited` are what was done to the others."""

    class RayError(Exception):
        pass

    class TaskError(RayError):
        def __init__(self, cause):
            self.cause = cause

    exceptions = SimpleNamespace(RayTaskError=TaskError, RayError=RayError)

    util = SimpleNamespace(
        scheduling_strategies=SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: node)
    )

    def __init__(self):
        self.cancelled, self.awaited, self.placed, self.faults = [], [], [], {}

    def remote(self, **settings):
        def take(function):
            if isinstance(function, type):  # the board
                return SimpleNamespace(remote=Board)

            def options(scheduling_strategy):
                node = "node-0" if scheduling_strategy == "SPREAD" else scheduling_strategy
                return SimpleNamespace(remote=lambda *call: self.place(node, function, *call))

            return SimpleNamespace(options=options)

        return take

    def place(self, node, function, *call):
        if function is ray_executor.check_node:
            return node
        self.placed.append((call[1].number, node))
        return (node, function, *call)

    def nodes(self):
        alive = {"node-0": True, "node-1": True, "node-2": False, "node-3": True}
        return [{"NodeID": node, "Alive": is_alive, "Resources": {"CPU": 2}} for node, is_alive in alive.items()]

    def wait(self, references, num_returns, timeout):
        if timeout == ray_executor.PATIENCE_SECONDS:
            self.awaited += references
        return references[:num_returns], references[num_returns:]

    def get(self, reference, timeout=None):
        if isinstance(reference, str):  # a node's answer
            if isinstance(fault := self.faults.get(reference, ""), Exception):
                raise fault
            return fault
        node, function, run_one, task, board, number = reference
        self.get_runtime_context = lambda: SimpleNamespace(get_node_id=lambda: node)
        task.node = node
        try:
            return function(run_one, task, board, number)
        except Failure as error:
            raise self.TaskError(error) from None

    def cancel(self, reference, force):
        self.cancelled.append(reference[3].number)

    def kill(self, board):
        self.killed = board


@pytest.fixture
def ray(monkeypatch):
    found = Ray()
    monkeypatch.setattr(ray_executor, "connect", lambda address, workers: found)
    monkeypatch.setattr(executors, "_processes", executors._inline)  # which each task is done by
    monkeypatch.setitem(sys.modules, "ray", found)
    return found


def work(task, show):
    if task.number == 1 or (task.number == 7 and task.node != "node-1"):
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
    assert [node for number, node in ray.placed if number == 7] == ["node-0", "node-3", "node-1"]
    assert not ray.cancelled


def test_what_no_node_can_read_ends_the_run(ray):
    with pytest.raises(MachineFault, match="on node-1"):
        list(executors.run(work, map(Task, [1, 2]), engine="ray", workers=1))
    assert ray.placed == [(1, "node-0"), (1, "node-3"), (1, "node-1")]


def test_a_run_that_is_given_up_cancels_its_tasks(ray):
    results = executors.run(work, map(Task, [0, 2, 3, 4]), engine="ray", workers=2)
    next(results)
    results.close()
    assert ray.cancelled == [2, 3]


def test_a_whole_run_cancels_nothing(ray):
    assert list(executors.run(work, map(Task, [0, 2, 3]), engine="ray", workers=2)) == [0, 2, 3]
    assert not ray.cancelled


def test_a_node_that_cannot_do_the_work_gets_none_and_is_named(ray, capsys):
    ray.faults = {
        "node-0": "--source: /photos/1.jpg cannot be read there: No such file or directory",
        "node-1": Ray.RayError("ModuleNotFoundError: No module named 'shardline'"),
    }
    assert sorted(executors.run(work, map(Task, [0, 2, 3]), engine="ray")) == [0, 2, 3]
    assert {node for _, node in ray.placed} == {"node-3"}
    said = capsys.readouterr().err
    assert "node node-0 is left out: --source: /photos/1.jpg cannot be read there" in said
    assert f"node node-1 is left out: shardline {metadata.version('shardline')} is not installed there" in said
    ray.faults["node-3"] = "--output: /data cannot be written there: Permission denied; it has to be a shared folder"
    with pytest.raises(Failure, match=r"no node of the Ray cluster can do the work: node-0: .*cannot be read there"):
        list(executors.run(work, map(Task, [0]), engine="ray"))


def test_as_many_tasks_at_a_time_as_the_nodes_have_cpus(ray):
    results = executors.run(work, map(Task, [0, 2, 3, 4, 5, 6, 8, 10]), engine="ray", workers=0)
    next(results)
    assert len(ray.placed) == 7  # and the one after the first
    results.close()


def test_a_node_that_joins_while_tasks_end_quickly_gets_some(ray, monkeypatch):
    monkeypatch.setattr(ray_executor, "LOOK_SECONDS", 0.0)
    genuine, looks = ray.nodes, []

    def nodes():
        looks.append(1)
        return genuine()[:1] if len(looks) == 1 else genuine()

    monkeypatch.setattr(ray, "nodes", nodes)
    results = executors.run(work, map(Task, [0, 2, 3, 4, 5, 6, 8, 10]), engine="ray", workers=0)
    next(results)
    assert len(ray.placed) == 7  # not 3: the two that the first node has room for, and one more
    results.close()


def test_what_a_node_is_asked(tmp_path):
    version = metadata.version("shardline")
    (tmp_path / "x").touch()
    assert ray_executor.check_node(version, (str(tmp_path / "x"),), str(tmp_path)) == ""
    assert os.listdir(tmp_path) == ["x"]
    assert ray_executor.check_node("0.0.1", (), "") == f"shardline 0.0.1 is not installed there, but {version}"
    assert "cannot be read there: No such file" in ray_executor.check_node(version, (str(tmp_path / "y"),), "")
    assert "cannot be written there: No such file" in ray_executor.check_node(version, (), str(tmp_path / "y"))


@pytest.mark.parametrize(
    ("answer", "said"), [(None, "timed out"), (b"HTTP/1.1 400 Bad Request", "something else listens")]
)
def test_an_address_where_no_cluster_is(monkeypatch, answer, said):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", SimpleNamespace())
    monkeypatch.setattr(ray_executor, "CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            if answer:
                connection.sendall(answer)
            connection.recv(100)
            done.wait(60)

        done = threading.Event()
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(Failure, match=rf"ray_address=127.*: no Ray cluster answers there \({said}\)"):
            ray_executor.connect(f"127.0.0.1:{server.getsockname()[1]}")
        done.set()
        thread.join()
