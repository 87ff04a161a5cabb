"""RUN/report.html: what a finished and a running run tell, and that the samples it shows are those of training."""

import base64
import re
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from shardline.trainer import curves, metrics_log
from shardline.trainer.callbacks import Report
from shardline.trainer.cluster import create_cluster
from shardline.trainer.config import TrainConfig
from shardline.trainer.run_dir import BATCHES, CURVES, TRACKING_FILE
from shardline.trainer.run_report import SHOWN, RunReport, samples_as_seen
from shardline.trainer.run_sections import headline
from shardline.trainer.setup import create_setup
from tests.trainer.tiny import COLORS


@pytest.fixture(scope="module")
def page(tiny_run):
    return (tiny_run / "report.html").read_text()


def test_a_finished_run_says_how_well_it_does_and_leads_on(page, tiny_run, tiny_data):
    last = [line for line in metrics_log.read(tiny_run) if line["kind"] == "eval"][-1]
    assert f"{last['top1']:.1%} top-1 on validation after 2 epochs" in page
    assert "http-equiv" not in page and "training has ended" in page
    for heading in (
        "Training",
        "Throughput",
        "Evaluations",
        "Confused pairs",
        "Classes",
        "Right and wrong",
        "Batches as seen",
        "Settings",
        "Files",
    ):
        assert f"<h2>{heading}</h2>" in page
    links = re.findall(r'<a href="([^"#]+)">', page)
    assert "../data/report.html" in links and "metrics.jsonl" in links
    assert all((tiny_run / link).exists() for link in links)
    assert len(page) < 2_000_000
    assert not {"tensorboard", "wandb", TRACKING_FILE} & {path.name for path in tiny_run.iterdir()}  # not asked for


def test_the_samples_shown_are_training_images_under_their_labels(page, tiny_run):
    gallery = page[page.index("Batches as seen</h2>") :]
    cells = re.findall(r"base64,([^\"]+)\"><figcaption>(\w+)</figcaption>", gallery)
    assert len(cells) == SHOWN
    for data, label in cells:
        image = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        assert image.shape == (32, 32, 3)
        pixels = image.reshape(-1, 3).astype(float)  # somewhere in it is the disc of its class
        near = {name: np.linalg.norm(pixels - color, axis=1).min() for name, color in COLORS.items()}
        assert min(near, key=near.get) == label, near
    sheet = cv2.imread(str(tiny_run / "plots" / BATCHES))
    assert sheet.shape == (3 * (128 + 26), 8 * 128, 3)


def test_they_have_the_size_that_images_have_by_then(tiny_data):
    config = TrainConfig(
        data=str(tiny_data), image_size=40, progressive_resizing="32:0.5", phases="all:1@0.1", global_batch_size=12,
        workers=0, width=0.03, precision="float32", jit=False,
    )  # fmt: skip
    setup = create_setup(config, create_cluster("one_device", 0))
    for cursor, size in ((0, 32), (12, 32), (24, 40)):  # of 36 records
        assert {image.shape for image, _ in samples_as_seen(setup, cursor)} == {(size, size, 3)}


def test_the_classes_of_the_page_add_up_to_the_last_evaluation(page, tiny_run):
    last = [line for line in metrics_log.read(tiny_run) if line["kind"] == "eval"][-1]
    table = page[page.index("<h2>Classes</h2>") :].partition("</table>")[0]
    counts = [[int(value) for value in re.findall(r'data-value="(\d+)"', row)] for row in table.split("<tr>")[2:]]
    assert [sum(column) for column in zip(*counts, strict=True)] == [last["n"], round(last["top1"] * last["n"])]
    assert page.count('<figure class="right">') + page.count('<figure class="wrong">') == last["n"]  # few enough: all


def test_a_running_run_is_read_again(tmp_path, tiny_run, monkeypatch):
    for name in ("metrics.jsonl", "config.json"):
        (tmp_path / name).write_bytes((tiny_run / name).read_bytes())
    setup = SimpleNamespace(config=TrainConfig(workdir=str(tmp_path)), labels=("a", "b"))
    report = RunReport(setup)
    report.report(Report(1, 0.1, "train", {}))
    report.end()  # before it began
    assert not (tmp_path / "report.html").exists()
    drawn, genuine = [], curves.training_curves
    monkeypatch.setattr(curves, "training_curves", lambda *given: drawn.append(given) or genuine(*given))
    report.report(Report(1, 0.1, "eval", {}))
    assert len(drawn) == 1  # for the page and the image
    assert cv2.imread(str(tmp_path / "plots" / CURVES)).shape[2] == 3
    assert '<meta http-equiv="refresh" content="30">' in (tmp_path / "report.html").read_text()


def test_a_run_without_evaluations_tells_its_loss():
    assert headline([]) == "no step yet"
    assert headline([{"kind": "train", "step": 1200, "loss": 0.51239}]) == "loss 0.512 at step 1,200"
