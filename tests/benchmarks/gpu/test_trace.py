"""What is read from a profiler trace: an XSpace made by hand, as TensorFlow's GPU profiler lays it out."""

import pytest
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from shardline.benchmarks.gpu import trace


def space(*events, plane="/device:GPU:0"):
    """A trace of (line, name, start us, length us, details of a copy)."""
    space = xplane_pb2.XSpace()
    space.planes.add(name="/host:CPU").lines.add(name="Stream of thoughts").events.add(duration_ps=9 * 10**9)
    device = space.planes.add(name=plane)
    device.stat_metadata[1].name = "memcpy_details"
    lines = {}
    for number, (line, name, start, length, details) in enumerate(events, 10):
        if line not in lines:
            lines[line] = device.lines.add(name=line, timestamp_ns=5_000)
        device.event_metadata[number].name = name
        event = lines[line].events.add(metadata_id=number, offset_ps=start * 10**6, duration_ps=length * 10**6)
        if details:
            event.stats.add(metadata_id=1, str_value=details)
    return space


def summarize(tmp_path, *events, **options):
    path = tmp_path / "t.xplane.pb"
    path.write_bytes(space(*events, **options).SerializeToString())
    return trace.summarize(path)


def test_kernels_copies_and_gaps(tmp_path):
    details = "kind_src:pageable kind_dst:device size:25165824 dest:0 async:1"
    found = summarize(
        tmp_path,
        ("Stream #13(Compute)", "cudnn::conv_fprop", 0, 600, ""),
        ("Stream #13(Compute)", "input_reduce_fusion", 500, 200, ""),  # overlaps the one before by 100
        ("Stream #13(Compute)", "sm90_xmma_gemm", 1000, 300, ""),
        ("Stream #13(Compute)", "Memset", 1300, 5000, ""),
        ("Stream #15(MemcpyH2D)", "MemcpyH2D", 100, 4000, details),
        ("XLA Ops", "all of it", 0, 9000, ""),
    )
    assert found["milliseconds"] == 1.3
    assert found["busy_percent"] == pytest.approx(100 * 1000 / 1300, abs=0.01)
    assert found["longest_gaps_milliseconds"] == [0.3]
    assert found["gaps_above_100_microseconds"] == 1
    assert found["share_of_kernels"] == pytest.approx(
        {"convolution": 600 / 1100, "matrix product": 300 / 1100, "reduction": 200 / 1100}, abs=1e-4
    )
    assert found["top_kernels_milliseconds"]["cudnn::conv_fprop"] == 0.6
    (copy,) = found["copies"]
    assert copy["kind"] == "MemcpyH2D kind_src:pageable kind_dst:device"
    assert (copy["count"], copy["mb"]) == (1, 25.166)
    assert copy["gb_per_second"] == pytest.approx(25165824 / 4000e-6 / 1e9, abs=1e-3)


def test_a_trace_without_a_gpu_says_so(tmp_path):
    assert summarize(tmp_path, plane="/host:metadata") == {
        "error": "no GPU in the trace, only /host:CPU, /host:metadata"
    }
    assert summarize(tmp_path) == {"error": "no kernels in the trace"}


def test_spans_that_touch_are_one():
    assert trace.merged([(5, 6), (0, 2), (1, 3), (3, 4)]) == [(0, 4), (5, 6)]
