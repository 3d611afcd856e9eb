"""Video files, written under a hidden name beside the target and renamed when they are complete.

H.264 in mp4, mov or mkv, 4:2:0, tagged BT.709. Knows nothing of frames' origins: VideoFileSink guards a live run.
"""

import os
import uuid
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from instantvision.integrations.audio_track import AudioTrack, open_track
from instantvision.pipeline.config import Size
from instantvision.pipeline.errors import SinkError
from instantvision.pipeline.frames import Pixels

if TYPE_CHECKING:
    from av.container import OutputContainer

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
Effort = Literal["offline", "live"]

# Constant quality that is hard to tell from the input; live encoding must not take time from the engine.
X264 = {
    "offline": {"crf": "18", "preset": "medium"},
    "live": {"crf": "18", "preset": "superfast", "tune": "zerolatency"},
}
# Builds of FFmpeg without x264 always have this one; 2 to 5 is its visually lossless range of quantisers.
FALLBACK_OPTIONS = {"qmin": "2", "qmax": "5"}
FALLBACK_BIT_RATE = 20_000_000
# Ticks a second at least: pictures off the grid of the rate are placed to a tenth of a millisecond.
TICKS_HZ = 10_000
# Largest denominator of a time base in MPEG-4 part 2.
TICKS_MAX_HZ = 65_535
BT709, LIMITED_RANGE = 1, 1


class VideoWriter:
    """A video file being written; a context manager that finishes it, or removes it after any exception.

    Args:
        path: target; its ending chooses the container, one of FORMATS.
        size: of every picture.
        fps: rate, kept exactly if it is a Fraction.
        audio_from: a file whose sound is carried over, cut to the length of the pictures.
        effort: `offline` compresses better, `live` costs less time a picture.

    Raises:
        SinkError: the folder does not exist or cannot be written, or the ending is unknown.
        SourceError: `audio_from` cannot be opened.
    """

    def __init__(
        self,
        path: str | Path,
        size: Size,
        fps: Fraction | float,
        *,
        audio_from: str | Path | None = None,
        effort: Effort = "offline",
    ) -> None:
        self.path = Path(path)
        check_target(self.path, audio_from)
        self._size, self._fps = size, Fraction(fps).limit_denominator(TICKS_HZ)
        self._ticks_hz = ticks_hz(self._fps)
        self._last_tick = -1
        self._partial = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:8]}.part")
        self._audio: AudioTrack | None = None
        self._container = self._create(effort)
        self._open = True
        try:
            self._begin(effort, audio_from)
        except BaseException:
            # Whatever went wrong, Ctrl-C included: nothing half-written may stay.
            self.abort()
            raise

    def write(self, pixels: Pixels, pts_s: Fraction | None = None) -> None:
        """Append a picture.

        Args:
            pixels: RGB uint8 [H, W, 3] of the writer's size.
            pts_s: when it is shown, seconds from the start; None: one frame time after the one before.

        Raises:
            ValueError: of another size, or the file is finished.
            SinkError: the disk is full or gone.
        """
        import av

        height, width = pixels.shape[:2]
        if (width, height) != (self._size.width, self._size.height):
            raise ValueError(f"picture is {width}x{height}, expected {self._size}")
        if not self._open:
            raise ValueError(f"{self.path} is finished: write before finish() or abort()")
        tick = self._next_tick(pts_s)
        try:
            self._encode(pixels, tick)
            if self._audio is not None:
                self._audio.write_until(self._end_s())
        except (av.FFmpegError, OSError) as error:
            raise SinkError(self._failed(error.strerror)) from error

    def finish(self) -> None:
        """Complete the file and give it its name; may be called twice.

        Raises:
            SinkError: nothing was written to it, or the disk is full or gone; nothing is left then.
        """
        import av

        if not self._open:
            return
        if self._last_tick < 0:
            self.abort()
            raise SinkError(f"{self.path} was not written: there was no picture for it")
        try:
            self._container.mux(self._stream.encode(None))
            if self._audio is not None:
                self._audio.close()
            self._container.close()
            os.replace(self._partial, self.path)
        except (av.FFmpegError, OSError) as error:
            self.abort()
            raise SinkError(self._failed(error.strerror)) from error
        except BaseException:
            # Ctrl-C while the index is written: nothing half-written may stay.
            self.abort()
            raise
        self._open = False

    def abort(self) -> None:
        """Remove what was written; never raises, may be called twice."""
        import av

        if not self._open:
            return
        self._open = False
        if self._audio is not None:
            self._audio.close()
        # The file is thrown away: that its end cannot be written does not matter.
        with suppress(av.FFmpegError, OSError, ValueError):
            self._container.close()
        with suppress(OSError):
            self._partial.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        else:
            self.abort()

    def _create(self, effort: Effort) -> "OutputContainer":
        import av

        format_name = FORMATS[self.path.suffix.lower()]
        # An index at the head lets a file play while it loads. It costs writing the file twice: not after a live run.
        fast_start = effort == "offline" and format_name != "matroska"
        options = {"movflags": "+faststart"} if fast_start else {}
        return av.open(str(self._partial), "w", format=format_name, options=options)

    def _begin(self, effort: Effort, audio_from: str | Path | None) -> None:
        """Add the tracks and write the head of the file: a folder that may not be written shows here."""
        import av

        self._add_video(effort)
        if audio_from is not None:
            self._audio = open_track(Path(audio_from), self._container)
        try:
            self._container.start_encoding()
        except (av.FFmpegError, OSError) as error:
            raise SinkError(
                f"{self.path} cannot be written ({error.strerror}): choose another folder"
            ) from error

    def _add_video(self, effort: Effort) -> None:
        import av

        if "libx264" in av.codecs_available:
            stream = self._container.add_stream("libx264", rate=self._fps, options=dict(X264[effort]))
        else:
            stream = self._container.add_stream("mpeg4", rate=self._fps, options=dict(FALLBACK_OPTIONS))
            stream.bit_rate = FALLBACK_BIT_RATE
        stream.width, stream.height, stream.pix_fmt = self._size.width, self._size.height, "yuv420p"
        codec = stream.codec_context
        codec.time_base = Fraction(1, self._ticks_hz)
        codec.colorspace = codec.color_primaries = codec.color_trc = BT709
        codec.color_range = LIMITED_RANGE
        self._stream = stream

    def _encode(self, pixels: Pixels, tick: int) -> None:
        import av
        from av.video.reformatter import ColorRange, Colorspace

        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
        )
        frame.pts, frame.time_base = tick, Fraction(1, self._ticks_hz)
        self._container.mux(self._stream.encode(frame))

    def _next_tick(self, pts_s: Fraction | None) -> int:
        """Where the next picture goes; always after the one before."""
        step = self._ticks_hz / self._fps
        wanted = self._last_tick + step if pts_s is None else pts_s * self._ticks_hz
        first = self._last_tick < 0
        self._last_tick = 0 if first and pts_s is None else max(round(wanted), self._last_tick + 1)
        return self._last_tick

    def _end_s(self) -> Fraction:
        return Fraction(self._last_tick, self._ticks_hz) + 1 / self._fps

    def _failed(self, reason: str | None) -> str:
        return f"{self.path} could not be written ({reason}): free some space, or choose another folder"


def check_target(path: Path, source: str | Path | None = None) -> None:
    """Whether a video may be written at `path`, made from `source`.

    Raises:
        SinkError: unknown ending, no such folder, a folder of that name, or the source itself.
    """
    if path.suffix.lower() not in FORMATS:
        raise SinkError(f"{path} ends in {path.suffix or 'nothing'!r}, expected {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise SinkError(f"the folder {path.parent} does not exist: create it with mkdir -p {path.parent}")
    if path.is_dir():
        raise SinkError(f"{path} is a folder: name a file in it")
    if source is not None and path.exists() and Path(source).exists() and path.samefile(source):
        raise SinkError(f"{path} is also the input: choose another name for the output")


def ticks_hz(fps: Fraction) -> int:
    """Ticks a second of a file's clock: a multiple of the rate's numerator, so that n / fps is a whole one."""
    hz = fps.numerator
    while hz < TICKS_HZ:
        hz *= 2
    return hz if hz <= TICKS_MAX_HZ else TICKS_MAX_HZ
