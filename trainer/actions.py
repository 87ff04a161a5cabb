"""What happens beside the steps: progress, metrics, evaluation, checkpoints, profiles."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from shardline.pipeline.cli import log, progress
from shardline.pipeline.errors import Failure
from shardline.trainer.callbacks import Answers, Callbacks, Report
from shardline.trainer.checkpoint_writer import CheckpointWriter
from shardline.trainer.exchange import gather
from shardline.trainer.input_profile import (
    HostProfile,
    InputProfile,
    StageLaps,
    from_text,
    host_profile,
    slowest_first,
    to_text,
)
from shardline.trainer.loop import Action, StepRecord
from shardline.trainer.model import Network
from shardline.trainer.nvml import GpuFigures
from shardline.trainer.overlap import InputWaits, one_late
from shardline.trainer.run_dir import write_config
from shardline.trainer.schedule import steps_between
from shardline.trainer.setup import TrainSetup, eval_forward
from shardline.trainer.state import TrainState
from shardline.trainer.step import EVAL_SUMS, allreduce_bytes, create_eval_step, swap

MIN_LOSS_SCALE = 1.0
PROFILE_SECONDS = 5.0  # at least, from one input_profile.json to the next while steps are made
BAR = "{desc} {bar} {remaining} left{postfix}"  # 80 columns hold it


class StepMonitor(Action):
    """Reads each finished step: stops a run that broke, and averages the rest for the bar and for metrics.jsonl."""

    def __init__(
        self,
        setup: TrainSetup,
        network: Network,
        callbacks: Callbacks | None,
        start_step: int,
        peak_tflops: float = 0.0,
        nominal_tflops: float = 0.0,
    ) -> None:
        """`peak_tflops` and `nominal_tflops` of all devices, for the MFU; 0: unknown."""
        self.setup, self.callbacks = setup, callbacks
        self.peaks = {"mfu": peak_tflops, "nominal_mfu": nominal_tflops}
        self._gpu = GpuFigures() if setup.cluster.device_kind == "GPU" else None
        steps = steps_between(0, setup.spans[-1].stop, setup.config.global_batch_size)
        self._epochs = setup.epoch(setup.spans[-1].stop)
        self.bar = progress(total=steps, initial=start_step, desc="train", unit="step", bar_format=BAR)
        self.flops: dict[int, float] = {}  # an image, by the phase's index; `run.phase_loop` tells it
        strategy, dtype = setup.cluster.strategy, setup.config.allreduce_dtype
        self.allreduce_bytes = {
            span.index: allreduce_bytes(strategy, network.trained(span.phase.part), dtype) for span in setup.spans
        }
        self.images_per_second = 0.0  # evaluations and checkpoints left out
        self.last_line = 0  # step of the newest line of metrics
        self._stages = StageLaps(setup.data, "training")
        self._steps = 0
        self.restart()

    def restart(self) -> None:
        """Forget the speed so far: the steps that follow are of another kind."""
        self.flush()
        self._total_images, self._total_seconds, self._warming = 0.0, 0.0, True
        self._total_waited = 0.0
        self._reset()

    def _reset(self) -> None:
        self._sums = np.zeros(2)
        self._samples, self._steps, self._skipped, self._waited = 0.0, 0, 0, 0.0
        self._norm: float | None = None  # of the last step that was not skipped
        self._seconds = 0.0

    def after_step(self, record: StepRecord) -> None:
        """Take in one step, and stop when a host asked to. Raises Failure when the loss is not finite."""
        report, self._last = record.report, record
        self._check(record)
        self._steps += 1
        self._seconds += record.seconds
        self._waited += record.wait_seconds
        if not self._warming:
            self._total_images += self.setup.config.global_batch_size
            self._total_seconds += record.seconds
            self._total_waited += record.wait_seconds
            self.images_per_second = self._total_images / self._total_seconds
        # The loss of a skipped step is as true as any: its gradients alone overflowed.
        self._sums += np.array([report["loss"], report["top1"]]) * report["samples"]
        self._samples += report["samples"]
        if report["finite"]:
            self._norm = report["norm"]
        else:
            self._skipped += 1
        self.bar.set_description_str(f"epoch {self.setup.epoch(record.cursor):.1f}/{self._epochs:g}", refresh=False)
        self.bar.update()
        # The first step traces and compiles: reported alone, and no measure of speed.
        if record.step % self.setup.config.log_every_steps == 0 or self._warming:
            self._report(record)
        self.should_stop = self.should_stop or report["stop"] > 0

    @property
    def waiting_share(self) -> float | None:
        """Share of its time in which the step waited for input; None before the second step."""
        return min(self._total_waited / self._total_seconds, 1.0) if self._total_seconds else None

    def ends_call(self, state: TrainState) -> bool:
        """At each line of metrics, and after the first step, which compiles: whole calls are timed."""
        return self._warming or state.step % self.setup.config.log_every_steps == 0

    def flush(self) -> None:
        """A line of the steps since the last one, if there are any."""
        if self._steps:
            self._report(self._last)

    def close(self) -> None:
        """End the bar and the looks at GPUs."""
        self.bar.close()
        if self._gpu:
            self._gpu.close()

    def _report(self, record: StepRecord) -> None:
        seconds = max(self._seconds, 1e-9)
        images = self._steps * self.setup.config.global_batch_size
        rate = images / seconds
        self._warming = False
        loss, top1 = self._sums / max(self._samples, 1)
        tflops = rate * self.flops[record.span.index] / 1e12
        waiting = min(100 * self._waited / seconds, 100.0)  # two clocks, so that rounding could exceed it
        line: dict[str, object] = {
            "phase": record.span.phase.part,
            "loss": loss,
            "top1": top1,
            "learning_rate": record.learning_rate,
            **({} if self._norm is None else {"gradient_norm": self._norm}),
            "images_per_second": round(rate, 2),
            "waiting_percent": round(waiting, 2),
            "tflops": round(tflops, 4),
            "skipped_steps": self._skipped,
        }
        if travels := self.allreduce_bytes[record.span.index]:
            line["allreduce_bytes"] = travels
        line |= {name: round(tflops / peak, 4) for name, peak in self.peaks.items() if peak}
        if self._gpu:
            peak_bytes = tf.config.experimental.get_memory_info("GPU:0")["peak"]
            line |= {"gpu_memory_gib": round(peak_bytes / 2**30, 3), **self._gpu.take()}
        if self.setup.config.precision == "mixed_float16":
            line["loss_scale"] = record.report["scale"]
        if stages := self._stages.lap():
            line["stage_microseconds"] = stages
        if self.callbacks and self._samples:
            self.callbacks.report(Report(record.step, round(self.setup.epoch(record.cursor), 6), "train", line))
        self.last_line = record.step
        self.bar.set_postfix_str(bar_text(loss, rate, waiting))
        self._reset()

    def _check(self, record: StepRecord) -> None:
        report = record.report
        half = self.setup.config.precision == "mixed_float16"
        if np.isfinite(report["loss"]) and (report["finite"] or (half and report["scale"] > MIN_LOSS_SCALE)):
            return
        records, losses = record.samples()
        bad_records = records[~np.isfinite(losses)] if not np.isfinite(losses).all() else records
        what = "gradient" if np.isfinite(report["loss"]) else "loss"
        more = f" and {len(bad_records) - 16} more" if len(bad_records) > 16 else ""
        raise Failure(
            f"the {what} of step {record.step} is not finite (learning rate {record.learning_rate:.3g}); records of "
            f"split {self.setup.config.train_split}: {', '.join(map(str, bad_records[:16]))}{more}. Look at them, or "
            "lower the rate in --phases, or set --clip_norm; the last checkpoint is from before this step"
        )


def bar_text(loss: float, images_per_second: float, waiting_percent: float) -> str:
    """What stands beside the bar, of the last steps."""
    rate = f"{images_per_second:,.0f}" if images_per_second >= 10 else f"{images_per_second:.1f}"
    return f"loss {loss:.3f}, {rate} images/s, input wait {waiting_percent:.0f}%"


def evaluation_due(setup: TrainSetup, state: TrainState) -> bool:
    """At each multiple of --eval_every_epochs, and where a phase ends."""
    every = setup.config.eval_every_epochs * setup.num_records
    crossed = int(state.cursor / every) > int((state.cursor - setup.config.global_batch_size) / every)
    return crossed or state.cursor >= setup.spans[state.phase].stop


class SaveCheckpoint(Action):
    """Saves the state every --checkpoint_every_steps, or with each evaluation, and keeps the last few."""

    def __init__(
        self,
        setup: TrainSetup,
        network: Network,
        content: dict[str, Any],
        start_step: int,
        writer: CheckpointWriter | None,
    ) -> None:
        """`content` of config.json; nothing is saved at `start_step`, or without the chief's `writer`."""
        self.setup, self.network, self.content, self.writer = setup, network, content, writer
        self._saved_step, self._described = start_step, False

    def after_step(self, record: StepRecord) -> None:
        """Raises Failure when the last checkpoint could not be written."""
        if self.writer:
            self.writer.check()

    def due(self, state: TrainState) -> bool:
        """Every --checkpoint_every_steps, or with each evaluation."""
        every = self.setup.config.checkpoint_every_steps
        return state.step % every == 0 if every else evaluation_due(self.setup, state)

    def act(self, state: TrainState) -> None:
        """Copy the state, unless it is saved already; the writer does the rest."""
        self.save(state)

    def save(self, state: TrainState, *, best: bool = False) -> None:
        """Hand the checkpoint of this step to the writer, unless it has it; `best`: also to keep as the best."""
        if not self.writer or state.step == self._saved_step:
            return
        if not self._described:  # now that a step was made under it
            write_config(self.setup.config.workdir, self.content)
            self._described = True
        header = {**state.header(), "train": self.content["train"], "sampler": self.setup.sampler_key}
        header |= {"labels": self.setup.labels, "input_scale": self.network.input_scale}
        self.writer.write(state.step, header, state.arrays(), best=best)
        self._saved_step = state.step


class Evaluate(Action):
    """Every so many epochs, and at the end of each phase: exact loss, top-1 and top-5 of the held-out split."""

    def __init__(
        self,
        setup: TrainSetup,
        network: Network,
        monitor: StepMonitor,
        callbacks: Callbacks | None,
        checkpoint: SaveCheckpoint,
    ) -> None:
        self.setup, self.monitor, self.callbacks, self.checkpoint = setup, monitor, callbacks, checkpoint
        self.waits, self._stages = InputWaits(), StageLaps(setup.data, "evaluation")
        self._step = create_eval_step(setup.cluster.strategy, eval_forward(setup, network), setup.config.uses_xla)
        self._dataset = setup.eval_batches() if setup.eval_split else None

    def due(self, state: TrainState) -> bool:
        """At each multiple of --eval_every_epochs, and where a phase ends."""
        return evaluation_due(self.setup, state)

    def act(self, state: TrainState) -> None:
        """Evaluate, with the moving average if there is one, which callbacks then find in the model; keep the best."""
        self.monitor.flush()  # an epoch's last steps belong to it
        with averaged(self.setup, state):
            line, answers = self._evaluate(state) if self._dataset is not None else ({}, None)
            if self.callbacks:
                epoch = round(self.setup.epoch(state.cursor), 6)
                self.callbacks.report(Report(state.step, epoch, "eval", line, answers))
        if line:
            self._keep_best(state)

    def _evaluate(self, state: TrainState) -> tuple[dict[str, object], Answers]:
        """Set `state.evaluation`; the line of metrics, and this host's answers."""
        totals, answers = self._totals(state)
        n = totals.pop("n")
        split, speed = self.setup.eval_split, self.monitor.images_per_second
        if not n:  # of which a loss of 0 would be the best there is
            raise Failure(
                f"--eval_split={split}: none of its records could be read; restore the shards, or use --eval_split=none"
            )
        found = {name: value / n for name, value in totals.items()}
        if not np.isfinite(found["loss"]):
            raise Failure(
                f"the loss of {split} after step {state.step} is not finite: training diverged. Lower the rate in "
                "--phases, or set --clip_norm; the last checkpoint is from before this step"
            )
        state.evaluation = {"step": state.step, "split": split, **found}
        log(
            f"epoch {self.setup.epoch(state.cursor):.3g}, step {state.step}: {split} loss {found['loss']:.3f}, "
            f"top-1 {100 * found['top1']:.1f}% (n = {int(n)})"
            + (f", training at {speed:.1f} images/s" if speed else "")
        )
        phase, stages = self.setup.spans[state.phase].phase.part, self._stages.lap()
        costs = {"stage_microseconds": stages} if stages else {}
        return {"phase": phase, "split": split, **found, "n": int(n), **costs}, answers

    def _totals(self, state: TrainState) -> tuple[dict[str, float], Answers]:
        """Sums over the split of loss, top-1, top-5 and the records; what the model said of those of this host."""
        strategy, totals = self.setup.cluster.strategy, np.zeros(len(EVAL_SUMS))
        local, rows = strategy.experimental_local_results, list[tuple[np.ndarray, ...]]()
        split = self.setup.eval_split
        batches = steps_between(0, self.setup.data.num_records(split), self.setup.config.global_batch_size)
        with progress(total=batches, desc=f"evaluate {split}", unit="batch", leave=False) as bar:
            for batch, (sums, answers) in one_late(self._step, self.waits.over(self._dataset or ())):
                totals += sums.numpy()
                rows += [answers_of(*parts) for parts in zip(*map(local, map(batch.get, _ROWS)), answers, strict=True)]
                bar.update()
        columns = map(np.concatenate, zip(*rows, strict=True))
        return dict(zip(EVAL_SUMS, totals.tolist(), strict=True)), Answers(*columns)

    def _keep_best(self, state: TrainState) -> None:
        config = self.setup.config
        if config.best_metric == "none":
            return
        value = state.evaluation[config.best_metric] * (-1 if config.best_metric == "loss" else 1)
        if state.best is None or value > state.best:
            state.best, state.best_step, state.evals_since_best = value, state.step, 0
            self.checkpoint.save(state, best=True)
        else:
            state.evals_since_best += 1
            self.should_stop = 0 < config.early_stop_evals <= state.evals_since_best  # early stopping


@contextmanager
def averaged(setup: TrainSetup, state: TrainState) -> Iterator[None]:
    """Within it the network has the moving averages of its weights, where they are kept.

    After an error, which ends the run, it keeps them: nothing is saved any more.
    """
    if state.ema_weights:
        swap(setup.cluster.strategy, state.weights, state.ema_weights)
    yield
    if state.ema_weights:
        swap(setup.cluster.strategy, state.weights, state.ema_weights)


_ROWS = ("record", "label", "weight")


def answers_of(records: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor, answers: tf.Tensor) -> tuple[np.ndarray, ...]:
    """Columns of `Answers` from a replica's rows, without those that fill its batch."""
    real, (predicted, confidence) = weights.numpy() > 0, answers.numpy().T
    columns = (
        records.numpy().astype(np.int64),
        labels.numpy().astype(np.int64),
        predicted.astype(np.int64),
        confidence,
    )
    return tuple(column[real] for column in columns)


class WriteInputProfile(Action):
    """Keeps RUN/input_profile.json: this host's stage times with lines of metrics, all hosts' with evaluations."""

    def __init__(self, setup: TrainSetup, monitor: StepMonitor, evaluate: Evaluate) -> None:
        self.setup, self.monitor, self.evaluate = setup, monitor, evaluate
        self._others: list[HostProfile] = []
        self._written = -PROFILE_SECONDS

    def after_step(self, record: StepRecord) -> None:
        """With lines of metrics: a run that is killed leaves what it measured."""
        due = time.monotonic() - self._written >= PROFILE_SECONDS  # the directory may be far away
        if due and self.monitor.last_line == record.step and self.setup.cluster.chief:
            self._write(record.step)

    def due(self, state: TrainState) -> bool:
        """With the evaluations."""
        return evaluation_due(self.setup, state)

    def act(self, state: TrainState) -> None:
        """Collect the profiles of all hosts, and write them on the chief."""
        cluster = self.setup.cluster
        if cluster.hosts > 1:
            profiles = [from_text(text) for text in gather(cluster, to_text(self._own()))]
            self._others = [profile for profile in profiles if profile.host != cluster.host]
        if cluster.chief:
            self._write(state.step)

    def profile(self, step: int) -> InputProfile:
        """Of all hosts, as far as they have told it; the slowest first."""
        return InputProfile(step, tuple(slowest_first([self._own(), *self._others])))

    def _own(self) -> HostProfile:
        waits = self.monitor.waiting_share, self.evaluate.waits.share
        return host_profile(self.setup.data, self.setup.cluster.host, *waits)

    def _write(self, step: int) -> None:
        profile = self.profile(step)
        if any(any(host.tables) for host in profile.hosts):  # synthetic batches have no stages
            profile.save(self.setup.config.workdir)
            self._written = time.monotonic()


class Profile(Action):
    """Writes a profiler trace of the chief's steps FIRST to LAST, or of those of them that are made now."""

    def __init__(self, setup: TrainSetup, start_step: int) -> None:
        """Begins at once where the step after `start_step` is one of them."""
        self.chief, (self.first, self.last) = setup.cluster.chief, setup.config.profile_range()
        self.folder, self._running = str(Path(setup.config.workdir) / "profile"), False
        if self.first - 1 <= start_step < self.last:
            self._start()

    def due(self, state: TrainState) -> bool:
        """Just before the first step and just after the last."""
        return self.last > 0 and state.step in (self.first - 1, self.last)

    def act(self, state: TrainState) -> None:
        """Start or stop."""
        if state.step == self.last:
            self.close()
        else:
            self._start()

    def close(self) -> None:
        """Stop, and write the trace, unless that is done."""
        if self._running:
            self._running = False
            tf.profiler.experimental.stop()

    def _start(self) -> None:
        if self.chief:  # calls of several steps end here on all hosts
            tf.profiler.experimental.start(self.folder)
            self._running = True
