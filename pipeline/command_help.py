"""What `--help`, `--helpfull` and `--version` print, made of a config class alone. No TensorFlow.

A class may list its flags' groups in the order of `GROUPS`, and in `COMMON` those that `--help` shows.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import textwrap
from importlib import metadata
from typing import TYPE_CHECKING

from shardline.pipeline import native, nvidia
from shardline.pipeline.commands import as_typed
from shardline.pipeline.machine import available_cores, available_memory, cpu_quota, memory_limit, processor_name
from shardline.pipeline.options import Field, options
from shardline.pipeline.wording import count

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Beside the fields of its config.
EVERY_COMMAND = {
    "--config=FILE": "settings in a .toml, .yaml or .json file, by the names of the flags; flags override them",
    "--[no]print_config  (default: off)": "print all settings as a .toml file, and stop",
    "--verbosity=-1": "messages of libraries: -1, warnings; 0, infos, too",
    "--version": "versions",
    "--machine": "versions, processor, memory and GPUs, to paste into a ticket",
    "--helpfull": "all flags",
}
FLAGS_OF_EVERY_COMMAND = ("config", "print_config", "verbosity", "version", "machine", "help", "helpfull")
_MISSING = "not installed"
_EXTRAS = (
    "ray",
    "tensorboard",
    "mlflow-skinny",
    "wandb",
    "onnx",
    "onnxruntime",
    "tf2onnx",
    "nvidia-ml-py",
    "torch",
    "jax",
)
_VERSIONS = ("TensorFlow", "Keras", "NumPy", "opencv-python-headless", "Pillow", "pyarrow")


def help_text(config: type[DataclassInstance], doc: str | None, *, full: bool = False) -> str:
    """What the command does and its flags with their defaults, grouped, for a terminal of the present width.

    Args:
      full: all flags, not only the class's `COMMON` ones.
    """
    width = min(shutil.get_terminal_size().columns, 120)
    flags = [field for field in options(config).values() if field.option.flag]
    common = getattr(config, "COMMON", ())
    shown = [field for field in flags if full or not common or field.name in common]
    groups: dict[str, list[str]] = {name: [] for name in getattr(config, "GROUPS", ())}
    for field in shown:
        groups.setdefault(field.option.group or "flags", []).append(_flag_help(field, width))
    paragraphs = [_fill(paragraph, width) for paragraph in (doc or "").strip().split("\n\n")]
    listed = [f"{group.capitalize()}:\n" + "\n".join(lines) for group, lines in groups.items() if lines]
    more = len(flags) - len(shown)
    every = dict(EVERY_COMMAND)
    every["--helpfull"] = f"these and {count(more, 'more flag')}" if more else every["--helpfull"]
    listed.append("Every command:\n" + "\n".join(_entry(head, text, width) for head, text in every.items()))
    return as_typed("\n\n".join([*paragraphs, *listed]))


def _flag_help(field: Field, width: int) -> str:
    option, text = field.option, field.option.help
    if field.kind is bool:
        default = "auto" if field.default is None else "on" if field.default else "off"
        head = f"--[no]{field.name}  (default: {default})"
    elif field.default_text:
        head = f"--{field.name}={field.default_text}"
    else:  # "empty: …" in a text says what it means to give nothing
        head = f"--{field.name}" + ("" if "default: " in text or "empty: " in text else "  (no default)")
    if option.choices:
        text += f"; one of {', '.join(filter(None, option.choices))}"
    if option.high is not None or option.below is not None:
        text += f"; {field.wanted}"
    return _entry(head, text, width)


def _entry(head: str, text: str, width: int) -> str:
    return f"  {head}\n" + textwrap.fill(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _fill(paragraph: str, width: int) -> str:
    """A paragraph of a docstring in lines of a width; lists and examples, which are indented, as they are."""
    return paragraph if "\n " in f"\n{paragraph}" else textwrap.fill(paragraph, width, break_on_hyphens=False)


def versions() -> dict[str, str]:
    """Of this package and those that compute for it."""
    return {name: _version(name) for name in ("shardline", *_VERSIONS)}


def version_text(machine: bool = False) -> str:
    """Our version, and on a second line what else a ticket needs to know.

    Args:
      machine: a line for each fact instead: also every package that ours asks for, and what this process may use.
    """
    if machine:
        return "\n".join(f"{name}: {fact}" for name, fact in _facts().items())
    ours, *others = (" ".join(item) for item in versions().items())
    place = f"{platform.platform()}, {count(available_cores(), 'core')}"
    return f"{ours}\nPython {platform.python_version()}, {', '.join(others)}; {place}"


def _facts() -> dict[str, str]:
    """What rates and faults depend on, without names of users, hosts and folders."""
    names = [re.split(r"[^\w.-]", line)[0] for line in metadata.requires("shardline") or () if "extra ==" not in line]
    extras = [name for name in _EXTRAS if _version(name) != _MISSING]
    quota = cpu_quota()
    found = nvidia.cards()
    cards = ", ".join(f"{found.count(card)} × {card}" for card in dict.fromkeys(found))
    return {
        "shardline": _version("shardline"),
        "packages": ", ".join(f"{name} {_version(name)}" for name in sorted([*names, "keras", *extras], key=str.lower)),
        "compiled module": f"none, {why}: OpenCV resizes" if (why := native.WHY_MISSING) else "used",
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": f"{platform.platform()}, {_distribution()}",
        "processor": processor_name(),
        "cores": f"{available_cores()} of {os.cpu_count()}" + ("" if quota is None else f", a quota of {quota:g}"),
        "memory": f"{memory_limit() / 2**30:.1f} GiB, {available_memory() / 2**30:.1f} GiB of it free",
        "GPUs": (cards or "none") + (", hidden by CUDA_VISIBLE_DEVICES" if found and nvidia.hidden() else ""),
    }


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown distribution")
    except OSError:
        return "unknown distribution"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return _MISSING
