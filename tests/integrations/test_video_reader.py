from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from instantvision.integrations.video_reader import VideoReader
from instantvision.pipeline.errors import SourceError

MakeClip = Callable[..., Path]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
@pytest.mark.parametrize("fps", [Fraction(30), Fraction(30000, 1001), Fraction(12)])
def test_constant_rate_gives_every_picture_at_its_exact_time(
    make_clip: MakeClip, name: str, fps: Fraction
) -> None:
    with VideoReader(make_clip(name, frames=9, fps=fps)) as clip:
        frames = list(clip)
        assert (clip.width, clip.height, clip.fps) == (64, 48, fps)
        assert clip.frame_count == 9
    assert [frame.pts_s for frame in frames] == [n / fps for n in range(9)]
    assert [frame.index for frame in frames] == list(range(9))
    for frame in frames:
        assert abs(int(frame.pixels.mean()) - 16 * frame.index) <= 3


def test_variable_rate_keeps_the_times(make_clip: MakeClip) -> None:
    times_s = [Fraction(n, 1000) for n in (0, 40, 55, 200, 700)]
    with VideoReader(make_clip("clip.mp4", frames=5, times_s=times_s)) as clip:
        got_s = [frame.pts_s for frame in clip]
    # A tick of the file, 1/30000 s, is all that may be lost.
    assert all(abs(got - wanted) <= Fraction(1, 15000) for got, wanted in zip(got_s, times_s, strict=True))


@pytest.mark.parametrize(
    ("degrees", "bright"), [(90, np.s_[:, :10]), (-90, np.s_[:, -10:]), (180, np.s_[-10:, :])]
)
def test_rotated_pictures_stand_upright(
    make_clip: MakeClip, degrees: int, bright: tuple[slice, slice]
) -> None:
    # Stored with the upper half white; turned counter-clockwise by 90 degrees the left half must be white.
    with VideoReader(make_clip("clip.mp4", frames=1, rotate=degrees, halves=True)) as clip:
        picture = next(iter(clip)).pixels
        assert picture.shape == ((48, 64, 3) if degrees == 180 else (64, 48, 3))
        assert (clip.height, clip.width) == picture.shape[:2]
    assert picture[bright].mean() > 240
    assert picture.mean() < 140


def test_odd_sizes_are_read_whole(make_clip: MakeClip) -> None:
    with VideoReader(make_clip("clip.mkv", size=(63, 47), codec="ffv1", pix_fmt="yuv444p")) as clip:
        assert next(iter(clip)).pixels.shape == (47, 63, 3)


def test_audio_is_described(make_clip: MakeClip) -> None:
    with VideoReader(make_clip(audio="aac")) as clip:
        assert clip.audio is not None
        assert (clip.audio.codec, clip.audio.rate_hz, clip.audio.channels) == ("aac", 48000, 1)
    with VideoReader(make_clip("mute.mkv")) as clip:
        assert clip.audio is None


def test_a_file_cut_off_ends_early(make_clip: MakeClip, tmp_path: Path) -> None:
    whole = make_clip("clip.mkv", frames=12, codec="mjpeg", pix_fmt="yuvj420p", size=(320, 240)).read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole[: len(whole) // 2])
    with VideoReader(cut) as clip:
        assert 3 <= len(list(clip)) <= 9


def test_damaged_pictures_are_left_out_and_counted(make_clip: MakeClip) -> None:
    path = make_clip("clip.avi", frames=8, codec="png", pix_fmt="rgb24", size=(320, 240))
    content = bytearray(path.read_bytes())
    third = [at for at in range(len(content)) if content.startswith(b"\x89PNG", at)][3]
    content[third : third + 60] = bytes(60)
    path.write_bytes(content)
    with VideoReader(path) as clip:
        frames = list(clip)
        assert clip.damaged == 1
    shown = [round(frame.pts_s * 30) for frame in frames]
    # A decoder with several threads may lose a neighbour as well; the others keep their times.
    assert shown[:3] == [0, 1, 2]
    assert shown[-2:] == [6, 7]
    assert 3 not in shown


def _text(folder: Path) -> Path:
    path = folder / "notes.txt"
    path.write_text("no video at all\n" * 100)
    return path


def _sound(folder: Path) -> Path:
    import wave

    path = folder / "sound.wav"
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(bytes(16000))
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "gone.mp4", "does not exist"),
        (lambda folder: folder, "is a folder"),
        (_text, "not a video"),
        (_sound, "has no video"),
    ],
)
def test_bad_files_are_refused_in_one_line(make: Callable[[Path], Path], words: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        VideoReader(make(tmp_path))
    assert "\n" not in str(caught.value)
    assert str(make(tmp_path)) in str(caught.value)
