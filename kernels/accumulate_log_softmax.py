"""Several views' log-softmax added to a store: each logit is read and each entry updated once.

Up to four views are one launch. More are launched in groups, whose sums meet in the store.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from selavi.kernels._launch import ceil_div, fits, launch, row_tiles
from selavi.kernels._tiles import (
    columns_of,
    finite_shift,
    load_tiles,
    merge,
    row_max,
    row_sum,
    widen,
    zero_tiles,
)

_VIEWS = 4


@triton.jit
def row_parts(tiles, columns, K):
    """Each row's largest number and the sum of exp(x - it)."""
    x = ()
    for i in tl.static_range(len(tiles)):
        x = x + (tl.where((columns[i] < K)[None, :], tiles[i], float("-inf")),)
    top = row_max(x)
    anchor = finite_shift(top)
    exponentials = ()
    for i in tl.static_range(len(x)):
        exponentials = exponentials + (tl.exp(x[i] - anchor[:, None]),)
    return top, row_sum(exponentials)


@triton.jit
def add_term(sums, tiles, weight, top, log_total):
    """sums + weight * (x - top - log_total); nothing where the weight is 0."""
    new = ()
    for i in tl.static_range(len(sums)):
        term = (tiles[i] - top[:, None]) - log_total[:, None]
        product = weight.to(sums[i].dtype)[:, None] * term.to(sums[i].dtype)
        new = new + (tl.where((weight != 0)[:, None], sums[i] + product, sums[i]),)
    return new


@triton.jit
def add_to_store(row, stride_k, columns, K, kept, sums):
    for i in tl.static_range(len(sums)):
        pointer = row[:, None] + (columns[i].to(tl.int64) * stride_k)[None, :]
        mask = kept[:, None] & (columns[i] < K)[None, :]
        old = tl.load(pointer, mask=mask)
        tl.store(pointer, (old + sums[i]).to(old.dtype), mask=mask)


@triton.jit
def view_weight(weight, m, b, B, kept, WEIGHTED: tl.constexpr, ALL: tl.constexpr):
    if WEIGHTED:
        w = tl.load(weight + m * B + b, mask=kept, other=0.0)
    else:
        w = tl.where(kept, tl.full(b.shape, 1.0 / ALL, tl.float64), 0.0)
    return w


@triton.jit
def accumulate_kernel(
    store, store_h, store_n, store_k, N, index, weight,
    view0, h0, b0, k0, view1, h1, b1, k1, view2, h2, b2, k2, view3, h3, b3, k3,
    first_view, B, K, parts, VIEWS: tl.constexpr, ALL: tl.constexpr, WEIGHTED: tl.constexpr,
    DOUBLE: tl.constexpr, LONG: tl.constexpr,
    BLOCK_M: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """BLOCK_M samples of a head. LONG: rows of several tiles, whose second look is a cache's."""
    h = (tl.program_id(0) // parts).to(tl.int64)
    b = (tl.program_id(0) % parts).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    kept = b < B
    n = tl.load(index + b, mask=kept, other=0)
    kept = kept & (n >= 0) & (n < N)  # what is outside is not written
    target = store + h * store_h + n * store_n
    views = (view0, view1, view2, view3)
    strides_h = (h0, h1, h2, h3)
    strides_b = (b0, b1, b2, b3)
    strides_k = (k0, k1, k2, k3)
    columns = columns_of(FIRST, SECOND)
    kind: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    if LONG:
        tops = ()
        logs = ()
        for m in tl.static_range(VIEWS):
            w = view_weight(weight, first_view + m, b, B, kept, WEIGHTED, ALL)
            row = views[m] + h * strides_h[m] + b * strides_b[m]
            high = tl.full((BLOCK_M,), float("-inf"), tl.float64)
            total = tl.zeros((BLOCK_M,), tl.float64)
            for start in range(0, K, FIRST):
                here = (start + columns[0],)
                tiles = widen(load_tiles(row, here, K, strides_k[m], w != 0, 0.0))
                top, part = row_parts(tiles, here, K)
                total, high = merge(total, high, part.to(tl.float64), top.to(tl.float64), True)
            tops = tops + (high,)
            logs = logs + (tl.log(total),)
        for start in range(0, K, FIRST):
            here = (start + columns[0],)
            sums = zero_tiles(here, BLOCK_M, kind)
            for m in tl.static_range(VIEWS):
                w = view_weight(weight, first_view + m, b, B, kept, WEIGHTED, ALL)
                row = views[m] + h * strides_h[m] + b * strides_b[m]
                tiles = widen(load_tiles(row, here, K, strides_k[m], w != 0, 0.0))
                z = logs[m].to(tiles[0].dtype)
                sums = add_term(sums, tiles, w, tops[m].to(tiles[0].dtype), z)
            add_to_store(target, store_k, here, K, kept, sums)
    else:
        sums = zero_tiles(columns, BLOCK_M, kind)
        for m in tl.static_range(VIEWS):
            w = view_weight(weight, first_view + m, b, B, kept, WEIGHTED, ALL)
            row = views[m] + h * strides_h[m] + b * strides_b[m]
            tiles = widen(load_tiles(row, columns, K, strides_k[m], w != 0, 0.0))
            top, total = row_parts(tiles, columns, K)
            sums = add_term(sums, tiles, w, top, tl.log(total))
        add_to_store(target, store_k, columns, K, kept, sums)


@triton_op("selavi_triton::accumulate_log_softmax_", mutates_args=("store",))
def accumulate_log_softmax_(
    store: Tensor, logits: Sequence[Tensor], index: Tensor, weight: Tensor | None
) -> None:
    """store[h, index[b], :] += sum_m weight[m, b] * log_softmax(logits[m][h, b, :])."""
    heads, rows, columns = store.shape
    samples = index.shape[0]
    double = store.dtype == torch.float64 or any(x.dtype == torch.float64 for x in logits)
    long = not fits(columns, True)
    # As for float64: the sums are held beside a view's numbers.
    tiles = row_tiles(2048 if long else columns, True)
    parts = ceil_div(samples, tiles.block_m)
    for first in range(0, len(logits), _VIEWS):
        group = logits[first : first + _VIEWS]
        padded = [*group, *[group[0]] * (_VIEWS - len(group))]
        views = [argument for view in padded for argument in (view, *view.stride())]
        launch(
            accumulate_kernel, heads * parts,
            store, *store.stride(), rows, index, index if weight is None else weight, *views,
            first, samples, columns, parts,
            VIEWS=len(group), ALL=len(logits), WEIGHTED=weight is not None,
            DOUBLE=double, LONG=long, **tiles.options(),
        )  # fmt: skip
