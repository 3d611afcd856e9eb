"""Which UNet a checkpoint is: the keys of diffusers' UNet2DConditionModel configuration that we implement.

Knows nothing of torch.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from instantvision.pipeline.diffusers_config import implemented_values
from instantvision.pipeline.errors import WeightsError

# Keys with one value in every model we run.
FIXED: Mapping[str, object] = {
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "act_fn": "silu",
    "num_attention_heads": None,
    "only_cross_attention": False,
    "mid_block_only_cross_attention": None,
    "reverse_transformer_layers_per_block": None,
    "center_input_sample": False,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "dropout": 0.0,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "dual_cross_attention": False,
    "cross_attention_norm": None,
    "attention_type": "default",
    "num_class_embeds": None,
    "class_embeddings_concat": False,
    "addition_embed_type_num_heads": 64,
    "time_embedding_type": "positional",
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
}

# Keys that describe the training, not the network.
DESCRIPTIVE = ("sample_size",)

# Block types by name, and whether they have transformers.
DOWN_TYPES = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
UP_TYPES = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}

CHOICES: Mapping[str, Collection[str | None]] = {
    "down_block_types": DOWN_TYPES,
    "up_block_types": UP_TYPES,
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None, "projection"),
    "addition_embed_type": (None, "text_time"),
}
COUNTS = (
    "in_channels",
    "out_channels",
    "block_out_channels",
    "layers_per_block",
    "transformer_layers_per_block",
    "attention_head_dim",
    "cross_attention_dim",
    "norm_num_groups",
)
PER_BLOCK = (
    "down_block_types",
    "up_block_types",
    "layers_per_block",
    "transformer_layers_per_block",
    "attention_head_dim",
    "cross_attention_dim",
)
NEEDED_BY = {
    "projection_class_embeddings_input_dim": ("class_embed_type", "addition_embed_type"),
    "addition_time_embed_dim": ("addition_embed_type",),
}


@dataclass(frozen=True)
class Level:
    """One row of the table of blocks.

    Args:
        channels: of everything the block gives out.
        layers: residual blocks.
        depth: transformer layers after each residual block; 0: no attention.
        heads: attention heads.
        context: width of the tokens that cross-attention reads.
    """

    channels: int
    layers: int
    depth: int
    heads: int
    context: int


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Shape of a UNet, in diffusers' keys and with diffusers' defaults.

    Args:
        attention_head_dim: the NUMBER of heads of each block, in spite of its name; diffusers' issue 2011
            tells why all published configurations have it so.
        upcast_attention: accepted and without effect: fused attention always sums in fp32.
        projection_class_embeddings_input_dim: width of class_labels ('projection') or of text_embeds together
            with the embedded time_ids ('text_time').
        time_embedding_dim: None is four times the first of block_out_channels.

    Raises:
        WeightsError: values that contradict each other or that we do not implement.
    """

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    transformer_layers_per_block: int | tuple[int, ...] = 1
    attention_head_dim: int | tuple[int, ...] = 8
    cross_attention_dim: int | tuple[int, ...] = 1280
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    use_linear_projection: bool = False
    upcast_attention: bool | None = False
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    class_embed_type: Literal["projection"] | None = None
    addition_embed_type: Literal["text_time"] | None = None
    addition_time_embed_dim: int | None = None
    time_embedding_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    flip_sin_to_cos: bool = True
    freq_shift: float = 0

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> Self:
        """Read the dictionary in a checkpoint's config.json.

        Raises:
            WeightsError: naming the first key whose value we do not implement.
        """
        config = {key: value for key, value in config.items() if key not in DESCRIPTIVE}
        keys = {field.name for field in fields(cls)}
        return cls(**implemented_values(config, class_name="UNet2DConditionModel", keys=keys, fixed=FIXED))

    def __post_init__(self) -> None:
        self._check_choices()
        for name in PER_BLOCK:
            values = self._per_block(getattr(self, name))
            if len(values) != len(self.block_out_channels):
                raise WeightsError(
                    f"the UNet's config has {len(values)} values of {name}, expected "
                    f"{len(self.block_out_channels)}, one for each of block_out_channels"
                )
        for level in (*self.down_levels, self.mid_level, *self.up_levels):
            _check_divides("norm_num_groups", self.norm_num_groups, level.channels)
            if level.depth:
                _check_divides("attention_head_dim", level.heads, level.channels)

    @property
    def emb_channels(self) -> int:
        """Width of the time embedding."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @property
    def down_levels(self) -> tuple[Level, ...]:
        """The table of blocks on the way down, finest first."""
        return tuple(self._level(i, DOWN_TYPES[name], 0) for i, name in enumerate(self.down_block_types))

    @property
    def up_levels(self) -> tuple[Level, ...]:
        """The table of blocks on the way up, coarsest first: a residual block more than on the way down."""
        last = len(self.up_block_types) - 1
        return tuple(self._level(last - i, UP_TYPES[name], 1) for i, name in enumerate(self.up_block_types))

    @property
    def mid_level(self) -> Level:
        """The block in the middle: always with attention."""
        return self._level(len(self.block_out_channels) - 1, True, 0)

    def _level(self, i: int, attends: bool, more_layers: int) -> Level:
        return Level(
            channels=self.block_out_channels[i],
            layers=self._per_block(self.layers_per_block)[i] + more_layers,
            depth=self._per_block(self.transformer_layers_per_block)[i] if attends else 0,
            heads=self._per_block(self.attention_head_dim)[i],
            context=self._per_block(self.cross_attention_dim)[i],
        )

    def _per_block(self, value: int | tuple[int, ...]) -> tuple[int, ...]:
        """A number for each block, from one for all or from what is a number for each block already."""
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)

    def _items(self, name: str) -> tuple[Any, ...]:
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,)

    def _check_choices(self) -> None:
        for name, choices in CHOICES.items():
            for item in self._items(name):
                if item not in choices:
                    raise WeightsError(
                        f"the UNet's config has {name}={item!r}, expected one of {list(choices)}"
                    )
        for name in COUNTS:
            for item in self._items(name):
                if not isinstance(item, int) or item < 1:
                    raise WeightsError(
                        f"the UNet's config has {name}={item!r}, expected a positive whole number"
                    )
        for name, needed_by in NEEDED_BY.items():
            if not getattr(self, name) and any(getattr(self, other) for other in needed_by):
                raise WeightsError(f"the UNet's config lacks {name}, which {' and '.join(needed_by)} needs")


def _check_divides(name: str, divisor: int, channels: int) -> None:
    if channels % divisor:
        raise WeightsError(
            f"the UNet's config has {channels} in block_out_channels, expected a multiple of {name}={divisor}"
        )
