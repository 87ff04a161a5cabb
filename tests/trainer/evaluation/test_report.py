"""report.html: everything promised is on it, it needs no network, and a real browser shows it at phone width."""

import html
import re
import shutil
import subprocess

import pytest

from shardline.tools.html_report import HtmlReport
from shardline.trainer.evaluation.report import add_input, calibration_note
from shardline.trainer.run_report import refresh_links

SECTIONS = (
    "Result", "Settings", "Data ledger", "Training", "Throughput", "Input", "Confusion", "Classes",
    "ROC and precision-recall", "Most confident mistakes", "Label issues", "Calibration", "Leakage", "Environment",
    "Files",
)  # fmt: skip


@pytest.fixture(scope="module")
def page(tiny_evaluation):
    return (tiny_evaluation / "report.html").read_text(encoding="utf-8")


def test_every_section_is_there(page):
    assert tuple(map(html.unescape, re.findall(r"<h2>(.*?)</h2>", page))) == SECTIONS


def test_it_needs_no_network_and_every_image_has_words(page):
    assert "http:" not in page and "https:" not in page and "src=" in page
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) >= 8
    assert all(re.search(r'alt="[^"]{10,}"', image) for image in images)
    assert all('src="data:image/' in image for image in images)


def test_it_tells_the_numbers_the_phases_and_the_copies(page, tiny_metrics):
    assert f"{tiny_metrics['top1']:.1%} top-1" in page
    assert "--phases" in page and "head:1@1e-2,all:1@1e-2" in page
    assert "66 inputs = 66 written + 0 quarantined" in page
    assert "test/red/0.png = train/red/5.png (same file)" in page
    assert "without copies of training images (n = 19)" in page


def test_it_tells_what_the_input_of_the_run_cost(page):
    section = html.unescape(page[page.index("<h2>Input<") : page.index("<h2>Confusion<")])
    assert "Host 0, training, " in section and "(input waits " in section and "Host 0, evaluation, " in section
    assert section.count(">decode<") == 2 and "the slowest host first" in section


@pytest.mark.parametrize(("after", "overlap"), [((0.01, 0.06), False), ((0.05, 0.09), True), ((0.3, 0.4), False)])
def test_a_temperature_is_judged_by_the_intervals_of_both_errors(after, overlap):
    fitted = {"split": "validation", "records": 90, "temperature": 1.4, "ece": 0.05, "ece_interval95": after}
    values = {"ece": 0.1, "interval95": {"ece": (0.08, 0.14)}, "log_loss": 0.9}
    note = calibration_note(values | {"calibration": fitted | {"log_loss": 0.8}}, "train")
    assert f"from 10.0% (95% interval 8.0% to 14.0%) to 5.0% ({after[0]:.1%} to {after[1]:.1%})" in note
    assert ("do not show a difference" in note) == overlap and "flatters" not in note


@pytest.mark.parametrize(
    ("content", "said"), [(None, "holds no input_profile.json"), (b"{}", "has format none, this program reads")]
)
def test_a_run_without_a_profile_or_with_a_damaged_one_has_a_page_all_the_same(content, said, tmp_path):
    if content is not None:
        (tmp_path / "input_profile.json").write_bytes(content)
    page = HtmlReport("x")
    add_input(page, tmp_path)
    page.save(tmp_path / "page.html")
    assert said in (tmp_path / "page.html").read_text()


PROBE = """<script>
for (const image of document.images) image.loading = 'eager';
addEventListener('load', () => {
  const say = (name, value) => document.body.setAttribute('data-' + name, value);
  say('overflow', document.documentElement.scrollWidth - document.documentElement.clientWidth);
  say('width', document.documentElement.clientWidth);
  say('broken', [...document.images].filter(image => !image.naturalWidth).length);
  const table = [...document.querySelectorAll('table')].find(t => t.tHead.textContent.includes('average precision'));
  const column = [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent === 'recall');
  const press = () => table.tHead.rows[0].cells[column].querySelector('button').click();
  const values = () => [...table.tBodies[0].rows].map(row => row.cells[column].dataset.value).join(' ');
  press(); say('up', values());
  press(); say('down', values());
});
</script></body>"""


@pytest.mark.browser
def test_a_browser_shows_it_at_phone_width_and_sorts_its_tables(page, tmp_path):
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("Chromium is not installed")
    probed = tmp_path / "report.html"
    probed.write_text(page.replace("</body>", PROBE), encoding="utf-8")
    result = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         f"--user-data-dir={tmp_path / 'profile'}", "--window-size=390,800", "--virtual-time-budget=20000",
         "--dump-dom", probed.as_uri()],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    found = dict(re.findall(r'data-(width|overflow|broken|up|down)="([^"]*)"', result.stdout))
    assert int(found["width"]) <= 500  # Chromium's narrowest window
    assert (found["overflow"], found["broken"]) == ("0", "0")
    up, down = ([float(value) for value in found[way].split()] for way in ("up", "down"))
    assert len(up) == 3 and up == sorted(up) and down == up[::-1]


def test_run_and_evaluation_lead_to_each_other(tiny_run, page):
    links = re.findall(r'<a href="([^"#]+)">', page)
    assert "../run/report.html" in links and "../data/report.html" in links and "metrics.json" in links
    run = tiny_run.parent / "copied"  # as far from the dataset
    shutil.copytree(tiny_run, run)
    (run / "evaluation-validation").mkdir()
    (run / "evaluation-validation" / "report.html").write_text(page)
    before = (run / "report.html").read_text()
    refresh_links(run)
    after = (run / "report.html").read_text()
    added = '<li><a href="evaluation-validation/report.html">evaluation-validation: report</a></li>'
    assert added not in before and after.replace(added, "") == before
