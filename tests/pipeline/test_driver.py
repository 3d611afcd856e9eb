"""The driver's calls, recorded instead of made."""

import ctypes

import pytest

from instantvision.pipeline import driver


class Recorded:
    """A driver that answers each call with a code."""

    def __init__(self, code: int) -> None:
        self.calls: list[str] = []
        self._code = code

    def __getattr__(self, name: str):
        return lambda *_: self.calls.append(name) or self._code


@pytest.mark.parametrize(
    ("code", "calls"), [(0, ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]), (100, ["cuInit"])]
)
def test_a_context_is_made_where_there_is_a_gpu(code, calls, monkeypatch):
    recorded = Recorded(code)
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: recorded)
    driver._make_context()
    assert recorded.calls == calls


def test_no_driver_is_no_error(monkeypatch):
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    driver._make_context()
