"""The documentation: what it quotes is in the code, its pages are in the site, the tutorial's commands run."""

import base64
import contextlib
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from shardline.benchmarks.sizing import SizingConfig
from shardline.pipeline.command_help import FLAGS_OF_EVERY_COMMAND
from shardline.pipeline.commands import COMMANDS
from shardline.pipeline.errors import UsageError
from shardline.pipeline.options import options
from shardline.pipeline.sources_table import SOURCES
from shardline.trainer.train import TrainCommand
from tests.shell_commands import follow, in_page, parse
from tests.test_scripts import SCRIPTS, config_of

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
DOCUMENTS = [*PAGES, *(ROOT / name for name in ("README.md", "BUILD.md", "CONTRIBUTING.md", "examples/README.md"))]
CODE = "\n".join(
    path.read_text() for folder in ("pipeline", "tools", "trainer") for path in (DOCS.parent / folder).rglob("*.py")
)


def test_every_page_is_in_the_site_and_every_link_leads_somewhere():
    site = yaml.safe_load(re.sub(r"!!python\S*", "", (DOCS.parent / "mkdocs.yml").read_text()))
    named = re.findall(r"[\w/]+\.md", str(site["nav"]))
    assert sorted(named) == [str(path.relative_to(DOCS)) for path in PAGES]
    for path in DOCUMENTS:
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


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_of_a_page_have_these_flags_and_values(path):
    text = path.read_text()
    for command, arguments, whole in in_page(text):
        try:
            made = parse(command, arguments)
            if whole and isinstance(made, TrainCommand):  # what this command refuses after that
                assert made.workdir or made.selftest or made.dry_run or made.find_batch, " ".join(arguments)
        except UsageError as error:
            assert not whole and " is missing" in str(error), f"{command} {' '.join(arguments)}: {error}"
    typed = re.findall(r"`make ([a-z][\w-]*)", text) + re.findall(r"^make ([a-z][\w-]*)", text, re.MULTILINE)
    targets = re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(typed) <= set(targets)


def test_every_flag_that_a_page_names_exists():
    """In its sentences, too."""
    known = {name for script in SCRIPTS if script != "shardline" for name in options(config_of(script))}
    known |= {*options(SizingConfig), *FLAGS_OF_EVERY_COMMAND, "selftest"}
    for path in PAGES:
        if path.parent.name == "recipes":
            continue  # of flags of Slurm, too
        text = re.sub(r"^(docker|curl|  -e|pip|export|tensorboard) .*$", "", path.read_text(), flags=re.MULTILINE)
        for flag in re.findall(r"(?<![\w-])--([a-z]\w+)", re.sub(r"`(tensorboard|pip) [^`]*`", "", text)):
            assert flag in known or flag.removeprefix("no") in known, f"{path.name}: --{flag}"


def test_every_image_says_what_it_shows():
    for path in DOCUMENTS:
        for said, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", path.read_text()):
            assert len(said.split()) >= 3, f"{path.name}: {target}"


@pytest.fixture(scope="module")
def hooks():
    """What makes the generated parts of the site."""
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_message_of_the_code(hooks):
    made = hooks.on_page_markdown((DOCS / "reference/troubleshooting.md").read_text())
    assert made.count("\n| 2 | ") + made.count("\n| 1 | ") > 300
    assert "\n| 2 | --split=SPLIT holds no records to train on |\n" in made
    assert "\n| 2 | --data=DIRECTORY: no such directory; make one with shardline-convert |\n" in made


def test_the_reference_has_every_flag_with_its_default(hooks):
    made = hooks.on_page_markdown((DOCS / "reference/commands.md").read_text())
    documented = {f"shardline-{name}": importlib.import_module(command.module) for name, command in COMMANDS.items()}
    assert sorted(documented) == sorted(script for script in SCRIPTS if script != "shardline")
    for script, module in documented.items():
        section = f"\n{made}".split(f"\n## {script}\n")[1].split("\n## ")[0]
        assert section.strip().startswith(module.__doc__.strip().splitlines()[0])
        for name, field in options(config_of(script)).items():
            if field.option.flag:
                term, told = re.search(rf"^`--(?:\[no\])?{name}` (.*)\n:   (.*)\n$", section, re.MULTILINE).groups()
                assert told == field.option.help.replace("|", "\\|").replace("<", "&lt;")
                assert field.kind is bool or not field.default_text or f"default: `{field.default_text}`" in term


@pytest.mark.slow
def test_the_tutorials_commands_run(tmp_path):
    printed = follow(DOCS / "tutorial.md", tmp_path, sys.executable)
    for name in ("data/report.html", "grid.png", "run/evaluation-test/report.html", "predictions.csv"):
        assert (tmp_path / name).stat().st_size, name
    assert len(printed.splitlines()) == 6 and all(line.endswith(" ok") for line in printed.splitlines())
    files = sorted(map(str, tmp_path.glob("photos/*/0012.jpg")))
    with served(tmp_path / "exported/saved_model") as address:
        command = [sys.executable, ROOT / "examples/serving_request.py", f"{address}/v1/models/model:predict", *files]
        asked = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    said = [line.split()[0] for line in printed.splitlines()]
    assert [line.rsplit(" ", 1)[0] for line in asked] == [
        f"{path} {label}" for path, label in zip(files, said, strict=True)
    ]


@contextlib.contextmanager
def served(model):
    """Answers as TensorFlow Serving's REST interface does (tensorflow.org/tfx/serving/api_rest, row format)."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(model))

    class Serving(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            files = [base64.b64decode(instance["b64"]) for instance in asked["instances"]]
            answer = loaded.signatures[asked["signature_name"]](bytes=tf.constant(files))
            found = [tensor.numpy() for tensor in answer.values()]
            columns = [[text.decode() for text in v] if v.dtype == object else v.tolist() for v in found]
            rows = [dict(zip(answer, row, strict=True)) for row in zip(*columns, strict=True)]
            body = json.dumps({"predictions": rows}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Serving) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
def test_the_notebook_runs_on_the_demos_images(tmp_path):
    if not find_spec("nbclient"):
        pytest.skip("nbclient is not installed: it comes with the extra 'docs'")
    path = DOCS / "tutorial.ipynb"
    cells = json.loads(path.read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells)
    code = (
        "import nbclient, nbformat\n"
        f"notebook = nbformat.read({str(path)!r}, as_version=4)\n"
        f"place = {{'metadata': {{'path': {str(tmp_path)!r}}}}}\n"
        "nbclient.NotebookClient(notebook, timeout=1200, kernel_name='python3', resources=place).execute()\n"
        "print(*(o.text for c in notebook.cells for o in c.get('outputs', ()) if o.get('name') == 'stdout'))\n"
    )
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-5000:]
    assert "{'train': 546, 'validation': " in result.stdout and result.stdout.count(" ok\n") == 6
    assert float(re.search(r"top-1 ([\d.]+)%", result.stdout)[1]) > 50  # one of six classes
