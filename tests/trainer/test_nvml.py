"""Figures of GPUs that are not here: a pynvml of ours answers for them."""

import sys
import time
import types

import pytest

from shardline.trainer import nvml


class NVMLError(Exception):
    pass


def unsupported(*_):
    raise NVMLError("Not Supported")


@pytest.fixture
def fake(monkeypatch):
    """Two GPUs; the second tells no power, and its load changes from look to look."""
    loads = {0: iter([50] * 100), 1: iter([100, 0] * 50)}

    def power(gpu):
        return 650_000 if gpu == 0 else unsupported()

    module = types.SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_PCIE_UTIL_RX_BYTES=1,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUtilizationRates=lambda gpu: types.SimpleNamespace(gpu=next(loads[gpu])),
        nvmlDeviceGetPowerUsage=power,
        nvmlDeviceGetClockInfo=lambda gpu, kind: 1980 - 200 * gpu,
        nvmlDeviceGetPcieThroughput=lambda gpu, kind: 800_000,
    )
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return module


def test_means_over_looks_and_gpus_and_what_is_not_told_is_left_out(fake):
    figures = nvml.GpuFigures(seconds=3600)
    figures.look()
    figures.look()
    assert figures.take() == {
        "gpu_utilization_percent": 50.0,  # 50, 50 and 100, 0
        "gpu_watts": 650.0,
        "gpu_mhz": 1880.0,
        "gpu_pcie_mb_per_second": 800.0,
    }
    assert figures.take() == {}
    figures.close()


def test_a_thread_asks_until_it_is_closed(fake):
    figures = nvml.GpuFigures(seconds=0.001)
    deadline = time.monotonic() + 20
    while not (found := figures.take()) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert found["gpu_mhz"] == 1880.0
    figures.close()
    figures.take()
    assert not figures._thread.is_alive() and figures.take() == {}


def test_only_gpus_that_the_process_may_use_are_asked(fake, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    figures = nvml.GpuFigures(seconds=3600)
    figures.look()
    assert figures.take()["gpu_mhz"] == 1780.0
    figures.close()
    assert nvml._visible(4, {"CUDA_VISIBLE_DEVICES": "GPU-1f2e"}) == [0, 1, 2, 3]
    assert nvml._visible(2, {}) == [0, 1]


@pytest.mark.parametrize("broken", ["no package", "no driver"])
def test_without_the_package_or_a_driver_there_are_no_figures(fake, monkeypatch, broken):
    if broken == "no package":
        monkeypatch.setitem(sys.modules, "pynvml", None)
    else:
        fake.nvmlInit = unsupported
    figures = nvml.GpuFigures(seconds=3600)
    figures.look()
    assert figures.take() == {}
    figures.close()
