"""Device functions that the kernels share: rows in tiles, and exponentials that stay exact.

"Tiles" are a tuple of blocks (BLOCK_M, width) side by side, and their "columns" a tuple of indices.

A potential is (hi, lo, scale_hi, scale_lo, quantum). float64 tiles take x = lam log_p + v as it is:
hi = v, scale_hi = lam. Others compute in float32 and base 2: v_k log2(e) = hi_k + lo_k with hi_k a
multiple of `quantum`, a power of two, and lam log2(e) = scale_hi + scale_lo. Less a shift that is
such a multiple too,
    x_k log2(e) - shift = (scale_hi log_p_k + (hi_k - shift)) + (scale_lo log_p_k + lo_k)
has an exact difference inside and is rounded at its own size, not at the size of x_k. It is exact
while neither hi_k, which sees to the quantum, nor the shift is above 2^23 quanta; a tile where the
shift is goes through float64. scale_lo is positive, so that both terms are -inf where log_p is.
Columns that pad a row have hi_k = -inf.
"""

import triton
import triton.language as tl

LOG2 = tl.constexpr(0.693147180559945309417)
LOG2_E = tl.constexpr(1.44269504088896340736)
ROUND = tl.constexpr(6755399441055744.0)  # 1.5 * 2^52
EXACT = tl.constexpr(2.0**23)


@triton.jit
def columns_of(FIRST: tl.constexpr, SECOND: tl.constexpr):
    columns = (tl.arange(0, FIRST),)
    if SECOND > 0:
        columns = columns + (FIRST + tl.arange(0, SECOND),)
    return columns


@triton.jit
def load_columns(pointer, columns, K, other):
    """A vector of K contiguous numbers, `other` beyond."""
    vectors = ()
    for i in tl.static_range(len(columns)):
        vectors = vectors + (tl.load(pointer + columns[i], mask=columns[i] < K, other=other),)
    return vectors


@triton.jit
def load_tiles(row, columns, K, stride_k, kept, other):
    """As stored, the rows that start at `row` (BLOCK_M pointers), `other` if not kept or beyond K.

    0 keeps a row's softmax finite, -inf makes its exponentials 0 whatever its logsumexp is.
    """
    tiles = ()
    for i in tl.static_range(len(columns)):
        pointer = row[:, None] + (columns[i].to(tl.int64) * stride_k)[None, :]
        if i + 1 < len(columns):  # the first of two tiles is full
            mask = tl.broadcast_to(kept[:, None], pointer.shape)
        else:
            mask = kept[:, None] & (columns[i] < K)[None, :]
        tiles = tiles + (tl.load(pointer, mask=mask, other=other),)
    return tiles


@triton.jit
def load_rows(log_p, stride_n, stride_k, weight, rows, inside, columns, K):
    """Weights and tiles of the rows that are inside and have weight."""
    c = tl.load(weight + rows, mask=inside, other=0.0)
    row = log_p + rows.to(tl.int64) * stride_n
    return c, load_tiles(row, columns, K, stride_k, c != 0, 0.0)


@triton.jit
def load_known(log_p, stride_n, stride_k, weight, logsumexp, rows, inside, columns, K):
    """The same of rows whose logsumexp is known, and that."""
    c = tl.load(weight + rows, mask=inside, other=0.0)
    z = tl.load(logsumexp + rows, mask=c != 0, other=0.0)
    row = log_p + rows.to(tl.int64) * stride_n
    return c, z, load_tiles(row, columns, K, stride_k, c != 0, float("-inf"))


@triton.jit
def place_of(program, N, chunk, chunks, blocks, BLOCK_K: tl.constexpr):
    """A program's problem and chunk, the chunk's rows and the block's columns."""
    block = program % blocks
    part = program // blocks % chunks
    b = (program // blocks // chunks).to(tl.int64)
    first = part * chunk
    columns = (block * BLOCK_K + tl.arange(0, BLOCK_K),)
    return b, part, first, tl.minimum(first + chunk, N), columns


@triton.jit
def widen(tiles):
    """In the type we compute in."""
    wide = ()
    for i in tl.static_range(len(tiles)):
        if tiles[i].dtype == tl.float64:
            wide = wide + (tiles[i],)
        else:
            wide = wide + (tiles[i].to(tl.float32),)
    return wide


@triton.jit
def row_max(tiles):
    top = tl.max(tiles[0], 1)
    for i in tl.static_range(1, len(tiles)):
        top = tl.maximum(top, tl.max(tiles[i], 1))
    return top


@triton.jit
def row_sum(tiles):
    total = tl.sum(tiles[0], 1)
    for i in tl.static_range(1, len(tiles)):
        total += tl.sum(tiles[i], 1)
    return total


@triton.jit
def add_weighted(sums, tiles, share):
    """sums + share * tiles, share a number a row."""
    new = ()
    for i in tl.static_range(len(tiles)):
        new = new + (tl.fma(tiles[i], tl.broadcast_to(share[:, None], tiles[i].shape), sums[i]),)
    return new


@triton.jit
def store_sums(pointer, sums, columns, K):
    """The sums over the rows of the tiles."""
    for i in tl.static_range(len(sums)):
        tl.store(pointer + columns[i], tl.sum(sums[i], 0), mask=columns[i] < K)


@triton.jit
def zero_tiles(columns, BLOCK_M: tl.constexpr, dtype: tl.constexpr):
    tiles = ()
    for i in tl.static_range(len(columns)):
        tiles = tiles + (tl.zeros((BLOCK_M, columns[i].shape[0]), dtype),)
    return tiles


@triton.jit
def weighted_end(weight, first, last):
    """`last`, or `first` where no row of [first, last) has weight."""
    found = tl.zeros((256,), tl.int32)
    for start in range(first, last, 256):
        rows = start + tl.arange(0, 256)
        found |= (tl.load(weight + rows, mask=rows < last, other=0.0) != 0).to(tl.int32)
    return tl.where(tl.max(found, 0) > 0, last, first)


@triton.jit
def load_potential(hi, lo, scales, problem, columns, K):
    his = load_columns(hi + problem * K, columns, K, float("-inf"))
    if hi.dtype.element_ty == tl.float64:
        scale = tl.load(scales + problem)
        potential = (his, his, scale, scale, scale)
    else:
        los = load_columns(lo + problem * K, columns, K, 0.0)
        scale_hi = tl.load(scales + 3 * problem).to(tl.float32)
        scale_lo = tl.load(scales + 3 * problem + 1).to(tl.float32)
        potential = (his, los, scale_hi, scale_lo, tl.load(scales + 3 * problem + 2))
    return potential


@triton.jit
def is_untried(hi, problem, K):
    """A candidate whose first number is NaN."""
    first = tl.load(hi + problem * K)
    return first != first


@triton.jit
def round_to(value, quantum):
    """`value` (float64) to the nearest multiple of the quantum."""
    return (value + quantum * ROUND) - quantum * ROUND


@triton.jit
def affine(tiles, scale, offsets):
    x = ()
    for i in tl.static_range(len(tiles)):
        x = x + (tl.fma(tiles[i], scale, tl.broadcast_to(offsets[i][None, :], tiles[i].shape)),)
    return x


@triton.jit
def is_near(shift, quantum):
    # Above 4 the shift may be so far from the largest exponent that exponentials overflow.
    limit = tl.where(quantum <= 4.0, quantum * EXACT, -1.0)
    return tl.min((tl.abs(shift) <= limit).to(tl.int32), 0) > 0


@triton.jit
def near_exponentials(tiles, potential, shift):
    his, los, scale_hi, scale_lo, _ = potential
    shift = shift.to(tl.float32)
    exponentials = ()
    for i in tl.static_range(len(tiles)):
        low = tl.fma(tiles[i], scale_lo, tl.broadcast_to(los[i][None, :], tiles[i].shape))
        high = tl.fma(tiles[i], scale_hi, his[i][None, :] - shift[:, None])
        exponentials = exponentials + (tl.exp2(high + low),)
    return exponentials


@triton.jit
def far_exponents(tiles, potential):
    his, los, scale_hi, scale_lo, _ = potential
    scale = scale_hi.to(tl.float64) + scale_lo
    x = ()
    for i in tl.static_range(len(tiles)):
        offset = his[i].to(tl.float64) + los[i]
        x = x + (tiles[i].to(tl.float64) * scale + offset[None, :],)
    return x


@triton.jit
def finite_shift(shift):
    """Rows that are -inf throughout keep exponentials that are 0."""
    return tl.where(shift == float("-inf"), 0.0, shift)


@triton.jit
def far_exponentials(tiles, potential, shift):
    x = far_exponents(tiles, potential)
    anchor = finite_shift(shift)
    exponentials = ()
    for i in tl.static_range(len(tiles)):
        exponentials = exponentials + (tl.exp2((x[i] - anchor[:, None]).to(tl.float32)),)
    return exponentials


@triton.jit
def double_exponentials(x, shift):
    anchor = finite_shift(shift)
    exponentials = ()
    for i in tl.static_range(len(x)):
        exponentials = exponentials + (tl.exp(x[i] - anchor[:, None]),)
    return exponentials


@triton.jit
def softmax(tiles, potential):
    """exp(x - shift), its sums over each row, and the shift, about max_k x, float64.

    The shift is in base 2 but for float64 tiles. NaN and +inf make a row's sum NaN.
    """
    his, _, scale_hi, _, quantum = potential
    x = affine(tiles, scale_hi, his)
    if tiles[0].dtype == tl.float64:
        shift = row_max(x)
        exponentials = double_exponentials(x, shift)
    else:
        shift = round_to(row_max(x).to(tl.float64), quantum)
        if is_near(shift, quantum):
            exponentials = near_exponentials(tiles, potential, shift)
        else:
            shift = row_max(far_exponents(tiles, potential))
            exponentials = far_exponentials(tiles, potential, shift)
    return exponentials, row_sum(exponentials), shift


@triton.jit
def logsumexp_of(total, shift):
    """Z (float64) of rows from their softmax; -inf where a row is -inf throughout."""
    if total.dtype == tl.float64:
        z = shift + tl.log(total)
    else:
        z = (shift + tl.log2(total).to(tl.float64)) * LOG2
    return z


@triton.jit
def share_of(weight, total):
    """weight / total, in the type of total; for a row that is -inf throughout it is not finite."""
    return weight.to(total.dtype) / total


@triton.jit
def shares(tiles, potential, logsumexp):
    """Numbers and a factor a row whose product is exp(x - logsumexp)."""
    his, _, scale, _, quantum = potential
    if tiles[0].dtype == tl.float64:
        exponentials = double_exponentials(affine(tiles, scale, his), logsumexp)
        factor = tl.full(logsumexp.shape, 1.0, tl.float64)
    else:
        wanted = logsumexp * LOG2_E
        shift = round_to(wanted, quantum)
        if is_near(shift, quantum):
            exponentials = near_exponentials(tiles, potential, shift)
        else:
            exponentials = far_exponentials(tiles, potential, shift)
        factor = tl.exp2((shift - wanted).to(tl.float32))
    # Of a row that is -inf throughout no share can be said.
    return exponentials, tl.where(logsumexp == float("-inf"), float("nan"), factor)


@triton.jit
def shrink(difference, wide: tl.constexpr):
    """exp of a difference of two shifts: of base 2 but for wide."""
    if wide:
        ratio = tl.exp(difference)
    else:
        ratio = tl.exp2(difference.to(tl.float32)).to(tl.float64)
    return ratio


@triton.jit
def merge(total, shift, other_total, other_shift, wide: tl.constexpr):
    """Sums of exponentials (float64) over two parts of a row; a shift may be -inf."""
    top = tl.maximum(shift, other_shift)
    anchor = finite_shift(top)
    total = total * shrink(shift - anchor, wide)
    return total + other_total * shrink(other_shift - anchor, wide), top
