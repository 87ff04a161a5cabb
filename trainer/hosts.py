"""Which hosts train, evaluate or predict together, which of them this process is, and the wait until all are there.

TF_CONFIG is the one description that is used; `--hosts_from` fills it in from Slurm's variables or a file.
No TensorFlow.
"""

from __future__ import annotations

import faulthandler
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from shardline.pipeline.cli import log, program
from shardline.pipeline.errors import Failure, UsageError, in_command
from shardline.pipeline.options import option
from shardline.pipeline.text import display

SAY_SECONDS = 10.0  # between lines about hosts that are not there
POLL_SECONDS = 0.25
CONNECT_SECONDS = 2.0
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
      Failure: one did not come within the start timeout.
      UsageError: this host's own port is in use.
    """
    started = said = time.monotonic()
    with _listening(hosts):
        missing = {host: "not tried" for host in range(len(hosts.addresses)) if host != hosts.own}
        while missing:
            tried = {host: _unreachable(hosts.addresses[host]) for host in missing}
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
            if missing:
                time.sleep(min(POLL_SECONDS, hosts.start_timeout))


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


def _unreachable(address: str) -> str:
    """Why a host cannot be reached; "" if it can."""
    try:
        socket.create_connection(split_address(address, "TF_CONFIG"), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


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
