"""All commands in one: `shardline train …` is `shardline-train …`.

shardline --help
shardline convert --source photos --output data
source <(shardline completion bash)      # completes names, flags and values; zsh likewise
"""

from __future__ import annotations

import importlib
import sys

from shardline.pipeline import cli as command_line
from shardline.pipeline.command_help import EVERY_COMMAND, version_text
from shardline.pipeline.commands import COMMANDS
from shardline.pipeline.errors import UsageError
from shardline.pipeline.habits import nearest
from shardline.tools.completion import SHELLS, completion

_OWN = {"completion": f"print the script that completes all this in a shell: {' or '.join(SHELLS)}"}


def help_text() -> str:
    """Each command with what it does."""
    rows = {name: command.summary for name, command in COMMANDS.items()} | _OWN
    rows |= {name: EVERY_COMMAND[name] for name in ("--version", "--machine")}
    listed = "\n".join(f"  {name:<12} {summary}" for name, summary in rows.items())
    return f"{(__doc__ or '').strip()}\n\nCommands; `shardline NAME --help` tells more:\n{listed}"


def main(arguments: list[str]) -> None:
    """Print the help, the version or a completion script."""
    name, rest = (arguments or [""])[0], arguments[1:]
    if name in ("--help", "-help", "-h", "--helpfull", "help"):
        print(help_text())
    elif name in ("--version", "version", *command_line.MACHINE):
        print(version_text(machine=bool(command_line.MACHINE & set(arguments))))
    elif name == "completion":
        print(completion(rest[0] if rest else ""))
    elif not name or name.startswith("-"):
        what = f"{name}: name a command first" if name else "name a command"
        raise UsageError(f"{what}: {', '.join([*COMMANDS, *_OWN])} (shardline --help tells what each does)")
    else:
        near = nearest(name, [*COMMANDS, *_OWN])
        use = f"use {near}" if near else f"there are {', '.join([*COMMANDS, *_OWN])}"
        raise UsageError(f"{name}: no such command; {use} (shardline --help tells what each does)")


def cli() -> None:
    """Run the console script `shardline`."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    name = name.removeprefix("shardline-").replace("_", "-")
    if sys.argv[1:2] == ["help"] and len(sys.argv) > 2:
        name, sys.argv[2:] = sys.argv[2], ["--help"]
    if name in COMMANDS:
        sys.argv = [f"shardline {name}", *sys.argv[2:]]  # what messages call it
        importlib.import_module(COMMANDS[name].module).cli()
    command_line.exit_code_of(lambda: main(sys.argv[1:]))


if __name__ == "__main__":
    cli()
