"""Keras's callbacks as callbacks of a run: TensorBoard, CSVLogger, LambdaCallback, EarlyStopping, MLflow's and others.

What Keras calls an epoch ends with an evaluation (`eval_every_epochs`), what it calls a batch is a line of metrics
(`log_every_steps`): `on_epoch_end` gets loss, top1, learning_rate, val_loss, val_top1 and val_top5; hooks of a batch
get the step, counted from 0, and the numbers of the line. A callback may end the run (`model.stop_training`) and read
the model, but not change what trains: weights and learning rate are the config's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import keras

from shardline.pipeline.errors import Failure, UsageError
from shardline.trainer.callbacks import Callback, Report, Start

_RATE_TOLERANCE = 1e-6  # relative; Keras keeps the rate as a float32


def adapted(callbacks: Sequence[Callback | keras.callbacks.Callback]) -> list[Callback]:
    """The callbacks, with those of Keras adapted."""
    return [KerasCallback(one) if isinstance(one, keras.callbacks.Callback) else one for one in callbacks]


class KerasCallback(Callback):
    """One of Keras's callbacks."""

    def __init__(self, callback: keras.callbacks.Callback) -> None:
        """Raises UsageError for one that would change the weights of a run."""
        self.callback, self.name = callback, type(callback).__name__
        changes = isinstance(callback, (keras.callbacks.BackupAndRestore, keras.callbacks.SwapEMAWeights))
        if changes or getattr(callback, "restore_best_weights", False):
            why = "" if changes else " (restore_best_weights)"
            raise UsageError(
                f"callbacks: {self.name} puts other weights into the model{why}; leave that to the run: it continues "
                "from its own checkpoints, --best_metric keeps the best weights, --ema their average"
            )

    def begin(self, start: Start) -> None:
        """Hand over the model; `on_train_begin`."""
        self._model, self._rate = start.model, start.learning_rate
        self._step, self._weight, self._sums = start.step, 0, {"loss": 0.0, "top1": 0.0}
        self._means: dict[str, float] = {}
        self._epoch, self._in_epoch = int(start.epoch / start.config.eval_every_epochs + 1e-9), False
        if getattr(self._model, "optimizer", None) is None:
            self._model.optimizer = _optimizer(start)  # only described, and not compiled: nothing of it is saved
        self._model.stop_training = False
        self.callback.set_params({"epochs": math.ceil(start.epochs), "steps": start.steps, "verbose": 0})
        self.callback.set_model(self._model)
        self._call(self.callback.on_train_begin, {})

    def report(self, report: Report) -> bool:
        """`on_train_batch_end` or `on_epoch_end`, each after its begin."""
        numbers = report.numbers
        if report.kind == "train":
            self._rate = numbers["learning_rate"]
            self._model.optimizer.learning_rate = self._rate
        if not self._in_epoch:
            self._call(self.callback.on_epoch_begin, self._epoch, {})
            self._in_epoch = True
        if report.kind == "train":
            self._add(report.step, numbers)
            self._call(self.callback.on_train_batch_begin, report.step - 1, {})
            self._call(self.callback.on_train_batch_end, report.step - 1, numbers)
        else:
            names = ("loss", "top1", "top5") if numbers else ()  # there may be no split to evaluate
            self._end_epoch({f"val_{name}": numbers[name] for name in names})
        return bool(self._model.stop_training)

    def end(self) -> None:
        """`on_train_end`."""
        if self.callback.model is not None:  # it was told of the beginning
            self._call(self.callback.on_train_end, {})

    def _add(self, step: int, numbers: dict[str, float]) -> None:
        """Take the means of a line into those of the epoch: over its steps."""
        steps, self._step = step - self._step, step
        self._weight += steps
        self._sums = {name: total + steps * numbers[name] for name, total in self._sums.items()}
        self._means = {name: total / self._weight for name, total in self._sums.items()}

    def _end_epoch(self, evaluation: dict[str, float]) -> None:
        logs = {**self._means, "learning_rate": self._rate, **evaluation}
        self._call(self.callback.on_epoch_end, self._epoch, logs)
        self._epoch, self._in_epoch = self._epoch + 1, False
        self._weight, self._sums = 0, dict.fromkeys(self._sums, 0.0)

    def _call(self, hook: Callable[..., None], *arguments: object) -> None:
        hook(*arguments)
        rate = float(keras.ops.convert_to_numpy(self._model.optimizer.learning_rate))
        if not math.isclose(rate, self._rate, rel_tol=_RATE_TOLERANCE, abs_tol=1e-12):
            raise Failure(
                f"it set the learning rate to {rate:g}, which would change nothing: the rate follows --phases and "
                "--schedule; leave it out"
            )


def _optimizer(start: Start) -> keras.optimizers.Optimizer:
    """The run's update rule as Keras would describe it; the run has its own, which is right on many replicas."""
    config, rate = start.config, start.learning_rate
    if config.optimizer == "sgd":
        return keras.optimizers.SGD(rate, momentum=config.momentum, nesterov=True)
    kind = {"adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW}[config.optimizer]
    return kind(rate, beta_1=config.momentum)
