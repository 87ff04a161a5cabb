"""What mkdocs asks for while it builds the site: flags out of the config classes, messages out of the code."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "build" / "typing"))

from shardline.pipeline.commands import COMMANDS  # noqa: E402
from shardline.pipeline.options import Field, options  # noqa: E402

COMMANDS_MARK, MESSAGES_MARK = "<!-- the commands -->", "<!-- the messages -->"
RESULTS = "../../benchmarks/results/"  # as pages name it, so that they can be read in the repository, too
SHOWN = "results/"  # where the site has the images of it that pages show
RAISED = {"UsageError": "2", "Failure": "1"}


def on_files(files: Any, config: Any) -> Any:
    """Add the images of measurements that pages show: they lie beside their figures and not under docs/."""
    from mkdocs.structure.files import File

    for name in sorted({name for page in files.documentation_pages() for name in shown(page.content_string)}):
        path = str(ROOT / "benchmarks" / "results" / name)
        files.append(File.generated(config, SHOWN + name, abs_src_path=path))
    return files


def shown(text: str) -> list[str]:
    """The images under benchmarks/results that a page shows."""
    return re.findall(rf"\]\({re.escape(RESULTS)}([^)]+\.png)\)", text)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the references where a page asks for them, and the images where the site has them."""
    for mark, made in ((COMMANDS_MARK, commands), (MESSAGES_MARK, messages)):
        if mark in markdown:
            markdown = markdown.replace(mark, made())
    return markdown.replace(f"({RESULTS}", f"(../{SHOWN}")


def commands() -> str:
    """A section for each command."""
    return "\n".join(map(command_section, COMMANDS))


def messages() -> str:
    """Every message that ends a command, by the folder that raises it, as the code has it."""
    lines = []
    for folder, title in (("pipeline", "Reading data"), ("tools", "Converting and checking"), ("trainer", "Training")):
        lines += [f"## {title}: all messages", "", "| exit code | message |", "|---|---|"]
        found = {row for path in sorted((ROOT / folder).rglob("*.py")) for row in raised(ast.parse(path.read_text()))}
        lines += [f"| {code} | {cell(text)} |" for text, code in sorted(found)] + [""]
    return "\n".join(lines)


def raised(module: ast.Module) -> Iterator[tuple[str, str]]:
    """Text and exit code of each UsageError and Failure that a module makes of a text of its own."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RAISED and node.args:
            text = " ".join(worded(node.args[0]).split())
            if len(re.sub(r"[A-Z_…]", "", text)) > 20:  # not only what another message says
                yield text, RAISED[node.func.id]


def worded(node: ast.expr) -> str:
    """A text of the code, with the names of what is put into it in capitals."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(map(worded, parts))
        case ast.FormattedValue(value=ast.Name(id=name)) | ast.FormattedValue(value=ast.Attribute(attr=name)):
            return name.upper().strip("_")
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return worded(left) + worded(right)
    return "…"


def command_section(name: str) -> str:
    """What a command does, and its flags in a list for each group."""
    config = COMMANDS[name].config_class()
    doc = sys.modules[COMMANDS[name].module].__doc__ or ""
    groups: dict[str, list[str]] = {name: [] for name in getattr(config, "GROUPS", ())}
    for field in options(config).values():
        if field.option.flag:
            groups.setdefault(field.option.group or "flags", []).append(entry(field))
    # Outside of examples, which are indented, brackets would be links.
    text = [line if line.startswith("    ") else line.replace("[", "\\[") for line in doc.strip().splitlines()]
    lines = [f"## shardline-{name}", "", *text, ""]
    for group, entries in groups.items():
        if entries:
            lines += [f"**{group.capitalize()}**", "", *entries]
    return "\n".join(lines)


def entry(field: Field) -> str:
    """A flag as a term, with its values and its default, and its help below: a table would be too wide for a phone."""
    name = f"--[no]{field.name}" if field.kind is bool else f"--{field.name}"
    default = field.default_text
    if field.kind is bool:
        default = "auto" if field.default is None else str(field.default).lower()
    values = ", ".join(filter(None, field.option.choices)) or field.wanted
    shown = f"; default: `{default}`" if default else ""
    return f"`{name}` {cell(values)}{shown}\n:   {cell(field.option.help)}\n"


def cell(text: str) -> str:
    """Text that a table or a list may hold."""
    return text.replace("|", "\\|").replace("<", "&lt;")
