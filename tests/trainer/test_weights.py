"""Starting weights are read from every kind of file, and another network's are refused in one line."""

import hashlib

import keras
import numpy as np
import pytest

from shardline.pipeline.errors import UsageError
from shardline.pipeline.stored_arrays import save_arrays
from shardline.trainer.checkpoints import write_checkpoint
from shardline.trainer.weights import IMAGENET, load_weights
from tests.trainer.networks import HEADER, LABELS, randomized, values
from tests.trainer.tiny import command


def write_legacy_h5(path, arrays, order=None):
    """The layout of the weights Keras published for VGG16: attributes name layers, and each layer's weights."""
    import h5py

    names = list(dict.fromkeys(name.split("/")[0] for name in arrays))
    with h5py.File(path, "w") as file:
        # Input and pooling layers are listed too, with no weights; names need not be ours.
        listed = ["input_1", *[f"layer_{i}" for i, _ in enumerate(names)], "flatten"]
        file.attrs["layer_names"] = [name.encode() for name in listed]
        file.create_group("input_1").attrs["weight_names"] = []
        file.create_group("flatten").attrs["weight_names"] = []
        for i, name in enumerate(names):
            group = file.create_group(f"layer_{i}")
            group.attrs["weight_names"] = [f"l{i}_W_1:0".encode(), f"l{i}_b_1:0".encode()]
            group.create_dataset(f"l{i}_W_1:0", data=arrays[f"{name}/kernel"])
            group.create_dataset(f"l{i}_b_1:0", data=arrays[f"{name}/bias"])


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("kind", ["legacy.h5", "model.keras", "model.h5", "model.weights.h5", "checkpoint.npz", "run"])
def test_weights_are_read_from(kind, tmp_path):
    source, target = randomized(1), randomized(2)
    path = tmp_path / kind
    if kind in ("checkpoint.npz", "run"):
        # Of a run, the newest checkpoint's moving average.
        names = {"run": "run/checkpoints/step-00000009.npz", "checkpoint.npz": "checkpoint.npz"}
        group = {"run": "ema", "checkpoint.npz": "model"}[kind]
        arrays = {f"{group}/{name}": array for name, array in values(source).items()}
        older = {f"model/{name}": array * 0 for name, array in values(source).items()}
        write_checkpoint(tmp_path / "run/checkpoints/step-00000008.npz", HEADER, older)
        write_checkpoint(tmp_path / names[kind], HEADER, older | arrays)
    elif kind == "legacy.h5":
        write_legacy_h5(path, values(source))
    elif kind in ("model.keras", "model.h5"):
        source.serve.save(path)
    else:
        source.serve.save_weights(path)
    fresh = values(target)
    loaded = load_weights(target, str(path), LABELS)
    classes_known = kind in ("checkpoint.npz", "run")
    assert loaded.layers[13:] == ("fc1", "fc2", "predictions")[: 3 if classes_known else 2]
    assert ("predictions starts fresh: the file does not tell" in str(loaded)) != classes_known
    for name, array in values(source).items():
        wanted = array if classes_known or not name.startswith("predictions") else fresh[name]
        np.testing.assert_array_equal(wanted, target.weights[name].numpy(), err_msg=name)


def test_a_fresh_head_stays_fresh_where_shapes_differ(tmp_path):
    source, target = randomized(1), randomized(2, head="gap")
    before = values(target)
    write_legacy_h5(tmp_path / "w.h5", values(source))
    loaded = load_weights(target, str(tmp_path / "w.h5"), LABELS)
    assert len(loaded.layers) == 13 and "loaded 13 convolutions; " in str(loaded)
    assert (target.weights["predictions/kernel"].numpy() == before["predictions/kernel"]).all()
    assert (target.weights["block5_conv3/bias"].numpy() == source.weights["block5_conv3/bias"].numpy()).all()


def test_hidden_layers_that_a_file_has_not_start_fresh_and_that_is_said(tmp_path):
    source, target = randomized(1, head="gap"), randomized(2)
    write_legacy_h5(tmp_path / "w.h5", values(source))
    said = str(load_weights(target, str(tmp_path / "w.h5"), LABELS))
    for name in ("fc1", "fc2"):
        assert f"{name} starts fresh: the file has no such layer" in said


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("name", ["scaled.keras", "scaled.h5"])
def test_weights_of_a_scaled_model_keep_their_meaning_in_an_unscaled_one(name, tmp_path):
    source, target = randomized(1, input_scale=58.0), randomized(2)
    source.serve.save(tmp_path / name)
    load_weights(target, str(tmp_path / name), LABELS)
    for part in ("kernel", "bias"):
        target.weights[f"predictions/{part}"].assign(source.weights[f"predictions/{part}"])
    images = np.random.default_rng(3).integers(0, 256, (2, 32, 32, 3), np.uint8)
    np.testing.assert_allclose(target.serve(images), source.serve(images), rtol=1e-3, atol=1e-5)


def test_another_network_is_refused_in_one_line(tmp_path):
    source = values(randomized(1))
    write_legacy_h5(tmp_path / "few.h5", {k: v for k, v in source.items() if not k.startswith("block5")})
    write_legacy_h5(
        tmp_path / "wide.h5", source | {"block2_conv1/kernel": np.zeros((3, 3, 1, 5)), "block2_conv1/bias": np.zeros(5)}
    )
    (tmp_path / "text.h5").write_text("not weights")
    earlier = {f"average/{name}": array for name, array in source.items()}  # the averages' name in the first format
    save_arrays(tmp_path / "old.npz", {"input_scale": 1.0}, earlier, format="shardline checkpoint 1")
    target = randomized(2)
    for name, named in (
        ("few.h5", "10 convolutions of 3x3 where VGG16 has 13"),
        ("wide.h5", "block2_conv1 has shape"),
        ("text.h5", "cannot be read as weights"),
        ("none.h5", "no such file"),
        ("old.npz", "has format shardline checkpoint 1, this program reads shardline checkpoint "),
    ):
        with pytest.raises(UsageError, match=named) as error:
            load_weights(target, str(tmp_path / name), LABELS)
        assert str(error.value).startswith(f"weights={tmp_path / name}") and "\n" not in str(error.value)


@pytest.mark.parametrize("head, name", [("gap", "notop"), ("fc4096", "kernels.h5")])
def test_imagenet_weights_are_checked_by_hash(head, name, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / IMAGENET[head == "fc4096"][0]
    assert name in path.name
    source = randomized(1)
    write_legacy_h5(path, values(source))
    with pytest.raises(UsageError, match=r"damaged or another file: md5 [0-9a-f]{32}, expected"):
        load_weights(randomized(2, head), "imagenet", LABELS)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(IMAGENET, head == "fc4096", (path.name, md5))
    target = randomized(2, head)
    assert {"block1_conv1", "block5_conv3"} <= set(load_weights(target, "imagenet", LABELS).layers)
    assert (target.weights["block1_conv1/bias"].numpy() == source.weights["block1_conv1/bias"].numpy()).all()


def test_offline_imagenet_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))

    def no_network(*args, **options):
        raise Exception("URL fetch failure on …: None -- [Errno -3]")

    monkeypatch.setattr(keras.utils, "get_file", no_network)
    with pytest.raises(UsageError) as error:
        load_weights(randomized(2, "gap"), "imagenet", LABELS)
    text = str(error.value)
    assert str(tmp_path / "models") in text and "notop.h5" in text and "\n" not in text


def test_a_dry_run_says_what_is_taken_of_a_run(tiny_run, tiny_data, tmp_path):
    """t14: here the classes are the run's own; t14b: said before any training."""
    arguments = ("--data", tiny_data, "--weights", tiny_run, "--width", 0.05, "--image_size", 32, "--dry_run")
    said = command("shardline.trainer.train", *arguments, "--global_batch_size", 12).stderr
    assert f"--weights={tiny_run}: SHA-256 " in said and "; loaded 13 convolutions, predictions\n" in said
