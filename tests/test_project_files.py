"""Files that other programs read: continuous integration, pre-commit, Docker and citations call what there is here."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = PROJECT["tool"]["setuptools"]["package-dir"].values()
MAKEFILE = (ROOT / "Makefile").read_text()


def recipe(target):
    """The commands of a target of the Makefile."""
    return re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1]


def test_continuous_integration_runs_make_targets_alone():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert runs == ["make test", "make demo", "make docs"]
    assert all(recipe(run.removeprefix("make ")) for run in runs)


def test_every_python_that_is_declared_is_tried():
    marker = "Programming Language :: Python :: "
    declared = [
        name.removeprefix(marker) for name in PROJECT["project"]["classifiers"] if name.startswith(marker + "3.")
    ]
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == declared
    tox = PROJECT["tool"]["tox"]
    assert tox["env_list"] == declared and tox["skip_missing_interpreters"]
    first, last = (int(name.split(".")[1]) for name in (declared[0], declared[-1]))
    assert PROJECT["project"]["requires-python"] == f">=3.{first},<3.{last + 1}"
    assert f"(3, {first}) <= sys.version_info < (3, {last + 1})" in MAKEFILE


def test_every_extra_is_named_with_what_it_is_for_and_no_other():
    extras = set(PROJECT["project"]["optional-dependencies"])
    assert (
        set(re.findall(r"^\| `(\w+)` \|", (ROOT / "BUILD.md").read_text().split("## The loop")[0], re.MULTILINE))
        == extras
    )
    texts = [MAKEFILE, *((ROOT / name).read_text() for name in ("README.md", "BUILD.md"))]
    texts += [
        path.read_text()
        for folder in ("docs", *FOLDERS)
        for path in (ROOT / folder).rglob("*.*")
        if path.suffix in (".md", ".py")
    ]
    named = {
        name
        for text in texts
        for found in re.findall(r"(?:shardline|'\.)\[([\w,]+)\]'", text)
        for name in found.split(",")
    }
    assert named <= extras


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
