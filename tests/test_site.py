"""The documentation site, built as by `make docs` and looked at in a browser: whole, alone, readable on a phone."""

import os
import re
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.browser import Browser

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site; warnings are errors."""
    if not find_spec("mkdocs"):
        pytest.skip("mkdocs is not installed: it comes with the extra 'docs'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", folder]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def test_every_page_is_built_and_loads_nothing_from_elsewhere(site):
    pages = sorted(path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md"))
    for page in pages:
        path = site / page.parent / ("index.html" if page.name == "README" else f"{page.name}.html")
        text = path.read_text()
        assert re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"?https?:", text) == [], page
        assert [image for image in re.findall(r"<img[^>]*>", text) if not re.search(r'alt="\w', image)] == [], page
    assert (site / "results/epyc-2-cores/input_images_per_s.png").is_file()
    assert "--shuffle_block_size" in (site / "reference/commands.html").read_text()
    assert "holds no records to train on" in (site / "reference/troubleshooting.html").read_text()


@pytest.mark.browser
def test_no_page_is_wider_than_a_phone_and_none_complains(site, tmp_path):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with Browser(tmp_path) as tab:
            for width in (390, 1200):
                tab.size(width, 900)
                for path in sorted(site.rglob("*.html")):
                    name = str(path.relative_to(site))
                    tab.open(f"http://127.0.0.1:{server.server_port}/{name}")
                    assert tab.run("document.documentElement.scrollWidth") <= width, name
                    broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
                    assert tab.run(broken) == [], name
            assert tab.problems() == []
    finally:
        server.shutdown()
        server.server_close()
