"""What happens beside the steps: progress, metrics, evaluation, checkpoints, profiles."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from shardline.pipeline.cli import progress
from shardline.pipeline.errors import Failure
from shardline.tools.plot_style import save_figure
from shardline.trainer import curves, metrics_log, model, state, step
from shardline.trainer.loop import StepRecord
from shardline.trainer.schedule import steps_between
from shardline.trainer.setup import Plan, eval_forward, input_scale
from shardline.trainer.state import TrainState

MIN_LOSS_SCALE = 1.0
Say = Callable[[str], None]


class StepMonitor:
    """Reads each finished step: stops a run that broke, ema_weights the rest for the bar and for metrics.jsonl."""

    def __init__(self, plan: Plan, network: model.Network, log: metrics_log.MetricsLog | None, start_step: int) -> None:
        self.plan, self.log = plan, log
        last = plan.spans[-1]
        steps = steps_between(0, last.stop, plan.config.global_batch_size)
        self.bar = progress(total=steps, initial=start_step, desc="train", unit="step")
        self.flops = {span.index: model.flops_per_image(network, span.phase.part) for span in plan.spans}
        self.peak = 0.0  # teraflop/s of all devices; 0: unknown
        self.images_per_second = 0.0  # of the whole run so far, evaluations and checkpoints left out
        self._total_images, self._total_seconds, self._warming = 0.0, 0.0, True
        self._reset()

    def _reset(self) -> None:
        self._sums = np.zeros(2)
        self._examples, self._steps, self._skipped, self._waited = 0.0, 0, 0, 0.0
        self._norm = 0.0
        self._started = time.perf_counter()

    def restart(self) -> None:
        """Forget the speed so far: the steps that follow are of another kind."""
        self._total_images, self._total_seconds, self._warming = 0.0, 0.0, True
        self._reset()

    def pause(self) -> Callable[[], None]:
        """Stop the clock, e.g. for an evaluation; call the result to start it again."""
        began = time.perf_counter()

        def resume() -> None:
            self._started += time.perf_counter() - began

        return resume

    def after_step(self, record: StepRecord) -> bool:
        """Take in one step; False when a host asked to stop. Raises Failure when the loss is not finite."""
        report = {name: float(value) for name, value in record.report.items() if name != "losses"}
        self._check(record, report)
        self._steps += 1
        self._waited += record.wait_seconds
        if report["finite"]:
            self._sums += np.array([report["loss"], report["top1"]]) * report["examples"]
            self._examples += report["examples"]
            self._norm = report["norm"]
        else:
            self._skipped += 1
        self.bar.update()
        # The first step traces and compiles: reported alone, and no measure of speed.
        if record.step % self.plan.config.log_every_steps == 0 or self._warming:
            self._report(record, report)
        return not report["stop"]

    def _report(self, record: StepRecord, report: dict[str, float]) -> None:
        seconds = max(time.perf_counter() - self._started, 1e-9)
        images = self._steps * self.plan.config.global_batch_size
        rate = images / seconds
        if not self._warming:
            self._total_images += images
            self._total_seconds += seconds
            self.images_per_second = self._total_images / self._total_seconds
        self._warming = False
        loss, top1 = self._sums / max(self._examples, 1)
        tflops = rate * self.flops[record.span.index] / 1e12
        waiting = 100 * self._waited / seconds
        line = {
            "epoch": round(self.plan.epoch(record.cursor), 6),
            "phase": record.span.phase.part,
            "loss": loss,
            "top1": top1,
            "learning_rate": record.learning_rate,
            "gradient_norm": self._norm,
            "images_per_second": round(rate, 2),
            "waiting_percent": round(waiting, 2),
            "tflops": round(tflops, 4),
            "skipped_steps": self._skipped,
        }
        if self.peak:
            line["mfu"] = round(tflops / self.peak, 4)
        if self.plan.config.precision == "mixed_float16":
            line["loss_scale"] = report["scale"]
        if self.log and self._examples:
            self.log.write(record.step, "train", line)
        self.bar.set_postfix_str(
            f"loss {loss:.3f}, top-1 {100 * top1:.1f} %, {rate:.1f} images/s, {waiting:.0f} % waiting for input"
        )
        self._reset()

    def _check(self, record: StepRecord, report: dict[str, float]) -> None:
        half = self.plan.config.precision == "mixed_float16"
        if np.isfinite(report["loss"]) and (report["finite"] or (half and report["scale"] > MIN_LOSS_SCALE)):
            return
        local = self.plan.cluster.strategy.experimental_local_results
        records = np.concatenate([part.numpy() for part in local(record.records)])
        losses = np.concatenate([part.numpy() for part in local(record.report["losses"])])
        guilty = records[~np.isfinite(losses)] if not np.isfinite(losses).all() else records
        what = "gradient" if np.isfinite(report["loss"]) else "loss"
        named = ", ".join(map(str, guilty[:16])) + (f" and {len(guilty) - 16} more" if len(guilty) > 16 else "")
        raise Failure(
            f"the {what} of step {record.step} is not finite (learning rate {record.learning_rate:.3g}); records of "
            f"split {self.plan.config.train_split}: {named}. Look at them, or lower the rate in --phases, or set "
            "--clip_norm; the last checkpoint is from before this step"
        )


class Evaluate:
    """Every so many epochs, and at the end of each phase: exact loss, top-1 and top-5 of the held-out split."""

    def __init__(
        self,
        plan: Plan,
        network: model.Network,
        watch: StepMonitor,
        log: metrics_log.MetricsLog | None,
        say: Say,
        on_best: Callable[[TrainState], None],
    ) -> None:
        self.plan, self.watch, self.log, self.say, self.on_best = plan, watch, log, say, on_best
        self.last: dict[str, float] = {}
        self.should_stop = False  # early stopping: no better result for long enough
        self._step = step.make_eval_step(plan.cluster.strategy, eval_forward(plan, network), plan.config.jit)
        self._dataset = plan.eval_batches() if plan.eval_split else None

    def due(self, state: TrainState) -> bool:
        """At each multiple of --eval_every_epochs and where a phase ends."""
        batch = self.plan.config.global_batch_size
        every = self.plan.config.eval_every_epochs * self.plan.num_records
        crossed = int(state.cursor / every) > int((state.cursor - batch) / every)
        return crossed or state.cursor >= self.plan.spans[state.phase].stop

    def act(self, state: TrainState) -> None:
        """Evaluate, with the moving average if there is one; judge; redraw the curves."""
        resume = self.watch.pause()
        if self._dataset is not None:
            self._evaluate(state)
        if self.log:
            save_figure(self._curves(), Path(self.plan.config.workdir) / "plots" / "curves.png")
        resume()

    def _evaluate(self, state: TrainState) -> None:
        strategy = self.plan.cluster.strategy
        if state.ema_weights:
            step.swap(strategy, state.weights, state.ema_weights)
        assert self._dataset is not None
        totals: dict[str, float] = {}
        for batch in self._dataset:
            for name, value in self._step(batch).items():
                totals[name] = totals.get(name, 0.0) + float(value)
        if state.ema_weights:
            step.swap(strategy, state.weights, state.ema_weights)
        n = totals.pop("n")
        self.last = {name: value / max(n, 1) for name, value in totals.items()}
        epoch, part = round(self.plan.epoch(state.cursor), 6), self.plan.spans[state.phase].phase.part
        if self.log:
            line = {"epoch": epoch, "phase": part, "split": self.plan.eval_split, **self.last, "n": int(n)}
            self.log.write(state.step, "eval", line)
        speed = self.watch.images_per_second
        self.say(
            f"epoch {epoch:.3g}, step {state.step}: {self.plan.eval_split} loss {self.last['loss']:.3f}, "
            f"top-1 {100 * self.last['top1']:.1f} % (n = {int(n)})"
            + (f", training at {speed:.1f} images/s" if speed else "")
        )
        self._judge(state)

    def _judge(self, state: TrainState) -> None:
        config = self.plan.config
        if config.best_metric == "none":
            return
        value = self.last[config.best_metric] * (-1 if config.best_metric == "loss" else 1)
        if state.best is None or value > state.best:
            state.best, state.evals_since_best = value, 0
            self.on_best(state)
        else:
            state.evals_since_best += 1
            self.should_stop = 0 < config.early_stop_evals <= state.evals_since_best

    def _curves(self) -> Any:
        phases = [(span.phase.part, self.plan.epoch(span.start)) for span in self.plan.spans]
        return curves.training_curves(metrics_log.read(self.plan.config.workdir), phases, self.plan.eval_split)


class Checkpoint:
    """Saves the state every so many steps, and keeps the last few."""

    def __init__(self, plan: Plan, watch: StepMonitor, evaluate: Evaluate) -> None:
        self.plan, self.watch, self.evaluate = plan, watch, evaluate
        self.every = plan.config.checkpoint_every_steps

    def due(self, state: TrainState) -> bool:
        """Every --checkpoint_every_steps, or with each evaluation."""
        return state.step % self.every == 0 if self.every else self.evaluate.due(state)

    def act(self, state: TrainState) -> None:
        """Save now."""
        resume = self.watch.pause()
        self.save(state, state_path(self.plan, state.step))
        resume()

    def save(self, current: TrainState, path: Path) -> None:
        """Write one checkpoint (on the chief) and drop the oldest."""
        if not self.plan.cluster.chief:
            return
        scale = input_scale(self.plan.config)
        header = {**current.header(), "order": self.plan.order_key, "input_scale": scale}
        state.write(path, header, current.arrays())
        for old in state.checkpoints(self.plan.config.workdir)[: -self.plan.config.keep_checkpoints]:
            old.unlink()


def state_path(plan: Plan, number: int) -> Path:
    """Where the checkpoint of a step goes."""
    return state.checkpoint_path(plan.config.workdir, number)


class Profile:
    """Writes a profiler trace of the steps FIRST to LAST."""

    def __init__(self, plan: Plan) -> None:
        self.first, self.last = plan.config.profile_range()
        self.folder = str(Path(plan.config.workdir) / "profile")

    def due(self, state: TrainState) -> bool:
        """Just before the first step and just behind the last."""
        return self.last > 0 and state.step in (self.first - 1, self.last)

    def act(self, state: TrainState) -> None:
        """Start or stop."""
        if state.step == self.first - 1:
            tf.profiler.experimental.start(self.folder)
        elif state.step == self.last:
            tf.profiler.experimental.stop()
