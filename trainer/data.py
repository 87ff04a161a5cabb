"""Which dataset and splits a run trains and reports on, checked before TensorFlow is started. No TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from shardline import pipeline
from shardline.pipeline.errors import UsageError
from shardline.pipeline.manifest import Manifest
from shardline.pipeline.wording import count
from shardline.trainer.config import TrainConfig
from shardline.trainer.schedule import phase_steps, spans, steps_between


def open_data(config: TrainConfig) -> pipeline.Dataset | None:
    """The dataset to train on, with records and labels in the training split; None where batches are synthetic.

    Raises:
      UsageError: there is none, or it lacks the split.
    """
    if config.synthetic and not config.data:
        return None
    if not config.data:
        raise UsageError("--data is missing: give a dataset directory made by shardline-convert, or --synthetic")
    data = pipeline.open_dataset(config.data, config)
    if config.train_split not in data.manifest.splits:
        raise UsageError(f"--train_split={config.train_split}: this dataset has {', '.join(data.manifest.splits)}")
    data.manifest.refuse_unlabelled(config.train_split, "--train_split")
    if not data.num_records(config.train_split):
        raise UsageError(f"--train_split={config.train_split} of --data={config.data} holds no records")
    return data


def choose_eval_split(config: TrainConfig, data: pipeline.Dataset | None) -> str:
    """The held-out split to report on, "" for none. What is chosen by it must not be the test split."""
    if config.synthetic and config.eval_split not in ("auto", "none"):
        raise UsageError(f"--eval_split={config.eval_split}: --synthetic holds nothing out; leave out one of them")
    if data is None or config.synthetic or config.eval_split == "none":
        return ""
    splits = [name for name, split in data.manifest.splits.items() if split.records and not split.unlabelled]
    if config.eval_split == "auto":
        name = held_out(splits, config.train_split, *HELD_OUT, "test")
    else:
        name = config.eval_split
        if name not in splits:
            data.manifest.refuse_unlabelled(name, "--eval_split")
            raise UsageError(f"--eval_split={name}: this dataset has {', '.join(splits)}")
    if config.best_metric != "none" and name in ("", "test", config.train_split):
        raise UsageError(
            f"--best_metric={config.best_metric} would choose the model by {name or 'nothing'}: convert with a "
            "validation split (--splits), or leave it out; a model chosen on test has no honest test result, and one "
            "chosen on what it is trained on is the one that knows it by heart"
        )
    return name


MOST_OF_START = 0.1  # share of a moving average
HELD_OUT = ("validation", "val")  # what the split is called that settings are chosen by


def held_out(splits: Collection[str], train_split: str, *names: str) -> str:
    """The first of `names` that is there and is not trained on; "" for none."""
    return next((name for name in names if name in splits and name != train_split), "")


# The converter's options, beside resize and size, on which the pixels depend that it makes of a file; with their types.
STORED_OPTIONS = {"upscale": bool, "trim_borders": bool, "depth_range": str}


def stored_as(manifest: Manifest) -> dict[str, Any]:
    """How the converter made the images, so that prediction and export can do the same to any file."""
    made = {name: manifest.options[name] for name in STORED_OPTIONS if name in manifest.options}
    return {"resize": manifest.image.resize, "size": manifest.image.size, **made}


def without_effect(config: TrainConfig, steps: int) -> list[str]:
    """Which settings change nothing in a run of so many steps, and why, a line each."""
    heads = [phase.part == "head" for phase in config.phase_list]
    cached, (first, _) = bool(config.cache_features), config.profile_range()
    found = {
        "cache_features": (cached and not any(heads), "no phase trains the head alone"),
        "progressive_resizing": (
            config.resizes and cached and all(heads),
            "features are stored at the full image size",
        ),
        "block_lr_decay": (config.block_lr_decay < 1 and all(heads), "the head alone trains"),
        "shuffle_block_size": (
            config.shuffle_block_size > 1 and (config.balanced_sampling or not config.shuffle),
            "records are not read in blocks",
        ),
        "randaugment_magnitude": (
            config.randaugment_magnitude != TrainConfig.randaugment_magnitude and not config.randaugment_layers,
            "there are no --randaugment_layers",
        ),
        "profile_steps": (first > steps, f"the run ends at step {steps:,}"),
    }
    return [f"--{name}={getattr(config, name)} changes nothing: {why}" for name, (idle, why) in found.items() if idle]


def banner(config: TrainConfig, data: pipeline.Dataset | None, eval_split: str) -> str:
    """What a run is about to do, in lines a person reads while TensorFlow is loaded."""
    lines = []
    if data is not None:
        sizes = ", ".join(f"{split.records:,} {name}" for name, split in data.manifest.splits.items())
        lines.append(f"data: {config.data}, {count(len(data.labels), 'class')}, records: {sizes}")
        if len(data.labels) == 1:
            lines.append("note: of one class there is nothing to learn: every model is right")
    if data is None or config.synthetic:
        lines.append("data: synthetic batches from memory")
    else:
        records, batch = data.num_records(config.train_split), config.global_batch_size
        found = spans(config.phase_list, records)
        steps = steps_between(0, found[-1].stop, batch)
        on = f"evaluation on {eval_split}" if eval_split else "no evaluation"
        lines.append(f"run: {config.phases}, {count(steps, 'step')} of {count(batch, 'sample')}, {on}")
        if eval_split == config.train_split:
            lines.append(f"note: {eval_split} is trained on: nothing in it is held out")
        lines += [f"note: {line}" for line in without_effect(config, steps)]
        if (left := config.ema**steps if config.ema else 0) > MOST_OF_START:
            less = math.floor(1000 * MOST_OF_START ** (1 / steps)) / 1000
            lines.append(
                f"note: --ema={config.ema:g}: after {count(steps, 'step')} the average, which is saved, is still "
                f"{left:.0%} the starting weights; use {less:g} or less"
            )
        if warming := [str(phase) for phase in config.phase_list if config.warmup_epochs >= phase.epochs]:
            lines.append(
                f"note: --warmup_epochs={config.warmup_epochs:g}: {', '.join(warming)} ends before its peak rate"
            )
        idle = [str(span.phase) for span in found if not phase_steps(span, batch)]
        if idle:
            lines.append(f"note: no step is left for {', '.join(idle)}: the phase before ends with a step beyond it")
        if batch > records:
            lines.append(f"note: a batch holds records several times: {config.train_split} has {records:,}")
    if config.recipe != "plain":
        lines.append(f"recipe: {config.recipe_text}")
    lines.append(f"model: VGG16, head {config.head}, {config.image_size} px, {config.precision}")
    lines[-1] += f", weights {config.weights}"
    if config.resizes:
        lines[-1] += f", progressive resizing: {', '.join(map(str, config.resizes))}"
    if config.workdir:
        lines.append(f"writes to: {config.workdir}")
    return "\n".join(lines)
