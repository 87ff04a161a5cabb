"""A profiler trace, and a summary of it as text: no TensorBoard, no browser, no network.

The trace (*.xplane.pb) opens in TensorBoard or xprof. The summary needs TensorFlow alone; xprof would bring forty
packages.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from shardline.pipeline.files import atomic_write

FILE = "profile.txt"
TOP = 20  # operations listed


def write(work: Callable[[], object], directory: Path) -> Path:
    """Run `work` under TensorFlow's profiler.

    Returns:
      The summary, DIRECTORY/profile.txt; the trace lies in DIRECTORY/profile, beside earlier ones.
    """
    import tensorflow as tf  # takes seconds

    folder = directory / "profile"
    earlier = set(folder.rglob("*.xplane.pb"))
    with tf.profiler.experimental.Profile(str(folder)):
        work()
    traces = sorted(set(folder.rglob("*.xplane.pb")) - earlier)
    text = f"{traces[0].relative_to(directory)}\n\n{summary(traces[0])}" if traces else "the profiler wrote no trace"
    atomic_write(directory / FILE, text + "\n", durable=False)
    return directory / FILE


def summary(path: Path) -> str:
    """The operations by the time they took themselves, for each device of the trace."""
    try:
        from tensorflow.tsl.profiler.protobuf import xplane_pb2  # not part of TensorFlow's public interface
    except ImportError as error:
        return f"no summary: this TensorFlow brings no reader of traces ({error}); the trace opens in TensorBoard"
    space = xplane_pb2.XSpace()
    space.ParseFromString(path.read_bytes())
    parts = []
    for plane in space.planes:
        seconds: defaultdict[str, float] = defaultdict(float)
        calls: defaultdict[str, int] = defaultdict(int)
        for line in plane.lines:
            events = [(e.offset_ps, e.offset_ps + e.duration_ps, plane.event_metadata[e.metadata_id].name)
                      for e in line.events]  # fmt: skip
            for name, own in self_times(events):
                seconds[_operation(name)] += own / 1e12
                calls[_operation(name)] += 1
        total = sum(seconds.values())
        if total:
            lines = [f"{plane.name}: {total:.3f} s recorded on {len(plane.lines)} lines"]
            lines.append("   self ms  share   calls  operation")
            for name in sorted(seconds, key=lambda name: -seconds[name])[:TOP]:
                lines.append(f"{seconds[name] * 1e3:10.1f}  {seconds[name] / total:5.1%}  {calls[name]:6,}  {name}")
            parts.append("\n".join(lines))
    return "\n\n".join(parts) or "the trace holds no events"


def self_times(events: Iterable[tuple[int, int, str]]) -> list[tuple[str, int]]:
    """What each event of one line took without those nested in it.

    Args:
      events: (start, end, name) in one unit of time.

    Returns:
      (name, time) of each event, outer events before their inner ones.
    """
    found: list[tuple[str, int]] = []
    open_: list[tuple[int, int]] = []  # (end, place in `found`) of the events around the present one
    for start, end, name in sorted(events, key=lambda event: (event[0], -event[1])):
        while open_ and open_[-1][0] <= start:
            open_.pop()
        if open_:
            outer_end, place = open_[-1]
            outer, own = found[place]
            found[place] = (outer, own - (min(end, outer_end) - start))
        open_.append((end, len(found)))
        found.append((name, end - start))
    return found


def _operation(name: str) -> str:
    """Without the numbers that make every call another name."""
    return (name.split("#", 1)[0].strip(" :") or name)[:80]
