"""Ours beside diffusers on tiny networks: the same results, an honest file, and nothing that stops the rest."""

import json
import sys
import threading
from dataclasses import replace

import pytest
import torch

import peer_models
import peers
import subjects
from instantvision.pipeline.autoencoder_tiny import AutoencoderTinyConfig
from instantvision.pipeline.published import SD_TURBO, SDXL
from methods import OutOfTime, relative_error, theirs, time_limit
from subjects import Work
from turns import Plan

CPU = torch.device("cpu")
OPTIONS = peers.Options(
    device=CPU,
    dtype=torch.float32,
    compile_mode=None,
    budget_s=60.0,
    plan=Plan(calls=1, samples=2, seconds=1.0, burst_s=0.0),
)
FRAME, EVALUATION = Work("tiny", "frame", 64, 2), Work("tiny", "evaluation", 64)


def tiny(config):
    more = {}
    if config.unet.addition_embed_type:
        more = {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 12 + 6 * 8}
    unet = replace(
        config.unet,
        block_out_channels=(16, 16, 32, 32)[: len(config.unet.block_out_channels)],
        attention_head_dim=2,
        transformer_layers_per_block=1,
        cross_attention_dim=24,
        norm_num_groups=8,
        **more,
    )
    widths = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    autoencoder = AutoencoderTinyConfig(**widths)
    return subjects.diffusion(replace(config, unet=unet, autoencoder=autoencoder, tokens=5))


@pytest.fixture(params=[SD_TURBO, SDXL], ids=["sd-turbo", "sdxl"])
def make(request):
    return tiny(request.param)


@pytest.fixture
def tiny_subject(monkeypatch):
    monkeypatch.setattr(peers, "SUBJECTS", {"tiny": tiny(SD_TURBO)})


def run(tmp_path, *works, **changes):
    path = tmp_path / "new" / "peers.json"
    fine = peers.run([works], replace(OPTIONS, **changes), path)
    return fine, json.loads(path.read_text())["works"]


@pytest.mark.parametrize("work", [FRAME, EVALUATION], ids=str)
def test_both_sides_give_the_same(make, work):
    entry = {"methods": {}}
    peers.Bench(make, OPTIONS).measure(work, entry)
    # Against itself: the noise, prompt and steps of the float32 model are those of the eager one.
    assert entry["comparison"]["eager"] == 0
    # A frame's bytes may differ by one where a value is near a half.
    assert entry["comparison"]["ours"] < (2e-3 if work is FRAME else 1e-4)


@torch.no_grad()
def test_mini_on_both_sides_gives_the_same():
    entry = {"methods": {}}
    work = Work("mini", "frame", 64, 1, ("ours",))
    peers.Bench(subjects.mini, OPTIONS).measure(work, entry)
    assert entry["comparison"]["ours"] < 2e-3
    assert set(entry["methods"]) == {"ours", "eager"}
    assert "fps" in entry["methods"]["ours"]
    assert "fps" not in entry["methods"]["eager"]


def test_the_file_is_complete(tiny_subject, tmp_path, capsys):
    fine, works = run(tmp_path, FRAME, EVALUATION)
    assert fine
    assert list(works) == ["tiny frame, 2 steps, 64x64", "tiny evaluation, 64x64"]
    for entry in works.values():
        assert entry["error"] is None
        assert list(entry["methods"]) == ["ours", "eager"]
        for method in entry["methods"].values():
            assert 0 < method["host_ms"]["median"] <= method["host_ms"]["p95"]
            assert method["samples"] >= 2
            assert method["build_s"] > 0
            assert method["no_power_because"]
    assert "relative error" in capsys.readouterr().out


def test_different_results_are_not_timed(tiny_subject, tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "ours", lambda *_: theirs("eager", other_parts(), EVALUATION))
    fine, works = run(tmp_path, EVALUATION)
    assert not fine
    (entry,) = works.values()
    assert entry["error"].startswith("Refused: relative errors to float32 are ours")
    assert not any("host_ms" in method for method in entry["methods"].values())


def other_parts():
    subject = tiny(SD_TURBO)(CPU, torch.float32)
    weights = replace(subject.weights, unet={k: 1.1 * v for k, v in subject.weights.unet.items()})
    return peer_models.PeerParts(peer_models.DiffusersModel(subject.ours, weights, torch.float32), None)


def test_a_work_that_fails_leaves_the_others(tiny_subject, tmp_path):
    fine, works = run(tmp_path, replace(FRAME, side=63), EVALUATION)
    assert not fine
    first, second = works.values()
    assert "63" in first["error"]
    assert second["error"] is None
    assert "fps" in second["methods"]["ours"]


def test_a_compiler_that_fails_is_noted(tiny_subject, tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", refuse)
    fine, works = run(tmp_path, EVALUATION, compile_mode="default")
    assert fine
    (entry,) = works.values()
    assert entry["methods"]["compiled"] == {"error": "RuntimeError: no compiler here"}
    assert "fps" in entry["methods"]["eager"]


def test_a_compiler_without_end_is_noted(tiny_subject, tmp_path, monkeypatch):
    def compile_forever(*_args, **_kwargs):
        threading.Event().wait(60)

    monkeypatch.setattr(torch, "compile", compile_forever)
    fine, works = run(tmp_path, EVALUATION, compile_mode="default", budget_s=0.1)
    assert fine
    (entry,) = works.values()
    assert entry["methods"]["compiled"]["error"].startswith("not finished")
    assert "fps" in entry["methods"]["ours"]


def test_a_compiled_peer_is_timed_beside_the_others(tiny_subject, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, mode, dynamic: function)
    _, works = run(tmp_path, FRAME, EVALUATION, compile_mode="default")
    for entry in works.values():
        assert list(entry["methods"]) == ["ours", "eager", "compiled"]
        assert entry["comparison"]["compiled"] == 0
        assert entry["methods"]["compiled"]["samples"] == entry["methods"]["ours"]["samples"]


def test_the_time_limit_goes_through_handlers():
    def careless():
        try:
            threading.Event().wait(60)
        except Exception:  # noqa: BLE001
            pytest.fail("a compiler's handler would have caught it")

    with time_limit(0.01), pytest.raises(OutOfTime):
        careless()


def test_relative_error_is_of_what_varies():
    expected = torch.tensor([100.0, 101.0, 99.0])
    assert relative_error(expected + torch.tensor([0.0, 0.1, -0.1]), expected) == pytest.approx(0.1, rel=1e-4)


def test_unknown_work_is_a_usage_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["peers.py", "--work", "mini,sd3"])
    with pytest.raises(SystemExit, match="2"):
        peers.main()
    assert "--work sd3 is none of mini, " in capsys.readouterr().err
