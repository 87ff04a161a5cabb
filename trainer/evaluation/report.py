"""report.html: one page that says what a run was, how well it does, where it errs and why one may believe it."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from shardline.pipeline.cli import progress
from shardline.pipeline.errors import UsageError
from shardline.pipeline.machine import available_cores, processor_name
from shardline.pipeline.wording import count
from shardline.tools.html_report import HtmlReport
from shardline.trainer import metrics_log
from shardline.trainer.evaluation import metrics, results
from shardline.trainer.evaluation.gradcam import GradCam, overlay, side_by_side
from shardline.trainer.evaluation.label_issues import label_issues
from shardline.trainer.evaluation.leakage import training_data
from shardline.trainer.evaluation.model_input import preprocess, stored_images
from shardline.trainer.input_profile import InputProfile
from shardline.trainer.run_dir import read_config, weights_text
from shardline.trainer.run_sections import add_curves, add_settings

if TYPE_CHECKING:
    from shardline.pipeline.dataset import Dataset
    from shardline.tools.plot_style import Plot
    from shardline.trainer.evaluation.results import Evaluation
    from shardline.trainer.run_dir import Run

IMAGES = 12  # in each gallery
LABEL_FLOOR = 0.5  # share of records a model gets right, at least, for its doubts about labels to be shown


def write_report(
    output: Path, directory: Path, run: Run, data: Dataset, evaluation: Evaluation, plots: Mapping[str, Plot]
) -> None:
    """Write the page for one evaluation of the run in `directory`; `plots` holds what `plots.draw` made."""
    content, log = read_config(directory), metrics_log.read(directory)
    values = evaluation.metrics
    page = HtmlReport(
        f"{Path(directory).absolute().name} on {values['split']}: {values['top1']:.1%} top-1",
        subtitle=f"VGG16, {count(len(evaluation.labels), 'class')}, {data.manifest.name}, {values['count']}",
    )
    sections: dict[str, Callable[[], None]] = {
        "result": lambda: add_result(page, values),
        "settings": lambda: add_settings(page, run.config),
        "data": lambda: add_ledger(page, data),
        "training": lambda: add_curves(page, run.config, log),
        "input": lambda: add_input(page, directory),
        "confusion": lambda: add_confusion(page, evaluation, plots),
        "mistakes, Grad-CAM": lambda: add_mistakes(page, run, data, evaluation),
        "labels, Grad-CAM": lambda: add_label_issues(page, run, data, evaluation),
        "calibration": lambda: add_calibration(page, run, values, plots),
        "leakage": lambda: add_leakage(page, run, data, evaluation),
        "environment": lambda: add_environment(page, content, values),
        "files": lambda: page.links("Files", files_of(output, directory, data)),
    }
    with progress(total=len(sections), desc="report", unit="section", leave=False) as bar:
        for name, add in sections.items():
            bar.set_description_str(f"report: {name}")
            add()
            bar.update()
    page.save(output / results.REPORT)


# ------------------------------------------------------------------------------------- sections


SHARES = {"top1", "top5", "ece"}  # shown as percentages
HEADLINES = {
    "top1": "top-1",
    "top5": "top-5",
    "macro_f1": "macro-F1",
    "log_loss": "log loss, nats",
    "ece": "expected calibration error",
    "mean_roc_auc": "mean area under ROC",
    "mean_average_precision": "mean average precision",
}


def add_result(page: HtmlReport, values: Mapping[str, Any]) -> None:
    """The headline numbers, each with its interval where it has one."""
    texts = {key: f"{{:.{1 if key in SHARES else 4}{'%' if key in SHARES else 'f'}}}".format for key in HEADLINES}
    intervals = {key: " to ".join(map(texts[key], ends)) for key, ends in values["interval95"].items()}
    known = {key: name for key, name in HEADLINES.items() if values[key] is not None}
    rows = [(name, texts[key](values[key]), intervals.get(key, "")) for key, name in known.items()]
    if clean := values["leakage"].get("without"):
        rest = f"without copies of training images (n = {clean['n']})"
        rows += [(f"{HEADLINES[key]} {rest}", texts[key](clean[key]), "") for key in ("top1", "top5")]
    tta = {"none": "", "flip": "; averaged over each image and its horizontal flip"}.get(
        values["tta"], f"; averaged over {values['tta']} crops"
    )
    unfinished = "" if values["weights"]["finished"] else " The run is not finished."
    note = f"{values['split']}: {values['count']}{tta}. Weights: {weights_text(values['weights'])}.{unfinished}"
    page.table("Result", ("measure", "value", "95% interval"), rows, note=note)


def add_ledger(page: HtmlReport, data: Dataset) -> None:
    """What became of every input, and how the splits are filled."""
    manifest, splits = data.manifest, list(data.manifest.splits)
    page.text("Data ledger", f"{manifest.ledger}.", f"Dataset digest {manifest.digest}.")
    if all(manifest.class_counts.get(name) for name in splits):
        rows = [
            (label, *(int(manifest.class_counts[name][c]) for name in splits))
            for c, label in enumerate(manifest.shown_labels)
        ]
        page.table("Data ledger", ("class", *splits), rows)
    else:
        page.table("Data ledger", ("split", "records"), [(name, data.num_records(name)) for name in splits])


def add_input(page: HtmlReport, directory: Path) -> None:
    """What each stage of the run's input cost, on each host."""
    try:
        profile = InputProfile.load(directory)
    except FileNotFoundError:
        page.text("Input", "This run directory holds no input_profile.json: it was trained on no dataset on a disk.")
        return
    except UsageError as error:
        page.text("Input", f"{error}.")
        return
    limits = [
        f"Host {host.host}, {name}, {count(times.samples, 'image')}: {times.limit}"
        for host in profile.hosts
        for name, times in host.tables
    ]
    rows = [
        (host.host, name, stage, cost["cpu"], cost["waiting"])
        for host in profile.hosts
        for name, times in host.tables
        for stage, cost in times.table.items()
    ]
    note = f"Up to step {profile.step}; the slowest host first. {'. '.join(limits)}."
    page.table("Input", ("host", "batches", "stage", "CPU µs an image", "waiting µs an image"), rows, note=note)


def add_confusion(page: HtmlReport, evaluation: Evaluation, plots: Mapping[str, Plot]) -> None:
    """Which classes are confused, and the table of classes."""
    matrix, labels = evaluation.confusion, evaluation.shown_labels
    pairs = metrics.confused_pairs(matrix, 20)
    worst = "; ".join(f"{labels[a]} predicted as {labels[b]}: {n}" for a, b, n in pairs[:5]) or "no mistakes"
    page.figure("Confusion", plots["confusion"], f"confusion matrix; {worst}")
    page.table(
        "Confusion",
        ("true class", "predicted as", "records", "of"),
        [(labels[a], labels[b], n, int(matrix[a].sum())) for a, b, n in pairs],
    )
    page.figure("Classes", plots["classes"], "recall and precision of each class, lowest recall first")
    columns = {
        "label": "class", "support": "records", "predicted": "predicted", "precision": "precision", "recall": "recall",
        "f1": "F1", "roc_auc": "ROC area", "average_precision": "average precision",
    }  # fmt: skip
    rows = [tuple("" if c[key] is None else c[key] for key in columns) for c in evaluation.metrics["classes"]]
    page.table("Classes", tuple(columns.values()), rows, note="Click a column heading to sort by it.")
    if "roc_pr" in plots:
        page.figure("ROC and precision-recall", plots["roc_pr"], "one class against the rest at every threshold")


def add_mistakes(page: HtmlReport, run: Run, data: Dataset, evaluation: Evaluation) -> None:
    """The mistakes the model is surest of, with Grad-CAM maps."""
    rows = evaluation.predictions
    wrong = np.flatnonzero(rows.predicted != rows.labels)
    surest = wrong[np.argsort(-rows.probabilities[wrong, rows.predicted[wrong]], kind="stable")][:IMAGES]
    title = "Most confident mistakes"
    if not len(surest):
        page.text(title, "There are no mistakes.")
        return
    page.gallery(
        title,
        gradcam_pairs(run, data, evaluation, surest),
        note="Each image as the model is given it, beside a Grad-CAM map of the evidence for the predicted class "
        "(yellow: most).",
        wide=True,
    )


def add_label_issues(page: HtmlReport, run: Run, data: Dataset, evaluation: Evaluation) -> None:
    """Records whose label is probably wrong, as far as the model is good enough to tell."""
    rows, labels, title = evaluation.predictions, evaluation.shown_labels, "Label issues"
    lowest = evaluation.metrics["interval95"]["top1"][0]
    if lowest < LABEL_FLOOR:
        page.text(
            title,
            f"Not searched for: this model gets {evaluation.metrics['top1']:.0%} of the records right (at least "
            f"{lowest:.0%}, by the 95% interval). Below {LABEL_FLOOR:.0%}, most of what it suspects would be its own "
            "mistakes.",
        )
        return
    issues = label_issues(rows.probabilities, rows.labels)
    if not len(issues):
        page.text(title, "No record looks more like another class than that class's own records do on average.")
        return
    look = "record looks" if len(issues) == 1 else "records look"
    page.gallery(
        title,
        gradcam_pairs(run, data, evaluation, issues[:IMAGES]),
        note=f"{len(issues):,} {look} at least as much like another class as records of that class do on average "
        "(confident learning), the most suspicious first. The label or the model may be wrong: of all records, this "
        f"model gets {evaluation.metrics['top1']:.0%} right.",
        wide=True,
    )
    pairs = Counter(zip(rows.labels[issues].tolist(), rows.predicted[issues].tolist(), strict=True)).most_common()
    support = evaluation.confusion.sum(axis=1)
    page.table(
        title,
        ("labeled", "looks like", "records", "of"),
        [(labels[label], labels[other], number, int(support[label])) for (label, other), number in pairs],
    )


def gradcam_pairs(run: Run, data: Dataset, evaluation: Evaluation, chosen: np.ndarray) -> list[tuple[bytes, str]]:
    """For some rows of the predictions: the image beside its Grad-CAM overlay, and a caption."""
    rows, labels = evaluation.predictions, evaluation.shown_labels
    stored = stored_images(data, evaluation.metrics["split"], rows.records[chosen])
    shown = np.stack([preprocess(image, run) for image in stored if image is not None])  # all: they were evaluated
    heat = GradCam(run.model, run.config.uses_xla)(shown, rows.predicted[chosen])
    pairs = []
    for image, evidence, row in zip(shown, heat, chosen, strict=True):
        label, predicted = rows.labels[row], rows.predicted[row]
        caption = (
            f"{labels[predicted]} {rows.probabilities[row, predicted]:.0%}, labeled {labels[label]} "
            f"({rows.probabilities[row, label]:.0%}); {evaluation.paths[row]}"
        )
        pairs.append((side_by_side(image, overlay(image, evidence)), caption))
    return pairs


def add_calibration(page: HtmlReport, run: Run, values: Mapping[str, Any], plots: Mapping[str, Plot]) -> None:
    """Whether 80% confidence means right in 80% of cases."""
    note = calibration_note(values, run.config.train_split)
    page.figure("Calibration", plots["calibration"], f"reliability diagram; ECE {values['ece']:.1%}", note)


def calibration_note(values: Mapping[str, Any], train_split: str) -> str:
    """What the fitted temperature brings, and whether the records suffice to say so."""
    found = values.get("calibration")
    if found is None:
        return "No temperature was fitted: that needs another held-out split (--calibration_split)."
    (low, high), (new_low, new_high) = values["interval95"]["ece"], found["ece_interval95"]
    note = (
        f"Dividing the logits by {found['temperature']:.3f}, fitted on {count(found['records'], 'record')} of "
        f"{found['split']}, takes the expected calibration error from {values['ece']:.1%} (95% interval {low:.1%} "
        f"to {high:.1%}) to {found['ece']:.1%} ({new_low:.1%} to {new_high:.1%}) and the log loss from "
        f"{values['log_loss']:.3f} to {found['log_loss']:.3f}. The ranking, and so top-1, stays the same."
    )
    if low <= new_high and new_low <= high:
        note += " The intervals of the errors overlap: these records do not show a difference."
    if found["split"] == train_split:
        note += " It was fitted on the training split, which flatters the model: use another split if you can."
    lowest, highest = metrics.TEMPERATURES
    if not lowest * 1.01 < found["temperature"] < highest * 0.99:
        note += " The fit ran to the end of its range: that split cannot determine the temperature."
    return note


def add_leakage(page: HtmlReport, run: Run, data: Dataset, evaluation: Evaluation) -> None:
    """Pairs of evaluated and training images that are the same."""
    values, found = evaluation.metrics, evaluation.leakage.records
    page.text("Leakage", f"{evaluation.leakage.note}.")
    if not found:
        return
    if clean := values["leakage"].get("without"):
        page.text(
            "Leakage", f"Top-1 is {values['top1']:.2%} with them and {clean['top1']:.2%} without (n = {clean['n']})."
        )
    trained_on, _ = training_data(run, data)
    assert trained_on is not None  # it was searched
    shown, train_split = found[:IMAGES], run.config.train_split
    ours = stored_images(data, values["split"], [leaked.record for leaked in shown])
    theirs = stored_images(trained_on, train_split, [leaked.train_record for leaked in shown])
    page.gallery(
        "Leakage",
        [
            (side_by_side(a, b), str(leaked))
            for a, b, leaked in zip(ours, theirs, shown, strict=True)
            if a is not None and b is not None
        ],
        note=f"Left: evaluated; right: in training. {len(shown)} of {count(len(found), 'pair')}.",
        wide=True,
    )
    page.table(
        "Leakage",
        (f"evaluated ({values['split']})", f"training ({train_split})", "found by"),
        [(leaked.path, leaked.train_path, leaked.kind) for leaked in found],
    )


def files_of(output: Path, run: Path, data: Dataset) -> list[tuple[str, str]]:
    """What to open next, as far as it is there: text and path, from the page's directory."""
    beside = [(name, output / name) for name in (results.METRICS, results.PREDICTIONS)]
    pages = [("the run's report", run / results.REPORT), ("the dataset's report", data.directory / results.REPORT)]
    links = [(text, os.path.relpath(path.absolute(), output.absolute())) for text, path in pages if path.is_file()]
    return [*links, *((text, path.name) for text, path in beside)]  # which are written after the page


def add_environment(page: HtmlReport, content: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """What computed this."""
    gpus = [
        tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    rows = [
        ("evaluated on", values["environment"]["devices"]),
        ("seconds, with start-up", str(values["environment"]["seconds"])),
        ("processor", f"{processor_name()}, {count(available_cores(), 'core')}"),
        ("GPUs", ", ".join(gpus) or "none"),
        ("system", f"{platform.system()} {platform.release()}, Python {platform.python_version()}"),
        ("versions", f"TensorFlow {tf.__version__}, Keras {keras.__version__}, NumPy {np.__version__}"),
        ("trained with", ", ".join(f"{name} {value}" for name, value in content.get("versions", {}).items())),
    ]
    page.table("Environment", ("what", "value"), rows)
