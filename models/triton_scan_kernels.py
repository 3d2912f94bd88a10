"""The kernels of :mod:`models.triton_scan`, in the order in which they run.

    decays      sums of dt A from a chunk's first token on
    states      the state that enters each chunk, one program for a few channels of a head, chunk after chunk; with
                REVERSE the gradient of the state that leaves it, from the last chunk to the first
    outputs     all of a chunk's tokens for the heads of a group
    gradients   of x and of the decays
    group_gradients   of B and C, summed over the heads of their group
    time_steps  the gradients of dt and A from those of the decays

Shapes: B batch, T tokens, M = B T tokens of all rows, H heads, P channels of a head, G groups of heads, N state size,
D = H P + 2 G N channels, Z chunks, Q tokens of a chunk.
"""

# mypy: disable-error-code="no-untyped-def"
import triton
import triton.language as tl


@triton.jit
def _rows(source, start, stride, q, column, inside):
    """Columns of the rows ``start + q`` of a matrix whose rows are ``stride`` apart; zeros where not ``inside``."""
    return tl.load(source + start * stride + q[:, None] * stride + column, mask=inside, other=0.0)


@triton.jit
def decays(dt, A, begin, steps, decays, tokens, heads, Q: tl.constexpr, BH: tl.constexpr):
    start = tl.load(begin + tl.program_id(0))
    size = tl.load(begin + tl.program_id(0) + 1) - start
    q, h = tl.arange(0, Q), tl.program_id(1) * BH + tl.arange(0, BH)
    mask = (q < size)[:, None] & (h < heads)[None, :]
    at = start.to(tl.int64) + q
    step = tl.load(dt + at[:, None] * heads + h[None, :], mask=mask, other=0.0)
    summed = tl.cumsum(step * tl.load(A + h, mask=h < heads, other=0.0)[None, :], axis=0)
    to = h.to(tl.int64)[None, :] * tokens + at[:, None]
    tl.store(steps + to, step, mask=mask)
    tl.store(decays + to, summed, mask=mask)


@triton.jit
def states(
    value, key, steps, decays, begin, fresh, rows, initial, states, final, stride_value, stride_key, tokens, heads,
    share, P: tl.constexpr, N: tl.constexpr, HAS_INITIAL: tl.constexpr, REVERSE: tl.constexpr, PRECISION: tl.constexpr,
    Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """``value`` is x and ``key`` B, or with REVERSE y's gradient and C; ``share`` heads have a group in common."""
    h, row = tl.program_id(0), tl.program_id(2)
    q, n, p = tl.arange(0, Q), tl.arange(0, BN), tl.program_id(1) * BP + tl.arange(0, BP)
    n_mask, p_mask = n < N, p < P
    cell, inside = p[None, :] * N + n[:, None], n_mask[:, None] & p_mask[None, :]
    of_row = (row * heads + h).to(tl.int64) * P * N
    value += h * P
    key += (h // share) * N
    steps += h.to(tl.int64) * tokens
    decays += h.to(tl.int64) * tokens
    state = tl.zeros((BN, BP), dtype=tl.float32)
    if HAS_INITIAL:
        state = tl.load(initial + of_row + cell, mask=inside, other=0.0)
    first, last = tl.load(rows + row), tl.load(rows + row + 1)
    for turn in range(last - first):
        chunk = first + turn
        if REVERSE:
            chunk = last - 1 - turn
        start = tl.load(begin + chunk).to(tl.int64)
        size = (tl.load(begin + chunk + 1) - start).to(tl.int32)
        begins = tl.load(fresh + chunk) != 0
        if not REVERSE:
            state = tl.where(begins, 0.0, state)
        at = states + (chunk.to(tl.int64) * heads + h) * P * N
        tl.store(at + cell, state.to(states.dtype.element_ty), mask=inside)
        mask = q < size
        decay = tl.load(decays + start + q, mask=mask, other=0.0)
        total = tl.load(decays + start + size - 1)
        if REVERSE:
            weight = tl.where(mask, tl.exp(decay), 0.0)
        else:
            weight = tl.exp(total - decay) * tl.load(steps + start + q, mask=mask, other=0.0)
        keys = _rows(key, start, stride_key, q, n[None, :], mask[:, None] & n_mask[None, :])
        values = _rows(value, start, stride_value, q, p[None, :], mask[:, None] & p_mask[None, :])
        values = (values.to(tl.float32) * weight[:, None]).to(keys.dtype)
        state = state * tl.exp(total) + tl.dot(tl.trans(keys), values, input_precision=PRECISION)
        if REVERSE:
            state = tl.where(begins, 0.0, state)
    tl.store(final + of_row + cell, state, mask=inside)


@triton.jit
def outputs(
    x, key, query, steps, decays, begin, states, D, y, stride, tokens, heads, share,
    P: tl.constexpr, N: tl.constexpr, HAS_D: tl.constexpr, PRECISION: tl.constexpr,
    HEADS: tl.constexpr, Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    chunk, h0 = tl.program_id(0), tl.program_id(1) * HEADS
    start = tl.load(begin + chunk).to(tl.int64)
    size = (tl.load(begin + chunk + 1) - start).to(tl.int32)
    q, n = tl.arange(0, Q), tl.arange(0, BN)
    mask, n_mask = q < size, n < N
    in_group, column = mask[:, None] & n_mask[None, :], (h0 // share) * N + n[None, :]
    keys = _rows(key, start, stride, q, column, in_group)
    queries = _rows(query, start, stride, q, column, in_group)
    scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
    causal = q[:, None] >= q[None, :]
    for turn in range(HEADS):
        h = h0 + turn
        of_head = h.to(tl.int64) * tokens + start + q
        end = tl.load(decays + h.to(tl.int64) * tokens + start + size - 1)
        decay = tl.where(mask, tl.load(decays + of_head, mask=mask, other=0.0), end)  # no exponent above 0
        step = tl.load(steps + of_head, mask=mask, other=0.0)
        between = tl.exp(tl.where(causal, decay[:, None] - decay[None, :], float("-inf")))
        weights = (scores * between * step[None, :]).to(keys.dtype)
        from_start = tl.exp(decay)
        skip = 0.0
        if HAS_D:
            skip = tl.load(D + h)
        at = states + (chunk.to(tl.int64) * heads + h) * P * N
        for first in range(0, P, BP):
            p = first + tl.arange(0, BP)
            here = mask[:, None] & (p < P)[None, :]
            values = _rows(x, start, stride, q, (h * P + p)[None, :], here)
            state = _rows(at, 0, N, p, n[None, :], (p < P)[:, None] & n_mask[None, :])
            total = tl.dot(queries, tl.trans(state), input_precision=PRECISION) * from_start[:, None]
            total = tl.dot(weights, values, total, input_precision=PRECISION)
            if HAS_D:
                total += values.to(tl.float32) * skip
            out = (start + q)[:, None] * heads * P + (h * P + p)[None, :]
            tl.store(y + out, total.to(y.dtype.element_ty), mask=here)


@triton.jit
def gradients(
    x, key, query, grad_y, steps, decays, begin, states, grads, D, grad_x, grad_scores, grad_steps, grad_decays,
    grad_D, stride, stride_grad_y, stride_out, tokens, heads, share,
    P: tl.constexpr, N: tl.constexpr, HAS_D: tl.constexpr, PRECISION: tl.constexpr,
    HEADS: tl.constexpr, Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """``grads`` are the gradients of the states that leave the chunks; ``grad_scores`` (Z, H / HEADS, Q, Q) those of
    C B summed over a part of a group's heads."""
    chunk, h0 = tl.program_id(0), tl.program_id(1) * HEADS
    start = tl.load(begin + chunk).to(tl.int64)
    size = (tl.load(begin + chunk + 1) - start).to(tl.int32)
    q, n = tl.arange(0, Q), tl.arange(0, BN)
    mask, n_mask = q < size, n < N
    in_group, column = mask[:, None] & n_mask[None, :], (h0 // share) * N + n[None, :]
    keys = _rows(key, start, stride, q, column, in_group)
    queries = _rows(query, start, stride, q, column, in_group)
    scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
    causal = q[:, None] >= q[None, :]
    of_scores = tl.zeros((Q, Q), dtype=tl.float32)
    for turn in range(HEADS):
        h = h0 + turn
        of_head = h.to(tl.int64) * tokens + start
        end = tl.load(decays + of_head + size - 1)
        decay = tl.where(mask, tl.load(decays + of_head + q, mask=mask, other=0.0), end)  # no exponent above 0
        step = tl.load(steps + of_head + q, mask=mask, other=0.0)
        between = tl.exp(tl.where(causal, decay[:, None] - decay[None, :], float("-inf")))
        weights = (scores * between).to(keys.dtype)
        from_start, to_end = tl.exp(decay), tl.where(mask, tl.exp(end - decay), 0.0)
        products = tl.zeros((Q, Q), dtype=tl.float32)  # y's gradient at t times x at s
        of_read = tl.zeros((Q,), dtype=tl.float32)
        of_left = tl.zeros((Q,), dtype=tl.float32)
        of_step = tl.zeros((Q,), dtype=tl.float32)
        of_total, of_skip, skip = 0.0, 0.0, 0.0
        if HAS_D:
            skip = tl.load(D + h)
        at = (chunk.to(tl.int64) * heads + h) * P * N
        for first in range(0, P, BP):
            p = first + tl.arange(0, BP)
            here, cells = mask[:, None] & (p < P)[None, :], (p < P)[:, None] & n_mask[None, :]
            channel = (h * P + p)[None, :]
            values = _rows(x, start, stride, q, channel, here)
            slopes = _rows(grad_y, start, stride_grad_y, q, channel, here)
            entered = _rows(states + at, 0, N, p, n[None, :], cells)
            left = _rows(grads + at, 0, N, p, n[None, :], cells)
            wide_values, wide_slopes = values.to(tl.float32), slopes.to(tl.float32)
            products = tl.dot(slopes, tl.trans(values), products, input_precision=PRECISION)
            read = tl.dot(queries, tl.trans(entered), input_precision=PRECISION)
            of_read += tl.sum(wide_slopes * read, axis=1)
            back = tl.dot(keys, tl.trans(left), input_precision=PRECISION) * to_end[:, None]
            of_left += tl.sum(wide_values * back, axis=1)
            slope = tl.dot(tl.trans(weights), slopes, back, input_precision=PRECISION)
            of_step += tl.sum(wide_values * slope, axis=1)
            slope *= step[:, None]
            if HAS_D:
                slope += wide_slopes * skip
                of_skip += tl.sum(wide_slopes * wide_values)
            out = start * stride_out + q[:, None] * stride_out + channel
            tl.store(grad_x + out, slope.to(grad_x.dtype.element_ty), mask=here)
            of_total += tl.sum(entered.to(tl.float32) * left.to(tl.float32))
        of_left *= step
        products *= between * step[None, :]
        of_scores += products
        products *= scores
        of_decay = tl.sum(products, axis=1) - tl.sum(products, axis=0) + of_read * from_start - of_left
        of_decay += tl.where(q == size - 1, tl.sum(of_left) + tl.exp(end) * of_total, 0.0)
        tl.store(grad_steps + of_head + q, of_step, mask=mask)
        tl.store(grad_decays + of_head + q, of_decay, mask=mask)
        if HAS_D:
            tl.store(grad_D + chunk * heads + h, of_skip)
    part = chunk.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    to = grad_scores + part * Q * Q + q[:, None] * Q + q[None, :]
    tl.store(to, of_scores.to(grad_scores.dtype.element_ty))


@triton.jit
def group_gradients(
    x, key, query, grad_y, steps, decays, begin, states, grads, grad_scores, grad_key, grad_query,
    stride, stride_grad_y, stride_group, of_split, tokens, heads, share,
    P: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
    HEADS: tl.constexpr, Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The gradients of B and C go where ``stride_group`` (from token to token) and ``of_split`` (from one part of a
    group's heads to the next) say."""
    chunk, h0 = tl.program_id(0), tl.program_id(1) * HEADS
    start = tl.load(begin + chunk).to(tl.int64)
    size = (tl.load(begin + chunk + 1) - start).to(tl.int32)
    q, n = tl.arange(0, Q), tl.arange(0, BN)
    mask, n_mask = q < size, n < N
    of_keys = tl.zeros((Q, BN), dtype=tl.float32)
    of_queries = tl.zeros((Q, BN), dtype=tl.float32)
    for turn in range(HEADS):
        h = h0 + turn
        of_head = h.to(tl.int64) * tokens + start
        end = tl.load(decays + of_head + size - 1)
        decay = tl.load(decays + of_head + q, mask=mask, other=0.0)
        from_start = tl.exp(decay)
        to_end = tl.exp(end - decay) * tl.load(steps + of_head + q, mask=mask, other=0.0)
        at = (chunk.to(tl.int64) * heads + h) * P * N
        for first in range(0, P, BP):
            p = first + tl.arange(0, BP)
            here, cells = mask[:, None] & (p < P)[None, :], (p < P)[:, None] & n_mask[None, :]
            channel = (h * P + p)[None, :]
            values = _rows(x, start, stride, q, channel, here)
            slopes = _rows(grad_y, start, stride_grad_y, q, channel, here)
            entered = _rows(states + at, 0, N, p, n[None, :], cells)
            left = _rows(grads + at, 0, N, p, n[None, :], cells)
            scaled = (slopes.to(tl.float32) * from_start[:, None]).to(entered.dtype)
            of_queries = tl.dot(scaled, entered, of_queries, input_precision=PRECISION)
            scaled = (values.to(tl.float32) * to_end[:, None]).to(entered.dtype)
            of_keys = tl.dot(scaled, left, of_keys, input_precision=PRECISION)
    in_group, column = mask[:, None] & n_mask[None, :], (h0 // share) * N + n[None, :]
    keys = _rows(key, start, stride, q, column, in_group)
    queries = _rows(query, start, stride, q, column, in_group)
    part = chunk.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    of_scores = tl.load(grad_scores + part * Q * Q + q[:, None] * Q + q[None, :])
    of_queries = tl.dot(of_scores, keys, of_queries, input_precision=PRECISION)
    of_keys = tl.dot(tl.trans(of_scores), queries, of_keys, input_precision=PRECISION)
    to = start * stride_group + (h0 // share) * N + q[:, None] * stride_group + n[None, :]
    to += (h0 % share // HEADS).to(tl.int64) * of_split
    tl.store(grad_key + to, of_keys.to(grad_key.dtype.element_ty), mask=in_group)
    tl.store(grad_query + to, of_queries.to(grad_query.dtype.element_ty), mask=in_group)


@triton.jit
def time_steps(
    A, begin, steps, grad_steps, grad_decays, grad_dt, grad_A, tokens, heads, Q: tl.constexpr, BH: tl.constexpr
):
    chunk = tl.program_id(0)
    start = tl.load(begin + chunk)
    size = tl.load(begin + chunk + 1) - start
    q, h = tl.arange(0, Q), tl.program_id(1) * BH + tl.arange(0, BH)
    mask = (q < size)[:, None] & (h < heads)[None, :]
    at = start.to(tl.int64) + q
    source = h.to(tl.int64)[None, :] * tokens + at[:, None]
    of_decay = tl.load(grad_decays + source, mask=mask, other=0.0)
    later = tl.sum(of_decay, axis=0)[None, :] - tl.cumsum(of_decay, axis=0) + of_decay
    step = tl.load(steps + source, mask=mask, other=0.0)
    of_step = tl.load(grad_steps + source, mask=mask, other=0.0)
    of_step += later * tl.load(A + h, mask=h < heads, other=0.0)[None, :]
    tl.store(grad_dt + at[:, None] * heads + h[None, :], of_step, mask=mask)
    tl.store(grad_A + chunk * heads + h, tl.sum(later * step, axis=0), mask=h < heads)
