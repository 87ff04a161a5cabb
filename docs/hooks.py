"""What mkdocs asks for while it builds the site: the commands and their flags, out of the config classes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "build" / "typing"))

from shardline.pipeline.commands import COMMANDS  # noqa: E402
from shardline.pipeline.options import Field, options  # noqa: E402

MARK = "<!-- the commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the reference where a page asks for it."""
    return markdown.replace(MARK, "\n".join(map(command_section, COMMANDS))) if MARK in markdown else markdown


def command_section(name: str) -> str:
    """What a command does, and its flags in a table for each group."""
    config = COMMANDS[name].config_class()
    doc = sys.modules[COMMANDS[name].module].__doc__ or ""
    groups: dict[str, list[str]] = {name: [] for name in getattr(config, "GROUPS", ())}
    for field in options(config).values():
        if field.option.flag:
            groups.setdefault(field.option.group or "flags", []).append(row(field))
    # Outside of examples, which are indented, brackets would be links.
    text = [line if line.startswith("    ") else line.replace("[", "\\[") for line in doc.strip().splitlines()]
    lines = [f"## shardline-{name}", "", *text, ""]
    for group, rows in groups.items():
        if rows:
            head = ["| flag | default | values | |", "|---|---|---|---|"]
            lines += [f"**{group.capitalize()}**", "", *head, *rows, ""]
    return "\n".join(lines)


def row(field: Field) -> str:
    """A flag as a row: name, default, values, help."""
    name = f"--[no]{field.name}" if field.kind is bool else f"--{field.name}"
    default = field.default_text
    if field.kind is bool:
        default = "auto" if field.default is None else str(field.default).lower()
    values = ", ".join(filter(None, field.option.choices)) or field.wanted
    return f"| `{name}` | {f'`{default}`' if default else ''} | {cell(values)} | {cell(field.option.help)} |"


def cell(text: str) -> str:
    """Text that a table may hold."""
    return text.replace("|", "\\|").replace("<", "&lt;")
