"""Attention by whatever is fastest: a library's for long sequences, mostly, and a kernel of our own for short ones.

Chosen once for each shape, by measuring them on the device as part of a graph, with the reason in the log. Operation
and arguments are those of `token_reference`. Needs triton.
"""

import functools
import logging
from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from instantvision.kernels import token_reference as reference
from instantvision.kernels.launch import (
    launch,
    matrix,
    overlapped,
    shared_memory,
    taking_notes,
    uses_descriptors,
)
from instantvision.kernels.softmax import LOG2_E, gathered

log = logging.getLogger(__name__)

# Queries, keys and values, heads, the result's type and scale.
Attend: TypeAlias = Callable[[Tensor, Tensor | None, int, torch.dtype, float], Tensor]

# Calls in the graph that is measured, and how often it is.
CALLS, REPEATS = 8, 5
# Values that a program of `rounded` writes, 16 bytes of bf16 a thread.
ROUNDED_BLOCK = 1024

_chosen: dict[tuple[object, ...], Attend] = {}


def attention(
    queries: Tensor,
    keys_values: Tensor | None,
    *,
    heads: int,
    dtype: torch.dtype | None = None,
    scale: float = 1.0,
) -> Tensor:
    """See `token_reference.attention`."""
    arguments = queries, keys_values, heads, dtype or queries.dtype, scale
    if queries.device.type != "cuda" or taking_notes() or queries.dtype == torch.float32:
        return attend(*arguments)
    context = None if keys_values is None else keys_values.shape
    key = queries.device, queries.dtype, queries.shape, context, *arguments[2:]
    if key not in _chosen:
        if torch.cuda.is_current_stream_capturing():
            return attend(*arguments)
        _chosen[key] = _fastest(*arguments)
    return _chosen[key](*arguments)


def attend(
    queries: Tensor, keys_values: Tensor | None, heads: int, dtype: torch.dtype, scale: float
) -> Tensor:
    """Our own kernel; arguments as of `attention`."""
    # Checks the widths, too.
    query, key, _ = reference.apart(queries, keys_values, heads)
    batch, _, tokens, width = query.shape
    context, channels = key.shape[2], heads * width
    block_m, block_n, warps, stages = _blocks(context, triton.cdiv(tokens, 64) * heads * batch)
    if shared_memory(queries) < 2 * (block_m + 2 * stages * block_n) * width + 8192:
        stages = 2
    block_width = max(16, triton.next_power_of_2(width))
    # Tiles of another head's columns would come with those of a head whose width is no power of two.
    descriptors = uses_descriptors(queries) and block_width == width
    rows = queries.flatten(0, 1)
    others = rows if keys_values is None else keys_values.flatten(0, 1)
    out = queries.new_empty((batch, tokens, channels), dtype=dtype)
    launch(
        attention_kernel,
        (triton.cdiv(tokens, block_m), heads, batch),
        matrix(rows, (block_m, width), descriptors),
        matrix(others, (block_n, width), descriptors),
        out,
        tokens,
        context,
        0 if keys_values is not None and len(keys_values) == 1 else context,
        width**-0.5 * LOG2_E,
        scale,
        C=channels,
        QUERY_PITCH=rows.shape[1],
        CONTEXT_PITCH=others.shape[1],
        WIDTH=width,
        DESCRIPTORS=descriptors,
        WHOLE=context % block_n == 0,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_W=block_width,
        num_warps=warps,
        num_stages=stages,
        **overlapped(queries),
    )
    return out


def _blocks(context: int, programs: int) -> tuple[int, int, int, int]:
    """Queries and keys a step, warps and pipeline stages: measured on an H100, for so many tiles of 64 queries."""
    if context <= 128:
        return 64, max(16, triton.next_power_of_2(context)), 4, 2
    if programs > 400:
        return 64, 64, 4, 3
    # Three programs share a multiprocessor's memory, where there are as many.
    return 64, 128, 4, 2 if programs > 264 else 3


def rounded(values: Tensor, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """See `token_reference.rounded`."""
    values = values.contiguous()
    out = torch.empty_like(values, dtype=dtype)
    launch(
        rounded_kernel,
        (triton.cdiv(values.numel(), ROUNDED_BLOCK),),
        values,
        out,
        values.numel(),
        scale,
        BLOCK=ROUNDED_BLOCK,
        num_warps=4,
        **overlapped(values),
    )
    return out


def _library(backend: SDPBackend) -> Attend:
    def call(
        queries: Tensor, keys_values: Tensor | None, heads: int, dtype: torch.dtype, scale: float
    ) -> Tensor:
        query, key, value = reference.apart(queries, keys_values, heads)
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return out if (dtype, scale) == (out.dtype, 1) else rounded(out, dtype, scale)

    return call


def _fastest(
    queries: Tensor, keys_values: Tensor | None, heads: int, dtype: torch.dtype, scale: float
) -> Attend:
    ways: dict[str, Attend] = {
        "our kernel": attend,
        "cuDNN": _library(SDPBackend.CUDNN_ATTENTION),
        "FlashAttention": _library(SDPBackend.FLASH_ATTENTION),
    }
    times = {}
    for name, way in ways.items():
        try:
            times[name] = _microseconds(functools.partial(way, queries, keys_values, heads, dtype, scale))
        except RuntimeError as error:
            # The library has none for this device or shape.
            log.debug("%s cannot do this attention: %s", name, error)
    best = min(times, key=times.__getitem__)
    shape = f"{heads} heads, {queries.shape[1]} tokens"
    keys = "themselves" if keys_values is None else f"{keys_values.shape[1]} others"
    figures = ", ".join(f"{name} {time:.1f} µs" for name, time in times.items())
    kind = str(dtype).removeprefix("torch.")
    log.info("attention of %s to %s, in %s: %s, because %s", shape, keys, kind, best, figures)
    return ways[best]


def _microseconds(call: Callable[[], object]) -> float:
    """Median time of a call as part of a graph: the host's share of a launch must not count."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            kept = [call() for _ in range(CALLS)]
        finally:
            graph.capture_end()
        times = []
        for _ in range(REPEATS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e3 / CALLS)
    del kept
    return sorted(times)[REPEATS // 2]


@triton.jit(do_not_specialize=["tokens", "context", "context_stride"])
def attention_kernel(
    queries,
    others,
    p_out,
    tokens,
    context,
    context_stride,
    score_scale,
    scale,
    C: tl.constexpr,
    QUERY_PITCH: tl.constexpr,
    CONTEXT_PITCH: tl.constexpr,
    WIDTH: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    """BLOCK_M queries of one head a program.

    4·T·S·C operations; reads 2·(T + 2·S)·C bytes (bf16), writes 2·T·C, half that in e4m3. Saves the scores.
    """
    i_m = tl.program_id(0)
    i_head = tl.program_id(1)
    i_batch = tl.program_id(2)
    i_token = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    i_width = tl.arange(0, BLOCK_W)
    m_token = (i_token < tokens)[:, None] & (i_width < WIDTH)[None, :]
    # Keys and values are the last two thirds of the queries' rows, or rows of their own.
    first_column = CONTEXT_PITCH - 2 * C + i_head * WIDTH
    query_row = i_batch * tokens
    key_row = i_batch * context_stride
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
    if DESCRIPTORS:
        b_query = queries.load([query_row + i_m * BLOCK_M, i_head * WIDTH])
    else:
        o_query = (
            (query_row + i_token).to(tl.int64)[:, None] * QUERY_PITCH + i_head * WIDTH + i_width[None, :]
        )
        b_query = tl.load(queries + o_query, mask=m_token, other=0)
    b_gathered = gathered(
        b_query, others, key_row, first_column, C, context, score_scale, CONTEXT_PITCH, WIDTH, DESCRIPTORS,
        WHOLE, BLOCK_M, BLOCK_N, BLOCK_W,
    )  # fmt: skip
    o_out = (query_row + i_token).to(tl.int64)[:, None] * C + i_head * WIDTH + i_width[None, :]
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
    tl.store(p_out + o_out, (b_gathered * scale).to(p_out.dtype.element_ty), mask=m_token)


@triton.jit
def rounded_kernel(p_values, p_out, values, scale, BLOCK: tl.constexpr, USE_PDL: tl.constexpr):
    """BLOCK values a program. Reads 2·T·C bytes (bf16), writes T·C in e4m3. Saves two of torch's three passes."""
    i_value = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_value = i_value < values
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
    b_value = tl.load(p_values + i_value, mask=m_value, other=0.0).to(tl.float32) * scale
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
    tl.store(p_out + i_value, b_value.to(p_out.dtype.element_ty), mask=m_value)
