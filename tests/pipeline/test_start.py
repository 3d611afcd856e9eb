import gc
from collections.abc import Iterator

import pytest

from instantvision.pipeline.config import Settings, Size
from instantvision.pipeline.start import started_live_engine


@pytest.fixture
def collector() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_a_live_engine_leaves_nothing_to_look_through_for_garbage(collector, toy_model):
    kept = [[] for _ in range(1000)]
    engine = started_live_engine(toy_model, Settings(size=Size(64, 64), steps=1))
    engine.close()
    frozen, living = gc.get_freeze_count(), len(gc.get_objects())
    assert frozen > 100 * living
    del kept
