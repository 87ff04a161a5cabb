"""A command in a message is named as the user typed the running one."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from shardline.pipeline.commands import as_typed

TEXT = (
    "make it with shardline-convert; /data/shardline-train and shardline-train.py are files; shardline-verify names it"
)


@pytest.mark.parametrize(
    ("typed", "module", "convert", "verify"),
    [
        ("/venv/bin/shardline-train", None, "shardline-convert", "shardline-verify"),
        ("shardline train", None, "shardline convert", "shardline verify"),
        ("/venv/bin/shardline", None, "shardline convert", "shardline verify"),
        (
            "/src/trainer/train.py", "shardline.trainer.train",
            "python -m shardline.tools.convert", "python -m shardline.tools.verify",
        ),
        ("/usr/bin/pytest", "pytest.__main__", "shardline-convert", "shardline-verify"),
    ],
)  # fmt: skip
def test_commands_are_named_as_typed(monkeypatch, typed, module, convert, verify):
    main = ModuleType("__main__")
    main.__spec__ = SimpleNamespace(name=module) if module else None
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", [typed, "--data=x"])
    assert as_typed(TEXT) == TEXT.replace("shardline-convert", convert).replace("shardline-verify", verify)
