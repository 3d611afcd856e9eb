import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instantvision.pipeline.config import Mix, Settings, Size
from instantvision.pipeline.meter import WINDOW, Distribution, Histogram, Meter, Rate, Summary, Surroundings
from instantvision.pipeline.pacing import Shown


def around(**changes: object) -> Surroundings:
    values: dict[str, object] = {
        "source": "test-pattern",
        "sink": "null",
        "size": Size(256, 128),
        "settings": Settings(mix=Mix.parse("oil:0.75,ink:0.25"), steps=6),
        "status": "",
        "dropped_capture": 3,
        "dropped_engine": 1,
    }
    return Surroundings(**(values | changes))  # type: ignore[arg-type]


@given(st.lists(st.floats(0.02, 9e5), min_size=1, max_size=300))
def test_the_histogram_is_within_one_percent(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)

    summary = histogram.summary()

    assert summary.count == len(values)
    assert summary.mean == pytest.approx(np.mean(values))
    for share, found in ((0.50, summary.p50), (0.95, summary.p95), (0.99, summary.p99)):
        exact = np.quantile(values, share, method="inverted_cdf")
        # Half of the 2 % bucket, and the rounding of its logarithm.
        assert found == pytest.approx(exact, rel=0.0101)


@pytest.mark.parametrize("value", [-1.0, 0.0, 1e-9, 1e9, float("inf")])
def test_the_histogram_takes_any_value(value: float) -> None:
    histogram = Histogram()
    histogram.add(value)
    assert histogram.summary().count == 1


def test_nothing_measured_is_zeros() -> None:
    assert Histogram().summary() == Distribution().recent() == Summary()


def test_recent_forgets_and_the_whole_run_does_not() -> None:
    distribution = Distribution()
    for value in [1000.0] * WINDOW + [10.0] * WINDOW:
        distribution.add(value)

    assert distribution.recent() == Summary(count=WINDOW, mean=10.0, p50=10.0, p95=10.0, p99=10.0)
    assert distribution.summary().count == 2 * WINDOW
    assert distribution.summary().p95 == pytest.approx(1000, rel=0.01)


def test_rate_of_the_run_and_of_late() -> None:
    rate = Rate()
    assert (rate.overall(), rate.recent(0.0)) == (0.0, 0.0)
    for number in range(1000):
        rate.add(number / 30)
    assert rate.overall() == pytest.approx(30)
    for number in range(1000):
        rate.add(1000 / 30 + number / 60)
    assert rate.recent(1000 / 30 + 1000 / 60) == pytest.approx(60)


def test_rate_falls_when_events_stop() -> None:
    rate = Rate()
    for number in range(61):
        rate.add(number / 60)
    assert rate.recent(1.02) == pytest.approx(60)
    assert rate.recent(2.0) == pytest.approx(30)
    assert rate.recent(60.0) == pytest.approx(1)


def run_of(shown: list[Shown], meter: Meter | None = None) -> Meter:
    meter = meter or Meter()
    for number, kind in enumerate(shown):
        meter.captured(number / 60)
        meter.finished(number / 60, call_ms=11.0, device_ms=9.0, steps=number % 4)
        meter.sent(number / 60, kind, latency_ms=20.0, missed=0)
    return meter


def test_every_tick_is_counted_as_one_kind() -> None:
    kinds = [Shown.SLATE] * 4 + [Shown.FRESH] * 5 + [Shown.REPEATED] * 2 + [Shown.HELD]
    stats = run_of(kinds).stats(0.2, around())

    assert (stats.slate, stats.fresh, stats.repeated, stats.held) == (4, 5, 2, 1)
    assert stats.ticks == stats.slate + stats.fresh + stats.repeated + stats.held
    assert stats.repeated_fraction == 2 / 8
    assert stats.recent.repeated_fraction == 2 / 8
    assert stats.latency_ms.count == stats.fresh
    assert stats.duration_s == pytest.approx(11 / 60)
    assert stats.fps_out == stats.fps_source == stats.fps_engine == pytest.approx(60)
    assert stats.engine_device_ms.p95 == pytest.approx(9, rel=0.01)
    assert stats.engine_call_ms.p99 == pytest.approx(11, rel=0.01)


def test_steps_are_counted_over_all_and_over_the_last_pictures() -> None:
    stats = run_of([Shown.FRESH] * 4000).stats(70.0, around())
    assert stats.mean_steps == stats.recent.mean_steps == 1.5
    assert Meter().stats(0.0, around()).mean_steps == 0


def test_a_run_without_a_picture_has_no_repeats() -> None:
    assert run_of([Shown.SLATE] * 3).stats(1.0, around()).repeated_fraction == 0.0


def test_an_unknown_device_time_is_left_out() -> None:
    meter = Meter()
    meter.finished(0.0, call_ms=5.0, device_ms=None)
    stats = meter.stats(0.0, around())
    assert (stats.engine_frames, stats.engine_device_ms.count, stats.engine_call_ms.count) == (1, 0, 1)


def test_the_figures_are_plain_json() -> None:
    stats = run_of([Shown.FRESH, Shown.REPEATED]).stats(1.0, around())

    plain = json.loads(json.dumps(stats.to_json()))

    assert plain["size"] == "256x128"
    assert plain["settings"]["mix"] == "oil:0.75,ink:0.25"
    assert plain["settings"]["size"] == "512x512"
    assert plain["steps"] == 6
    assert plain["mean_steps"] == plain["recent"]["mean_steps"] == 0.5
    assert plain["repeated_fraction"] == 0.5
    assert (plain["dropped_capture"], plain["dropped_engine"], plain["threads_left"]) == (3, 1, 0)
    assert set(plain["latency_ms"]) == {"count", "mean", "p50", "p95", "p99"}


def test_figures_before_the_engine_is_built() -> None:
    plain = Meter().stats(0.0, around(settings=None)).to_json()
    assert plain["settings"] is None
    assert json.dumps(plain)


def test_a_long_run_takes_no_more_memory_than_a_short_one() -> None:
    meter = run_of([Shown.FRESH] * WINDOW)

    def sizes() -> list[int]:
        return [sys.getsizeof(value) for value in (meter._latency_ms._last, meter._latency_ms._all._buckets)]

    before = sizes()
    run_of([Shown.FRESH, Shown.REPEATED] * 5 * WINDOW, meter)
    assert sizes() == before


FIGURES = """
import sys
from instantvision.pipeline.config import Settings, Size
from instantvision.pipeline.meter import Meter, Surroundings
from instantvision.pipeline.pacing import Shown

meter = Meter()
before = set(sys.modules)
for now_s in (0.1, 0.2, 0.3):
    meter.captured(now_s)
    meter.finished(now_s, 5.0, 4.0, 8)
    meter.sent(now_s, Shown.FRESH, 8.0, 0)
around = Surroundings(
    source="", sink="", size=Size(64, 64), settings=Settings(), status="", dropped_capture=0, dropped_engine=0
)
meter.stats(0.4, around).to_json()
print(*sorted(set(sys.modules) - before))
"""


def test_figures_import_nothing_between_two_pictures() -> None:
    """The output's thread tells them; an import of 50 ms there makes one come three ticks late."""
    done = subprocess.run([sys.executable, "-P", "-c", FIGURES], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
