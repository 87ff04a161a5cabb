"""Starting weights: what `--weights` names, which of its layers a network takes, and what is said of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import keras

from shardline.pipeline.cli import log
from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import file_sha256
from shardline.pipeline.text import display
from shardline.pipeline.wording import count
from shardline.trainer.checks import check_weights_file
from shardline.trainer.model import Network, convolution_shapes
from shardline.trainer.run_dir import find_checkpoint
from shardline.trainer.weight_files import Layer, Pretrained, names_digest, read_weights

IMAGENET = {  # file name and md5 of the weights Keras publishes, without and with the top
    False: ("vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5", "6d6bbae143d832006294945121d1f1fc"),
    True: ("vgg16_weights_tf_dim_ordering_tf_kernels.h5", "64373286793e3c8b2b4e3219cbf3544b"),
}
# `names_digest` of the classes of the weights with the top: the 1,000 synsets of ILSVRC 2012, sorted.
IMAGENET_CLASSES = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"


@dataclass(frozen=True)
class LoadedWeights:
    """Which layers of a network got a file's values, and what is to be said of the others."""

    layers: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        convolutions = [name for name in self.layers if name.startswith("block")]
        dense = [name for name in self.layers if name not in convolutions]
        return "; ".join([", ".join([f"loaded {count(len(convolutions), 'convolution')}", *dense]), *self.notes])


def check_weights(weights: str, head: str, width: float, sha256: str = "") -> str:
    """Refuse in one line, before any other work, `--weights` that are not there or not what they are called.

    Returns:
      The SHA-256 of the file, "" for fresh weights.
    """
    if weights == "none":
        if sha256:
            raise UsageError(f"--weights_sha256={sha256}: there is no file to compare; name it in --weights")
        return ""
    path = _weights_file(weights, head == "fc4096")
    path = find_checkpoint(path).path if path.is_dir() else path
    found = file_sha256(path)
    if sha256 and found != sha256.lower():
        raise UsageError(f"--weights_sha256={sha256}: {path} has {found}; give the file that you mean, or its SHA-256")
    _read(weights, head == "fc4096", convolution_shapes(width))
    return found


def _weights_file(weights: str, top: bool) -> Path:
    """The file or run directory that `--weights` names; of ImageNet's files the one with or without the `top`."""
    if weights == "imagenet":
        return _imagenet_file(top)
    check_weights_file(weights)
    return Path(weights)


def _read(weights: str, top: bool, shapes: Mapping[str, tuple[int, ...]]) -> Pretrained:
    """What `--weights` names. Its convolutions have these shapes, else it is refused."""
    path = _weights_file(weights, top)
    try:
        found = read_weights(path)
        _check_convolutions(found.convolutions, shapes)
    except UsageError as error:
        raise UsageError(f"--weights={weights}: {error}") from None
    except Exception as error:  # h5py, json and zipfile each have their own families
        line = " ".join(str(error).split())[:200]
        raise UsageError(f"--weights={weights}: cannot be read as weights: {type(error).__name__}: {line}") from error
    return replace(found, classes=IMAGENET_CLASSES) if _is_published_top(path) else found


def _is_published_top(path: Path) -> bool:
    """Whether a file is Keras's own of all VGG16, whose classes are known."""
    return path.suffix == ".h5" and _md5(path) == IMAGENET[True][1]


def _check_convolutions(layers: Sequence[Layer], expected: Mapping[str, tuple[int, ...]]) -> None:
    if len(layers) != len(expected):
        raise UsageError(
            f"holds {len(layers)} convolutions of 3x3 where VGG16 has {len(expected)}; give the weights of a VGG16"
        )
    for (name, shape), layer in zip(expected.items(), layers, strict=True):
        if layer.kernel.shape != shape:
            raise UsageError(
                f"{name} has shape {layer.kernel.shape} where the model has {shape}; give the weights of a VGG16, or "
                "the --width they were trained with"
            )


def load_weights(network: Network, weights: str, labels: Sequence[str]) -> LoadedWeights:
    """Assign the weights named by `--weights`, and tell which layers got them.

    All convolutions are taken; of the dense layers the hidden ones while their shapes match, and the last one if its
    classes are `labels`, in this order. The others keep their fresh values.
    """
    names = list(dict.fromkeys(path.split("/")[0] for path in network.weights))
    convolutions = [name for name in names if name.startswith("block")]
    shapes = {name: tuple(network.weights[f"{name}/kernel"].shape) for name in names}
    found = _read(weights, "fc1" in names, {name: shapes[name] for name in convolutions})
    for name, layer in zip(convolutions, found.convolutions, strict=True):
        _assign(network, name, layer)
    first = network.weights[f"{convolutions[0]}/kernel"]
    first.assign(first * (network.input_scale / found.input_scale))
    *hidden, last = names[len(convolutions) :]
    loaded, notes = list(convolutions), list(found.notes)
    for number, name in enumerate(hidden):
        own = found.dense[number] if number < len(found.dense) - 1 else None
        if own is None or own.kernel.shape != shapes[name]:
            reason = f"{own.name} has the shape {own.kernel.shape}" if own else "the file has no such layer"
            notes += [f"{fresh} starts fresh: {reason}" for fresh in hidden[number:]]
            break
        _assign(network, name, own)
        loaded.append(name)
    if reason := _unlike(found, shapes[last], labels):
        notes.append(f"{last} starts fresh: {reason}")
    else:
        _assign(network, last, found.dense[-1])
        loaded.append(last)
    others = [layer.name for layer in found.layers if layer.kernel.shape[:-2] not in ((), (3, 3))]
    if ignored := [*others, *found.ignored]:
        more = f" and {len(ignored) - 8} more" if len(ignored) > 8 else ""
        notes.append(f"ignored {display(', '.join(ignored[:8]))}{more}, for which VGG16 has no place")
    return LoadedWeights(tuple(loaded), tuple(notes))


def _unlike(found: Pretrained, wanted: tuple[int, ...], labels: Sequence[str]) -> str:
    """Why the file's last layer is not that of `labels`, with a kernel of the `wanted` shape; "" where it is."""
    if not found.dense:
        return "the file has no head"
    if not found.classes:
        return "the file does not tell the names of its classes"
    if found.classes != names_digest(labels):
        return "its classes are others, or in another order"
    shape = found.dense[-1].kernel.shape
    return "" if shape == wanted else f"its shape is {shape}, not {wanted}"


def _assign(network: Network, name: str, layer: Layer) -> None:
    network.weights[f"{name}/kernel"].assign(layer.kernel)
    network.weights[f"{name}/bias"].assign(layer.bias)


def _imagenet_file(top: bool) -> Path:
    """The published file, downloaded where it is missing, and checked by hash."""
    name, md5 = IMAGENET[top]
    folder = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"
    path = folder / name
    if not path.exists():
        from keras.src.applications import vgg16

        url = vgg16.WEIGHTS_PATH if top else vgg16.WEIGHTS_PATH_NO_TOP
        log(f"downloading {name}, {'553' if top else '59'} MB …")
        try:
            keras.utils.get_file(
                name,
                url,
                cache_subdir="models",
                file_hash=md5,
                cache_dir=str(folder.parent),
            )
        except Exception as error:  # Keras raises a bare Exception when it cannot download
            raise UsageError(
                f"--weights=imagenet: {name} could not be downloaded; fetch {url} on a machine that can (or let "
                f"keras.applications.VGG16(include_top={top}) do it, which keeps it in ~/.keras/models), and put it in "
                f"{folder}"
            ) from error
    if (found := _md5(path)) != md5:
        raise UsageError(
            f"--weights=imagenet: {path} is damaged or another file: md5 {found}, expected {md5}; "
            "delete it and try again, or pass its path as --weights if you mean it"
        )
    return path


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
