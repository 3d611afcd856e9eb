import cv2
import numpy as np
import pytest

from instantvision.pipeline.errors import ConfigError
from instantvision.pipeline.preview import Preview

RED = np.full((48, 80, 3), (250, 10, 10), np.uint8)
BLUE = np.full((48, 80, 3), (10, 10, 250), np.uint8)


class HandClock:
    time_s = 100.0

    def now_s(self) -> float:
        return self.time_s

    def wait(self, stop: object, timeout_s: float) -> bool:
        raise AssertionError("a preview never waits")


def colour(jpeg: bytes | None) -> list[int]:
    assert jpeg is not None
    decoded = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    return [int(value) for value in decoded[..., ::-1].mean((0, 1)).round()]


def test_nothing_is_kept_while_nobody_looks() -> None:
    preview = Preview(clock=HandClock())
    preview.offer(RED, BLUE)
    assert preview.take_jpeg(64, "before") is None
    preview.offer(RED, BLUE)
    assert colour(preview.take_jpeg(64, "before")) == pytest.approx([250, 10, 10], abs=3)
    assert colour(preview.take_jpeg(64, "after")) == pytest.approx([10, 10, 250], abs=3)


def test_pairs_are_kept_a_few_times_a_second() -> None:
    clock = HandClock()
    preview = Preview(hz=4, clock=clock)
    preview.take_jpeg(64, "after")
    preview.offer(RED, RED)
    clock.time_s += 0.2
    preview.offer(BLUE, BLUE)
    assert colour(preview.take_jpeg(64, "after"))[0] > 200
    clock.time_s += 0.1
    preview.offer(BLUE, BLUE)
    assert colour(preview.take_jpeg(64, "after"))[0] < 50


def test_who_has_looked_away_finds_no_old_picture() -> None:
    clock = HandClock()
    preview = Preview(clock=clock)
    preview.take_jpeg(64, "after")
    preview.offer(RED, RED)
    clock.time_s += 2.1
    preview.offer(BLUE, BLUE)
    assert preview.take_jpeg(64, "after") is None


def test_the_longer_side_is_what_was_asked() -> None:
    preview = Preview(clock=HandClock())
    preview.take_jpeg(40, "after")
    preview.offer(RED, RED)
    for side_px, width in ((40, 40), (80, 80), (1000, 80)):
        decoded = cv2.imdecode(
            np.frombuffer(preview.take_jpeg(side_px, "after") or b"", np.uint8), cv2.IMREAD_COLOR
        )
        assert decoded is not None
        assert decoded.shape == (width * 48 // 80, width, 3)


@pytest.mark.parametrize("side_px", [0, 31, 1025])
def test_a_senseless_side_is_refused(side_px: int) -> None:
    with pytest.raises(ConfigError, match="expected 32 to 1024"):
        Preview().take_jpeg(side_px, "after")


def test_an_unknown_picture_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected before or after"):
        Preview().take_jpeg(64, "during")  # type: ignore[arg-type]
