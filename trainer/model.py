"""The network: VGG16 behind its own input normalization, a head, what each phase trains, and where weights come from.

The convolutions are keras.applications.VGG16's and see what it was trained on: BGR minus the ImageNet mean. From
scratch they see that divided by the spread of pixels: else the first kernel, 58 times smaller than it should be, gets
gradients so large that they drown all others. The normalization is part of the model, so every caller feeds uint8 RGB.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from shardline.pipeline.errors import UsageError
from shardline.trainer.pooling import MaxPooling2x2

BGR_MEAN = (103.939, 116.779, 123.68)
PIXEL_SPREAD = 58.0  # standard deviation of pixels around the mean
NORMALizE = "minus_mean"  # name of the normalizing layer
LAYER_GROUPS = ("head", "block5", "block4", "block3", "block2", "block1")
FILTERS = (64, 128, 256, 512, 512)
CONVOLUTIONS = (2, 2, 3, 3, 3)
TRAINABLE = {  # what trains in a phase named so
    "head": LAYER_GROUPS[:1],
    "block5": LAYER_GROUPS[:2],
    "block4": LAYER_GROUPS[:3],
    "block3": LAYER_GROUPS[:4],
    "all": LAYER_GROUPS,
}
IMAGENET = {  # file name and md5 of the weights Keras publishes, without and with the top
    False: ("vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5", "6d6bbae143d832006294945121d1f1fc"),
    True: ("vgg16_weights_tf_dim_ordering_tf_kernels.h5", "64373286793e3c8b2b4e3219cbf3544b"),
}


@keras.saving.register_keras_serializable("shardline")
class KeyedDropout(keras.layers.Layer):
    """Dropout whose mask is a pure function of (seed, layer, sample position, unit).

    So it differs between samples, and therefore replicas, is the same for any number of replicas, hosts and micro-
    batches, and has no state to lose at a restart.
    """

    def __init__(self, rate: float, seed: int, **options: Any) -> None:
        super().__init__(**options)
        self.rate, self.seed = rate, seed

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Drop and rescale while training; pass through otherwise."""
        x, position = inputs
        if not training or self.rate == 0:
            return x
        bits = _hash(_hash(position, self.seed)[:, None] ^ tf.range(x.shape[-1], dtype=tf.int64)[None], self.seed)
        keep = bits >= int(self.rate * 2**32)
        return tf.where(keep, x / tf.cast(1 - self.rate, x.dtype), tf.zeros([], x.dtype))


def _hash(x: Any, seed: int) -> Any:
    """32 well mixed bits of each int64 in x (two rounds of multiply and shift, as in MurmurHash3)."""
    mask = tf.constant(0xFFFFFFFF, tf.int64)
    x = x ^ tf.bitwise.right_shift(x, tf.constant(32, x.dtype)) * 0x9E3779B1 ^ seed
    for factor in (0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F):
        x = x & mask
        x = (x ^ tf.bitwise.right_shift(x, tf.constant(16, x.dtype))) * factor
    return (x & mask) ^ tf.bitwise.right_shift(x & mask, tf.constant(15, x.dtype))


@dataclass(frozen=True)
class Network:
    """One set of layers seen four ways."""

    train: Any  # (float32 image, position) -> float32 logits
    serve: Any  # uint8 image -> float32 probabilities; built-in layers only
    backbone: Any  # float32 image -> features
    head: Any  # (features, position) -> float32 logits
    input_scale: float  # what the convolutions see is divided by this

    @property
    def weights(self) -> dict[str, Any]:
        """Every variable by its path, e.g. block1_conv1/kernel, from the input to the output."""
        return {variable.path: variable.value for variable in self.train.trainable_variables}

    def trained(self, part: str) -> dict[str, Any]:
        """The variables that train in a phase of this name."""
        return {path: v for path, v in self.weights.items() if group(path) in TRAINABLE[part]}


def group(path: str) -> str:
    """`head` or `block1`..`block5`: where a variable belongs."""
    return path[:6] if path.startswith("block") else "head"


def build(
    *,
    classes: int,
    head: str,
    image_size: int,
    dropout: float = 0.0,
    seed: int = 0,
    precision: str = "float32",
    width: float = 1.0,
    input_scale: float = 1.0,
) -> Network:
    """VGG16 with a new head. `width` below 1 thins every layer, for quick trials on CPUs."""
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        return _build(classes, head, image_size, dropout, seed, width, input_scale)
    finally:
        keras.config.set_dtype_policy(previous)


def _build(classes: int, head: str, size: int, dropout: float, seed: int, width: float, scale: float) -> Network:
    pool = keras.layers.GlobalAveragePooling2D(name="pool") if head == "gap" else keras.layers.Flatten(name="flatten")
    normalize = keras.layers.Rescaling(1 / scale, [-mean / scale for mean in BGR_MEAN], dtype="float32", name=NORMALizE)
    stack = [*_convolutions(size, width), pool]
    units = {"gap": (), "flatten256": (256,), "fc4096": (4096, 4096)}[head]
    names = ("hidden",) if head == "flatten256" else ("fc1", "fc2")
    hidden = [
        keras.layers.Dense(max(1, int(n * width)), "relu", name=name) for n, name in zip(units, names, strict=False)
    ]
    # float32 from here on: sums over classes lose too much in 16 bits.
    logits = keras.layers.Dense(classes, dtype="float32", name="predictions")
    softmax = keras.layers.Activation("softmax", dtype="float32", name="probabilities")

    def features(image: Any, layers: list[Any]) -> Any:
        x = normalize(keras.ops.flip(image, axis=-1))  # RGB to BGR
        for layer in layers:
            x = layer(x)
        return x

    def classify(x: Any, drop: Any) -> Any:
        if not hidden:
            x = drop(x, 0)
        for index, layer in enumerate(hidden):
            x = drop(layer(x), index)
        return logits(x)

    position = keras.Input((), dtype="int64", name="position")

    def keyed(x: Any, index: int) -> Any:
        key = int(np.random.SeedSequence([seed, 0xD0, index]).generate_state(1)[0])
        return KeyedDropout(dropout, key, name=f"keyed_dropout_{index}")([x, position])

    def builtin(x: Any, index: int) -> Any:
        return keras.layers.Dropout(dropout, name=f"dropout_{index}")(x)

    served = keras.Input((size, size, 3), dtype="uint8", name="image")
    serve = keras.Model(served, softmax(classify(features(served, stack), builtin)), name="vgg16")
    trained = keras.Input((size, size, 3), dtype="float32", name="image")
    found = features(trained, [MaxPooling2x2(name=x.name) if _pools(x) else x for x in stack])
    cached = keras.Input(found.shape[1:], dtype="float32", name="features")
    return Network(
        train=keras.Model([trained, position], classify(found, keyed)),
        serve=serve,
        backbone=keras.Model(trained, found),
        head=keras.Model([cached, position], classify(cached, keyed)),
        input_scale=scale,
    )


def _pools(layer: Any) -> bool:
    return isinstance(layer, keras.layers.MaxPooling2D)


def _convolutions(size: int, width: float) -> list[Any]:
    if width == 1:
        return keras.applications.VGG16(include_top=False, weights=None, input_shape=(size, size, 3)).layers[1:]
    layers: list[Any] = []
    for block, (filters, count) in enumerate(zip(FILTERS, CONVOLUTIONS, strict=True), 1):
        for index in range(1, count + 1):
            layers.append(
                keras.layers.Conv2D(
                    max(1, int(filters * width)), 3, padding="same", activation="relu", name=f"block{block}_conv{index}"
                )
            )
        layers.append(keras.layers.MaxPooling2D(name=f"block{block}_pool"))
    return layers


def initialize(network: Network, seed: int) -> None:
    """He-normal kernels, which a VGG16 without batch norm needs to learn at all, and zero biases."""
    for index, (path, variable) in enumerate(network.weights.items()):
        shape = tuple(variable.shape)
        if len(shape) == 1:
            variable.assign(np.zeros(shape, np.float32))
            continue
        fan_in = int(np.prod(shape[:-1]))
        deviation = np.sqrt((1.0 if path.startswith("predictions") else 2.0) / fan_in)
        draws = np.random.default_rng([seed, 0x1417, index]).standard_normal(shape, np.float32)
        variable.assign(draws * np.float32(deviation))


def flops_per_image(network: Network, part: str = "all") -> float:
    """Floating-point operations of one training step per image: forward, and backward down to what trains."""
    forward: dict[str, float] = {}
    shapes = {layer.name: layer.output.shape for layer in network.train.layers}
    for path, variable in network.weights.items():
        if path.endswith("kernel"):
            pixels = np.prod(shapes[path.split("/")[0]][1:-1]) if len(variable.shape) == 4 else 1
            forward[path] = 2.0 * float(np.prod(variable.shape)) * float(pixels)
    trained = network.trained(part)
    kernels = [path for path in forward if path in trained]
    # Backward costs a forward for the weights' gradient and one for the input's; the lowest layer needs no input's.
    return sum(forward.values()) + 2 * sum(forward[path] for path in kernels) - forward[kernels[0]]


# Weights from elsewhere -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pretrained:
    """Kernels and biases read from a file, in the order they are applied."""

    convolutions: Sequence[tuple[np.ndarray, np.ndarray]]
    dense: Sequence[tuple[np.ndarray, np.ndarray]]
    input_scale: float = 1.0  # of the model they were trained in


def check_weights(weights: str, head: str) -> None:
    """Refuse in one line, before any other work, `--weights` that are not there or not what they are called."""
    if weights == "imagenet":
        _imagenet_file(head)
    elif weights != "none" and not Path(weights).exists():
        raise UsageError(
            f"--weights={weights}: no such file; give none, imagenet, or a .h5, .keras, .weights.h5, "
            "checkpoint file or run directory"
        )


def load_weights(network: Network, weights: str, head: str) -> list[str]:
    """Assign the weights named by `--weights`; return the layers that got them.

    Convolutions must all match. Dense layers are taken while their shapes match; the rest keep their fresh values.
    """
    check_weights(weights, head)
    found = _read_h5(_imagenet_file(head)) if weights == "imagenet" else _read(weights)
    pairs = _pairs(network.weights)
    convolutions = [name for name in pairs if name.startswith("block")]
    if len(found.convolutions) != len(convolutions):
        raise UsageError(
            f"--weights={weights}: holds {len(found.convolutions)} convolutions where VGG16 has {len(convolutions)}; "
            "give the weights of a VGG16"
        )
    for name, arrays in zip(convolutions, found.convolutions, strict=True):
        if not _fits(pairs[name], arrays):
            raise UsageError(
                f"--weights={weights}: {name} has shape {arrays[0].shape} where the model has "
                f"{tuple(pairs[name][0].shape)}; give the weights of a VGG16"
            )
        _assign(pairs[name], arrays)
    first = pairs[convolutions[0]][0]
    first.assign(first * (network.input_scale / found.input_scale))
    loaded = list(convolutions)
    dense = [name for name in pairs if not name.startswith("block")]
    for name, arrays in zip(dense, found.dense, strict=False):
        if not _fits(pairs[name], arrays):
            break
        _assign(pairs[name], arrays)
        loaded.append(name)
    return loaded


def _pairs(weights: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = dict.fromkeys(path.split("/")[0] for path in weights)
    return {name: (weights[f"{name}/kernel"], weights[f"{name}/bias"]) for name in names}


def _fits(variables: tuple[Any, Any], arrays: tuple[np.ndarray, np.ndarray]) -> bool:
    return all(tuple(v.shape) == a.shape for v, a in zip(variables, arrays, strict=True))


def _assign(variables: tuple[Any, Any], arrays: tuple[np.ndarray, np.ndarray]) -> None:
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array.astype(np.float32))


def _imagenet_file(head: str) -> Path:
    """The published file, downloaded where it is missing, and checked by hash."""
    name, md5 = IMAGENET[head == "fc4096"]
    folder = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"
    path = folder / name
    if not path.exists():
        from keras.src.applications import vgg16

        try:
            keras.utils.get_file(
                name,
                vgg16.WEIGHTS_PATH if head == "fc4096" else vgg16.WEIGHTS_PATH_NO_TOP,
                cache_subdir="models",
                file_hash=md5,
                cache_dir=str(folder.parent),
            )
        except Exception as error:  # Keras raises a bare Exception when it cannot download
            raise UsageError(
                f"--weights=imagenet: {name} could not be downloaded; fetch it on a machine that can, with "
                f"keras.applications.VGG16(), and put it in {folder}"
            ) from error
    with path.open("rb") as file:
        if (found := hashlib.file_digest(file, "md5").hexdigest()) != md5:
            raise UsageError(
                f"--weights=imagenet: {path} is damaged or another file: md5 {found}, expected {md5}; "
                "delete it and try again, or pass its path as --weights if you mean it"
            )
    return path


def _read(weights: str) -> Pretrained:
    path = Path(weights)
    try:
        if path.suffix == ".keras":
            return _from_layers(keras.models.load_model(path, compile=False))
        if path.suffix == ".h5":
            return _read_h5(path)
        from shardline.trainer import state

        arrays, scale = state.read_weights(path)
        return _split(list(_pairs(arrays).values()), scale)
    except UsageError:
        raise
    except Exception as error:  # h5py, Keras and zipfile each have their own families
        line = " ".join(str(error).split())[:200]
        raise UsageError(f"--weights={weights}: cannot be read as weights: {type(error).__name__}: {line}") from error


def _from_layers(model: Any) -> Pretrained:
    layers = [layer for layer in model._flatten_layers(include_self=False) if len(layer.get_weights()) == 2]
    ours = next((layer for layer in model.layers if layer.name == NORMALizE), None)
    return _split([tuple(layer.get_weights()) for layer in layers], 1 / ours.scale if ours else 1.0)


def _read_h5(path: Path) -> Pretrained:
    """Both layouts: Keras 1 and 2 list their layers by name; Keras 3 numbers layers of a class, conv2d_12."""
    import h5py

    with h5py.File(path) as file:
        if "layer_names" in file.attrs:
            groups = [file[name] for name in file.attrs["layer_names"]]
            lists = [[np.array(group[name]) for name in group.attrs["weight_names"]] for group in groups]
        else:
            found: list[Any] = []
            file.visititems(lambda name, item: found.append(name) if name.endswith("vars/0") else None)
            found = sorted((n for n in found if not n.startswith("optimizer")), key=_natural)
            lists = [[np.array(item) for _, item in sorted(file[name[:-2]].items())] for name in found]
    return _split([(arrays[0], arrays[1]) for arrays in lists if len(arrays) == 2])


def _natural(text: str) -> list[Any]:
    # "conv2d" before "conv2d_1" before "conv2d_10".
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text.replace("/", "_0/"))]


def _split(pairs: Sequence[tuple[Any, Any]], input_scale: float = 1.0) -> Pretrained:
    return Pretrained([p for p in pairs if p[0].ndim == 4], [p for p in pairs if p[0].ndim == 2], input_scale)
