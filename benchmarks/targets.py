"""What the comparisons are meant to reach: ratios that are checked whenever their suite is measured."""

from __future__ import annotations

from collections.abc import Sequence

from shardline.benchmarks.measure import CONTROL, Measurement, interval, ratio, ratio_text, reference_of, table

TARGETS = {  # suite: (row, the row it is compared with, least ratio)
    "input": (
        ("shardline host", "Model Garden, float32", 2.0),
        ("shardline host", "bare loop, whole images", 1.1),
        ("shardline host", "PyTorch DataLoader + OpenCV", 1.45),
        ("shardline host", "Grain + ArrayRecord + OpenCV", 1.2),
        ("shardline device", "PyTorch DataLoader + OpenCV", 1.35),
        ("shardline device", "TensorFlow, decode only", 1.0),
        ("shardline raw, host", "TensorFlow, decode only", 3.0),
        ("shardline raw, device", "TensorFlow, decode only", 3.0),
        ("shardline host", "shardline host, in stored order", 0.9),
        ("shardline host, 2 cores", "shardline host", 1.85),
    ),
    "convert": (
        ("shardline", "plain loop", 1.2),
        ("shardline, 2 workers on 2 cores", "shardline", 1.85),
        ("shardline", "FFCV writer", 2.0),
        ("shardline", "img2dataset", 3.0),
    ),
    "convert 12 megapixels": (("shardline", "plain loop", 2.0),),
    "train": (
        ("loop, real input", "loop, synthetic input", 0.97),
        ("loop, synthetic input", "bare tf.function, one batch", 0.98),
    ),
    "object_store": (
        ("store, warm cache", "folder", 0.97),
        ("store, cold, 50 ms", "folder", 0.8),
        ("store, cold, 50 ms", "store, cold", 0.95),
        ("store, in blocks, cache of a half, 50 ms", "store, in blocks, cache of a half", 0.95),
    ),
    "train head": (("head, on stored features", "head, through the frozen layers", 20.0),),
}


def summary(measured: Sequence[Measurement]) -> str:
    """A suite as text: its table, the control, and each target with what was reached."""
    by_name = {m.name: m for m in measured}
    lines, reference = [table(measured)], reference_of(measured)
    if CONTROL in by_name:
        low, high = interval(by_name[CONTROL], reference)
        middle = ratio(by_name[CONTROL], reference)[0]
        lines.append(f"noise: the reference, measured twice, is {middle:.3f} times itself ({low:.3f}–{high:.3f})")
    for name, other, least in TARGETS.get(measured[0].suite, ()):
        if name in by_name and other in by_name:
            reached = "reached" if ratio(by_name[name], by_name[other])[0] >= least else "MISSED"
            lines.append(
                f"{name} / {other}: {ratio_text(by_name[name], by_name[other])}, target {least:.2f}: {reached}"
            )
    return "\n".join(lines)
