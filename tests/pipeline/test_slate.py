import cv2
import numpy as np
import pytest

from instantvision.pipeline.config import Size
from instantvision.pipeline.frames import Origin
from instantvision.pipeline.slate import READABLE_PX, Slate, background, draw

LONG = "camera 'Logitech C920' does not answer: unplugged, or used by another program; " * 6
SIZES = [
    Size(64, 64),
    Size(256, 256),
    Size(1280, 720),
    Size(720, 1280),
    Size(64, 2048),
    Size(2048, 64),
    Size(336, 208),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("reason", ["", "Starting: loading the model", LONG, "W" * 400, "ünplügged · 相机"])
def test_any_size_and_text_stays_clear_of_the_edge(size: Size, reason: str) -> None:
    empty = background(size)

    pixels = draw(empty, reason)

    assert pixels.shape == (size.height, size.width, 3)
    assert pixels.dtype == np.uint8
    drawn = (pixels != empty).any(axis=-1)
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    assert rows.size
    assert columns.size
    assert min(columns[0], size.width - 1 - columns[-1]) >= size.width // 10 - 2
    assert min(rows[0], size.height - 1 - rows[-1]) >= size.height // 40


def test_the_reason_is_in_the_picture() -> None:
    empty = background(Size(640, 368))
    without, short, long = (draw(empty, reason) for reason in ("", "Starting", LONG))
    assert (without != short).any()
    assert (short != long).any()


def test_a_longer_reason_ends_in_an_ellipsis() -> None:
    """Beyond four lines nothing changes: what was cut off cannot be seen."""
    empty = background(Size(640, 368))
    assert np.array_equal(draw(empty, LONG), draw(empty, LONG + "and more"))


def test_a_tiny_picture_shows_the_mark_alone() -> None:
    empty = background(Size(64, 64))
    assert READABLE_PX > 64 / 12 / 2
    assert np.array_equal(draw(empty, "one"), draw(empty, "two"))


def test_the_background_is_dark_and_smooth() -> None:
    pixels = background(Size(1280, 720))
    assert pixels.max() < 96
    assert np.ptp(cv2.blur(pixels, (31, 31))) > 10


def test_a_slate_frame_is_marked_and_drawn_once() -> None:
    slate = Slate(Size(128, 96))

    first, again = slate.frame("Starting", 0, 1.0), slate.frame("Starting", 7, 2.0)

    assert first.origin is Origin.SLATE
    assert (again.index, again.captured_s) == (7, 2.0)
    assert again.pixels is first.pixels
    with pytest.raises(ValueError, match="read-only"):
        first.pixels[0] = 0


def test_many_reasons_do_not_pile_up() -> None:
    slate = Slate(Size(64, 64))
    first = slate.frame("reason 0", 0, 0.0).pixels
    for number in range(1, 20):
        slate.frame(f"reason {number}", number, 0.0)
    assert slate.frame("reason 0", 20, 0.0).pixels is not first
