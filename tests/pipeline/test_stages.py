"""The live loop with stand-ins for source, engine and sink; the threads are real."""

import _thread
import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from instantvision.integrations.base import EndOfSource, require_sendable
from instantvision.integrations.clock import Clock
from instantvision.pipeline import stages
from instantvision.pipeline.config import LiveConfig, Mix, Settings, Size
from instantvision.pipeline.control import Control
from instantvision.pipeline.errors import ConfigError, EngineError, SinkError, SourceError
from instantvision.pipeline.frames import Frame, Latest, Origin, Pixels
from instantvision.pipeline.meter import LiveStats
from instantvision.pipeline.pacing import Finished
from instantvision.pipeline.stages import LiveParts, run_live

SIZE = Size(64, 64)
SETTINGS = Settings(mix=Mix.parse("oil"), size=SIZE)
# Nothing here takes that long; it only keeps a broken test from hanging.
LONG_S = 20.0
FAST = LiveConfig(fps=200.0)


def raw_frame(index: int) -> Frame:
    pixels = np.full((48, 80, 3), index % 256, np.uint8)
    return Frame(pixels=pixels, index=index, captured_s=stages.SYSTEM_CLOCK.now_s(), origin=Origin.RAW)


class FakeSource:
    """Gives what `frames` yields, raises what it raises, and ends with it."""

    def __init__(self, frames: Iterable[Frame | None], open_error: Exception | None = None) -> None:
        self.name, self.status, self.calls = "fake source", "", list[str]()
        self._frames, self._open_error = iter(frames), open_error

    def open(self) -> None:
        self.calls.append("open")
        if self._open_error:
            raise self._open_error

    def read(self, timeout_s: float) -> Frame | None:
        for frame in self._frames:
            return frame
        raise EndOfSource

    def close(self) -> None:
        self.calls.append("close")


class FakeSink:
    """Keeps the frames it is sent; `on_send` sees each of them first and may raise."""

    def __init__(
        self, on_send: Callable[[Frame], None] = lambda frame: None, open_error: Exception | None = None
    ) -> None:
        self.name, self.calls, self.frames = "fake sink", list[str](), list[Frame]()
        self._on_send, self._open_error = on_send, open_error

    def open(self, size: Size, fps: float) -> None:
        self.calls.append("open")
        if self._open_error:
            raise self._open_error

    def send(self, frame: Frame) -> None:
        require_sendable(frame, SIZE)
        self._on_send(frame)
        self.frames.append(frame)

    def close(self) -> None:
        self.calls.append("close")


class FakePending:
    def __init__(self, finish: Callable[[], Pixels], delay: int | None = 0) -> None:
        self.device_ms: float | None = None
        self.steps = 3
        self.delay = delay
        self._finish = finish

    def wait(self) -> None:
        """Nothing takes its time here."""

    def result(self) -> Pixels:
        self.device_ms = 1.5
        return self._finish()


class FakeEngine:
    """Paints everything with 255 minus the picture's first value; `log` lists what was asked of it in its order."""

    def __init__(self, on_submit: Callable[[int], None] = lambda number: None) -> None:
        self.settings, self.log, self.closed = SETTINGS, list[str](), False
        self.update_error: Exception | None = None
        self.on_update: Callable[[Settings], None] = lambda settings: None
        self._on_submit, self._numbers = on_submit, itertools.count()

    def update(self, settings: Settings) -> None:
        if self.update_error:
            raise self.update_error
        self.on_update(settings)
        self.settings = settings

    def submit(self, pixels: Pixels) -> FakePending:
        number, size = next(self._numbers), self.settings.size
        self.log.append(f"submit {number}")
        self._on_submit(number)

        def finish() -> Pixels:
            self.log.append(f"result {number}")
            return np.full((size.height, size.width, 3), 255 - pixels.flat[0], np.uint8)

        return FakePending(finish)

    def close(self) -> None:
        self.closed = True


class Bench:
    """A run put together from stand-ins, each replaceable."""

    def __init__(
        self,
        source: FakeSource | None = None,
        sink: FakeSink | None = None,
        make_engine: Callable[[], FakeEngine] | None = None,
    ) -> None:
        self.stop, self.engine = threading.Event(), FakeEngine()
        self.source, self.sink = source or FakeSource(self.camera()), sink or FakeSink()
        self.make_engine = make_engine or (lambda: self.engine)
        self.control = Control(SETTINGS, fade_s=0)
        self.reports: list[LiveStats] = []
        self.on_stats: Callable[[LiveStats], None] = self.reports.append

    def camera(self) -> Iterator[Frame | None]:
        """A camera of about 200 Hz, until the run stops."""
        for index in itertools.count():
            self.stop.wait(1 / FAST.fps)
            yield raw_frame(index)

    def run(self, config: LiveConfig = FAST) -> LiveStats:
        # A test whose condition never comes fails by its own assertions.
        config = replace(config, duration_s=config.duration_s or LONG_S)
        return run_live(self.parts(), SIZE, config, self.stop)

    def parts(self, clock: Clock = stages.SYSTEM_CLOCK) -> LiveParts:
        return LiveParts(
            source=self.source,
            sink=self.sink,
            make_engine=self.make_engine,
            control=self.control,
            on_stats=lambda stats: self.on_stats(stats),
            clock=clock,
        )

    def stop_when(self, condition: Callable[[Frame], bool]) -> None:
        """Stop the run after the sink took a picture for which that is true."""

        def on_send(frame: Frame) -> None:
            if condition(frame):
                self.stop.set()

        self.sink = FakeSink(on_send)

    @property
    def origins(self) -> list[Origin]:
        return [frame.origin for frame in self.sink.frames]


def is_stylised(frame: Frame) -> bool:
    return frame.origin is Origin.STYLISED


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    # A thread that has ended may be listed for a moment more.
    assert {thread for thread in threading.enumerate() if thread.is_alive()} - before == set()


def assert_closed(bench: Bench) -> None:
    assert bench.source.calls == ["open", "close"]
    assert bench.sink.calls == ["open", "close"]
    assert bench.stop.is_set()


def test_a_run_of_a_given_length() -> None:
    bench = Bench()

    stats = bench.run(replace(FAST, duration_s=0.5))

    assert_closed(bench)
    assert bench.engine.closed
    assert stats.ticks == len(bench.sink.frames) == stats.fresh + stats.repeated + stats.held + stats.slate
    # The lock may move the ticks by half a period, and a halted machine leaves some out.
    assert stats.ticks <= 101
    assert stats.fresh > 0
    assert (stats.source, stats.sink, stats.threads_left) == ("fake source", "fake sink", 0)
    assert stats.settings == SETTINGS
    assert bench.reports[-1].ticks == stats.ticks


def test_the_slate_shows_while_the_engine_is_built() -> None:
    loaded = threading.Event()
    bench = Bench()
    slates = itertools.count(1)

    def on_send(frame: Frame) -> None:
        if frame.origin is Origin.SLATE and next(slates) == 5:
            loaded.set()
        if frame.origin is Origin.STYLISED:
            bench.stop.set()

    def make_engine() -> FakeEngine:
        assert loaded.wait(LONG_S)
        return bench.engine

    bench.sink, bench.make_engine = FakeSink(on_send), make_engine
    stats = bench.run()

    assert bench.origins[:5] == [Origin.SLATE] * 5
    assert bench.origins[-1] is Origin.STYLISED
    # What came while the model was loading was not lost to a slow engine.
    assert stats.dropped_capture <= 1


def test_what_is_shown_is_the_engines_work() -> None:
    bench = Bench()
    bench.stop_when(is_stylised)
    bench.run()
    shown = bench.sink.frames[-1]
    assert (shown.pixels == 255 - shown.index % 256).all()


def test_the_end_of_the_source_drains() -> None:
    """Nothing is overtaken here: the source gives a picture only when the one before is on show."""
    taken = threading.Semaphore(1)

    def frames() -> Iterator[Frame | None]:
        for index in range(5):
            assert taken.acquire(timeout=LONG_S)
            yield raw_frame(index)

    shown: set[int] = set()

    def on_send(frame: Frame) -> None:
        if frame.origin is Origin.STYLISED and frame.index not in shown:
            shown.add(frame.index)
            taken.release()

    bench = Bench(source=FakeSource(frames()), sink=FakeSink(on_send))
    stats = bench.run()

    assert_closed(bench)
    assert shown == {0, 1, 2, 3, 4}
    assert (stats.fresh, stats.engine_frames, stats.threads_left) == (5, 5, 0)


def test_the_last_picture_of_a_fast_source_is_shown() -> None:
    bench = Bench(source=FakeSource(raw_frame(index) for index in range(300)))
    bench.run()
    assert bench.sink.frames[-1].index == 299


def test_a_source_without_pictures_is_waited_for_and_named() -> None:
    bench = Bench()
    bench.source = FakeSource(itertools.repeat(None))
    bench.source.status = "unplugged"
    reasons: list[str] = []
    draw = stages.Playout.__init__.__globals__["Slate"].frame

    def frame(self: object, reason: str, index: int, now_s: float) -> Frame:
        reasons.append(reason)
        if reason == "Waiting for fake source: unplugged":
            bench.stop.set()
        return draw(self, reason, index, now_s)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("instantvision.pipeline.playout.Slate.frame", frame)
        bench.run()

    assert set(bench.origins) == {Origin.SLATE}
    assert reasons[-1] == "Waiting for fake source: unplugged"
    assert bench.reports[-1].status == "unplugged"


def test_a_stalled_source_brings_the_slate_back() -> None:
    seen: list[Origin] = []
    bench = Bench()
    bench.source = FakeSource(itertools.chain([raw_frame(0)], itertools.repeat(None)))

    def on_send(frame: Frame) -> None:
        seen.append(frame.origin)
        if frame.origin is Origin.SLATE and Origin.STYLISED in seen:
            bench.stop.set()

    bench.sink = FakeSink(on_send)
    stats = bench.run(replace(FAST, stale_s=0.05))

    assert [origin for origin, _ in itertools.groupby(seen)][-2:] == [Origin.STYLISED, Origin.SLATE]
    # The engine owed nothing.
    assert stats.repeated == 0
    assert stats.held > 0


# Errors


def failing(error: Exception, after: Iterable[Frame] = ()) -> Iterator[Frame]:
    yield from after
    raise error


def test_a_source_that_cannot_be_opened_writes_nothing() -> None:
    error = SourceError("no camera called nope")
    bench = Bench(source=FakeSource([], open_error=error))
    with pytest.raises(SourceError) as raised:
        bench.run()
    assert raised.value is error
    assert bench.source.calls == ["open", "close"]
    assert bench.sink.calls == []


def test_a_sink_that_cannot_be_opened_releases_the_camera() -> None:
    bench = Bench(sink=FakeSink(open_error=SinkError("no driver")))
    bench.make_engine = lambda: pytest.fail("the engine was built for nothing")
    with pytest.raises(SinkError, match="no driver"):
        bench.run()
    assert bench.source.calls == bench.sink.calls == ["open", "close"]


def test_a_lost_source_ends_the_run_with_a_slate() -> None:
    error = SourceError("the camera is gone")
    bench = Bench(source=FakeSource(failing(error, [raw_frame(0), raw_frame(1)])))
    with pytest.raises(SourceError) as raised:
        bench.run()
    assert raised.value is error
    assert_closed(bench)
    assert bench.engine.closed
    assert bench.origins[-1] is Origin.SLATE


def test_an_engine_that_cannot_be_built() -> None:
    def make_engine() -> FakeEngine:
        raise EngineError("out of memory")

    bench = Bench(make_engine=make_engine)
    with pytest.raises(EngineError, match="out of memory"):
        bench.run()
    assert_closed(bench)
    assert set(bench.origins) <= {Origin.SLATE}


@pytest.mark.parametrize("kind", [EngineError, ZeroDivisionError])
def test_an_engine_that_fails_in_mid_run(kind: type[Exception]) -> None:
    def on_submit(number: int) -> None:
        if number == 3:
            raise kind("the device failed")

    bench = Bench()
    bench.engine = FakeEngine(on_submit)
    with pytest.raises(kind, match="the device failed"):
        bench.run()
    assert_closed(bench)
    assert bench.engine.closed
    assert bench.origins[-1] is Origin.SLATE
    assert bench.reports[-1].ticks >= 0


def test_a_sink_that_fails_in_mid_run() -> None:
    def on_send(frame: Frame) -> None:
        if frame.origin is Origin.STYLISED:
            raise SinkError("disk full")

    bench = Bench(sink=FakeSink(on_send))
    with pytest.raises(SinkError, match="disk full"):
        bench.run()
    assert_closed(bench)
    assert bench.engine.closed


def test_an_error_in_the_report_ends_the_run() -> None:
    def on_stats(stats: LiveStats) -> None:
        raise BrokenPipeError("stderr is gone")

    bench = Bench()
    bench.on_stats = on_stats
    with pytest.raises(BrokenPipeError):
        bench.run(replace(FAST, duration_s=1.2))
    assert_closed(bench)


# Ctrl-C


def test_stop_ends_the_run() -> None:
    bench = Bench()
    bench.stop_when(is_stylised)
    stats = bench.run()
    assert_closed(bench)
    assert bench.origins.count(Origin.STYLISED) == 1
    assert stats.threads_left == 0


def test_a_keyboard_interrupt_cleans_up_and_passes() -> None:
    interrupted = threading.Event()
    bench = Bench()

    def on_send(frame: Frame) -> None:
        if frame.origin is Origin.STYLISED and not interrupted.is_set():
            interrupted.set()
            _thread.interrupt_main()

    bench.sink = FakeSink(on_send)
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    assert_closed(bench)
    assert bench.reports


def test_an_engine_that_is_stuck_is_left_behind_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()
    bench = Bench()

    def make_engine() -> FakeEngine:
        release.wait(LONG_S)
        return bench.engine

    bench.make_engine = make_engine
    bench.stop_when(lambda frame: True)
    monkeypatch.setattr(stages, "HURRIED_JOIN_S", 0.05)

    with caplog.at_level(logging.WARNING):
        stats = bench.run()

    assert stats.threads_left == 1
    assert "the engine thread has not ended" in caplog.text
    assert_closed(bench)
    release.set()
    for thread in threading.enumerate():
        if thread.name == "engine":
            thread.join(LONG_S)


# Settings


def test_settings_of_another_size_keep_the_outputs_size() -> None:
    bench = Bench()
    wide = replace(SETTINGS, size=Size(128, 64), steps=3)
    bench.control.apply({"size": "128x64", "steps": 3}, by="cli")
    bench.stop_when(is_stylised)

    stats = bench.run()

    shown = bench.sink.frames[-1].pixels
    assert shown.shape == (64, 64, 3)
    # 128x64 in 64x64: bars above and below.
    assert not shown[:16].any()
    assert shown[16:48].any()
    assert stats.settings == wide


@pytest.mark.parametrize("error", [ConfigError("no such preset"), EngineError("too large")])
def test_settings_the_engine_refuses_do_not_end_the_show(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench()
    bench.engine.update_error = error
    bench.control.apply({"steps": 3}, by="cli")
    bench.stop_when(is_stylised)
    with caplog.at_level(logging.WARNING):
        stats = bench.run()
    assert caplog.text.count(f"kept the settings as they were: {error}") == 1
    assert stats.settings == SETTINGS


def test_a_fade_reaches_the_engine_and_nothing_is_left_out() -> None:
    bench = Bench()
    bench.control = Control(SETTINGS, fade_s=0.1)
    asked: list[Settings] = []
    bench.engine.on_update = asked.append
    stylised = itertools.count()

    def on_send(frame: Frame) -> None:
        if is_stylised(frame) and next(stylised) == 0:
            bench.control.apply({"preset": "ink"}, by="dock")
        if bench.engine.settings.mix == Mix.parse("ink"):
            bench.stop.set()

    bench.sink = FakeSink(on_send)
    bench.run()
    # Both looks at once on the way, and the new one alone at the end.
    assert all(len(settings.mix.parts) == 2 for settings in asked[:-1])
    assert asked[-1] == bench.control.state.settings
    assert bench.origins.index(Origin.STYLISED) + bench.origins.count(Origin.STYLISED) == len(bench.origins)


# What the user shows


def test_the_last_look_stays_while_the_engine_rests() -> None:
    bench = Bench()
    held = itertools.count()
    submitted: list[int] = []

    def on_send(frame: Frame) -> None:
        if not is_stylised(frame):
            return
        if (number := next(held)) == 0:
            bench.control.apply({"show": "last-look"}, by="obs")
        # What was on its way when it was pressed has arrived by the tenth picture.
        if number in (10, 30):
            submitted.append(len(bench.engine.log))
        if number == 30:
            bench.stop.set()

    bench.sink = FakeSink(on_send)
    bench.run()
    shown = [frame for frame in bench.sink.frames if is_stylised(frame)]
    assert all(frame is shown[0] for frame in shown)
    assert submitted[0] == submitted[1]


@pytest.mark.parametrize("show", ["last-look", "freeze", "slate"])
def test_what_needs_no_engine_survives_its_loss_until_the_effect_is_wanted(
    show: str, caplog: pytest.LogCaptureFixture
) -> None:
    bench, shown, lost = Bench(), threading.Event(), threading.Event()
    after = itertools.count()

    def on_submit(number: int) -> None:
        if number == 3:
            assert shown.wait(LONG_S)
            # In the middle of a picture, as a driver fails.
            bench.control.apply({"show": show}, by="dock")
            lost.set()
            raise EngineError("the device fell off the bus")

    def on_send(frame: Frame) -> None:
        if is_stylised(frame):
            shown.set()
        if lost.is_set() and next(after) == 60:
            bench.control.apply({"show": "effect"}, by="dock")

    bench.engine, bench.sink = FakeEngine(on_submit), FakeSink(on_send)
    with pytest.raises(EngineError, match="fell off the bus"), caplog.at_level(logging.ERROR):
        bench.run()
    kept = bench.sink.frames[-58:-1]
    if show == "slate":
        assert {frame.origin for frame in kept} == {Origin.SLATE}
    else:
        assert len({id(frame) for frame in kept[:50]}) == 1
        assert is_stylised(kept[0])
    assert bench.origins[-1] is Origin.SLATE
    assert caplog.text.count("the engine is lost (the device fell off the bus)") == 1


def test_a_run_without_an_engine_still_ends_with_its_source() -> None:
    taken = threading.Event()

    def frames() -> Iterator[Frame | None]:
        for index in range(300):
            taken.wait(0.005)
            yield raw_frame(index)

    bench = Bench(source=FakeSource(frames()))

    def on_submit(number: int) -> None:
        bench.control.apply({"panic": True}, by="cli")
        raise EngineError("gone")

    bench.engine = FakeEngine(on_submit)
    with pytest.raises(EngineError, match="gone"):
        bench.run()
    assert bench.sink.frames[-1].origin is Origin.SLATE
    # It went on for as long as the source did, not for the whole time of the run.
    assert 50 < len(bench.sink.frames) < LONG_S * FAST.fps


def test_the_camera_on_the_users_word_only() -> None:
    bench = Bench()

    def on_send(frame: Frame) -> None:
        if frame.origin is Origin.CAMERA:
            bench.stop.set()
        elif is_stylised(frame):
            bench.control.apply({"bypass": True, "consent": True}, by="dock")

    bench.sink = FakeSink(on_send)
    bench.run()
    assert bench.origins.count(Origin.CAMERA) == 1
    assert len(set(np.unique(bench.sink.frames[-1].pixels))) == 1


def test_a_failing_engine_shows_no_camera() -> None:
    def fail(number: int) -> None:
        if number == 2:
            raise EngineError("gone")

    bench = Bench()
    bench.engine = FakeEngine(fail)
    with pytest.raises(EngineError, match="gone"):
        bench.run()
    assert bench.origins[-1] is Origin.SLATE
    assert Origin.CAMERA not in bench.origins


# Two pictures in flight: the engine's stage alone, in this thread


class ManualClock:
    """Time that moves by hand."""

    def __init__(self) -> None:
        self.time_s = 1000.0

    def now_s(self) -> float:
        return self.time_s

    def wait(self, stop: threading.Event, timeout_s: float) -> bool:
        self.time_s += timeout_s
        return stop.is_set()


class NeverIdle(Latest[Frame]):
    """A slot that must not be waited at while the engine has a picture in the making."""

    busy = False

    def take(self, timeout_s: float | None = None) -> Frame | None:
        assert not (self.busy and timeout_s)
        return super().take(timeout_s)


def stage_log(waiting: bool, submit_s: float) -> list[str]:
    """What the engine is asked for three pictures, of which the next two come while the first is submitted or later."""
    bench, clock = Bench(), ManualClock()
    wires = stages._Wires(stop=threading.Event(), clock=clock, raw=NeverIdle())

    def next_one(number: int) -> None:
        wires.raw.put(raw_frame(number)) if number < 3 else wires.raw.close()

    class Engine(FakeEngine):
        def submit(self, pixels: Pixels) -> FakePending:
            pending = super().submit(pixels)
            clock.time_s += submit_s
            wires.raw.busy = True
            number = len([entry for entry in self.log if entry.startswith("submit")])
            finish = pending._finish

            def finish_then_next() -> Pixels:
                done = finish()
                wires.raw.busy = False
                if not waiting:
                    next_one(number)
                return done

            pending._finish = finish_then_next
            if waiting:
                next_one(number)
            return pending

    engine = Engine()
    bench.make_engine = lambda: engine
    next_one(0)
    stages._EngineStage(bench.parts(clock), SIZE, FAST.stale_s, wires).run()
    assert engine.closed
    return engine.log


ONE_BY_ONE = ["submit 0", "result 0", "submit 1", "result 1", "submit 2", "result 2"]


def test_a_waiting_picture_is_submitted_before_the_one_in_flight_is_collected() -> None:
    assert stage_log(waiting=True, submit_s=0.0) == [
        "submit 0", "submit 1", "result 0", "submit 2", "result 1", "result 2",
    ]  # fmt: skip


def test_without_a_waiting_picture_each_is_collected_at_once() -> None:
    assert stage_log(waiting=False, submit_s=0.0) == ONE_BY_ONE


def test_an_engine_that_works_within_submit_is_not_overlapped() -> None:
    assert stage_log(waiting=True, submit_s=0.05) == ONE_BY_ONE


class LateEngine(FakeEngine):
    """Paints the picture of two submits ago, and none before."""

    def __init__(self) -> None:
        super().__init__()
        self._given: list[Pixels] = []

    def submit(self, pixels: Pixels) -> FakePending:
        self._given.append(pixels)
        if len(self._given) < 3:
            return FakePending(self._never, delay=None)
        pending = super().submit(self._given[-3])
        pending.delay = 2
        return pending

    def _never(self) -> Pixels:
        raise AssertionError("no picture has come out yet")


def late_results(times_s: Iterable[float]) -> list[tuple[Finished, float]]:
    """What a late engine makes of pictures captured at these times, and each one's time from submit to result."""
    clock, engine = ManualClock(), LateEngine()
    wires = stages._Wires(stop=threading.Event(), clock=clock)
    stage = stages._EngineStage(Bench().parts(clock), SIZE, FAST.stale_s, wires)
    results = []
    for index, time_s in enumerate(times_s):
        clock.time_s = time_s
        stage._deliver(stage._submit(engine, replace(raw_frame(index), captured_s=time_s)))
        if finished := wires.finished.take(timeout_s=0):
            results.append((finished, wires.meter._call_ms.recent().p99))
    return results


def test_a_picture_keeps_its_own_time_of_capture_through_a_late_engine():
    results = late_results([1.0, 1.1, 1.2, 1.3])
    assert [finished.frame.index for finished, _ in results] == [0, 1]
    assert [finished.frame.captured_s for finished, _ in results] == [1.0, 1.1]
    assert [int(finished.frame.pixels[0, 0, 0]) for finished, _ in results] == [255, 254]
    assert results[0][1] == pytest.approx(200.0, rel=0.02)


def test_what_was_on_its_way_before_a_pause_is_not_shown_after_it():
    results = late_results([1.0, 1.1, 1.2, 30.0, 30.1, 30.2])
    assert [finished.frame.index for finished, _ in results] == [0, 3]
