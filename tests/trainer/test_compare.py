"""Comparing runs: the table, the flags that differ, McNemar's test on the images both were evaluated on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest

from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import file_sha256
from shardline.trainer import compare
from shardline.trainer.compare import CompareConfig, EvaluatedRun
from tests.pipeline.tiny import edit_stored
from tests.trainer.tiny import command


@pytest.fixture(scope="module")
def other_run(tiny_run, tiny_evaluation, tmp_path_factory):
    """A copy of the run with one other flag, evaluated as right everywhere."""
    other = tmp_path_factory.mktemp("runs") / "other"
    shutil.copytree(tiny_run, other)
    edit_stored(other / "config.json", lambda content: content["train"].update(momentum=0.5))
    evaluation = other / "evaluation-test"
    shutil.copytree(tiny_evaluation, evaluation)
    table = pq.read_table(evaluation / "predictions.parquet")
    right = pa.array([True] * len(table))
    table = table.set_column(table.schema.get_field_index("correct"), "correct", right)
    pq.write_table(table, evaluation / "predictions.parquet")
    changes = {"run": str(other), "top1": 1.0, "predictions_sha256": file_sha256(evaluation / "predictions.parquet")}
    edit_stored(evaluation / "metrics.json", lambda content: content.update(changes))
    return other


def test_two_runs_side_by_side(tiny_evaluation, tiny_metrics, other_run, tmp_path):
    result = command("shardline.trainer.compare", tiny_evaluation, other_run, "--output", tmp_path)
    assert "--momentum" in result.stdout and "0.9" in result.stdout and "0.5" in result.stdout
    assert "--image_size" not in result.stdout  # equal in both
    found = json.loads((tmp_path / "compare.json").read_text())
    assert found["flags"] == {"--momentum": ["0.9", "0.5"]}
    assert [row["top-1"] for row in found["results"]] == [round(tiny_metrics["top1"], 4), 1.0]
    (test,) = found["mcnemar"]
    wrong = round(21 * (1 - tiny_metrics["top1"]))
    assert (test["shared"], test["first_only"], test["second_only"]) == (21, 0, wrong)
    assert test["p"] == pytest.approx(min(1, 2 * 0.5**wrong))
    assert {"compare.html", "curves.png"} <= {path.name for path in tmp_path.iterdir()}
    assert "http" not in (tmp_path / "compare.html").read_text()


def test_from_python_it_returns_the_table(tiny_evaluation, tiny_metrics, other_run):
    found = compare.compare(CompareConfig(runs=(tiny_evaluation, other_run)))
    assert found.names == ("evaluation", "other")
    (flag,) = found.differences
    assert flag == ("--momentum", "0.9", "0.5")
    assert [dict(zip(compare.HEADER, row, strict=True))["top-1"] for row in found.results] == [
        round(tiny_metrics["top1"], 4), 1.0
    ]  # fmt: skip


def test_a_run_without_an_evaluation_is_still_in_the_table(tiny_run, other_run):
    result = command("shardline.trainer.compare", tiny_run, other_run)
    assert "not evaluated" in result.stdout
    assert "no predictions of run on this split; evaluate first" in result.stdout


def test_names_are_the_shortest_that_differ():
    assert compare.unique_names(["/a/x/run", "/a/y/run"]) == ["x/run", "y/run"]
    assert compare.unique_names(["/a/one", "/b/two"]) == ["one", "two"]


def test_an_evaluation_of_other_weights_than_the_run_has_now_is_noted(tiny_evaluation, other_run, tmp_path, capsys):
    again = tmp_path / "again"
    shutil.copytree(other_run, again)
    weights = {"step": 3, "sha256": "0" * 64}
    edit_stored(again / "evaluation-test" / "metrics.json", lambda c: c.update(weights=weights, run=str(again)))
    compare.compare(CompareConfig(runs=(tiny_evaluation, again)))
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert notes == [
        "note: again was evaluated with the weights of step 3, those of the run are now of step 6; evaluate it again"
    ]


def evaluated(name, paths, correct, digest="d"):
    count = len(paths)
    columns = {"id": range(count), "path": paths, "label": ["red"] * count, "correct": correct}
    return EvaluatedRun(name, Path(), {}, [], {"digest": digest, "top1": sum(correct) / count}, pa.table(columns))


@pytest.mark.parametrize("paths", (["", "", "", ""], ["1.jpg"] * 4), ids=["no names", "one name"])
def test_images_without_names_of_their_own_are_paired_by_record_in_one_dataset_and_in_two_not_at_all(paths):
    """Adopted shards may name no files: paired by name, all images of a class would be one."""
    hits = [True, False, False, False], [False, True, True, False]
    found = compare.mcnemar_test(*(evaluated(name, paths, hit) for name, hit in zip("ab", hits, strict=True)))
    assert (found["shared"], found["first_only"], found["second_only"]) == (4, 1, 2)
    assert found["p"] == pytest.approx(binomtest(1, 3).pvalue)
    apart = [evaluated(name, paths, hit, name) for name, hit in zip("ab", hits, strict=True)]
    assert compare.mcnemar_test(*apart)["line"] == "a and b: evaluated on different images, nothing to test"


def test_images_of_different_datasets_are_paired_by_file_and_class_and_that_is_said():
    one = evaluated("a", ["1.jpg", "2.jpg", "3.jpg"], [True, False, True], "first")
    two = evaluated("b", ["3.jpg", "1.jpg", "9.jpg"], [False, True, True], "second")
    found = compare.mcnemar_test(one, two)
    assert (found["shared"], found["first_only"], found["second_only"]) == (2, 1, 0)
    assert "a and b on 2 shared images, matched by file and class, for their datasets differ: 1 corr" in found["line"]


def test_of_equally_good_runs_none_is_called_better():
    """Of 12 some differ by chance at 5%, the more so from the best; two that differ all the more are told apart."""
    random, paths = np.random.default_rng(0), [f"{i}.jpg" for i in range(240)]
    runs = [evaluated(str(i), paths, (random.random(240) < 0.8).tolist()) for i in range(12)]
    tests = compare.mcnemar_tests(runs)
    assert len(tests) == 11 and min(test["p"] for test in tests) < 0.05
    assert all(test["line"].endswith("(Holm): no evidence of a difference") for test in tests)
    assert "as one of 66 pairs 1 (Holm)" in tests[0]["line"]
    good, bad = evaluated("good", paths, [True] * 240), evaluated("bad", paths, [True] * 232 + [False] * 8)
    (test,) = compare.mcnemar_tests([bad, good])
    assert test["line"].endswith("0 correct only with bad, 8 only with good, McNemar p = 0.0078: good is better")
    assert test["p_adjusted"] == test["p"]


def test_an_evaluation_of_another_split_is_refused(tiny_evaluation, other_run):
    with pytest.raises(UsageError, match=r"^split=validation: .* is an evaluation of test; give split=test, or"):
        compare.compare(CompareConfig(runs=(tiny_evaluation, other_run), split="validation"))


def test_an_evaluation_in_a_run_directory_that_was_copied_is_of_the_copy(other_run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(other_run, copy)
    edit_stored(copy / "config.json", lambda content: content["train"].update(momentum=0.25))
    edit_stored(copy / "evaluation-test" / "metrics.json", lambda content: content.update(tta="flip", digest="1" * 64))
    found = compare.compare(CompareConfig(runs=(str(other_run), str(copy / "evaluation-test"))))
    flags = {row[0]: row[1:] for row in found.differences}
    assert flags["--momentum"] == ("0.5", "0.25")
    assert flags["evaluation: --tta"] == ("none", "flip")
    assert flags["evaluation: dataset digest"][1] == "1" * 12


def test_an_evaluation_of_a_checkpoint_that_was_named_is_told_from_the_run(
    tiny_evaluation, other_run, tmp_path, capsys
):
    named = tmp_path / "named"
    shutil.copytree(other_run, named)
    changes = {"weights": {"step": 3, "sha256": "0" * 64}, "checkpoint": "step-00000003.npz"}
    edit_stored(named / "evaluation-test" / "metrics.json", lambda content: content.update(changes))
    compare.compare(CompareConfig(runs=(tiny_evaluation, named)))
    (note,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert note == (
        "note: named was evaluated with --checkpoint=step-00000003.npz, of step 3; its held-out top-1 is of the run's "
        "weights, of step 6"
    )


def test_a_folder_of_runs_gets_an_index_that_leads_to_their_pages(tiny_run, other_run, tmp_path):
    for name, run in (("first", tiny_run), ("second", other_run)):
        shutil.copytree(run, tmp_path / "runs" / name)
    (tmp_path / "runs" / "notes").mkdir()  # no run
    result = command("shardline.trainer.compare", tmp_path / "runs", "--output", tmp_path / "runs")
    assert "first" in result.stdout and "second" in result.stdout and "notes" not in result.stdout
    page = (tmp_path / "runs" / "compare.html").read_text()
    assert '<a href="first/report.html">first</a>' in page and '<a href="second/report.html">second</a>' in page
    again = compare.compare(CompareConfig(runs=(str(tmp_path / "runs" / "first"), str(other_run))))
    assert again.names == ("first", "other")


def test_of_many_runs_each_is_tested_with_the_best():
    table = pa.table({})
    runs = [EvaluatedRun(str(i), Path(), {}, [], {"top1": i / 10}, table if i != 3 else None) for i in range(8)]
    pairs = [(a.name, b.name) for a, b in compare.pairs_to_test(runs)]
    assert pairs == [("7", "6"), ("7", "5"), ("7", "4"), ("7", "2"), ("7", "1"), ("7", "0")]
    assert len(compare.pairs_to_test(runs[:6])) == 15
