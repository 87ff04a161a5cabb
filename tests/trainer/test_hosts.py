"""Which hosts there are and which one a process is, from TF_CONFIG, Slurm or a file; and the wait for them."""

import json
import os
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from shardline.pipeline.errors import Failure, UsageError
from shardline.trainer import hosts as hosts_module
from shardline.trainer.cluster import create_cluster
from shardline.trainer.hosts import (
    FIRST_PORT,
    Hosts,
    HostsConfig,
    expand_counts,
    expand_nodes,
    find_hosts,
    slurm_hosts,
    wait_for_hosts,
)


def tf_config(monkeypatch, cluster, kind="worker", index=0):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}}))


def test_without_it_a_process_is_alone(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert find_hosts() == Hosts(("",), 0)


def test_an_empty_one_is_none(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", " ")
    assert find_hosts() == Hosts(("",), 0)
    assert create_cluster("mirrored", 0).hosts == 1  # MirroredStrategy reads it too


@pytest.mark.parametrize("kind, index, own", [("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)])
def test_the_chief_is_host_0_and_workers_follow(monkeypatch, kind, index, own):
    tf_config(monkeypatch, {"chief": ["a:1"], "worker": ["b:1", "c:1"]}, kind, index)
    assert find_hosts() == Hosts(("a:1", "b:1", "c:1"), own)


def test_without_a_chief_the_first_worker_is_it(monkeypatch):
    tf_config(monkeypatch, {"worker": ["b:1", "c:1"]}, "worker", 1)
    assert find_hosts() == Hosts(("b:1", "c:1"), 1)


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
        ({"worker": ["a:1", "b"]}, "worker", 0, "names 'b', which is not HOST:PORT"),
        ({"worker": ["a:1", "b:70000"]}, "worker", 0, "names 'b:70000', which is not HOST:PORT"),
        ([], "worker", 0, "TF_CONFIG is not"),
        ({"worker": ["a:1"]}, "worker", "x", "TF_CONFIG is not"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(monkeypatch, cluster, kind, index, named):
    tf_config(monkeypatch, cluster, kind, index)
    with pytest.raises(UsageError, match=named) as error:
        find_hosts()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"cluster": 3}', '{"task": {}}', '{"cluster": {"worker": ["a:1", "b:1"]}}']
)
def test_a_broken_tf_config_is_one_line(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UsageError, match=r"^TF_CONFIG is not"):
        find_hosts()


# Slurm: the variables as srun sets them, from its manual (OUTPUT ENVIRONMENT VARIABLES) and jobs' records


def srun(nodes, tasks, node=0, local=0, job=4242, **more):
    """What a task of a step finds in its environment."""
    return {
        "SLURM_JOB_ID": str(job), "SLURM_JOBID": str(job), "SLURM_JOB_NODELIST": nodes, "SLURM_STEP_NODELIST": nodes,
        "SLURM_STEP_ID": "0", "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_TASKS_PER_NODE": tasks,
        "SLURM_NODEID": str(node), "SLURM_LOCALID": str(local), "SLURM_PROCID": "0", **more,
    }  # fmt: skip


def test_a_node_list_is_what_scontrol_show_hostnames_prints():
    """Expected values by `scontrol show hostnames`, from Slurm's documentation of hostlists."""
    assert expand_nodes("node[001-003,007],gpu-[1-2]") == ["node001", "node002", "node003", "node007", "gpu-1", "gpu-2"]
    assert expand_nodes("n1") == ["n1"] and expand_nodes("a,b-c.d") == ["a", "b-c.d"]
    assert expand_nodes("n[9-11]") == ["n9", "n10", "n11"] and expand_nodes("n[08-10]-ib") == [
        "n08-ib",
        "n09-ib",
        "n10-ib",
    ]
    assert expand_nodes("rack[0-1]n[5,7]") == ["rack0n5", "rack0n7", "rack1n5", "rack1n7"]
    assert expand_counts("2(x3),1") == [2, 2, 2, 1] and expand_counts("4") == [4]


@pytest.mark.parametrize(
    "text", ["n[3-1]", "n[1", "n1]", "n[a-b]", "n[1-2", "a,,b", "", "n[[1]]", "n[]", "n[0-99999999999]"]
)
def test_a_broken_node_list_is_one_line(text):
    with pytest.raises(UsageError, match=r"^hosts_from=slurm: ") as error:
        expand_nodes(text)
    assert "\n" not in str(error.value)


def test_slurm_tasks_are_hosts_node_by_node():
    first = FIRST_PORT + 4242
    assert slurm_hosts(srun("gpu[07-08]", "1(x2)", node=1)) == Hosts((f"gpu07:{first}", f"gpu08:{first}"), 1)
    two = slurm_hosts(srun("a[1-2]", "2,1", node=0, local=1))
    assert two == Hosts((f"a1:{first}", f"a1:{first + 1}", f"a2:{first}"), 1)
    # A step on some of the job's nodes, dealt out in another order: --distribution=cyclic gives ranks node by node.
    part = srun("a[1-4]", "2(x2)", node=1, local=0, SLURM_PROCID="1", SLURM_STEP_NODELIST="a[3-4]")
    assert slurm_hosts(part) == Hosts((f"a3:{first}", f"a3:{first + 1}", f"a4:{first}", f"a4:{first + 1}"), 2)


def test_jobs_that_share_a_node_have_ports_of_their_own():
    ports = {slurm_hosts(srun("n1", "1", job=job)).addresses[0] for job in range(100, 200)}
    assert len(ports) == 100


@pytest.mark.parametrize(
    "variables, named",
    [
        ({}, "SLURM_STEP_NODELIST is not set; start the command with srun"),
        (srun("a[1-2]", "1"), "2 nodes, but tasks for 1"),
        (srun("a[1-2]", "1(x2)", node=2), "this task, 0 of node 2, is not among"),
        (srun("a[1-2]", "1(x2)", SLURM_NODEID="x"), "SLURM_NODEID=x is no number"),
        (srun("a[1-2]", "one"), "one are no tasks per node"),
    ],
)
def test_what_srun_did_not_set_is_refused_in_one_line(variables, named):
    with pytest.raises(UsageError, match=named) as error:
        slurm_hosts(variables)
    assert "\n" not in str(error.value)


def test_a_batch_script_without_srun_is_told_so(capsys):
    """There, SLURM_PROCID is 0 on the one node that the script runs on."""
    script = {
        "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a[1-2]", "SLURM_TASKS_PER_NODE": "1(x2)", "SLURM_PROCID": "0",
    }  # fmt: skip
    assert slurm_hosts(script).own == 0
    assert "no step of srun started this; start all 2 tasks with srun" in capsys.readouterr().err


def test_slurm_and_files_fill_in_tf_config(monkeypatch, tmp_path):
    monkeypatch.setenv("TF_CONFIG", "")
    for name, value in srun("a[1-2]", "1(x2)", node=1).items():
        monkeypatch.setenv(name, value)
    found = find_hosts(HostsConfig("slurm", 5.0))
    assert found == Hosts((f"a1:{FIRST_PORT + 4242}", f"a2:{FIRST_PORT + 4242}"), 1) and found.start_timeout == 5
    written = json.loads(os.environ["TF_CONFIG"])
    assert written == {"cluster": {"worker": list(found.addresses)}, "task": {"type": "worker", "index": 1}}
    (tmp_path / "hosts.txt").write_text("# two\nelsewhere.example:77\n127.0.0.1  # this one\n")
    assert find_hosts(HostsConfig(str(tmp_path / "hosts.txt"))) == Hosts(
        ("elsewhere.example:77", f"127.0.0.1:{FIRST_PORT}"), 1
    )
    assert json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 1


@pytest.mark.parametrize(
    "text, named",
    [
        ("elsewhere.example\n", "must name this machine once, but no line is one of"),
        (f"{socket.gethostname()}:1\n127.0.0.1:2\n", "must name this machine once, but "),
        ("a b\n", "'a b:15000', which is not HOST:PORT"),
        (None, "No such file or directory; use env, slurm, or a file"),
    ],
)
def test_a_file_that_does_not_say_which_host_this_is_is_refused(text, named, tmp_path, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if text:
        (tmp_path / "hosts").write_text(text)
    with pytest.raises(UsageError, match=named):
        find_hosts(HostsConfig(str(tmp_path / "hosts")))
    assert "TF_CONFIG" not in os.environ


# Waiting


def free_addresses(count):
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = tuple(f"127.0.0.1:{server.getsockname()[1]}" for server in servers)
    for server in servers:
        server.close()
    return addresses


def test_hosts_wait_for_each_other(monkeypatch, capsys):
    monkeypatch.setattr(hosts_module, "SAY_SECONDS", 0.0)
    addresses = free_addresses(3)
    threads = [threading.Thread(target=wait_for_hosts, args=[Hosts(addresses, own, 60.0)]) for own in (2, 0)]
    for thread in threads:
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
    # Those two see each other; the last one may find a port closed again only until TensorFlow opens it.
    third = socket.create_server(("127.0.0.1", int(addresses[1].rpartition(":")[2])))
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    third.close()
    said = capsys.readouterr().err
    assert f"waiting for host 1 ({addresses[1]}: Connection refused)" in said


def test_a_host_that_never_comes_ends_the_wait_in_one_line(monkeypatch, capsys):
    """s8."""
    addresses = free_addresses(3)
    with pytest.raises(Failure) as error:
        wait_for_hosts(Hosts(addresses, 0, 0.01))
    assert str(error.value).startswith(f"host 1 ({addresses[1]}: Connection refused), host 2 ({addresses[2]}: ")
    assert "did not start within start_timeout=0.01 seconds" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("error", [Failure("--workdir=run is in use by process 7"), UsageError("--data=x: no such")])
def test_a_host_that_ends_before_all_have_met_ends_the_others_with_its_reason(error, monkeypatch):
    monkeypatch.setattr(hosts_module, "_meeting", hosts_module._Meeting())
    addresses, caught = free_addresses(4), []

    @hosts_module.ends_together
    def command(config):
        raise error

    def wait(own):
        try:
            wait_for_hosts(Hosts(addresses, own, 60.0))
        except (Failure, UsageError) as refusal:
            caught.append(refusal)

    tf_config(monkeypatch, {"worker": addresses})
    first = threading.Thread(target=wait, args=[1])
    first.start()  # it waits already
    later = [threading.Thread(target=wait, args=[own]) for own in (2, 3)]
    for thread in later:
        threading.Timer(0.5, thread.start).start()
    monkeypatch.setattr(hosts_module, "TELL_SECONDS", 600.0)  # it ends when all know
    with pytest.raises(type(error)):
        command(HostsConfig(start_timeout=600.0))
    for thread in (first, *later):
        thread.join(60)
    assert [type(refusal) for refusal in caught] == [type(error)] * 3
    assert {str(refusal) for refusal in caught} == {f"host 0 ({addresses[0]}) ends: {error}"}


def test_a_host_that_ends_tells_no_other_for_longer_than_said_and_none_that_it_has_met(monkeypatch, capsys):
    monkeypatch.setattr(hosts_module, "TELL_SECONDS", 0.01)
    hosts_module.tell_others(Hosts(free_addresses(2), 0, 60.0), Failure("x"))
    assert "telling the others why" in capsys.readouterr().err
    monkeypatch.setattr(hosts_module, "_meeting", SimpleNamespace(is_over=True))

    @hosts_module.ends_together
    def command(config):
        raise Failure("x")

    with pytest.raises(Failure):
        command(HostsConfig())
    assert "telling" not in capsys.readouterr().err


def test_a_port_that_is_in_use_is_named():
    addresses = free_addresses(2)
    with (
        socket.create_server(("", int(addresses[0].rpartition(":")[2]))),
        pytest.raises(UsageError, match=r"which is host 0 and this one, cannot be used: Address already in use"),
    ):
        wait_for_hosts(Hosts(addresses, 0, 60.0))


def test_a_host_name_that_is_unknown_is_missing():
    addresses = (free_addresses(1)[0], "no-such-host.invalid:2222")
    with pytest.raises(Failure, match=r"^host 1 \(no-such-host.invalid:2222: .*did not start"):
        wait_for_hosts(Hosts(addresses, 0, 0.01))


LATE = """
import contextlib, sys, time
from shardline.pipeline import errors
from shardline.trainer.hosts import ended_after
sys.argv = ["shardline-train"]
with errors.command_line() if {command} else contextlib.nullcontext(), ended_after({seconds}, "too late"):
    time.sleep({slept})
print("on")
"""


@pytest.mark.parametrize(
    ("command", "seconds", "slept", "code", "out", "err"),
    [
        (True, 0.01, 600, 1, "", "shardline-train: error: too late\n"),
        (True, 600, 0.01, 0, "on\n", ""),
        (False, 0.01, 0.5, 0, "on\n", ""),
    ],
)
def test_a_wait_that_hears_no_signal_ends_a_command_and_no_other_program(command, seconds, slept, code, out, err):
    program = LATE.format(command=command, seconds=seconds, slept=slept)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


@pytest.mark.multihost
@pytest.mark.parametrize("own", [0, 1])
def test_a_host_that_never_joins_tensorflows_cluster_ends_the_others_in_one_line(own, tmp_path):
    """Something listens at its address, and is no TensorFlow."""
    addresses = free_addresses(2)
    stranger = socket.create_server(("127.0.0.1", int(addresses[1 - own].rpartition(":")[2])))
    cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": own}}
    command = [sys.executable, "-m", "shardline.trainer.train", "--synthetic", "--workdir=x", "--start_timeout=5"]
    environment = os.environ | {"TF_CONFIG": json.dumps(cluster)}
    with stranger:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"{', '.join(addresses)} joined TensorFlow's cluster within --start_timeout=5 seconds" in done.stderr


def test_a_cluster_is_not_started_before_its_hosts(monkeypatch):
    addresses = free_addresses(2)
    tf_config(monkeypatch, {"worker": addresses})
    with pytest.raises(Failure, match="did not start within"):
        create_cluster("auto", 0, HostsConfig(start_timeout=0.01))
