"""A trace of a few operations, and the sums that its summary is made of."""

from shardline.benchmarks.profiler_summary import self_times, write


def test_an_event_is_charged_without_those_inside_it():
    events = [(0, 100, "outer"), (10, 40, "first"), (20, 30, "inmost"), (40, 60, "second"), (200, 210, "alone")]
    assert self_times(events) == [("outer", 50), ("first", 20), ("inmost", 10), ("second", 20), ("alone", 10)]


def test_the_sum_is_the_time_covered_even_if_events_overlap():
    assert sum(own for _, own in self_times([(0, 10, "a"), (5, 15, "b")])) == 15


def test_a_trace_is_written_and_summed_up(tmp_path):
    import tensorflow as tf

    def work():
        matrix = tf.random.uniform((200, 200))
        for _ in range(20):
            matrix = tf.linalg.matmul(matrix, matrix) / 200.0
        return float(matrix[0, 0])

    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "old.xplane.pb").write_bytes(b"of an earlier run")
    summary = write(work, tmp_path).read_text()
    found = set((tmp_path / "profile").rglob("*.xplane.pb"))
    (trace,) = found - {tmp_path / "profile" / "old.xplane.pb"}
    assert len(found) == 2  # nothing is deleted
    assert trace.stat().st_size > 1000
    assert summary.startswith("profile/") and "MatMul" in summary and "self ms" in summary
