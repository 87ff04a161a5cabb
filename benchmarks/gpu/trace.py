"""What a profiler trace says of a GPU: time in kernels by kind, copies from the host, and idle time in between."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

Facts: TypeAlias = dict[str, Any]
LONGEST_GAPS, TOP_KERNELS = 5, 12
_KINDS = (  # the first whose words are in a kernel's name
    ("convolution", ("conv", "cudnn", "fprop", "dgrad", "wgrad", "implicit")),
    ("matrix product", ("gemm", "cublas", "matmul", "cutlass")),
    ("sort", ("sort", "topk", "radix")),
    ("scatter", ("scatter",)),
    ("reduction", ("reduce",)),
    ("all-reduce", ("nccl",)),
    ("fusion", ("fusion",)),
)


@dataclass(frozen=True)
class Event:
    """Something that a device did. Times in picoseconds."""

    name: str
    start: int
    stop: int
    details: str = ""  # of a copy

    @property
    def is_copy(self) -> bool:
        """Whether it is no kernel, but moves memory."""
        return bool(self.details) or self.name.lower().startswith("memcpy")


def summarize(path: Path) -> Facts:
    """The facts of the first GPU in an *.xplane.pb; an error where the profiler saw none."""
    try:
        from tensorflow.tsl.profiler.protobuf import xplane_pb2  # not part of TensorFlow's public interface
    except ImportError as error:
        return {"error": f"this TensorFlow brings no reader of traces: {error}"}
    space = xplane_pb2.XSpace()
    space.ParseFromString(path.read_bytes())
    planes = [plane for plane in space.planes if plane.name.startswith("/device:GPU")]
    if not planes:
        return {"error": f"no GPU in the trace, only {', '.join(plane.name for plane in space.planes)}"}
    return facts(list(events(planes[0])))


def events(plane: Any) -> Iterator[Event]:
    """Kernels and copies of an XPlane: the events on its lines of streams."""
    names, statistics = plane.event_metadata, plane.stat_metadata
    for line in plane.lines:
        if not line.name.startswith("Stream"):
            continue  # lines that TensorFlow derives from the streams
        for event in line.events:
            details = [
                stat.str_value or statistics[stat.ref_value].name
                for stat in event.stats
                if statistics[stat.metadata_id].name == "memcpy_details"
            ]
            start = line.timestamp_ns * 1000 + event.offset_ps
            yield Event(names[event.metadata_id].name, start, start + event.duration_ps, " ".join(details))


def facts(found: Sequence[Event]) -> Facts:
    """Shares, copies and gaps. Times in milliseconds."""
    copies = [event for event in found if event.is_copy]
    kernels = [event for event in found if not event.is_copy and not event.name.lower().startswith("memset")]
    if not kernels:
        return {"error": "no kernels in the trace"}
    busy = merged((event.start, event.stop) for event in kernels)
    span, working = busy[-1][1] - busy[0][0], sum(stop - start for start, stop in busy)
    gaps = sorted((later[0] - earlier[1] for earlier, later in pairwise(busy)), reverse=True)
    return {
        "milliseconds": _milliseconds(span),
        "busy_percent": round(100 * working / span, 2),
        "longest_gaps_milliseconds": [_milliseconds(gap) for gap in gaps[:LONGEST_GAPS]],
        "gaps_above_100_microseconds": sum(gap > 1e8 for gap in gaps),
        "milliseconds_in_gaps_above_100_microseconds": _milliseconds(sum(gap for gap in gaps if gap > 1e8)),
        "share_of_kernels": _shares(kernels),
        "top_kernels_milliseconds": _top(kernels),
        "copies": list(_copies(copies)),
    }


def merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order, those that overlap as one."""
    found: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], stop))
        else:
            found.append((start, stop))
    return found


def _shares(kernels: Sequence[Event]) -> dict[str, float]:
    times: Counter[str] = Counter()
    for event in kernels:
        name = event.name.lower()
        times[next((kind for kind, words in _KINDS if any(word in name for word in words)), "other")] += (
            event.stop - event.start
        )
    return {kind: round(time / times.total(), 4) for kind, time in times.most_common()}


def _top(kernels: Sequence[Event]) -> dict[str, float]:
    times: Counter[str] = Counter()
    for event in kernels:
        times[event.name[:90]] += event.stop - event.start
    return {name: _milliseconds(time) for name, time in times.most_common(TOP_KERNELS)}


def _copies(copies: Sequence[Event]) -> Iterator[Facts]:
    """For each kind, direction and memory: how many, bytes, rate."""
    groups: defaultdict[str, list[Event]] = defaultdict(list)
    for event in copies:
        kind = re.sub(r"\s*(size|dest|async):\S+", "", event.details).strip()
        groups[f"{event.name} {kind}".strip()].append(event)
    for kind, found in groups.items():
        sizes = re.findall(r"size:(\d+)", " ".join(event.details for event in found))
        size, time = sum(map(int, sizes)), sum(event.stop - event.start for event in found)
        yield {
            "kind": kind,
            "count": len(found),
            "mb": round(size / 1e6, 3),
            "milliseconds": _milliseconds(time),
            "gb_per_second": round(size * 1e3 / max(time, 1), 3),
        }


def _milliseconds(picoseconds: float) -> float:
    return round(picoseconds / 1e9, 4)
