"""Before the first step: do all hosts train the same run, from the same data and weights? Else all are refused.

And what the chief alone reads of the run directory, handed to all hosts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from shardline.pipeline.command_help import versions
from shardline.pipeline.errors import Failure, UsageError
from shardline.trainer.checkpoints import Checkpoint
from shardline.trainer.cluster import Cluster
from shardline.trainer.config import RUNTIME_FIELDS, TrainConfig
from shardline.trainer.exchange import broadcast, gather, lost_hosts, pack_arrays, unpack_arrays
from shardline.trainer.setup import TrainSetup

# Free to differ between hosts: what is a host's own, and the paths of weights, which are compared themselves. Hosts of
# another cadence would stop after other steps.
_HOST_FIELDS = RUNTIME_FIELDS - {"log_every_steps", "checkpoint_every_steps", "profile_steps"} | {"weights"}
T = TypeVar("T")
_HEADER = "header"  # beside names of arrays, which hold a slash
_ERRORS: dict[str, type[Exception]] = {error.__name__: error for error in (UsageError, Failure)}


def check_config(config: TrainConfig, cluster: Cluster) -> None:
    """Refuse hosts that were started with other flags or versions than the first one."""
    fields = (field.name for field in dataclasses.fields(config) if field.name not in _HOST_FIELDS)
    check_equal(cluster, {f"--{name}": getattr(config, name) for name in fields} | versions())


def check_data(setup: TrainSetup) -> None:
    """Refuse hosts that read other data, or start from other weights, than the first one."""
    dataset, weights = setup.sampler_key["dataset"], setup.weights_sha256
    check_equal(setup.cluster, {"dataset": dataset, "SHA-256 of --weights": weights})


def check_equal(cluster: Cluster, facts: Mapping[str, Any]) -> None:
    """Compare the facts of all hosts.

    Raises:
      UsageError: on every host, naming the first host and fact that differ.
      Failure: a host was lost meanwhile.
    """
    if cluster.hosts == 1:
        return
    with lost_hosts():
        first, *others = map(json.loads, gather(cluster, json.dumps(facts)))
    for host, other in enumerate(others, 1):
        for name, value in first.items():
            if other.get(name) != value:
                raise UsageError(
                    f"the hosts do not work on the same: {name} is {value!r} on host 0 and {other.get(name)!r} on "
                    f"host {host}; start all with the same flags, dataset and packages"
                )


def from_chief(
    cluster: Cluster,
    make: Callable[[], T],
    pack: Callable[[T], bytes] = lambda value: json.dumps(value).encode(),
    unpack: Callable[[bytes], T] = json.loads,
) -> T:
    """What `make` returns on the chief, where alone it is called, on every host; what it raises, on every host.

    Args:
      pack, unpack: value to bytes and back; plain values are JSON.
    """
    if cluster.hosts == 1:
        return make()
    if not cluster.chief:
        with lost_hosts():
            kind, _, content = broadcast(cluster, b"").partition(b"\n")
        if kind:
            raise _ERRORS[kind.decode()](content.decode())
        return unpack(content)
    try:
        value = make()
    except (UsageError, Failure) as error:
        broadcast(cluster, f"{'UsageError' if isinstance(error, UsageError) else 'Failure'}\n{error.args[0]}".encode())
        raise
    with lost_hosts():
        broadcast(cluster, b"\n" + pack(value))
    return value


def pack(checkpoint: Checkpoint | None) -> bytes:
    """A checkpoint as bytes for other hosts; inverse of `unpack`."""
    if checkpoint is None:
        return b""
    header = json.dumps({"path": str(checkpoint.path), "header": checkpoint.header})
    return pack_arrays({_HEADER: np.frombuffer(header.encode(), np.uint8), **checkpoint.arrays})


def unpack(data: bytes) -> Checkpoint | None:
    """Inverse of `pack`."""
    if not data:
        return None
    arrays = unpack_arrays(data)
    header = json.loads(arrays.pop(_HEADER).tobytes())
    return Checkpoint(Path(header["path"]), header["header"], arrays)
