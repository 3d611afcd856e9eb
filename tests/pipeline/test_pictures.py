"""The memory of finished pictures: never written to while anybody holds the picture."""

import numpy as np
import torch

from instantvision.pipeline.graphs import Pictures
from instantvision.pipeline.runner import IN_FLIGHT_MAX

SHAPE = (4, 6, 3)


def painted(pictures: Pictures, value: int) -> np.ndarray:
    memory = pictures.take()
    memory.fill_(value)
    return pictures.finished(memory)


def test_a_picture_stays_as_it_is_while_anybody_holds_it_or_a_part_of_it():
    pictures = Pictures(SHAPE, 5, pinned=False)
    kept = [painted(pictures, value)[1:, ::-1] for value in range(20)]
    for value, part in enumerate(kept):
        assert (part == value).all()


def test_memory_is_used_again_once_nobody_holds_the_picture():
    pictures = Pictures(SHAPE, 5, pinned=False)
    places = {painted(pictures, value).ctypes.data for value in range(20)}
    assert len(places) <= 5
    held = painted(pictures, 7)
    for value in range(20):
        assert painted(pictures, value).ctypes.data != held.ctypes.data
    assert (held == 7).all()


def test_who_keeps_many_pictures_never_uses_up_the_memory_of_frames_on_their_way():
    pictures = Pictures(SHAPE, IN_FLIGHT_MAX + 1, pinned=False)
    kept = [painted(pictures, value) for value in range(10)]
    on_their_way = [pictures.take() for _ in range(IN_FLIGHT_MAX)]
    assert len({memory.data_ptr() for memory in on_their_way}) == IN_FLIGHT_MAX
    for memory in on_their_way:
        memory.fill_(99)
    assert [int(picture[0, 0, 0]) for picture in kept] == list(range(10))


def test_a_picture_outlives_the_pictures_it_came_from():
    pictures = Pictures(SHAPE, 3, pinned=False)
    picture = painted(pictures, 3)
    del pictures
    torch.zeros(1000)
    assert picture.flags.writeable
    assert (picture == 3).all()
