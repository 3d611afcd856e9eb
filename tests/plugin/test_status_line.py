import io
import threading

import pytest

from instantvision.pipeline.config import Mix, Settings, Size
from instantvision.pipeline.meter import LiveStats, Meter, Surroundings
from instantvision.pipeline.pacing import Shown
from instantvision.plugin.status_line import PLAIN_EVERY_S, StatusLine, text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def stats(seconds: float = 2.0, status: str = "", loading: bool = False) -> LiveStats:
    meter = Meter()
    for number in range(int(seconds * 60) + 1):
        at_s = number / 60
        if loading:
            meter.sent(at_s, Shown.SLATE, latency_ms=0.0, missed=0)
            continue
        meter.captured(at_s)
        meter.finished(at_s, call_ms=10.5, device_ms=9.8)
        meter.sent(at_s, Shown.FRESH, latency_ms=21.0, missed=0)
    around = Surroundings(
        source="test-pattern",
        sink="null",
        size=Size(1024, 1024),
        settings=None if loading else Settings(mix=Mix.parse("oil"), size=Size(1024, 1024)),
        status=status,
        dropped_capture=2,
        dropped_engine=1,
    )
    return meter.stats(seconds, around)


def test_the_line() -> None:
    assert text(stats()) == (
        "60.0 fps out · engine 60.0 fps 9.8 ms · latency p50 21 p95 21 ms · drops 3 · repeats 0.0 % · oil 1024x1024"
    )


def test_the_line_while_loading() -> None:
    assert text(stats(loading=True)) == "60.0 fps out · loading the model"


def test_the_line_says_what_is_waited_for() -> None:
    assert "waiting: unplugged" in text(stats(status="unplugged"))


def test_no_terminal_gets_plain_lines_now_and_then() -> None:
    stream = io.StringIO()
    with StatusLine(stream) as line:
        for tenth in range(25):
            line.show(stats(seconds=1 + tenth * PLAIN_EVERY_S / 10))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert all(found.endswith("oil 1024x1024") for found in lines)
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_gets_one_line_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    stream, before = Terminal(), threading.active_count()
    with StatusLine(stream) as line:
        line.show(stats(1))
        line.show(stats(2))
        assert threading.active_count() == before
    assert stream.getvalue().count("fps out") >= 2
    assert stream.getvalue().count("\n") == 1


def test_a_narrow_terminal_keeps_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    with StatusLine(stream) as line:
        line.show(stats())
    assert stream.getvalue().count("\n") == 1


def test_closing_twice_or_unused_is_fine() -> None:
    stream = Terminal()
    line = StatusLine(stream)
    line.close()
    line.close()
    assert stream.getvalue() == ""
