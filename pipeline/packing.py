"""How weights are laid out for the layers' kernels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Depth of a matrix product's step that every kernel can take: fewer input channels are filled up with zeros.
CHANNELS_MULTIPLE = 16


def parameters(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear or convolutional layer that has both."""
    weight, bias = layer.weight, layer.bias
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor):
        raise TypeError(f"{type(layer).__name__} has no weight or no bias")
    return weight.data, bias.data


def filled_up(weight: Tensor, multiple: int) -> Tensor:
    """A convolution's weight with as many more input channels of zeros as make a multiple."""
    missing = -weight.shape[1] % multiple
    return F.pad(weight, (0, 0, 0, 0, 0, missing)).contiguous(memory_format=torch.channels_last)
