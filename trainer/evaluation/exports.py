"""Write a trained model in each format, read it back from disk, and compare it with the trainer.

What is exported computes in float32. `BOUNDS` says how far an export may lie from the trainer's model in float32.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from shardline.pipeline.cli import log, progress, without_lines
from shardline.pipeline.errors import Failure
from shardline.pipeline.executors import WHY
from shardline.pipeline.files import atomic_write, full_disk_named
from shardline.pipeline.image_files import load_files
from shardline.pipeline.machine import available_cores
from shardline.pipeline.wording import noun_after
from shardline.trainer.evaluation.graph_pixels import SERVED
from shardline.trainer.evaluation.model_input import (
    converter_options,
    describe_preprocessing,
    preprocess,
    stored_images,
)
from shardline.trainer.evaluation.serving import save_serving, variables_of

if TYPE_CHECKING:
    from shardline.pipeline.dataset import Dataset
    from shardline.trainer.run_dir import Run

Signatures = Mapping[str, Callable[..., dict[str, tf.Tensor]]]
RECORDS, SOURCES = "saved_model (bytes)", "saved_model (source files)"

# Largest difference of any probability, and smallest share of equal top-1, to the trainer's model in float32.
BOUNDS = {
    "saved_model (uint8)": (1e-4, 0.99),
    # Another build of the JPEG decoder may round a pixel otherwise.
    RECORDS: (0.005, 0.98),
    SOURCES: (0.005, 0.98),
    "keras": (1e-4, 0.99),
    "onnx": (1e-4, 0.99),  # reached: 5e-6
    "tflite_float32": (1e-4, 0.99),  # reached on photographs: 2e-6
    "tflite_float16": (0.01, 0.98),  # reached: 0.0005 to 0.002, 99.6 to 100%
    # Eight bits cost something. Reached: 0.04 to 0.08 and 98 to 99% by trained models (68 to 93% top-1), 0.16 and
    # 96% by one that was barely trained (46%) and so is seldom sure.
    "tflite_int8": (0.2, 0.93),
}
OPSET = 17  # of ONNX; onnxruntime reads it since 2022
MOST_LEVELS = 2.0  # of 255: largest mean difference of what the model is shown of a file, graph to trainer


# ----------------------------------------------------------------------------------------- writing


def write_model(run: Run, form: str, target: Path, calibration: Callable[[], Iterator[np.ndarray]]) -> None:
    """Write the model of `run` in one format as `target`, a new file or folder.

    Args:
      calibration: gives uint8 images [1, s, s, 3] on which the int8 ranges are measured.
    """
    with full_disk_named(target):
        if form == "keras":
            run.model.save(target)
        elif form == "saved_model":
            save_serving(run, target)
        else:
            atomic_write(target, to_onnx(run) if form == "onnx" else to_tflite(run, form, calibration))


def to_tflite(run: Run, form: str, calibration: Callable[[], Iterator[np.ndarray]]) -> bytes:
    """A TFLite model of one uint8 image [1, s, s, 3] -> float32 probabilities [1, classes]."""
    size = run.config.image_size
    # int8 takes its uint8 input by quantizing a float one.
    image = tf.TensorSpec([1, size, size, 3], tf.float32 if form == "tflite_int8" else tf.uint8, "image")
    function = tf.function(lambda image: run.model(image, training=False), autograph=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function(image)], variables_of(run.model)
    )
    if form != "tflite_float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if form == "tflite_float16":
        converter.target_spec.supported_types = [tf.float16]
    if form == "tflite_int8":
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
        converter.representative_dataset = lambda: ([pixels.astype(np.float32)] for pixels in calibration())
    model: bytes = converter.convert()
    return model


def to_onnx(run: Run) -> bytes:
    """An ONNX model of uint8 `images` [n, s, s, 3] -> float32 `probabilities` [n, classes].

    Its metadata hold the labels and `describe_preprocessing`, as JSON.
    """
    import onnx
    import tf2onnx

    size = run.config.image_size
    image = tf.TensorSpec([None, size, size, 3], tf.uint8, "images")
    function = tf.function(
        lambda images: {"probabilities": run.model(images, training=False)}, [image], autograph=False
    )
    model, _ = tf2onnx.convert.from_function(function, [image], opset=OPSET)
    onnx.helper.set_model_props(
        model, {"labels": json.dumps(run.labels), "preprocessing": json.dumps(describe_preprocessing(run))}
    )
    onnx.checker.check_model(model)
    converted: bytes = model.SerializeToString()
    return converted


def calibration_images(run: Run, data: Dataset, count: int) -> Iterator[np.ndarray]:
    """Training images as the model is shown them, and one with both extremes, so that input step = gray level."""
    for image in model_inputs(run, data, run.config.train_split, count):
        yield image[None]
    extremes = np.zeros((1, run.config.image_size, run.config.image_size, 3), np.uint8)
    extremes[:, ::2] = 255
    yield extremes


def model_inputs(run: Run, data: Dataset, split: str, count: int) -> Iterator[np.ndarray]:
    """Up to `count` records, spread evenly over the split, as the model is shown them: uint8 [s, s, 3]."""
    for image in stored_images(data, split, spread(data.num_records(split), count)):
        if image is None:
            raise Failure(f"a record of split {split} in {data.where} cannot be read; shardline-verify names it")
        yield preprocess(image, run)


def spread(num_records: int, count: int) -> np.ndarray:
    """`count` record numbers, evenly over all; all of them when there are fewer."""
    return np.unique(np.linspace(0, num_records - 1, min(count, num_records)).astype(int))


# ---------------------------------------------------------------------------------------- comparing


def compare(
    run: Run,
    trained: Run,
    paths: Mapping[str, Path],
    data: Dataset,
    split: str,
    count: int,
    sources: Sequence[Path] = (),
) -> dict[str, Any]:
    """Trainer and exports on the same `count` images: agreement, largest difference, and whether that is in bounds.

    Exports are compared with `run`, the model in float32; so is, for information, `trained`, the model in the
    precision it was trained and is evaluated in.

    Args:
      sources: image files as they were before the conversion, for the SavedModel that takes files.
    """
    log(f"compare: {count:,} {noun_after(count, 'image')} of {split}")
    images = list(model_inputs(run, data, split, count))
    expected = probabilities(run.model, images)
    # One, and not one for each comparison: a copy of the weights each.
    signatures = load_signatures(paths["saved_model"]) if "saved_model" in paths else {}
    exports: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for form, path in progress(list(paths.items()), total=len(paths), desc="compare", unit="format"):
        name = "saved_model (uint8)" if form == "saved_model" else form
        exports[name] = judged(name, differences(run_export(form, path, images, signatures), expected))
    if signatures:
        records = spread(data.num_records(split), count).tolist()
        stored = (file for file, _, _ in data.records(split, records))
        files: dict[str, dict[str, str | bytes]] = {
            RECORDS: dict(zip(map("record {}".format, records), stored, strict=True))
        }
        files |= {SOURCES: {str(path): str(path) for path in sources}} if sources else {}
        for name, given in progress(files.items(), total=len(files), desc="compare files", unit="source"):
            found = compare_files(run, signatures, given)
            if found["compared"]:
                exports[name] = judged(name, found)
            else:
                left_out[name] = next(iter(found["refused"]), "the converter refuses each of them")
    return {
        "images": len(images),
        "split": split,
        "exports": exports,
        "left_out": left_out,
        "trainer": {
            "precision": trained.config.precision,
            **differences(probabilities(trained.model, images), expected),
        },
    }


def judged(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """What was found of an export, with its bounds."""
    bound, agreement_bound = BOUNDS[name]
    ok = found["max_difference"] <= bound and found["top1_agreement"] >= agreement_bound
    ok = ok and found.get("levels", 0) <= MOST_LEVELS
    return {**found, "bound": bound, "agreement_bound": agreement_bound, "ok": ok}


def compare_files(run: Run, signatures: Signatures, files: Mapping[str, str | bytes]) -> dict[str, Any]:
    """What a SavedModel makes of files, and what prediction makes of them.

    Prediction's decoders run in processes of their own. A file that ends one of them is not given to the SavedModel,
    whose decoders run in this one.

    Args:
      signatures: of the SavedModel, from `load_signatures`.
      files: paths of image files, or their bytes, by name.

    Returns:
      `files`; `compared`, the number of those that both take, and differences over them: `levels` is the largest mean
      difference of what the model is shown of one, in levels of 255; `refused`, how many the SavedModel refuses for
      each reason; `unnoticed`, names of files that the converter refuses and the SavedModel does not.
    """
    refused: Counter[str] = Counter()
    unnoticed: list[str] = []
    compared: dict[int, tuple[float, np.ndarray, np.ndarray]] = {}  # by number: levels off, what each makes of it
    named = list(files.items())
    for number, loaded in load_files(list(files.values()), converter_options(run)):
        name, file = named[number]
        if isinstance(loaded, str) and loaded.startswith(tuple(WHY)):
            refused[loaded] += 1
            continue
        data = tf.constant([file if isinstance(file, bytes) else Path(file).read_bytes()])
        answer = signatures["serving_default"](bytes=data)
        status = answer["status"].numpy()[0].decode()
        if status != SERVED:
            refused[status] += 1
        elif isinstance(loaded, str):
            unnoticed.append(name)
        else:
            image = preprocess(loaded, run)
            shown = signatures["preprocess"](bytes=data)["images"].numpy()[0]
            levels = float(np.abs(shown.astype(int) - image).mean())
            compared[number] = levels, answer["probabilities"].numpy(), probabilities(run.model, [image])
    found = {
        "files": len(files),
        "compared": len(compared),
        "refused": dict(sorted(refused.items(), key=lambda item: (-item[1], item[0]))),
        "unnoticed": sorted(unnoticed),
    }
    if not compared:
        return found
    levels_off, outputs, expected = zip(*(compared[number] for number in sorted(compared)), strict=True)
    return found | {"levels": max(levels_off), **differences(np.concatenate(outputs), np.concatenate(expected))}


def probabilities(model: keras.Model, images: Sequence[np.ndarray]) -> np.ndarray:
    """float32 [n, classes]: what a Keras model makes of images [s, s, 3], one at a time."""
    return np.concatenate([model(image[None], training=False).numpy() for image in images])


def differences(outputs: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """How far two sets of probabilities lie apart."""
    return {
        "max_difference": float(np.abs(outputs - expected).max()),
        "mean_difference": float(np.abs(outputs - expected).mean()),
        "top1_agreement": float(np.mean(outputs.argmax(1) == expected.argmax(1))),
    }


def load_signatures(saved_model: Path) -> Signatures:
    """The signatures of a SavedModel, read back from disk."""
    found: Signatures = tf.saved_model.load(str(saved_model)).signatures
    return found


def run_export(form: str, path: Path, images: Sequence[np.ndarray], signatures: Signatures) -> np.ndarray:
    """float32 [n, classes]: what one exported model, read back from disk, makes of images.

    Args:
      signatures: of the SavedModel, where `form` is one.
    """
    if form == "keras":
        return probabilities(keras.models.load_model(path, compile=False), images)
    if form == "saved_model":
        serve = signatures["serve_images"]
        return np.concatenate([serve(images=tf.constant(image[None]))["probabilities"] for image in images])
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return np.concatenate([session.run(["probabilities"], {"images": image[None]})[0] for image in images])
    return tflite_probabilities(path, images)


def tflite_probabilities(path: Path, images: Sequence[np.ndarray]) -> np.ndarray:
    """float32 [n, classes]: what a TFLite model makes of images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a successor package that this one release still does without
        interpreter = tf.lite.Interpreter(model_path=str(path), num_threads=available_cores())
    with without_lines("INFO: "):  # on what it computes
        interpreter.allocate_tensors()
    source, sink = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    outputs = []
    for image in images:
        interpreter.set_tensor(source, image[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(sink).copy())
    return np.concatenate(outputs)
