"""The documentation: what it quotes is in the code, its pages are in the site, the tutorial's commands run."""

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from shardline.benchmarks.sizing import SizingConfig
from shardline.pipeline.commands import COMMANDS
from shardline.pipeline.options import options
from shardline.pipeline.sources_table import SOURCES
from tests.test_scripts import BIN, SCRIPTS, config_of

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
CODE = "\n".join(
    path.read_text() for folder in ("pipeline", "tools", "trainer") for path in (DOCS.parent / folder).rglob("*.py")
)


def blocks(text, language):
    """The code of a page in one language, each command on one line."""
    found = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [code.replace("\\\n", " ") for code in found]


def test_every_page_is_in_the_site_and_every_link_leads_somewhere():
    site = yaml.safe_load(re.sub(r"!!python\S*", "", (DOCS.parent / "mkdocs.yml").read_text()))
    named = re.findall(r"[\w/]+\.md", str(site["nav"]))
    assert sorted(named) == [str(path.relative_to(DOCS)) for path in PAGES]
    for path in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", re.sub(r"(?s)```.*?```", "", path.read_text())):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_messages_of_the_troubleshooting_page_are_in_the_code():
    quoted = re.findall(r"^\| `([^`]+)` \|", (DOCS / "reference/troubleshooting.md").read_text(), re.MULTILINE)
    assert len(quoted) >= 15 and [text for text in quoted if text not in CODE] == []


def test_formats_of_the_specification_are_those_of_the_code():
    page = (DOCS / "reference/formats.md").read_text()
    formats = set(re.findall(r'^\w*FORMAT = "(shardline[^"]+)"', CODE, re.MULTILINE))
    formats |= set(re.findall(r'FORMAT = "[^"]+", "(shardline[^"]+)"', CODE))
    assert {name for name in formats if f"`{name}`" not in page} <= {
        "shardline arithmetic/1"
    }  # a cache of this machine
    assert set(re.findall(r"`(shardline[ /][^`]*\d)`", page)) <= formats
    assert [name for name in SOURCES.names if f"`{name}`" not in page] == []


def test_every_flag_that_a_page_names_exists():
    known = {name for script in SCRIPTS if script != "shardline" for name in options(config_of(script))}
    known |= set(options(SizingConfig))
    known |= {"help", "helpfull", "version", "config", "print_config", "selftest"}
    for path in PAGES:
        if path.parent.name == "recipes":
            continue  # of flags of Slurm, too; tests/test_recipes.py takes its commands apart
        text = re.sub(r"^(docker|curl|  -e|pip|export) .*$", "", path.read_text(), flags=re.MULTILINE)
        for flag in re.findall(r"(?<![\w-])--([a-z]\w+)", text):
            assert flag in known or flag.removeprefix("no") in known, f"{path.name}: --{flag}"


def test_the_reference_has_every_flag_with_its_default():
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    made = hooks.on_page_markdown((DOCS / "reference/commands.md").read_text())
    documented = {f"shardline-{name}": importlib.import_module(command.module) for name, command in COMMANDS.items()}
    assert sorted(documented) == sorted(script for script in SCRIPTS if script != "shardline")
    for script, module in documented.items():
        section = f"\n{made}".split(f"\n## {script}\n")[1].split("\n## ")[0]
        assert section.strip().startswith(module.__doc__.strip().splitlines()[0])
        for name, field in options(config_of(script)).items():
            if field.option.flag:
                row = next(line for line in section.splitlines() if re.match(rf"\| `--(\[no\])?{name}` ", line))
                assert field.option.help.replace("|", "\\|").replace("<", "&lt;") in row
                assert field.kind is bool or not field.default_text or f"`{field.default_text}`" in row


@pytest.mark.slow
def test_the_tutorials_commands_run(tmp_path):
    page = (DOCS / "tutorial.md").read_text()
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "TF_CPP_MIN_LOG_LEVEL": "3"}
    for command in "\n".join(blocks(page, "sh")).splitlines():
        result = subprocess.run(
            ["bash", "-euc", command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, f"{command}\n{result.stderr[-3000:]}"
    for name in ("data/report.html", "grid.png", "run/evaluation-test/report.html", "predictions.csv"):
        assert (tmp_path / name).stat().st_size, name
    (script,) = blocks(page, "python")
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert len(result.stdout.splitlines()) == 4 and all(line.endswith(" ok") for line in result.stdout.splitlines())
