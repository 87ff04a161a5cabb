"""What a training run is: the frozen TrainConfig, its phases, and the flags they come from. No TensorFlow."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from absl import flags

from shardline.pipeline.config import InputConfig
from shardline.pipeline.errors import UsageError

PARTS = ("head", "block5", "block4", "block3", "all")
HEADS = ("gap", "flatten256", "fc4096")
OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "constant")
PRECISIONS = ("mixed_bfloat16", "mixed_float16", "float32")
STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker")
# Settings that change how a run is carried out or watched, never what it computes: free to differ at a restart.
RUNTIME_FIELDS = frozenset(
    {
        "data",
        "workdir",
        "strategy",
        "logical_cpus",
        "checkpoint_every_steps",
        "keep_checkpoints",
        "log_every_steps",
        "profile_steps",
        "peak_tflops",
        "augment_on",
        "cache",
        "threads",
        "max_bad_records",
        "workers",
    }
)


@dataclass(frozen=True)
class Phase:
    """One stretch of training: which part of the model trains, for how many epochs, at which peak rate."""

    part: str
    epochs: float
    learning_rate: float

    def __str__(self) -> str:
        return f"{self.part}:{self.epochs:g}@{self.learning_rate:g}"


def parse_phases(text: str) -> tuple[Phase, ...]:
    """`head:5@1e-3,all:20@2e-5` as phases."""
    phases = []
    for item in text.split(","):
        match = re.fullmatch(r"\s*(\w+):([0-9.eE+-]+)@([0-9.eE+-]+)\s*", item)
        try:
            part, epochs, rate = match[1], float(match[2]), float(match[3])  # type: ignore[index]
        except (TypeError, ValueError):
            raise UsageError(
                f"--phases={text}: {item.strip()!r} is not WHAT:EPOCHS@LR, e.g. head:5@1e-3,all:20@2e-5"
            ) from None
        if part not in PARTS:
            raise UsageError(f"--phases={text}: {part!r} is not one of {', '.join(PARTS)}")
        if not (0 < epochs < 1e6 and 0 <= rate < 1e3):
            raise UsageError(f"--phases={text}: {item.strip()!r} needs epochs above 0 and a rate from 0 to 1000")
        phases.append(Phase(part, epochs, rate))
    return tuple(phases)


def _field(default: Any, text: str, choices: tuple[str, ...] | None = None) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class TrainConfig:
    """Every setting of a run. One field, one flag of the same name; checked once, here."""

    data: str = _field("", "dataset directory written by shardline-convert or shardline-adopt")
    workdir: str = _field("", "run directory: config, metrics, checkpoints, plots and the model go there")
    train_split: str = _field("train", "split to train on")
    eval_split: str = _field(
        "auto", "held-out split to report on: a name, none, or auto: validation, else test, else none"
    )
    # model
    weights: str = _field(
        "none",
        "starting weights: none (He-normal), imagenet, or a .h5, .keras, .weights.h5, checkpoint file or run directory",
    )
    head: str = _field(
        "gap",
        "what follows the convolutions: global average pooling, a hidden layer of 256, or the original 4096-4096",
        HEADS,
    )
    dropout: float = _field(0.5, "share of activations dropped in the head while training, 0 to 1")
    image_size: int = _field(224, "side of the square the model sees, in pixels; at least 32")
    width: float = _field(1.0, "share of VGG16's filters and units; below 1 for quick trials on a CPU")
    # recipe
    phases: str = _field("all:9@0.02", "WHAT:EPOCHS@LR,...; WHAT is one of " + ", ".join(PARTS))
    optimizer: str = _field(
        "sgd",
        "sgd is Nesterov momentum; weight decay joins the gradient for sgd and adam, and is decoupled for adamw",
        OPTIMIZERS,
    )
    momentum: float = _field(0.9, "momentum of sgd, first decay rate of adam and adamw")
    schedule: str = _field("cosine", "learning rate within each phase, after its warm-up", SCHEDULES)
    warmup_epochs: float = _field(
        -1.0, "linear warm-up at the start of each phase, in epochs; -1: a tenth of the phase"
    )
    block_lr_decay: float = _field(1.0, "each block below the head learns at this times the rate above it")
    clip_norm: float = _field(1.0, "largest global norm of the gradient; 0: do not clip")
    weight_decay: float = _field(0.0, "weight decay; biases are left out")
    ema: float = _field(
        0.0, "decay of the moving average of the weights that is evaluated and saved, e.g. 0.999; 0: none"
    )
    label_smoothing: float = _field(0.0, "share of the label spread over all classes, 0 to 1")
    class_weights: str = _field(
        "none", "balanced: weigh each example by 1 / (frequency of its class)", ("none", "balanced")
    )
    balanced_sampling: bool = _field(False, "draw every class equally often instead of every record")
    # input
    global_batch_size: int = _field(32, "examples a step, over all devices and hosts")
    micro_batches: int = _field(1, "pieces a device's share of the batch is cut into, to save memory")
    seed: int = _field(0, "seed of the order, the augmentation, the initial weights and dropout")
    shuffle_block_size: int = _field(1, "stored records read together; 1 shuffles exactly")
    augment_on: str = _field(
        "auto",
        "where images are cropped and turned: auto: on the device when it is a GPU",
        ("auto", "host", "device"),
    )
    crop_area: str = _field("0.35,1", "least and largest share of the image a random crop covers")
    crop_ratio: str = _field("0.75,1.333", "least and largest width / height of a random crop")
    flip: bool = _field(True, "mirror left-right, half of the time")
    brightness: float = _field(0.0, "color jitter: factors from 1 - x to 1 + x")
    contrast: float = _field(0.0, "color jitter: factors from 1 - x to 1 + x")
    saturation: float = _field(0.0, "color jitter: factors from 1 - x to 1 + x")
    hue: float = _field(0.0, "turn colors by up to this share of a full circle, at most 0.5")
    erase: float = _field(0.0, "probability that a random box is blanked")
    randaugment_layers: int = _field(0, "random operations applied one after another; 0: off, 2 is usual")
    randaugment_magnitude: int = _field(9, "strength of those operations, 0 to 10")
    mixup: float = _field(0.0, "alpha of mixup; 0: off, 0.2 is usual")
    cutmix: float = _field(0.0, "alpha of cutmix; 0: off, 1 is usual")
    eval_crop_fraction: float = _field(0.875, "the evaluation crop's share of the resized short side")
    cache: str = _field("none", "decoded images: none, memory, or a directory on a local disk")
    max_bad_records: int = _field(10, "distinct unreadable records after which the run stops")
    workers: int = _field(
        -1, "processes that make training batches; 0: threads of this one; -1: one for each core, in runs that last"
    )
    threads: int = _field(0, "threads that read and decode; 0: one for each core")
    synthetic: bool = _field(False, "train on fake batches from memory: the ceiling to compare the real input with")
    cache_features: int = _field(
        0,
        "for head phases: run the frozen layers once over this many augmented views of "
        "each image and train on the stored features; 0: off",
    )
    # how
    precision: str = _field("mixed_bfloat16", "arithmetic of the layers; weights stay float32", PRECISIONS)
    strategy: str = _field("auto", "auto: multi_worker if TF_CONFIG names workers, else mirrored", STRATEGIES)
    logical_cpus: int = _field(0, "split the CPU into this many devices, to try replicas without GPUs; 0: do not")
    jit: bool = _field(True, "compile forward and backward with XLA")
    deterministic: bool = _field(True, "same bits on every run on the same devices; off may be faster on GPUs")
    # cadence
    eval_every_epochs: float = _field(1.0, "epochs between evaluations")
    checkpoint_every_steps: int = _field(0, "steps between checkpoints; 0: at each evaluation")
    keep_checkpoints: int = _field(3, "how many of the latest checkpoints to keep")
    log_every_steps: int = _field(10, "steps between lines of metrics.jsonl")
    early_stop_evals: int = _field(0, "stop after this many evaluations without a better --best_metric; 0: never")
    best_metric: str = _field(
        "none",
        "keep the checkpoint that is best on the validation split by this metric and save it as the model",
        ("none", "loss", "top1", "top5"),
    )
    profile_steps: str = _field("", "FIRST:LAST, steps to write a profiler trace of, e.g. 100:110")
    peak_tflops: float = _field(0.0, "peak of one device for the MFU figure; 0: measure a matrix product")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), field.metadata["choices"]
            if choices and value not in choices:
                raise UsageError(f"--{field.name}={value}: choose one of {', '.join(choices)}")
        for names, good, remedy in _RANGES:
            for name in names:
                _check(self, name, good(getattr(self, name)), remedy)
        parse_phases(self.phases)
        self.profile_range()
        settings = self.input_config()
        if self.cache_features and settings.mixes:
            raise UsageError("--cache_features stores one image a row; leave out --mixup and --cutmix")
        if self.weights == "imagenet" and self.head == "fc4096" and self.image_size != 224:
            raise UsageError(f"--image_size={self.image_size}: the fc1 and fc2 of --weights=imagenet only fit 224")
        if self.weights == "imagenet" and self.width != 1:
            raise UsageError(f"--width={self.width}: --weights=imagenet are those of the full width; leave it at 1")
        if self.class_weights != "none" and self.balanced_sampling:
            raise UsageError("--class_weights=balanced with --balanced_sampling corrects twice; choose one of them")
        if self.early_stop_evals and self.best_metric == "none":
            raise UsageError("--early_stop_evals needs --best_metric=loss, top1 or top5 to judge by")
        if self.best_metric != "none" and self.eval_split == "none":
            raise UsageError(f"--best_metric={self.best_metric} needs an --eval_split to judge by")

    def input_config(self) -> InputConfig:
        """What the batches are made of: the fields that InputConfig shares, checked by it."""
        names = [field.name for field in dataclasses.fields(InputConfig) if hasattr(self, field.name)]
        values: dict[str, Any] = {name: getattr(self, name) for name in names}
        return InputConfig(**values | {name: self._pair(name) for name in ("crop_area", "crop_ratio")})

    def _pair(self, name: str) -> tuple[float, float]:
        try:
            low, high = map(float, getattr(self, name).split(","))
        except ValueError:
            raise UsageError(f"--{name}={getattr(self, name)}: needs two numbers, e.g. 0.35,1") from None
        return low, high

    def profile_range(self) -> tuple[int, int]:
        """First and last step of `--profile_steps`; (0, 0) for none."""
        if not self.profile_steps:
            return 0, 0
        match = re.fullmatch(r"(\d+):(\d+)", self.profile_steps)
        first, last = (int(match[1]), int(match[2])) if match else (0, 0)
        _check(self, "profile_steps", 1 <= first <= last, "needs FIRST:LAST counted from 1, e.g. 100:110")
        return first, last

    @property
    def phase_list(self) -> tuple[Phase, ...]:
        """The parsed `--phases`."""
        return parse_phases(self.phases)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for config.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The config of an earlier run; settings this version does not know are an error."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UsageError(f"config.json holds settings this version does not know: {', '.join(unknown)}")
        return cls(**values)


_RANGES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (  # flags, what they may be, else
    (("dropout", "momentum", "ema", "label_smoothing"), lambda x: 0 <= x < 1, "needs a number from 0 to below 1"),
    (("clip_norm", "weight_decay", "peak_tflops"), lambda x: 0 <= x < math.inf, "needs a number of at least 0"),
    (("block_lr_decay", "width"), lambda x: 0 < x <= 1, "needs a number above 0, up to 1"),
    (("eval_every_epochs",), lambda x: x > 0, "needs a number above 0"),
    (("warmup_epochs",), lambda x: x >= 0 or x == -1, "needs a number of at least 0, or -1 for a tenth of each phase"),
    (
        ("global_batch_size", "micro_batches", "keep_checkpoints", "log_every_steps"),
        lambda x: x >= 1,
        "needs a whole number of at least 1",
    ),
    (
        ("logical_cpus", "checkpoint_every_steps", "cache_features", "early_stop_evals"),
        lambda x: x >= 0,
        "needs a whole number of at least 0",
    ),
    (("image_size",), lambda x: x >= 32, "VGG16 halves the image five times; use at least 32"),
)


def _check(config: TrainConfig, name: str, good: bool, remedy: str) -> None:
    if not good:
        raise UsageError(f"--{name}={getattr(config, name)}: {remedy}")


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`flag: old -> new` for each setting that changes what is computed."""
    names = [name for name in {**old, **new} if name not in RUNTIME_FIELDS]
    return [f"--{n}: {old.get(n)!r} -> {new.get(n)!r}" for n in names if old.get(n) != new.get(n)]


def define_flags() -> None:
    """One absl flag per field of TrainConfig."""
    kinds: dict[type, Any] = {
        bool: flags.DEFINE_boolean,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
    }
    for field in dataclasses.fields(TrainConfig):
        text, choices, default = field.metadata["help"], field.metadata["choices"], field.default
        if choices:
            flags.DEFINE_enum(field.name, str(default), list(choices), text)
        else:
            kinds[type(default)](field.name, default, text)


def from_flags() -> TrainConfig:
    """The TrainConfig the command line describes."""
    values: dict[str, Any] = {f.name: flags.FLAGS[f.name].value for f in dataclasses.fields(TrainConfig)}
    return TrainConfig(**values)
