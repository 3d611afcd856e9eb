import threading

import numpy as np
import pytest

from instantvision.pipeline.frames import Closed, Frame, Latest, Origin


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
    ],
)
def test_a_frame_is_rgb_bytes(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8\[H, W, 3\]"):
        Frame(pixels=pixels, index=0, captured_s=0.0, origin=Origin.RAW)


def test_the_newest_value_wins_and_the_loss_is_counted() -> None:
    slot: Latest[int] = Latest()
    for value in (1, 2, 3):
        slot.put(value)

    assert slot.take(0) == 3
    assert slot.take(0) is None
    assert slot.dropped == 2


def test_what_was_taken_is_not_dropped() -> None:
    slot: Latest[int] = Latest()
    for value in (1, 2, 3):
        slot.put(value)
        assert slot.take(0) == value
    assert slot.dropped == 0


def test_what_is_in_a_closed_slot_can_be_taken_once() -> None:
    slot: Latest[int] = Latest()
    slot.put(1)
    slot.close()
    slot.put(2)

    assert slot.take(0) == 1
    with pytest.raises(Closed):
        slot.take(0)


def test_closing_wakes_the_reader() -> None:
    slot: Latest[int] = Latest()
    woken = threading.Event()

    def read() -> None:
        with pytest.raises(Closed):
            slot.take()
        woken.set()

    reader = threading.Thread(target=read)
    reader.start()
    slot.close()
    reader.join(10)
    assert woken.is_set()


def test_a_reader_in_another_thread_sees_rising_values_and_the_last() -> None:
    slot: Latest[int] = Latest()
    seen: list[int] = []

    def read() -> None:
        try:
            while True:
                value = slot.take(10)
                assert value is not None
                seen.append(value)
        except Closed:
            return

    reader = threading.Thread(target=read)
    reader.start()
    for value in range(2000):
        slot.put(value)
    slot.close()
    reader.join(10)

    assert seen == sorted(set(seen))
    assert seen[-1] == 1999
    assert len(seen) + slot.dropped == 2000
