"""The search for tiles: that it tries what it says and tells what is lost. That needs no GPU; the times do."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

import tiles
from instantvision.kernels import conv3x3
from instantvision.kernels.launch import Blocks
from layer_cases import Case, Way
from tiles import TILES, Trial, asked, candidates, table, tiled, tried, with_tile

OWN = Blocks(64, 64, 32, 4, 4)


def convolve(x):
    """Stands in for a convolution: right with the program's own tile and with high ones, wrong with others."""
    blocks = conv3x3._blocks(100, 64, 32, 2)
    if blocks.columns > 128:
        raise RuntimeError("out of resource: shared memory")
    return x * (1.0 if blocks == OWN or blocks.rows > 64 else 1.1), None


@pytest.fixture
def case():
    way = Way(convolve, {"x": torch.ones(4)})
    return Case(kernel="conv3x3", where="mini", shape="1x4", times=3, ours=way, unfused=way, exact=way)


def test_within_a_tile_is_used_and_after_that_the_programs_own():
    before = conv3x3._blocks
    wanted = OWN._replace(rows=256)
    assert with_tile(lambda: conv3x3._blocks(100, 64, 32, 2), wanted) == wanted
    with pytest.raises(ZeroDivisionError):
        with_tile(lambda: 1 / 0, wanted)
    assert conv3x3._blocks is before


def test_the_programs_choice_is_found_out(case):
    assert asked(case) == conv3x3._blocks(100, 64, 32, 2)
    nothing = Way(lambda: None, {})
    assert asked(replace(case, ours=nothing)) is None


def test_every_tile_is_tried_at_the_programs_depth():
    found = candidates(OWN)
    assert len(found) == len(TILES) * len(tiles.STAGES)
    assert {blocks.depth for blocks in found.values()} == {32}


def test_a_tile_with_wrong_results_cannot_win(case, monkeypatch):
    def times(ways, device):
        fast = {tiles.OWN: 9.0, "256x128x32 8w 3s": 1.0, "64x128x32 4w 3s": 0.5}
        return {key: [fast.get(key, 8.0)] for key in ways}

    monkeypatch.setattr(tiles, "turns", times)
    with tiled(OWN):
        trial = tried(case, OWN, torch.device("cpu"))
    assert trial.fastest[0] == ("256x128x32 8w 3s", 1.0)
    assert len(trial.fastest) == tiles.FASTEST
    # Those that did not run are left out.
    assert set(trial.wrong) == {
        "64x64x32 4w 3s (1.0e-01)",
        "64x128x32 4w 3s (1.0e-01)",
        "64x128x32 4w 4s (1.0e-01)",
    }
    assert trial.lost_us == pytest.approx(3 * (9.0 - 1.0))


def test_the_largest_loss_comes_first_and_gains_are_none():
    common = {"where": "mini", "own": "a", "wrong": ()}
    trials = [
        Trial(shape="small", calls=1, own_us=5.0, fastest=(("b", 4.0), ("c", 4.5)), **common),
        Trial(shape="large", calls=4, own_us=5.0, fastest=(("b", 4.0),), **common),
        Trial(shape="best already", calls=9, own_us=4.0, fastest=(("b", 4.5),), **common),
        Trial(shape="nothing else runs", calls=9, own_us=4.0, fastest=(), **common),
    ]
    lines = table(trials).splitlines()
    assert [line.split("mini ")[-1] for line in lines[:4]] == [
        "large: 4.0 by b",
        "small: 4.0 by b, 4.5 by c",
        "best already: 4.5 by b",
        "nothing else runs: ",
    ]
    assert lines[4] == "    5.0 us lost in all"


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    choice = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
    monkeypatch.setattr(tiles, "choose_device", lambda: choice)
    monkeypatch.setattr("sys.argv", ["tiles.py"])
    assert tiles.main() == 1
    assert "no GPU" in capsys.readouterr().err
