"""What a training run is: the frozen TrainConfig, its phases, and the flags they come from. No TensorFlow."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from shardline.pipeline.config import InputConfig
from shardline.pipeline.errors import UsageError
from shardline.pipeline.options import narrowed, option
from shardline.trainer.hosts import HostsConfig

PARTS = ("head", "block5", "block4", "block3", "all")  # each with what those before it train
HEADS = ("gap", "hypercolumn", "flatten256", "fc4096")
OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "constant")
AUTO = "auto"
POOLED_HEADS = ("gap", "hypercolumn")  # fit images of any size
MIN_IMAGE_SIZE = 32  # five halvings leave one pixel
_LEARNS_FAST: dict[str, str | float] = {  # all layers, in few epochs of few images
    "head": "hypercolumn",
    "dropout": 0.0,
    "optimizer": "adamw",
    "weight_decay": 0.05,
    "label_smoothing": 0.1,
    "progressive_resizing": "0.5:0.4,0.625:0.6,0.75:0.8",
}
# Named recipes: what other flags are where they are not given. benchmarks/fine_tuning.py measures them.
RECIPES: dict[str, dict[str, str | float]] = {
    "plain": {},
    "scratch": _LEARNS_FAST | {"phases": "all:32@2e-4", "mixup": 0.2},
    "linear_probe": {"head": "hypercolumn", "dropout": 0.0, "phases": "head:30@0.3", "cache_features": 4},
    "finetune": _LEARNS_FAST | {"phases": "all:20@2e-4"},
}
PRECISIONS = ("mixed_bfloat16", "mixed_float16", "float32")
STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker")
TRACKERS = ("tensorboard", "mlflow", "wandb")
# Settings that change how a run is carried out or watched, never what it computes: free to differ at a restart.
RUNTIME_FIELDS = frozenset(
    {
        "data",
        "workdir",
        "weights_sha256",
        "recipe",
        "strategy",
        "device",
        "logical_cpus",
        "hosts_from",
        "start_timeout",
        "checkpoint_every_steps",
        "keep_checkpoints",
        "log_every_steps",
        "profile_steps",
        "track",
        "peak_tflops",
        "augment_on",
        "cache",
        "threads",
        "max_bad_records",
        "workers",
        "data_cache",
        "data_cache_gb",
        "generation",
        "image_timeout",
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
                f"--phases={text}: {item.strip()!r} is not PART:EPOCHS@LEARNING_RATE, e.g. head:5@1e-3,all:20@2e-5"
            ) from None
        if part not in PARTS:
            raise UsageError(f"--phases={text}: {part!r} is not one of {', '.join(PARTS)}")
        if not (0 < epochs < 1e6 and 0 <= rate < 1e3):
            raise UsageError(f"--phases={text}: {item.strip()!r} needs epochs above 0 and a rate from 0 to 1000")
        phases.append(Phase(part, epochs, rate))
    return tuple(phases)


@dataclass(frozen=True)
class Resize:
    """Progressive resizing: what the images measure, in pixels, until so much of the run (0 to 1) is done."""

    image_size: int
    until: float

    def __str__(self) -> str:
        return f"{self.image_size} px until {self.until:.0%}"


def parse_resizing(text: str, image_size: int) -> tuple[Resize, ...]:
    """`32:0.3,48:0.6,64` at an image size of 64 as the two smaller sizes. A size of at most 1 is a share of it."""
    found: list[Resize] = []
    *items, last = text.split(",") if text else [""]
    for item in items if last.strip() == str(image_size) else filter(None, [*items, last]):
        match = re.fullmatch(r"\s*([0-9.]+):([0-9.]+)\s*", item)
        try:
            size, until = float(match[1]), float(match[2])  # type: ignore[index]
        except (TypeError, ValueError):
            raise UsageError(
                f"--progressive_resizing={text}: {item.strip()!r} is not SIZE:UNTIL, e.g. 32:0.3,48:0.6 or, as shares "
                f"of --image_size={image_size}, 0.5:0.3,0.75:0.6"
            ) from None
        # A multiple of 8 where the size is a share: VGG16 halves it five times, and 32 is the least it can take.
        pixels = max(MIN_IMAGE_SIZE, round(size * image_size / 8) * 8) if size <= 1 else int(size)
        if size > 1 and not (size == pixels and MIN_IMAGE_SIZE <= size <= image_size):
            raise UsageError(
                f"--progressive_resizing={text}: {size:g} is no number of pixels from {MIN_IMAGE_SIZE} to "
                f"--image_size={image_size}"
            )
        before = found[-1].until if found else 0.0
        if not before < until < 1:
            raise UsageError(
                f"--progressive_resizing={text}: {until:g} is no share of the run above {before:g} and below 1; shares "
                "grow, and the rest of the run has --image_size"
            )
        if found and found[-1].image_size == pixels:  # two shares of a small image size
            found.pop()
        found.append(Resize(min(pixels, image_size), until))
    return tuple(found)


def _flags(recipe: str) -> str:
    return " ".join(f"--{name}={value}" for name, value in RECIPES[recipe].items()) or "the defaults shown here"


@dataclass(frozen=True)
class TrainConfig(HostsConfig, InputConfig):
    """Every setting of a run, beside those of its input. One field, one flag of the same name; checked once, here."""

    GROUPS: ClassVar = ("run", "model", "recipe", "augmentation", "input", "devices", "cadence")
    COMMON: ClassVar = (
        *("data", "workdir", "eval_split", "dry_run", "find_lr", "find_batch", "selftest", "allow_changes"),
        *(
            "recipe",
            "weights",
            "head",
            "dropout",
            "phases",
            "optimizer",
            "weight_decay",
            "label_smoothing",
            "progressive_resizing",
            "ema",
            "seed",
        ),
        *("crop_area", "horizontal_flip", "randaugment_layers", "mixup", "global_batch_size", "image_size"),
        *("cache_features", "micro_batches", "precision", "strategy", "eval_every_epochs", "best_metric", "track"),
    )

    data: str = option(
        "", "dataset of shardline-convert or shardline-adopt: a directory, s3://BUCKET/FOLDER or gs://…; also the "
        "one argument without a flag",
        positional=True, path="dataset", group="run",
    )  # fmt: skip
    workdir: str = option(
        "",
        "run directory, also s3://BUCKET/FOLDER or gs://…: config, metrics, checkpoints, plots and the model are "
        "written there",
        group="run",
        path="dataset",
    )
    train_split: str = option("train", "split to train on", group="run")
    eval_split: str = option(
        "auto", "held-out split to report on: a name, none, or auto: validation, else test, else none", group="run"
    )
    weights: str = option(
        "none",
        "starting weights: none (He-normal), imagenet, or a .h5, .keras, .weights.h5, .safetensors, checkpoint file or "
        "run directory",
        group="model",
        path="any",
    )
    weights_sha256: str = option(
        "", "refuse --weights unless the file has this SHA-256; it is printed and kept in config.json", group="model"
    )
    head: str = option(
        "gap",
        "layers after the convolutions: gap, global average pooling; hypercolumn, the same of every block's last "
        "convolution, normalized; flatten256, a hidden layer of 256 units; fc4096, the original two of 4096",
        choices=HEADS, group="model",
    )  # fmt: skip
    dropout: float = option(
        0.5, "dropout rate in the head, while training; 0.5 is the original VGG16's", low=0, below=1, group="model"
    )
    width: float = option(
        1.0, "width multiplier: VGG16's filters and units times this; below 1 for quick trials on a CPU",
        above=0, high=1, group="model",
    )  # fmt: skip
    recipe: str = option(
        "plain",
        "named set of defaults, which other flags override: " + "; ".join(f"{r}, {_flags(r)}" for r in RECIPES),
        choices=tuple(RECIPES), group="recipe",
    )  # fmt: skip
    phases: str = option(
        "all:9@0.02",
        "phases of training, one after another: PART:EPOCHS@PEAK_LEARNING_RATE,...; PART is what trains: the head; "
        "block5, block4 or block3, the head and the blocks down to this one; or all",
        group="recipe",
    )  # fmt: skip
    optimizer: str = option(
        "sgd",
        "update rule; sgd has Nesterov momentum; weight decay joins the gradient of sgd and adam, adamw decouples it",
        choices=OPTIMIZERS, group="recipe",
    )  # fmt: skip
    momentum: float = option(
        0.9, "momentum of sgd, decay rate of the first moment of adam and adamw", low=0, below=1, group="recipe"
    )
    schedule: str = option(
        "cosine", "learning rate within each phase, after its warmup", choices=SCHEDULES, group="recipe"
    )
    warmup_epochs: float = option(
        -1.0, "epochs of linear warmup at the start of each phase; -1: a tenth of the phase", low=0, also=(-1,),
        group="recipe",
    )  # fmt: skip
    block_lr_decay: float = option(
        1.0, "layer-wise learning-rate decay: each block learns at this times the rate of the block after it",
        above=0, high=1, group="recipe",
    )  # fmt: skip
    clip_norm: float = option(
        1.0, "gradient clipping: largest global norm of the gradient; 0: do not clip", low=0, group="recipe"
    )
    weight_decay: float = option(0.0, "weight decay of all kernels; biases have none", low=0, group="recipe")
    ema: float = option(
        0.0,
        "decay of the exponential moving average of the weights, which is then evaluated and saved; 0.999 is usual; 0: "
        "keep no average",
        low=0, below=1, group="recipe",
    )  # fmt: skip
    label_smoothing: float = option(
        0.0, "label smoothing: share of each label that is spread over all classes; 0.1 is usual", low=0, below=1,
        group="recipe",
    )  # fmt: skip
    progressive_resizing: str = option(
        "",
        "train on smaller images first: SIZE:UNTIL,..., the side in pixels, or as a share of --image_size, until that "
        "share of the run, e.g. 0.5:0.3,0.75:0.6; the rest has --image_size; empty: all of it",
        group="recipe",
    )
    class_weights: str = option(
        "none", "weights of the loss; balanced: 1 / frequency of the sample's class, or of both where two are mixed",
        choices=("none", "balanced"),
        group="recipe",
    )  # fmt: skip
    balanced_sampling: bool = option(False, "sample every class equally often instead of every record", group="recipe")
    micro_batches: int = option(
        1, "gradient accumulation: pieces that a replica batch is computed in, to save memory", low=1, group="input"
    )
    synthetic: bool = option(
        False, "train on synthetic batches from memory: the throughput to compare that of real input with",
        group="input",
    )  # fmt: skip
    cache_features: int = option(
        0,
        "for head phases: run the frozen layers once over this many augmented views of each image and train on the "
        "stored features; 0: off",
        low=0, group="input",
    )  # fmt: skip
    precision: str = option(
        AUTO, "dtype policy of the layers; weights and the softmax stay float32; auto: what the devices are fastest in",
        choices=(AUTO, *PRECISIONS), group="devices",
    )  # fmt: skip
    strategy: str = option(
        "auto", "tf.distribute strategy; auto: multi_worker where there are several hosts, else mirrored",
        choices=STRATEGIES, group="devices",
    )  # fmt: skip
    device: str = option(
        "auto", "auto: the GPUs, or the CPU where there are none; cpu: the CPU, also where there are GPUs",
        choices=("auto", "cpu"), group="devices",
    )  # fmt: skip
    logical_cpus: int = option(
        0, "split the CPU into this many devices, to try replicas without GPUs; 0: do not", low=0, group="devices"
    )
    allreduce_dtype: str = option(
        "float32", "dtype in which gradients travel between replicas; bfloat16 halves their bytes and rounds them",
        choices=("float32", "bfloat16"), group="devices",
    )  # fmt: skip
    jit: bool | None = option(
        None, "compile the forward and backward passes with XLA; auto: on GPUs, and on CPUs that are faster with it",
        group="devices",
    )  # fmt: skip
    deterministic: bool = option(
        True, "give the same bits in every run on the same devices; off may be faster on GPUs", group="devices"
    )
    eval_every_epochs: float = option(1.0, "epochs between evaluations", above=0, group="cadence")
    checkpoint_every_steps: int = option(
        0, "steps between checkpoints; 0: save one with each evaluation", low=0, group="cadence"
    )
    keep_checkpoints: int = option(3, "number of latest checkpoints to keep", low=1, group="cadence")
    log_every_steps: int = option(10, "steps between lines of metrics.jsonl", low=1, group="cadence")
    early_stop_evals: int = option(
        0, "early stopping after this many evaluations without a better --best_metric; 0: never", low=0,
        group="cadence",
    )  # fmt: skip
    best_metric: str = option(
        "none",
        "metric on the validation split by which the best checkpoint is kept, and saved as the model; none: the last",
        choices=("none", "loss", "top1", "top5"), group="cadence",
    )  # fmt: skip
    track: str = option(
        "", f"trackers that hear the numbers, too: {', '.join(TRACKERS)}; several with commas",
        group="cadence",
    )  # fmt: skip
    profile_steps: str = option(
        "", "FIRST:LAST, the steps to write a profiler trace of, e.g. 100:110; empty: none", group="cadence"
    )
    peak_tflops: float = option(
        0.0, "peak TFLOP/s of one device, of which MFU is a share; 0: measure a matrix product", low=0, group="cadence"
    )

    def __new__(cls, **given: Any) -> Self:
        """Remember which settings are given: a recipe sets the others."""
        config = super().__new__(cls)
        if given:  # not where a copy is made
            object.__setattr__(config, "_given", given)
        return config

    def __post_init__(self) -> None:
        for name, value in self.completed(self.__dict__.pop("_given", {})).items():
            object.__setattr__(self, name, value)
        super().__post_init__()
        if self.recipe in ("linear_probe", "finetune") and self.weights == "none":
            raise UsageError(f"--recipe={self.recipe} is for pretrained weights: name them in --weights")
        if self.image_size < MIN_IMAGE_SIZE:
            raise UsageError(f"--image_size={self.image_size}: VGG16 halves the image five times; use at least 32")
        if self.resizes and self.head not in POOLED_HEADS:
            raise UsageError(
                f"--progressive_resizing={self.progressive_resizing}: --head={self.head} fits one image size only; use "
                f"--head={' or '.join(POOLED_HEADS)}"
            )
        if self.eval_crops != 1:
            raise UsageError(f"--eval_crops={self.eval_crops}: training evaluates the center crop; use 1")
        parse_phases(self.phases)
        self.profile_range()
        if unknown := [name for name in self.trackers if name not in TRACKERS]:
            raise UsageError(f"--track={self.track}: {unknown[0]!r} is not one of {', '.join(TRACKERS)}")
        if self.cache_features and self.mixes:
            raise UsageError(
                "--cache_features stores one image a row; leave out --mixup and --cutmix, or it: --cache_features=0"
            )
        if self.weights == "imagenet" and self.head == "fc4096" and self.image_size != 224:
            raise UsageError(f"--image_size={self.image_size}: the fc1 and fc2 of --weights=imagenet only fit 224")
        if self.weights == "imagenet" and self.width != 1:
            raise UsageError(f"--width={self.width}: --weights=imagenet are those of the full width; leave it at 1")
        counting = {"class_weights": self.class_weights != "none", "balanced_sampling": self.balanced_sampling}
        if self.synthetic and self.best_metric != "none":
            raise UsageError(f"--best_metric={self.best_metric} judges a held-out split; leave it out, or --synthetic")
        if self.synthetic and (needing := [name for name, given in counting.items() if given]):
            raise UsageError(f"--{needing[0]} counts a dataset's classes; leave it out, or --synthetic")
        if self.class_weights != "none" and self.balanced_sampling:
            raise UsageError("--class_weights=balanced with --balanced_sampling corrects twice; choose one of them")
        if self.balanced_sampling and not self.shuffle:
            raise UsageError("--balanced_sampling shuffles each class; leave it out, or --noshuffle")
        if self.early_stop_evals and self.best_metric == "none":
            raise UsageError("--early_stop_evals needs --best_metric=loss, top1 or top5 to judge by")
        if self.best_metric != "none" and self.eval_split == "none":
            raise UsageError(f"--best_metric={self.best_metric} needs an --eval_split to judge by")

    @classmethod
    def completed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values, with those of their recipe for settings that they lack."""
        return {**RECIPES.get(str(values.get("recipe", "")), {}), **values}

    @property
    def recipe_text(self) -> str:
        """The recipe, and where this config departs from it."""
        others = [f"--{name}={getattr(self, name)}" for name, value in RECIPES[self.recipe].items()
                  if getattr(self, name) != value]  # fmt: skip
        return " ".join([self.recipe, *(["with", *others] if others else [])])

    @property
    def uses_xla(self) -> bool:
        """Whether the step is compiled: of a config whose --jit `arithmetic.decided` has settled."""
        assert self.jit is not None
        return self.jit

    def input_config(self) -> InputConfig:
        """What the batches are made of: the fields that are InputConfig's."""
        return narrowed(self, InputConfig)

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names in `--track`, each once."""
        return tuple(dict.fromkeys(filter(None, map(str.strip, self.track.split(",")))))

    def profile_range(self) -> tuple[int, int]:
        """First and last step of `--profile_steps`; (0, 0) for none."""
        if not self.profile_steps:
            return 0, 0
        match = re.fullmatch(r"(\d+):(\d+)", self.profile_steps)
        first, last = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= first <= last:
            raise UsageError(f"--profile_steps={self.profile_steps}: needs FIRST:LAST counted from 1, e.g. 100:110")
        return first, last

    @property
    def phase_list(self) -> tuple[Phase, ...]:
        """The parsed `--phases`."""
        return parse_phases(self.phases)

    @property
    def resizes(self) -> tuple[Resize, ...]:
        """The parsed `--progressive_resizing`: sizes before the last, which is `image_size`."""
        return parse_resizing(self.progressive_resizing, self.image_size)

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


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """`flag: old -> new` for each setting that changes what is computed."""
    names = [field.name for field in dataclasses.fields(TrainConfig) if field.name not in RUNTIME_FIELDS]
    pairs = ((name, getattr(old, name), getattr(new, name)) for name in names)
    return [f"--{name}: {before!r} -> {after!r}" for name, before, after in pairs if before != after]
