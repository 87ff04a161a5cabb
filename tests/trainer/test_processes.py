"""Training as processes of its own: killed without warning, and several workers that talk over loopback."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from shardline.trainer import metrics_log
from shardline.trainer.checkpoints import list_checkpoints, read_checkpoint
from shardline.trainer.evaluation import results
from shardline.trainer.input_profile import InputProfile
from shardline.trainer.run_dir import find_checkpoint
from tests.pipeline.stores import store_bucket
from tests.trainer.networks import randomized, values
from tests.trainer.test_weights import write_legacy_h5
from tests.trainer.tiny import command

ROOT = Path(__file__).parents[2]
FLAGS = [
    "--phases=head:0.5@0.05,all:2@0.05",
    "--global_batch_size=8",
    "--image_size=32",
    "--width=0.03",
    "--precision=float32",
    "--nojit",
    "--dropout=0.4",
    "--checkpoint_every_steps=2",
    "--log_every_steps=1",
    "--peak_tflops=1",
    "--seed=3",
]
HEAD_STEPS, STEPS = 3, 13  # 40 records, 8 a step


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    from shardline.trainer import selftest

    folder = tmp_path_factory.mktemp("data")
    selftest.write_dataset(folder, {"train": 40, "validation": 11}, side=40)
    return folder


def spawn(module, *arguments, tf_config=None, packages=ROOT):
    environment = {**os.environ, "PYTHONPATH": f"{packages}:{ROOT}", "CUDA_VISIBLE_DEVICES": ""}
    if tf_config:
        environment["TF_CONFIG"] = json.dumps(tf_config)
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def start(data, workdir, *flags, **place):
    arguments = (f"--data={data}", f"--workdir={workdir}", *FLAGS, *flags)
    return spawn("shardline.trainer.train", *arguments, **place)


def end(process, timeout=1500):
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == 0, err[-2000:]
    return json.loads(out) if out else {}


def wait_for_step(workdir, step, *processes, timeout=300):
    """Until the processes, just started, have done a step: a log that an earlier one left behind does not count."""
    path, until = workdir / metrics_log.FILE_NAME, time.monotonic() + timeout
    before = path.exists() and path.stat().st_ino  # written anew when a run starts
    while time.monotonic() < until:
        anew = path.exists() and path.stat().st_ino != before
        if anew and any(line["step"] >= step for line in metrics_log.read(workdir)):
            return
        for process in processes:
            assert process.poll() is None, process.stderr.read()[-2000:]
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached")


@pytest.mark.slow
@pytest.mark.parametrize("jit", ("--nojit", "--jit"))
def test_killed_at_random_steps_it_ends_with_the_same_bits(data, tmp_path, jit):
    """kill -9 within one phase, and then within the next; two replicas, dropout, random crops, a moving average."""
    flags = ("--logical_cpus=2", "--ema=0.9", "--checkpoint_every_steps=1", jit)
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    kills = [draw.randint(2, HEAD_STEPS), draw.randint(HEAD_STEPS + 1, STEPS - 1)]
    print(f"seed {seed}: killed after steps {kills}")
    whole = end(start(data, tmp_path / "whole", *flags))
    assert whole["step"] == STEPS
    for step in kills:
        process = start(data, tmp_path / "killed", *flags)
        wait_for_step(tmp_path / "killed", step, process)
        while process.poll() is None and not list_checkpoints(tmp_path / "killed"):  # written beside the next steps
            time.sleep(0.01)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        kept = list_checkpoints(tmp_path / "killed")
        assert kept, "nothing to continue from"
        print(f"killed after {kept[-1].stem}")
    again = end(start(data, tmp_path / "killed", *flags))
    print(f"uninterrupted {whole['weights_sha256']}, killed twice {again['weights_sha256']}")
    assert again["weights_sha256"] == whole["weights_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_a_checkpoint_and_the_exit_code_of_the_signal(data, tmp_path, number):
    process = start(data, tmp_path / "run", "--logical_cpus=2", "--checkpoint_every_steps=1000")
    wait_for_step(tmp_path / "run", 4, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "stopped at step" in err
    header = read_checkpoint(list_checkpoints(tmp_path / "run")[-1]).header
    last = [line["step"] for line in metrics_log.read(tmp_path / "run") if line["kind"] == "train"][-1]
    assert header["step"] == last


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def loopback(count):
    """TF_CONFIG of so many hosts."""
    workers = [f"127.0.0.1:{port}" for port in free_ports(count)]
    return [{"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}} for index in range(count)]


def start_workers(data, workdir, count, *flags):
    return [start(data, workdir, *flags, tf_config=config) for config in loopback(count)]


@pytest.mark.multihost
def test_two_workers_train_like_one_process(data, tmp_path):
    alone = end(start(data, tmp_path / "alone", "--strategy=one_device"))
    first, second = start_workers(data, tmp_path / "two", 2)
    end(second)
    together = end(first)
    assert together["step"] == alone["step"]
    assert together["validation_loss"] == pytest.approx(alone["validation_loss"], rel=1e-4)
    losses = [
        [line["loss"] for line in metrics_log.read(tmp_path / name) if line["kind"] == "train"]
        for name in ("alone", "two")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    hosts = InputProfile.load(tmp_path / "two").hosts
    assert sorted(profile.host for profile in hosts) == [0, 1]
    waits = [profile.training.waiting_share for profile in hosts]
    assert waits == sorted(waits, reverse=True) and all(profile.evaluation.samples for profile in hosts)


@pytest.mark.multihost
def test_a_killed_worker_ends_the_others_and_any_number_of_them_continues(data, tmp_path):
    alone = end(start(data, tmp_path / "alone", "--strategy=one_device"))
    first, second = start_workers(data, tmp_path / "run", 2)
    wait_for_step(tmp_path / "run", 5, first, second)
    second.kill()
    second.communicate()
    _, err = first.communicate(timeout=180)
    assert first.returncode == 1
    assert "another worker stopped" in err.strip().splitlines()[-1], err[-2000:]
    continued = end(start(data, tmp_path / "run", "--strategy=one_device"))
    assert continued["step"] == alone["step"]
    weights = [find_checkpoint(tmp_path / name).final_weights for name in ("alone", "run")]
    for name in weights[0]:
        np.testing.assert_allclose(weights[0][name], weights[1][name], atol=1e-4, err_msg=name)


@pytest.mark.multihost
def test_a_signal_to_one_worker_stops_all_with_one_checkpoint(data, tmp_path):
    first, second = start_workers(data, tmp_path / "run", 2)
    wait_for_step(tmp_path / "run", 3, first, second)
    second.send_signal(signal.SIGTERM)
    for process in (first, second):
        _, err = process.communicate(timeout=180)
        assert process.returncode == 143, err[-1000:]
        assert "stopped at step" in err
    assert list_checkpoints(tmp_path / "run")


def started(data, workdir, flags, cluster, tasks):
    """A host for each task, with its own flags."""
    return [
        start(data, folder, *more, tf_config={"cluster": cluster, "task": {"type": kind, "index": index}})
        for folder, more, (kind, index) in zip(workdir, flags, tasks, strict=True)
    ]


@pytest.mark.multihost
def test_a_chief_and_a_worker_are_one_run(data, tmp_path):
    """t10: as Kubeflow and Vertex name them."""
    alone = end(start(data, tmp_path / "alone", "--strategy=one_device"))
    chief, worker = (f"127.0.0.1:{port}" for port in free_ports(2))
    cluster = {"chief": [chief], "worker": [worker]}
    first, second = started(data, [tmp_path / "run"] * 2, [(), ()], cluster, [("chief", 0), ("worker", 0)])
    assert end(second) == {}
    assert end(first)["validation_loss"] == pytest.approx(alone["validation_loss"], rel=1e-4)


@pytest.mark.multihost
@pytest.mark.parametrize(
    "flag, named",
    [
        ("--seed=4", "--seed is 3 on host 0 and 4 on host 1"),
        ("--global_batch_size=10", "--global_batch_size is 8 on host 0 and 10"),
        ("--log_every_steps=3", "--log_every_steps is 1 on host 0 and 3"),  # they would stop after other steps
    ],
)
def test_hosts_with_other_flags_are_refused_on_every_host(data, tmp_path, flag, named):
    """s4."""
    workers = [f"127.0.0.1:{port}" for port in free_ports(2)]
    hosts = started(
        data, [tmp_path / "run"] * 2, [(), (flag,)], {"worker": workers}, [("worker", 0), ("worker", 1)]
    )  # fmt: skip
    for host in hosts:
        _, err = host.communicate(timeout=120)
        assert host.returncode == 2 and named in err.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.multihost
def test_hosts_with_another_version_of_a_package_are_refused(data, tmp_path):
    """NumPy is at work in augmentation; a name and a number on the path make it another version."""
    other = tmp_path / "packages" / "numpy-9.9.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 9.9.9\n")
    places = [{"tf_config": config} for config in loopback(2)]
    places[1]["packages"] = other.parent
    for host in [start(data, tmp_path / "run", **place) for place in places]:
        _, err = host.communicate(timeout=120)
        assert host.returncode == 2 and "NumPy is '2" in err.strip().splitlines()[-1], err
        assert "'9.9.9' on host 1" in err.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.multihost
@pytest.mark.object_store
def test_a_chief_that_a_lock_refuses_ends_the_other_hosts_with_its_reason(data, tmp_path, monkeypatch):
    pytest.importorskip("moto.server")
    with store_bucket() as bucket:
        bucket.put("run/.lock", b"process 7 on elsewhere, started 2026-01-01 00:00:00 +0000\nnonce\n")
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        hosts = start_workers(data, "s3://bucket/run", 2)
        said = [host.communicate(timeout=180)[1].strip().splitlines()[-1] for host in hosts]
    assert [host.returncode for host in hosts] == [1, 1], said
    assert all("s3://bucket/run is in use by process 7 on elsewhere" in line for line in said), said
    assert "host 0 (127.0.0.1:" in said[1]


def train_part(settings, stop_at, folder, num_hosts):
    """Train with so many hosts, of which the chief alone has a run directory; its result, records of each step."""
    folder.mkdir()
    processes = []
    for host, config in enumerate(loopback(num_hosts)):
        own = json.dumps(settings if host == 0 else {**settings, "workdir": ""})
        arguments = (own, stop_at, folder / f"{host}")
        processes.append(spawn("tests.trainer.check_hosts", *arguments, tf_config=config if num_hosts > 1 else None))
    results = [end(process) for process in reversed(processes)]
    lines = [[json.loads(line) for line in (folder / f"{host}").read_text().splitlines()] for host in range(num_hosts)]
    assert all(result is None for result in results[:-1])
    steps = zip(*lines, strict=True)  # the same ones on every host
    return results[-1], {hosts[0][0]: [record for _, records in hosts for record in records] for hosts in steps}


@pytest.mark.multihost
@pytest.mark.slow
def test_1_2_1_hosts_without_a_shared_workdir_are_one_host(data, tmp_path):
    """s5: another host joins and leaves; the weights are those of one host, and so is the order of samples."""
    settings = dict(flag.removeprefix("--").split("=") for flag in FLAGS if "=" in flag)
    numbers = {name: json.loads(value) for name, value in settings.items() if value[0].isdigit()}
    settings = {**settings, **numbers, "jit": False, "data": str(data), "peak_tflops": 1.0}
    alone, order = train_part({**settings, "workdir": str(tmp_path / "alone")}, 1000, tmp_path / "a", 1)
    settings["workdir"] = str(tmp_path / "run")
    first, part1 = train_part(settings, 4, tmp_path / "1", 1)
    second, part2 = train_part(settings, 8, tmp_path / "2", 2)
    last, part3 = train_part(settings, 1000, tmp_path / "3", 1)
    assert (first["step"], last["step"], alone["step"]) == (4, STEPS, STEPS) and 8 <= second["step"] < STEPS
    assert not second["finished"] and second["stopped_by"] == "callback StopAt"
    assert [*part1, *part2, *part3] == [*order] == list(range(1, STEPS + 1))
    assert {**part1, **part2, **part3} == order
    ours, theirs = (find_checkpoint(tmp_path / name).final_weights for name in ("run", "alone"))
    difference = max(float(np.abs(ours[name] - theirs[name]).max()) for name in theirs)
    print(f"largest difference of a weight: {difference:.2g}")
    assert difference < 1e-6


@pytest.mark.multihost
def test_hosts_that_go_on_need_no_file_of_weights(data, tmp_path):
    """Nor does one that joins later and knows no run directory; where no step was made yet, all need it."""
    file = tmp_path / "w.h5"
    write_legacy_h5(file, values(randomized(1, "gap")))
    begun = start(data, tmp_path / "run", f"--weights={file}", "--strategy=one_device")
    wait_for_step(tmp_path / "run", 4, begun)
    begun.send_signal(signal.SIGTERM)
    begun.communicate(timeout=60)
    assert begun.returncode == 143
    file.unlink()
    for process in start_workers(data, tmp_path / "new", 2, f"--weights={file}"):
        _, err = process.communicate(timeout=180)
        assert process.returncode == 2 and "no such file" in err.strip().splitlines()[-1], err
    chief, other = loopback(2)
    first = start(data, tmp_path / "run", f"--weights={file}", tf_config=chief)
    second = start(data, "", "--weights=not/there.h5", tf_config=other)
    assert end(second) == {}
    assert end(first)["step"] == STEPS


def on_two_hosts(name, *arguments):
    """What a command prints on each of two hosts that carry it out together."""
    processes = [spawn(f"shardline.trainer.{name}", *arguments, tf_config=config) for config in loopback(2)]
    printed = [process.communicate(timeout=600) for process in processes]
    for process, (_, err) in zip(processes, printed, strict=True):
        assert process.returncode == 0, err[-2000:]
    return [out for out, _ in printed]


@pytest.mark.multihost
def test_two_hosts_evaluate_as_one(tiny_run, tiny_data, tiny_evaluation, tmp_path):
    """Each record once, the same digits to the last, and one of them writes and prints."""
    output = tmp_path / "evaluation"
    flags = ("--run", tiny_run, "--data", tiny_data, "--split", "test", "--output", output, "--batch_size", 8)
    first, second = on_two_hosts("evaluate", *flags)
    assert "21 records, each counted once" in first and second == ""
    ours, theirs = (results.read_metrics(folder) for folder in (output, tiny_evaluation))
    assert ours.pop("environment")["devices"].startswith("2 × CPU on 2 hosts") and theirs.pop("environment")
    assert ours == theirs
    ours, theirs = (results.read_predictions(folder)[0] for folder in (output, tiny_evaluation))
    assert ours.equals(theirs)


@pytest.mark.multihost
@pytest.mark.parametrize("inputs", ["files", "records"])
def test_two_hosts_predict_as_one(inputs, tiny_run, tiny_data, tmp_path):
    what = ("--data", tiny_data) if inputs == "records" else ("--input", tiny_data.parent / "raw" / "test")
    flags = ("--run", tiny_run, *what, "--batch_size", 4)
    command("shardline.trainer.predict", *flags, "--output", tmp_path / "one.jsonl")
    assert on_two_hosts("predict", *flags, "--output", tmp_path / "two.jsonl") == ["", ""]
    ours, theirs = ([json.loads(line) for line in (tmp_path / f"{n}.jsonl").open()] for n in ("two", "one"))
    assert len(ours) == 21 and ours == theirs
