"""Our commands as texts name them: in shell blocks of pages, in their sentences, in scripts. To be parsed, and run."""

import importlib
import importlib.util
import os
import re
import shlex
import subprocess
from pathlib import Path

from shardline.pipeline import cli
from shardline.pipeline.commands import COMMANDS

MODULES = {command.module: name for name, command in COMMANDS.items()}
_OURS = re.compile(rf"shardline[ -]({'|'.join(COMMANDS)})\b|python -m shardline")
_OPERATORS = re.compile(r"\d?[|&;<>]+")


def blocks(text, *languages):
    """The code blocks of a page in some languages."""
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def in_page(text):
    """Each command that a page names, and whether it is whole; those in sentences may name one flag alone."""
    for block in blocks(text, "sh", "bash"):
        yield from ((*command, True) for command in in_script(block))
    for span in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)):
        if re.match(_OURS, span) and "…" not in span and "..." not in span:
            yield from ((*command, False) for command in in_script(span))


def in_script(text):
    """Each of our commands in a shell script, and its arguments: (name, [argument, …])."""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        words = iter(shlex.split(line, comments=True))
        for word in words:
            name = word.rsplit("/")[-1]
            if name == "python" and next(words, "") == "-m":
                module = next(words)
                if not module.startswith("shardline."):
                    break
                assert importlib.util.find_spec(module), f"{line}: no module {module}"
                if module not in MODULES:
                    break
                name = f"shardline-{MODULES[module]}"
            if name == "shardline":
                name = f"shardline-{next(words, '--help')}"
            if name.startswith("shardline-") and name != "shardline-completion" and not name.startswith("shardline---"):
                yield name, list(_until_operator(words))


def _until_operator(words):
    for word in words:
        if _OPERATORS.match(word):
            return
        yield word


def parse(name, arguments):
    """The config that a command line gives. Raises the UsageError that the command would end with.

    Variables of a shell stand for some number or path; a file of settings is not read.
    """
    command = COMMANDS[name.removeprefix("shardline-")]
    arguments = [re.sub(r"\$(\(\(.*\)\)|\{?\w+\}?)", "8", word) for word in arguments]
    if "--config" in arguments:
        place = arguments.index("--config")
        arguments = arguments[:place] + arguments[place + 2 :]
    if not arguments or arguments[0] in ("--help", "--helpfull", "--version", "--machine", "--print_config"):
        return None
    return cli.parse(getattr(importlib.import_module(command.module), command.config), [name, *arguments])


def follow(page, folder, python):
    """Do what a page says, in a folder, with the scripts beside a Python; what its Python blocks print."""
    text = page.read_text()
    environment = os.environ | {"PATH": f"{Path(python).parent}:{os.environ['PATH']}", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment.pop("PYTHONPATH", None)
    lines = "\n".join(blocks(text, "sh")).replace("\\\n", " ").splitlines()
    typed = [["bash", "-euc", line] for line in lines] + [[python, "-c", block] for block in blocks(text, "python")]
    printed = ""
    for command in typed:
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, f"{command[-1]}\n{result.stderr[-3000:]}"
        printed += result.stdout if command[0] != "bash" else ""
    return printed
