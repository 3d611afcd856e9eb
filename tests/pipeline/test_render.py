from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from instantvision.integrations.video_reader import ClipFrame, VideoReader
from instantvision.pipeline.config import Mix, Settings, Size
from instantvision.pipeline.engine import Engine, Pending
from instantvision.pipeline.errors import ConfigError, SinkError, SourceError
from instantvision.pipeline.frames import Pixels
from instantvision.pipeline.pictures import read_picture, write_picture
from instantvision.pipeline.render import RenderJob, render, stylise_in_order
from instantvision.pipeline.sizes import PerDevice, shape_within

QUICK = Settings(mix=Mix.parse("photo"), size=Size(64, 64), steps=1)


def job(source: Path, output: Path, **changes: Any) -> RenderJob:
    return RenderJob(source=source, output=output, **{"settings": QUICK, "keep_shape": False, **changes})


def test_every_frame_of_a_clip_is_rendered_at_the_clips_rate(clip: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    summary = render(job(clip, tmp_path / "out.mp4"), lambda done, total: seen.append((done, total)))
    with VideoReader(tmp_path / "out.mp4") as out:
        assert (out.width, out.height, out.fps) == (64, 64, 12)
        assert [frame.pts_s * 12 for frame in out] == [0, 1, 2, 3, 4, 5]
    assert [done for done, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert (summary.frames, summary.clip_fps, summary.size, summary.preset) == (6, 12.0, "64x64", "photo")


class CountingEngine:
    """Gives back what it was given, and counts the frames on their way."""

    def __init__(self) -> None:
        self.waiting = self.most_waiting = 0

    def submit(self, pixels: Pixels) -> Any:
        self.waiting += 1
        self.most_waiting = max(self.waiting, self.most_waiting)
        return Pending(lambda: self._finish(pixels))

    def _finish(self, pixels: Pixels) -> tuple[Pixels, float]:
        self.waiting -= 1
        return pixels, 1.0


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_frames_come_out_in_their_order_with_two_on_their_way(count: int) -> None:
    engine = CountingEngine()
    frames = [
        ClipFrame(pixels=np.full((2, 2, 3), index, np.uint8), index=index, pts_s=Fraction(index))
        for index in range(count)
    ]
    made = list(stylise_in_order(cast("Engine", engine), frames))
    assert [frame for _, frame in made] == frames
    assert all(pending.result() is frame.pixels for pending, frame in made)
    assert (engine.waiting, engine.most_waiting) == (0, min(2, count))


def test_max_frames_stops_early(clip: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    summary = render(
        job(clip, tmp_path / "out.mp4", max_frames=2), lambda done, total: seen.append((done, total))
    )
    assert (summary.frames, seen) == (2, [(1, 2), (2, 2)])


def test_without_a_size_the_clips_shape_is_kept(clip: Path, tmp_path: Path) -> None:
    assert render(job(clip, tmp_path / "out.mkv", keep_shape=True, max_frames=1)).size == "128x96"


def test_the_summary_counts_the_seconds_of_the_work_alone(clip: Path, tmp_path: Path) -> None:
    times = iter([100.0, 103.0])
    summary = render(job(clip, tmp_path / "out.mp4"), now_s=lambda: next(times))
    assert (summary.seconds, summary.fps) == (3.0, 2.0)


def test_a_picture_becomes_a_picture(picture: Pixels, tmp_path: Path) -> None:
    write_picture(tmp_path / "in.png", picture)
    summary = render(job(tmp_path / "in.png", tmp_path / "out.png", keep_shape=True))
    made = read_picture(tmp_path / "out.png")
    assert made.shape == picture.shape
    assert (summary.frames, summary.clip_fps) == (1, 0.0)
    assert not np.array_equal(made, picture)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SinkError("disk full")])
def test_what_is_interrupted_leaves_no_file(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | type[BaseException]
) -> None:
    submit, calls = Engine.submit, []

    def failing(self: Engine, pixels: Pixels) -> Any:
        calls.append(pixels)
        if len(calls) == 4:
            raise error
        return submit(self, pixels)

    monkeypatch.setattr(Engine, "submit", failing)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        render(job(clip, tmp_path / "out.mp4"))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_survives_an_interrupted_render(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.mp4"
    render(job(clip, output, max_frames=1))
    before = output.read_bytes()

    def interrupted(self: Engine, pixels: Pixels) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        render(job(clip, output))
    assert output.read_bytes() == before
    assert list(tmp_path.iterdir()) == [output]


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: object) -> None:
        pytest.fail("the model was loaded before the arguments were checked")

    monkeypatch.setattr("instantvision.pipeline.start.started_engine", loaded)


@pytest.mark.usefixtures("no_engine")
def test_what_cannot_work_is_refused_before_the_model_loads(
    clip: Path, picture: Pixels, tmp_path: Path
) -> None:
    still, text = tmp_path / "in.png", tmp_path / "notes.mp4"
    write_picture(still, picture)
    text.write_text("no video")
    refused = [
        (tmp_path / "none.mkv", tmp_path / "out.mp4", SourceError, "no such file"),
        (tmp_path, tmp_path / "out.mp4", SourceError, "is a folder"),
        (text, tmp_path / "out.mp4", SourceError, "notes.mp4"),
        (clip, tmp_path / "none" / "out.mp4", SinkError, "does not exist"),
        (clip, still / "out.mp4", SinkError, "is a file"),
        (clip, tmp_path / "out.png", SinkError, "ends in '.png'"),
        (clip, tmp_path / "out", SinkError, "ends in ''"),
        (clip, clip, SinkError, "is the input itself"),
        (still, tmp_path / "out.mp4", SinkError, "ends in '.mp4'"),
        (still, still, SinkError, "is the input itself"),
    ]
    before = sorted(tmp_path.rglob("*"))
    for source, output, kind, words in refused:
        with pytest.raises(kind) as caught:
            render(job(source, output))
        assert words in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("count", [0, -3])
def test_a_number_of_frames_below_one_is_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=f"max-frames is {count}"):
        job(Path("in.mkv"), Path("out.mp4"), max_frames=count)


@pytest.mark.parametrize(
    ("width", "height", "longest_px", "expected"),
    [
        (1920, 1080, 384, Size(384, 224)),
        (1080, 1920, 1024, Size(576, 1024)),
        (640, 480, 1024, Size(640, 480)),
        (100, 30, 384, Size(96, 64)),
        (1919, 1079, 4096, Size(1920, 1072)),
    ],
)
def test_the_shape_is_kept_to_the_nearest_multiple_of_16(
    width: int, height: int, longest_px: int, expected: Size
) -> None:
    assert shape_within(width, height, longest_px) == expected


def test_the_default_side_depends_on_the_device() -> None:
    side = PerDevice(gpu=1024, cpu=256)
    assert (side.on("cpu"), side.on("cuda"), side.square_on("cpu")) == (256, 1024, Size(256, 256))
    assert str(side) == "1024 on a GPU, 256 on a CPU"
