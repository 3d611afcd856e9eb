"""The live loop: a capture thread, an engine thread and an output thread, with one slot between each two.

The only file that starts threads. Knows the engine by its few methods only, and nothing of torch.

    Source.read ─► Latest[Frame] ─► engine ─► Latest[Finished] ─► Playout ─► Sink.send
         └─► Latest[Frame] of origin CAMERA, while and only while Control shows the camera ─┘

Slots keep the newest picture only, so no stage is ever behind. All threads share one stop event; an error in one
of them sets it, and is raised again in the thread that called run_live.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from instantvision.integrations.base import EndOfSource, Sink, Source
from instantvision.integrations.clock import SYSTEM_CLOCK, Clock
from instantvision.pipeline.config import STEPS_MAX, LiveConfig, Settings, Size
from instantvision.pipeline.control import Control, Show
from instantvision.pipeline.errors import ConfigError, EngineError
from instantvision.pipeline.fitting import fit
from instantvision.pipeline.frames import Closed, Frame, Latest, Origin, Pixels
from instantvision.pipeline.meter import LiveStats, Meter, Surroundings
from instantvision.pipeline.pacing import Finished
from instantvision.pipeline.playout import Playout
from instantvision.pipeline.preview import Preview

log = logging.getLogger(__name__)

# How long a thread may wait for a picture before it looks at the stop event again.
POLL_S = 0.1
# A submit that takes longer has done the work itself, as an engine on a CPU does: to start the next picture before
# this one is handed on would only delay it.
SYNCHRONOUS_S = 0.005
# Ctrl-C has to end within a second, the sink's closing included; a normal end lets a slow engine finish its picture.
HURRIED_JOIN_S, PATIENT_JOIN_S = 0.7, 10.0


class Pending(Protocol):
    """A picture in the making; pipeline.engine.Pending is one."""

    @property
    def device_ms(self) -> float | None:
        """Device time, known after result()."""

    @property
    def steps(self) -> int:
        """Evaluations of the denoiser."""

    @property
    def delay(self) -> int | None:
        """How many submits ago the picture went in; None if no picture comes out."""

    def wait(self) -> None:
        """Wait until the device is done with it."""

    def result(self) -> Pixels:
        """The picture, freshly allocated; waits for it."""


class FrameEngine(Protocol):
    """What the live loop needs of pipeline.engine.Engine; used by one thread."""

    @property
    def settings(self) -> Settings:
        """What the next picture is made with."""

    def update(self, settings: Settings) -> None:
        """Use other settings from the next submit on."""

    def submit(self, pixels: Pixels) -> Pending:
        """Begin a picture; two may be in the making."""

    def close(self) -> None:
        """Release the device."""


@dataclass(frozen=True, kw_only=True)
class LiveParts:
    """What a live run is put together from.

    Args:
        source, sink: not yet opened.
        make_engine: called in the engine's thread, while the slate is already showing.
        control: what the user wants; read between two pictures by the engine, at every tick by the output.
        on_stats: called about once a second, and at the very end even if that is an error.
        preview: is offered pictures before and after.
        clock: of the same origin as Frame.captured_s, and the control's.
    """

    source: Source
    sink: Sink
    make_engine: Callable[[], FrameEngine]
    control: Control
    on_stats: Callable[[LiveStats], None]
    preview: Preview = field(default_factory=Preview)
    clock: Clock = SYSTEM_CLOCK


def run_live(parts: LiveParts, size: Size, config: LiveConfig, stop: threading.Event) -> LiveStats:
    """Run until `stop` is set, the duration is over, the source ends or a stage fails.

    Args:
        parts: the stages; source and sink are opened and closed here.
        size: of the output, the same whatever the settings' size becomes; pictures of another size get bars.
        config: pace and end.
        stop: ends the run within a second; is set when this returns.

    Returns:
        The figures of the whole run.

    Raises:
        InstantVisionError: of the stage that failed first.
    """
    run = _Run(parts, size, config, stop)
    with ExitStack() as stack:
        stack.callback(parts.source.close)
        parts.source.open()
        stack.callback(parts.sink.close)
        parts.sink.open(size, config.fps)
        stack.callback(run.report)
        stack.callback(run.end)
        run.play()
    if run.errors:
        raise run.errors[0]
    return run.stats()


@dataclass(frozen=True, kw_only=True)
class _Wires:
    """What the first two stages share."""

    stop: threading.Event
    clock: Clock
    raw: Latest[Frame] = field(default_factory=Latest)
    finished: Latest[Finished] = field(default_factory=Latest)
    meter: Meter = field(default_factory=Meter)


class _Run:
    """The three threads of one run."""

    def __init__(self, parts: LiveParts, size: Size, config: LiveConfig, stop: threading.Event) -> None:
        self._parts, self._size, self._config, self._stop = parts, size, config, stop
        self._wires = _Wires(stop=stop, clock=parts.clock)
        self._engine = _EngineStage(parts, size, config.stale_s, self._wires)
        self._playout = Playout(parts.sink, size, config, self._wires.meter, parts.clock, parts.control)
        self._capture = _Capture(
            parts.source, self._wires, _Bypass(parts.control, size, self._playout.camera)
        )
        self._threads: list[threading.Thread] = []
        self.errors: list[BaseException] = []

    def play(self) -> None:
        """Start everything and wait for the output to end."""
        # The output first: its slate shows while the others begin.
        output = self._start("output", self._output)
        self._start("capture", self._capture.run, self._wires.raw.close)
        self._start("engine", self._engine.run, self._wires.finished.close)
        # Not stop.wait(): a signal handler that sets the event while this thread holds its lock would wait forever.
        while output.is_alive():
            output.join(POLL_S)

    def end(self) -> None:
        """Stop the threads and wait for them, not much longer than a person who pressed Ctrl-C would."""
        patience_s = HURRIED_JOIN_S if self._stop.is_set() else PATIENT_JOIN_S
        self._stop.set()
        self._wires.raw.close()
        self._wires.finished.close()
        deadline_s = self._parts.clock.now_s() + patience_s
        for thread in self._threads:
            thread.join(max(deadline_s - self._parts.clock.now_s(), 0.0))
            if thread.is_alive():
                log.warning(
                    "the %s thread has not ended after %.1f s and is left behind", thread.name, patience_s
                )

    def report(self) -> None:
        """Tell the figures so far."""
        self._parts.on_stats(self.stats())

    def stats(self) -> LiveStats:
        """The figures so far."""
        around = Surroundings(
            source=self._parts.source.name,
            sink=self._parts.sink.name,
            size=self._size,
            settings=self._engine.settings,
            status=self._parts.source.status,
            dropped_capture=self._engine.dropped_capture,
            dropped_engine=self._wires.finished.dropped,
            threads_left=sum(thread.is_alive() for thread in self._threads) if self._stop.is_set() else 0,
        )
        return self._wires.meter.stats(self._parts.clock.now_s(), around)

    def _output(self) -> None:
        self._playout.run(self._wires.finished, self._stop, self._why, self.report)
        if self.errors:
            # Whoever goes on showing the last picture shows this one, not a face frozen in mid-word.
            self._playout.show_slate(f"Stopped: {self.errors[0]}")

    def _why(self) -> str:
        """Why there is no stylised picture."""
        source = self._parts.source
        if self._engine.settings is None:
            return "Starting: loading the model"
        if self._parts.clock.now_s() - self._capture.last_s > self._config.stale_s or source.status:
            return f"Waiting for {source.name}" + (f": {source.status}" if source.status else "")
        if not self._engine.delivered:
            return "Starting: the first picture"
        return f"Engine: no picture for {self._config.stale_s:g} s"

    def _start(
        self, name: str, work: Callable[[], None], afterwards: Callable[[], None] = lambda: None
    ) -> threading.Thread:
        # Daemons, so that an engine stuck in a driver cannot keep the program from ending.
        thread = threading.Thread(target=self._guarded, args=(work, afterwards), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _guarded(self, work: Callable[[], None], afterwards: Callable[[], None]) -> None:
        try:
            work()
        # Everything, to be raised again by run_live: a thread's own traceback would reach nobody.
        except BaseException as error:  # noqa: BLE001
            self.errors.append(error)
            self._stop.set()
        finally:
            afterwards()


class _Capture:
    """Source to first slot."""

    def __init__(self, source: Source, wires: _Wires, bypass: "_Bypass") -> None:
        self._source, self._wires, self._bypass = source, wires, bypass
        self.last_s = wires.clock.now_s()

    def run(self) -> None:
        """Until the stop event or the end of the source."""
        while not self._wires.stop.is_set():
            try:
                frame = self._source.read(POLL_S)
            except EndOfSource:
                return
            if frame is not None:
                self.last_s = frame.captured_s
                self._wires.meter.captured(frame.captured_s)
                self._bypass.offer(frame)
                self._wires.raw.put(frame)


class _Bypass:
    """The one way from the camera to the sink around the engine, open while the user shows the camera."""

    def __init__(self, control: Control, size: Size, camera: Latest[Frame]) -> None:
        self._control, self._size, self._camera = control, size, camera

    def offer(self, raw: Frame) -> None:
        """Pass a raw picture on, or not; the output looks once more at what is wanted before it shows it."""
        state = self._control.state
        if state.show is not Show.CAMERA:
            return
        pixels = fit(raw.pixels, self._size, state.settings.fit)
        pixels = np.ascontiguousarray(pixels[:, ::-1]) if state.settings.mirror else pixels
        self._camera.put(replace(raw, pixels=pixels, origin=Origin.CAMERA))


@dataclass(frozen=True, kw_only=True)
class _Submitted:
    """A picture that the engine was given."""

    raw: Frame
    at_s: float


@dataclass(frozen=True, kw_only=True)
class _InFlight:
    """What the engine is working on; `shows` is the picture that comes out, or None."""

    pending: Pending
    shows: _Submitted | None
    submit_s: float


class _EngineStage:
    """First slot to second slot."""

    def __init__(self, parts: LiveParts, size: Size, stale_s: float, wires: _Wires) -> None:
        self._make_engine, self._control, self._preview = parts.make_engine, parts.control, parts.preview
        self._size, self._stale_s, self._wires = size, stale_s, wires
        # Newest first; an engine has at most a frame on its way for each step.
        self._submitted: deque[_Submitted] = deque(maxlen=STEPS_MAX)
        self._asked: Settings | None = None
        self._dropped_while_loading = 0
        self.settings: Settings | None = None
        self.delivered = 0

    @property
    def dropped_capture(self) -> int:
        """Raw pictures replaced unseen, without those that came while the engine was loading."""
        return self._wires.raw.dropped - self._dropped_while_loading if self.settings else 0

    def run(self) -> None:
        """Build the engine, then stylise until the stop event, or until the first slot is closed and empty."""
        try:
            self._run()
        # Everything a device may do; raised again as soon as the engine is wanted.
        except Exception as error:
            self._outlast(error)
            raise

    def _outlast(self, error: Exception) -> None:
        """Keep the run going without an engine for as long as what is on air, such as the last look, needs none."""
        if self._is_wanted():
            return
        log.error("the engine is lost (%s): what is on air stays until you go back to the effect", error)
        try:
            while not self._is_wanted():
                self._wires.raw.take(POLL_S)
        except Closed:
            return

    def _is_wanted(self) -> bool:
        return self._control.state.show is Show.EFFECT or self._wires.stop.is_set()

    def _run(self) -> None:
        engine = self._make_engine()
        try:
            self._dropped_while_loading = self._wires.raw.dropped
            self.settings = self._asked = engine.settings
            self._stylise(engine)
        finally:
            engine.close()

    def _stylise(self, engine: FrameEngine) -> None:
        """Two pictures in the making while pictures wait, otherwise each is collected as soon as it is ready."""
        in_flight: _InFlight | None = None
        while not self._wires.stop.is_set():
            try:
                raw = self._wires.raw.take(timeout_s=0 if in_flight else POLL_S)
            except Closed:
                break
            # After the wait: what was changed meanwhile is in this picture, not in the next.
            self._refresh_settings(engine)
            # The last look stays without any work; the pictures that come meanwhile are let go.
            resting = self._control.state.show is Show.LAST_LOOK
            submitted = self._submit(engine, raw) if raw and not resting else None
            if in_flight:
                self._deliver(in_flight)
            in_flight = submitted
            if in_flight and in_flight.submit_s > SYNCHRONOUS_S:
                self._deliver(in_flight)
                in_flight = None
        if in_flight and not self._wires.stop.is_set():
            self._deliver(in_flight)

    def _refresh_settings(self, engine: FrameEngine) -> None:
        settings = self._control.settings_now(self._wires.clock.now_s())
        # Compared with what was asked and not with what is used: a refusal is not asked for again every picture.
        if settings == self._asked:
            return
        self._asked = settings
        try:
            engine.update(settings)
        except (ConfigError, EngineError) as error:
            # A slip at the controls, or a size beyond the device's memory, must not end the show.
            log.warning("kept the settings as they were: %s", error)
        self.settings = engine.settings

    def _submit(self, engine: FrameEngine, raw: Frame) -> _InFlight:
        submitted, at_s = self._submitted, self._wires.clock.now_s()
        if submitted and at_s - submitted[0].at_s > self._stale_s:
            # What is on its way from before a pause would be shown as if it were now.
            submitted.clear()
        submitted.appendleft(_Submitted(raw=raw, at_s=at_s))
        pending = engine.submit(raw.pixels)
        delay = pending.delay
        shows = submitted[delay] if delay is not None and delay < len(submitted) else None
        return _InFlight(pending=pending, shows=shows, submit_s=self._wires.clock.now_s() - at_s)

    def _deliver(self, work: _InFlight) -> None:
        if work.shows is None:
            work.pending.wait()
            return
        raw, pixels = work.shows.raw, work.pending.result()
        now_s = self._wires.clock.now_s()
        call_ms = (now_s - work.shows.at_s) * 1e3
        self._wires.meter.finished(now_s, call_ms, work.pending.device_ms, work.pending.steps)
        frame = Frame(
            pixels=fit(pixels, self._size, "letterbox"),
            index=raw.index,
            captured_s=raw.captured_s,
            origin=Origin.STYLISED,
        )
        self._preview.offer(raw.pixels, frame.pixels)
        self._wires.finished.put(Finished(frame=frame, finished_s=self._wires.clock.now_s()))
        self.delivered += 1
