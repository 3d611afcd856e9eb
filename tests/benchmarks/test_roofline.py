"""Bytes and operations of networks, against counts by hand and against torch's own counter."""

import json
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import roofline
from roofline import Ceilings, count, fused, rows

# Round numbers: 1 us for a million operations of either kind, or for a million bytes.
ROUND = Ceilings(matmul_tflops=1.0, attention_tflops=1.0, copy_tbps=1.0)


def tensor(*shape):
    return torch.empty(shape, device="meta", dtype=torch.bfloat16)


def by_kind(part):
    return {kind: [call for call in part.calls if call.kind == kind] for kind in {c.kind for c in part.calls}}


class Everything(nn.Module):
    """One operation of each kind, and some views that cost nothing."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 3, padding=1)
        self.point = nn.Conv2d(16, 16, 1)
        self.norm = nn.GroupNorm(4, 16)
        self.linear = nn.Linear(16, 16, bias=False)

    def forward(self, x):
        x = F.silu(self.norm(self.point(self.conv(x))))
        x = x.flatten(2).transpose(1, 2)
        query = self.linear(x).unflatten(-1, (2, 8)).transpose(1, 2)
        return torch.cat([F.scaled_dot_product_attention(query, query, query)] * 2, dim=1)


@pytest.fixture(scope="module")
def part():
    module = Everything().to("meta", torch.bfloat16)
    return count(module, module, tensor(1, 8, 4, 6))


def test_operations_by_hand(part):
    flops = {kind: sum(call.flops for call in calls) for kind, calls in by_kind(part).items()}
    assert flops.pop("conv3x3") == 2 * 24 * 16 * 8 * 9
    assert flops.pop("linear") == 2 * (2 * 24 * 16 * 16)
    # Two heads of 8, 24 tokens to 24 tokens, twice: scores and sums.
    assert flops.pop("attention") == 2 * (2 * 2 * 24 * 24 * 8)
    assert set(flops) == {"norm", "elementwise", "copy"}
    assert not any(flops.values())


def test_bytes_by_hand(part):
    kinds = by_kind(part)
    picture = 2 * 24 * 16
    assert [call.moved for call in kinds["conv3x3"]] == [2 * (24 * 8 + 16 * 8 * 9 + 16) + picture]
    assert [call.moved for call in kinds["attention"]] == [4 * picture]
    assert [call.moved for call in kinds["norm"]] == [2 * picture + 2 * 2 * 16]
    assert [call.moved for call in kinds["elementwise"]] == [2 * picture]
    # The last one is the concatenation of two; the linear layer's input may be gathered before it.
    assert kinds["copy"][-1].moved == 2 * 2 * picture


def test_views_cost_nothing():
    part = count(nn.Identity(), lambda x: x.view(4, 2).t()[1:].unsqueeze(0).expand(3, -1, -1), tensor(8))
    assert part.calls == []


def test_what_is_repeated_without_memory_is_read_once():
    part = count(nn.Identity(), lambda x: x.expand(100, 8) + 1, tensor(1, 8))
    assert [call.moved for call in part.calls] == [2 * 8 + 2 * 800]


def test_the_longer_of_bytes_and_operations_is_the_floor():
    assert ROUND.floor_us("conv3x3", 2_000_000, 3_000_000) == 3
    assert ROUND.floor_us("conv3x3", 4_000_000, 3_000_000) == 4
    faster = Ceilings(matmul_tflops=2.0, attention_tflops=1.0, copy_tbps=1.0)
    assert faster.floor_us("attention", 0, 3_000_000) == 3
    assert faster.floor_us("linear", 0, 3_000_000) == 1.5


def test_the_table_adds_up_and_joins_what_was_measured(part):
    lines = {row.kind: row for row in rows("all", part, ROUND, {"norm": 10.0, "all": 100.0})}
    *kinds, apart, whole = lines.values()
    assert apart.calls == sum(row.calls for row in kinds) == len(part.calls)
    assert apart.floor_us == pytest.approx(sum(row.floor_us for row in kinds))
    assert lines["norm"].ratio == pytest.approx(10.0 / lines["norm"].floor_us)
    assert lines["conv3x3"].ratio is None
    assert whole.ratio == pytest.approx(100.0 / whole.floor_us)
    assert whole.floor_us <= apart.floor_us


def test_fused_moves_weights_input_and_output_once(part):
    weights = 16 * 8 * 9 + 16 + 16 * 16 + 16 + 16 + 16 + 16 * 16
    assert part.needed == 2 * (weights + 24 * 8 + 2 * 24 * 16)
    assert fused("all", part, ROUND, {}).mbytes == pytest.approx(part.needed / 1e6)


def test_shapes_are_sorted_by_their_floor(part):
    floors = [row.floor_us for row in roofline.by_shape("all", part, ROUND)]
    assert floors == sorted(floors, reverse=True)
    assert sum(floors) == pytest.approx(rows("all", part, ROUND, {})[-2].floor_us)


@torch.no_grad()
def test_mini_has_as_many_operations_as_torch_counts():
    found = roofline.parts("mini", 64)["evaluation"]
    unet = roofline.UNet(roofline.MINI_UNET)
    inputs = (torch.zeros(1, 64, 4, 4), torch.zeros(1, 512), torch.zeros(1, 8, 256))
    with FlopCounterMode(display=False) as counter:
        unet.forward_embedded(*inputs)
    # torch's counter does not know the attention that runs on a CPU.
    flops = sum(call.flops for call in found.calls if call.kind != "attention")
    assert flops == counter.get_total_flops()


@pytest.mark.parametrize(("model", "side", "tflop"), [("sdxl", 1024, 6.76), ("sd-turbo", 512, 0.80)])
def test_published_models_have_the_known_number_of_operations(model, side, tflop):
    part = roofline.parts(model, side)["evaluation"]
    assert sum(call.flops for call in part.calls) / 1e12 == pytest.approx(tflop, abs=0.01)


def test_a_frame_counts_every_step(part):
    counted = {"encode": part, "evaluation": part, "decode": part}
    apart, whole = roofline.frame_rows(counted, 8, ROUND, {})
    assert apart.calls == 10 * len(part.calls)
    assert whole.floor_us == pytest.approx(10 * fused("all", part, ROUND, {}).floor_us)


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["roofline.py", "--side", "64", *map(str, arguments)])
    assert roofline.main() == 0
    return capsys.readouterr().out


def test_the_command_prints_a_table(monkeypatch, capsys):
    lines = run(monkeypatch, capsys).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[-1].startswith("| frame | all, fused |")
    assert "3x3 -> " in run(monkeypatch, capsys, "--shapes")


def test_the_command_takes_measured_times_and_ceilings(monkeypatch, capsys, tmp_path):
    file = tmp_path / "measured.json"
    file.write_text(json.dumps({"evaluation": {"conv3x3": 50.0}, "frame": {"all": 4600.0}}))

    def found(*arguments):
        lines = json.loads(run(monkeypatch, capsys, "--measured", file, "--json", *arguments))
        return {(line["part"], line["kind"]): line for line in lines}

    slow, fast = found(), found("--copy-tbps", 30.2, "--matmul-tflops", 7840)
    assert slow["evaluation", "conv3x3"]["measured_us"] == 50
    assert slow["frame", "all, fused"]["measured_us"] == 4600
    key = ("evaluation", "conv3x3")
    assert fast[key]["ratio"] == pytest.approx(10 * slow[key]["ratio"])
