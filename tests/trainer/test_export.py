"""Exports agree with the trainer, take raw bytes, and load in a process that cannot see this project."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.files import exclusive
from shardline.tools.malformed_images import cases
from shardline.trainer import export
from shardline.trainer.checkpoints import list_checkpoints
from shardline.trainer.config import TrainConfig
from shardline.trainer.evaluation import exports
from shardline.trainer.evaluation.inference import predict_files
from shardline.trainer.export import ExportConfig
from shardline.trainer.train import train
from tests.pipeline.deadly import make_deadly
from tests.pipeline.tiny import edit_stored
from tests.trainer.evaluation.test_serving import SOURCES, UNNOTICED
from tests.trainer.tiny import command

STRANGER = """
import sys
from unittest.mock import Mock
sys.modules["shardline"] = None  # importing it fails
import json
import numpy as np
import tensorflow as tf
folder, files = sys.argv[1], sys.argv[2:]
loaded = tf.saved_model.load(folder + "/saved_model")
data = [open(file, "rb").read() for file in files]
by_bytes = loaded.signatures["serving_default"](bytes=tf.constant(data))
labels = [name.decode() for name in loaded.signatures["labels"]()["labels"].numpy()]
images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
by_images = loaded.signatures["serve_images"](images=tf.constant(images))["probabilities"].numpy()
import keras
model = keras.models.load_model(folder + "/model.keras")
print(json.dumps({
    "labels": labels,
    "top": [name.decode() for name in by_bytes["label"].numpy()],
    "probability": by_bytes["probability"].numpy().tolist(),
    "probabilities": by_bytes["probabilities"].numpy().tolist(),
    "keras_difference": float(np.abs(model(images).numpy() - by_images).max()),
}))
"""


@pytest.fixture(scope="module")
def exported(tiny_run):
    output = tiny_run.parent / "export"
    command(
        "shardline.trainer.export",
        "--run",
        tiny_run,
        "--output",
        output,
        "--parity_images",
        8,
        "--calibration_images",
        8,
    )
    return output


@pytest.fixture(scope="module")
def on_sources(tiny_run, tmp_path_factory):
    """What parity.json says of source-like files and of the malformed images."""
    folder = tmp_path_factory.mktemp("sources")
    for name, file in SOURCES.items():
        (folder / name).write_bytes(file)
    for case in cases():
        (folder / f"malformed {case.name}").write_bytes(case.data)
    command("shardline.trainer.export", "--run", tiny_run, "--output", folder / "export", "--formats", "saved_model",
            "--parity_images", 500, "--parity_inputs", folder)  # fmt: skip
    return json.loads((folder / "export" / "parity.json").read_text())["exports"]["saved_model (source files)"]


@pytest.mark.slow
def test_source_files_are_answered_as_predict_answers_them_or_refused(on_sources):
    assert on_sources["files"] == len(SOURCES) + len(cases())
    assert on_sources["compared"] >= len(SOURCES) + 20
    assert on_sources["levels"] <= 0.5  # of 2
    assert on_sources["max_difference"] <= 0.005 and on_sources["top1_agreement"] == 1
    assert {Path(name).name for name in on_sources["unnoticed"]} == {f"malformed {name}" for name in UNNOTICED}
    assert sum(on_sources["refused"].values()) == on_sources["files"] - on_sources["compared"] - len(UNNOTICED)


@pytest.mark.slow
def test_a_source_file_that_ends_its_decoder_ends_no_export(loaded_run, exported, tmp_path, monkeypatch):
    for name in ("large.jpg", "gray.jpg"):
        (tmp_path / name).write_bytes(SOURCES[name])
    files = {name: str(tmp_path / name) for name in ("large.jpg", "gray.jpg")}
    make_deadly(monkeypatch, tmp_path / "site", SOURCES["large.jpg"], "crash")
    found = exports.compare_files(loaded_run, exports.load_signatures(exported / "saved_model"), files)
    assert (found["files"], found["compared"]) == (2, 1) and found["levels"] <= 0.5
    assert found["refused"] == {"crashes-decoder: its decoder ended the process, twice": 1}


def test_no_images_give_no_answers_and_a_broken_file_spoils_none(exported):
    signatures = tf.saved_model.load(str(exported / "saved_model")).signatures
    empty = signatures["serving_default"](bytes=tf.constant([], tf.string))
    assert {name: tuple(value.shape) for name, value in empty.items()} == {
        "label": (0,), "probability": (0,), "probabilities": (0, 3), "status": (0,)
    }  # fmt: skip
    assert signatures["serve_images"](images=tf.zeros((0, 32, 32, 3), tf.uint8))["probabilities"].shape == (0, 3)
    sound = SOURCES["large.jpg"]
    found = signatures["serving_default"](bytes=tf.constant([sound, sound[:300], b"text", sound]))
    alone = signatures["serving_default"](bytes=tf.constant([sound]))["probabilities"].numpy()[0]
    first, cut, text, last = found["status"].numpy().tolist()
    assert first == last == b"ok" and b"damaged" in cut and b"neither JPEG nor PNG" in text
    assert found["label"].numpy()[1:3].tolist() == [b"", b""] and not found["probabilities"].numpy()[1:3].any()
    np.testing.assert_allclose(found["probabilities"].numpy()[[0, 3]], [alone, alone], atol=1e-6)


def test_source_files_that_cannot_be_compared_are_refused_before_any_work(tiny_run, tmp_path):
    for formats, message in (("keras", "only saved_model takes files"), ("saved_model", "no files there")):
        with pytest.raises(UsageError, match=message):
            export.export(
                ExportConfig(run=tiny_run, output=tmp_path / "x", formats=formats, parity_inputs=str(tmp_path / "no"))
            )


def test_every_format_agrees_with_the_trainer_within_its_bound(exported):
    parity = json.loads((exported / "parity.json").read_text())
    assert parity["images"] == 8
    assert set(parity["exports"]) == set(exports.BOUNDS) - {exports.SOURCES, "onnx"}
    for name, result in parity["exports"].items():
        assert result["ok"], name
        assert result["max_difference"] <= result["bound"]
    for name in ("saved_model (uint8)", "saved_model (bytes)", "keras"):
        assert parity["exports"][name]["max_difference"] < 1e-5


def test_what_is_written(exported):
    names = {path.name for path in exported.iterdir()}
    assert names == {"saved_model", "model.keras", "model_float32.tflite", "model_float16.tflite", "model_int8.tflite",
                     "labels.txt", "parity.json", "preprocessing.json"}  # fmt: skip
    sizes = {form: (exported / f"model_{form}.tflite").stat().st_size for form in ("float32", "float16", "int8")}
    assert sizes["int8"] < sizes["float16"] < sizes["float32"]
    assert (exported / "labels.txt").read_text() == "blue\ngreen\nred\n"


@pytest.fixture(scope="module")
def onnx_folder(tiny_run, tmp_path_factory):
    for name in export.ONNX_PACKAGES:
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("onnx")
    command("shardline.trainer.export", "--run", tiny_run, "--output", folder, "--formats", "onnx", "--parity_images",
            8)  # fmt: skip
    return folder


def test_onnx_agrees_with_the_trainer(onnx_folder, loaded_run):
    import onnxruntime

    parity = json.loads((onnx_folder / "parity.json").read_text())
    assert parity["exports"]["onnx"]["ok"] and parity["exports"]["onnx"]["max_difference"] < 2e-5
    session = onnxruntime.InferenceSession(onnx_folder / "model.onnx", providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    (found,) = session.run(None, {"images": images})
    np.testing.assert_allclose(found, loaded_run.model(images), atol=2e-5)
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["labels"]) == ["blue", "green", "red"]
    assert json.loads(told["preprocessing"]) == json.loads((onnx_folder / "preprocessing.json").read_text())


def test_a_stranger_follows_the_description_and_gets_the_predictions(onnx_folder, loaded_run, tiny_data):
    """With Pillow, whose filters are as wide as the reduction, and onnxruntime alone."""
    import onnxruntime

    told = json.loads((onnx_folder / "preprocessing.json").read_text())
    text = " ".join(told["steps"])
    stored, shown = (int(n) for n in re.findall(r"short side to (\d+) pixels", text))
    size = int(re.search(r"center of (\d+)x", text)[1])
    assert (stored, shown, size) == (40, 37, 32) and "smaller images keep their size" in text
    session = onnxruntime.InferenceSession(onnx_folder / "model.onnx", providers=["CPUExecutionProvider"])
    files = sorted((tiny_data.parent / "raw" / "test").rglob("*.*"))
    for file, (row, image) in zip(
        files, predict_files(loaded_run, list(map(str, files)), top=3, batch_size=8, images=len(files)), strict=True
    ):
        pixels = Image.open(file).convert("RGB")
        for side, kernel in ((stored, Image.Resampling.BICUBIC), (shown, Image.Resampling.BILINEAR)):
            scale = side / min(pixels.size)
            if scale < 1 or side == shown:
                pixels = pixels.resize([round(length * scale) for length in pixels.size], kernel)
        left, top = ((length - size) // 2 for length in pixels.size)
        pixels = np.asarray(pixels.crop((left, top, left + size, top + size)))
        assert np.abs(pixels.astype(int) - image).mean() < 2
        (found,) = session.run(None, {told["input"]["name"]: pixels[None]})
        assert row.labels[0] == ("blue", "green", "red")[int(np.argmax(found))]
        assert row.probabilities[0] == pytest.approx(float(found.max()), abs=0.02)  # Pillow's cubic is another one


def test_onnx_without_its_packages_is_refused_before_any_work(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "ONNX_PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(UsageError, match=r"formats=onnx needs no_such_package: pip install 'shardline\[onnx\]'"):
        export.export(ExportConfig(run=tiny_run, output=tmp_path / "x", formats="keras,onnx"))
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_process_without_this_project_loads_it_and_gets_the_predictions(exported, loaded_run, tiny_data, tmp_path):
    raw = tiny_data.parent / "raw" / "test"
    files = [raw / "green" / "0.png", raw / "blue" / "1.jpg"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run([sys.executable, "-c", STRANGER, exported, *files], capture_output=True, text=True,
                            cwd=tmp_path, env=environment)  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout)
    assert found["labels"] == ["blue", "green", "red"]
    assert found["keras_difference"] < 1e-5
    for row, top, probability in zip(found["probabilities"], found["top"], found["probability"], strict=True):
        assert top == found["labels"][int(np.argmax(row))] and probability == max(row)
    rows = [row for row, _ in predict_files(loaded_run, list(map(str, files)), top=3, batch_size=2)]
    for row, probabilities in zip(rows, found["probabilities"], strict=True):
        predicted = dict(zip(row.labels, row.probabilities, strict=True))
        assert [predicted[name] for name in found["labels"]] == pytest.approx(probabilities, abs=0.005)


def test_from_python_it_returns_paths_and_comparison(tiny_run, tmp_path):
    found = export.export(ExportConfig(run=tiny_run, output=tmp_path, formats="keras", parity_images=2))
    assert found.paths == {"keras": tmp_path / "model.keras"} and found.paths["keras"].is_file()
    assert found.parity == json.loads((tmp_path / "parity.json").read_text())
    with pytest.raises(UsageError, match=r"^output=.* holds model.keras already; add overwrite"):
        export.export(ExportConfig(run=tiny_run, output=tmp_path, formats=("keras",)))


@pytest.mark.slow
def test_a_saved_model_is_read_back_once_for_all_comparisons(tiny_run, tmp_path, monkeypatch):
    loads, genuine = [], tf.saved_model.load
    monkeypatch.setattr(exports.tf.saved_model, "load", lambda path: loads.append(path) or genuine(path))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "large.jpg").write_bytes(SOURCES["large.jpg"])
    made = ExportConfig(run=tiny_run, output=tmp_path / "out", formats="saved_model", parity_images=2,
                        parity_inputs=tmp_path / "photos")  # fmt: skip
    found = export.export(made).parity["exports"]
    assert set(found) == {"saved_model (uint8)", exports.RECORDS, exports.SOURCES} and len(loads) == 1


@pytest.mark.slow
def test_files_are_not_served_where_the_converter_trimmed_borders(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    edit_stored(run / "config.json", lambda content: content["preprocessing"]["stored"].update(trim_borders=True))
    found = command("shardline.trainer.export", "--run", run, "--output", tmp_path / "out", "--formats", "saved_model",
                    "--parity_images", 2)  # fmt: skip
    assert "saved_model (bytes): left out: the converter trims borders" in found.stdout
    parity = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert set(parity["exports"]) == {"saved_model (uint8)"} and "trims borders" in parity["left_out"][exports.RECORDS]
    signatures = tf.saved_model.load(tmp_path / "out" / "saved_model").signatures
    answer = signatures["serving_default"](bytes=tf.constant([SOURCES["large.jpg"]]))
    assert b"trims borders" in answer["status"].numpy()[0] and answer["probability"].numpy()[0] == 0


def test_one_directory_holds_models_of_the_same_weights_alone(tiny_run, tmp_path):
    first, last = list_checkpoints(tiny_run)[0], list_checkpoints(tiny_run)[-1]
    assert first != last
    make = partial(ExportConfig, run=tiny_run, output=tmp_path, parity_images=2)
    export.export(make(formats="keras", checkpoint=str(last)))
    both = export.export(make(formats="tflite_float32")).parity["exports"]
    assert set(both) == {"keras", "tflite_float32"}
    refused = r"holds model.keras, which is not known to be of the same weights; .* formats=tflite_float32,keras"
    with pytest.raises(UsageError, match=refused):
        export.export(make(formats="tflite_float32", checkpoint=str(first), overwrite=True))
    (tmp_path / "parity.json").write_text("[]")
    with pytest.raises(UsageError, match=refused):
        export.export(make(formats="tflite_float32", overwrite=True))


def test_a_dataset_converted_anew_is_not_taken_for_the_one_of_the_run(tiny_run, tiny_data, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    edit_stored(tmp_path / "run" / "config.json", lambda content: content["dataset"].update(dataset="0" * 64))
    with pytest.raises(UsageError, match=r"was converted anew since: digest \w{64}, then 0{64}; name it"):
        export.export(ExportConfig(run=tmp_path / "run", output=tmp_path / "x", formats="keras"))
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_model_that_differs_takes_nothings_place(tiny_run, tmp_path, monkeypatch):
    """Neither beside an earlier export, which stays whole, nor in an empty directory."""
    make = partial(ExportConfig, run=tiny_run, output=tmp_path, parity_images=2, overwrite=True)
    export.export(make(formats="keras,saved_model"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setitem(exports.BOUNDS, "keras", (-1.0, 0.0))
        for output in (tmp_path, tmp_path / "new"):
            run = command("shardline.trainer.export", "--run", tiny_run, "--output", output, "--formats",
                          "keras,saved_model", "--parity_images", 2, "--overwrite", check=1)  # fmt: skip
            assert "error: keras: top-1 agrees on 100.0% of images, probabilities within" in run.stderr
            said = r"the bound allows; nothing was exported; leave it out: --formats=saved_model \(all numbers in .*"
            assert re.search(said, run.stderr)
            assert json.loads((output / "failed_parity.json").read_text())["exports"]["keras"]["ok"] is False
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["failed_parity.json"]
    shutil.rmtree(tmp_path / "new")
    now = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert now.pop(tmp_path / "failed_parity.json") and now == before
    export.export(make(formats="keras"))
    assert not (tmp_path / "failed_parity.json").exists()


def test_differences_are_of_probabilities_and_of_the_best_class():
    expected = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    found = exports.differences(expected[:, ::-1], expected)
    assert found["max_difference"] == pytest.approx(0.8) and found["top1_agreement"] == 0.0


def test_spread_takes_all_of_few_and_both_ends_of_many():
    assert exports.spread(3, 10).tolist() == [0, 1, 2]
    chosen = exports.spread(1000, 5)
    assert chosen.tolist() == [0, 249, 499, 749, 999]


@pytest.mark.parametrize("step", ["write_model", "compare"])
def test_an_interrupted_export_leaves_the_old_model_and_nothing_half(step, tiny_run, tmp_path, monkeypatch):
    (tmp_path / "model.keras").write_bytes(b"the old model")
    monkeypatch.setattr(exports, step, Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        export.export(ExportConfig(run=tiny_run, output=tmp_path, formats="keras", overwrite=True))
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]
    assert (tmp_path / "model.keras").read_bytes() == b"the old model"


def test_what_a_killed_export_left_goes_and_what_others_put_there_does_not(tmp_path):
    left = tmp_path / ".unfinished"
    for name in ("model.keras", "labels.txt.host-7-0123abcd.tmp", "saved_model/variables/variables_temp/part-0"):
        (left / name).parent.mkdir(parents=True, exist_ok=True)
        (left / name).write_bytes(b"half")
    with export.unfinished_folder(tmp_path) as folder:
        assert folder == left and not list(folder.iterdir())
    assert not left.exists()
    for name in ("mine.txt", "saved_model/mine.txt", "mine/model.keras"):
        (left / name).parent.mkdir(parents=True, exist_ok=True)
        (left / name).write_bytes(b"")
        refused = pytest.raises(UsageError, match=f"holds {name}, which shardline did not write")
        with refused, export.unfinished_folder(tmp_path):
            pass
        shutil.rmtree(left)


def test_models_of_others_are_not_deleted(exported, tiny_run, tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    mine = folder / "saved_model" / "variables" / "notes" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("")
    config = ExportConfig(run=tiny_run, output=folder, formats="saved_model", overwrite=True)
    with pytest.raises(UsageError, match=r"saved_model holds variables/notes/mine.txt, which shardline did not write"):
        export.export(config)
    assert mine.exists()


def test_an_output_directory_has_one_owner(exported, tiny_run, tmp_path):
    config = ExportConfig(run=tiny_run, output=tmp_path, formats="saved_model")
    with exclusive(tmp_path / ".lock", "it"), pytest.raises(Failure, match=f"^output={tmp_path} is in use by process"):
        export.export(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_head_on_all_blocks_exports_in_every_format(tiny_data, tmp_path):
    config = TrainConfig(data=tiny_data, workdir=tmp_path / "run", head="hypercolumn", phases="all:8@0.02", dropout=0.0,
                         image_size=32, width=0.1, global_batch_size=12, precision="float32", jit=False,
                         eval_split="test", eval_every_epochs=8, peak_tflops=1)  # fmt: skip
    train(config)
    made = ExportConfig(run=tmp_path / "run", output=tmp_path / "out", formats=",".join(export.FORMATS))
    parity = export.export(made).parity["exports"]
    assert {name.split(" ")[0] for name in parity} == set(export.FORMATS)
    assert parity["keras"]["max_difference"] < 1e-5 and parity["onnx"]["max_difference"] < 2e-5
