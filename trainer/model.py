"""The network: VGG16 after its own input normalization, a head, and what each phase trains.

The convolutions are keras.applications.VGG16's and see what it was trained on: BGR minus the ImageNet mean. From
scratch they see that divided by the standard deviation of pixels. Without the division the first kernel would have to
be 58 times smaller than He's initialization, and its gradients so large that clipping by the global norm would stop all
others from learning. The normalization is part of the model, so every caller feeds uint8 RGB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import keras
import numpy as np
import tensorflow as tf
from keras import KerasTensor

from shardline.trainer.config import POOLED_HEADS, TrainConfig
from shardline.trainer.gradients import Convolution, ImageMean, MaxPooling2x2

Seen = Callable[[keras.Layer], keras.Layer]  # a layer of the served network as another one has it: the same values
BGR_MEAN = (103.939, 116.779, 123.68)
PIXEL_SPREAD = 58.0  # standard deviation of pixels around the mean
NORMALIZATION = "minus_mean"  # name of the normalizing layer
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


@keras.saving.register_keras_serializable("shardline")
class KeyedDropout(keras.layers.Layer):
    """Dropout whose mask is a pure function of (seed, layer, sample position, unit).

    So it differs between samples, and therefore replicas, is the same for any number of replicas, hosts and micro-
    batches, and has no state to lose at a restart.
    """

    def __init__(self, rate: float, seed: int, **options: str) -> None:
        super().__init__(**options)
        self.rate, self.seed = rate, seed

    def call(self, inputs: tuple[tf.Tensor, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Drop and rescale [b, units] by positions [b] while training; pass through otherwise."""
        x, position = inputs
        if not training or self.rate == 0:
            return x
        bits = _hash(_hash(position, self.seed)[:, None] ^ tf.range(x.shape[-1], dtype=tf.int64)[None], self.seed)
        keep = bits >= int(self.rate * 2**32)
        return tf.where(keep, x / tf.cast(1 - self.rate, x.dtype), tf.zeros([], x.dtype))


def _hash(x: tf.Tensor, seed: int) -> tf.Tensor:
    """32 well mixed bits of each int64 in x (two rounds of multiply and shift, as in MurmurHash3)."""
    mask = tf.constant(0xFFFFFFFF, tf.int64)
    x = x ^ tf.bitwise.right_shift(x, tf.constant(32, x.dtype)) * 0x9E3779B1 ^ seed
    for factor in (0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F):
        x = x & mask
        x = (x ^ tf.bitwise.right_shift(x, tf.constant(16, x.dtype))) * factor
    return (x & mask) ^ tf.bitwise.right_shift(x & mask, tf.constant(15, x.dtype))


@dataclass(frozen=True)
class Network:
    """One set of layers seen four ways.

    Attributes:
      train: (float32 image, position) -> float32 logits.
      serve: uint8 image -> float32 probabilities; built-in layers only.
      backbone: float32 image -> features.
      head: (features, position) -> float32 logits.
      input_scale: what the convolutions see is divided by this.
    """

    train: keras.Model
    serve: keras.Model
    backbone: keras.Model
    head: keras.Model
    input_scale: float

    @property
    def weights(self) -> dict[str, tf.Variable]:
        """Every variable by its path, e.g. block1_conv1/kernel, from the input to the output."""
        return {variable.path: variable.value for variable in self.train.trainable_variables}

    def trained(self, part: str) -> dict[str, tf.Variable]:
        """The variables that train in a phase of this name."""
        return {path: v for path, v in self.weights.items() if layer_group(path) in TRAINABLE[part]}


def num_parameters(variables: Mapping[str, tf.Variable]) -> int:
    """Numbers in all of them."""
    return sum(math.prod(variable.shape) for variable in variables.values())


def kind_of(variable: tf.Variable) -> tuple[np.dtype, tuple[int, ...]]:
    """Type and shape of the array that a checkpoint holds of a variable."""
    return np.dtype(tf.as_dtype(variable.dtype).as_numpy_dtype), tuple(variable.shape)


def layer_group(path: str) -> str:
    """`head` or `block1`..`block5`: where a variable belongs."""
    return path[:6] if path.startswith("block") else "head"


@dataclass(frozen=True)
class NetworkConfig:
    """What shapes a network.

    Attributes:
      head: one of config.HEADS.
      width: share of VGG16's filters and units; below 1 thins every layer, for quick trials on CPUs.
      input_scale: what the convolutions see is divided by this.
      onednn: whether training computes by TensorFlow's own operations for CPUs, neither on a GPU nor by XLA.
    """

    classes: int
    head: str = "gap"
    image_size: int = 224
    dropout: float = 0.0
    seed: int = 0
    precision: str = "float32"
    width: float = 1.0
    input_scale: float = 1.0
    onednn: bool = False

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        classes: int,
        *,
        precision: str | None = None,
        input_scale: float | None = None,
        onednn: bool = False,
    ) -> NetworkConfig:
        """The network that a run of `config` trains, unless `precision` or `input_scale` say otherwise."""
        if input_scale is None:
            # Pretrained convolutions want pixels as they are; fresh ones learn better from numbers around 1.
            input_scale = PIXEL_SPREAD if config.weights == "none" else 1.0
        return cls(
            classes=classes,
            head=config.head,
            image_size=config.image_size,
            dropout=config.dropout,
            seed=config.seed,
            precision=precision or config.precision,
            width=config.width,
            input_scale=input_scale,
            onednn=onednn,
        )


def create_network(config: NetworkConfig) -> Network:
    """VGG16 with a new head. Its weights are Keras's initial ones; see `initialize`."""
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.precision)
    try:
        return _create_network(config)
    finally:
        keras.config.set_dtype_policy(previous)


def _create_network(config: NetworkConfig) -> Network:
    size, stack, hidden = config.image_size, _convolutions(config), _hidden_layers(config.head, config.width)
    normalize, vector = _normalization(config.input_scale), _vector_layers(config.head, stack)
    # float32 from here on: sums over classes lose too much in 16 bits.
    logits = keras.layers.Dense(config.classes, dtype="float32", name="predictions")
    softmax = keras.layers.Activation("softmax", dtype="float32", name="probabilities")
    position = keras.Input((), dtype="int64", name="position")

    def features(image: KerasTensor, seen: Seen) -> KerasTensor:
        x = normalize(keras.ops.flip(image, axis=-1))  # RGB to BGR
        found = {}
        for layer in stack:
            x = found[layer.name] = seen(layer)(x)
        return vector(found, seen)

    def classify(x: KerasTensor, drop: Callable[[KerasTensor, int], KerasTensor]) -> KerasTensor:
        if not hidden:
            x = drop(x, 0)
        for index, layer in enumerate(hidden):
            x = drop(layer(x), index)
        return logits(x)

    def keyed(x: KerasTensor, index: int) -> KerasTensor:
        key = int(np.random.SeedSequence([config.seed, 0xD0, index]).generate_state(1)[0])
        return KeyedDropout(config.dropout, key, name=f"keyed_dropout_{index}")([x, position])

    def builtin(x: KerasTensor, index: int) -> KerasTensor:
        return keras.layers.Dropout(config.dropout, name=f"dropout_{index}")(x)

    served = keras.Input((size, size, 3), dtype="uint8", name="image")
    # First: it builds the layers, and names their weights.
    probabilities = softmax(classify(features(served, lambda layer: layer), builtin))
    side = None if config.head in POOLED_HEADS else size  # progressive resizing trains on smaller images, too
    trained = keras.Input((side, side, 3), dtype="float32", name="image")
    found = features(trained, partial(_trained, onednn=config.onednn))
    cached = keras.Input(found.shape[1:], dtype="float32", name="features")
    return Network(
        train=keras.Model([trained, position], classify(found, keyed)),
        serve=keras.Model(served, probabilities, name="vgg16"),
        backbone=keras.Model(trained, found),
        head=keras.Model([cached, position], classify(cached, keyed)),
        input_scale=config.input_scale,
    )


def _trained(layer: keras.Layer, onednn: bool) -> keras.Layer:
    """The layer, with the gradients that are fastest where it trains."""
    if isinstance(layer, keras.layers.GlobalAveragePooling2D):
        return ImageMean(layer.name)
    if _pools(layer):
        return layer if onednn else MaxPooling2x2(name=layer.name)
    return Convolution(layer) if onednn else layer


def _normalization(scale: float) -> keras.Layer:
    return keras.layers.Rescaling(1 / scale, [-mean / scale for mean in BGR_MEAN], dtype="float32", name=NORMALIZATION)


def _vector_layers(head: str, stack: list[keras.Layer]) -> Callable[[Mapping[str, KerasTensor], Seen], KerasTensor]:
    """What makes a vector of the outputs of the convolutions' layers, by their names."""
    last = stack[-1].name
    if head != "hypercolumn":
        layer = (
            keras.layers.GlobalAveragePooling2D(name="pool") if head == "gap" else keras.layers.Flatten(name="flatten")
        )
        return lambda outputs, _: layer(outputs[last])
    # The last convolution of each block: those of the early ones tell color and texture, which the last has lost.
    names = [before.name for before, after in pairwise(stack) if _pools(after)]
    pools = [keras.layers.GlobalAveragePooling2D(dtype="float32", name=f"{name}_mean") for name in names]
    norms = [
        keras.layers.LayerNormalization(center=False, scale=False, dtype="float32", name=f"{name}_norm")
        for name in names
    ]
    together = keras.layers.Concatenate(dtype="float32", name="hypercolumn")

    def hypercolumn(outputs: Mapping[str, KerasTensor], seen: Seen) -> KerasTensor:
        # Means differ a hundredfold between channels and blocks: of their logarithms, each block is given one spread.
        # (ONNX knows no log1p.)
        means = [seen(pool)(outputs[name]) for name, pool in zip(names, pools, strict=True)]
        return together([norm(keras.ops.log(1 + mean)) for norm, mean in zip(norms, means, strict=True)])

    return hypercolumn


def _pools(layer: keras.Layer) -> bool:
    return isinstance(layer, keras.layers.MaxPooling2D)


def _hidden_layers(head: str, width: float) -> list[keras.Layer]:
    units = {"gap": {}, "hypercolumn": {}, "flatten256": {"hidden": 256}, "fc4096": {"fc1": 4096, "fc2": 4096}}[head]
    return [keras.layers.Dense(max(1, int(count * width)), "relu", name=name) for name, count in units.items()]


def _convolutions(config: NetworkConfig) -> list[keras.Layer]:
    size, width = config.image_size, config.width
    if width == 1:
        vgg16 = keras.applications.VGG16(include_top=False, weights=None, input_shape=(size, size, 3))
        return list(vgg16.layers[1:])
    layers: list[keras.Layer] = []
    for name, shape in convolution_shapes(width).items():
        if layers and name.endswith("conv1"):
            layers.append(keras.layers.MaxPooling2D(name=f"{layers[-1].name[:6]}_pool"))
        layers.append(keras.layers.Conv2D(shape[-1], 3, padding="same", activation="relu", name=name))
    return [*layers, keras.layers.MaxPooling2D(name=f"{layers[-1].name[:6]}_pool")]


def convolution_shapes(width: float = 1.0) -> dict[str, tuple[int, int, int, int]]:
    """Kernel shape [3, 3, in, out] of every convolution by its name, from the input on."""
    shapes, channels = {}, 3
    for block, (filters, count) in enumerate(zip(FILTERS, CONVOLUTIONS, strict=True), 1):
        for index in range(1, count + 1):
            outputs = max(1, int(filters * width))
            shapes[f"block{block}_conv{index}"] = (3, 3, channels, outputs)
            channels = outputs
    return shapes


def initialize(network: Network, seed: int) -> None:
    """He-normal kernels, which a VGG16 without batch norm needs to learn at all, and zero biases."""
    for index, (path, variable) in enumerate(network.weights.items()):
        shape = tuple(variable.shape)
        if len(shape) == 1:
            variable.assign(np.zeros(shape, np.float32))
            continue
        fan_in = int(np.prod(shape[:-1]))
        deviation = np.sqrt((1.0 if path.startswith("predictions") else 2.0) / fan_in)
        normal = np.random.default_rng([seed, 0x1417, index]).standard_normal(shape, np.float32)
        variable.assign(normal * np.float32(deviation))


def flops_per_image(network: Network, image_size: int, part: str = "all") -> float:
    """Floating-point operations of a training step per image of this side: forward, and backward to what trains."""
    forward: dict[str, float] = {}
    for path, variable in network.weights.items():
        if path.endswith("kernel"):
            # Every block after the first sees half the side of the one before.
            pixels = (image_size >> int(path[5]) - 1) ** 2 if len(variable.shape) == 4 else 1
            forward[path] = 2.0 * float(np.prod(variable.shape)) * float(pixels)
    trained = network.trained(part)
    kernels = [path for path in forward if path in trained]
    # Backward costs a forward for the weights' gradient and one for the input's; the lowest layer needs no input's.
    return sum(forward.values()) + 2 * sum(forward[path] for path in kernels) - forward[kernels[0]]
