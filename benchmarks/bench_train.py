"""Images per second of training: real input against fake, our loop against a bare tf.function, bfloat16 or not.

    python -m shardline.benchmarks.bench_train --data=DIR [--output=results.jsonl] [--image_size=224]

or, with --cache_features=VIEWS: of training a head through the frozen layers against on their stored features.

All contenders live in one process, train the same VGG16 from scratch on the first device, and take turns.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import Any

from absl import flags

from shardline.benchmarks.measure import CONTROL, Measurement, append_jsonl, interleave, ratio, table
from shardline.pipeline.cli import import_tensorflow, progress, run
from shardline.pipeline.errors import UsageError

_DATA = flags.DEFINE_string("data", "", "dataset made by shardline-convert; empty: leave out real input")
_OUTPUT = flags.DEFINE_string("output", "", "file to append the results to, one JSON object a line")
_REPEATS = flags.DEFINE_integer("repeats", 5, "counted turns", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 10.0, "length of one contender's turn; at least one step", lower_bound=0.1)
_BATCH = flags.DEFINE_integer("global_batch_size", 16, "examples a step", lower_bound=1)
_SIZE = flags.DEFINE_integer("image_size", 224, "side of the images, pixels", lower_bound=32)
_WIDTH = flags.DEFINE_float("width", 1.0, "share of VGG16's filters", lower_bound=0.01, upper_bound=1)
_PRECISIONS = flags.DEFINE_list("precisions", ["float32", "mixed_bfloat16"], "to compare; the first one is the basis")
_JIT = flags.DEFINE_boolean("jit", True, "compile forward and backward with XLA")
_VIEWS = flags.DEFINE_integer("cache_features", 0, "views to store, for training a head on them; 0: leave out", 0)

LOOP, REAL, BARE = "loop, fake input", "loop, real input", "bare tf.function, one batch"
FROZEN, STORED = "head, through the frozen layers", "head, on stored features"


def main() -> None:
    """Measure, print a table and the ratios, store."""
    import_tensorflow()
    measured = measure_head() if _VIEWS.value else measure()
    if _OUTPUT.value:
        append_jsonl(_OUTPUT.value, measured)
    baseline = FROZEN if _VIEWS.value else LOOP
    print(table(measured, baseline))
    found = {m.name: m for m in measured}
    print(f"the same contender twice: {ratio(found[CONTROL], found[baseline])[0]:.3f}")
    for name, baseline, target in ((REAL, LOOP, 0.97), (LOOP, BARE, 0.98), (STORED, FROZEN, 20)):
        if name in found and baseline in found:
            middle, low, high = ratio(found[name], found[baseline])
            print(f"{name} / {baseline}: {middle:.3f} ({low:.3f} to {high:.3f}), wanted at least {target}")
    for name in found:
        if name.startswith("loop, fake input, "):
            middle, low, high = ratio(found[name], found[LOOP])
            print(f"{name.split(', ')[-1]} / {_PRECISIONS.value[0]}: {middle:.2f} ({low:.2f} to {high:.2f})")


def measure() -> list[Measurement]:
    """All contenders, in turns."""
    first, *others = _PRECISIONS.value
    contenders: dict[str, Callable[[], float]] = {LOOP: loop(first, synthetic=True)}
    if _DATA.value:
        contenders[REAL] = loop(first, synthetic=False)
    contenders[BARE] = bare(first)
    for precision in others:
        contenders[f"loop, fake input, {precision}"] = loop(precision, synthetic=True)
    return in_turns(
        contenders,
        baseline=LOOP,
        what={
            LOOP: "shardline.trainer.loop with its bookkeeping, batches from memory",
            REAL: "the same loop on the dataset, cropped and flipped",
            BARE: "forward and backward in a tf.function, Keras SGD, one batch; nothing else",
        },
    )


def measure_head() -> list[Measurement]:
    """A head's training with and without --cache_features; filling the cache is left out."""
    if not _DATA.value:
        raise UsageError("--cache_features stores views of images: give --data")
    first, phases = _PRECISIONS.value[0], "head:999999@1e-4"
    with tempfile.TemporaryDirectory() as folder:
        stored = loop(first, synthetic=False, phases=phases, cache_features=_VIEWS.value, workdir=folder)
        return in_turns(
            {FROZEN: loop(first, synthetic=False, phases=phases), STORED: stored},
            baseline=FROZEN,
            what={
                FROZEN: "decode, crop, forward through VGG16, backward through its head",
                STORED: "read rows of a memory-mapped file, forward and backward through the head",
            },
        )


def in_turns(contenders: dict[str, Callable[[], float]], *, baseline: str, what: dict[str, str]) -> list[Measurement]:
    """Measure them with a bar, and with the settings that are common to all."""
    bar = progress(total=(_REPEATS.value + 1) * (len(contenders) + 1), desc="train", unit="turn")

    def advance(name: str) -> None:
        bar.set_postfix_str(name)
        bar.update()

    settings = {
        "image_size": _SIZE.value,
        "global_batch_size": _BATCH.value,
        "width": _WIDTH.value,
        "jit": _JIT.value,
        "precision": _PRECISIONS.value[0],
        "seconds": _SECONDS.value,
    }
    if _VIEWS.value:
        settings["cache_features"] = _VIEWS.value
    return interleave(
        "train",
        contenders,
        repeats=_REPEATS.value,
        baseline=baseline,
        settings=settings,
        progress=advance,
        what=what,
    )


def loop(precision: str, *, synthetic: bool, phases: str = "all:999999@1e-4", **more: Any) -> Callable[[], float]:
    """The trainer's own loop, continued for some seconds at each call."""
    from shardline.trainer import actions, cluster, feature_cache, run
    from shardline.trainer import setup as planning
    from shardline.trainer.config import TrainConfig
    from shardline.trainer.loop import StopRequest, train_phase
    from shardline.trainer.state import TrainState
    from shardline.trainer.step import LossScale

    config = TrainConfig(
        data=_DATA.value,
        synthetic=synthetic,
        global_batch_size=_BATCH.value,
        image_size=_SIZE.value,
        width=_WIDTH.value,
        precision=precision,
        jit=_JIT.value,
        phases=phases,
        eval_split="none",
        **more,
    )
    plan = planning.make(config, cluster.start("one_device", 0))
    with plan.cluster.strategy.scope():
        network = planning.build_network(plan)
        state = TrainState(network.weights, {}, None, LossScale())
        state.optimizer = run.make_optimizer(plan, network, plan.spans[0])
    if config.cache_features:
        cache = feature_cache.FeatureCache(plan, network)
        step, batches = run.make_step(plan, network, state, cache.forward), cache.batches(0)
    else:
        step, batches = run.make_step(plan, network, state), plan.train_batches(0)
    watch = actions.StepMonitor(plan, network, None, 0)
    watch.bar.disable = True

    def turn() -> float:
        begin, first = time.perf_counter(), state.cursor

        def after_step(record: Any) -> bool:
            return watch.after_step(record) and time.perf_counter() - begin < _SECONDS.value

        train_phase(plan, state, plan.spans[0], step, batches, after_step=after_step, actions=[], stop=StopRequest())
        return (state.cursor - first) / (time.perf_counter() - begin)

    return turn


def bare(precision: str) -> Callable[[], float]:
    """What TensorFlow does with this model when nobody watches: one batch, again and again."""
    import keras
    import tensorflow as tf

    from shardline.trainer import cluster
    from shardline.trainer import setup as planning
    from shardline.trainer.config import TrainConfig

    config = TrainConfig(
        synthetic=True,
        data=_DATA.value,
        global_batch_size=_BATCH.value,
        image_size=_SIZE.value,
        width=_WIDTH.value,
        precision=precision,
        jit=_JIT.value,
    )
    plan = planning.make(config, cluster.start("one_device", 0))
    network = planning.build_network(plan)
    optimizer = keras.optimizers.SGD(1e-4, momentum=0.9, nesterov=True, global_clipnorm=1.0)
    optimizer.build(network.train.trainable_variables)
    batch = next(iter(plan.data.train_batches("train", plan.input)))
    image, label, position = tf.cast(batch["image"], tf.float32), batch["label"], batch["position"]

    def forward_backward() -> Any:
        with tf.GradientTape() as tape:
            logits = network.train([image, position], training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits))
        return loss, tape.gradient(loss, [v.value for v in network.train.trainable_variables])

    compiled = tf.function(forward_backward, jit_compile=_JIT.value)

    @tf.function
    def step() -> Any:
        loss, gradients = compiled()
        optimizer.apply(gradients)
        return loss

    def turn() -> float:
        begin, count = time.perf_counter(), 0
        while time.perf_counter() - begin < _SECONDS.value:
            float(step())
            count += _BATCH.value
        return count / (time.perf_counter() - begin)

    return turn


def cli() -> None:
    """Entry point."""
    run(main)


if __name__ == "__main__":
    cli()
