"""Weights in e4m3, eight bits a number: half the bytes of sixteen, and twice a GPU's arithmetic.

What is multiplied with them was just normalised or gated, so it fits e4m3 as it is; what is smaller comes multiplied by
a constant, and weights are scaled to its range. The error of it all is measured, not assumed (benchmarks/README.md).

Source: Micikevicius et al. 2022 (arXiv 2209.05433), section 3.
"""

from typing import Any

import torch
from torch import Tensor

from instantvision.kernels import LayerOps, TokenOps
from instantvision.kernels.token_reference import E4M3_MAX, pairs, product
from instantvision.pipeline.errors import EngineError

E4M3 = torch.float8_e4m3fn
# Compute capability of the first GPUs with arithmetic in e4m3.
CAPABILITY = (8, 9)
# Depth of a matrix product's step in e4m3.
CHANNELS_MULTIPLE = 64


def check_device(device: torch.device) -> None:
    """Refuse a GPU without arithmetic in e4m3; a CPU computes the same numbers slowly.

    Raises:
        EngineError: naming the GPU.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < CAPABILITY:
        raise EngineError(
            f"{torch.cuda.get_device_name(device)} has no 8-bit floating point arithmetic: leave fp8 away"
        )


def scaled(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A convolution's weight, [N, C, rows, columns], in e4m3, and what its results are multiplied by, [N]."""
    # Never zero, for features whose weights all are.
    scale = (weight.flatten(1).abs().amax(1).float() / E4M3_MAX).clamp_min(torch.finfo(torch.float32).tiny)
    small = (weight / scale[:, None, None, None]).to(E4M3)
    return small.contiguous(memory_format=torch.channels_last), scale


def fits_e4m3(weight: Tensor) -> bool:
    """Whether a library multiplies with a weight, [N, C], in e4m3."""
    return all(side % 16 == 0 for side in weight.shape)


class Product:
    """x -> x @ weight.T, [..., C] -> [..., N].

    Args:
        weight: [N, C].
        fp8: keep it in e4m3, and take x in e4m3, if its sides are multiples of 16.
        scale: an x in e4m3 is so many times too large.
        out_scale: if given, a product of x in e4m3 is in e4m3, too, and so many times too large.
    """

    def __init__(
        self,
        weight: Tensor,
        fp8: bool,
        *,
        scale: float = 1.0,
        out_scale: float | None = None,
    ) -> None:
        self.dtype = self.out_dtype = weight.dtype
        self.scale = self.out_scale = 1.0
        self._weight = weight
        self._scales: tuple[Tensor, Tensor] | None = None
        if fp8 and fits_e4m3(weight):
            weight_scale = weight.abs().max().float() / E4M3_MAX
            self.dtype, self.scale, self._weight = E4M3, scale, (weight / weight_scale).to(E4M3)
            if out_scale is not None:
                self.out_dtype, self.out_scale = E4M3, out_scale
            # One factor for all three scales: the library takes one for each side, and multiplies them.
            self._scales = torch.ones_like(weight_scale), weight_scale * (self.out_scale / scale)

    def __call__(self, x: Tensor) -> Tensor:
        return product(x, self._weight, self._scales, self.out_dtype)


class GatedProduct(Product):
    """x -> values times GELU of gates, [..., C] -> [..., N], both of which are one product.

    Args:
        tokens: `token_reference`, or kernels of the same signatures.
        weight: for values and then for gates, [2N, C].
        bias: in the same order, [2N].
        fp8: as Product's; a product that goes to memory is then in e4m3, and `gate_scale` times too large.
    """

    def __init__(
        self, tokens: TokenOps, weight: Tensor, bias: Tensor, fp8: bool, *, gate_scale: float
    ) -> None:
        # In sixteen bits the weight stays that of the network: in another order it would be in memory twice.
        if fp8 and fits_e4m3(weight):
            weight, bias = pairs(weight), pairs(bias)
        super().__init__(weight, fp8, out_scale=gate_scale)
        self._tokens, self._bias = tokens, bias

    def gated(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Values times GELU of gates, in a type of their own."""
        if self._scales is None:
            return self._tokens.geglu(self(x), self._bias, dtype=dtype)
        return self._tokens.gated_product(
            x, self._weight, self._bias, self._scales, dtype=dtype, gate_scale=self.out_scale
        )


class Convolution:
    """A 3x3 convolution over normalised pictures.

    Args:
        layers: `reference_layers`, or kernels of the same signatures.
        weight: [N, C, 3, 3], channels_last.
        bias: [N].
        fp8: take pictures in e4m3, if their channels are a multiple of 64.
    """

    def __init__(self, layers: LayerOps, weight: Tensor, bias: Tensor, fp8: bool) -> None:
        self._layers, self._weight, self._bias = layers, weight, bias
        self._scale: Tensor | None = None
        if fp8 and weight.shape[1] % CHANNELS_MULTIPLE == 0:
            self._weight, self._scale = scaled(weight)

    @property
    def dtype(self) -> torch.dtype | None:
        """In which type a picture should come; None is the one it has."""
        return None if self._scale is None else E4M3

    def __call__(self, framed: Tensor, **options: Any) -> tuple[Tensor, Tensor | None]:
        """See `conv_reference.conv3x3`."""
        return self._layers.conv3x3(framed, self._weight, self._bias, scale=self._scale, **options)
