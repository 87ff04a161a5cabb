"""Which devices a run trains on: the tf.distribute strategy, and this process's place among the hosts."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from shardline.pipeline.errors import UsageError


@dataclass(frozen=True)
class Cluster:
    """A strategy with its counts. `replicas` is global; a host runs `local_replicas` of them."""

    strategy: Any
    host: int
    hosts: int
    replicas: int
    device_kind: str  # "GPU" or "CPU"

    @property
    def local_replicas(self) -> int:
        """Replicas in this process."""
        return self.replicas // self.hosts

    @property
    def chief(self) -> bool:
        """Whether this process writes the run directory."""
        return self.host == 0

    def __str__(self) -> str:
        hosts = f" on {self.hosts} hosts" if self.hosts > 1 else ""
        return f"{self.replicas} × {self.device_kind}{hosts} ({type(self.strategy).__name__})"


def num_workers() -> int:
    """Workers that TF_CONFIG names; 1 without it."""
    text = os.environ.get("TF_CONFIG", "")
    try:
        workers = json.loads(text)["cluster"].get("worker", []) if text.strip() else []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            'TF_CONFIG is not {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}: '
            f"{type(error).__name__}: {error}"
        ) from None
    return max(1, len(workers))


def start(strategy: str, logical_cpus: int) -> Cluster:
    """Claim the devices. Call once per process, before any other TensorFlow work."""
    import tensorflow as tf

    workers = num_workers()
    if strategy == "multi_worker" and workers == 1:
        raise UsageError("--strategy=multi_worker needs TF_CONFIG to name at least two workers; see BUILD.md")
    if strategy == "auto":
        strategy = "multi_worker" if workers > 1 else "mirrored"
    if logical_cpus > 1:
        if strategy != "mirrored":
            raise UsageError(f"--logical_cpus={logical_cpus} splits one process; it needs --strategy=mirrored")
        _split_cpu(logical_cpus)
    gpus = [] if logical_cpus else tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    kind = "GPU" if gpus else "CPU"
    if strategy == "one_device":
        return Cluster(tf.distribute.OneDeviceStrategy(f"/{kind}:0"), 0, 1, 1, kind)
    if strategy == "multi_worker":
        made = tf.distribute.MultiWorkerMirroredStrategy()
        host = made.cluster_resolver.task_id
        return Cluster(made, host, workers, made.num_replicas_in_sync, kind)
    made = mirrored(kind)
    return Cluster(made, 0, 1, made.num_replicas_in_sync, kind)


def mirrored(kind: str) -> Any:
    """MirroredStrategy over all devices of a kind."""
    import tensorflow as tf

    devices = [f"/{kind}:{i}" for i in range(len(tf.config.list_logical_devices(kind)))]
    # On CPUs the default, a ring of collectives, is slower than adding on one device, and two strategies in one
    # process would collide in it.
    ops = None if kind == "GPU" else tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=ops)


def _split_cpu(parts: int) -> None:
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    if len(tf.config.get_logical_device_configuration(cpu) or ()) == parts:
        return
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * parts)
    except RuntimeError as error:
        raise UsageError(f"--logical_cpus={parts}: the CPU is already in use as it is ({error})") from None
