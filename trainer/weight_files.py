"""Files of VGG16 weights in every layout they are published in, as layers in the order they are applied.

What a file is, its first bytes say, not its name: HDF5 of Keras 1, 2 and 3, `.keras`, PyTorch's layers in safetensors,
and our own checkpoints. What would have to be guessed is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec
import numpy as np

from shardline.pipeline import stored
from shardline.pipeline.errors import UsageError
from shardline.pipeline.text import display
from shardline.trainer.model import BGR_MEAN, CONVOLUTIONS, NORMALIZATION
from shardline.trainer.run_dir import find_checkpoint

if TYPE_CHECKING:
    import h5py

# torchvision's normalization: RGB / 255, minus this, over that.
TORCH_MEAN, TORCH_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Arrays = Iterable[tuple[str, np.ndarray]]  # by their paths in the file, layer by layer


@dataclass(frozen=True)
class Layer:
    """A layer of a file: its kernel, [height, width, in, out] of a convolution or [in, out], and its bias [out]."""

    name: str
    kernel: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class Pretrained:
    """What a file of weights holds.

    Attributes:
      layers: in the order they are applied.
      ignored: names of weights that are of no layer with a kernel and a bias.
      input_scale: what the convolutions see, BGR minus the mean, was divided by this.
      classes: `names_digest` of the classes of the last layer; "" where the file does not tell.
      notes: what was done or assumed, for people.
    """

    layers: Sequence[Layer]
    ignored: tuple[str, ...] = ()
    input_scale: float = 1.0
    classes: str = ""
    notes: tuple[str, ...] = ()

    @property
    def convolutions(self) -> list[Layer]:
        """The layers of 3x3 kernels, which are all that VGG16 has of convolutions."""
        return [layer for layer in self.layers if layer.kernel.shape[:-2] == (3, 3)]

    @property
    def dense(self) -> list[Layer]:
        """The dense layers, the last one giving the classes."""
        return [layer for layer in self.layers if layer.kernel.ndim == 2]


def names_digest(names: Iterable[str]) -> str:
    """SHA-256 (hex) of class names in the order of the model's outputs, whatever way their accents are written."""
    return hashlib.sha256(unicodedata.normalize("NFC", "\n".join(names)).encode(errors="surrogateescape")).hexdigest()


def read_weights(path: Path) -> Pretrained:
    """The weights in a file or run directory.

    Raises:
      UsageError: it holds no weights that can be taken for a VGG16's.
    """
    if path.is_dir():
        return _checked(_from_checkpoint(path))
    if "th_kernels" in path.name:  # what Keras published for Theano
        raise UsageError(_THEANO)
    with path.open("rb") as file:
        head = file.read(16)
        file.seek(0)
        if head.startswith(b"\x89HDF\r\n\x1a\n"):
            return _checked(_from_h5(file))
        if head.startswith(b"PK") and "model.weights.h5" in (names := zipfile.ZipFile(file).namelist()):
            return _checked(_from_keras(file))
        if head.startswith(b"\x80") or (head.startswith(b"PK") and any(name.endswith("data.pkl") for name in names)):
            raise UsageError(
                "a pickle of PyTorch, which runs what code it likes when opened; write its state_dict with "
                "safetensors.torch.save_file and give that file"
            )
        if head[8:9] == b"{":
            return _checked(_from_torch(_safetensors(file, path.stat().st_size)))
        if not head.startswith(b"PK"):
            raise UsageError("cannot be read as weights: it is neither HDF5, .keras, .safetensors nor a checkpoint")
    return _checked(_from_checkpoint(path))


def _checked(found: Pretrained) -> Pretrained:
    """All numbers as finite float32."""
    layers = []
    for layer in found.layers:
        for array in (layer.kernel, layer.bias):
            if array.dtype.kind != "f":
                raise UsageError(f"{layer.name} holds {array.dtype}, which are no weights; give them as float32")
            with np.errstate(over="ignore"):  # a float64 that no float32 holds becomes infinite
                finite = np.isfinite(array.astype(np.float32, copy=False)).all()
            if not finite:
                raise UsageError(
                    f"{layer.name} holds numbers that are not finite; the file is damaged, give another one"
                )
        layers.append(replace(layer, kernel=_float32(layer.kernel), bias=_float32(layer.bias)))
    narrow = {str(layer.kernel.dtype) for layer in found.layers} - {"float32"}
    notes = (f"stored as {', '.join(sorted(narrow))}",) if narrow else ()
    return replace(found, layers=layers, notes=found.notes + notes)


def _float32(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)


# --------------------------------------------------------------------------------------------- ours


def _from_checkpoint(path: Path) -> Pretrained:
    checkpoint = find_checkpoint(path)
    weights = checkpoint.final_weights
    names = dict.fromkeys(name.split("/")[0] for name in weights)
    layers = [Layer(name, weights[f"{name}/kernel"], weights[f"{name}/bias"]) for name in names]
    labels = checkpoint.header["labels"]
    classes = names_digest(labels) if labels else ""
    return Pretrained(layers, input_scale=checkpoint.header["input_scale"], classes=classes)


# -------------------------------------------------------------------------------------------- Keras


def _from_keras(file: BinaryIO) -> Pretrained:
    with zipfile.ZipFile(file) as archive:
        found = _from_h5(io.BytesIO(archive.read("model.weights.h5")))
        return _described(replace(found, notes=(_KERAS_INPUT,)), json.loads(archive.read("config.json")))


def _from_h5(source: BinaryIO) -> Pretrained:
    """Keras 1 and 2 list their layers in attributes; Keras 3 numbers the layers of a class: conv2d, conv2d_1, …"""
    import h5py

    with h5py.File(source, "r") as file:
        config = file.attrs.get("model_config")  # of a whole model, saved by model.save
        listed = file.get("model_weights", file)
        is_list = "layer_names" in listed.attrs
        if _text(listed.attrs.get("backend", "")) == "theano":
            raise UsageError(_THEANO)
        layers, ignored = _layers(_listed(listed) if is_list else _numbered(file))
        names = [*map(_text, listed.attrs["layer_names"])] if is_list else []
        file.visit(names.append)  # whose result, were it one, would end the walk
        rescales = any(re.search(r"(^|/)(rescaling|normalization)(_\d+)?$", name) for name in names)
    if config:
        return _described(Pretrained(_by_name(layers), ignored, notes=(_KERAS_INPUT,)), json.loads(config))
    notes = (_KERAS_INPUT, _UNTOLD_SCALE) if rescales else (_KERAS_INPUT,)
    return Pretrained(_by_name(layers), ignored, notes=notes)


# Whose convolutions turn their kernels around.
_THEANO = "holds kernels for Theano, turned around; give those of TensorFlow, published as tf_kernels"
_KERAS_INPUT = "taken as trained on BGR minus the ImageNet mean, as Keras's VGG16 is"
_UNTOLD_SCALE = "its rescaling layer is taken to change nothing: only a whole model, .keras, tells by what it rescales"


def _by_name(layers: list[Layer]) -> list[Layer]:
    """In the order of VGG16's names, where they have those: a list may hold last what was frozen."""
    named = [re.search(r"block(\d)_conv(\d)", layer.name) for layer in layers]
    if sum(match is not None for match in named) != sum(CONVOLUTIONS):
        return layers
    places = [match.groups() if match else ("9",) for match in named]
    return [layers[i] for i in sorted(range(len(layers)), key=places.__getitem__)]


def _listed(group: h5py.Group) -> Iterator[tuple[str, np.ndarray]]:
    for layer in group.attrs["layer_names"]:
        for name in group[layer].attrs["weight_names"]:
            yield f"{_text(layer)}/{_text(name)}", np.array(group[layer][name])


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _numbered(file: h5py.File) -> Iterator[tuple[str, np.ndarray]]:
    found: list[str] = []
    file.visit(lambda name: found.append(name) if re.search(r"(^|/)vars/\d+$", name) else None)
    for name in sorted((name for name in found if not name.startswith("optimizer")), key=_natural):
        yield name.replace("/vars/", "/"), np.array(file[name])


def _natural(text: str) -> list[int | str]:
    # "conv2d" before "conv2d_1" before "conv2d_10".
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text.replace("/", "_0/"))]


def _layers(arrays: Arrays) -> tuple[list[Layer], tuple[str, ...]]:
    """Each kernel with the bias that follows it in the same layer, and the names of all other weights.

    Raises:
      UsageError: for weights between the convolutions that a VGG16 has not.
    """
    layers: list[Layer] = []
    others: list[str] = []
    kernel = no_kernel = ("", np.empty(0))
    for path, array in arrays:
        name = re.split(r"[/.][^/.]*$", path)[0]
        if name == kernel[0] and array.shape == kernel[1].shape[-1:]:
            layers.append(Layer(name, kernel[1], array))
            others.remove(name)
            kernel = no_kernel
        elif array.ndim in (2, 4):
            if array.shape[2:] == (3, 3) != array.shape[:2]:
                raise UsageError(
                    f"{display(name)} has the shape {array.shape}, its outputs first, as Theano's kernels; give those "
                    "of TensorFlow, [3, 3, inputs, outputs]"
                )
            kernel = (name, array)
            others.append(name)  # unless a bias follows
        elif array.dtype.kind == "f":  # else the state of a dropout, or a counter
            others.append(path)
    if len(others) >= 2 * sum(CONVOLUTIONS):
        raise UsageError(
            f"holds {len(others)} weights that are neither kernels nor biases, {display(others[0])} and others: a "
            "network with batch normalization; give the weights of a VGG16 without it"
        )
    return layers, tuple(others)


# What changes the scale of pixels wherever it stands, or before the first convolution. (Elsewhere it is of a head.)
_RESCALES = frozenset({"Rescaling", "Normalization", "TrueDivide", "Divide"})
_RESCALES_INPUT = frozenset(
    {"Multiply", "BatchNormalization", "LayerNormalization", "GroupNormalization", "UnitNormalization"}
)


def _described(found: Pretrained, config: Mapping[str, Any]) -> Pretrained:
    """The layers of a file that describes its whole model, with what this says of the convolutions' input.

    Raises:
      UsageError: its convolutions see their input changed in another way, or compute something else, than VGG16's.
    """
    scale, notes, seen = 1.0, list(found.notes), False  # a convolution
    for kind, options in _configured(config):
        name = display(str(options.get("name")))
        # Keras 2 calls every operation by one name.
        scales = (
            re.search(r"div|mul", str(options.get("function"))) if kind == "TFOpLambda" else kind in _RESCALES_INPUT
        )
        if kind == "Rescaling" and options.get("name") == NORMALIZATION:
            scale = 1 / options["scale"]
        elif kind in _RESCALES or (scales and not seen):
            raise UsageError(
                f"its layer {name} ({kind}) changes what its convolutions see of pixels, and those of a VGG16 see BGR "
                "minus the ImageNet mean; give weights that were trained so"
            )
        elif kind == "Lambda" and not seen:
            notes.append(f"its layer {name} (Lambda), whose code is not run, is taken to make BGR minus the mean")
        elif kind in ("Conv2D", "Convolution2D"):
            seen = True
            _refuse_other_convolution(name, options)
    return replace(found, input_scale=scale, notes=tuple(notes))


def _refuse_other_convolution(name: str, options: Mapping[str, Any]) -> None:
    if options.get("kernel_size") not in ([3, 3], 3):
        return
    plain = {"strides": ([1, 1], 1), "dilation_rate": ([1, 1], 1), "activation": ("relu", "linear")}  # then by a layer
    for fact, values in plain.items():
        given = options.get(fact, values[0])
        if given not in values and not isinstance(given, Mapping):  # an activation that is a layer, as ReLU
            raise UsageError(
                f"its layer {name} has {fact} {display(str(given))}, and VGG16's {values[0]}; give the weights "
                "of a VGG16"
            )


def _configured(config: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Class name and options of every layer in a model's configuration, however deep."""
    if isinstance(config, Mapping):
        if isinstance(config.get("class_name"), str) and isinstance(config.get("config"), dict):
            yield config["class_name"], config["config"]
        config = list(config.values())
    if isinstance(config, list):
        for value in config:
            yield from _configured(value)


# ------------------------------------------------------------------------------------------ PyTorch


class _Tensor(msgspec.Struct):
    dtype: str
    shape: tuple[stored.Count, ...]
    data_offsets: tuple[stored.Count, stored.Count]


_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4"}


def _safetensors(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file: a length, a JSON header, the bytes."""
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, stored.LIMIT_BYTES):
        raise UsageError("is damaged: its header is longer than the file")
    header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    found = stored.convert(header, dict[str, _Tensor], what="its header", remedy="give another file")
    data = file.read()
    arrays = {}
    for name, tensor in found.items():
        if tensor.dtype not in _TYPES:
            raise UsageError(f"{display(name)} holds {display(tensor.dtype)}, which are no weights; give them as F32")
        kind, (start, stop) = np.dtype(_TYPES[tensor.dtype]), tensor.data_offsets
        count = int(np.prod(tensor.shape, dtype=object))
        if not 0 <= start <= stop <= len(data) or count * kind.itemsize != stop - start:
            raise UsageError(f"is damaged: {display(name)} does not lie where its header says")
        array = np.frombuffer(data, kind, count, start).reshape(tensor.shape)
        arrays[name] = (array.astype(np.uint32) << 16).view(np.float32) if tensor.dtype == "BF16" else array
    return arrays


def _from_torch(arrays: Mapping[str, np.ndarray]) -> Pretrained:
    """torchvision's and timm's VGG16: kernels [out, in, height, width], RGB, another normalization."""
    # "head" comes last in timm's, and kernels before their biases.
    ordered = sorted(arrays, key=lambda name: ("head" in name, _natural(name.replace("weight", "a"))))
    layers, ignored = _layers((name, _transposed(arrays[name])) for name in ordered)
    convolutions = [layer for layer in layers if layer.kernel.shape[:-2] == (3, 3)]
    if not convolutions or convolutions[0].kernel.shape[2] != 3:
        raise UsageError("holds no layers of PyTorch's VGG16, whose first kernel has the shape [64, 3, 3, 3]")
    rest = [layer for layer in layers if layer.kernel.shape[:-2] != (3, 3)]
    first, *others = convolutions
    dense = [_flattened(layer, others[-1].kernel.shape[-1] if layer is rest[0] and others else 0) for layer in rest]
    note = "taken as trained on torchvision's normalized RGB, which is folded into block1_conv1"
    return Pretrained([_without_normalization(first), *others, *dense], ignored, notes=(note,))


def _transposed(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _flattened(layer: Layer, channels: int) -> Layer:
    """A dense layer over [height, width, channels], where PyTorch flattens [channels, height, width]."""
    kernel, outputs = layer.kernel, layer.kernel.shape[-1]
    if kernel.ndim == 2 and channels and kernel.shape[0] % channels == 0:
        side = round((kernel.shape[0] / channels) ** 0.5)
        if side * side * channels == kernel.shape[0]:
            kernel = kernel.reshape(channels, side, side, outputs).transpose(1, 2, 0, 3)
    return replace(layer, kernel=kernel.reshape(-1, outputs))


def _without_normalization(layer: Layer) -> Layer:
    """The first convolution as one of BGR minus Keras's mean. At the border both pad with nearly the same gray."""
    kernel, bias = layer.kernel.astype(np.float64), layer.bias.astype(np.float64)
    mean, deviation = np.array(TORCH_MEAN), np.array(TORCH_DEVIATION)
    shift = (np.array(BGR_MEAN[::-1]) / 255 - mean) / deviation  # of what the kernel saw, where ours sees 0
    bias = bias + np.einsum("hwio,i->o", kernel, shift)
    kernel = (kernel / (255 * deviation)[:, None])[:, :, ::-1]
    return replace(layer, kernel=_float32(kernel), bias=_float32(bias))
