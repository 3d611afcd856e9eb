from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from instantvision.integrations.video_file import VideoFileSink, VideoFileSource
from instantvision.integrations.video_reader import VideoReader
from instantvision.pipeline.config import Size
from instantvision.pipeline.errors import SinkError, SourceError
from instantvision.pipeline.frames import Frame

MakeClip = Callable[..., Path]


def stamps_of(source: VideoFileSource, count: int) -> list[float]:
    frames = [source.read(10.0) for _ in range(count)]
    return [frame.captured_s - frames[0].captured_s for frame in frames if frame and frames[0]]


def test_a_file_plays_at_its_own_rate_again_and_again(make_clip: MakeClip, clock: Any) -> None:
    source = VideoFileSource(make_clip("clip.mp4", frames=5, fps=Fraction(20)), clock=clock)
    source.open()
    assert stamps_of(source, 13) == pytest.approx([n / 20 for n in range(13)])
    source.close()


def test_variable_rate_plays_by_its_times(make_clip: MakeClip, clock: Any) -> None:
    times_s = [Fraction(n, 1000) for n in (0, 40, 60, 200, 700)]
    source = VideoFileSource(make_clip("clip.mp4", frames=5, times_s=times_s), clock=clock)
    source.open()
    assert stamps_of(source, 5) == pytest.approx([0.0, 0.04, 0.06, 0.2, 0.7], abs=1e-4)
    source.close()


def test_a_frame_not_due_yet_is_kept_for_the_next_read(make_clip: MakeClip, clock: Any) -> None:
    source = VideoFileSource(make_clip("clip.mp4", frames=4, fps=Fraction(2)), clock=clock)
    source.open()
    assert source.read(0.1) is not None
    assert [source.read(0.2), source.read(0.2)] == [None, None]
    frame = source.read(0.2)
    assert frame is not None
    assert frame.index == 1
    source.close()


def test_after_a_stall_the_file_plays_on_from_where_it_was(make_clip: MakeClip, clock: Any) -> None:
    source = VideoFileSource(make_clip("clip.mp4", frames=10, fps=Fraction(10)), clock=clock)
    source.open()
    source.read(1.0)
    clock.time_s += 60.0
    assert stamps_of(source, 5) == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    source.close()


def test_a_missing_file_is_reported_on_open(tmp_path: Path) -> None:
    source = VideoFileSource(tmp_path / "gone.mp4")
    with pytest.raises(SourceError, match=r"gone\.mp4 does not exist"):
        source.open()
    source.close()


def test_a_recording_is_complete_as_far_as_it_goes(tmp_path: Path, make_frame: Callable[..., Frame]) -> None:
    sink = VideoFileSink(tmp_path / "out.mp4")
    sink.open(Size(64, 64), 60.0)
    for _ in range(7):
        sink.send(make_frame())
    assert not (tmp_path / "out.mp4").exists()
    sink.close()
    with VideoReader(tmp_path / "out.mp4") as clip:
        assert clip.fps == 60
        assert len(list(clip)) == 7
    assert len(list(tmp_path.iterdir())) == 1


def test_a_recording_of_nothing_leaves_no_file(tmp_path: Path) -> None:
    sink = VideoFileSink(tmp_path / "out.mp4")
    sink.open(Size(64, 64), 60.0)
    sink.close()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_reported_on_open(tmp_path: Path) -> None:
    sink = VideoFileSink(tmp_path / "no" / "out.mp4")
    with pytest.raises(SinkError, match=r"no does not exist: create it"):
        sink.open(Size(64, 64), 60.0)
    sink.close()
