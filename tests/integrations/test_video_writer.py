import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from instantvision.integrations import audio_track
from instantvision.integrations.video_reader import VideoReader
from instantvision.integrations.video_writer import VideoWriter, ticks_hz
from instantvision.pipeline.config import Size
from instantvision.pipeline.errors import SinkError, SourceError
from instantvision.pipeline.frames import Pixels

MakeClip = Callable[..., Path]
SIZE = Size(64, 64)


def grey(level: int) -> Pixels:
    return np.full((64, 64, 3), level, dtype=np.uint8)


def copy(source: Path, target: Path, frames: int | None = None) -> None:
    """What `render` does, without a model."""
    with VideoReader(source) as clip, VideoWriter(target, SIZE, clip.fps, audio_from=source) as out:
        for frame in clip:
            if frames is not None and frame.index == frames:
                break
            out.write(grey(frame.index * 10), frame.pts_s)


def sound_of(path: Path) -> tuple[float, np.ndarray]:
    """Moment of the first sample in seconds, and the samples, decoded, mixed down."""
    with av.open(str(path)) as clip:
        frames = list(clip.decode(audio=0))
    samples = np.concatenate(
        [frame.to_ndarray().astype(np.float32).reshape(len(frame.layout.channels), -1)[0] for frame in frames]
    )
    return float(frames[0].pts * frames[0].time_base), samples


@pytest.mark.parametrize("name", ["out.mp4", "out.mov", "out.mkv", "out.m4v"])
@pytest.mark.parametrize("fps", [Fraction(30), Fraction(30000, 1001), Fraction(15, 2)])
def test_rate_and_count_are_exact(name: str, fps: Fraction, tmp_path: Path) -> None:
    with VideoWriter(tmp_path / name, SIZE, fps) as out:
        for index in range(10):
            out.write(grey(index * 20))
    with VideoReader(tmp_path / name) as clip:
        frames = list(clip)
        assert clip.fps == fps
    assert [frame.pts_s for frame in frames] == [n / fps for n in range(10)]
    for frame in frames:
        assert abs(int(frame.pixels.mean()) - 20 * frame.index) <= 3


@pytest.mark.parametrize("size", [Size(64, 64), Size(1280, 720)], ids=str)
@pytest.mark.parametrize("rgb", [(200, 40, 40), (30, 180, 60), (20, 40, 220), (255, 255, 255), (0, 0, 0)])
def test_colours_survive(rgb: tuple[int, int, int], size: Size, tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "out.mp4", size, 30) as out:
        out.write(np.full((size.height, size.width, 3), rgb, dtype=np.uint8))
    with av.open(str(tmp_path / "out.mp4")) as file:
        codec = file.streams.video[0].codec_context
        assert (codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range) == (1, 1, 1, 1)
    with VideoReader(tmp_path / "out.mp4") as clip:
        got = next(iter(clip)).pixels[32, 32]
    # Two levels are lost to 8-bit YCbCr in limited range.
    assert np.abs(got.astype(int) - rgb).max() <= 2


def test_variable_rate_keeps_the_times(make_clip: MakeClip, tmp_path: Path) -> None:
    times_s = [Fraction(n, 1000) for n in (0, 40, 55, 200, 700)]
    copy(make_clip("vfr.mp4", frames=5, times_s=times_s), tmp_path / "out.mp4")
    with VideoReader(tmp_path / "out.mp4") as clip:
        got_s = [frame.pts_s for frame in clip]
    assert all(abs(got - wanted) < Fraction(1, 5000) for got, wanted in zip(got_s, times_s, strict=True))


@pytest.mark.parametrize(
    ("source", "codec", "target", "kept"),
    [
        ("in.mkv", "aac", "out.mp4", True),
        ("in.mp4", "aac", "out.mkv", True),
        ("in.mkv", "pcm_s16le", "out.mkv", True),
        ("in.mkv", "pcm_s16le", "out.mov", True),
        ("in.mkv", "pcm_s16le", "out.mp4", False),
    ],
)
def test_audio_stays_in_sync_and_is_cut_to_the_pictures(
    make_clip: MakeClip, tmp_path: Path, source: str, codec: str, target: str, kept: bool
) -> None:
    path = make_clip(source, frames=24, audio=codec, audio_s=3.0, audio_delay_s=0.25)
    copy(path, tmp_path / target, frames=15)
    with av.open(str(tmp_path / target)) as file:
        assert file.streams.audio[0].codec_context.name == (codec if kept else "aac")
    begin_s, samples = sound_of(tmp_path / target)
    loud = np.abs(samples) > 0.1 * np.abs(samples).max()
    heard_s = begin_s + int(np.argmax(loud)) / 48000
    # An AAC packet is 21 ms, one of this PCM 24 ms: that is how finely sound can be placed and cut without decoding it.
    assert abs(heard_s - 0.25) < 0.03
    assert abs(begin_s + len(samples) / 48000 - 0.5) < 0.05
    with VideoReader(tmp_path / target) as clip:
        assert len(list(clip)) == 15


def test_a_clip_without_sound_gets_none(make_clip: MakeClip, tmp_path: Path) -> None:
    copy(make_clip(), tmp_path / "out.mp4")
    with VideoReader(tmp_path / "out.mp4") as clip:
        assert clip.audio is None


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_stays_after_an_exception(error: type[BaseException], tmp_path: Path) -> None:
    def interrupted() -> None:
        with VideoWriter(tmp_path / "out.mp4", SIZE, 30) as out:
            out.write(grey(0))
            assert [path.name[0] for path in tmp_path.iterdir()] == ["."]
            raise error

    with pytest.raises(error):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_an_older_file_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    (tmp_path / "out.mp4").write_bytes(b"old")
    with VideoWriter(tmp_path / "out.mp4", SIZE, 30) as out:
        out.write(grey(0))
        assert (tmp_path / "out.mp4").read_bytes() == b"old"
    assert (tmp_path / "out.mp4").stat().st_size > 100
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = VideoWriter(tmp_path / "out.mp4", SIZE, 30)
    out.write(grey(0))

    def full(*names: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(SinkError, match="No space left"):
        out.finish()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_video_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="no picture"):
        VideoWriter(tmp_path / "out.mp4", SIZE, 30).finish()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_reported_at_once(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(SinkError, match="cannot be written"):
        VideoWriter(tmp_path / "out.mp4", SIZE, 30)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no/such/out.mp4", "no/such does not exist"),
        ("out.avi", "expected .mp4"),
        ("out", "expected .mp4"),
        ("folder.mp4", "is a folder"),
    ],
)
def test_bad_targets_are_refused_in_one_line(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(SinkError, match=words) as caught:
        VideoWriter(tmp_path / name, SIZE, 30)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.mp4"]


def test_the_input_is_not_overwritten(make_clip: MakeClip) -> None:
    path = make_clip("clip.mp4")
    before = path.read_bytes()
    with pytest.raises(SinkError, match="also the input"):
        VideoWriter(path, SIZE, 30, audio_from=path)
    assert path.read_bytes() == before


def test_a_missing_sound_file_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        VideoWriter(tmp_path / "out.mp4", SIZE, 30, audio_from=tmp_path / "gone.mp4")
    assert list(tmp_path.iterdir()) == []


def test_another_size_is_refused(tmp_path: Path) -> None:
    out = VideoWriter(tmp_path / "out.mp4", SIZE, 30)
    with pytest.raises(ValueError, match="32x64, expected 64x64"):
        out.write(np.zeros((64, 32, 3), dtype=np.uint8))
    out.abort()
    with pytest.raises(ValueError, match="is finished"):
        out.write(grey(0))


@pytest.mark.parametrize("fps", [30, Fraction(30000, 1001), 59.94, Fraction(104719, 3500)])
def test_without_x264_mpeg4_is_written(
    fps: Fraction | float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    with VideoWriter(tmp_path / "out.mp4", SIZE, fps) as out:
        for index in range(6):
            out.write(grey(index * 40))
    with VideoReader(tmp_path / "out.mp4") as clip:
        assert [abs(int(frame.pixels.mean()) - 40 * frame.index) <= 3 for frame in clip] == [True] * 6
    with av.open(str(tmp_path / "out.mp4")) as file:
        assert file.streams.video[0].codec_context.name == "mpeg4"


@pytest.mark.parametrize(
    "fps", [Fraction(30), Fraction(24000, 1001), Fraction(25, 3), Fraction(1, 7), Fraction(240)]
)
def test_frame_times_are_whole_ticks(fps: Fraction) -> None:
    assert (ticks_hz(fps) / fps).denominator == 1
    assert 10_000 <= ticks_hz(fps) <= 65_535


def test_sound_that_players_know_is_copied_everywhere() -> None:
    assert all({"aac", "mp3"} <= codecs for codecs in audio_track.COPIED.values())
