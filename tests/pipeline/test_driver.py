"""Waking the driver up: with a stand-in for its library."""

import ctypes
import sys

import pytest

from instantvision.pipeline import driver


@pytest.fixture
def on_linux(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")


def test_the_driver_is_told_to_begin(on_linux, monkeypatch):
    told = []

    class Library:
        def __init__(self, name):
            self.name = name

        def cuInit(self, flags):  # noqa: N802
            told.append((self.name, flags))

    monkeypatch.setattr(ctypes, "CDLL", Library)
    driver.wake().join(10)
    assert told == [("libcuda.so.1", 0)]


# A thread's exception would be a warning, and warnings are errors here.
def test_without_a_driver_nothing_happens(on_linux, monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    driver.wake().join(10)


def test_on_a_mac_nobody_looks_for_one(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert driver.wake() is None
