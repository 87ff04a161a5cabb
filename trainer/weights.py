"""Starting weights: every kind of file that `--weights` may name, as kernels and biases of a VGG16 in order."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import keras
import numpy as np
import tensorflow as tf

from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import file_sha256
from shardline.trainer.model import NORMALIZATION, Network
from shardline.trainer.run_dir import find_checkpoint

V = TypeVar("V")

IMAGENET = {  # file name and md5 of the weights Keras publishes, without and with the top
    False: ("vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5", "6d6bbae143d832006294945121d1f1fc"),
    True: ("vgg16_weights_tf_dim_ordering_tf_kernels.h5", "64373286793e3c8b2b4e3219cbf3544b"),
}
Pair = tuple[np.ndarray, np.ndarray]  # kernel and bias of one layer


@dataclass(frozen=True)
class Pretrained:
    """Kernels and biases read from a file, in the order they are applied."""

    convolutions: Sequence[Pair]
    dense: Sequence[Pair]
    input_scale: float = 1.0  # of the model they were trained in


def check_weights(weights: str, head: str, sha256: str = "") -> str:
    """Refuse in one line, before any other work, `--weights` that are not there or not what they are called.

    Returns:
      The SHA-256 of the file, "" for fresh weights.
    """
    if weights == "none":
        if sha256:
            raise UsageError(f"--weights_sha256={sha256}: there is no file to compare; name it in --weights")
        return ""
    path = _weights_file(weights, head)
    path = find_checkpoint(path).path if path.is_dir() else path
    found = file_sha256(path)
    if sha256 and found != sha256.lower():
        raise UsageError(f"--weights_sha256={sha256}: {path} has {found}; give the file that you mean, or its SHA-256")
    return found


def _weights_file(weights: str, head: str) -> Path:
    """The file or run directory that `--weights` names."""
    if weights == "imagenet":
        return _imagenet_file(head)
    if not Path(weights).exists():
        raise UsageError(
            f"--weights={weights}: no such file; give none, imagenet, or a .h5, .keras, .weights.h5, "
            "checkpoint file or run directory"
        )
    return Path(weights)


def load_weights(network: Network, weights: str, head: str) -> list[str]:
    """Assign the weights named by `--weights`; return the layers that got them.

    Convolutions must all match. Dense layers are taken while their shapes match; the rest keep their fresh values.
    """
    path = _weights_file(weights, head)
    found = _read_h5(path) if weights == "imagenet" else _read(weights)
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


def _pairs(weights: Mapping[str, V]) -> dict[str, tuple[V, V]]:
    names = dict.fromkeys(path.split("/")[0] for path in weights)
    return {name: (weights[f"{name}/kernel"], weights[f"{name}/bias"]) for name in names}


def _fits(variables: tuple[tf.Variable, tf.Variable], arrays: Pair) -> bool:
    return all(tuple(v.shape) == a.shape for v, a in zip(variables, arrays, strict=True))


def _assign(variables: tuple[tf.Variable, tf.Variable], arrays: Pair) -> None:
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
        checkpoint = find_checkpoint(path)
        return _split(list(_pairs(checkpoint.final_weights).values()), checkpoint.header["input_scale"])
    except UsageError as error:
        raise UsageError(f"--weights={weights}: {error}") from None
    except Exception as error:  # h5py, Keras and zipfile each have their own families
        line = " ".join(str(error).split())[:200]
        raise UsageError(f"--weights={weights}: cannot be read as weights: {type(error).__name__}: {line}") from error


def _from_layers(model: keras.Model) -> Pretrained:
    layers = [layer for layer in model._flatten_layers(include_self=False) if len(layer.get_weights()) == 2]
    ours = next((layer for layer in model.layers if layer.name == NORMALIZATION), None)
    return _split([tuple(layer.get_weights()) for layer in layers], 1 / ours.scale if ours else 1.0)


def _read_h5(path: Path) -> Pretrained:
    """Both layouts: Keras 1 and 2 list their layers by name; Keras 3 numbers layers of a class, conv2d_12."""
    import h5py

    with h5py.File(path) as file:
        if "layer_names" in file.attrs:
            groups = [file[name] for name in file.attrs["layer_names"]]
            lists = [[np.array(group[name]) for name in group.attrs["weight_names"]] for group in groups]
        else:
            found: list[str] = []
            file.visititems(lambda name, item: found.append(name) if name.endswith("vars/0") else None)
            found = sorted((n for n in found if not n.startswith("optimizer")), key=_natural)
            lists = [[np.array(item) for _, item in sorted(file[name[:-2]].items())] for name in found]
    return _split([(arrays[0], arrays[1]) for arrays in lists if len(arrays) == 2])


def _natural(text: str) -> list[int | str]:
    # "conv2d" before "conv2d_1" before "conv2d_10".
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text.replace("/", "_0/"))]


def _split(pairs: Sequence[Pair], input_scale: float = 1.0) -> Pretrained:
    return Pretrained([p for p in pairs if p[0].ndim == 4], [p for p in pairs if p[0].ndim == 2], input_scale)
