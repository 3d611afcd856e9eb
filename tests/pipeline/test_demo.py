import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from instantvision.integrations.video_reader import VideoReader
from instantvision.pipeline import demo
from instantvision.pipeline.config import Mix, Settings, Size
from instantvision.pipeline.contact_sheet import best_columns, contact_sheet, side_by_side
from instantvision.pipeline.errors import SinkError
from instantvision.pipeline.frames import Pixels
from instantvision.pipeline.pictures import read_picture
from instantvision.pipeline.presets import load_presets

QUICK = Settings(mix=Mix.parse("ink"), size=Size(64, 64), steps=1)


def test_the_demo_writes_the_clip_and_the_overview(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "plan_clip", lambda frame_s, left_s: (4, Fraction(12)))
    seen: list[tuple[int, int | None]] = []
    folder = tmp_path / "out"
    summary = demo.make_demo(folder, QUICK, on_progress=lambda done, total: seen.append((done, total)))
    assert sorted(path.name for path in folder.iterdir()) == ["demo.mp4", "presets.png"]
    with VideoReader(folder / "demo.mp4") as clip:
        assert (clip.width, clip.height, len(list(clip))) == (128, 64, 4)
    assert (summary.frames, summary.size, summary.preset) == (4, "64x64", "ink")
    count = len(load_presets())
    assert [done for done, _ in seen] == list(range(1, count + 5))
    assert seen[-1] == (count + 4, count + 4)


def test_the_overview_shows_every_preset_differently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[str, Pixels] = {}
    monkeypatch.setattr(demo, "plan_clip", lambda frame_s, left_s: (2, Fraction(12)))
    monkeypatch.setattr(demo, "contact_sheet", lambda tiles: shown.update(tiles) or contact_sheet(tiles))
    demo.make_demo(tmp_path, QUICK)
    assert set(shown) == {"camera", *load_presets()}
    for (name, one), (other_name, other) in itertools.combinations(shown.items(), 2):
        assert not np.array_equal(one, other), f"{name} looks like {other_name}"


def test_a_folder_whose_parent_does_not_exist_is_refused_before_the_model_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "instantvision.pipeline.start.started_engine", lambda *_: pytest.fail("the model was loaded")
    )
    with pytest.raises(SinkError, match=r"output folder .*none does not exist"):
        demo.make_demo(tmp_path / "none" / "out", QUICK)
    (tmp_path / "file").touch()
    with pytest.raises(SinkError, match="is a file"):
        demo.make_demo(tmp_path / "file", QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("frame_s", "left_s", "plan"),
    [
        (0.0, 60.0, (72, 24)),
        (0.01, 50.0, (72, 24)),
        (0.8, 44.0, (55, 24)),
        (1.0, 48.0, (48, 24)),
        (1.0, 47.0, (47, 12)),
        (3.0, 10.0, (16, 12)),
        (3.0, -20.0, (16, 12)),
    ],
)
def test_the_clip_is_as_long_as_the_time_allows(frame_s: float, left_s: float, plan: tuple[int, int]) -> None:
    assert demo.plan_clip(frame_s, left_s) == plan


def test_the_clip_gets_the_time_that_the_overview_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[tuple[float, float]] = []
    monkeypatch.setattr(demo, "plan_clip", lambda *plan: planned.append(plan) or (2, Fraction(12)))
    times = itertools.count(100.0, 2.0)
    demo.make_demo(tmp_path, QUICK, now_s=lambda: next(times))
    # The clock is read once at the start, after each tile, and once more: each reading is two seconds later.
    assert planned == [(2.0, demo.BUDGET_S - 2.0 * (len(load_presets()) + 1))]


@pytest.mark.parametrize("size", [Size(384, 384), Size(640, 352), Size(256, 512)])
def test_the_camera_never_looks_beyond_the_portrait(size: Size) -> None:
    side_px = read_picture(demo.SAMPLE).shape[0]
    right, bottom = size.width - 1, size.height - 1
    corners = np.array([[0, 0, 1], [right, 0, 1], [0, bottom, 1], [right, bottom, 1]]).T
    for phase in np.linspace(0, 1, 73):
        seen = demo.camera_view(phase, side_px, size) @ corners
        assert seen.min() >= 0
        assert seen.max() <= side_px - 1


def test_the_camera_moves_smoothly_and_comes_back() -> None:
    side_px, size = 512, Size(384, 384)
    centre = np.array([size.width / 2, size.height / 2, 1.0])
    path = np.array([demo.camera_view(phase, side_px, size) @ centre for phase in np.linspace(0, 1, 49)])
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    np.testing.assert_allclose(path[-1], path[0], atol=1e-9)
    # At 24 frames a second a viewer sees a jump above about a hundredth of the picture.
    assert 0 < steps.max() < side_px / 100
    assert np.ptp(path, axis=0).min() > 5


def test_moving_portrait_gives_frames_of_the_size_at_the_clips_times() -> None:
    frames = demo.moving_portrait(read_picture(demo.SAMPLE), Size(96, 64), 5, Fraction(12))
    assert [frame.pixels.shape for frame in frames] == [(64, 96, 3)] * 5
    assert [frame.pts_s * 12 for frame in frames] == [0, 1, 2, 3, 4]
    assert not np.array_equal(frames[0].pixels, frames[2].pixels)


@pytest.mark.parametrize("count", [1, 2, 7, 10, 16])
def test_a_sheet_holds_every_picture_unchanged_with_its_label(count: int) -> None:
    rng = np.random.default_rng(0)
    tiles = [(f"tile-{index}", rng.integers(0, 255, (64, 48, 3), np.uint8)) for index in range(count)]
    sheet = contact_sheet(tiles)
    for _, tile in tiles:
        rows, columns = np.nonzero((sheet[:, :, 0] == tile[0, 0, 0]) & (sheet[:, :, 1] == tile[0, 0, 1]))
        found = [
            np.array_equal(sheet[y : y + 64, x : x + 48], tile) for y, x in zip(rows, columns, strict=True)
        ]
        assert any(found)
    assert (contact_sheet([("", picture) for _, picture in tiles]) != sheet).any(), "labels are drawn"


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (10, 5), (12, 4), (16, 6)])
def test_a_sheet_has_few_empty_places(count: int, columns: int) -> None:
    assert best_columns(count, 100, 115) == columns


def test_side_by_side_labels_copies_and_not_the_pictures() -> None:
    left, right = np.zeros((64, 96, 3), np.uint8), np.full((64, 96, 3), 255, np.uint8)
    both = side_by_side(("camera", left), ("oil", right))
    assert both.shape == (64, 192, 3)
    assert both.flags.c_contiguous
    assert (left == 0).all()
    assert (right == 255).all()
    assert (both[:, :96] != left).any()
    assert (both[:, 96:] != right).any()
