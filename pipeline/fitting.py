"""Bringing a camera's picture to the engine's size: fill and crop, or bars.

Knows nothing of torch.
"""

import numpy as np

from instantvision.pipeline.config import Fit, Size
from instantvision.pipeline.frames import Pixels


def fit(pixels: Pixels, size: Size, mode: Fit, out: Pixels | None = None) -> Pixels:
    """Bring a picture to a size without distorting it.

    Args:
        pixels: uint8 [H, W, 3].
        size: wanted.
        mode: `cover` fills the size and crops what sticks out, evenly on both sides; `letterbox` shows the whole
            picture between black bars.
        out: uint8 [size.height, size.width, 3], where to write the result.

    Returns:
        `out`, or a new array without one, or `pixels` itself if that has the size already and there is no `out`.

    Raises:
        ValueError: `pixels` or `out` is not of that form.
    """
    _check("picture", pixels, (None, None, 3))
    shape = (size.height, size.width, 3)
    if out is not None:
        _check("out", out, shape)
    if pixels.shape == shape:
        return pixels if out is None else _copy(pixels, out)
    out = np.empty(shape, np.uint8) if out is None else out
    if mode == "cover":
        _resize(_middle_of_shape(pixels, size), out)
    else:
        _resize(pixels, _room_between_bars(out, pixels.shape[1], pixels.shape[0]))
    return out


def _middle_of_shape(pixels: Pixels, size: Size) -> Pixels:
    """The largest middle part that has the shape of `size`; a view."""
    height, width = pixels.shape[:2]
    crop_width = max(1, min(width, round(height * size.width / size.height)))
    crop_height = max(1, min(height, round(width * size.height / size.width)))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return pixels[top : top + crop_height, left : left + crop_width]


def _room_between_bars(out: Pixels, width: int, height: int) -> Pixels:
    """Blacken `out` and give the middle part with the shape of width x height; a view."""
    scale = min(out.shape[1] / width, out.shape[0] / height)
    room_width = max(1, min(out.shape[1], round(width * scale)))
    room_height = max(1, min(out.shape[0], round(height * scale)))
    left, top = (out.shape[1] - room_width) // 2, (out.shape[0] - room_height) // 2
    out[:] = 0
    return out[top : top + room_height, left : left + room_width]


def _resize(pixels: Pixels, out: Pixels) -> None:
    # Not at the top: commands that never fit a picture should not pay for it.
    import cv2

    smaller = pixels.shape[0] >= out.shape[0] and pixels.shape[1] >= out.shape[1]
    # Averaging over areas keeps fine detail from flickering; it has no meaning when a picture grows.
    method = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    _keep(cv2.resize(pixels, (out.shape[1], out.shape[0]), dst=out, interpolation=method), out)


def _copy(pixels: Pixels, out: Pixels) -> Pixels:
    import cv2

    # What is above 0 stays and the rest becomes 0: every byte is what it was, and OpenCV's threads share the work. One
    # alone takes three times as long to copy a picture of 1024x1024.
    _, kept = cv2.threshold(pixels, 0, 0, cv2.THRESH_TOZERO, dst=out)
    return _keep(kept, out)


def _keep(result: object, out: Pixels) -> Pixels:
    # cv2 gives `out` back when it could write there.
    if not np.shares_memory(pixels := np.asarray(result), out):
        np.copyto(out, pixels)
    return out


def _check(name: str, pixels: Pixels, expected: tuple[int | None, int | None, int]) -> None:
    shape_fits = pixels.ndim == 3 and all(
        want is None or have == want for have, want in zip(pixels.shape, expected, strict=True)
    )
    if pixels.dtype != np.uint8 or not shape_fits or pixels.size == 0:
        wanted = ", ".join(
            axis if want is None else str(want) for axis, want in zip("HW3", expected, strict=True)
        )
        raise ValueError(f"{name} is {pixels.dtype}{list(pixels.shape)}, expected uint8[{wanted}]")
