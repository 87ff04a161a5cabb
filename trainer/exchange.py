"""What hosts hand each other: bytes, through the strategy's own collectives, as numbers that any of them adds exactly.

All hosts must call these functions at the same points.
"""

from __future__ import annotations

import io
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import tensorflow as tf

from shardline.pipeline.errors import Failure
from shardline.trainer.cluster import Cluster

_PIECE_BYTES = 1 << 23
_LENGTH_BYTES = 8


def gather(cluster: Cluster, text: str) -> list[str]:
    """The text of every host, in their order, on every host.

    Raises:
      tf.errors.OpError: a host was lost meanwhile.
    """
    return [data.decode() for data in gather_bytes(cluster, text.encode())]


def gather_bytes(cluster: Cluster, data: bytes) -> list[bytes]:
    """The bytes of every host, in their order, on every host. Raises tf.errors.OpError as `gather`."""
    if cluster.hosts == 1:
        return [data]
    return [broadcast(cluster, data, source=host) for host in range(cluster.hosts)]


def broadcast(cluster: Cluster, data: bytes, source: int = 0) -> bytes:
    """The bytes of host `source` on every host; what others give does not count. Raises as `gather`."""
    own = data if cluster.host == source else b""
    length = int.from_bytes(_sum(cluster, len(own).to_bytes(_LENGTH_BYTES, "little"), _LENGTH_BYTES), "little")
    starts = range(0, length, _PIECE_BYTES)
    return b"".join(_sum(cluster, own[i : i + _PIECE_BYTES], min(_PIECE_BYTES, length - i)) for i in starts)


def gather_arrays(cluster: Cluster, arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The arrays of every host, in their order, on every host. Raises tf.errors.OpError as `gather`."""
    if cluster.hosts == 1:
        return [dict(arrays)]
    return [unpack_arrays(data) for data in gather_bytes(cluster, pack_arrays(arrays))]


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays by name as bytes; inverse of `unpack_arrays`."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **dict(arrays))
    return file.getvalue()


def unpack_arrays(data: bytes) -> dict[str, np.ndarray]:
    """Inverse of `pack_arrays`."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return dict(file)


@contextmanager
def lost_hosts() -> Iterator[None]:
    """Turn what TensorFlow raises for a host that is gone into one line."""
    try:
        yield
    except tf.errors.OpError as error:
        let_go(error)
        raise Failure(f"another host was lost ({type(error).__name__}); its own message says why") from error


def let_go(error: tf.errors.OpError) -> None:
    """Free what the frames that an error of a collective came through hold.

    Among it is a pool of threads, which would complain at the program's end, after the last line that is ours.
    """
    traceback.clear_frames(error.__traceback__)


def _sum(cluster: Cluster, piece: bytes, size: int) -> bytes:
    """`size` bytes that one host has, where the others give none or zeros."""
    padded = piece.ljust(size + size % 2, b"\0")
    numbers = tf.constant(np.frombuffer(padded, np.uint16).astype(np.float32))  # which NCCL and gRPC both add
    strategy, first = cluster.strategy, cluster.host * cluster.local_replicas
    parts = strategy.experimental_distribute_values_from_function(
        lambda context: numbers if context.replica_id_in_sync_group == first else tf.zeros_like(numbers)
    )
    total = strategy.reduce(tf.distribute.ReduceOp.SUM, parts, axis=None).numpy()
    found: bytes = total.astype(np.uint16).tobytes()[:size]
    return found
