"""Numbers over time: metrics.jsonl, TensorBoard scalars, and the device's measured peak for MFU."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE_NAME = "metrics.jsonl"


class MetricsLog:
    """Appends one JSON object a line, and the same numbers to TensorBoard where it is installed."""

    def __init__(self, workdir: str, resumed_step: int) -> None:
        """Lines behind `resumed_step` are dropped: those steps will be run, and written, again."""
        self._path = Path(workdir) / FILE_NAME
        kept = [line for line in read(workdir) if line["step"] <= resumed_step]
        temporary = self._path.with_name(FILE_NAME + ".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, self._path)
        self._file = self._path.open("a", encoding="utf-8")
        self._board: Any = None
        if importlib.util.find_spec("tensorboard"):
            import tensorflow as tf

            self._board = tf.summary.create_file_writer(str(Path(workdir) / "tensorboard"))

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """One line, flushed, so that a reader never waits and a kill loses nothing."""
        self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        self._file.flush()
        if self._board:
            import tensorflow as tf

            # What tf.summary.scalar writes; that one wants the package itself.
            metadata = tf.compat.v1.SummaryMetadata()
            metadata.plugin_data.plugin_name = "scalars"
            with self._board.as_default():
                for name, value in values.items():
                    if isinstance(value, int | float):
                        number = tf.constant(value, tf.float32)
                        tf.summary.write(f"{kind}/{name}", number, step=step, metadata=metadata)
            self._board.flush()

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        if self._board:
            self._board.close()


def read(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All whole lines of a run's metrics; a line that a kill cut short is left out."""
    path = Path(workdir) / FILE_NAME
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def peak_tflops(kind: str, precision: str) -> float:
    """Teraflop/s one device reaches on a large matrix product in this precision: what MFU is a share of."""
    import tensorflow as tf

    side, dtype = (8192, tf.as_dtype(precision.removeprefix("mixed_"))) if kind == "GPU" else (1024, tf.float32)
    with tf.device(f"/{kind}:0"):
        a = tf.cast(tf.random.stateless_normal([side, side], seed=[0, 0]), dtype)
        product = tf.function(lambda: tf.reduce_sum(tf.matmul(a, a)), jit_compile=kind == "GPU")
        product().numpy()
        best, started = float("inf"), time.perf_counter()
        while time.perf_counter() - started < 0.3:
            begin = time.perf_counter()
            product().numpy()
            best = min(best, time.perf_counter() - begin)
    return 2 * side**3 / best / 1e12
