"""The recipes of docs/recipes: scripts parse, commands have these flags, and the hosts they describe are found."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from shardline.trainer.hosts import HostsConfig, find_hosts, read_tf_config
from tests.shell_commands import in_script, parse

RECIPES = Path(__file__).parents[1] / "docs" / "recipes"
SCRIPTS = sorted([*RECIPES.glob("*.sh"), *RECIPES.glob("*.sbatch")])
MANIFESTS = sorted(RECIPES.glob("*.yaml"))


def texts():
    """What each recipe has run by a shell."""
    for path in SCRIPTS:
        yield path.name, path.read_text()
    job = yaml.safe_load((RECIPES / "jobset_train.yaml").read_text())
    yield "jobset_train.yaml", container(job)["command"][2]
    yield "ray_convert.yaml", yaml.safe_load((RECIPES / "ray_convert.yaml").read_text())["spec"]["entrypoint"]


def container(job):
    return job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]


def test_every_recipe_is_named_in_the_page():
    page = (RECIPES / "README.md").read_text()
    assert [path.name for path in (*SCRIPTS, *MANIFESTS) if f"]({path.name})" not in page] == []
    assert len(SCRIPTS) == 3 and len(MANIFESTS) == 2


@pytest.mark.parametrize(("name", "text"), list(texts()))
def test_commands_have_these_flags_and_values(name, text):
    found = list(in_script(text))
    assert found
    for command, arguments in found:
        assert parse(command, arguments), f"{name}: {command}"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(path):
    subprocess.run(["bash", "-n", path], check=True)
    assert os.access(path, os.X_OK) or path.suffix == ".sbatch"


@pytest.mark.parametrize("index", [0, 3])
def test_the_job_set_makes_the_addresses_that_its_pods_have(index, tmp_path):
    job = yaml.safe_load((RECIPES / "jobset_train.yaml").read_text())
    spec, train = job["spec"]["replicatedJobs"][0], container(job)
    shown = tmp_path / "shardline-train"
    shown.write_text('#!/bin/sh\nprintf %s "$TF_CONFIG"\n')
    shown.chmod(0o755)
    environment = {variable["name"]: variable["value"] for variable in train["env"]}
    environment |= {"JOB_COMPLETION_INDEX": str(index), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    made = subprocess.run(train["command"], env=environment, capture_output=True, text=True, check=True).stdout
    hosts = read_tf_config(made)
    count, port = spec["template"]["spec"]["completions"], train["ports"][0]["containerPort"]
    # https://jobset.sigs.k8s.io/docs/concepts: JOBSET-JOB-JOBINDEX-PODINDEX.SUBDOMAIN
    pods = [
        f"{job['metadata']['name']}-{spec['name']}-0-{n}.{job['spec']['network']['subdomain']}" for n in range(count)
    ]
    assert hosts.addresses == tuple(f"{pod}:{port}" for pod in pods) and hosts.own == index
    assert spec["template"]["spec"]["parallelism"] == count == int(environment["HOSTS"])


def test_slurm_makes_the_addresses_of_the_steps_nodes(monkeypatch):
    text = (RECIPES / "slurm_train.sbatch").read_text()
    nodes = int(re.search(r"#SBATCH --nodes=(\d+)", text)[1])
    recorded = {
        "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": f"gpu[01-{nodes:02}]",
        "SLURM_STEP_TASKS_PER_NODE": f"1(x{nodes})", "SLURM_NODEID": "2", "SLURM_LOCALID": "0", "SLURM_PROCID": "2",
    }  # fmt: skip
    for name, value in recorded.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TF_CONFIG", "")
    hosts = find_hosts(HostsConfig(hosts_from="slurm"))
    assert hosts.addresses == tuple(f"gpu{n:02}:{15000 + 4711}" for n in range(1, nodes + 1)) and hosts.own == 2
    assert json.loads(os.environ["TF_CONFIG"])["task"] == {"type": "worker", "index": 2}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_mount_what_their_commands_name(path):
    text = path.read_text()
    content = yaml.safe_load(text)
    assert {"apiVersion", "kind", "metadata", "spec"} <= set(content)
    mounts = re.findall(r"mountPath: (/\w+)", text)
    named = re.findall(r"--(?:data|workdir|source|output)=(/\w+)", text)
    assert named and set(named) <= set(mounts)
    volumes = re.findall(r"- name: (\w+)(?: #.*)?\n\s+(?:persistentVolumeClaim|emptyDir)", text)
    assert set(re.findall(r"\{name: (\w+), mountPath", text)) == set(volumes)
    if checker := shutil.which("kubeconform"):
        subprocess.run([checker, "-ignore-missing-schemas", path], check=True)
