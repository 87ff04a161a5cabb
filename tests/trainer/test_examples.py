"""Right and wrong answers by class: counts against the rows, images against the records they are of."""

import cv2
import numpy as np
import pytest

from shardline import pipeline
from shardline.tools.html_report import HtmlReport
from shardline.trainer.callbacks import Answers
from shardline.trainer.config import TrainConfig
from shardline.trainer.examples import HeldOut, add_examples, mistakes_sheet, webp
from tests.trainer.tiny import COLORS

LABELS = ("blue", "green", "red")


@pytest.fixture(scope="module")
def found(tiny_data):
    """Nine validation records, in stored order, of which three are answered wrong."""
    data = pipeline.open_dataset(tiny_data)
    labels = np.array([label for _, label, _ in data.records("validation", range(9))])
    predicted = labels.copy()
    red, blue = np.flatnonzero(labels == 2), np.flatnonzero(labels == 0)
    predicted[red[:2]], predicted[blue[0]] = 0, 1
    answers = Answers(np.arange(9), labels, predicted, np.linspace(0.5, 0.9, 9, dtype=np.float32))
    config = TrainConfig(data=str(tiny_data), image_size=32)
    return HeldOut(data, "validation", config, LABELS, answers)


def test_confused_pairs_and_classes_are_counted(found):
    assert found.confused() == [(2, 0, 2), (0, 1, 1)]
    records, right = found.counts()
    assert records.tolist() == [3, 3, 3] and right.tolist() == [2, 3, 1]


def test_the_page_marks_right_and_wrong_images_of_each_class_the_worst_first(found):
    page = HtmlReport("t")
    add_examples(page, found)
    text = page.render()
    order = [
        text.index(f"<h3>{line}</h3>") for line in ("red: 1 of 3 right", "blue: 2 of 3 right", "green: 3 of 3 right")
    ]
    assert order == sorted(order)
    assert text.count('<figure class="right">') == 6 and text.count('<figure class="wrong">') == 3
    row = np.flatnonzero(found.answers.labels == 2)[0]
    assert f"✗ blue {found.answers.confidence[row]:.0%}<" in text
    assert "3 mistakes of 9 records of validation." in text


def test_images_are_those_of_their_records(found):
    for row, image in enumerate(found.images(np.arange(9))):
        pixels = image.reshape(-1, 3).astype(float)
        near = {name: np.linalg.norm(pixels - color, axis=1).min() for name, color in COLORS.items()}
        assert min(near, key=near.get) == LABELS[found.answers.labels[row]]
    decoded = cv2.imdecode(np.frombuffer(webp(image, 16), np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (16, 16, 3)


def test_a_sheet_of_mistakes_or_none(found):
    sheet = cv2.imdecode(np.frombuffer(mistakes_sheet(found), np.uint8), cv2.IMREAD_COLOR)
    assert sheet.shape == (128 + 26, 3 * 128, 3)
    answers = found.answers
    perfect = Answers(answers.records, answers.labels, answers.labels, answers.confidence)
    assert mistakes_sheet(HeldOut(found.data, "validation", found.config, LABELS, perfect)) == b""


def test_many_classes_show_the_worst_and_fold_the_table(tiny_data):
    data, number = pipeline.open_dataset(tiny_data), 1000
    labels = np.repeat(np.arange(number), 2)
    answers = Answers(np.arange(2 * number) % 9, labels, np.where(labels < 20, labels + 1, labels), np.ones(2 * number))
    found = HeldOut(data, "validation", TrainConfig(image_size=32), [f"class {i}" for i in range(number)], answers)
    page = HtmlReport("t")
    add_examples(page, found)
    text = page.render()
    assert text.count("<h3>") == 12 and "<summary>1,000 rows</summary>" in text and len(text) < 500_000
    assert "class 999" in text  # in the table
