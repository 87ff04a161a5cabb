"""Export a trained run: SavedModel that takes JPEG and PNG bytes, .keras, TFLite, ONNX; each compared with the trainer.

    shardline-export --run RUN --output DIR

DIR gets saved_model/, model.keras, model_float32.tflite, model_float16.tflite, model_int8.tflite, labels.txt (and
words.txt, where classes have words), parity.json and preprocessing.json, which says how to make the uint8 images that
all but the SavedModel take. Where one is further from the trainer than it may be, DIR stays as it was, and
failed_parity.json tells the numbers. `--formats onnx` writes model.onnx and needs the extra onnx. What is exported
computes in float32 and loads in a process that knows nothing of this project.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardline import pipeline
from shardline.pipeline import cli as command_line
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.files import TEMPORARY, atomic_write, own_directory, refuse_foreign, remove_tree
from shardline.pipeline.options import option
from shardline.pipeline.paths import is_remote
from shardline.pipeline.remote import DataCacheOptions
from shardline.trainer.checks import (
    ModelConfig,
    check_labels,
    find_run,
    is_saved_model_file,
    make_directory,
    say_weights,
)
from shardline.trainer.data import HELD_OUT
from shardline.trainer.run_dir import ChosenWeights, choose_weights, read_config
from shardline.trainer.xla import start_tensorflow

if TYPE_CHECKING:
    from shardline.pipeline.dataset import Dataset
    from shardline.pipeline.manifest import Split
    from shardline.trainer.run_dir import Run

FORMATS = {
    "saved_model": "saved_model",
    "keras": "model.keras",
    "tflite_float32": "model_float32.tflite",
    "tflite_float16": "model_float16.tflite",
    "tflite_int8": "model_int8.tflite",
    "onnx": "model.onnx",
}  # and where each lies in the output directory

PARITY, PREPROCESSING = "parity.json", "preprocessing.json"
FAILED_PARITY = "failed_parity.json"  # of the last export that was not kept
LABELS, WORDS = "labels.txt", "words.txt"
UNFINISHED = ".unfinished"  # folder in the output directory, until all in it has been compared
ONNX_PACKAGES = ("onnx", "onnxruntime", "tf2onnx")  # the extra onnx


def parse_formats(value: str | Iterable[str]) -> tuple[str, ...]:
    """`keras,tflite_int8`, or any names, each once."""
    names = tuple(dict.fromkeys(value.split(",") if isinstance(value, str) else value))
    if unknown := [name for name in names if name and name not in FORMATS]:
        raise ValueError(f"{unknown[0]!r} is none of {', '.join(FORMATS)}")
    if not any(names):
        raise ValueError(f"no format; name some of {', '.join(FORMATS)}")
    return names


@dataclass(frozen=True)
class ExportConfig(DataCacheOptions, ModelConfig):
    """What to export, and what to compare it on."""

    output: str = option("", "directory for the exported models", path="folder")
    formats: tuple[str, ...] = option(
        tuple(form for form in FORMATS if form != "onnx"),
        f"formats to write, separated by commas, of {', '.join(FORMATS)}",
        parse=parse_formats,
        text=",".join,
    )
    data: str = option(
        "",
        "dataset whose images calibrate int8 and are compared; empty: the one the run was trained on",
        positional=True,
        path="dataset",
    )
    split: str = option("auto", "split to compare on; auto: test, else validation or val, else the training split")
    calibration_images: int = option(100, "training images whose activations set the int8 ranges", low=1)
    parity_images: int = option(64, "images on which trainer and exports are compared", low=1)
    parity_inputs: str = option(
        "",
        "directory of image files as they were before the conversion, on which the SavedModel is compared, too",
        path="folder",
    )
    overwrite: bool = option(False, "replace models that are in --output already")


@dataclass(frozen=True)
class Exported:
    """What one export wrote, and how far it lies from the trainer."""

    paths: dict[str, Path]  # of each format
    parity: dict[str, Any]  # content of parity.json


def export(config: ExportConfig) -> Exported:
    """Write the model in each format, compare each with the trainer, and return paths and comparison.

    Raises:
      UsageError: a run, dataset, split or directory that cannot be used.
      Failure: an export differs from the trainer by more than its bound; the numbers are in failed_parity.json, and
        everything else in the directory is as it was.
    """
    if not config.output:
        raise UsageError("--output is missing: name a directory for the exported models")
    directory = find_run(config.run, config.checkpoint)
    data, train_split = open_data(config, directory)
    split = comparison_split(config.split, data.manifest.splits, train_split)
    if "tflite_int8" in config.formats and not filled(data.manifest.splits, train_split):
        raise UsageError(
            f"--data={data.where}: nothing in split {train_split} to calibrate int8 on; leave out tflite_int8"
        )
    missing = [name for name in ONNX_PACKAGES if "onnx" in config.formats and not importlib.util.find_spec(name)]
    if missing:
        raise UsageError(f"--formats=onnx needs {', '.join(missing)}: pip install 'shardline[onnx]', or leave it out")
    chosen = choose_weights(directory, config.checkpoint)
    sources = source_files(config)
    paths = prepare(config.output, config.formats, config.overwrite)
    output = Path(config.output)
    kept = kept_exports(output, config.formats, chosen)
    say_weights(chosen)
    with own_directory(output, "--output"), unfinished_folder(output) as folder:
        start_tensorflow()  # takes seconds: after what can be refused at once, as the imports below
        from shardline.trainer.evaluation import exports
        from shardline.trainer.evaluation.model_input import describe_preprocessing
        from shardline.trainer.run_dir import load_run

        run = load_run(str(directory), chosen, precision="float32")
        made = {form: folder / path.name for form, path in paths.items()}
        for form, path in command_line.progress(list(made.items()), total=len(made), desc="export", unit="format"):
            images = partial(exports.calibration_images, run, data, config.calibration_images)
            exports.write_model(run, form, path, images)
        write_labels(folder, run)
        atomic_write(folder / PREPROCESSING, json.dumps(describe_preprocessing(run), indent=1) + "\n")
        trained = load_run(str(directory), chosen)
        compared = exports.compare(run, trained, made, data, split, config.parity_images, sources)
        parity = {"weights": chosen.facts(), **compared}
        refuse_distant(parity, output / FAILED_PARITY)
        parity["exports"] = {**kept, **parity["exports"]}
        place(folder, output, parity)
    return Exported(paths, parity)


@contextmanager
def unfinished_folder(output: Path) -> Iterator[Path]:
    """A new folder in an output directory that is ours alone; what is left in it at the end goes."""
    folder = output / UNFINISHED
    remove_tree(folder, is_export)  # of an export that was killed
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_export(path: str) -> bool:
    """Whether an export writes a file of this name, relative to its directory; also while it is being written."""
    folder, _, rest = path.partition("/")
    if folder == FORMATS["saved_model"] and rest:
        return is_saved_model_file(rest)
    return path in {*FORMATS.values(), LABELS, WORDS, PREPROCESSING} or (not rest and path.endswith(TEMPORARY))


def refuse_distant(parity: Mapping[str, Any], where: Path) -> None:
    """Raises Failure where an export is further from the trainer than it may be; `where` gets the numbers."""
    exports = parity["exports"].items()
    if not (distant := [name for name, found in exports if not found["ok"]]):
        where.unlink(missing_ok=True)
        return
    atomic_write(where, json.dumps(parity, indent=1) + "\n")
    said = "; ".join(describe(name, found) for name, found in exports if name in distant)
    forms = {name.split(" ")[0]: None for name, _ in exports}  # in their order
    rest = ",".join(form for form in forms if form not in {name.split(" ")[0] for name in distant})
    remedy = f"; leave it out: --formats={rest}" if rest else ""
    raise Failure(
        f"{said}: further from the trainer than the bound allows; nothing was exported{remedy} (all numbers in {where})"
    )


def place(folder: Path, output: Path, parity: Mapping[str, Any]) -> None:
    """Give what lies in `folder` its place in the output directory, parity.json last: without it nothing counts."""
    (output / PARITY).unlink(missing_ok=True)  # an earlier export's
    for made in sorted(folder.iterdir()):
        target = output / made.name
        if made.is_dir():  # a folder is not replaced by another one
            remove_tree(target, is_saved_model_file)
        made.replace(target)
    atomic_write(output / PARITY, json.dumps(parity, indent=1) + "\n")


def write_labels(output: Path, run: Run) -> None:
    """labels.txt and, where classes have words, words.txt."""
    atomic_write(output / LABELS, "".join(f"{label}\n" for label in run.labels))
    if run.words:
        atomic_write(output / WORDS, "".join(f"{label}\n" for label in run.shown_labels))


def main(config: ExportConfig) -> None:
    """The command: export and print how far each export lies from the trainer."""
    parity = export(config).parity
    for name, found in parity["exports"].items():
        print(describe(name, found))
    for name, reason in parity["left_out"].items():
        print(f"{name}: left out: {reason}")
    print(config.output)


def describe(name: str, found: Mapping[str, Any]) -> str:
    """How far an export lies from the trainer, in a line."""
    line = (
        f"{name}: top-1 agrees on {found['top1_agreement']:.1%} of images, "
        f"probabilities within {found['max_difference']:.2g} (bound {found['bound']:g})"
    )
    if "files" in found:
        line += f", pixels within {found['levels']:.2g} levels, on {found['compared']} of {found['files']} files"
        line += "".join(f"; {count} refused: {reason}" for reason, count in found["refused"].items())
    return line


# ------------------------------------------------------------------------------------------- input


def open_data(config: ExportConfig, run: Path) -> tuple[Dataset, str]:
    """The dataset to compare on, of the run's classes, and the name of its training split."""
    content = read_config(run)
    if not (where := config.data or content["train"]["data"]):
        raise UsageError("--data is missing: this run was trained without a dataset; name one to compare on")
    if not config.data and not is_remote(where) and not Path(where).is_dir():
        raise UsageError(
            f"--data is missing: this run was trained on {where}, which is not there; name the directory that holds "
            f"the dataset with digest {content['dataset']['dataset']}"
        )
    data = pipeline.open_dataset(where, config, digest="" if config.data else content["dataset"]["dataset"])
    if not config.data and data.manifest.digest != content["dataset"]["dataset"]:
        raise UsageError(
            f"--data is missing: {where}, which this run was trained on, was converted anew since: digest "
            f"{data.manifest.digest}, then {content['dataset']['dataset']}; name it, to compare on it all the same"
        )
    check_labels(content["labels"], data.labels, where)
    return data, content["train"]["train_split"]


def source_files(config: ExportConfig) -> list[Path]:
    """`--parity_images` files of `--parity_inputs`, spread evenly over all in the order of their paths."""
    if not config.parity_inputs:
        return []
    if "saved_model" not in config.formats:
        raise UsageError(f"--parity_inputs={config.parity_inputs}: only saved_model takes files; add it to --formats")
    found = sorted(path for path in Path(config.parity_inputs).rglob("*") if path.is_file())
    if not found:
        raise UsageError(f"--parity_inputs={config.parity_inputs}: no files there; name a directory of images")
    count = min(config.parity_images, len(found))
    return [found[i * (len(found) - 1) // max(count - 1, 1)] for i in range(count)]


def prepare(path: str, formats: Iterable[str], overwrite: bool) -> dict[str, Path]:
    """Where each format goes, in an output directory without models that would be replaced unasked."""
    output = make_directory(path)
    paths = {form: output / FORMATS[form] for form in formats}
    present = [path.name for path in paths.values() if path.exists()]
    if present and not overwrite:
        raise UsageError(f"--output={path} holds {present[0]} already; add --overwrite or name another directory")
    for form, target in paths.items():
        if form == "saved_model":
            refuse_foreign(target, is_saved_model_file)
        elif target.is_dir():
            raise UsageError(f"--output={path}: {target.name} is a folder there; move it away, or name another place")
    return paths


def kept_exports(output: Path, formats: Iterable[str], chosen: ChosenWeights) -> dict[str, Any]:
    """What parity.json says of the models in other formats that stay in an output directory, if they are of `chosen`.

    Raises:
      UsageError: they are of other weights, or nothing tells: one directory would hold two models.
    """
    others = [form for form, name in FORMATS.items() if form not in formats and (output / name).exists()]
    if not others:
        return {}
    try:
        found = json.loads((output / PARITY).read_text(encoding="utf-8"))
        if found["weights"]["sha256"] == chosen.sha256:
            return {name: values for name, values in found["exports"].items() if name.split(" ")[0] in others}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass  # nothing tells
    raise UsageError(
        f"--output={output} holds {FORMATS[others[0]]}, which is not known to be of the same weights; name another "
        f"directory, or export it again, too: --overwrite --formats={','.join([*formats, *others])}"
    )


def comparison_split(wanted: str, splits: Mapping[str, Split], train_split: str) -> str:
    """The split whose images are compared."""
    if wanted == "auto":
        found = [name for name in ("test", *HELD_OUT, train_split, *splits) if filled(splits, name)]
        if not found:
            raise UsageError("--data holds no records to compare on; name another dataset")
        return found[0]
    if wanted not in splits:
        raise UsageError(f"--split={wanted}: this dataset has {', '.join(splits)}")
    if not filled(splits, wanted):
        raise UsageError(f"--split={wanted}: this split holds no records to compare on; name another one")
    return wanted


def filled(splits: Mapping[str, Split], name: str) -> bool:
    """Whether there is such a split, with records in it."""
    return name in splits and splits[name].records > 0


def cli() -> None:
    """Run the console script `shardline-export`."""
    command_line.run(main, ExportConfig, __doc__)


if __name__ == "__main__":
    cli()
