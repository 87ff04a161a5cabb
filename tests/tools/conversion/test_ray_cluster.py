"""Two Ray nodes here, one of which dies or cannot see the source: the bytes of a run without Ray, or one line."""

import os
import re
import shutil
import subprocess
import sys

import psutil
import pytest

from shardline.tools.conversion.run import convert
from tests.tools.conversion.test_resume import SHARDS, receipts, start, wait_for
from tests.tools.folders import class_folders, config, shard_hashes

pytestmark = pytest.mark.ray
cuts_a_link = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="cuts a link: needs root")
HERE, THERE = "10.213.7.1", "10.213.7.2"
# Ray's own patience is minutes.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000", "RAY_health_check_failure_threshold": "3",
    **{f"RAY_grpc_{side}keepalive_{what}_ms": "5000" for side in ("", "client_") for what in ("time", "timeout")},
}  # fmt: skip
hides_a_mount = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="hides a mount: needs root")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("cluster") / "source", 3, 20)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "d"
    convert(config(source, output, shards=SHARDS))
    return shard_hashes(output)


@pytest.fixture
def cluster(monkeypatch):
    """A head without CPUs, so that all work goes to the nodes that a test adds."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    yield made
    made.shutdown()


@pytest.fixture
def blind_node(cluster, source):
    """A node that finds an empty folder where the source is."""
    script = 'mount -t tmpfs none "$1" && exec "$2" -m ray.scripts.scripts start --address="$3" --num-cpus=2 --block'
    command = ["unshare", "--mount", "bash", "-c", script, "bash", source, sys.executable, cluster.address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_for(lambda: process.poll() is not None or alive_nodes(cluster) == 2, 300)
        assert process.poll() is None, process.stdout.read()
        yield process
    finally:
        end(process)


def end(process):
    """Kill it, if it lives, and what it has started."""
    if process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
    process.wait()


def alive_nodes(cluster):
    return sum(node["Alive"] for node in cluster.global_state.node_table())


@hides_a_mount
def test_a_node_without_the_source_and_a_killed_worker_change_no_byte(cluster, blind_node, source, whole, tmp_path):
    cluster.add_node(num_cpus=2)
    process = start(source, tmp_path / "d", "--engine", "ray", "--workers", "4")
    wait_for(lambda: process.poll() is not None or len(receipts(tmp_path / "d")) >= 2, 300)
    busy = [
        found
        for found in psutil.process_iter(["cmdline"])
        if "ray::_run_remotely" in " ".join(found.info["cmdline"] or ())
    ]
    for worker in busy[:1]:
        worker.kill()
    message = process.communicate(timeout=240)[1]
    assert process.returncode == 0, message
    assert f"is left out: --source: {source}/" in message
    assert shard_hashes(tmp_path / "d") == whole


def test_a_node_that_dies_changes_no_byte_and_all_cpus_are_used(cluster, source, whole, tmp_path):
    nodes = [cluster.add_node(num_cpus=2), cluster.add_node(num_cpus=1)]
    address = cluster.address
    process = start(source, tmp_path / "d", "--engine", "ray", "--workers", "0", "--ray_address", address)
    wait_for(lambda: process.poll() is not None or len(receipts(tmp_path / "d")) >= 2, 300)
    cluster.remove_node(nodes[0], allow_graceful=False)
    said, message = process.communicate(timeout=240)
    assert process.returncode == 0, message
    assert shard_hashes(tmp_path / "d") == whole
    assert re.search(r"inputs/s with [13] workers?$", said, re.MULTILINE), said  # of the nodes that are left


def working():
    """Shards that are being made."""
    lines = (" ".join(found.info["cmdline"] or ()) for found in psutil.process_iter(["cmdline"]))
    return sum("ray::_run_remotely" in line for line in lines)


def test_a_node_that_joins_takes_work_and_changes_no_byte(cluster, tmp_path):
    source = class_folders(tmp_path / "s", 3, 20, height=1500, width=2000)  # so that a shard takes a while
    convert(config(source, tmp_path / "whole", shards=SHARDS))
    cluster.add_node(num_cpus=1)
    process = start(source, tmp_path / "d", "--engine", "ray", "--workers", "0")
    wait_for(lambda: process.poll() is not None or receipts(tmp_path / "d"), 120)
    assert working() <= 1
    cluster.add_node(num_cpus=2)
    wait_for(lambda: process.poll() is not None or working() > 1, 120)
    assert process.poll() is None, "it ended before the node had work"
    said, message = process.communicate(timeout=240)
    assert process.returncode == 0, message
    assert shard_hashes(tmp_path / "d") == shard_hashes(tmp_path / "whole") and "with 3 workers" in said


@pytest.fixture
def link():
    """A network of its own, reached by a link: names of the network and of this end."""
    network, ours, theirs = f"shardline{os.getpid()}", f"sl{os.getpid()}a", f"sl{os.getpid()}b"

    def ip(line):
        subprocess.run(["ip", *line.split()], check=True, capture_output=True)

    ip(f"netns add {network}")
    try:
        ip(f"link add {ours} type veth peer name {theirs} netns {network}")
        for line in (
            f"addr add {HERE}/30 dev {ours}", f"link set {ours} up", f"-n {network} addr add {THERE}/30 dev {theirs}",
            f"-n {network} link set {theirs} up", f"-n {network} link set lo up",
        ):  # fmt: skip
            ip(line)
        yield network, ours
    finally:
        ip(f"netns del {network}")  # the link goes with it


@pytest.fixture
def far_node(link, monkeypatch):
    """A cluster of a head without CPUs, a node here, and one behind the link; the name of this end."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    for name, value in HEALTH.items():
        monkeypatch.setenv(name, value)
    head = {"num_cpus": 0, "include_dashboard": False, "node_ip_address": HERE}
    made = Cluster(initialize_head=True, head_node_args=head)
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    command = ["ip", "netns", "exec", link[0], sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus=2"]
    command += [f"--address={made.address}", f"--node-ip-address={THERE}", "--block"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_for(lambda: process.poll() is not None or alive_nodes(made) == 2, 240)
        assert process.poll() is None, process.stdout.read()
        made.add_node(num_cpus=1, node_ip_address=HERE)
        yield link[1]
    finally:
        end(process)
        made.shutdown()


@cuts_a_link
def test_a_link_that_is_cut_changes_no_byte(far_node, source, whole, tmp_path):
    process = start(source, tmp_path / "d", "--engine", "ray", "--workers", "0")
    wait_for(lambda: process.poll() is not None or receipts(tmp_path / "d"), 240)
    assert process.poll() is None, process.communicate()[1]
    subprocess.run(["ip", "link", "set", far_node, "down"], check=True)
    message = process.communicate(timeout=400)[1]
    assert process.returncode == 0, message
    assert shard_hashes(tmp_path / "d") == whole


@hides_a_mount
def test_where_no_node_sees_the_source_the_run_ends_in_one_line(blind_node, source, tmp_path):
    process = start(source, tmp_path / "d", "--engine", "ray", "--workers", "2")
    message = process.communicate(timeout=240)[1]
    assert process.returncode == 1 and "Traceback" not in message, message
    assert "no node of the Ray cluster can do the work" in message.strip().splitlines()[-1]
    assert not (tmp_path / "d" / "manifest.json").exists()
