"""Which hosts train, evaluate or predict together, which of them this process is, and the wait until all are there.

TF_CONFIG is the one description that is used; `--hosts_from` fills it in from Slurm's variables or a file.
No TensorFlow.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import itertools
import json
import os
import re
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import psutil

from shardline.pipeline.cli import log, program
from shardline.pipeline.errors import Failure, Interrupted, UsageError, in_command
from shardline.pipeline.options import option
from shardline.pipeline.text import display

SAY_SECONDS = 10.0  # between lines about hosts that are not there
POLL_SECONDS = 0.25
CONNECT_SECONDS = 2.0
TELL_SECONDS = 45.0  # that a host which ends before all have met tells the others so
HEAR_SECONDS = 1.0  # that one that was reached has to do so
_REFUSAL = b"shardline ends: "  # how what it tells begins; then the kind of error, and the message
_REASON_LENGTH = 2000
FIRST_PORT, PORTS = 15_000, 15_000  # below those that Linux gives to outgoing connections
MOST_HOSTS = 100_000  # that a list of nodes may stand for


@dataclass(frozen=True)
class HostsConfig:
    """How a command finds the other hosts: fields that commands which run on several hosts share."""

    hosts_from: str = option(
        "env",
        "where the hosts are named: env, TF_CONFIG, else this process is alone; slurm, the variables of srun, a task "
        "for each host; or a file with a line HOST[:PORT] for each, the chief's first",
        path="any", group="devices",
    )  # fmt: skip
    start_timeout: float = option(
        600.0, "seconds to wait for hosts to start, and then again for all to join; every 10 seconds a line says which "
        "have not", above=0, group="devices",
    )  # fmt: skip


@dataclass(frozen=True)
class Hosts:
    """The address of each host, the chief's first, and which of them this process is."""

    addresses: tuple[str, ...] = ("",)
    own: int = 0
    start_timeout: float = field(default=600.0, compare=False)  # seconds


def find_hosts(config: HostsConfig | None = None) -> Hosts:
    """The hosts of this run. Those of Slurm or of a file become TF_CONFIG, which TensorFlow reads.

    Raises:
      UsageError: in one line, for what describes no hosts, or not this one.
    """
    config = config or HostsConfig()
    if config.hosts_from != "env":
        named = slurm_hosts(os.environ) if config.hosts_from == "slurm" else file_hosts(config.hosts_from)
        task = {"type": "worker", "index": named.own}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": named.addresses}, "task": task})
    text = os.environ.get("TF_CONFIG", "")
    if not text.strip():
        os.environ.pop("TF_CONFIG", None)  # TensorFlow takes it for JSON that is broken
    hosts = read_tf_config(text)
    return Hosts(hosts.addresses, hosts.own, config.start_timeout)


def read_tf_config(text: str) -> Hosts:
    """The hosts that TF_CONFIG names: its chief, if it has one, and its workers; this process alone without it.

    Raises:
      UsageError: it is not of the form that TensorFlow documents, or names tasks that synchronous training has not.
    """
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
    if others := sorted({*(name for name in cluster if cluster[name]), kind} - set(addresses)):
        raise UsageError(f"TF_CONFIG names {', '.join(others)}: hosts train as chief and worker only; leave it out")
    if len(addresses["chief"]) > 1:
        raise UsageError(f"TF_CONFIG names {len(addresses['chief'])} chiefs; name one, the others as worker")
    if not 0 <= index < len(addresses[kind]):
        raise UsageError(f"TF_CONFIG calls this task {kind} {index}, its cluster has {len(addresses[kind])} {kind}")
    hosts = addresses["chief"] + addresses["worker"]
    if len(set(hosts)) < len(hosts):
        raise UsageError("TF_CONFIG names an address twice; give each host its own")
    for address in hosts if len(hosts) > 1 else ():
        split_address(address, "TF_CONFIG")
    return Hosts(hosts, index + (len(addresses["chief"]) if kind == "worker" else 0))


def split_address(address: str, source: str) -> tuple[str, int]:
    """`host:port`, or `[IPv6]:port`, as its parts."""
    match = re.fullmatch(r"\[(.+)\]:(\d{1,5})|([^:\s]+):(\d{1,5})", address)
    if not match or not 0 < int(match[2] or match[4]) < 1 << 16:
        raise UsageError(
            f"{source} names {address!r}, which is not HOST:PORT; give each host a port, e.g. 10.0.0.7:2222"
        )
    return match[1] or match[3], int(match[2] or match[4])


# Slurm ----------------------------------------------------------------------------------------------------------------


def slurm_hosts(variables: Mapping[str, str]) -> Hosts:
    """The tasks of a step that srun started, node by node: a host each.

    The port follows from the job's number, so that jobs that share a node do not meet.
    """
    nodes = expand_nodes(_slurm(variables, "STEP_NODELIST", "JOB_NODELIST", "NODELIST"))
    text = _slurm(variables, "STEP_TASKS_PER_NODE", "TASKS_PER_NODE", default=f"1(x{len(nodes)})")
    tasks = expand_counts(text)
    if len(tasks) != len(nodes):
        raise UsageError(
            f"--hosts_from=slurm: {len(nodes)} nodes, but tasks for {len(tasks)} ({text}); start with srun"
        )
    first = FIRST_PORT + _number(variables, "JOB_ID", "JOBID") % PORTS
    places = [(node, task) for node, count in enumerate(tasks) for task in range(count)]
    if "SLURM_NODEID" in variables:
        own = (_number(variables, "NODEID"), _number(variables, "LOCALID", default="0"))
    else:
        rank = _number(variables, "PROCID")
        own = places[rank] if rank < len(places) else (-1, rank)
    if own not in places:
        raise UsageError(f"--hosts_from=slurm: this task, {own[1]} of node {own[0]}, is not among the step's; use srun")
    if len(places) > 1 and not {"SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NODELIST"} & set(variables):
        log(f"note: --hosts_from=slurm: no step of srun started this; start all {len(places)} tasks with srun")
    return Hosts(tuple(f"{nodes[node]}:{first + task}" for node, task in places), places.index(own))


def _slurm(variables: Mapping[str, str], *names: str, default: str = "") -> str:
    """The first of some SLURM_ variables that is set."""
    found = next((variables[f"SLURM_{name}"] for name in names if variables.get(f"SLURM_{name}")), default)
    if not found:
        raise UsageError(f"--hosts_from=slurm: SLURM_{names[0]} is not set; start the command with srun")
    return found


def _number(variables: Mapping[str, str], *names: str, default: str = "") -> int:
    text = _slurm(variables, *names, default=default)
    if not re.fullmatch(r"\d{1,18}", text):
        raise UsageError(f"--hosts_from=slurm: SLURM_{names[0]}={text} is no number; start the command with srun")
    return int(text)


def expand_nodes(text: str) -> list[str]:
    """`node[001-003,007],gpu-[1-2]` as node001, node002, node003, node007, gpu-1, gpu-2."""
    nodes: list[str] = []
    for item in re.split(r",(?![^\[]*\])", text.strip()):
        parts = re.split(r"\[([^\[\]]*)\]", item)  # what is between brackets at the odd places
        if any(set(part) & set("[], ") for part in parts[::2]) or not item:
            raise UsageError(f"--hosts_from=slurm: {text} is no list of nodes such as node[001-003,007],gpu-[1-2]")
        choices = [_numbers(part, text) if i % 2 else [part] for i, part in enumerate(parts)]
        for one in itertools.product(*choices):
            nodes.append("".join(one))
            if len(nodes) > MOST_HOSTS:
                raise UsageError(f"--hosts_from=slurm: {text} names more than {MOST_HOSTS:,} nodes")
    return nodes


def _numbers(text: str, whole: str) -> list[str]:
    """`001-003,007` as 001, 002, 003, 007."""
    numbers: list[str] = []
    for item in text.split(","):
        match = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", item)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if match is None or not first <= last < first + MOST_HOSTS:
            raise UsageError(f"--hosts_from=slurm: [{text}] in {whole} are no numbers such as [001-003,007]")
        numbers += [str(number).zfill(len(match[1])) for number in range(first, last + 1)]
    return numbers


def expand_counts(text: str) -> list[int]:
    """`2(x3),1` as 2, 2, 2, 1."""
    counts: list[int] = []
    for item in text.split(","):
        match = re.fullmatch(r"(\d{1,6})(?:\(x(\d{1,6})\))?", item)
        if match is None:
            raise UsageError(f"--hosts_from=slurm: {text} are no tasks per node such as 2(x3),1")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


# A file ---------------------------------------------------------------------------------------------------------------


def file_hosts(path: str) -> Hosts:
    """The hosts of a file: a line HOST or HOST:PORT each, comments after #; this process is the one of this machine."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(
            f"--hosts_from={path}: {why}; use env, slurm, or a file with a line HOST[:PORT] for each"
        ) from None
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    addresses = tuple(line if re.search(r":\d+$", line) else f"{line}:{FIRST_PORT}" for line in lines if line)
    names = own_names()
    ours = [i for i, a in enumerate(addresses) if split_address(a, f"--hosts_from={path}")[0].lower() in names]
    if len(ours) != 1:
        which = ", ".join(addresses[i] for i in ours) if ours else f"no line is one of {', '.join(sorted(names))}"
        raise UsageError(
            f"--hosts_from={path}: it must name this machine once, but {which}; mend the file, or set TF_CONFIG"
        )
    return Hosts(addresses, ours[0])


def own_names() -> set[str]:
    """What this machine may be called in a list of hosts: its names and addresses, in lower case."""
    names = {socket.gethostname(), socket.getfqdn(), socket.gethostname().partition(".")[0]}
    kinds = (socket.AF_INET, socket.AF_INET6)
    addresses = {a.address for found in psutil.net_if_addrs().values() for a in found if a.family in kinds}
    return {name.lower() for name in names | addresses if name}


# Waiting --------------------------------------------------------------------------------------------------------------


def wait_for_hosts(hosts: Hosts) -> None:
    """Until each host listens at its address, as this one does meanwhile; who is missing is said every 10 seconds.

    Raises:
      Failure: one did not come within the start timeout, or tells that it has ended.
      UsageError: this host's own port is in use, or one tells that it has ended by such an error.
    """
    started = said = time.monotonic()
    with _listening(hosts), ExitStack() as open_ones, selectors.DefaultSelector() as reached:
        missing = {host: "not tried" for host in range(len(hosts.addresses)) if host != hosts.own}
        while missing:
            tried = {host: _unreachable(hosts, host, open_ones, reached) for host in missing}
            missing = {host: reason for host, reason in tried.items() if reason}
            now = time.monotonic()
            named = ", ".join(f"host {host} ({hosts.addresses[host]}: {reason})" for host, reason in missing.items())
            if missing and now - started >= hosts.start_timeout:
                raise Failure(
                    f"{named} did not start within --start_timeout={hosts.start_timeout:g} seconds; start the same "
                    "command there, or name no such host in TF_CONFIG"
                )
            if missing and now - said >= SAY_SECONDS:
                said = now
                log(f"waiting for {named}, {now - started:.0f} of {hosts.start_timeout:g} seconds")
            _hear(hosts, reached, min(POLL_SECONDS, hosts.start_timeout) if missing else HEAR_SECONDS)
    _meeting.is_over = True


@contextmanager
def _listening(hosts: Hosts) -> Iterator[None]:
    """Listen at this host's port: that is how others find out that it has started."""
    address = hosts.addresses[hosts.own]
    try:
        server = socket.create_server(("", split_address(address, "TF_CONFIG")[1]), backlog=1024)
    except OSError as error:
        raise UsageError(
            f"TF_CONFIG: the port of {address}, which is host {hosts.own} and this one, cannot be used: "
            f"{error.strerror}; end the program that has it, or name another port on all hosts"
        ) from None
    with closing(server):
        yield


def _unreachable(hosts: Hosts, host: int, open_ones: ExitStack, reached: selectors.BaseSelector) -> str:
    """Why a host cannot be reached; "" if it can, and `reached` then listens to it."""
    try:
        address = split_address(hosts.addresses[host], "TF_CONFIG")
        connection = open_ones.enter_context(socket.create_connection(address, timeout=CONNECT_SECONDS))
    except OSError as error:
        return error.strerror or str(error)
    reached.register(connection, selectors.EVENT_READ, host)
    return ""


# Ending together before all have met ----------------------------------------------------------------------------------


class _Meeting:
    """Whether all hosts have met, so that they notice each other's end; or this one was told of another's."""

    is_over = False


_meeting = _Meeting()
C = TypeVar("C", bound=Callable[..., Any])


def ends_together(command: C) -> C:
    """Make an error that ends a command before all hosts have met end it on the others as well, with the reason.

    They would wait for the whole start timeout. The first argument of the command is its config.
    """

    @functools.wraps(command)
    def run(config: HostsConfig, *args: Any, **kwargs: Any) -> Any:
        try:
            return command(config, *args, **kwargs)
        except Exception as error:
            if not _meeting.is_over and not isinstance(error, Interrupted):
                with contextlib.suppress(UsageError):  # no hosts are described
                    tell_others(find_hosts(config), error)
            raise

    return cast(C, run)


def tell_others(hosts: Hosts, error: Exception) -> None:
    """Answer at this host's address that it ends, until all others know or `TELL_SECONDS` have passed."""
    others = len(hosts.addresses) - 1
    if not others:
        return
    kind = "UsageError" if isinstance(error, UsageError) else "Failure"
    words = display(str(error) or type(error).__name__)[:_REASON_LENGTH]
    seconds = min(TELL_SECONDS, hosts.start_timeout)
    log(f"this host ends; telling the others why, for up to {seconds:.0f} seconds")
    told = threading.Semaphore(0)

    def tell(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(CONNECT_SECONDS)
            connection.sendall(f"{_REFUSAL.decode()}{kind}\n{words}".encode())
            if connection.recv(1):  # it has read that
                told.release()

    def answer() -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                threading.Thread(target=tell, args=[server.accept()[0]], daemon=True).start()

    until = time.monotonic() + seconds
    try:
        server = socket.create_server(("", split_address(hosts.addresses[hosts.own], "TF_CONFIG")[1]), backlog=1024)
    except OSError:  # another program has the port; they will learn nothing
        return
    with server:
        threading.Thread(target=answer, daemon=True).start()
        for _ in range(others):
            if not told.acquire(timeout=max(0.0, until - time.monotonic())):
                break
        server.shutdown(socket.SHUT_RDWR)  # ends the wait in accept


def _hear(hosts: Hosts, reached: selectors.BaseSelector, seconds: float) -> None:
    """Listen to those that were reached: who has started says nothing. Raises what one tells that has ended."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if not reached.get_map():
            time.sleep(left)
            return
        for key, _ in reached.select(left):
            reached.unregister(key.fileobj)
            assert isinstance(key.fileobj, socket.socket)
            with contextlib.suppress(OSError):
                said = key.fileobj.recv(4 * _REASON_LENGTH)
                if not said.startswith(_REFUSAL):
                    continue
                key.fileobj.sendall(b"!")
                _meeting.is_over = True
                kind, _, reason = said.removeprefix(_REFUSAL).decode(errors="replace").partition("\n")
                raise (UsageError if kind == "UsageError" else Failure)(
                    f"host {key.data} ({hosts.addresses[key.data]}) ends: {reason}"
                )


# Says argv[1] if it is told anything.
_SAY = "import sys; sys.stdin.buffer.read() and sys.stderr.write(sys.argv[1])"


@contextmanager
def ended_after(seconds: float, reason: str) -> Iterator[None]:
    """End a command with `reason` and exit code 1 where the block lasts longer.

    For TensorFlow's own start: it waits in C++ with the interpreter's lock held, so that no thread of Python's can run
    and no signal is heard. `faulthandler`'s can: it writes to a process that makes one line of it, and ends this one.
    Outside a command the process is not ours to end.
    """
    if not in_command():
        yield
        return
    line = f"{program()}: error: {display(reason)}\n"
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", _SAY, line], stdin=subprocess.PIPE) as speaker:
        assert speaker.stdin is not None
        faulthandler.dump_traceback_later(seconds, exit=True, file=speaker.stdin.fileno())
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
