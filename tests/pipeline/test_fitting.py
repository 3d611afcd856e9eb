"""Pictures of any shape brought to the engine's size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instantvision.pipeline.config import Size
from instantvision.pipeline.fitting import fit

SQUARE = Size(64, 64)


def stripes(widths_and_greys, height):
    """Vertical stripes: [(width, grey), ...]."""
    row = np.concatenate([np.full(width, grey, np.uint8) for width, grey in widths_and_greys])
    return np.repeat(np.repeat(row[None, :, None], height, 0), 3, 2)


def test_the_right_size_is_handed_through():
    pixels = stripes([(64, 9)], 64)
    assert fit(pixels, SQUARE, "cover") is pixels
    out = np.zeros_like(pixels)
    assert fit(pixels, SQUARE, "letterbox", out=out) is out
    assert np.array_equal(out, pixels)


def test_cover_crops_both_sides_evenly():
    wide = stripes([(32, 10), (64, 200), (32, 10)], 64)
    assert np.array_equal(fit(wide, SQUARE, "cover"), stripes([(64, 200)], 64))
    tall = wide.transpose(1, 0, 2)
    assert (fit(tall, SQUARE, "cover") == 200).all()


def test_letterbox_shows_everything_between_black_bars():
    wide = stripes([(64, 10), (64, 200)], 64)
    result = fit(wide, SQUARE, "letterbox")
    assert (result[:16] == 0).all()
    assert (result[48:] == 0).all()
    assert (result[16:48, :31] == 10).all()
    assert (result[16:48, 33:] == 200).all()


def test_letterbox_blackens_what_was_there_before():
    out = np.full((64, 64, 3), 77, np.uint8)
    fit(stripes([(128, 200)], 64), SQUARE, "letterbox", out=out)
    assert set(np.unique(out)) == {0, 200}


def test_shrinking_averages_areas():
    board = np.zeros((128, 128, 3), np.uint8)
    board[::2, ::2] = 255
    board[1::2, 1::2] = 255
    assert set(np.unique(fit(board, SQUARE, "cover"))) <= {127, 128}


def test_growing_interpolates():
    result = fit(stripes([(16, 0), (16, 240)], 32), SQUARE, "cover")
    steps = np.diff(result[0, :, 0].astype(int))
    assert (steps >= 0).all()
    assert steps.max() < 240


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 200),
    height=st.integers(1, 200),
    size=st.sampled_from([SQUARE, Size(64, 256), Size(256, 64), Size(80, 112)]),
    mode=st.sampled_from(["cover", "letterbox"]),
)
def test_any_shape_fits_and_is_written_where_asked(width, height, size, mode):
    out = np.full((size.height, size.width, 3), 99, np.uint8)
    assert fit(np.full((height, width, 3), 200, np.uint8), size, mode, out=out) is out
    assert set(np.unique(out)) <= ({200} if mode == "cover" else {0, 200})
    # A picture one pixel wide lies on one side of the middle.
    middle = out[size.height // 2 - 1 : size.height // 2 + 1, size.width // 2 - 1 : size.width // 2 + 1]
    assert (middle == 200).any()


def test_views_of_all_kinds_are_read():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8)
    view = pixels[:, ::-1, ::-1]
    assert np.array_equal(fit(view, SQUARE, "cover"), fit(view.copy(), SQUARE, "cover"))
    pixels.flags.writeable = False
    assert fit(pixels, SQUARE, "cover").shape == (64, 64, 3)


@pytest.mark.parametrize("view", [np.s_[:], np.s_[:, ::-1, ::-1], np.s_[::-1]])
def test_a_copy_has_every_byte(view):
    # Large enough for OpenCV to share it out among threads.
    pixels = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), np.uint8)[view]
    pixels.flags.writeable = False
    out = np.empty_like(pixels, order="C")
    assert fit(pixels, Size(1024, 1024), "cover", out=out) is out
    assert np.array_equal(out, pixels)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((8, 8), np.uint8), r"picture is uint8\[8, 8\], expected uint8\[H, W, 3\]"),
        (np.zeros((8, 8, 4), np.uint8), r"expected uint8\[H, W, 3\]"),
        (np.zeros((8, 8, 3), np.float32), r"picture is float32"),
        (np.zeros((0, 8, 3), np.uint8), r"picture is uint8\[0, 8, 3\]"),
    ],
)
def test_refuses_what_is_no_picture(pixels, message):
    with pytest.raises(ValueError, match=message):
        fit(pixels, SQUARE, "cover")


def test_refuses_memory_of_another_size():
    with pytest.raises(ValueError, match=r"out is uint8\[8, 8, 3\], expected uint8\[64, 64, 3\]"):
        fit(stripes([(8, 1)], 8), SQUARE, "cover", out=np.zeros((8, 8, 3), np.uint8))
