"""Settings in a file: `--config FILE` read, `--print_config` written. TOML, YAML or JSON, by the file's ending.

A file holds the fields of the command's config by their names. Flags override it. No TensorFlow.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import textwrap
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardline.pipeline.errors import UsageError
from shardline.pipeline.habits import unknown
from shardline.pipeline.options import Field, from_text, options, value_of
from shardline.pipeline.paths import local_path
from shardline.pipeline.text import parse_json, unique

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ENDINGS = (".toml", ".yaml", ".yml", ".json")


def read_config_file(path: str, config: type[DataclassInstance]) -> dict[str, Any]:
    """The settings in a file, each checked by itself; those of several fields together, the config's class checks.

    Raises:
      UsageError: the file cannot be read, or holds a name or a value that the command has not.
    """
    content = _content(_located(path))
    if unpack := getattr(config, "from_stored", None):
        content = unpack(content, path)
    fields, known = options(config), {field.name for field in dataclasses.fields(config)}
    values: dict[str, Any] = {}
    for name, value in content.items():
        if name not in known:
            line = unknown(str(name), fields).replace("flag", "setting").replace("--", "")
            raise UsageError(f"--config={path}: {name}: {line}")
        try:
            values[name] = value_of(fields[name], from_text(fields[name], value)) if name in fields else value
        except UsageError as error:
            raise UsageError(f"--config={path}: {str(error).removeprefix('--')}") from None
        except ValueError as error:  # of a number of more digits than Python writes, as TOML's 0xff… can be
            raise UsageError(f"--config={path}: {name}: {error}") from None
    return values


def _located(path: str) -> str:
    try:
        return local_path(path, "file")
    except ValueError as error:
        raise UsageError(f"--config={path}: {error}") from None


def _content(path: str) -> dict[str, Any]:
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise UsageError(f"--config={path}: name a file that ends in {', '.join(ENDINGS)}")
    try:
        text = Path(path).read_text()
        content = _parse(text, ending)
    except OSError as error:
        raise UsageError(f"--config={path}: {error.strerror}; name a file of settings") from None
    except (ValueError, RecursionError) as error:  # what all three parsers raise, and text that is no UTF-8
        line = " ".join(str(error).split())[:200]
        raise UsageError(f"--config={path}: no {ending[1:].upper()}: {line}") from None
    if not isinstance(content, dict):
        raise UsageError(f"--config={path}: write a line NAME: VALUE for each setting")
    return content


def _parse(text: str, ending: str) -> Any:
    if ending == ".toml":
        return tomllib.loads(text)
    if ending == ".json":
        return parse_json(text)
    import yaml

    class Loader(yaml.SafeLoader):
        """Leaves 020 and 1:30 text, as on a command line; YAML 1.1 would make 16 and 90 of them."""

        def construct_yaml_int(self, node: yaml.ScalarNode) -> object:
            return node.value if re.fullmatch(r"[-+]?0\d+|.*:.*", node.value) else super().construct_yaml_int(node)

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
    try:
        if isinstance(node := yaml.compose(text, Loader), yaml.MappingNode):
            unique((key.value, None) for key, _ in node.value if isinstance(key.value, str))
        return yaml.load(text, Loader) or {}
    except yaml.YAMLError as error:
        raise ValueError(error) from None


def write_config_text(config: type[DataclassInstance], values: Mapping[str, Any]) -> str:
    """A TOML file of every flag of the command: `values`, and the defaults of the others, each with its help."""
    groups: dict[str, list[Field]] = {name: [] for name in getattr(config, "GROUPS", ())}
    for field in options(config).values():
        if field.option.flag:
            groups.setdefault(field.option.group, []).append(field)
    lines: list[str] = []
    for group, fields in groups.items():
        if group and fields:
            lines += ["", f"# {'-' * 20} {group}"]
        for field in fields:
            value = value_of(field, values.get(field.name, field.default))
            lines += textwrap.wrap(field.option.help, 116, initial_indent="# ", subsequent_indent="# ")
            lines.append(f"# {field.name} =" if value is None else f"{field.name} = {_toml(value)}")
    return "\n".join(lines).strip()


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(str(key))} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    # JSON's strings are TOML's, but for DEL and for bytes that are no UTF-8, which no TOML file can hold.
    return json.dumps(os.fspath(value) if isinstance(value, os.PathLike) else str(value), ensure_ascii=False).replace(
        "\x7f", "\\u007f"
    )
