"""Label issues: records whose label is probably wrong, found by confident learning. No TensorFlow.

Northcutt, Jiang, Chuang: Confident Learning: Estimating Uncertainty in Dataset Labels, 2021.
"""

from __future__ import annotations

import numpy as np


def label_issues(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Row numbers of the records whose label is probably wrong, most suspicious first.

    A record has an issue when it looks at least as much like the class it is predicted as, another one than its label,
    as records of that class do on average; ordered by how much more probable the prediction is than the label.

    Args:
      probabilities: [records, classes].
      labels: [records].
    """
    rows = np.arange(len(labels))
    own = probabilities[rows, labels].astype(np.float64)
    threshold = np.full(probabilities.shape[1], np.inf)  # a class without records has no average to reach
    for c in np.unique(labels):
        threshold[c] = own[labels == c].mean()
    predicted = probabilities.argmax(axis=1)
    best = probabilities[rows, predicted]
    issues = np.flatnonzero((predicted != labels) & (best >= threshold[predicted]))
    return issues[np.argsort(own[issues] - best[issues], kind="stable")]
