"""Run by test_step.py in a process of its own: the training step on one and on two logical CPUs. Prints JSON."""

import json
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from shardline.trainer import step
from shardline.trainer.cluster import create_cluster
from shardline.trainer.model import KeyedDropout

BATCH, CLASSES, SIDE = 8, 3, 8
TWO = create_cluster("mirrored", 2).strategy
ONE = tf.distribute.MirroredStrategy(["/CPU:0"], cross_device_ops=tf.distribute.ReductionToOneDevice())
# Each row is trained on one and on two replicas. Options that do not get into each other's way share a row.
ROWS = {
    "plain": {},
    "clip_norm, weight_decay, ema": {"clip_norm": 0.05, "weight_decay": 0.5, "ema": 0.9},
    "adam, label_smoothing, class_weights": {
        "optimizer": "adam",
        "weight_decay": 0.1,
        "label_smoothing": 0.1,
        "class_weights": (0.5, 1.0, 2.5),
    },
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1},
    "mixed_bfloat16": {"policy": "mixed_bfloat16"},
    "allreduce_dtype": {"allreduce_dtype": "bfloat16"},
}
# These change how a step is computed and not what comes out: on two replicas it is what one gives without them.
NEUTRAL = {
    "micro_batches, loss_scaling, jit": {"micro_batches": 2, "loss_scaling": True, "jit": True},
}


def batch(seed=0):
    draw = np.random.default_rng(seed)
    # The last rows are padding: the weight is 8 - 2 in all, 4 and 2 on the two replicas.
    return {
        "image": draw.normal(size=(BATCH, SIDE, SIDE, 3)).astype(np.float32),
        "label": draw.integers(0, CLASSES, BATCH).astype(np.int32),
        "weight": np.array([1] * 6 + [0] * 2, np.float32),
        "position": np.arange(BATCH) + 100 * seed,
    }


def spread(strategy, values):
    size = BATCH // strategy.num_replicas_in_sync

    def own(context):
        first = context.replica_id_in_sync_group * size
        return {name: tf.constant(value[first : first + size]) for name, value in values.items()}

    return strategy.experimental_distribute_values_from_function(own)


class Bench:
    """A three-layer net, its optimizer and its step under one strategy."""

    def __init__(self, strategy, *, class_weights=(), policy="float32", dropout=0.4, **options):
        self.strategy = strategy
        with strategy.scope():
            image, position = keras.Input((SIDE, SIDE, 3)), keras.Input((), dtype="int64")
            x = keras.layers.Conv2D(6, 3, activation="relu", name="block1_conv1", dtype=policy)(image)
            x = keras.layers.GlobalAveragePooling2D(dtype=policy)(x)
            x = KeyedDropout(dropout, 7, dtype=policy)([x, position])
            net = keras.Model([image, position], keras.layers.Dense(CLASSES, name="predictions", dtype="float32")(x))
            self.weights = {v.path: v.value for v in net.trainable_variables}
            draw = np.random.default_rng(1)
            for variable in self.weights.values():
                variable.assign(draw.normal(size=variable.shape).astype(np.float32))
            config = step.StepConfig(global_batch_size=BATCH, class_weights=class_weights, **options)
            ema = self.weights if config.ema else {}
            self.ema_weights = {path: tf.Variable(v, trainable=False) for path, v in ema.items()}
            self.optimizer = step.Optimizer(self.weights, config, ema_weights=self.ema_weights)
            self.scale = step.LossScale()

        def forward(batch):
            return net([batch["image"], batch["position"]], training=True), tf.one_hot(batch["label"], CLASSES)

        self.step = step.create_train_step(strategy, forward, self.optimizer, self.scale, config)

    def train(self, values, rate=0.1):
        return {k: v for k, v in self.step(spread(self.strategy, values), tf.constant(rate)).items()}

    def values(self):
        return {path: variable.numpy() for path, variable in [*self.weights.items()]} | {
            f"ema/{path}": variable.numpy() for path, variable in self.ema_weights.items()
        }


def largest_difference(a, b):
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def trained(strategy, options):
    bench = Bench(strategy, **options)
    before = bench.values()
    reports = [bench.train(batch(seed)) for seed in range(3)]
    assert largest_difference(before, bench.values()) > 1e-3, "nothing was trained"
    return bench.values(), float(reports[-1]["samples"])


def agreement():
    """Row -> how far two replicas end from one, how far one ends from what it is without the options."""
    found, plain = {}, trained(ONE, {})[0]
    for name, options in {**ROWS, **NEUTRAL}.items():
        one = trained(ONE, options)[0] if name in ROWS and options else plain
        two, samples = trained(TWO, options)
        found[name] = {
            "difference": largest_difference(one, two),
            "effect": largest_difference(plain, one),
            "samples": samples,
        }
    return found


def allreduce():
    """Whether devices are found to add right; and one that adds twice."""
    found = {dtype: step.allreduce_adds(TWO, dtype) for dtype in ("float32", "bfloat16")}
    genuine = step._all_reduce
    step._all_reduce = lambda tensors, dtype: [2 * total for total in genuine(tensors, dtype)]
    found["wrong"] = step.allreduce_adds(TWO, "bfloat16")
    step._all_reduce = genuine
    return found


def overflow(bench, replica):
    """Gradients overflow float16 on one replica only, where the weights of its samples are huge."""
    before, scale = bench.values(), float(bench.scale.scale.numpy())
    bad = batch()
    bad["weight"] = np.where(np.arange(BATCH) // (BATCH // 2) == replica, 1e6, 1.0).astype(np.float32)
    report = bench.train(bad)
    skipped = largest_difference(before, bench.values())
    halved = float(bench.scale.scale.numpy()) / scale
    finite_loss = bool(np.isfinite(float(report["loss"])))
    copies = [v.numpy() for v in TWO.experimental_local_results(bench.scale.scale)]
    again = bench.train(batch())
    moved = largest_difference(before, bench.values())
    return {
        "finite": bool(report["finite"]),
        "finite_loss": finite_loss,
        "change": skipped,
        "halved": halved,
        "copies_equal": bool(copies[0] == copies[1]),
        "next_finite": bool(again["finite"]),
        "next_change": moved,
        "all_finite": all(bool(np.isfinite(v).all()) for v in bench.values().values()),
    }


def scale_growth():
    step.SCALE_GROWTH_STEPS = 2
    bench = Bench(ONE, loss_scaling=True)
    scales = [float(bench.scale.scale.numpy())]
    for seed in range(4):
        bench.train(batch(seed))
        scales.append(float(bench.scale.scale.numpy()))
    return scales


def against_keras():
    """The updates are Keras's own, number for number."""
    results = {}
    for name, options, theirs in (
        ("sgd", {"optimizer": "sgd"}, keras.optimizers.SGD(0.05, 0.9, nesterov=True)),
        ("adam", {"optimizer": "adam"}, keras.optimizers.Adam(0.05)),
        ("adamw", {"optimizer": "adamw", "weight_decay": 0.1}, keras.optimizers.AdamW(0.05, weight_decay=0.1)),
    ):
        variable, other = tf.Variable([1.0, -2.0, 3.0]), keras.Variable([1.0, -2.0, 3.0])
        ours = step.Optimizer({"a/kernel": variable}, step.StepConfig(1, **options))
        for number in range(1, 6):
            gradient = tf.constant([0.3 * number, -0.1, 2.0 / number])
            ours.update("a/kernel", variable, ours.slots["a/kernel"], gradient, 0.05, tf.constant(float(number)))
            theirs.apply([gradient], [other])
        results[name] = float(np.abs(variable.numpy() - other.numpy()).max())
    return results


def masks():
    layer = KeyedDropout(0.25, seed=3)
    x, position = tf.ones([4, 4000]), tf.constant([0, 1, 2**33, 10**7], tf.int64)
    whole = layer([x, position], training=True).numpy()
    parts = [layer([x[i : i + 2], position[i : i + 2]], training=True).numpy() for i in (0, 2)]
    other = KeyedDropout(0.25, seed=4)([x, position], training=True).numpy()
    kept = whole > 0
    return {
        "same_in_parts": bool((whole == np.concatenate(parts)).all()),
        "kept": float(kept.mean()),
        "mean": float(whole.mean()),
        "rows_agree": float((kept[0] == kept[1]).mean()),
        "far_rows_agree": float((kept[0] == kept[2]).mean()),
        "seeds_agree": float(((other > 0) == kept).mean()),
        "neighbors_agree": float((kept[:, 1:] == kept[:, :-1]).mean()),
        "idle": bool((layer([x, position], training=False).numpy() == 1).all()),
    }


def evaluation():
    """Sums over padded batches on two replicas, against NumPy."""
    draw = np.random.default_rng(0)
    logits, label = draw.normal(size=(2, BATCH, 7)).astype(np.float32), draw.integers(0, 7, (2, BATCH))
    weight = np.ones((2, BATCH), np.float32)
    weight[1, 5:] = 0
    run = step.create_eval_step(TWO, lambda b: (b["logits"], tf.one_hot(b["label"], 7)), jit=True)
    totals = dict.fromkeys(step.EVAL_SUMS, 0.0)
    for i in range(2):
        values = {"logits": logits[i], "label": label[i], "weight": weight[i]}
        for name, value in zip(step.EVAL_SUMS, run(spread(TWO, values))[0].numpy().tolist(), strict=True):
            totals[name] += value
    rank = (logits >= np.take_along_axis(logits, label[..., None], -1)).sum(-1)
    log_sum = np.log(np.exp(logits).sum(-1))
    loss = log_sum - np.take_along_axis(logits, label[..., None], -1)[..., 0]
    expected = {
        "loss": float((loss * weight).sum()),
        "top1": float(((rank <= 1) * weight).sum()),
        "top5": float(((rank <= 5) * weight).sum()),
        "n": float(weight.sum()),
    }
    return {"found": totals, "expected": expected}


def swapping(bench):
    before = bench.values()
    step.swap(TWO, bench.weights, bench.ema_weights)
    between = bench.values()
    step.swap(TWO, bench.weights, bench.ema_weights)
    path = "block1_conv1/kernel"
    return {
        "exchanged": bool((between[path] == before[f"ema/{path}"]).all()),
        "differ": largest_difference({path: before[path]}, {path: between[path]}),
        "restored": largest_difference(before, bench.values()),
    }


def stopping(bench):
    def own(context):  # only the second replica asks
        return tf.constant(float(context.replica_id_in_sync_group))

    stop = TWO.experimental_distribute_values_from_function(own)
    return float(bench.step(spread(TWO, batch()), tf.constant(0.1), stop)["stop"])


if __name__ == "__main__":
    half = Bench(TWO, loss_scaling=True, policy="mixed_float16", ema=0.9)
    print(
        json.dumps(
            {
                "agreement": agreement(),
                "overflow": [overflow(half, replica) for replica in (0, 1)],
                "swapping": swapping(half),
                "stopping": stopping(half),
                "growth": scale_growth(),
                "allreduce": allreduce(),
                "keras": against_keras(),
                "masks": masks(),
                "evaluation": evaluation(),
            }
        )
    )
