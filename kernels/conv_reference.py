"""Convolutions of framed pictures in plain torch, with what `reference_layers` says of pictures, frames and moments."""

from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from instantvision.kernels.token_reference import rounded

Activation: TypeAlias = Literal["silu", "relu"] | None

# Channels of which all nine taps are multiplied at once.
SHALLOW = 16


def frame(
    pictures: tuple[Tensor, ...],
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Frame one or two pictures side by side, enlarged to their nearest neighbours.

    Args:
        pictures: each [B, C', h, w].
        size: height and width without frame; None keeps those of the pictures.
        channels: of the result, zeros after those of the pictures; None takes just these.
        dtype: of the result; float8_e4m3fn holds what is within +-448. None is that of the pictures.

    Returns:
        [B, channels, rows + 2, columns + 2], channels_last.
    """
    x = torch.cat(pictures, 1)
    if size is not None and size != tuple(x.shape[2:]):
        x = F.interpolate(x, size=size, mode="nearest")
    empty = 0 if channels is None else channels - x.shape[1]
    framed = F.pad(x, (1, 1, 1, 1, 0, empty)).contiguous(memory_format=torch.channels_last)
    return rounded(framed, dtype or x.dtype)


def conv3x3(
    framed: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int = 1,
    embedding: Tensor | None = None,
    shortcut: tuple[tuple[Tensor, ...], Tensor] | None = None,
    residual: Tensor | None = None,
    activation: Activation = None,
    framed_out: bool = False,
    moments: bool = False,
    scale: Tensor | None = None,
    dtype: torch.dtype | None = None,
    also_plain: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Convolve a framed picture and finish the result: f(scale * convolution + bias + embedding + shortcut + residual).

    Args:
        framed: [B, C, h + 2, w + 2], channels_last.
        weight: [N, C, 3, 3], channels_last, of the same type.
        bias: [N], of the type of a result that is not told another.
        stride: 1 or 2.
        embedding: a second bias, [B or 1, N].
        shortcut: pictures of the result's height and width, and the weight of a 1x1 convolution over them side by
            side, [N, all their channels].
        residual: like the result; framed or not, at stride 1.
        activation: f, at the end.
        framed_out: write a framed picture, stride 1 only.
        moments: also of the result.
        scale: what the convolution of weights in e4m3 is multiplied by, [N], float32.
        dtype: of a framed result; float8_e4m3fn holds what is within +-448. None is that of the bias.
        also_plain: with a framed result, give it without frame and in the type of the bias as well, in place of
            moments.

    Returns:
        The result, [B, N, ceil(h / stride), ceil(w / stride)] or framed, channels_last; its moments, or itself without
        frame, or None.

    Raises:
        ValueError: the arguments are not of that form.
    """
    check_conv3x3(framed, weight, stride, framed_out)
    check_results(framed_out, moments, dtype, also_plain)
    if scale is None:
        y = F.conv2d(framed, weight, bias, stride=stride)
    else:
        y = F.conv2d(framed.float(), weight.float(), stride=stride) * scale[:, None, None]
        y = (y + bias.float()[:, None, None]).to(bias.dtype)
    if embedding is not None:
        y = y + embedding[:, :, None, None]
    if shortcut is not None:
        pictures, pointwise = shortcut
        y = y + F.conv2d(torch.cat(pictures, 1), pointwise[:, :, None, None])
    if residual is not None:
        y = y + (residual if residual.shape == y.shape else residual[:, :, 1:-1, 1:-1])
    return _results(y, activation, framed_out, moments, dtype, also_plain)


def conv3x3_shallow(
    picture: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    limit: float | None = None,
    offset: float = 0.0,
    activation: Activation = None,
    framed_out: bool = False,
    moments: bool = False,
    dtype: torch.dtype | None = None,
    also_plain: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Convolve a picture of few channels, as a network's first layer does.

    Args:
        picture: [B, C, h, w], C at most SHALLOW, without frame.
        weight: [N, C, 3, 3], channels_last.
        bias: [N].
        limit: convolve tanh(picture / limit).
        offset: convolve what the picture is plus this; around it there are zeros.
        activation, framed_out, moments, dtype, also_plain: as of `conv3x3`.

    Returns:
        The result, [B, N, h, w] or framed, channels_last; its moments, or itself without frame, or None.

    Raises:
        ValueError: the arguments are not of that form.
    """
    check_shallow(picture, weight)
    check_results(framed_out, moments, dtype, also_plain)
    if limit is not None:
        picture = torch.tanh(picture / limit)
    y = F.conv2d(picture + offset, weight, bias, padding=1)
    return _results(y, activation, framed_out, moments, dtype, also_plain)


def conv3x3_doubled(
    framed: Tensor,
    folded: Tensor,
    bias: Tensor,
    *,
    activation: Activation = None,
    framed_out: bool = False,
    moments: bool = False,
    dtype: torch.dtype | None = None,
    also_plain: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Enlarge a picture to twice its height and width by repeating positions, and convolve it.

    Of the nine taps of a convolution over repeated positions several read the same one: each of the four corners of an
    enlarged position has four taps over the picture as it is.

    Args:
        framed: [B, C, h + 2, w + 2], channels_last.
        folded: of `fold_doubling`, [4·N, C, 2, 2], channels_last.
        bias: [N].
        activation, framed_out, moments, dtype, also_plain: as of `conv3x3`.

    Returns:
        The result, [B, N, 2·h, 2·w] or framed, channels_last; its moments, or itself without frame, or None.

    Raises:
        ValueError: the arguments are not of that form.
    """
    check_doubled(framed, folded, bias)
    check_results(framed_out, moments, dtype, also_plain)
    height, width = framed.shape[2] - 2, framed.shape[3] - 2
    y = picture_buffer(framed, len(bias), 2 * height, 2 * width)
    for i, weight in enumerate(folded.unflatten(0, (4, -1))):
        top, left = i // 2, i % 2
        corner = framed[:, :, top : top + height + 1, left : left + width + 1]
        y[:, :, top::2, left::2] = F.conv2d(corner, weight, bias)
    return _results(y, activation, framed_out, moments, dtype, also_plain)


def _results(
    y: Tensor,
    activation: Activation,
    framed_out: bool,
    moments: bool,
    dtype: torch.dtype | None,
    also_plain: bool,
) -> tuple[Tensor, Tensor | None]:
    if activation is not None:
        y = F.silu(y) if activation == "silu" else F.relu(y)
    plain = y.contiguous(memory_format=torch.channels_last)
    beside = channel_moments(y) if moments else plain if also_plain else None
    return frame((y,), dtype=dtype) if framed_out else plain, beside


def fold_doubling(weight: Tensor) -> Tensor:
    """The weight of a 3x3 convolution, [N, C, 3, 3], for `conv3x3_doubled`."""
    rows = weight.float()
    first, second, third = rows.unbind(2)
    pairs = [torch.stack([first, second + third], 2), torch.stack([first + second, third], 2)]
    corners = []
    for pair in pairs:
        first, second, third = pair.unbind(3)
        corners += [torch.stack([first, second + third], 3), torch.stack([first + second, third], 3)]
    return torch.cat(corners).to(weight.dtype).contiguous(memory_format=torch.channels_last)


def channel_moments(x: Tensor) -> Tensor:
    """Moments of a picture [B, C, h, w]: [B, parts, 2, C]."""
    values = x.float()
    return torch.stack([values.sum((2, 3)), values.square().sum((2, 3))], 1)[:, None]


def finish(
    sums: Tensor,
    bias: Tensor,
    embedding: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    moments: bool,
) -> tuple[Tensor, Tensor | None]:
    """What a library's convolution or product leaves to be done: bias, embedding and residual.

    Args:
        sums: in parts that are added up, [B, parts, N, h, w], each channels_last.
        bias: [N], of the result's type.
        embedding: [B or 1, N].
        residual: like the result.
        moments: also of the result.

    Returns:
        The result, [B, N, h, w], and its moments or None.
    """
    y = sums.float().sum(1) + bias.float()[:, None, None]
    if embedding is not None:
        y = y + embedding.float()[:, :, None, None]
    if residual is not None:
        y = y + residual.float()
    y = y.to(bias.dtype).contiguous(memory_format=torch.channels_last)
    return y, channel_moments(y) if moments else None


def picture_buffer(
    like: Tensor, channels: int, height: int, width: int, dtype: torch.dtype | None = None
) -> Tensor:
    """Memory for a picture of the batch of `like`, and of its type if no other is given."""
    shape = (len(like), channels, height, width)
    return torch.empty(
        shape, dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last
    )


def check_conv3x3(framed: Tensor, weight: Tensor, stride: int, framed_out: bool) -> None:
    """Check the arguments of `conv3x3`."""
    for name, tensor in (("framed picture", framed), ("weight", weight)):
        if not tensor.is_contiguous(memory_format=torch.channels_last):
            raise ValueError(f"the {name} is {list(tensor.shape)} in another order than channels_last")
    if weight.shape[1:] != (framed.shape[1], 3, 3):
        raise ValueError(f"weight is {list(weight.shape)} for a picture {list(framed.shape)}")
    if stride == 2 and framed_out:
        raise ValueError("a result of stride 2 has no frame")


def check_shallow(picture: Tensor, weight: Tensor) -> None:
    """Check the arguments of `conv3x3_shallow`."""
    if picture.shape[1] > SHALLOW:
        raise ValueError(f"the picture has {picture.shape[1]} channels, expected at most {SHALLOW}")
    if weight.shape[1:] != (picture.shape[1], 3, 3):
        raise ValueError(f"weight is {list(weight.shape)} for a picture {list(picture.shape)}")


def check_results(framed_out: bool, moments: bool, dtype: torch.dtype | None, also_plain: bool) -> None:
    """Check what is wanted of `conv3x3` and `conv3x3_doubled`."""
    if (also_plain or dtype is not None) and not framed_out:
        raise ValueError(f"a result of type {dtype} or given twice, expected framed_out")
    if also_plain and moments:
        raise ValueError("moments and also_plain, expected one of them")


def check_doubled(framed: Tensor, folded: Tensor, bias: Tensor) -> None:
    """Check the arguments of `conv3x3_doubled`."""
    for name, tensor in (("framed picture", framed), ("weight", folded)):
        if not tensor.is_contiguous(memory_format=torch.channels_last):
            raise ValueError(f"the {name} is {list(tensor.shape)} in another order than channels_last")
    if folded.shape != (4 * len(bias), framed.shape[1], 2, 2):
        raise ValueError(f"weight is {list(folded.shape)} for a picture {list(framed.shape)}")
