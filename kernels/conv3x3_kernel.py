"""The kernel of 3x3 convolutions over framed pictures; conv3x3.py says what these are and how it is launched.

Source: implicit matrix products as in Chetlur et al. 2014 (arXiv 1410.0759). Needs triton.
"""

import triton
import triton.language as tl

from instantvision.kernels.launch import prefetch
from instantvision.kernels.taps import taps_side_by_side


@triton.jit(
    do_not_specialize=["x_rows", "height", "width", "framed_width", "framed_height", "embedding_stride"]
)
def conv3x3_kernel(
    x,
    w,
    p_weight,
    p_bias,
    p_embedding,
    p_first,
    p_second,
    p_shortcut,
    p_residual,
    p_norm,
    p_scale,
    p_out,
    p_plain,
    p_moments,
    x_rows,
    height,
    width,
    framed_width,
    framed_height,
    embedding_stride,
    eps,
    offset,
    limit,
    C: tl.constexpr,
    N: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    STRIDE: tl.constexpr,
    SHALLOW: tl.constexpr,
    LIMITED: tl.constexpr,
    DOUBLED: tl.constexpr,
    SPLITS: tl.constexpr,
    EMBEDDING: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALED: tl.constexpr,
    FRAMED_OUT: tl.constexpr,
    ALSO_PLAIN: tl.constexpr,
    NORM: tl.constexpr,
    MOMENTS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_SHORTCUT: tl.constexpr,
    PREFETCH: tl.constexpr,
    THREADS: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    """BLOCK_M positions by BLOCK_N features of the result a program.

    18·h·w·C·N operations; reads 2·(h·w·C + 9·C·N) bytes (bf16), writes 2·h·w·N. On store, and so without a pass:
    bias, embedding, 1x1 convolution of the shortcut, residual, activation, frame, the sums of the next group
    normalisation, and beside a framed result that is normalised or in e4m3 the plain one. Doubled, each corner of the
    enlarged positions is a convolution of its own with four taps: 32·h·w·C·N operations for four times the positions.
    """
    i_n = tl.program_id(0)
    i_m = tl.program_id(1)
    i_batch = tl.program_id(2)
    taps_wide: tl.constexpr = 2 if DOUBLED else 3
    taps: tl.constexpr = taps_wide * taps_wide
    corner_y, corner_x, first_weight = 0, 0, 0
    if DOUBLED:
        corner_y, corner_x, first_weight = i_batch % 4 // 2, i_batch % 2, i_batch % 4 * N
        i_batch = i_batch // 4
    i_split = 0
    if SPLITS > 0:
        i_split = i_batch % SPLITS
        i_batch = i_batch // SPLITS
    i_part = tl.program_id(2) * tl.num_programs(1) + i_m
    # Distances within the framed picture, in rows of x: to the next line, and between lines of the result.
    line = framed_width // STRIDE
    pitch = framed_width
    i_position = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    i_feature = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    row = i_batch * (framed_height * framed_width // STRIDE) + i_m * BLOCK_M
    i_y = i_position // pitch
    i_x = i_position % pitch
    m_position = (i_y < height) & (i_x < width)
    m_feature = i_feature < N
    i_pixel = i_batch * (height * width) + i_y * width + i_x
    if DOUBLED:
        i_pixel = i_batch * (4 * height * width) + (2 * i_y + corner_y) * (2 * width) + 2 * i_x + corner_x
    if SPLITS > 0:
        i_pixel += (i_batch * (SPLITS - 1) + i_split) * (height * width)
    if USE_PDL:
        i_program = i_part * tl.num_programs(0) + i_n
        programs = tl.num_programs(0) * tl.num_programs(1)
        prefetch(p_weight, 9 * C * N, i_program, programs, PREFETCH, THREADS)
        tl.extra.cuda.gdc_wait()
    steps: tl.constexpr = C // BLOCK_K
    first_step, last_step = 0, taps * steps
    if SPLITS > 0:
        share: tl.constexpr = (taps * steps + SPLITS - 1) // SPLITS
        first_step = i_split * share
        last_step = tl.minimum(first_step + share, taps * steps)
    b_sum = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if SHALLOW:
        b_x = taps_side_by_side(x, i_batch, i_y, i_x, height, width, offset, limit, C, LIMITED, BLOCK_K)
        i_column = tl.arange(0, BLOCK_K)
        o_w = i_feature[:, None] * (9 * C) + i_column[None, :]
        b_w = tl.load(w + o_w, mask=m_feature[:, None] & (i_column < 9 * C)[None, :], other=0)
        b_sum = tl.dot(b_x, b_w.T, b_sum)
    else:
        for i in range(first_step, last_step):
            tap = i // steps
            k = (i % steps) * BLOCK_K
            tap_y = tap // taps_wide + corner_y
            tap_x = tap % taps_wide + corner_x
            x_row = row + tap_y * line + tap_x // STRIDE
            x_column = (tap_x % STRIDE) * C + k
            if DESCRIPTORS:
                b_x = x.load([x_row, x_column])
                b_w = w.load([first_weight + i_n * BLOCK_N, i * BLOCK_K])
            else:
                i_row = x_row + tl.arange(0, BLOCK_M)
                i_column = tl.arange(0, BLOCK_K)
                o_x = i_row.to(tl.int64)[:, None] * (STRIDE * C) + x_column + i_column[None, :]
                b_x = tl.load(x + o_x, mask=(i_row < x_rows)[:, None], other=0.0)
                o_w = (first_weight + i_feature)[:, None] * (taps * C) + i * BLOCK_K + i_column[None, :]
                b_w = tl.load(w + o_w, mask=m_feature[:, None], other=0.0)
            b_sum = tl.dot(b_x, b_w.T, b_sum)
    if SCALED:
        b_sum *= tl.load(p_scale + i_feature, mask=m_feature, other=0)[None, :]
    if FIRST > 0:
        i_column = tl.arange(0, BLOCK_SHORTCUT)
        for k in range(0, FIRST, BLOCK_SHORTCUT):
            o_x = i_pixel.to(tl.int64)[:, None] * FIRST + k + i_column[None, :]
            b_x = tl.load(p_first + o_x, mask=m_position[:, None], other=0)
            o_w = i_feature[:, None] * (FIRST + SECOND) + k + i_column[None, :]
            b_sum = tl.dot(b_x, tl.load(p_shortcut + o_w, mask=m_feature[:, None], other=0).T, b_sum)
        for k in range(0, SECOND, BLOCK_SHORTCUT):
            o_x = i_pixel.to(tl.int64)[:, None] * SECOND + k + i_column[None, :]
            b_x = tl.load(p_second + o_x, mask=m_position[:, None], other=0)
            o_w = i_feature[:, None] * (FIRST + SECOND) + FIRST + k + i_column[None, :]
            b_sum = tl.dot(b_x, tl.load(p_shortcut + o_w, mask=m_feature[:, None], other=0).T, b_sum)
    if SPLITS == 0:
        b_bias = tl.load(p_bias + i_feature, mask=m_feature, other=0).to(tl.float32)
        if EMBEDDING:
            o_embedding = i_batch * embedding_stride + i_feature
            b_bias += tl.load(p_embedding + o_embedding, mask=m_feature, other=0).to(tl.float32)
        b_sum += b_bias[None, :]
    o_pixel = i_pixel.to(tl.int64)[:, None] * N + i_feature[None, :]
    m_inside = m_position[:, None] & m_feature[None, :]
    if RESIDUAL == "plain":
        b_sum += tl.load(p_residual + o_pixel, mask=m_inside, other=0).to(tl.float32)
    if RESIDUAL == "framed":
        i_framed = i_batch * ((height + 2) * pitch) + i_position + pitch + 1
        o_framed = i_framed.to(tl.int64)[:, None] * N + i_feature[None, :]
        b_sum += tl.load(p_residual + o_framed, mask=m_inside, other=0).to(tl.float32)
    if ACTIVATION == "silu":
        b_sum = b_sum * tl.sigmoid(b_sum)
    if ACTIVATION == "relu":
        b_sum = tl.maximum(b_sum, 0.0)
    if MOMENTS:
        b_counted = tl.where(m_inside, b_sum, 0.0)
        o_moments = i_part * (2 * N) + i_feature
        tl.store(p_moments + o_moments, tl.sum(b_counted, 0), mask=m_feature)
        tl.store(p_moments + o_moments + N, tl.sum(b_counted * b_counted, 0), mask=m_feature)
    if ALSO_PLAIN:
        tl.store(p_plain + o_pixel, b_sum.to(p_plain.dtype.element_ty), mask=m_inside)
    if NORM:
        b_sum *= tl.rsqrt(tl.sum(tl.where(m_feature[None, :], b_sum * b_sum, 0.0), 1) / N + eps)[:, None]
        b_sum *= tl.load(p_norm + i_feature, mask=m_feature, other=0).to(tl.float32)[None, :]
        b_sum *= tl.sigmoid(b_sum)
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
    if FRAMED_OUT and DOUBLED:
        # Positions past a line's end are two: one clears the frame's right side, the other its left.
        doubled_pitch = 2 * width + 2
        column = tl.where(i_x > width, 0, 2 * i_x + corner_x + 1)
        i_framed = (2 * i_y + corner_y + 1) * doubled_pitch + column
        i_frame = i_batch * ((2 * height + 2) * doubled_pitch)
        m_framed = (i_y < height) & ((i_x < width) | (i_x == width + corner_x))
        o_framed = (i_frame + i_framed).to(tl.int64)[:, None] * N + i_feature[None, :]
        b_framed = tl.where(m_inside, b_sum, 0.0).to(p_out.dtype.element_ty)
        tl.store(p_out + o_framed, b_framed, mask=m_framed[:, None] & m_feature[None, :])
        # The first tiles of the upper left and the lower right corners clear the frame's top and bottom.
        if (i_m == 0) & (corner_x == corner_y):
            b_empty = tl.zeros((BLOCK_M, BLOCK_N), p_out.dtype.element_ty)
            i_line = i_frame + corner_y * (2 * height + 1) * doubled_pitch
            for start in range(0, doubled_pitch, BLOCK_M):
                i_column = start + tl.arange(0, BLOCK_M)
                o_framed = (i_line + i_column).to(tl.int64)[:, None] * N + i_feature[None, :]
                m_line = (i_column < doubled_pitch)[:, None] & m_feature[None, :]
                tl.store(p_out + o_framed, b_empty, mask=m_line)
    elif FRAMED_OUT:
        # Line 1, column 1 of the framed result is position 0; what lies past a line's end falls on the frame's sides.
        total = (height + 2) * pitch
        first = pitch + 1
        o_framed = (i_batch * total + i_position).to(tl.int64)[:, None] * N + i_feature[None, :]
        b_framed = tl.where(m_inside, b_sum, 0.0).to(p_out.dtype.element_ty)
        m_framed = (i_position + first < total)[:, None] & m_feature[None, :]
        tl.store(p_out + o_framed + first * N, b_framed, mask=m_framed)
        # The first and the last tile also clear the frame's top and bottom.
        b_empty = tl.zeros((BLOCK_M, BLOCK_N), p_out.dtype.element_ty)
        if i_m == 0:
            for start in range(0, first, BLOCK_M):
                m_framed = (i_position + start < first)[:, None] & m_feature[None, :]
                tl.store(p_out + o_framed + start * N, b_empty, mask=m_framed)
        if i_m == tl.num_programs(1) - 1:
            for start in range(first + BLOCK_M, total - i_m * BLOCK_M, BLOCK_M):
                m_framed = (i_position + start < total)[:, None] & m_feature[None, :]
                tl.store(p_out + o_framed + start * N, b_empty, mask=m_framed)
    else:
        tl.store(p_out + o_pixel, b_sum.to(p_out.dtype.element_ty), mask=m_inside)
