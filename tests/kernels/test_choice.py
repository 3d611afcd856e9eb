"""Which implementation is used, and that the reason can be read."""

import importlib.util
import logging

import pytest

from instantvision import kernels
from instantvision.kernels import reference


@pytest.fixture(autouse=True)
def _fresh_choice(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    kernels._choose.cache_clear()
    yield
    kernels._choose.cache_clear()


def test_the_cpu_gets_the_reference():
    backend = kernels.choose("cpu")
    assert backend.name == "reference"
    assert backend.frame_ops is reference
    assert backend.step_ops is reference


def test_a_missing_triton_is_the_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert str(kernels.choose("cuda")) == "kernels: reference, because triton is not installed"


def test_a_gpu_gets_triton():
    pytest.importorskip("triton")
    assert kernels.choose("cuda").name == "triton"


def test_the_interpreter_gets_triton_on_the_cpu(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    backend = kernels.choose("cpu")
    assert backend.name == "triton"
    assert "TRITON_INTERPRET" in backend.reason


def test_the_choice_is_logged_once(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        kernels.choose("cpu")
        kernels.choose("cpu")
    assert [record.message for record in caplog.records] == [str(kernels.choose("cpu"))]


def test_a_forced_choice_ends_with_its_block():
    pytest.importorskip("triton")
    with kernels.forced("triton"):
        assert kernels.choose("cpu").name == "triton"
    assert kernels.choose("cpu").name == "reference"


def test_both_implementations_have_every_operation():
    pytest.importorskip("triton")
    for name in ("triton", "reference"):
        with kernels.forced(name):
            backend = kernels.choose("cuda")
        assert all(hasattr(backend.frame_ops, op) for op in ("pixels_to_input", "output_to_pixels"))
        assert all(hasattr(backend.step_ops, op) for op in ("add_noise", "denoise_step"))
