"""Which devices a run trains on: the tf.distribute strategy, and this process's place among the hosts.

TensorFlow is imported when devices are claimed, so that flags can be checked before it is started.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from shardline.pipeline.errors import UsageError
from shardline.trainer import nvidia
from shardline.trainer.config import TrainConfig
from shardline.trainer.xla import set_flags

if TYPE_CHECKING:
    import tensorflow as tf

LEAST_GPU_BATCH = 64  # samples


@dataclass(frozen=True)
class Cluster:
    """A strategy with its counts. `replicas` is global; a host runs `local_replicas` of them."""

    strategy: tf.distribute.Strategy
    host: int
    hosts: int
    replicas: int
    device_kind: str  # "GPU" or "CPU"

    @property
    def local_replicas(self) -> int:
        """Replicas in this process."""
        return self.replicas // self.hosts

    @property
    def place(self) -> dict[str, int]:
        """Which replica batches are this process's, as `pipeline.Dataset.train_batches` asks for it."""
        return {"host": self.host, "hosts": self.hosts, "replicas": self.local_replicas}

    @property
    def chief(self) -> bool:
        """Whether this process writes the run directory."""
        return self.host == 0

    def __str__(self) -> str:
        hosts = f" on {self.hosts} hosts" if self.hosts > 1 else ""
        return f"{self.replicas} × {self.device_kind}{hosts} ({type(self.strategy).__name__})"


@dataclass(frozen=True)
class Hosts:
    """What TF_CONFIG says: the address of each host, the chief's first, and which of them this process is."""

    addresses: tuple[str, ...] = ("",)
    own: int = 0


def read_hosts() -> Hosts:
    """The hosts that TF_CONFIG names: its chief, if it has one, and its workers; this process alone without it.

    Raises:
      UsageError: it is not of the form that TensorFlow documents, or names tasks that synchronous training has not.
    """
    text = os.environ.get("TF_CONFIG", "")
    if not text.strip():
        return Hosts()
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        kind, index = task["type"], int(task["index"])
        addresses = {name: tuple(cluster.get(name, ())) for name in ("chief", "worker")}
        if not all(isinstance(address, str) for address in (*addresses["chief"], *addresses["worker"])):
            raise ValueError("an address is no text")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            'TF_CONFIG is not {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}: '
            f"{type(error).__name__}: {error}"
        ) from None
    if others := sorted({*cluster, kind} - set(addresses)):
        raise UsageError(f"TF_CONFIG names {', '.join(others)}: hosts train as chief and worker only; leave it out")
    if len(addresses["chief"]) > 1:
        raise UsageError(f"TF_CONFIG names {len(addresses['chief'])} chiefs; name one, the others as worker")
    if not 0 <= index < len(addresses[kind]):
        raise UsageError(f"TF_CONFIG calls this task {kind} {index}, its cluster has {len(addresses[kind])} {kind}")
    hosts = addresses["chief"] + addresses["worker"]
    if len(set(hosts)) < len(hosts):
        raise UsageError("TF_CONFIG names an address twice; give each host its own")
    return Hosts(hosts, index + (len(addresses["chief"]) if kind == "worker" else 0))


def create_cluster(
    strategy: str, logical_cpus: int, *, device: str = "auto", deterministic: bool = True, jit: bool = True
) -> Cluster:
    """Claim the devices: for the first time in a process, before any other TensorFlow work.

    A process has one strategy for the same arguments: two over the same devices would collide in their collectives.

    Args:
      device: auto, the GPUs if there are any; or cpu.
      deterministic: give the same bits on every run on the same devices.
      jit: whether XLA compiles the steps.

    Raises:
      UsageError: the devices cannot be had so, or there are NVIDIA cards that TensorFlow does not see.
    """
    set_flags(deterministic=deterministic, jit=jit)
    if deterministic and not jit:
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()  # would refuse to let XLA compile max pooling
    return _create_cluster(strategy, logical_cpus, device, read_hosts())


def claim(config: TrainConfig) -> Cluster:
    """The devices that a run of a decided config is to have. See `create_cluster`."""
    return create_cluster(
        config.strategy,
        config.logical_cpus,
        device=config.device,
        deterministic=config.deterministic,
        jit=config.uses_xla,
    )


@cache
def _create_cluster(strategy: str, logical_cpus: int, device: str, hosts: Hosts) -> Cluster:
    import tensorflow as tf

    workers = len(hosts.addresses)
    if strategy == "multi_worker" and workers == 1:
        raise UsageError("--strategy=multi_worker needs TF_CONFIG to name at least two hosts; see BUILD.md")
    if strategy == "auto":
        strategy = "multi_worker" if workers > 1 else "mirrored"
    if logical_cpus > 1:
        if strategy != "mirrored":
            raise UsageError(f"--logical_cpus={logical_cpus} splits one process; it needs --strategy=mirrored")
        _split_cpu(logical_cpus)
    on_cpu = bool(logical_cpus) or device == "cpu"
    gpus = tf.config.list_physical_devices("GPU")
    if on_cpu and gpus:
        with contextlib.suppress(RuntimeError):  # too late to hide what has been used
            tf.config.set_visible_devices([], "GPU")  # also from the input, which augments on a GPU where there is one
        gpus = []
    elif not on_cpu:
        nvidia.refuse_unused(nvidia.cards(), tf.sysconfig.get_build_info(), len(gpus))
    for gpu in gpus:
        with contextlib.suppress(RuntimeError):  # as in a notebook that has used the GPU: too late to ask
            tf.config.experimental.set_memory_growth(gpu, True)
    kind = "GPU" if gpus else "CPU"
    if strategy == "one_device":
        return Cluster(tf.distribute.OneDeviceStrategy(f"/{kind}:0"), 0, 1, 1, kind)
    if strategy == "multi_worker":
        workers_strategy = tf.distribute.MultiWorkerMirroredStrategy()
        return Cluster(workers_strategy, hosts.own, workers, workers_strategy.num_replicas_in_sync, kind)
    # A CPU that an earlier call has split stays split: its other parts are left alone.
    mirrored = _mirrored(kind, len(tf.config.list_logical_devices("GPU")) if gpus else max(1, logical_cpus))
    return Cluster(mirrored, 0, 1, mirrored.num_replicas_in_sync, kind)


def _mirrored(kind: str, count: int) -> tf.distribute.MirroredStrategy:
    """MirroredStrategy over the first devices of a kind."""
    import tensorflow as tf

    devices = [f"/{kind}:{i}" for i in range(count)]
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


def device_lines(cluster: Cluster, global_batch_size: int) -> list[str]:
    """What a run is carried out on, and what is unfavorable about that, a line each."""
    import tensorflow as tf

    if cluster.device_kind != "GPU":
        return [f"devices: {cluster}"]
    found, batch = nvidia.cards(), global_batch_size // cluster.replicas
    facts = nvidia.description(found, tf.sysconfig.get_build_info())
    lines = [f"devices: {cluster}" + (f": {facts}" if facts else "")]
    lines += [f"warning: {line}" for line in nvidia.warnings(found)]
    if batch < LEAST_GPU_BATCH:
        lines.append(
            f"warning: --global_batch_size={global_batch_size} is {batch} a GPU: with fewer than {LEAST_GPU_BATCH}, "
            "much of a GPU's time passes between its steps; try "
            f"--global_batch_size={LEAST_GPU_BATCH * cluster.replicas} or more, with a learning rate to match"
        )
    return lines


def peak_tflops(kind: str, precision: str) -> float:
    """Teraflop/s that one device reaches on a large matrix product in this precision: what MFU is a share of."""
    import tensorflow as tf

    side, dtype = (8192, tf.as_dtype(precision.removeprefix("mixed_"))) if kind == "GPU" else (1024, tf.float32)
    with tf.device(f"/{kind}:0"):
        a = tf.cast(tf.random.stateless_normal([side, side], seed=[0, 0]), dtype)
        product = tf.function(lambda: tf.reduce_sum(tf.matmul(a, a)), jit_compile=kind == "GPU")
        product().numpy()
        best, started = float("inf"), time.perf_counter()
        while time.perf_counter() - started < 0.3:
            begin = time.perf_counter()
            product().numpy()
            best = min(best, time.perf_counter() - begin)
    return 2 * side**3 / best / 1e12
