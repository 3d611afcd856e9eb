from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pytest

from instantvision.integrations.test_pattern import TestPatternSource, read_counter
from instantvision.pipeline.config import Size
from instantvision.pipeline.frames import Frame

SIZES = [Size(64, 64), Size(256, 144), Size(512, 512), Size(1280, 720)]


def frames_of(size: Size, count: int, clock: Any) -> list[Frame]:
    source = TestPatternSource(size, 60.0, clock=clock)
    source.open()
    frames = [source.read(1.0) for _ in range(count)]
    source.close()
    assert None not in frames
    return [frame for frame in frames if frame is not None]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_counter_can_be_read(size: Size, clock: Any) -> None:
    frames = frames_of(size, 40, clock)
    assert (
        [read_counter(frame.pixels) for frame in frames]
        == [frame.index for frame in frames]
        == list(range(40))
    )
    assert frames[0].pixels.shape == (size.height, size.width, 3)


@pytest.mark.parametrize("quality", [60, 95])
def test_the_counter_survives_scaling_and_compression(quality: int, clock: Any) -> None:
    for frame in frames_of(Size(512, 512), 20, clock):
        small = cv2.resize(frame.pixels, (300, 220), interpolation=cv2.INTER_AREA)
        _, coded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, quality])
        assert read_counter(cv2.imdecode(coded, cv2.IMREAD_COLOR)) == frame.index


def test_no_counter_is_read_from_other_pictures(clock: Any) -> None:
    assert read_counter(np.zeros((64, 64, 3), dtype=np.uint8)) is None
    assert read_counter(np.full((64, 64, 3), 255, dtype=np.uint8)) is None
    broken = frames_of(Size(512, 512), 7, clock)[-1].pixels.copy()
    cell = 512 // 19
    broken[:, 9 * cell + 4 : 10 * cell] = 255 - broken[:, 9 * cell + 4 : 10 * cell]
    assert read_counter(broken) is None


def test_it_moves_everywhere_and_is_colourful(clock: Any) -> None:
    frames = frames_of(Size(256, 256), 60, clock)
    pictures = np.stack([frame.pixels[:-20] for frame in frames[::10]]).astype(int)
    # Each eighth of the picture changes from sample to sample, and no channel is a copy of another.
    for before, after in pairwise(pictures):
        blocks = np.abs(after - before).reshape(-1)[: 59 * 256 * 4 * 3].reshape(8, -1)
        assert (blocks.mean(axis=1) > 1).all()
    assert pictures.std(axis=(1, 2)).min() > 30
    assert np.abs(pictures[..., 0] - pictures[..., 1]).mean() > 30
    assert np.abs(pictures[..., 1] - pictures[..., 2]).mean() > 30


def test_the_rate_is_kept_and_a_late_reader_misses_frames(clock: Any) -> None:
    source = TestPatternSource(Size(64, 64), 50.0, clock=clock)
    source.open()
    begin_s = clock.now_s()
    stamps = [source.read(1.0).captured_s - begin_s for _ in range(5)]
    assert stamps == pytest.approx([0.0, 0.02, 0.04, 0.06, 0.08])
    clock.time_s += 0.2
    late = source.read(1.0)
    assert late.index == 14
    assert read_counter(late.pixels) == 14
    source.close()
