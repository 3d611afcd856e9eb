"""A small picture of every look, for the dock's gallery.

The package carries one per preset, made of its own portrait by `python -m instantvision.plugin.thumbnails`. While the
program runs, each look that has been on shows the user's own picture instead. Those stay in
memory: a face is never written to disk. Until then, a look of the user's making borrows the picture of the style it has
most of. Knows nothing of HTTP.
"""

import threading
from collections.abc import Callable
from pathlib import Path

from instantvision.pipeline.presets import SLUG, load_presets

FOLDER = Path(__file__).parent / "dock" / "thumbnails"
SIDE_PX = 128
# 8 kB a preset keeps the gallery, 17 pictures, near the weight of one photo.
BYTES_MAX = 8_000
QUALITIES = (82, 74, 66, 58, 50, 42)
# The picture that a preview holds when it is first asked may be of the look before.
ASKS_BEFORE_KEEPING = 3
KEEP_FOR_S = 30.0


class Thumbnails:
    """The newest thumbnail of every look; safe to call from any thread.

    Args:
        take: gives a JPEG of the stylised picture with the given side in pixels, or None if there is none.
        folder: of the packaged ones.
    """

    def __init__(self, take: Callable[[int], bytes | None], folder: Path = FOLDER) -> None:
        self._take, self._folder = take, folder
        self._lock = threading.Lock()
        self._own: dict[str, bytes] = {}
        self._numbers: dict[str, int] = {}
        self._kept_s: dict[str, float] = {}
        self._since: tuple[int, float, int] = (-1, 0.0, 0)

    @property
    def numbers(self) -> dict[str, int]:
        """How often the user's own picture of a look was taken; those that have none are missing."""
        with self._lock:
            return dict(self._numbers)

    def find(self, name: str) -> bytes | None:
        """The JPEG of a look; None if it is unknown or has none."""
        with self._lock:
            own = self._own.get(name)
        if own is not None or not SLUG.fullmatch(name):
            return own
        packaged = self._folder / f"{_nearest_packaged(name)}.jpg"
        return packaged.read_bytes() if packaged.exists() else None

    def refresh(self, name: str, version: int, settles_s: float, now_s: float) -> None:
        """Take the user's own picture of the look that is on, if it is time to.

        Args:
            name: of the only look that is on.
            version: of the state; a new one starts the waiting again.
            settles_s: how long a change takes until it shows in full.
            now_s: the clock.
        """
        seen, began_s, asks = self._since
        if version != seen:
            began_s, asks = now_s, 0
        self._since = version, began_s, asks
        if now_s - began_s < settles_s or now_s - self._kept_s.get(name, -KEEP_FOR_S) < KEEP_FOR_S:
            return
        self._since = version, began_s, asks + 1
        picture = self._take(SIDE_PX)
        if picture is not None and asks + 1 >= ASKS_BEFORE_KEEPING:
            self._kept_s[name] = now_s
            with self._lock:
                self._own[name] = picture
                self._numbers[name] = self._numbers.get(name, 0) + 1


def _nearest_packaged(name: str) -> str:
    # Each of the model's styles has a look of its name in the package.
    preset = load_presets().get(name)
    return max(preset.styles, key=lambda style: preset.styles[style]) if preset else name


def make_thumbnails(folder: Path = FOLDER) -> None:
    """Write the packaged thumbnail of every preset.

    Raises:
        WeightsError, EngineError: the model cannot run.
        SinkError: the folder cannot be written.
    """
    from instantvision.pipeline.config import Mix, Size
    from instantvision.pipeline.outputs import write_whole
    from instantvision.pipeline.pictures import read_picture
    from instantvision.pipeline.presets import packaged_presets, settings_for
    from instantvision.pipeline.start import started_engine

    sample = Path(__file__).parents[1] / "pipeline" / "samples" / "portrait.jpg"
    portrait, size = read_picture(sample), Size(384, 384)
    looks = {name: settings_for(Mix(((name, 1.0),)), size=size) for name in packaged_presets()}
    with started_engine(next(iter(looks.values()))) as (engine, _):
        for name, settings in looks.items():
            engine.update(settings)
            write_whole(folder / f"{name}.jpg", _small_jpeg(engine.stylise(portrait)))


def _small_jpeg(pixels: object) -> bytes:
    """The best of a few qualities that fits in BYTES_MAX."""
    import cv2
    import numpy as np

    small = cv2.resize(np.asarray(pixels), (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA)
    data = b""
    for quality in QUALITIES:
        _, encoded = cv2.imencode(
            ".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
        )
        data = encoded.tobytes()
        if len(data) <= BYTES_MAX:
            break
    return data


if __name__ == "__main__":
    make_thumbnails()
