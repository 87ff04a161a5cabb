"""The cache of compiled programs: what is damaged, foreign or old is not used; the bits stay."""

import os
import subprocess
import sys

import pytest

from shardline.trainer import xla_cache

NAME = "xla_compile_cache__1__2__XLA_CPU_JIT.pb"
COMPILES = """
from shardline.trainer.xla import start_tensorflow
tf = start_tensorflow()
step = tf.function(lambda x: tf.linalg.matmul(tf.sin(x), x), jit_compile=True, autograph=False)
print(step(tf.reshape(tf.range(4096.0), [64, 64])).numpy().tobytes().hex()[:64])
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TF_XLA_FLAGS", "")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    monkeypatch.setattr(xla_cache.atexit, "register", lambda *_: None)
    return monkeypatch


def compiled(kept, name, content):
    """A process that compiles a program and ends."""
    own = kept / "process-0"
    xla_cache.lay_out(kept, own)
    (own / name).write_bytes(content)
    xla_cache.keep(kept, own)


def found(kept):
    own = kept / "process-0"
    xla_cache.lay_out(kept, own)
    return {path.name: path.read_bytes() for path in own.iterdir()}


def test_what_one_process_compiled_the_next_one_has(tmp_path):
    compiled(tmp_path, NAME, b"program")
    assert found(tmp_path) == {NAME: b"program"}


@pytest.mark.parametrize("damage", [b"", b"progr", b"Program"])
def test_a_damaged_program_is_not_used_and_goes(tmp_path, damage):
    """TensorFlow ends the run over one."""
    compiled(tmp_path, NAME, b"program")
    (kept,) = tmp_path.glob("xla*")
    kept.write_bytes(damage)
    assert found(tmp_path) == {} and not kept.exists()


def test_what_a_killed_process_left_is_not_used_and_goes(tmp_path):
    left = tmp_path / f"process-{2**22 + 1}"  # more than Linux numbers
    left.mkdir()
    (left / NAME).write_bytes(b"half a prog")
    alive = tmp_path / f"process-{os.getppid()}"
    alive.mkdir()
    assert found(tmp_path) == {}
    assert alive.exists() and not left.exists()


def test_the_oldest_go(tmp_path, monkeypatch):
    monkeypatch.setattr(xla_cache, "MOST_PROGRAMS", 2)
    for age in (3, 1, 2):
        name = NAME.replace("1", str(age))
        compiled(tmp_path, name, bytes(age))
        for path in tmp_path.glob(f"{name}.*"):
            os.utime(path, (1e9 - age, 1e9 - age))
    assert sorted(map(len, found(tmp_path).values())) == [1, 2]


def test_tensorflow_is_given_a_folder_of_this_process(tmp_path):
    xla_cache.use()
    (folder,) = (tmp_path / "shardline" / "xla").iterdir()
    assert f"directory={folder}/process-{os.getpid()} " in os.environ["TF_XLA_FLAGS"] + " "
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3"


def test_other_flags_of_xla_have_programs_of_their_own(tmp_path, environment):
    for flags in ("", "--xla_gpu_deterministic_ops=true"):
        environment.setenv("XLA_FLAGS", flags)
        environment.setenv("TF_XLA_FLAGS", "")
        xla_cache.use()
    assert len(list((tmp_path / "shardline" / "xla").iterdir())) == 2


def test_a_users_own_cache_and_log_level_stay(environment):
    environment.setenv("TF_XLA_FLAGS", "--tf_xla_persistent_cache_directory=/mine")
    xla_cache.use()
    assert os.environ["TF_XLA_FLAGS"].endswith("=/mine") and os.environ["TF_CPP_MIN_LOG_LEVEL"] == "2"


def test_where_others_may_write_nothing_is_run(tmp_path, environment):
    xla_cache.use()
    (folder,) = (tmp_path / "shardline" / "xla").iterdir()
    folder.chmod(0o777)
    environment.setenv("TF_XLA_FLAGS", "")
    xla_cache.use()
    assert os.environ["TF_XLA_FLAGS"] == ""


def test_without_a_home_programs_are_compiled_each_time(environment):
    environment.setenv("XDG_CACHE_HOME", "/dev/null/no/folder")
    xla_cache.use()
    assert os.environ["TF_XLA_FLAGS"] == ""


@pytest.mark.slow  # TensorFlow starts three times
def test_a_program_from_the_cache_gives_the_same_bits_in_silence(tmp_path):
    """The second run compiles nothing new; and a damaged file costs no run."""
    answers = []
    for turn in range(3):
        done = subprocess.run([sys.executable, "-c", COMPILES], capture_output=True, text=True, check=True)
        answers.append(done.stdout)
        assert "E0000" not in done.stderr
        (kept,) = tmp_path.glob("shardline/xla/*/xla*")
        assert not list(tmp_path.glob("shardline/xla/*/process-*"))
        if turn == 1:
            kept.write_bytes(kept.read_bytes()[:100])
    assert len(set(answers)) == 1
