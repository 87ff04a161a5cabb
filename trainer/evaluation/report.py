"""report.html: one page that says what a run was, how well it does, where it errs and why one may believe it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shardline.pipeline.machine import available_cores
from shardline.tools.html_report import HtmlReport
from shardline.trainer import curves, metrics_log
from shardline.trainer.config import TrainConfig
from shardline.trainer.evaluation import leakage, metrics, plots
from shardline.trainer.evaluation.gradcam import GradCam, overlay, side_by_side
from shardline.trainer.evaluation.model_input import preprocess, stored_images
from shardline.trainer.evaluation.results import Evaluation
from shardline.trainer.state import read_config

IMAGES = 12  # in each gallery


def write_report(
    path: Path, directory: Path, run: Any, data: Any, evaluation: Evaluation, drawn: Mapping[str, bytes]
) -> None:
    """Write the page for one evaluation of the run in `directory`; `drawn` holds what `results.images` drew."""
    content, rows = read_config(directory), metrics_log.read(directory)
    found = evaluation.metrics
    page = HtmlReport(
        f"{Path(directory).absolute().name} on {found['split']}: {found['top1']:.1%} top-1",
        subtitle=f"VGG16, {len(evaluation.labels)} classes, {data.manifest.name}, {found['count']}",
    )
    add_result(page, evaluation)
    add_setting(page, content)
    add_ledger(page, data)
    add_training(page, run, rows)
    add_confusion(page, evaluation, drawn)
    add_mistakes(page, run, data, evaluation)
    add_suspects(page, run, data, evaluation)
    add_calibration(page, run, evaluation, drawn)
    add_leaks(page, run, data, evaluation)
    add_machine(page, content, found)
    page.save(path)


# ------------------------------------------------------------------------------------- sections


def add_result(page: HtmlReport, evaluation: Evaluation) -> None:
    """The headline numbers, each with its interval where it has one."""
    m = evaluation.metrics
    rows = [
        (name, m[key], "{:.4f} to {:.4f}".format(*m["interval95"][key]) if key in m["interval95"] else "")
        for name, key in (
            ("top-1", "top1"),
            ("top-5", "top5"),
            ("macro-F1", "macro_f1"),
            ("log loss, nats", "log_loss"),
            ("expected calibration error", "ece"),
            ("mean area under ROC", "mean_roc_auc"),
            ("mean average precision", "mean_average_precision"),
        )
        if m[key] is not None
    ]
    if "without_leaks" in m and m["without_leaks"]["n"]:
        clean = m["without_leaks"]
        rows += [
            (f"top-1 without images that are also in training (n = {clean['n']})", clean["top1"], ""),
            (f"top-5 without images that are also in training (n = {clean['n']})", clean["top5"], ""),
        ]
    tta = {"none": "", "flip": "; averaged over each image and its mirror image"}.get(
        m["tta"], f"; averaged over {m['tta']} crops"
    )
    page.table("Result", ("measure", "value", "95 % interval"), rows, note=f"{m['split']}: {m['count']}{tta}.")


def add_setting(page: HtmlReport, content: dict[str, Any]) -> None:
    """The flags that were given, and what the others were."""
    default, used = TrainConfig().to_dict(), content["train"]
    changed = [name for name, value in used.items() if value != default.get(name)]
    rows = [(f"--{name}", _text(used[name]), _text(default.get(name, ""))) for name in changed]
    page.table("Setting", ("flag", "value", "default"), rows, note="What differs from the defaults:")
    rest = ", ".join(f"{name}={_text(value)}" for name, value in used.items() if name not in changed)
    page.text("Setting", f"As by default: {rest}.")


def add_ledger(page: HtmlReport, data: Any) -> None:
    """What became of every input, and how the splits are filled."""
    manifest, ledger = data.manifest, data.manifest.ledger
    page.text(
        "Data ledger",
        f"{ledger.inputs:,} inputs = {ledger.written:,} written + {ledger.quarantined:,} quarantined + "
        f"{ledger.duplicates:,} duplicates + {ledger.filtered:,} filtered.",
        f"Dataset digest {manifest.digest}.",
    )
    splits = list(manifest.splits)
    counted = all(manifest.class_counts.get(name) for name in splits)
    if counted:
        rows = [
            (label, *(int(manifest.class_counts[name][c]) for name in splits)) for c, label in enumerate(data.labels)
        ]
        page.table("Data ledger", ("class", *splits), rows)
    else:
        page.table("Data ledger", ("split", "records"), [(name, data.num_records(name)) for name in splits])


def add_training(page: HtmlReport, run: Any, rows: list[dict[str, Any]]) -> None:
    """Curves with phase marks, and where the time went."""
    phases, epoch = [], 0.0
    for phase in run.config.phase_list:
        phases.append((phase.part, epoch))
        epoch += phase.epochs
    if not rows:
        page.text("Training", "This run directory holds no metrics.jsonl, so there are no curves.")
        return
    held_out = next((row["split"] for row in rows if row["kind"] == "eval"), "")
    last = [row for row in rows if row["kind"] == "eval"][-1:] or rows[-1:]
    alt = f"loss, top-1 and learning rate over epochs; last: loss {last[0]['loss']:.3f}, top-1 {last[0]['top1']:.1%}"
    page.figure("Training", curves.curves(rows, phases, held_out), alt)
    timeline = plots.timeline(rows, phases)
    if timeline is not None:
        page.figure("Throughput", timeline, "images a second and share of time spent waiting for input, over epochs")


def add_confusion(page: HtmlReport, evaluation: Evaluation, drawn: Mapping[str, bytes]) -> None:
    """Which classes are taken for which, and the table of classes."""
    matrix, labels = evaluation.confusion, evaluation.labels
    pairs = metrics.confused_pairs(matrix, 20)
    worst = "; ".join(f"{labels[a]} taken for {labels[b]}: {count}" for a, b, count in pairs[:5]) or "no mistakes"
    page.figure("Confusion", drawn["confusion"], f"confusion matrix; {worst}")
    page.table(
        "Confusion",
        ("true class", "taken for", "records", "of"),
        [(labels[a], labels[b], count, int(matrix[a].sum())) for a, b, count in pairs],
    )
    page.figure("Classes", drawn["classes"], "recall and precision of each class, lowest recall first")
    page.table(
        "Classes",
        ("class", "records", "predicted", "precision", "recall", "F1", "ROC area", "average precision"),
        [
            (
                c["label"], c["support"], c["predicted"], c["precision"], c["recall"], c["f1"],
                _known(c["roc_auc"]), _known(c["average_precision"]),
            )
            for c in evaluation.metrics["classes"]
        ],
        note="Press a column's head to sort.",
    )  # fmt: skip
    if "roc_pr" in drawn:
        page.figure("ROC and precision-recall", drawn["roc_pr"], "one class against the rest at every threshold")


def add_mistakes(page: HtmlReport, run: Any, data: Any, evaluation: Evaluation) -> None:
    """The mistakes the model is surest of, beside what it looked at."""
    rows = evaluation.predictions
    predicted = rows.probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != rows.labels)
    worst = wrong[np.argsort(-rows.probabilities[wrong, predicted[wrong]], kind="stable")][:IMAGES]
    title = "Most confident mistakes"
    if not len(worst):
        page.text(title, "There are no mistakes.")
        return
    page.gallery(
        title,
        explained(run, data, evaluation, worst),
        note="Each image as the model sees it, beside a Grad-CAM map of what speaks for the predicted class "
        "(yellow: most).",
        wide=True,
    )


def add_suspects(page: HtmlReport, run: Any, data: Any, evaluation: Evaluation) -> None:
    """Records whose label may be the mistake."""
    rows = evaluation.predictions
    suspects = metrics.label_issues(rows.probabilities, rows.labels)
    title = "Label issues"
    if not len(suspects):
        page.text(title, "No record looks more like another class than that class's own records do on average.")
        return
    page.gallery(
        title,
        explained(run, data, evaluation, suspects[:IMAGES]),
        note=f"{len(suspects)} records look more like another class than records of that class do on average "
        "(confident learning); the most suspicious first. Look at the label before you blame the model.",
        wide=True,
    )


def explained(run: Any, data: Any, evaluation: Evaluation, chosen: np.ndarray) -> list[tuple[bytes, str]]:
    """ProcessedImage beside Grad-CAM overlay, and a caption, for some rows of the predictions."""
    rows, labels = evaluation.predictions, evaluation.labels
    stored = stored_images(data, evaluation.metrics["split"], rows.records[chosen])
    seen = np.stack([preprocess(image, run) for image in stored if image is not None])  # all: they were evaluated
    predicted = rows.probabilities[chosen].argmax(axis=1)
    heat = GradCam(run.model, run.config.jit)(seen, predicted)
    made = []
    for i, row in enumerate(chosen):
        own, best = rows.probabilities[row, rows.labels[row]], rows.probabilities[row, predicted[i]]
        caption = (
            f"{labels[predicted[i]]} {best:.0%}, labelled {labels[rows.labels[row]]} ({own:.0%}); "
            f"{evaluation.paths[row]}"
        )
        made.append((side_by_side(seen[i], overlay(seen[i], heat[i])), caption))
    return made


def add_calibration(page: HtmlReport, run: Any, evaluation: Evaluation, drawn: Mapping[str, bytes]) -> None:
    """Whether 80 % sure means right in 80 % of cases."""
    m = evaluation.metrics
    if "temperature" in m:
        t = m["temperature"]
        edge = t["value"] <= metrics.TEMPERATURES[0] * 1.01 or t["value"] >= metrics.TEMPERATURES[1] * 0.99
        note = (
            f"Dividing the logits by {t['value']:.3f}, fitted on {t['fitted_on_records']} records of {t['fitted_on']}, "
            f"takes the expected calibration error from {m['ece']:.1%} to {t['ece']:.1%} and the log loss from "
            f"{m['log_loss']:.3f} to {t['log_loss']:.3f}. The ranking, and so top-1, stays the same."
        )
        if t["fitted_on"] == run.config.train_split:
            note += " It was fitted on the training split, where the model is too good: take another one if you can."
        note += " The fit ran to the end of its range: that split cannot tell the temperature." if edge else ""
    else:
        note = "No temperature was fitted: that takes another held-out split (--calibration_split)."
    page.figure("Calibration", drawn["calibration"], f"reliability diagram; ECE {m['ece']:.1%}", note)


def add_leaks(page: HtmlReport, run: Any, data: Any, evaluation: Evaluation) -> None:
    """Pairs of evaluated and training images that are the same."""
    m, found = evaluation.metrics, evaluation.leaks
    page.text("Leakage", f"{m['leak_guard']}.")
    if not found:
        return
    if "without_leaks" in m and m["without_leaks"]["n"]:
        clean = m["without_leaks"]
        page.text(
            "Leakage",
            f"Top-1 is {m['top1']:.2%} with them and {clean['top1']:.2%} without (n = {clean['n']}).",
        )
    trained_on, _ = leakage.training_data(run, data)
    shown = found[:IMAGES]
    ours = stored_images(data, m["split"], [leak.record for leak in shown])
    theirs = stored_images(trained_on, run.config.train_split, [leak.train_record for leak in shown])
    page.gallery(
        "Leakage",
        [
            (side_by_side(a, b), str(leak))
            for a, b, leak in zip(ours, theirs, shown, strict=True)
            if a is not None and b is not None
        ],
        note=f"Left: evaluated; right: in training. {len(shown)} of {len(found)} pairs.",
        wide=True,
    )
    page.table(
        "Leakage",
        (f"evaluated ({m['split']})", f"training ({run.config.train_split})", "found by"),
        [(leak.path, leak.train_path, leak.kind) for leak in found],
    )


def add_machine(page: HtmlReport, content: dict[str, Any], found: dict[str, Any]) -> None:
    """What computed this."""
    import keras
    import tensorflow as tf

    gpus = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in
            tf.config.list_physical_devices("GPU")]  # fmt: skip
    rows = [
        ("evaluated on", found["how"]["devices"]),
        ("seconds, with start-up", str(found["how"]["seconds"])),
        ("processor", f"{_processor()}, {available_cores()} cores"),
        ("GPUs", ", ".join(gpus) or "none"),
        ("system", f"{platform.system()} {platform.release()}, Python {platform.python_version()}"),
        ("versions", f"TensorFlow {tf.__version__}, Keras {keras.__version__}, NumPy {np.__version__}"),
        ("trained with", ", ".join(f"{name} {value}" for name, value in content.get("versions", {}).items())),
    ]
    page.table("Machine", ("what", "value"), rows)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _known(value: float | None) -> Any:
    return "" if value is None else value


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
