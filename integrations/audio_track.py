"""The sound of one file carried into another: copied as it is, or re-encoded to AAC where the container cannot hold it.

Times are seconds from the start of the source's video track, so sound and pictures stay together.
"""

from collections.abc import Generator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instantvision.integrations.video_reader import decoded, intact_packets, open_input, track_start_s

if TYPE_CHECKING:
    import av
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer

# What players understand in these containers; Matroska holds everything.
COPIED = {
    "mp4": frozenset({"aac", "mp3", "ac3", "eac3", "alac", "opus"}),
    "mov": frozenset({"aac", "mp3", "ac3", "eac3", "alac", "pcm_s16le", "pcm_s24le"}),
}
# Encoded sound starts with a run-in that players skip; anything earlier than that belongs to no picture.
RUN_IN_S = Fraction(1, 10)


class AudioTrack:
    """The first sound track of `source`, on its way into `output`, in step with the pictures.

    Args:
        source: open file with at least one sound track; closed by close().
        output: container that is being written, before its first packet.

    Raises:
        av.FFmpegError: from any method, if a file cannot be read or written.
    """

    def __init__(self, source: "InputContainer", output: "OutputContainer") -> None:
        self._source, self._output = source, output
        self._from: AudioStream = source.streams.audio[0]
        self._start_s = track_start_s(source)
        copied = COPIED.get(output.format.name, output.supported_codecs)
        packets = self._copied() if self._from.codec_context.name in copied else self._encoded()
        # The first step adds the stream to the output, which must happen before anything is written.
        self._packets = packets
        self._waiting = next(packets, None)

    def write_until(self, end_s: Fraction) -> None:
        """Write the packets that begin before `end_s`."""
        while self._waiting is not None and self._begin_s(self._waiting) < end_s:
            self._output.mux(self._waiting)
            self._waiting = next(self._packets, None)

    def close(self) -> None:
        """Release the source; may be called twice."""
        self._packets.close()
        self._source.close()

    @staticmethod
    def _begin_s(packet: "av.Packet[Any]") -> Fraction:
        stamp = packet.dts if packet.pts is None else packet.pts
        return Fraction(0) if stamp is None else stamp * packet.time_base

    def _shifted(self, time_base: Fraction) -> int:
        """The start of the pictures in ticks of `time_base`."""
        return round(self._start_s / time_base)

    def _copied(self) -> Generator["av.Packet[Any]"]:
        target = self._output.add_stream_from_template(self._from)
        for packet in intact_packets(self._source, self._from):
            if packet.dts is None or packet.pts is None:
                continue
            shift = self._shifted(packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = target
            if self._begin_s(packet) >= -RUN_IN_S:
                yield packet

    def _encoded(self) -> Generator["av.Packet[Any]"]:
        import av

        rate_hz = self._from.codec_context.sample_rate
        target = self._output.add_stream("aac", rate=rate_hz, layout="stereo")
        resampler = av.AudioResampler(format="fltp", layout="stereo", rate=rate_hz, frame_size=1024)
        for packet in intact_packets(self._source, self._from):
            for frame in decoded(packet) or ():
                frame.pts -= self._shifted(frame.time_base)
                if frame.pts * frame.time_base < -RUN_IN_S:
                    continue
                for piece in resampler.resample(frame):
                    yield from target.encode(piece)
        for piece in resampler.resample(None):
            yield from target.encode(piece)
        yield from target.encode(None)


def open_track(path: Path, output: "OutputContainer") -> AudioTrack | None:
    """The sound of `path` on its way into `output`; None if it has none.

    Raises:
        SourceError: the file cannot be opened.
    """
    source = open_input(path)
    if not source.streams.audio:
        source.close()
        return None
    return AudioTrack(source, output)
