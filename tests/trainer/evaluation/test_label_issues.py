"""Label issues: swapped labels are found, unsure mistakes are left alone."""

import numpy as np

from shardline.trainer.evaluation.label_issues import label_issues


def test_swapped_labels_are_the_label_issues():
    random = np.random.default_rng(5)
    truth = random.integers(3, size=90)
    probabilities = np.full((90, 3), 0.05)
    probabilities[np.arange(90), truth] = 0.9
    labels = truth.copy()
    labels[[7, 30]] = (truth[[7, 30]] + 1) % 3
    assert sorted(label_issues(probabilities, labels)) == [7, 30]


def test_an_unsure_mistake_is_no_label_issue():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.45, 0.55]])
    assert label_issues(probabilities, np.array([0, 0, 1, 0])).size == 0
