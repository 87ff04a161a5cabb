"""What is said of NVIDIA cards: an nvidia-smi of ours tells of cards that are not here."""

import mmap
import re
import struct
import types
from pathlib import Path

import pytest
import tensorflow as tf

from shardline.benchmarks import step_stages
from shardline.pipeline import nvidia
from shardline.pipeline.errors import UsageError
from shardline.pipeline.nvidia import Card
from shardline.trainer import cluster, run
from shardline.trainer.config import TrainConfig

H100 = Card("NVIDIA H100 80GB HBM3", "580.159.04", "9.0")
CUDA = {"is_cuda_build": True, "cuda_version": "12.5.1", "cudnn_version": "9"}


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    forget = nvidia.cards.cache_clear
    forget()
    yield
    forget()


def fake_smi(folder, monkeypatch, script):
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_the_driver_tells_of_its_cards(tmp_path, monkeypatch):
    line = "NVIDIA H100 80GB HBM3, 580.159.04, 9.0"
    fake_smi(tmp_path, monkeypatch, f'test "$1" = {nvidia._QUERY[1]} && printf "{line}\\n{line}\\n"')
    assert nvidia.cards() == (H100, H100)
    assert H100.capability == (9, 0)
    assert H100.driver_major == 580
    assert nvidia.description(nvidia.cards(), CUDA) == (
        f"2 × NVIDIA H100 80GB HBM3, compute capability 9.0, driver 580.159.04; TensorFlow {tf.__version__} for "
        "CUDA 12.5.1, cuDNN 9"
    )


def test_a_card_whose_driver_does_not_answer_is_still_one(tmp_path, monkeypatch):
    fake_smi(tmp_path, monkeypatch, "echo 'couldn'\\''t communicate with the NVIDIA driver'; exit 9")
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert nvidia.cards(str(tmp_path)) == (Card(), Card())
    assert Card().capability == (0, 0)
    assert nvidia.warnings([Card()]) == []


def test_without_cards_nothing_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia.cards(str(tmp_path)) == ()
    assert nvidia.description((), CUDA) == ""
    nvidia.refuse_unused((), CUDA, 0)


@pytest.mark.parametrize(
    "card, build, why",
    [
        (H100, {"is_cuda_build": False}, "built without CUDA; install one for it"),
        (Card("Tesla T4", "470.82", "7.5"), CUDA, "driver 470.82 is older than 525"),
        (Card("Tesla T4", "535.1", "7.5"), CUDA, "CUDA's libraries are missing"),
        (H100, CUDA, "CUDA's libraries are missing or do not fit; pip install 'shardline.gpu.'"),
        (Card(), CUDA, "CUDA's libraries are missing"),
    ],
)
def test_a_card_that_tensorflow_does_not_see_is_refused_with_the_remedy(card, build, why):
    with pytest.raises(UsageError, match=f"1 NVIDIA GPU \\({card.name or 'unknown'}.*sees none.*{why}.*device=cpu"):
        nvidia.refuse_unused([card], build, 0)
    nvidia.refuse_unused([card], build, 1)


@pytest.mark.parametrize("value", ["", "-1"])
def test_hidden_cards_are_not_missed(monkeypatch, value):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    nvidia.refuse_unused([H100], CUDA, 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UsageError):
        nvidia.refuse_unused([H100], CUDA, 0)


def test_training_refuses_the_cpu_of_a_machine_with_a_card_unless_it_is_meant(monkeypatch):
    monkeypatch.setattr(nvidia, "cards", lambda: (H100,))
    monkeypatch.setattr(cluster, "set_flags", lambda **_: None)
    cluster._create_cluster.cache_clear()
    with pytest.raises(UsageError, match="TensorFlow sees none"):
        cluster.create_cluster("one_device", 0)
    assert cluster.create_cluster("one_device", 0, device="cpu").device_kind == "CPU"
    cluster._create_cluster.cache_clear()


def test_a_run_on_the_cpu_takes_no_gpu(monkeypatch):
    card = types.SimpleNamespace(name="/physical_device:GPU:0")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [card])
    assert cluster.gpus(TrainConfig()) == [card]
    assert cluster.gpus(TrainConfig(device="cpu")) == cluster.gpus(TrainConfig(logical_cpus=2)) == []


def test_new_cards_and_old_drivers_are_named():
    blackwell = Card("NVIDIA B200", "580.1", "10.0")
    (line,) = nvidia.warnings([blackwell, blackwell])
    assert "B200" in line and "compute capability 9.0" in line and "take an H100" in line
    (line,) = nvidia.warnings([Card("NVIDIA H100", "550.54", "9.0")])
    assert "element-wise kernels" in line and "install driver 555 or newer" in line
    assert nvidia.warnings([H100, Card("NVIDIA A100", "535.1", "8.0")]) == []


def code_for(library, capability):
    """What cuobjdump lists of a library: of each fat binary, what MLIR made it for, and its kinds of code."""
    found = []
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        start = -1
        while (start := data.find(struct.pack("<IHH", 0xBA55ED50, 1, 16), start + 1)) >= 0:
            kinds, names, at = set(), [], start + 16
            end = at + struct.unpack_from("<Q", data, start + 8)[0]
            while at < end:
                kind, _, header, size, _, _, minor, major, arch = struct.unpack_from("<HHIQIIHHI", data, at)
                code = data[at + header : at + header + size]
                names += re.findall(rb"\.text\.([A-Za-z0-9]+)_GPU_", code)[:1] if kind == 2 else []
                if arch == capability:
                    kinds.add(f"PTX {major}.{minor}" if kind == 1 else "machine code")
                at += header + size
            found.append((names[0].decode() if names else "", kinds))
    return found


@pytest.mark.slow
def test_what_the_driver_has_to_compile_for_this_tensorflow_is_what_is_said():
    library = Path(tf.sysconfig.get_lib()) / "libtensorflow_cc.so.2"
    newest = code_for(library, 90)
    compiled = {name for name, kinds in newest if kinds == {"PTX 8.5"}}
    assert {"Cast", "AddV2", "Mul", "Equal"} <= compiled and "" not in compiled
    assert all("machine code" in kinds for name, kinds in newest if not name)
    assert all(kinds == {"machine code"} for _, kinds in code_for(library, 80))


def test_small_batches_on_gpus_are_named(monkeypatch):
    monkeypatch.setattr(nvidia, "cards", lambda: (H100, H100))
    two = cluster.Cluster(tf.distribute.get_strategy(), 0, 1, 2, "GPU")
    first, warning = cluster.device_lines(two, 32)
    assert "2 × NVIDIA H100" in first
    assert "32 is 16 a GPU" in warning and "global_batch_size=128 or more" in warning
    assert len(cluster.device_lines(two, 128)) == 1
    cpu = cluster.Cluster(tf.distribute.get_strategy(), 0, 1, 2, "CPU")
    assert cluster.device_lines(cpu, 2) == ["devices: 2 × CPU (_DefaultDistributionStrategy)"]


@pytest.mark.parametrize(
    "name, half, gbps",
    [
        ("NVIDIA H100 80GB HBM3", 989, 3600),
        ("NVIDIA H100 PCIe", 756, 512),
        ("NVIDIA A100-SXM4-80GB", 312, 2400),
        ("NVIDIA A100-PCIE-40GB", 312, 256),
        ("NVIDIA L4", 121, 256),
        ("NVIDIA L40S", 362, 256),
        ("Tesla T4", 65, 128),
    ],
)
def test_data_sheets_are_found_by_the_drivers_name(name, half, gbps):
    nominal = Card(name).nominal
    assert (nominal.half_tflops, nominal.gbps) == (half, gbps)


def test_a_card_without_a_data_sheet_promises_nothing(monkeypatch):
    assert Card("NVIDIA GeForce RTX 4090").nominal is None
    assert Card().nominal is None
    monkeypatch.setattr(nvidia, "cards", lambda: (H100,))
    assert step_stages.box_gbps() == 3600
    monkeypatch.setattr(nvidia, "cards", lambda: ())
    assert step_stages.box_gbps() == step_stages.NETWORK_GBPS


@pytest.mark.parametrize("precision, share", [("mixed_bfloat16", 2 * 989), ("float32", 2 * 494)])
def test_mfu_is_also_told_of_the_data_sheet(monkeypatch, precision, share):
    monkeypatch.setattr(nvidia, "cards", lambda: (H100, H100))
    two = types.SimpleNamespace(device_kind="GPU", replicas=2)
    config = types.SimpleNamespace(precision=precision)
    assert run.nominal_tflops(types.SimpleNamespace(cluster=two, config=config)) == share
    two.device_kind = "CPU"
    assert run.nominal_tflops(types.SimpleNamespace(cluster=two, config=config)) == 0
