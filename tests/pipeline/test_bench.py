"""The report of a measurement: complete, consistent, open about what could not be measured. No test looks at speed."""

import functools
import json
import sys
import types
from dataclasses import replace

import pytest
import torch

from instantvision.pipeline import bench, machine
from instantvision.pipeline.config import Settings, Size

SETTINGS = Settings(size=Size(64, 64), steps=2)
STAGES = ["fit", "upload", "encode", "denoise", "decode", "download"]


def check(report):
    assert (report.size, report.steps, report.frames, report.input) == ("64x64", 2, 5, "1280x720")
    assert list(report.stages_ms) == STAGES
    for spread in (*report.stages_ms.values(), report.latency_ms, report.period_ms, report.device_ms):
        assert 0 < spread.median <= spread.p95 <= spread.p99
    assert report.fps > 0
    assert (report.power_w is None) == (report.no_power_because is not None)
    assert "kernels: " in report.machine.kernels
    assert json.loads(json.dumps(report.to_json()))["stages_ms"]["encode"].keys() == {"median", "p95", "p99"}


def test_a_report_on_the_cpu(toy_model):
    report = bench.run(toy_model, SETTINGS, 5)
    check(report)
    assert report.peak_memory_mb is None
    assert report.no_power_because == "the device is no NVIDIA GPU"


@pytest.mark.gpu
def test_a_report_on_a_gpu(toy_model_on_gpu):
    report = bench.run(toy_model_on_gpu, SETTINGS, 5)
    check(report)
    assert report.peak_memory_mb > 0
    assert report.no_power_because


def test_no_strength_means_no_steps(toy_model):
    assert bench.run(toy_model, replace(SETTINGS, strength=0.0), 2).steps == 0


def test_refuses_a_single_frame(toy_model):
    with pytest.raises(ValueError, match="frames is 1, expected at least 2"):
        bench.run(toy_model, SETTINGS, 1)


def test_pictures_are_not_constant_and_always_the_same():
    one, other = bench.random_pictures(32, 16), bench.random_pictures(32, 16)
    assert one[0].shape == (16, 32, 3)
    assert one[0].std() > 50
    assert (one[0] != one[1]).any()
    assert (one[0] == other[0]).all()


def test_energy_of_a_long_enough_run_only():
    assert bench.energy_used(10.0, 30.5, 2.0) == (20.5, None)
    joules, reason = bench.energy_used(10.0, 30.5, 0.25)
    assert joules is None
    assert reason == "the run took 0.25 s, expected 1 s: measure more frames"


def gpu_with_counter(monkeypatch, read, **more):
    class NVMLError(Exception):
        pass

    nvml = types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: read(handle, NVMLError),
        **{name: functools.partial(function, error=NVMLError) for name, function in more.items()},
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    properties = types.SimpleNamespace(uuid="1234")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return machine.EnergyCounter(torch.device("cuda:0"))


def test_the_counter_of_the_right_gpu_in_joules(monkeypatch):
    def read(handle, _error):
        assert handle == "GPU-1234"
        return 2500

    counter = gpu_with_counter(monkeypatch, read)
    assert counter.reason is None
    assert counter.read_j() == 2.5
    counter.close()
    assert counter.read_j() is None


def test_a_gpu_without_a_counter_is_the_reason(monkeypatch):
    def read(_handle, error):
        raise error("Not Supported")

    counter = gpu_with_counter(monkeypatch, read)
    assert counter.read_j() is None
    assert counter.reason == "the GPU's energy counter cannot be read (Not Supported)"


def test_the_state_of_the_gpu(monkeypatch):
    def clock(_handle, kind, error):
        if kind == 3:
            raise error("Not Supported")
        return {1: 1980, 2: 2619}[kind]

    counter = gpu_with_counter(
        monkeypatch,
        lambda _handle, _error: 0,
        nvmlDeviceGetClockInfo=clock,
        nvmlDeviceGetTemperature=lambda _handle, _sensor, error: 41,
        nvmlDeviceGetEnforcedPowerLimit=lambda _handle, error: 700_000,
    )
    expected = machine.GpuState(
        sm_clock_mhz=1980, memory_clock_mhz=2619, temperature_c=41, power_limit_w=700.0
    )
    assert counter.state() == expected
    sys.modules["pynvml"].NVML_CLOCK_MEM = 3
    assert counter.state() is None
    counter.close()
    assert counter.state() is None


def test_a_missing_nvml_is_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in machine.EnergyCounter(torch.device("cuda:0")).reason


def test_the_commit_is_a_hash_or_unknown():
    commit = machine.describe_machine(torch.device("cpu")).commit
    assert commit is None or len(commit.removesuffix("-dirty")) == 12
    assert machine.describe_machine(torch.device("cpu"), "1234567").commit == "1234567"
