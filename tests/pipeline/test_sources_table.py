"""sources.parquet: its columns, its readers, and that it is whole or absent."""

import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from shardline.pipeline.errors import UsageError
from shardline.pipeline.sources_table import ROW_GROUP, SOURCES, SOURCES_FILE, iterate_sources, read_sources
from shardline.pipeline.sources_table import sources_writer as writer


def rows(count, split="train", first=0):
    columns = {
        field.name: pa.array(["" if pa.types.is_string(field.type) else 0] * count, field.type) for field in SOURCES
    }
    columns |= {"split": pa.array([split] * count), "record": pa.array(range(first, first + count))}
    return pa.table(columns)


def test_rows_come_back_in_order_from_few_row_groups(tmp_path):
    with writer(tmp_path) as write:
        for piece in range(60):  # many shards of few records
            write(rows(500, "train" if piece < 40 else "test", first=500 * piece))
    assert read_sources(tmp_path, ["record"])["record"].to_pylist() == list(range(30_000))
    held_out = read_sources(tmp_path, ["record"], where=[("split", "=", "test"), ("record", "<", 20_003)])
    assert held_out.to_pylist() == [{"record": 20_000 + i} for i in range(3)]
    batches = list(iterate_sources(tmp_path, ["record", "split"]))
    assert [value for batch in batches for value in batch["record"].to_pylist()] == list(range(30_000))
    assert max(map(len, batches)) <= ROW_GROUP
    assert parquet.ParquetFile(tmp_path / SOURCES_FILE).num_row_groups == 3


def test_it_is_whole_or_absent(tmp_path):
    with pytest.raises(ZeroDivisionError), writer(tmp_path) as write:
        write(rows(3))
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        read_sources(tmp_path, ["path"])


def test_damage_is_one_line(tmp_path):
    with writer(tmp_path) as write:
        write(rows(50))
    path = tmp_path / SOURCES_FILE
    whole = path.read_bytes()
    for damaged in (b"", b"x" * 100, whole[:-30], whole[: len(whole) // 2], whole[:4] + bytes(40) + whole[44:]):
        path.write_bytes(damaged)
        for read in (read_sources, lambda *args: list(iterate_sources(*args))):
            with pytest.raises(UsageError, match=rf"{SOURCES_FILE} cannot be read \(.*; restore it") as refusal:
                read(tmp_path, SOURCES.names)
            assert "\n" not in str(refusal.value)


def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path):
    table = rows(40).set_column(1, SOURCES.field("sha256"), pa.array([f"{number:064x}" for number in range(40)]))
    with writer(tmp_path) as write:
        write(table)
    path = tmp_path / SOURCES_FILE
    whole, found = path.read_bytes(), 0
    for at in range(0, len(whole), 29):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            shown = pa.Table.from_batches(iterate_sources(tmp_path, SOURCES.names))
        except UsageError:
            found += 1
        else:
            assert shown.equals(table), at
    assert found > len(whole) / 29 / 3


def test_columns_of_other_types_are_refused(tmp_path):
    parquet.write_table(pa.table({"record": ["a"], "split": ["train"]}), tmp_path / SOURCES_FILE)
    for columns in (["record"], ["split", "sha256"]):
        for read in (read_sources, lambda *args: list(iterate_sources(*args))):
            with pytest.raises(
                UsageError, match=rf"{SOURCES_FILE} cannot be read \(.*(its columns are|No match).*; restore it"
            ):
                read(tmp_path, columns)


def test_values_that_are_no_text_or_missing_are_refused_and_a_pipe_is_not_waited_for(tmp_path):
    no_text = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())
    for path, said in ((no_text, "Invalid UTF8"), (pa.nulls(1, pa.string()), "values of path are missing")):
        parquet.write_table(pa.table({"path": path}), tmp_path / SOURCES_FILE)
        for read in (read_sources, lambda *args: list(iterate_sources(*args))):
            with pytest.raises(UsageError, match=said):
                read(tmp_path, ["path"])
    (tmp_path / SOURCES_FILE).unlink()
    os.mkfifo(tmp_path / SOURCES_FILE)
    with pytest.raises(UsageError, match="is no regular file"):
        read_sources(tmp_path, ["path"])


def test_rows_of_other_types_are_refused(tmp_path):
    with pytest.raises(pa.ArrowInvalid), writer(tmp_path) as write:
        write(rows(1).set_column(0, "path", pa.array([b"\xff"])))


def test_a_worker_loads_no_more_of_arrow_than_it_needs():
    """Each megabyte there is one for each core."""
    code = (
        "import sys, shardline.tools.conversion.shard_writer\n"
        "print([name for name in ('tensorflow', 'pyarrow.parquet', 'pyarrow.compute', 'matplotlib', 'absl')\n"
        "       if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
