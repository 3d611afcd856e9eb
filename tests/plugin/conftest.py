"""A control server on a free port, around a real Control and pictures made up for the test."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import pytest

from instantvision.integrations.obs_controller import ObsState
from instantvision.pipeline.config import Settings
from instantvision.pipeline.control import Control
from instantvision.pipeline.meter import LiveStats, Meter, Surroundings
from instantvision.pipeline.pacing import Shown
from instantvision.plugin.server import ControlServer

TOKEN = "t" * 43


@dataclass
class FakePreview:
    """Grey before, and after of a brightness the test sets."""

    brightness: int = 200
    asked: list[tuple[int, str]] = field(default_factory=list)

    def take_jpeg(self, side_px: int, which: str) -> bytes | None:
        self.asked.append((side_px, which))
        if self.brightness < 0:
            return None
        value = self.brightness if which == "after" else 90
        return cv2.imencode(".jpg", np.full((side_px * 9 // 16, side_px, 3), value, np.uint8))[1].tobytes()


@dataclass
class Running:
    """A running server and what it is around."""

    control: Control
    preview: FakePreview
    server: ControlServer
    obs: ObsState | None = None

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"


def live_stats(control: Control) -> LiveStats:
    """Two seconds at 60 Hz."""
    meter = Meter()
    for number in range(120):
        meter.captured(number / 60)
        meter.finished(number / 60, call_ms=9.0, device_ms=8.0)
        meter.sent(number / 60, Shown.FRESH, latency_ms=34.0, missed=0)
    settings = control.state.settings
    around = Surroundings(
        source="test-pattern", sink="null", size=settings.size, settings=settings, status="", dropped_capture=0,
        dropped_engine=0,
    )  # fmt: skip
    return meter.stats(2.0, around)


def start_server(
    control: Control,
    preview: FakePreview,
    port: int = 0,
    obs: Callable[[], dict[str, Any] | None] = lambda: None,
) -> ControlServer:
    server = ControlServer(control, preview, port=port, token=TOKEN, obs=obs)
    server.start()
    server.offer_stats(live_stats(control))
    return server


@pytest.fixture
def running() -> Iterator[Running]:
    control, preview = Control(Settings()), FakePreview()
    server = start_server(control, preview, obs=lambda: found.obs and found.obs.to_json())
    found = Running(control, preview, server)
    yield found
    found.server.close()
