"""Our UNet against diffusers', on tiny random checkpoints of every shape of model that we run."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor

from instantvision.pipeline.checkpoint import load_diffusers_folder, load_into
from instantvision.pipeline.errors import WeightsError
from instantvision.pipeline.unet import UNet, sinusoids
from instantvision.pipeline.unet_config import UNetConfig

# The same operations in another order differ in fp32's last places only; a wrong one by far more than this.
TOLERANCE = 1e-4
# bf16 keeps 8 bits; the networks are some dozens of layers deep.
TOLERANCE_BF16 = 5e-2

# Widths are shrunk, all else is as published. Fewer groups than channels: a norm of single channels would
# undo the bias before it.
SMALL = {"norm_num_groups": 8, "cross_attention_dim": 24}
THREE_LEVELS = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
MINI = SMALL | {
    "in_channels": 16,
    "out_channels": 8,
    "block_out_channels": [32, 32],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 4,
    "use_linear_projection": True,
    "resnet_time_scale_shift": "scale_shift",
    "class_embed_type": "projection",
    "projection_class_embeddings_input_dim": 12,
    "time_embedding_dim": 48,
}
MINI_DEEPER = MINI | THREE_LEVELS | {"block_out_channels": [16, 32, 48], "attention_head_dim": [1, 2, 3]}
SD_15 = SMALL | {"block_out_channels": [32, 64, 64, 64], "attention_head_dim": 8}
SD_21 = SMALL | {
    "block_out_channels": [16, 32, 64, 64],
    "attention_head_dim": [1, 2, 4, 4],
    "use_linear_projection": True,
    "upcast_attention": True,
}
SD_TURBO = SD_21 | {"upcast_attention": None, "dual_cross_attention": False, "num_class_embeds": None}
SDXL = (
    SMALL
    | THREE_LEVELS
    | {
        "block_out_channels": [16, 32, 64],
        "attention_head_dim": [1, 2, 4],
        "transformer_layers_per_block": [1, 2, 3],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 12 + 6 * 8,
        "upcast_attention": None,
    }
)
CASES = {
    "mini": MINI,
    "mini deeper": MINI_DEEPER,
    "sd 1.5": SD_15,
    "sd 2.1": SD_21,
    "sd turbo": SD_TURBO,
    "sdxl": SDXL,
}


@dataclass(frozen=True)
class Pair:
    """diffusers' network, and ours with the weights that diffusers saved."""

    reference: UNet2DConditionModel
    ours: UNet


@dataclass(frozen=True)
class Inputs:
    sample: Tensor
    timestep: Tensor
    tokens: Tensor
    extras: dict[str, Tensor]


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES.keys())
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("unet")
    return make_pair(request.param, folder)


def make_pair(config: dict[str, Any], folder: Path) -> Pair:
    torch.manual_seed(7)
    reference = UNet2DConditionModel(**config).eval()
    with torch.no_grad():
        # Norms start at 1 and 0, where a forgotten one would go unseen.
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    reference.save_pretrained(folder)
    saved, tensors = load_diffusers_folder(folder)
    ours = UNet(UNetConfig.from_diffusers(saved)).eval()
    load_into(ours, tensors)
    return Pair(reference, ours)


def make_inputs(config: UNetConfig, height: int, width: int) -> Inputs:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    extras = {}
    if config.class_embed_type:
        extras["class_labels"] = normal(2, 12)
    if config.addition_embed_type:
        extras["text_embeds"] = normal(2, 12)
        extras["time_ids"] = torch.tensor([[512.0, 768, 0, 16, 512, 512], [1024, 1024, 8, 0, 640, 384]])
    return Inputs(
        normal(2, config.in_channels, height, width), torch.tensor([999, 3]), normal(2, 7, 24), extras
    )


def evaluate(unet: UNet, inputs: Inputs) -> Tensor:
    return unet(inputs.sample, inputs.timestep, inputs.tokens, **inputs.extras)


def evaluate_reference(unet: UNet2DConditionModel, inputs: Inputs) -> Tensor:
    added = {name: value for name, value in inputs.extras.items() if name != "class_labels"}
    return unet(
        inputs.sample,
        inputs.timestep,
        inputs.tokens,
        class_labels=inputs.extras.get("class_labels"),
        added_cond_kwargs=added,
    ).sample


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found.float() - expected).norm() / expected.norm()).item()


# 13x22 is odd on most levels of one axis or the other, and the levels above must come back to it.
@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24), (13, 22)])
@torch.no_grad()
def test_output_equals_diffusers(pair: Pair, height: int, width: int) -> None:
    inputs = make_inputs(pair.ours.config, height, width)
    expected = evaluate_reference(pair.reference, inputs)
    found = evaluate(pair.ours, inputs)
    assert found.shape == expected.shape
    assert relative_error(found, expected) <= TOLERANCE


def test_parameter_names_equal_diffusers(pair: Pair) -> None:
    assert pair.ours.state_dict().keys() == pair.reference.state_dict().keys()


def test_norms_have_diffusers_epsilon(pair: Pair) -> None:
    expected = {name: module.eps for name, module in pair.reference.named_modules() if hasattr(module, "eps")}
    assert {
        name: module.eps for name, module in pair.ours.named_modules() if hasattr(module, "eps")
    } == expected


def test_every_parameter_has_an_effect(pair: Pair) -> None:
    pair.ours.zero_grad()
    evaluate(pair.ours, make_inputs(pair.ours.config, 16, 16)).square().sum().backward()
    idle = [
        name for name, p in pair.ours.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-6
    ]
    assert not idle


@torch.no_grad()
def test_embedding_once_gives_the_same(pair: Pair) -> None:
    inputs = make_inputs(pair.ours.config, 8, 8)
    emb = pair.ours.embed(inputs.timestep, **inputs.extras)
    assert emb.shape == (2, pair.ours.config.emb_channels)
    assert torch.equal(
        pair.ours.forward_embedded(inputs.sample, emb, inputs.tokens), evaluate(pair.ours, inputs)
    )


@torch.no_grad()
def test_one_embedding_serves_a_batch(pair: Pair) -> None:
    inputs = make_inputs(pair.ours.config, 8, 8)
    extras = {name: value[:1] for name, value in inputs.extras.items()}
    emb, tokens = pair.ours.embed(inputs.timestep[:1], **extras), inputs.tokens[:1]
    expected = pair.ours.forward_embedded(inputs.sample, emb.expand(2, -1), tokens.expand(2, -1, -1))
    assert relative_error(pair.ours.forward_embedded(inputs.sample, emb, tokens), expected) <= TOLERANCE


@torch.no_grad()
def test_bfloat16_and_channels_last_stay_close(pair: Pair) -> None:
    inputs = make_inputs(pair.ours.config, 13, 16)
    expected = evaluate(pair.ours, inputs)
    last = Inputs(
        inputs.sample.to(memory_format=torch.channels_last), inputs.timestep, inputs.tokens, inputs.extras
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = evaluate(pair.ours, last)
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(found, expected) <= TOLERANCE_BF16


@torch.no_grad()
def test_compiles_to_one_graph() -> None:
    unet = UNet(UNetConfig.from_diffusers(MINI)).eval()
    inputs = make_inputs(unet.config, 13, 16)
    compiled = torch.compile(unet, fullgraph=True, dynamic=False, backend="eager")
    assert relative_error(evaluate(compiled, inputs), evaluate(unet, inputs)) <= TOLERANCE


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("shift", [0, 1])
def test_sinusoids_equal_diffusers(flip: bool, shift: int) -> None:
    values = torch.tensor([0, 1, 17, 999])
    expected = get_timestep_embedding(values, 32, flip_sin_to_cos=flip, downscale_freq_shift=shift)
    assert torch.allclose(sinusoids(values, 32, flip_sin_to_cos=flip, freq_shift=shift), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_class_name", "UNet2DModel"),
        ("act_fn", "gelu"),
        ("mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
        ("mid_block_type", None),
        ("time_cond_proj_dim", 256),
        ("num_attention_heads", 8),
        ("only_cross_attention", True),
        ("attention_type", "gated"),
        ("conv_in_kernel", 1),
        ("class_embed_type", "timestep"),
        ("addition_embed_type", "text"),
        ("resnet_time_scale_shift", "ada_group"),
        ("down_block_types", ["AttnDownBlock2D", "DownBlock2D"]),
        ("up_block_types", ["AttnUpBlock2D", "UpBlock2D"]),
        ("a_key_of_next_year", 1),
    ],
)
def test_config_we_do_not_implement_is_refused(key: str, value: object) -> None:
    with pytest.raises(WeightsError, match=key if key != "_class_name" else "class") as caught:
        UNetConfig.from_diffusers(MINI | {key: value})
    named = value[0] if isinstance(value, list) else value
    assert str(named) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"block_out_channels": [32, 44]}, "44 in block_out_channels.*norm_num_groups=8"),
        ({"transformer_layers_per_block": [[1], [1]]}, "transformer_layers_per_block"),
        ({"norm_num_groups": None}, "norm_num_groups=None"),
        ({"attention_head_dim": 5}, "attention_head_dim=5"),
        ({"layers_per_block": [1, 1, 1]}, "3 values of layers_per_block, expected 2"),
        ({"projection_class_embeddings_input_dim": None}, "projection_class_embeddings_input_dim"),
        ({"addition_embed_type": "text_time"}, "addition_time_embed_dim"),
    ],
)
def test_config_that_contradicts_itself_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(WeightsError, match=said):
        UNetConfig.from_diffusers(MINI | change)


def test_defaults_are_diffusers() -> None:
    theirs = {
        name: p.default for name, p in inspect.signature(UNet2DConditionModel.__init__).parameters.items()
    }
    del theirs["self"]
    assert UNetConfig.from_diffusers(theirs) == UNetConfig()


def test_conditioning_that_does_not_fit_is_refused() -> None:
    mini, sd = UNet(UNetConfig.from_diffusers(MINI)), UNet(UNetConfig.from_diffusers(SD_15))
    timestep = torch.tensor([3])
    with pytest.raises(ValueError, match="class_labels is missing"):
        mini.embed(timestep)
    with pytest.raises(ValueError, match="class_labels is given"):
        sd.embed(timestep, class_labels=torch.zeros(1, 12))
    with pytest.raises(ValueError, match="time_ids is given"):
        sd.embed(timestep, time_ids=torch.zeros(1, 6))
