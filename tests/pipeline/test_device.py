"""Where the model runs, and what is said when it cannot run there."""

import logging

import pytest
import torch

from instantvision.pipeline.device import choose_device
from instantvision.pipeline.errors import EngineError


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def test_a_gpu_is_taken_where_there_is_one(two_gpus):
    assert str(choose_device()) == "device: cuda:0 in bfloat16, because it is H100"
    assert choose_device("cuda:1").device.index == 1


def test_an_old_gpu_calculates_in_float16(two_gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert choose_device().dtype == torch.float16


def test_the_cpu_can_be_asked_for(two_gpus):
    assert str(choose_device("cpu")) == "device: cpu in float32, because it was asked for"


def test_a_cpu_torch_is_the_reason(monkeypatch, caplog):
    monkeypatch.setattr(torch.version, "cuda", None)
    with caplog.at_level(logging.INFO):
        choice = choose_device()
    assert choice.device.type == "cpu"
    assert "is built without CUDA" in choice.reason
    assert [record.message for record in caplog.records] == [str(choice)]
    with pytest.raises(EngineError, match=r"device cuda cannot be used, because torch .* use --device cpu"):
        choose_device("cuda")


def test_a_missing_driver_is_the_reason(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no NVIDIA GPU or driver was found" in choose_device().reason


@pytest.mark.parametrize("wanted", ["cuda:2", "cuda:x", "tpu", "cuda:-1"])
def test_a_device_that_does_not_exist(two_gpus, wanted):
    with pytest.raises(
        EngineError, match=f"device {wanted} does not exist, there are cpu and cuda:0 to cuda:1"
    ):
        choose_device(wanted)
