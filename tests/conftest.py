"""Fixtures that several folders of tests share."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from instantvision.integrations.video_writer import VideoWriter
from instantvision.pipeline.config import Size
from instantvision.pipeline.frames import Pixels
from instantvision.pipeline.presets import reload_presets, user_folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU where there is none."""
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA GPU")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


@pytest.fixture(autouse=True, scope="session")
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's state and configuration stay as they are, also for the programs that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        yield


@pytest.fixture
def own_presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the user's presets, empty."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = user_folder()
    folder.mkdir(parents=True)
    reload_presets()
    yield folder
    reload_presets()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every run and every order of the tests."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def picture() -> Pixels:
    """A colourful picture with edges, RGB uint8 [96, 128, 3]."""
    y, x = np.mgrid[0:96, 0:128]
    pixels = np.stack([2 * x, 2 * y, np.where((x // 16 + y // 16) % 2, 220, 40)], -1)
    return pixels.astype(np.uint8)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory, picture: Pixels) -> Path:
    """A video of 6 frames, 128x96, 12 a second, without sound."""
    path = tmp_path_factory.mktemp("clip") / "clip.mkv"
    with VideoWriter(path, Size(128, 96), Fraction(12)) as out:
        for index in range(6):
            out.write(np.roll(picture, 4 * index, axis=1))
    return path
