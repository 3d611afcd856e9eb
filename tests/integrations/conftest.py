"""A clock that only moves when somebody waits, and small video files."""

import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from instantvision.integrations.devices import Device, is_own, list_cameras, list_virtual_cameras, matching
from instantvision.pipeline.frames import Frame, Origin

RED = (200, 40, 40)


class ManualClock:
    """Time stands still but for the waits, which take no time at all; `waits` lists them in seconds."""

    def __init__(self) -> None:
        self.time_s = 1000.0
        self.waits: list[float] = []
        self.on_wait: Callable[[], None] | None = None

    def now_s(self) -> float:
        return self.time_s

    def wait(self, stop: threading.Event, timeout_s: float) -> bool:
        self.waits.append(timeout_s)
        if self.on_wait is not None:
            self.on_wait()
        if not stop.is_set():
            self.time_s += max(timeout_s, 0.0)
        return stop.is_set()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def make_frame() -> Callable[..., Frame]:
    def make(
        width: int = 64, height: int = 64, origin: Origin = Origin.STYLISED, rgb: tuple[int, int, int] = RED
    ) -> Frame:
        pixels = np.full((height, width, 3), rgb, dtype=np.uint8)
        return Frame(pixels=pixels, index=0, captured_s=0.0, origin=origin)

    return make


@pytest.fixture
def make_clip(tmp_path: Path) -> Callable[..., Path]:
    """A clip made by PyAV alone, not by the writer under test: picture n is a grey of 16 n, sound is a 440 Hz tone."""

    def make(
        name: str = "clip.mkv",
        *,
        frames: int = 8,
        fps: Fraction = Fraction(30),
        size: tuple[int, int] = (64, 48),
        codec: str = "libx264",
        pix_fmt: str = "yuv420p",
        times_s: list[Fraction] | None = None,
        audio: str | None = None,
        audio_s: float = 1.0,
        audio_delay_s: float = 0.0,
        rotate: int = 0,
        halves: bool = False,
    ) -> Path:
        path = tmp_path / name
        with av.open(str(path), "w") as out:
            video = out.add_stream(codec, rate=fps)
            video.width, video.height, video.pix_fmt = *size, pix_fmt
            video.codec_context.time_base = Fraction(1, 30000) if times_s else 1 / fps
            if rotate and not hasattr(video, "set_display_rotation"):
                pytest.skip("this PyAV reads rotations but cannot write one")
            if rotate:
                video.set_display_rotation(rotate)
            sound = out.add_stream(audio, rate=48000, layout="mono") if audio else None
            for index in range(frames):
                picture = np.full((size[1], size[0], 3), min(index * 16, 255), dtype=np.uint8)
                if halves:
                    picture[: size[1] // 2] = 255
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts = round(times_s[index] * 30000) if times_s else index
                frame.time_base = video.codec_context.time_base
                out.mux(video.encode(frame))
            out.mux(video.encode(None))
            if sound is not None:
                _add_tone(out, sound, audio_s, audio_delay_s)
        return path

    return make


@pytest.fixture
def webcam() -> Device:
    """A real device: the webcam of the kernel's test driver."""
    found = matching("vivid", list_cameras())
    if not found:
        pytest.skip(
            "no webcam of the vivid driver: modprobe vivid n_devs=1 node_types=0x1 num_inputs=1 input_types=0x0"
        )
    return found[0]


@pytest.fixture
def loopback() -> Device:
    """A real device: our virtual camera."""
    found = [each for each in list_virtual_cameras() if is_own(each.name)]
    if not found:
        pytest.skip(
            'no virtual camera: modprobe v4l2loopback devices=1 exclusive_caps=1 card_label="Instant Vision"'
        )
    return found[0]


def _add_tone(
    out: av.container.OutputContainer, sound: av.AudioStream, length_s: float, delay_s: float
) -> None:
    samples = 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(48000 * length_s)) / 48000)
    formats = {"aac": "fltp", "pcm_s16le": "s16", "mp2": "s16"}
    resampler = av.AudioResampler(
        format=formats[sound.codec_context.name], layout="mono", rate=48000, frame_size=1152
    )
    frame = av.AudioFrame.from_ndarray((samples * 32767).astype(np.int16)[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = 48000, round(delay_s * 48000), Fraction(1, 48000)
    for piece in [*resampler.resample(frame), *resampler.resample(None)]:
        out.mux(sound.encode(piece))
    out.mux(sound.encode(None))
