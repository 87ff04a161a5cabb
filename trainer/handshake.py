"""Before the first step: do all hosts train the same run, from the same weights? Else all are refused, naming what.

And `gather`, by which hosts tell each other.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from shardline.pipeline.errors import Failure, UsageError
from shardline.trainer.checkpoints import Checkpoint, weights_digest
from shardline.trainer.cluster import Cluster
from shardline.trainer.config import RUNTIME_FIELDS, TrainConfig
from shardline.trainer.setup import TrainSetup

_LIMIT_BYTES = 1 << 15  # of a host's facts; a config has 3,000
_HOST_FIELDS = RUNTIME_FIELDS | {"weights"}  # a path of the host's own; the weights themselves are compared


def check_config(config: TrainConfig, cluster: Cluster) -> None:
    """Refuse hosts that were started with other flags or versions than the first one."""
    fields = (field.name for field in dataclasses.fields(config) if field.name not in _HOST_FIELDS)
    versions = {"TensorFlow": tf.__version__, "Keras": keras.__version__}
    check_equal(cluster, {f"--{name}": getattr(config, name) for name in fields} | versions)


def check_start(setup: TrainSetup, checkpoint: Checkpoint | None) -> None:
    """Refuse hosts that read other data, or start from another step or other weights than the first one.

    Before any variable is made: hosts in different phases would wait for each other's.
    """
    if setup.cluster.hosts == 1:
        return
    step = checkpoint.header["step"] if checkpoint else 0
    weights = weights_digest(checkpoint.arrays) if checkpoint else setup.weights_sha256
    facts = {"dataset": setup.sampler_key["dataset"], "restored step": step, "SHA-256 of the weights": weights}
    check_equal(setup.cluster, facts)


def check_equal(cluster: Cluster, facts: Mapping[str, Any]) -> None:
    """Compare the facts of all hosts.

    Raises:
      UsageError: on every host, naming the first host and fact that differ.
      Failure: a host was lost meanwhile.
    """
    if cluster.hosts == 1:
        return
    try:
        first, *others = (json.loads(text) for text in gather(cluster, json.dumps(facts)))
    except tf.errors.OpError as error:
        raise Failure(
            f"another host was lost before the first step ({type(error).__name__}); its own message says why"
        ) from error
    for host, other in enumerate(others, 1):
        for name, value in first.items():
            if other.get(name) != value:
                raise UsageError(
                    f"the hosts do not train the same run: {name} is {value!r} on host 0 and {other.get(name)!r} on "
                    f"host {host}; start all with the same flags, dataset and packages, and a --workdir that all share"
                )


def gather(cluster: Cluster, text: str) -> list[str]:
    """The text of every host, in their order. All hosts must call it at the same point.

    Raises:
      tf.errors.OpError: a host was lost meanwhile.
    """
    data = text.encode().ljust(_LIMIT_BYTES)
    strategy, row = cluster.strategy, tf.constant(np.frombuffer(data, np.uint8).astype(np.int32)[None])
    rows = strategy.gather(strategy.run(lambda: tf.identity(row)), axis=0).numpy()
    return [row.astype(np.uint8).tobytes().decode().rstrip() for row in rows[:: cluster.local_replicas]]
