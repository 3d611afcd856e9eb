import gc
from collections.abc import Iterator

import pytest

from instantvision.pipeline.config import LiveConfig, Settings, Size
from instantvision.pipeline.live import LiveJob, live
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


def test_garbage_is_looked_for_again_after_loading(collector):
    job = LiveJob(
        source="test-pattern",
        sink="null",
        settings=Settings(size=Size(64, 64), steps=1),
        size_given=True,
        config=LiveConfig(fps=30.0, duration_s=0.1),
    )
    live(job, lambda _stats: None)
    assert gc.isenabled()
