"""Names that people type from habit, of timm, Keras, Hugging Face, Lightning and YOLO, and ours for the same thing."""

from __future__ import annotations

import difflib
from collections.abc import Collection

# The first name that a command has is the one it means. No name of a flag of ours may be a key where it has that flag.
HABITS: dict[str, tuple[str, ...]] = {
    "b": ("global_batch_size", "batch_size"),
    "batch": ("global_batch_size", "batch_size"),
    "bs": ("global_batch_size", "batch_size"),
    "batch_size": ("global_batch_size", "batch_size"),
    "train_batch_size": ("global_batch_size",),
    "per_device_train_batch_size": ("global_batch_size",),
    "global_batch_size": ("batch_size",),
    "epochs": ("phases",),
    "num_epochs": ("phases",),
    "max_epochs": ("phases",),
    "num_train_epochs": ("phases",),
    "train_epochs": ("phases",),
    "steps": ("phases",),
    "max_steps": ("phases",),
    "train_steps": ("phases",),
    "lr": ("phases",),
    "learning_rate": ("phases",),
    "base_lr": ("phases",),
    "initial_learning_rate": ("phases",),
    "freeze": ("phases",),
    "freeze_backbone": ("phases",),
    "wd": ("weight_decay",),
    "l2": ("weight_decay",),
    "opt": ("optimizer",),
    "optim": ("optimizer",),
    "sched": ("schedule",),
    "scheduler": ("schedule",),
    "lr_schedule": ("schedule",),
    "lr_scheduler": ("schedule",),
    "lr_scheduler_type": ("schedule",),
    "warmup": ("warmup_epochs",),
    "warmup_steps": ("warmup_epochs",),
    "layer_decay": ("block_lr_decay",),
    "clip_grad": ("clip_norm",),
    "clipnorm": ("clip_norm",),
    "gradient_clip_val": ("clip_norm",),
    "max_grad_norm": ("clip_norm",),
    "grad_accum": ("micro_batches",),
    "grad_accum_steps": ("micro_batches",),
    "accumulate_grad_batches": ("micro_batches",),
    "gradient_accumulation_steps": ("micro_batches",),
    "smoothing": ("label_smoothing",),
    "ema_decay": ("ema",),
    "model_ema": ("ema",),
    "drop": ("dropout",),
    "drop_rate": ("dropout",),
    "dropout_rate": ("dropout",),
    "pretrained": ("weights", "run"),
    "initial_checkpoint": ("weights", "checkpoint"),
    "ckpt": ("checkpoint", "weights"),
    "model": ("weights", "run"),
    "arch": ("head",),
    "alpha": ("width",),
    "width_multiplier": ("width",),
    "img": ("image_size", "size"),
    "imgsz": ("image_size", "size"),
    "img_size": ("image_size", "size"),
    "input_size": ("image_size", "size"),
    "resolution": ("image_size", "size"),
    "image_size": ("size",),
    "size": ("image_size",),
    "crop_pct": ("eval_crop_fraction",),
    "scale": ("crop_area",),
    "ratio": ("crop_ratio",),
    "flip": ("horizontal_flip",),
    "hflip": ("horizontal_flip",),
    "color_jitter": ("brightness",),
    "aa": ("randaugment_layers",),
    "auto_augment": ("randaugment_layers",),
    "randaugment": ("randaugment_layers",),
    "reprob": ("random_erasing",),
    "mixup_alpha": ("mixup",),
    "cutmix_alpha": ("cutmix",),
    "j": ("workers",),
    "jobs": ("workers",),
    "num_workers": ("workers", "threads"),
    "num_proc": ("workers",),
    "amp": ("precision",),
    "fp16": ("precision",),
    "bf16": ("precision",),
    "dtype": ("precision",),
    "mixed_precision": ("precision",),
    "xla": ("jit",),
    "jit_compile": ("jit",),
    "compile": ("jit",),
    "gpus": ("strategy",),
    "num_gpus": ("strategy",),
    "devices": ("strategy",),
    "distribute": ("strategy",),
    "distribution_strategy": ("strategy",),
    "random_seed": ("seed",),
    "dataset": ("data", "source"),
    "data_dir": ("data", "source"),
    "data_path": ("data", "source"),
    "dataset_dir": ("data", "source"),
    "data": ("source",),
    "input": ("source", "data"),
    "input_dir": ("source", "input", "data"),
    "inputs": ("input",),
    "images": ("input", "source"),
    "source": ("data", "input"),
    "out": ("output", "workdir"),
    "o": ("output", "workdir"),
    "output": ("workdir", "save"),
    "output_dir": ("output", "workdir"),
    "out_dir": ("output", "workdir"),
    "model_dir": ("workdir", "run"),
    "log_dir": ("workdir",),
    "logdir": ("workdir",),
    "save_dir": ("workdir", "output"),
    "train_dir": ("workdir",),
    "workdir": ("run", "output"),
    "run_dir": ("run", "workdir"),
    "runs": ("run",),
    "resume": ("workdir",),
    "resume_from_checkpoint": ("workdir",),
    "val_split": ("eval_split",),
    "validation_split": ("eval_split", "splits"),
    "train_ratio": ("splits",),
    "shard_size": ("shard_mb",),
    "num_shards": ("shards",),
    "jpeg_quality": ("quality",),
    "format": ("encoding", "formats", "output"),
    "patience": ("early_stop_evals",),
    "early_stopping": ("early_stop_evals",),
    "monitor": ("best_metric",),
    "eval_metric": ("best_metric",),
    "save_every": ("checkpoint_every_steps",),
    "save_steps": ("checkpoint_every_steps",),
    "checkpoint_every": ("checkpoint_every_steps",),
    "eval_every": ("eval_every_epochs",),
    "log_every": ("log_every_steps",),
    "logging_steps": ("log_every_steps",),
    "topk": ("top",),
    "top_k": ("top",),
    "test_run": ("dry_run",),
    "force": ("overwrite",),
    "config_file": ("config",),
    "cfg": ("config",),
    "c": ("config",),
}
# Names whose values mean something else than those of ours.
OTHER_VALUES = {"model", "pretrained", "shard_size", "val_split", "validation_split", "warmup_steps"}
# Where the other name alone does not tell what to write.
EXAMPLES = {
    "phases": "--phases=PART:EPOCHS@LEARNING_RATE, e.g. --phases=all:9@0.02",
    "brightness": "--brightness, --contrast, --saturation and --hue",
    "resume": "--workdir: the same command continues the run there",
    "resume_from_checkpoint": "--workdir: the same command continues the run there",
    "gpus": "--strategy=auto, which uses every GPU that CUDA_VISIBLE_DEVICES shows",
    "num_gpus": "--strategy=auto, which uses every GPU that CUDA_VISIBLE_DEVICES shows",
    "devices": "--strategy=auto, which uses every GPU that CUDA_VISIBLE_DEVICES shows",
}


def meant(name: str, known: Collection[str]) -> str:
    """What was probably meant by the unknown flag or setting `name`, as one would type it; "" for no idea."""
    plain = name.replace("-", "_").lower()
    if plain in known:
        return f"--{plain}"
    ours = next((ours for ours in HABITS.get(plain, ()) if ours in known), "")
    if ours:
        return EXAMPLES.get(plain) or EXAMPLES.get(ours) or f"--{ours}"
    near = nearest(plain, known)
    return f"--{near}" if near else ""


def nearest(name: str, known: Collection[str]) -> str:
    """The known name that differs least from a mistyped one; "" if all differ much."""
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.7)), "")


def unknown(name: str, known: Collection[str]) -> str:
    """What is said of a flag or setting that a command has not."""
    ours = meant(name, known)
    return f"no such flag; use {ours}" if ours else "no such flag"
