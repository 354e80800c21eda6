"""Causal attention, flash and standard, by tiles of a fixed size (QB and KB change nothing): the masked half is skipped.

Keys and values lie as rows of HS, so a block of them is transposed once and then swept like any B (gemm.py)."""

import math

import numpy as np
from numba import prange

from .dropout import drop
from .gemm import tile, transpose
from .jit import i64, parallel, part, serial
from .rows import INF, ONE, ZERO, F, exp, exp_row, log, row_dot, row_max, row_sum

QUERIES, KEYS = 64, 192  # rows of a tile of queries; keys of a block of the softmax statistics


# --- where things lie


@serial
def key_at(b, h, T, NH, KVH, HS):
    """The row of k of token 0 for query head h of batch b; that of q is at head h, that of v KVH heads further."""
    return (b * T * (NH + 2 * KVH) + NH + h // (NH // KVH)) * HS


@serial
def query_at(b, h, T, NH, KVH, HS):
    return (b * T * (NH + 2 * KVH) + h) * HS


def attention_scratch(B, T, NH, KVH, HS, BF16, QB, KB, NT):
    """Per worker: blocks of k and v transposed, tiles p and dp, the unscaled out of a tile, its maxima and sums."""
    return NT * (2 * HS * KEYS + 2 * QUERIES * KEYS + QUERIES * HS + 2 * QUERIES)


def attention_standard_scratch(B, T, NH, KVH, HS, BF16, QB, KB, NT):
    return attention_scratch(B, T, NH, KVH, HS, BF16, QB, KB, NT)


@serial
def rooms(scratch, w, HS):
    """A worker's part of scratch: kt, vt (HS,KEYS)  p, dp (QUERIES,KEYS)  o (QUERIES,HS)  most, total (QUERIES)"""
    block, square, rows = HS * KEYS, QUERIES * KEYS, QUERIES * HS
    at = w * (2 * block + 2 * square + rows + 2 * QUERIES)
    kt, vt = scratch[at : at + block], scratch[at + block : at + 2 * block]
    at += 2 * block
    p, dp = scratch[at : at + square], scratch[at + square : at + 2 * square]
    at += 2 * square
    o, stats = scratch[at : at + rows], scratch[at + rows : at + rows + 2 * QUERIES]
    return kt, vt, p, dp, o, stats[:QUERIES], stats[QUERIES:]


# --- flash


@serial
def softmax_block(p, seen, scale, most, total, i, lanes):
    """One step of the online softmax of a row: scores of the `seen` keys become probabilities relative to the running
    maximum, the others 0. Returns what the old sums must be multiplied with."""
    row, hidden = p[:seen], p[seen:]
    for j in range(seen):
        row[j] *= scale
    now = max(most[i], row_max(row, lanes))
    old = exp(most[i] - now)
    exp_row(row, row, ONE, now)
    hidden.fill(ZERO)
    total[i] = total[i] * old + row_sum(row, lanes)
    most[i] = now
    return old


@serial
def forward_tile(out, lse, inp, p_drop, key_drop, scratch, w, bh, i0, T, NH, KVH, HS, BF16, lanes):
    """Queries [i0, i0 + QUERIES) of head bh against all keys they see."""
    kt, _vt, p, _dp, o, most, total = rooms(scratch, w, HS)
    b, h, W, rows = bh // NH, bh % NH, (NH + 2 * KVH) * HS, min(QUERIES, T - i0)
    q, k, scale = query_at(b, h, T, NH, KVH, HS) + i0 * W, key_at(b, h, T, NH, KVH, HS), ONE / F(math.sqrt(F(HS)))
    most.fill(-INF)
    total.fill(ZERO)
    for j0 in range(0, i0 + rows, KEYS):
        n = min(KEYS, i0 + rows - j0)
        transpose(kt, i64(0), i64(KEYS), inp, k + j0 * W, W, HS, n)
        tile(p, i64(0), i64(KEYS), inp, q, W, i64(1), kt, i64(0), i64(KEYS), rows, n, HS, i64(0), BF16)
        for i in range(rows):
            seen = min(n, i0 + i + 1 - j0)
            row, o_i = p[i * KEYS : i * KEYS + n], o[i * HS : (i + 1) * HS]
            old = softmax_block(row, seen, scale, most, total, i, lanes)
            if j0 > 0:
                for j in range(HS):
                    o_i[j] *= old
            if p_drop > ZERO:
                drop(row[:seen], p_drop, key_drop, bh, i0 + i, j0)
        tile(o, i64(0), HS, p, i64(0), i64(KEYS), i64(1), inp, k + KVH * HS + j0 * W, W, rows, HS, n, i64(j0 > 0), BF16)
    for i in range(rows):
        by, at = ONE / total[i], ((b * T + i0 + i) * NH + h) * HS
        out_i, o_i = out[at : at + HS], o[i * HS : (i + 1) * HS]
        for j in range(HS):
            out_i[j] = o_i[j] * by
        lse[bh * T + i0 + i] = most[i] + log(total[i])


@parallel
def attention_forward(out, lse, inp, p_drop, key_drop, scratch, B, T, NH, KVH, HS, BF16, QB, KB, NT):
    tiles = (T + QUERIES - 1) // QUERIES
    for worker in prange(NT):
        lanes = np.empty(16, np.float32)
        # tiles grow with i0, so they are dealt out in turn; whoever computes a tile computes all of it
        for t in range(i64(worker), B * NH * tiles, NT):
            bh, i0 = t // tiles, t % tiles * QUERIES
            forward_tile(out, lse, inp, p_drop[0], key_drop[0], scratch, i64(worker), bh, i0, T, NH, KVH, HS, BF16, lanes)


@serial
def backward_row(p, dp, up, out, att, lse, flash, scale, p_drop, key_drop, bh, i, j0, lanes):
    """dp, the gradient of the probabilities of the keys that query i sees, becomes that of the unscaled scores; p what
    multiplied v."""
    dot = row_dot(up, out, ZERO, ZERO, lanes)
    if p_drop > ZERO:
        drop(dp, p_drop, key_drop, bh, i, j0)
    if flash:
        exp_row(p, p, scale, lse)
    else:
        for j in range(p.size):
            p[j] = att[j]
    for j in range(p.size):
        dp[j] = p[j] * (dp[j] - dot) * scale
    if p_drop > ZERO:
        drop(p, p_drop, key_drop, bh, i, j0)


@serial
def backward_head(dinp, dout, out, lse, att, inp, flash, p_drop, key_drop, scratch, w, bh, T, NH, KVH, HS, BF16, lanes):
    """The tiles of one head, keys outside and queries inside: dk and dv of a block finish together, dq of a query is
    added to in ascending blocks of keys. p is made again from lse (flash) or read from att; dinp is added to."""
    kt, vt, p, dp, _o, _most, _total = rooms(scratch, w, HS)
    b, h, W, pitch = bh // NH, bh % NH, (NH + 2 * KVH) * HS, NH * HS
    q, k, head = query_at(b, h, T, NH, KVH, HS), key_at(b, h, T, NH, KVH, HS), b * T * pitch + h * HS
    v, scale = k + KVH * HS, ONE / F(math.sqrt(F(HS)))
    for j0 in range(0, T, KEYS):
        if flash:
            transpose(kt, i64(0), i64(KEYS), inp, k + j0 * W, W, HS, min(KEYS, T - j0))
        transpose(vt, i64(0), i64(KEYS), inp, v + j0 * W, W, HS, min(KEYS, T - j0))
        for i0 in range(j0, T, QUERIES):
            rows = min(QUERIES, T - i0)
            n, up_i = min(KEYS, i0 + rows - j0), head + i0 * pitch
            q_i, k_j, v_j = q + i0 * W, k + j0 * W, v + j0 * W
            if flash:
                tile(p, i64(0), i64(KEYS), inp, q_i, W, i64(1), kt, i64(0), i64(KEYS), rows, n, HS, i64(0), BF16)
            tile(dp, i64(0), i64(KEYS), dout, up_i, pitch, i64(1), vt, i64(0), i64(KEYS), rows, n, HS, i64(0), BF16)
            for i in range(rows):
                seen, row, at = min(n, i0 + i + 1 - j0), bh * T + i0 + i, up_i + i * pitch
                p_i, dp_i = p[i * KEYS : i * KEYS + n], dp[i * KEYS : i * KEYS + n]
                att_i = att[:0] if flash else att[row * T + j0 : row * T + j0 + seen]
                up_at, out_at = dout[at : at + HS], out[at : at + HS]
                backward_row(p_i[:seen], dp_i[:seen], up_at, out_at, att_i, lse[row] if flash else ZERO, flash, scale,
                             p_drop, key_drop, bh, i0 + i, j0, lanes)  # fmt: skip
                p_i[seen:].fill(ZERO)
                dp_i[seen:].fill(ZERO)
            tile(dinp, v_j, W, p, i64(0), i64(1), i64(KEYS), dout, up_i, pitch, n, HS, rows, i64(1), BF16)
            tile(dinp, q_i, W, dp, i64(0), i64(KEYS), i64(1), inp, k_j, W, rows, HS, n, i64(1), BF16)
            tile(dinp, k_j, W, dp, i64(0), i64(1), i64(KEYS), inp, q_i, W, n, HS, rows, i64(1), BF16)


@parallel
def backward(dinp, dout, out, lse, att, inp, flash, p_drop, key_drop, scratch, B, T, NH, KVH, HS, BF16, NT, acc):
    """The heads of a group share k and v, so one thread takes the group, heads in ascending order."""
    group, W = NH // KVH, (NH + 2 * KVH) * HS
    for worker in prange(NT):
        lanes = np.empty(16, np.float32)
        begin, end = part(B * KVH, i64(worker), NT)
        for g in range(begin, end):
            b, first = g // KVH, g % KVH * group
            q, k = query_at(b, first, T, NH, KVH, HS), key_at(b, first, T, NH, KVH, HS)
            if not acc:
                for t in range(T):
                    dinp[q + t * W : q + t * W + group * HS].fill(ZERO)
                    dinp[k + t * W : k + t * W + HS].fill(ZERO)
                    dinp[k + KVH * HS + t * W : k + (KVH + 1) * HS + t * W].fill(ZERO)
            for h in range(first, first + group):
                backward_head(dinp, dout, out, lse, att, inp, flash, p_drop[0], key_drop[0], scratch, i64(worker),
                              b * NH + h, T, NH, KVH, HS, BF16, lanes)  # fmt: skip


@serial
def attention_backward(
    dinp, dout, out, lse, inp, p_drop, key_drop, scratch, B, T, NH, KVH, HS, BF16, QB, KB, NT, acc_inp
):
    backward(dinp, dout, out, lse, lse[:0], inp, i64(1), p_drop, key_drop, scratch, B, T, NH, KVH, HS, BF16, NT, acc_inp)


# --- standard: whole rows of scores and att


@serial
def row_lse(row, room, lanes):
    """log sum exp of a row: blocks of KEYS in ascending order, rescaled to the largest so far; `room` for one block."""
    most, total = -INF, ZERO
    for j in range(0, row.size, KEYS):
        width = min(KEYS, row.size - j)
        block, e = row[j : j + width], room[:width]
        top = row_max(block, lanes)
        now = max(most, top)
        exp_row(e, block, ONE, top)
        total = total * exp(most - now) + row_sum(e, lanes) * exp(top - now)
        most = now
    return most + log(total)


@serial
def standard_tile(out, scores, att, inp, p_drop, key_drop, scratch, w, bh, i0, T, NH, KVH, HS, BF16, lanes):
    kt, _vt, room, _dp, _o, _most, _total = rooms(scratch, w, HS)
    b, h, W, rows = bh // NH, bh % NH, (NH + 2 * KVH) * HS, min(QUERIES, T - i0)
    q, k, scale = query_at(b, h, T, NH, KVH, HS) + i0 * W, key_at(b, h, T, NH, KVH, HS), ONE / F(math.sqrt(F(HS)))
    keys, first = i0 + rows, (bh * T + i0) * T
    for j0 in range(0, keys, KEYS):
        n = min(KEYS, keys - j0)
        transpose(kt, i64(0), i64(KEYS), inp, k + j0 * W, W, HS, n)
        tile(scores, first + j0, T, inp, q, W, i64(1), kt, i64(0), i64(KEYS), rows, n, HS, i64(0), BF16)
    for i in range(rows):
        seen, at = i0 + i + 1, first + i * T
        s, p = scores[at : at + seen], att[at : at + seen]
        for j in range(seen):
            s[j] *= scale
        exp_row(p, s, ONE, row_lse(s, room, lanes))
        scores[at + seen : at + T].fill(ZERO)
        att[at + seen : at + T].fill(ZERO)
    for j0 in range(0, keys, KEYS):
        n = min(KEYS, keys - j0)
        for i in range(rows):
            row, p = room[i * KEYS : i * KEYS + n], att[first + i * T + j0 : first + i * T + j0 + n]
            for j in range(n):
                row[j] = p[j]
            if p_drop > ZERO:
                drop(row, p_drop, key_drop, bh, i0 + i, j0)
        o = ((b * T + i0) * NH + h) * HS
        tile(out, o, NH * HS, room, i64(0), i64(KEYS), i64(1), inp, k + KVH * HS + j0 * W, W, rows, HS, n, i64(j0 > 0), BF16)


@parallel
def attention_standard_forward(out, scores, att, inp, p_drop, key_drop, scratch, B, T, NH, KVH, HS, BF16, QB, KB, NT):
    tiles = (T + QUERIES - 1) // QUERIES
    for worker in prange(NT):
        lanes = np.empty(16, np.float32)
        for t in range(i64(worker), B * NH * tiles, NT):
            bh, i0 = t // tiles, t % tiles * QUERIES
            standard_tile(
                out, scores, att, inp, p_drop[0], key_drop[0], scratch, i64(worker), bh, i0, T, NH, KVH, HS, BF16, lanes
            )


@serial
def attention_standard_backward(
    dinp, dout, out, att, inp, p_drop, key_drop, scratch, B, T, NH, KVH, HS, BF16, QB, KB, NT, acc_inp
):  # fmt: skip
    backward(dinp, dout, out, att[:0], att, inp, i64(0), p_drop, key_drop, scratch, B, T, NH, KVH, HS, BF16, NT, acc_inp)
