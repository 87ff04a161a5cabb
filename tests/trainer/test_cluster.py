"""Which host a process is, from TF_CONFIG alone."""

import json

import pytest

from shardline.pipeline.errors import UsageError
from shardline.trainer.cluster import Hosts, read_hosts


def tf_config(monkeypatch, cluster, kind="worker", index=0):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}}))


def test_without_it_a_process_is_alone(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert read_hosts() == Hosts(("",), 0)


@pytest.mark.parametrize("kind, index, own", [("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)])
def test_the_chief_is_host_0_and_workers_follow(monkeypatch, kind, index, own):
    tf_config(monkeypatch, {"chief": ["a:1"], "worker": ["b:1", "c:1"]}, kind, index)
    assert read_hosts() == Hosts(("a:1", "b:1", "c:1"), own)


def test_without_a_chief_the_first_worker_is_it(monkeypatch):
    tf_config(monkeypatch, {"worker": ["b:1", "c:1"]}, "worker", 1)
    assert read_hosts() == Hosts(("b:1", "c:1"), 1)


@pytest.mark.parametrize(
    "cluster, kind, index, named",
    [
        ({"worker": ["a:1"], "ps": ["b:1"]}, "worker", 0, "names ps"),
        ({"chief": ["a:1"], "worker": ["b:1"]}, "evaluator", 0, "names evaluator"),
        ({"worker": ["a:1", "b:1"]}, "worker", 2, "calls this task worker 2, its cluster has 2 worker"),
        ({"worker": ["a:1", "b:1"]}, "chief", 0, "calls this task chief 0, its cluster has 0 chief"),
        ({"worker": ["a:1", "a:1"]}, "worker", 0, "an address twice"),
        ({"chief": ["a:1", "b:1"]}, "chief", 0, "names 2 chiefs"),
        ({"worker": [1, 2]}, "worker", 0, "TF_CONFIG is not"),
        ([], "worker", 0, "TF_CONFIG is not"),
        ({"worker": ["a:1"]}, "worker", "x", "TF_CONFIG is not"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(monkeypatch, cluster, kind, index, named):
    tf_config(monkeypatch, cluster, kind, index)
    with pytest.raises(UsageError, match=named) as error:
        read_hosts()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"cluster": 3}', '{"task": {}}', '{"cluster": {"worker": ["a:1", "b:1"]}}']
)
def test_a_broken_tf_config_is_one_line(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UsageError, match=r"^TF_CONFIG is not"):
        read_hosts()
