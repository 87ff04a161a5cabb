"""--config and --print_config: what a file of settings may hold, and that what is printed can be read."""

import sys
import tomllib

import pytest

from shardline.pipeline import cli as command_line
from shardline.pipeline.config import InputConfig
from shardline.pipeline.config_file import read_config_file, write_config_text
from shardline.pipeline.errors import UsageError
from shardline.tools.conversion.config import ConvertConfig
from tests.pipeline.command import CommandConfig

SETTINGS = {
    "toml": 'size = 3\nrate = 1e-3\nmode = "fast"\nquiet = true\nratio = [1, 2.5]\ninputs = ["a", "b c"]\n',
    "yaml": "size: 3\nrate: 1e-3\nmode: fast\nquiet: yes\nratio: 1,2.5\ninputs: [a, b c]\n",  # 1e-3: text to YAML 1.1
    "json": '{"size": 3, "rate": 0.001, "mode": "fast", "quiet": true, "ratio": [1, 2.5], "inputs": ["a", "b c"]}',
}
EXPECTED = CommandConfig(size=3, rate=1e-3, mode="fast", quiet=True, ratio=(1.0, 2.5), inputs=("a", "b c"))


@pytest.fixture
def file(tmp_path):
    def write(text, name="settings.toml"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("kind", SETTINGS)
def test_each_kind_of_file_gives_the_same_config(file, kind):
    path = file(SETTINGS[kind], f"settings.{kind}")
    assert command_line.parse(CommandConfig, ["demo", f"--config={path}"]) == EXPECTED


def test_flags_and_arguments_override_the_file(file):
    argv = ["demo", "--size=9", "--config", file(SETTINGS["toml"]), "--noquiet", "z"]
    config = command_line.parse(CommandConfig, argv)
    assert (config.size, config.quiet, config.inputs, config.mode) == (9, False, ("z",), "fast")


@pytest.mark.parametrize(
    ("text", "name", "line"),
    [
        ("sizes = 3", "a.toml", "sizes: no such setting; use size"),
        ("batch_size = 3", "a.toml", "batch_size: no such setting"),
        ("size = 0", "a.toml", "size=0: use a whole number from 1 to 1000"),
        ("size = 3.5", "a.toml", "size=3.5: use a whole number from 1 to 1000"),
        ("size = true", "a.toml", "size=True: use a whole number from 1 to 1000"),
        ("size: three", "a.yaml", "size=three: use a whole number from 1 to 1000"),
        ("size: 1:30", "a.yaml", "size=1:30: use a whole number from 1 to 1000"),
        ("mode: [slow]", "a.yaml", "mode=['slow']: use text"),
        ("rate: .nan", "a.yaml", "rate=nan: use a number above 0, below 1"),
        ("ratio = [1, 2, 3]", "a.toml", "ratio=[1, 2, 3]: needs two numbers, e.g. 0.35,1"),
        ("quiet: 1", "a.yaml", "quiet=1: use true or false"),
        ("size = ", "a.toml", "no TOML: Invalid value"),
        ("a: b: c", "a.yaml", "no YAML: mapping values are not allowed here"),
        ("!!python/object/apply:os.getcwd []", "a.yaml", "no YAML: could not determine a constructor"),
        ("{", "a.json", "no JSON: Expecting property name"),
        ("[" * 100000, "a.json", "no JSON: "),
        ('{"size": 3, "mode": "fast", "size": 4}', "a.json", "no JSON: 'size' is given twice; leave one"),
        ("size: 3\nmode: fast\nsize: 4\n", "a.yaml", "no YAML: 'size' is given twice; leave one"),
        ("size = 3\nsize = 4\n", "a.toml", "no TOML: "),
        ("? [a, b]\n: 3\n", "a.yaml", "no YAML: while constructing a mapping"),
        ("size = 0x" + "f" * 5000, "a.toml", "size: Exceeds the limit"),
        ('{"size": 1e999}', "a.json", "size=inf: use a whole number from 1 to 1000"),
        ("[1, 2]", "a.json", "write a line NAME: VALUE for each setting"),
        ("size=3", "a.ini", "name a file that ends in .toml, .yaml, .yml, .json"),
    ],
)
def test_a_file_that_cannot_work_is_refused_by_name_and_setting(file, text, name, line):
    path = file(text, name)
    with pytest.raises(UsageError) as error:
        read_config_file(path, CommandConfig)
    assert str(error.value).startswith(f"config={path}: {line}") and "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "size"), [("020", 20), ("+010", 10), ("0x14", 20), ("1_000", 1000), ("0", 0)])
def test_numbers_in_yaml_are_those_of_a_command_line(file, text, size):
    if size:
        assert read_config_file(file(f"size: {text}", "a.yaml"), CommandConfig) == {"size": size}
    else:
        with pytest.raises(UsageError, match="size=0: use a whole number"):
            read_config_file(file(f"size: {text}", "a.yaml"), CommandConfig)


def test_a_missing_file_is_refused():
    with pytest.raises(UsageError, match=r"no-such\.toml: No such file or directory; name a file of settings"):
        read_config_file("no-such.toml", CommandConfig)


def test_an_empty_file_changes_nothing(file):
    for name in ("a.toml", "a.yaml"):
        assert command_line.parse(CommandConfig, ["demo", f"--config={file('', name)}"]) == CommandConfig()


@pytest.mark.parametrize(
    ("config", "argv"),
    [
        (CommandConfig, ["--rate=0.0001", "--limit=3", "--ratio=0.3,0.7", '--inputs=a"\\b\x7f', "--quiet"]),
        (CommandConfig, []),
        (InputConfig, ["--crop_area=0.1,0.9", "--brightness=0.1"]),
        (ConvertConfig, ["--source=a", "--source=b=c", "--output=o", "--splits=train=0.9,test=0.1"]),
    ],
)
def test_what_is_printed_gives_the_same_config_to_the_last_digit(file, monkeypatch, capsys, config, argv):
    monkeypatch.setattr(sys, "argv", ["demo", *argv, "--print_config"])
    with pytest.raises(SystemExit) as stop:
        command_line.run(lambda config: pytest.fail("must only print"), config, "Demo.")
    text = capsys.readouterr().out
    assert stop.value.code == 0 and tomllib.loads(text)
    again = command_line.parse(config, ["demo", f"--config={file(text)}"])
    assert again == command_line.parse(config, ["demo", *argv])


def test_a_printed_value_that_cannot_work_is_refused():
    with pytest.raises(UsageError, match="size=0: use"):
        write_config_text(CommandConfig, {"size": 0})
