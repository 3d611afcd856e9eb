"""Every layer as a kernel, under the names of `reference_layers`. Needs triton."""

from instantvision.kernels.attention_conv import attention_conv, cross_attention
from instantvision.kernels.conv3x3 import conv3x3, conv3x3_doubled, conv3x3_rms, conv3x3_shallow
from instantvision.kernels.group_norm import channel_moments, group_norm
from instantvision.kernels.library_conv import finish
from instantvision.kernels.linear import linear, norm_linear
from instantvision.kernels.resample import depth_to_space_add, frame, rms_norm_silu, space_to_depth_add

__all__ = [
    "attention_conv",
    "channel_moments",
    "conv3x3",
    "conv3x3_doubled",
    "conv3x3_rms",
    "conv3x3_shallow",
    "cross_attention",
    "depth_to_space_add",
    "finish",
    "frame",
    "group_norm",
    "linear",
    "norm_linear",
    "rms_norm_silu",
    "space_to_depth_add",
]
