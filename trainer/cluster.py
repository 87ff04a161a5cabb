"""Which devices a run trains on: the tf.distribute strategy, and this process's place among the hosts.

TensorFlow is imported when devices are claimed, so that flags can be checked before it is started.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from shardline.pipeline import nvidia
from shardline.pipeline.errors import UsageError
from shardline.pipeline.progress import saying
from shardline.trainer.config import TrainConfig
from shardline.trainer.hosts import Hosts, HostsConfig, ended_after, find_hosts, wait_for_hosts
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


def create_cluster(
    strategy: str,
    logical_cpus: int,
    hosts: HostsConfig | None = None,
    *,
    device: str = "auto",
    deterministic: bool = True,
    jit: bool = True,
) -> Cluster:
    """Claim the devices: for the first time in a process, before any other TensorFlow work.

    A process has one strategy for the same arguments: two over the same devices would collide in their collectives.

    Args:
      hosts: how the other hosts are found.
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
    return _create_cluster(strategy, logical_cpus, device, find_hosts(hosts))


def claim(config: TrainConfig) -> Cluster:
    """The devices that a run is to have. See `create_cluster`; with XLA where the config leaves that open."""
    return create_cluster(
        config.strategy,
        config.logical_cpus,
        config,
        device=config.device,
        deterministic=config.deterministic,
        jit=config.jit is not False,
    )


def gpus(config: TrainConfig) -> list[tf.config.PhysicalDevice]:
    """The GPUs that a run takes: all that TensorFlow sees, or none."""
    return _gpus(config.logical_cpus, config.device)


def _gpus(logical_cpus: int, device: str) -> list[tf.config.PhysicalDevice]:
    if logical_cpus or device == "cpu":
        return []
    import tensorflow as tf

    return list(tf.config.list_physical_devices("GPU"))


@cache
def _create_cluster(strategy: str, logical_cpus: int, device: str, hosts: Hosts) -> Cluster:
    import tensorflow as tf

    workers = len(hosts.addresses)
    if strategy == "multi_worker" and workers == 1:
        raise UsageError("--strategy=multi_worker needs at least two hosts, in TF_CONFIG or by --hosts_from")
    if strategy == "auto":
        strategy = "multi_worker" if workers > 1 else "mirrored"
    if logical_cpus > 1:
        if strategy != "mirrored":
            raise UsageError(
                f"--logical_cpus={logical_cpus} splits one process: it needs --strategy=mirrored, and no other hosts"
            )
        _split_cpu(logical_cpus)
    found = _gpus(logical_cpus, device)
    if logical_cpus or device == "cpu":
        with contextlib.suppress(RuntimeError):  # too late to hide what has been used
            tf.config.set_visible_devices([], "GPU")  # also from the input, which augments on a GPU where there is one
    else:
        nvidia.refuse_unused(nvidia.cards(), tf.sysconfig.get_build_info(), len(found))
    for gpu in found:
        with contextlib.suppress(RuntimeError):  # as in a notebook that has used the GPU: too late to ask
            tf.config.experimental.set_memory_growth(gpu, True)
    kind = "GPU" if found else "CPU"
    if strategy == "one_device":
        return Cluster(tf.distribute.OneDeviceStrategy(f"/{kind}:0"), 0, 1, 1, kind)
    if strategy == "multi_worker":
        wait_for_hosts(hosts)
        kinds = tf.distribute.experimental.CommunicationImplementation
        options = tf.distribute.experimental.CommunicationOptions(implementation=kinds.NCCL if found else kinds.AUTO)
        late = (
            f"not all of {', '.join(hosts.addresses)} joined TensorFlow's cluster within "
            f"--start_timeout={hosts.start_timeout:g} seconds; end the command on all of them and start it again"
        )
        joining = saying("waiting for all hosts to join TensorFlow's cluster", seconds=10.0)
        with joining, ended_after(hosts.start_timeout, late):
            workers_strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
        return Cluster(workers_strategy, hosts.own, workers, workers_strategy.num_replicas_in_sync, kind)
    # A CPU that an earlier call has split stays split: its other parts are left alone.
    mirrored = _mirrored(kind, len(tf.config.list_logical_devices("GPU")) if found else max(1, logical_cpus))
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
    """Teraflop/s that one device reaches on large matrix products in this precision: what MFU is a share of.

    Of several products one after another the last is waited for. They are no program of XLA's, which knows that of a
    sum or a corner of a product most need not be computed.
    """
    import tensorflow as tf

    side, dtype = (8192, tf.as_dtype(precision.removeprefix("mixed_"))) if kind == "GPU" else (1024, tf.float32)
    best, products = float("inf"), 8
    with tf.device(f"/{kind}:0"):
        a = tf.cast(tf.random.stateless_normal([side, side], seed=[0, 0]), dtype)
        started = time.perf_counter()
        while time.perf_counter() - started < 0.5 or best == float("inf"):
            begin = time.perf_counter()
            for _ in range(products):
                product = tf.linalg.matmul(a, a)
            product[0, 0].numpy()
            best = min(best, (time.perf_counter() - begin) / products)
    return 2 * side**3 / best / 1e12
