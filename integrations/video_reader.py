"""Video files, picture by picture, with the times they are shown at.

Knows nothing of clocks or of live play: `render` reads as fast as it can, VideoFileSource puts the clock to it.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from instantvision.pipeline.errors import SourceError
from instantvision.pipeline.frames import Pixels

if TYPE_CHECKING:
    import av
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.video.stream import VideoStream

# For files that do not tell their rate.
FALLBACK_FPS = Fraction(25)
# Files without colour tags: the smallest height that is by convention BT.709; smaller pictures are BT.601.
HD_HEIGHT_PX = 720
COLORSPACE_UNSPECIFIED = 2
# FFmpeg plays text files as the output of an old terminal.
NO_VIDEO_FORMATS = frozenset({"tty"})


@dataclass(frozen=True, kw_only=True)
class AudioInfo:
    """The audio track of a clip: codec name, samples a second, channels."""

    codec: str
    rate_hz: int
    channels: int


@dataclass(frozen=True, kw_only=True)
class ClipFrame:
    """One picture of a file.

    Args:
        pixels: RGB uint8 [H, W, 3], upright.
        index: running number from 0.
        pts_s: when it is shown, in seconds from the start of the video track; index / fps in a file of constant rate.
    """

    pixels: Pixels
    index: int
    pts_s: Fraction


class VideoReader:
    """An open video file; a context manager. Iterating decodes it once, from the beginning to the end.

    `width`, `height` are those of the upright picture; `frame_count` is the container's own figure or an estimate, None
    if unknown; `damaged` counts pieces that could not be decoded and were left out.

    Raises:
        SourceError: no such file, not a video, or no picture in it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._container = open_input(self.path)
        stream = _moving_pictures(self._container)
        if stream is None:
            self._container.close()
            raise SourceError(f"{self.path} has no video, only sound or data: choose a video file")
        self._stream = stream
        stream.thread_type = "AUTO"
        self.fps = Fraction(stream.average_rate or stream.guessed_rate or FALLBACK_FPS)
        self.duration_s = _duration_s(self._container, stream)
        self.frame_count = stream.frames or (
            None if self.duration_s is None else round(self.duration_s * self.fps)
        )
        self.audio = _audio_info(self._container)
        self.damaged = 0
        self._decoded = self._decode()
        self._first = self._take_first()
        self.height, self.width = self._first.pixels.shape[:2]

    def __iter__(self) -> Iterator[ClipFrame]:
        yield self._first
        yield from self._decoded

    def close(self) -> None:
        """Release the file; may be called twice."""
        self._decoded.close()
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take_first(self) -> ClipFrame:
        """Decode one picture at once: only that tells the upright size, and whether there is anything to see."""
        first = next(self._decoded, None)
        if first is None:
            self.close()
            raise SourceError(f"{self.path} has no picture that can be decoded: choose another file")
        return first

    def _decode(self) -> Generator[ClipFrame]:
        index, start_s = 0, track_start_s(self._container)
        for packet in intact_packets(self._container, self._stream):
            frames = decoded(packet)
            self.damaged += frames is None
            for frame in frames or ():
                moment_s = (
                    index / self.fps if frame.pts is None else frame.pts * Fraction(frame.time_base) - start_s
                )
                yield ClipFrame(pixels=_upright_rgb(frame), index=index, pts_s=self._snapped(moment_s))
                index += 1

    def _snapped(self, moment_s: Fraction) -> Fraction:
        """The nearest multiple of the frame time, if it is within the rounding of the container's ticks."""
        exact = round(moment_s * self.fps) / self.fps
        return exact if abs(exact - moment_s) <= Fraction(self._stream.time_base or 0) else moment_s


def open_input(path: Path) -> "InputContainer":
    """Open a media file for reading.

    Raises:
        SourceError: it does not exist, may not be read, or is no media file.
    """
    import av

    if path.is_dir():
        raise SourceError(f"{path} is a folder: choose a video file in it")
    try:
        container = av.open(str(path), metadata_errors="replace")
    except FileNotFoundError:
        raise SourceError(f"{path} does not exist: check the path") from None
    except PermissionError:
        raise SourceError(f"{path} may not be read by this user: change its permissions") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise SourceError(
            f"{path} is not a video that can be read ({_reason(error)}): choose a video file"
        ) from error
    if container.format.name in NO_VIDEO_FORMATS:
        container.close()
        raise SourceError(f"{path} is not a video but a text: choose a video file")
    return container


def _moving_pictures(container: "InputContainer") -> "VideoStream | None":
    """The first video track; the cover of a piece of music is none."""
    from av.stream import Disposition

    tracks = container.streams.video
    return next((track for track in tracks if not track.disposition & Disposition.attached_pic), None)


def intact_packets(
    container: "InputContainer", stream: "VideoStream | AudioStream"
) -> Iterator["av.Packet[Any]"]:
    """The packets of one track; a file that is cut off simply ends there."""
    import av

    try:
        yield from container.demux(stream)
    except av.FFmpegError:
        # The empty packet that demux ends with otherwise: it fetches what the decoder still holds.
        last: av.Packet[Any] = av.Packet()
        last.stream = stream
        yield last


def decoded(packet: "av.Packet[Any]") -> list[Any] | None:
    """The frames a packet completes; None if it is damaged."""
    import av

    try:
        return list(packet.decode())
    except av.FFmpegError:
        return None


def track_start_s(container: "InputContainer") -> Fraction:
    """The moment that counts as 0: where the video track starts, or the sound where there is no video."""
    for stream in (*container.streams.video[:1], *container.streams.audio[:1]):
        if stream.start_time is not None and stream.time_base is not None:
            return stream.start_time * stream.time_base
    return Fraction(0)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _duration_s(container: "InputContainer", stream: "VideoStream") -> float | None:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    # Containers count in microseconds.
    return None if container.duration is None else container.duration / 1e6


def _audio_info(container: "InputContainer") -> AudioInfo | None:
    if not container.streams.audio:
        return None
    codec = container.streams.audio[0].codec_context
    return AudioInfo(codec=codec.name, rate_hz=codec.sample_rate, channels=codec.layout.nb_channels)


def _upright_rgb(frame: "av.VideoFrame") -> Pixels:
    from av.video.reformatter import ColorRange, Colorspace

    options: dict[str, Any] = {"dst_color_range": ColorRange.JPEG}
    if frame.colorspace == COLORSPACE_UNSPECIFIED:
        options["src_colorspace"] = Colorspace.ITU709 if frame.height >= HD_HEIGHT_PX else Colorspace.ITU601
    pixels: Pixels = frame.to_ndarray(format="rgb24", **options).astype(np.uint8, copy=False)
    # Phones store the sensor's picture and the angle to turn it by, counter-clockwise.
    quarters = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, quarters)) if quarters else pixels
