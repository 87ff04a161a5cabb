"""Files that other programs read: continuous integration, pre-commit, Docker and citations call what there is here."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()


def recipe(target):
    """The commands of a target of the Makefile."""
    return re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1]


def test_continuous_integration_runs_make_targets_alone():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert runs == ["make test", "make demo"] and recipe("test") and recipe("demo")


def test_continuous_integration_tries_every_python_that_is_declared():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    tried = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    marker = "Programming Language :: Python :: "
    declared = [
        name.removeprefix(marker) for name in PROJECT["project"]["classifiers"] if name.startswith(marker + "3.")
    ]
    assert tried == declared


def test_pre_commit_checks_what_lint_does():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    checks = [re.search(r"\$\(BIN\)/(ruff \w+|mypy)", line)[1] for line in recipe("lint").splitlines()]
    assert [hook["name"] for hook in hooks] == checks


@pytest.mark.parametrize("name", ["Dockerfile", "gpu.Dockerfile"])
def test_images_are_built_of_files_that_the_context_holds(name):
    text = (ROOT / "docker" / name).read_text()
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    needed = {*PROJECT["tool"]["setuptools"]["package-dir"].values(), "pyproject.toml", "constraints.txt"}
    assert needed | {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]} == kept
    assert all((ROOT / path).exists() for path in kept) and "--constraint constraints.txt" in text
    extras = re.findall(r"'\.\[(\w+)\]'", text)
    assert set(extras) <= set(PROJECT["project"]["optional-dependencies"])


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["project"]["version"] and citation["license"] == PROJECT["project"]["license"]
