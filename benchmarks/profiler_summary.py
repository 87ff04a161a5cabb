"""A profiler trace, and a summary of it as text: no TensorBoard, no browser, no network.

The trace (*.xplane.pb) opens in TensorBoard or xprof. The summary sums up what TensorFlow itself recorded; where the
package xprof is installed, its own overview of the same file follows.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

TOP = 20  # operations listed
_OVERVIEW = ("hardware_type", "steptime_ms_average", "device_duty_cycle_percent", "input_conclusion", "statement")


def profile(work: Callable[[], Any], folder: Path) -> str:
    """Run `work` under TensorFlow's profiler; the trace goes to `folder` in place of an earlier one.

    Returns:
      The summary.
    """
    import tensorflow as tf

    shutil.rmtree(folder, ignore_errors=True)
    with tf.profiler.experimental.Profile(str(folder)):
        work()
    traces = sorted(folder.rglob("*.xplane.pb"))
    if not traces:
        return "the profiler wrote no trace\n"
    return f"{traces[0].relative_to(folder.parent)}\n\n{own_summary(traces[0])}\n{xprof_summary(traces[0])}\n"


def own_summary(path: Path) -> str:
    """The operations by the time they took themselves, for each device of the trace."""
    try:
        from tensorflow.tsl.profiler.protobuf import xplane_pb2
    except ImportError as error:
        return f"no summary: this TensorFlow brings no reader of traces ({error})"
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
                seconds[_short(name)] += own / 1e12
                calls[_short(name)] += 1
        total = sum(seconds.values())
        if not total:
            continue
        lines = [f"{plane.name}: {total:.3f} s recorded on {len(plane.lines)} lines", "   self ms  share   calls  what"]
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


def xprof_summary(path: Path) -> str:
    """What xprof says of the same trace, or one line that says why there is nothing."""
    try:
        from xprof.convert import raw_to_tool_data
    except ImportError:
        return "xprof is not installed: pip install xprof adds its overview here"

    def tables(tool: str) -> list[dict[str, Any]]:
        return json.loads(raw_to_tool_data.xspace_to_tool_data([str(path)], tool, {})[0])

    try:
        operations = tables("framework_op_stats")[0]
        facts = {key: value for table in tables("overview_page") for key, value in (table.get("p") or {}).items()}
    except Exception as error:
        # Another project's private formats: whatever it raises must not cost the measurements.
        return f"xprof could not read the trace ({type(error).__name__}: {str(error)[:200]})"
    names = [column["id"] for column in operations["cols"]]
    rows = [dict(zip(names, [cell["v"] for cell in row["c"]], strict=True)) for row in operations["rows"]]
    lines = ["xprof, operations by self time:", "   self ms   calls  where   what"]
    for row in sorted(rows, key=lambda row: -row["total_self_time"])[:TOP]:
        milliseconds, calls = row["total_self_time"] / 1e3, int(row["occurrences"])
        lines.append(f"{milliseconds:10.1f}  {calls:6,}  {row['host_or_device']:6}  {row['operation'][:80]}")
    lines += [f"{name}: {facts[name]}" for name in _OVERVIEW if facts.get(name)]
    return "\n".join(lines)


def _short(name: str) -> str:
    """Without the numbers that make every call another name."""
    return (name.split("#", 1)[0].strip(" :") or name)[:80]
