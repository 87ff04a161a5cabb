"""Files that other programs read call what there is here; and no file tells of the machine that it was written on."""

import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

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
    steps = [step for job in jobs.values() for step in job["steps"]]
    runs = [step["run"] for step in steps if "run" in step]
    assert runs == ["make test", "make demo", "make docs"]
    assert all(recipe(run.removeprefix("make ")) for run in runs)
    used = [step["uses"] for step in steps if "uses" in step]
    assert used and all(re.search(r"@[0-9a-f]{40}$", name) for name in used)  # a tag may be moved to other code


def test_every_python_that_is_declared_is_tried():
    marker = "Programming Language :: Python :: "
    declared = [
        name.removeprefix(marker) for name in PROJECT["project"]["classifiers"] if name.startswith(marker + "3.")
    ]
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == declared
    tox = PROJECT["tool"]["tox"]
    assert tox["env_list"] == declared and tox["skip_missing_interpreters"]
    # Not by `deps`: constraints alone are an error of pip, and would not hold for what the package itself needs.
    environment = tox["env_run_base"]
    assert environment["set_env"]["PIP_CONSTRAINT"] == "{tox_root}/constraints.txt" and "deps" not in environment
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
    needed = {*FOLDERS, "pyproject.toml", "setup.py", "constraints.txt"}
    assert needed | {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]} == kept
    assert all((ROOT / path).exists() for path in kept) and "--constraint /wheel/constraints.txt" in text
    extras = re.findall(r"\.whl\)\[(\w+)\]", text)
    assert extras == (["gpu"] if name == "gpu.Dockerfile" else [])
    assert set(extras) <= set(PROJECT["project"]["optional-dependencies"])


def schema(name):
    return "check-jsonschema", "--builtin-schema", f"vendor.{name}"


@pytest.mark.parametrize(
    ("checker", "names"),
    [
        (("hadolint",), ["docker/Dockerfile", "docker/gpu.Dockerfile"]),
        (("shellcheck",), ["docs/recipes/*.sh", "docs/recipes/*.sbatch", ".ci/run"]),
        (schema("github-workflows"), [".github/workflows/*.yml"]),
        (schema("github-issue-forms"), [".github/ISSUE_TEMPLATE/fault.yml"]),
        (schema("github-issue-config"), [".github/ISSUE_TEMPLATE/config.yml"]),
        (schema("citation-file-format"), ["CITATION.cff"]),
    ],
    ids=lambda given: given[-1],
)
def test_checkers_of_other_peoples_formats_find_nothing(checker, names):
    program = shutil.which(checker[0], path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not program:
        pytest.skip(f"{checker[0]} is not installed: it comes with the extra 'release'")
    files = [path for name in names for path in sorted(ROOT.glob(name))]
    assert len(files) >= len(names)
    found = subprocess.run([program, *checker[1:], *files], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["project"]["version"] and citation["license"] == PROJECT["project"]["license"]


FOLDERS_OF_MACHINES = re.compile(r"/(home|Users|root|work|opt|mnt|srv|scratch|private|var/folders)/\w")
ABSOLUTE = re.compile(r"(?<![\w.:/<>*+=-])/(?:[\w.~-]+/)+[\w.~-]+")
MEASURED = ("benchmarks/results/", "docs/tutorial.ipynb")  # by programs, which note what they were called with


def words_of_this_machine():
    """Its name, where this folder and the home folder lie, the hosts of its package registries and proxies."""
    settings = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    settings += " ".join(v for k, v in os.environ.items() if re.match(r"(?i)pip_|uv_|.*_proxy$", k))
    hosts = {urlsplit(url).hostname or "" for url in re.findall(r"\w+://[^\s'\"]+", settings)}
    words = {str(ROOT), str(Path.home()), *(h for h in hosts if "." in h), platform.node()}
    public = {"pypi.org", "files.pythonhosted.org", "127.0.0.1", "/", "/root"}
    return {word for word in words - public if len(word) > 4 and re.search(r"[/.\d]", word)}


def tell_tales(name, text, words):
    """What of a text is of a machine."""
    text = re.sub(r"base64,[\w+/=]+", "", text)
    found = {match[0] for match in FOLDERS_OF_MACHINES.finditer(text)} | {word for word in words if word in text}
    return found | (set(ABSOLUTE.findall(text)) if name.startswith(MEASURED) else set())


def test_no_file_tells_of_the_machine_it_was_written_on():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip("no git checkout")
    words, found = words_of_this_machine(), {}
    for name in map(os.fsdecode, filter(None, listed.stdout.split(b"\0"))):
        data = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b"\0"
        if b"\0" not in data and (told := tell_tales(name, data.decode(), words)):
            found[name] = told
    assert found == {}


def test_what_tells_of_a_machine_is_seen():
    line = '{"argv": ["--data", "%s/photos"]}'
    for place in ("/" + "home/me", "/" + "Users/me", "/" + "work/me"):
        assert tell_tales("docs/index.md", line % place, ())
    assert tell_tales("benchmarks/results/x/results.jsonl", line % "/tmp", ())
    assert tell_tales("pyproject.toml", "index = https://packages.example.com/simple", {"packages.example.com"})
    assert not tell_tales("benchmarks/results/x/results.jsonl", line % "photos256", {"packages.example.com"})
