"""What a frame takes over from the one before, in plain torch: what the kernels of temporal_ops must agree with.

Names: C channels, h w latent height and width. One picture at a time. Results go to `out` where it is given.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# How far a position looks at its neighbours, on each side: noise of single positions averages out, and what moves is
# found whole.
REACH = 1


def motion(latents: Tensor, before: Tensor, *, out: Tensor | None = None) -> Tensor:
    """How far each position's latents are from others: the mean square over the channels.

    Args:
        latents, before: of one shape and dtype, [1, C, h, w].
        out: float32 [1, 1, h, w], contiguous.

    Returns:
        float32 [1, 1, h, w].

    Raises:
        ValueError: the latents' shapes or dtypes differ.
    """
    check_pair(latents, before)
    out = plane(latents) if out is None else out
    return out.copy_((latents.float() - before.float()).square().mean(1, keepdim=True))


def gate(motion: Tensor, limits: Tensor) -> Tensor:
    """What share of the new picture each position takes: 0 where it stands still, 1 where it moved, smooth between.

    The root of the motion's mean over the position and its neighbours, brought from `limits` to 0..1 by 3t² - 2t³.

    Args:
        motion: from `motion`, float32 [1, 1, h, w].
        limits: float32 [2], the distance up to which nothing moves and that from which all does; (-2, -1) opens
            every gate.

    Returns:
        float32 [1, 1, h, w], 0..1.
    """
    near = F.avg_pool2d(motion, 2 * REACH + 1, 1, REACH, count_include_pad=False)
    t = ((near.sqrt() - limits[0]) / (limits[1] - limits[0])).clamp(0, 1)
    return t * t * (3 - 2 * t)


def spread(gate: Tensor) -> Tensor:
    """A gate that reaches one position further on all sides and falls off softly: the mean of the neighbours' maxima.

    The denoiser paints strokes across the edge of what moved.

    Args:
        gate: float32 [1, 1, h, w].

    Returns:
        float32 [1, 1, h, w]; 0 further than two positions from any open gate.
    """
    size = 2 * REACH + 1
    return F.avg_pool2d(F.max_pool2d(gate, size, 1, REACH), size, 1, REACH, count_include_pad=False)


def blend(kept: Tensor, new: Tensor, share: Tensor, *, out: Tensor | None = None) -> Tensor:
    """(1 - share)·kept + share·new: exactly `kept` where the share is 0 and exactly `new` where it is 1.

    Args:
        kept, new: of one shape and dtype, [1, C, h, w], finite.
        share: of each position, float32 [1, 1, h, w], 0..1.
        out: shape, dtype and memory format of `kept`; may be `kept` itself.

    Returns:
        Like `kept`.

    Raises:
        ValueError: the latents' shapes or dtypes differ.
    """
    check_pair(kept, new)
    out = torch.empty_like(kept) if out is None else out
    return out.copy_((1 - share) * kept.float() + share * new.float())


def plane(like: Tensor) -> Tensor:
    """Memory for one float32 value a position."""
    return torch.empty((1, 1, *like.shape[2:]), dtype=torch.float32, device=like.device)


def check_pair(one: Tensor, other: Tensor) -> None:
    """Check two latents that are compared or mixed."""
    if one.shape != other.shape or one.dtype != other.dtype or one.dim() != 4 or len(one) != 1:
        raise ValueError(
            f"latents are {one.dtype}{list(one.shape)} and {other.dtype}{list(other.shape)}, "
            "expected one form, [1, C, h, w]"
        )
