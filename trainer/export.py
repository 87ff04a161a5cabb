"""Export a trained run: SavedModel that takes JPEG and PNG bytes, .keras, and TFLite; each held against the trainer.

    shardline-export --run RUN --output DIR

DIR gets saved_model/, model.keras, model_float32.tflite, model_float16.tflite, model_int8.tflite, labels.txt and
parity.json. What is exported computes in float32 and loads in a process that knows nothing of this project.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shardline import pipeline
from shardline.pipeline import cli as command_line
from shardline.pipeline.cli import progress
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.files import atomic_write
from shardline.pipeline.machine import available_cores
from shardline.pipeline.options import option
from shardline.trainer.checks import ModelConfig, check_labels, find_run, make_directory
from shardline.trainer.state import read_config

if TYPE_CHECKING:
    from shardline.pipeline.dataset import Dataset
    from shardline.pipeline.manifest import Split
    from shardline.trainer.state import Run

FORMATS = ("saved_model", "keras", "tflite_float32", "tflite_float16", "tflite_int8")

PARITY = "parity.json"
JPEG_OR_PNG = (b"\xff\xd8", b"\x89PNG")

# Largest difference of any probability, and smallest share of equal top-1, to the trainer's model in float32.
BOUNDS = {
    "saved_model (uint8)": (1e-4, 0.99),
    "saved_model (bytes)": (0.01, 0.98),  # another build of the JPEG decoder may round a pixel otherwise
    "keras": (1e-4, 0.99),
    "tflite_float32": (1e-4, 0.99),  # reached on photographs: 2e-6
    "tflite_float16": (0.01, 0.98),  # reached: 0.0005 to 0.002, 99.6 to 100 %
    # Eight bits cost something. Reached: 0.04 to 0.08 and 98 to 99 % by trained models (68 to 93 % top-1), 0.16 and
    # 96 % by one that was barely trained (46 %) and so is seldom sure.
    "tflite_int8": (0.2, 0.93),
}


def parse_formats(value: str | Iterable[str]) -> tuple[str, ...]:
    """`keras,tflite_int8`, or any names, each once."""
    names = tuple(dict.fromkeys(value.split(",") if isinstance(value, str) else value))
    if unknown := [name for name in names if name and name not in FORMATS]:
        raise ValueError(f"{unknown[0]!r} is none of {', '.join(FORMATS)}")
    if not any(names):
        raise ValueError(f"no format; name some of {', '.join(FORMATS)}")
    return names


@dataclass(frozen=True)
class ExportConfig(ModelConfig):
    """What to export, and what to compare it on."""

    output: str = option("", "directory for the exported models")
    formats: tuple[str, ...] = option(FORMATS, "what to write, with commas", parse=parse_formats, text=",".join)
    data: str = option(
        "",
        "dataset whose images calibrate int8 and are compared; the one the run was trained on if empty",
        positional=True,
    )
    split: str = option("auto", "split to compare on; auto: test, else validation, else the training one")
    calibration_images: int = option(100, "training images whose activations set the int8 ranges", low=1)
    parity_images: int = option(64, "images on which trainer and exports are compared", low=1)
    overwrite: bool = option(False, "replace models that an earlier export left in --output")


@dataclass(frozen=True)
class Exported:
    """What one export wrote, and how far it lies from the trainer."""

    paths: dict[str, Path]  # of each format
    parity: dict[str, Any]  # content of parity.json


def export(config: ExportConfig) -> Exported:
    """Write the model in each format, compare each with the trainer, and return paths and comparison.

    Raises:
      UsageError: a run, dataset, split or directory that cannot be used.
      Failure: an export differs from the trainer by more than its bound; parity.json holds the numbers.
    """
    directory = find_run(config.run, config.checkpoint)
    if not config.output:
        raise UsageError("--output is missing: name a directory for the exported models")
    data, train_split = open_data(config, directory)
    split = comparison_split(config.split, data.manifest.splits, train_split)
    if "tflite_int8" in config.formats and not filled(data.manifest.splits, train_split):
        raise UsageError(
            f"--data={data.directory}: nothing in split {train_split} to calibrate int8 on; leave out tflite_int8"
        )
    output = prepare(config.output, config.formats, config.overwrite)

    command_line.import_tensorflow()  # takes seconds: after what can be refused at once, as the imports below
    from shardline.trainer.state import load_run

    run = load_run(str(directory), config.checkpoint or None, precision="float32")
    write_models(run, config.formats, output, lambda: calibration_images(run, data, config.calibration_images))
    trained = load_run(str(directory), config.checkpoint or None)
    parity = compare(run, trained, config.formats, output, data, split, config.parity_images)
    atomic_write(output / PARITY, json.dumps(parity, indent=1) + "\n")
    if failed := [describe(name, found) for name, found in parity["exports"].items() if not found["ok"]]:
        raise Failure(
            f"{'; '.join(failed)}: further from the trainer than the bound allows; do not deploy it "
            f"(all numbers in {output / PARITY})"
        )
    return Exported({form: output / file_name(form) for form in config.formats}, parity)


def main(config: ExportConfig) -> None:
    """The command: export and print how far each export lies from the trainer."""
    for name, found in export(config).parity["exports"].items():
        print(describe(name, found))
    print(config.output)


def describe(name: str, found: Mapping[str, Any]) -> str:
    """How far an export lies from the trainer, in a line."""
    return (
        f"{name}: top-1 agrees on {found['top1_agreement']:.1%} of images, "
        f"probabilities within {found['max_difference']:.2g} (bound {found['bound']:g})"
    )


# ------------------------------------------------------------------------------------------- input


def open_data(config: ExportConfig, run: Path) -> tuple[Dataset, str]:
    """The dataset to compare on, of the run's classes, and the name of its training split."""
    content = read_config(run)
    if not (where := config.data or content["train"]["data"]):
        raise UsageError("--data is missing: this run was trained without a dataset; name one to compare on")
    data = pipeline.open_dataset(where)
    check_labels(content["labels"], data.labels, where)
    return data, content["train"]["train_split"]


def prepare(path: str, formats: Iterable[str], overwrite: bool) -> Path:
    """The output directory, without models that would be replaced unasked."""
    output = make_directory(path)
    present = [file_name(form) for form in formats if (output / file_name(form)).exists()]
    if present and not overwrite:
        raise UsageError(f"--output={path} holds {present[0]} already; add --overwrite or name another directory")
    return output


def file_name(form: str) -> str:
    """Where a format lies in the output directory."""
    return {"saved_model": "saved_model", "keras": "model.keras"}.get(
        form, f"model_{form.removeprefix('tflite_')}.tflite"
    )


def comparison_split(wanted: str, splits: Mapping[str, Split], train_split: str) -> str:
    """The split whose images are compared."""
    if wanted == "auto":
        found = [name for name in ("test", "validation", train_split, *splits) if filled(splits, name)]
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


# ------------------------------------------------------------------------------------------ export


def write_models(run: Run, formats: Iterable[str], output: Path, calibrate: Callable[[], Iterator[np.ndarray]]) -> None:
    """Write the model of `run` in each format, and labels.txt.

    Args:
      calibrate: gives uint8 images [1, s, s, 3] on which the int8 ranges are measured.
    """
    (output / PARITY).unlink(missing_ok=True)  # what an earlier export was compared to
    for form in progress(list(formats), total=None, desc="export", unit="format"):
        target = output / file_name(form)
        shutil.rmtree(target, ignore_errors=True)
        if form == "saved_model":
            save_serving(run, target)
        elif form == "keras":
            run.model.save(target)
        else:
            target.write_bytes(to_tflite(run, form, calibrate))
    (output / "labels.txt").write_text("".join(f"{label}\n" for label in run.labels), encoding="utf-8")


def save_serving(run: Run, target: Path) -> None:
    """A SavedModel with three signatures.

    serving_default: `bytes` string [n], JPEG or PNG files -> the answer; serve_images: `images` uint8 [n, s, s, 3]
    RGB -> the answer; labels: nothing -> `labels` string [classes]. The answer is `label` string [n],
    `probability` float32 [n], `probabilities` float32 [n, classes].
    """
    import tensorflow as tf

    from shardline.trainer.evaluation.model_input import stored_options
    from shardline.trainer.evaluation.serving import image_from_bytes

    size, options = run.config.image_size, stored_options(run)
    names = list(run.labels)

    def answer(images: Any) -> dict[str, Any]:
        probabilities = run.model(images, training=False)
        best = tf.argmax(probabilities, axis=1)
        return {
            "label": tf.gather(tf.constant(names), best),
            "probability": tf.reduce_max(probabilities, axis=1),
            "probabilities": probabilities,
        }

    def from_bytes(encoded: Any) -> dict[str, Any]:
        return answer(
            tf.map_fn(
                lambda one: image_from_bytes(one, options, size, run.preprocessing["crop_fraction"]),
                encoded,
                fn_output_signature=tf.TensorSpec((size, size, 3), tf.uint8),
            )
        )

    def labels() -> dict[str, Any]:
        return {"labels": tf.constant(names)}

    def traced(function: Callable[..., Any], *inputs: Any) -> Any:
        return tf.function(function, autograph=False).get_concrete_function(*inputs)

    signatures = {
        "serving_default": traced(from_bytes, tf.TensorSpec([None], tf.string, "bytes")),
        "serve_images": traced(answer, tf.TensorSpec([None, size, size, 3], tf.uint8, "images")),
        "labels": traced(labels),
    }
    tf.saved_model.save(holding_weights(run.model), str(target), signatures)


def holding_weights(model: Any) -> Any:
    """A module with the variables of a Keras model alone: saving the model itself would trace every layer again."""
    import tensorflow as tf

    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    return module


def to_tflite(run: Run, form: str, calibrate: Callable[[], Iterator[np.ndarray]]) -> bytes:
    """A TFLite model of one uint8 image [1, s, s, 3] -> float32 probabilities [1, classes]."""
    import tensorflow as tf

    size = run.config.image_size
    # int8 takes its uint8 input by quantizing a float one.
    image = tf.TensorSpec([1, size, size, 3], tf.float32 if form == "tflite_int8" else tf.uint8, "image")
    function = tf.function(lambda image: run.model(image, training=False), autograph=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function(image)], holding_weights(run.model)
    )
    if form != "tflite_float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if form == "tflite_float16":
        converter.target_spec.supported_types = [tf.float16]
    if form == "tflite_int8":
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
        converter.representative_dataset = lambda: ([pixels.astype(np.float32)] for pixels in calibrate())
    return converter.convert()


def calibration_images(run: Run, data: Dataset, count: int) -> Iterator[np.ndarray]:
    """Training images as the model sees them, and one with both extremes, so that input step = gray level."""
    for image in seen_images(run, data, run.config.train_split, count):
        yield image[None]
    extremes = np.zeros((1, run.config.image_size, run.config.image_size, 3), np.uint8)
    extremes[:, ::2] = 255
    yield extremes


def seen_images(run: Run, data: Dataset, split: str, count: int) -> Iterator[np.ndarray]:
    """Up to `count` records, spread evenly over the split, as the model sees them: uint8 [s, s, 3]."""
    from shardline.trainer.evaluation.model_input import preprocess, stored_images

    for image in stored_images(data, split, spread(data.num_records(split), count)):
        if image is None:
            raise Failure(f"a record of split {split} in {data.directory} cannot be read; shardline-verify names it")
        yield preprocess(image, run)


def spread(num_records: int, count: int) -> np.ndarray:
    """`count` record numbers, evenly over all; all of them when there are fewer."""
    return np.unique(np.linspace(0, num_records - 1, min(count, num_records)).astype(int))


# ------------------------------------------------------------------------------------------ parity


def compare(
    run: Run, trained: Run, formats: Iterable[str], output: Path, data: Dataset, split: str, count: int
) -> dict[str, Any]:
    """Trainer and exports on the same `count` images: agreement, largest difference, and whether that is in bounds.

    Exports are held against `run`, the model in float32; `trained`, the model in the precision it was trained and is
    evaluated in, is held against it too, for information.
    """
    images = list(seen_images(run, data, split, count))
    files = [file for file, _, _ in data.records(split, spread(data.num_records(split), count).tolist())]
    expected = answers(run.model, images)
    exports: dict[str, Any] = {}
    for form in progress(list(formats), total=None, desc="compare", unit="format"):
        for name, outputs in run_export(form, output / file_name(form), images, files):
            difference, agreement = BOUNDS[name]
            found = differences(outputs, expected)
            ok = found["max_difference"] <= difference and found["top1_agreement"] >= agreement
            exports[name] = found | {"bound": difference, "agreement_bound": agreement, "ok": ok}
    return {
        "images": len(images),
        "split": split,
        "exports": exports,
        "trainer": {
            "precision": trained.config.precision,
            **differences(answers(trained.model, images), expected),
        },
    }


def answers(model: Callable[..., Any], images: Sequence[np.ndarray]) -> np.ndarray:
    """float32 [n, classes]: what a Keras model makes of images [s, s, 3], one at a time."""
    return np.concatenate([model(image[None], training=False).numpy() for image in images])


def differences(outputs: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """How far two sets of probabilities lie apart."""
    return {
        "max_difference": float(np.abs(outputs - expected).max()),
        "mean_difference": float(np.abs(outputs - expected).mean()),
        "top1_agreement": float(np.mean(outputs.argmax(1) == expected.argmax(1))),
    }


def run_export(
    form: str, path: Path, images: Sequence[np.ndarray], files: Sequence[bytes]
) -> Iterator[tuple[str, np.ndarray]]:
    """What one exported model, read back from disk, makes of images and of the files they come from."""
    import keras
    import tensorflow as tf

    if form == "keras":
        yield form, answers(keras.models.load_model(path, compile=False), images)
    elif form == "saved_model":
        signatures = tf.saved_model.load(str(path)).signatures
        by_images, by_bytes = signatures["serve_images"], signatures["serving_default"]
        found = [by_images(images=tf.constant(image[None]))["probabilities"] for image in images]
        yield "saved_model (uint8)", np.concatenate(found)
        if all(file.startswith(JPEG_OR_PNG) for file in files):  # stored as pixels, or adopted in another format
            found = [by_bytes(bytes=tf.constant([file]))["probabilities"] for file in files]
            yield "saved_model (bytes)", np.concatenate(found)
    else:
        yield form, tflite_answers(path, images)


def tflite_answers(path: Path, images: Sequence[np.ndarray]) -> np.ndarray:
    """float32 [n, classes]: what a TFLite model makes of images."""
    import tensorflow as tf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a successor package that this one release still does without
        interpreter = tf.lite.Interpreter(model_path=str(path), num_threads=available_cores())
    interpreter.allocate_tensors()
    source, sink = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    outputs = []
    for image in images:
        interpreter.set_tensor(source, image[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(sink).copy())
    return np.concatenate(outputs)


def cli() -> None:
    """Run the console script `shardline-export`."""
    command_line.run(main, ExportConfig, __doc__)


if __name__ == "__main__":
    cli()
