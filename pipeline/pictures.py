"""Still pictures: reading and writing image files as RGB pixels."""

from pathlib import Path

import cv2
import numpy as np

from instantvision.pipeline.errors import SinkError, SourceError
from instantvision.pipeline.frames import Pixels
from instantvision.pipeline.outputs import write_whole

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


def read_picture(path: Path) -> Pixels:
    """Read an image file as RGB uint8 [H, W, 3].

    Raises:
        SourceError: the file cannot be read, or is no picture.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    # OpenCV raises on an empty buffer and returns None for anything else that is no picture.
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if data else None
    if picture is None:
        raise SourceError(f"cannot read {path}: it is no picture that OpenCV knows")
    return picture.astype(np.uint8, copy=False)


def write_picture(path: Path, pixels: Pixels) -> None:
    """Write RGB uint8 [H, W, 3] as an image file of the kind its ending says.

    Raises:
        SinkError: the ending is unknown, or the file cannot be written; nothing is left behind.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise SinkError(
            f"cannot write {path}: the name ends in {path.suffix!r}, expected {' or '.join(sorted(SUFFIXES))}"
        )
    _, data = cv2.imencode(path.suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    write_whole(path, data.tobytes())
