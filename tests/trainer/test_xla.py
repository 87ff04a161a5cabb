"""XLA's flags: the same for every command, and what is kept of earlier compilations."""

import pytest

from shardline.trainer import xla
from shardline.trainer.nvidia import Card

H100 = Card("NVIDIA H100 80GB HBM3", "580.159.04", "9.0")


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name in ("XLA_FLAGS", "TF_XLA_FLAGS"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(xla, "cards", lambda: ())
    return monkeypatch


def flags(name="XLA_FLAGS"):
    return xla.os.environ[name].split()


def test_a_machine_without_cards_keeps_nothing(tmp_path):
    xla.set_flags()
    assert flags() == [xla.REPEATABLE]
    assert flags("TF_XLA_FLAGS") == []
    assert not (tmp_path / "cache").exists()


def test_choices_and_programs_are_kept_for_the_cards(environment, tmp_path):
    environment.setattr(xla, "cards", lambda: (H100,))
    xla.set_flags()
    folder = xla.cache_directory((H100,), True)
    assert folder.is_relative_to(tmp_path / "cache")
    assert flags() == [xla.REPEATABLE, f"{xla.AUTOTUNE_CACHE}{folder}/autotune"]
    assert flags("TF_XLA_FLAGS") == [f"{xla.PROGRAM_CACHE}{folder}/programs", xla.GPU_PROGRAMS]
    assert (folder / "autotune").is_dir() and (folder / "programs").is_dir()
    before = flags()
    xla.set_flags()  # again, as by a search's trial in a process of its own
    assert flags() == before
    assert list(folder.parent.iterdir()) == [folder]


def test_programs_of_other_flags_cards_or_drivers_are_kept_apart(environment):
    newer = Card(H100.name, "600.1", H100.compute_capability)
    folders = {xla.cache_directory(cards, exact) for cards in ((H100,), (H100, H100), (newer,)) for exact in (1, 0)}
    environment.setenv("XLA_FLAGS", "--xla_gpu_enable_triton_gemm=false")
    folders.add(xla.cache_directory((H100,), True))
    assert len(folders) == 7


def test_where_nothing_can_be_kept_the_first_kernel_is_taken(environment, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    environment.setattr(xla, "cards", lambda: (H100,))
    xla.set_flags()
    assert flags() == [xla.WITHOUT_CHOICE]
    assert flags("TF_XLA_FLAGS") == []


def test_what_the_user_has_set_stays(environment):
    environment.setenv("XLA_FLAGS", "--xla_gpu_exclude_nondeterministic_ops=false --xla_dump_to=/tmp/x")
    xla.set_flags()
    assert flags() == ["--xla_gpu_exclude_nondeterministic_ops=false", "--xla_dump_to=/tmp/x"]


def test_without_xla_or_determinism_no_order_is_asked_for():
    xla.set_flags(jit=False)
    xla.set_flags(deterministic=False)
    assert flags() == []
