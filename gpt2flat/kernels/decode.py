"""decode: one new token for each of B rows: products over packed rows of weights, and the cache; see csrc/kernels.h."""

import math

import numpy as np
from numba import prange

from .gelu import sigmoid
from .jit import i64, parallel, part, serial
from .layernorm import EPS
from .rows import INF, LEAST, ONE, ZERO, F, exp, row_dot, row_max, row_sum

BLOCK, HALF, KEYS = (
    32,
    16,
    192,
)  # elements of a packed block; keys that lie together; keys of a block of the softmax statistics
HALFWORD, UPPER = np.uint32(16), np.uint32(0xFFFF0000)


def decode_linear_scratch(B, C, OC, W, PACK, NT):
    """Per worker: its copy of the batch, and a row of weights."""
    return NT * (B + 1) * C


def decode_linear_gelu_scratch(B, C, OC, W, PACK, NT):
    return decode_linear_scratch(B, C, OC, W, PACK, NT)


@serial
def unpack_bf16(row, packed, C):
    words = packed.view(np.uint32)
    for j in range(0, C, BLOCK):
        for i in range(min(HALF, C - j)):
            row[j + i] = np.uint32(words[j // 2 + i] << HALFWORD).view(np.float32)
        for i in range(min(HALF, C - j - HALF)):
            row[j + HALF + i] = np.uint32(words[j // 2 + i] & UPPER).view(np.float32)


@serial
def unpack_int8(row, packed, C):
    numbers = packed.view(np.int8)
    for j in range(0, C, BLOCK):
        at = j // BLOCK * 9
        for i in range(min(BLOCK, C - j)):
            row[j + i] = F(numbers[4 * at + 4 + i]) * packed[at]


@serial
def unpack(row, packed, C, PACK):
    """The numbers of a row of weights, in `row` if they are packed."""
    if PACK == 0:
        return packed
    if PACK == 1:
        unpack_bf16(row, packed, C)
    else:
        unpack_int8(row, packed, C)
    return row[:C]


@serial
def take(x, inp, gain, shift, lanes):
    """A row as the products read it: normalised where there is a gain."""
    if not gain.size:
        for j in range(x.size):
            x[j] = inp[j]
        return
    mean = row_sum(inp, lanes) / F(inp.size)
    rstd = ONE / F(math.sqrt(row_dot(inp, inp, mean, mean, lanes) / F(inp.size) + EPS))
    for j in range(x.size):
        x[j] = (inp[j] - mean) * rstd * gain[j] + shift[j]


@serial
def outputs(out, x, row, added, bias, gelu, n, B, C, OC, lanes):
    """Output n of every row of the batch."""
    for b in range(B):
        y = row_dot(x[b * C : (b + 1) * C], row, ZERO, ZERO, lanes)
        if bias.size:
            y += bias[n]
        if gelu:
            y *= sigmoid(y)
        if added.size:
            y += added[b * OC + n]
        out[b * OC + n] = y


@parallel
def products(out, inp, added, gain, shift, weight, bias, gelu, scratch, B, C, OC, W, PACK, NT):
    for worker in prange(NT):
        lanes = np.empty(16, np.float32)
        room = scratch[i64(worker) * (B + 1) * C : (i64(worker) + 1) * (B + 1) * C]
        for b in range(B):
            take(room[b * C : (b + 1) * C], inp[b * C : (b + 1) * C], gain, shift, lanes)
        begin, end = part(OC, i64(worker), NT)
        for n in range(begin, end):
            row = unpack(room[B * C :], weight[n * W : (n + 1) * W], C, PACK)
            outputs(out, room, row, added, bias, gelu, n, B, C, OC, lanes)


@serial
def decode_linear(out, inp, added, gain, shift, weight, bias, scratch, B, C, OC, W, PACK, NT):
    products(out, inp, added, gain, shift, weight, bias, i64(0), scratch, B, C, OC, W, PACK, NT)


@serial
def decode_linear_gelu(out, inp, gain, shift, weight, bias, scratch, B, C, OC, W, PACK, NT):
    products(out, inp, scratch[:0], gain, shift, weight, bias, i64(1), scratch, B, C, OC, W, PACK, NT)


@parallel
def decode_embedding(out, tokens, positions, wte, wpe, B, C, Vp, maxT, NT):
    for worker in prange(NT):
        begin, end = part(B, i64(worker), NT)
        for b in range(begin, end):
            token, position = tokens[b] * C, positions[b] * C
            row, word, place = out[b * C : (b + 1) * C], wte[token : token + C], wpe[position : position + C]
            for j in range(C):
                row[j] = word[j] + place[j]


@serial
def keep(key, value, new_key, new_value, s, HS):
    """Puts the key and the value of position s of a row and head into the cache."""
    for d in range(HS):
        key[s // HALF * HALF * HS + d * HALF + s % HALF] = new_key[d]
        value[s * HS + d] = new_value[d]


@parallel
def decode_cache(keys, values, inp, B, T, S, NH, KVH, HS, NT):
    for worker in prange(NT):
        begin, end = part(B * KVH, i64(worker), NT)
        for u in range(begin, end):
            key, value = keys[u * S * HS : (u + 1) * S * HS], values[u * S * HS : (u + 1) * S * HS]
            for t in range(T):
                k = ((u // KVH * T + t) * (NH + 2 * KVH) + NH + u % KVH) * HS
                v = k + KVH * HS
                keep(key, value, inp[k : k + HS], inp[v : v + HS], t, HS)


@serial
def attend(o, q, key, value, seen, HS, p, lanes):
    """One query against `seen` keys: the online softmax of attention, a block of keys at a time."""
    most, total, scale = -INF, ZERO, ONE / F(math.sqrt(F(HS)))
    o.fill(ZERO)
    for j0 in range(0, seen, KEYS):
        n = min(KEYS, seen - j0)
        row = p[:n]
        for j in range(n):
            at, score = (j0 + j) // HALF * HALF * HS + (j0 + j) % HALF, ZERO
            for d in range(HS):
                score += q[d] * key[at + d * HALF]
            row[j] = score * scale
        now = max(most, row_max(row, lanes), LEAST)
        old, most = exp(most - now), now
        for j in range(n):
            row[j] = exp(row[j] - most)
        total = total * old + row_sum(row, lanes)
        for d in range(HS):
            o[d] *= old
        for j in range(n):
            at = (j0 + j) * HS
            for d in range(HS):
                o[d] += row[j] * value[at + d]
    by = ONE / total
    for d in range(HS):
        o[d] *= by


@parallel
def decode_attention(out, keys, values, inp, positions, B, S, NH, KVH, HS, NT):
    group = NH // KVH
    for worker in prange(NT):
        lanes, p = np.empty(16, np.float32), np.empty(KEYS, np.float32)
        begin, end = part(B * KVH, i64(worker), NT)
        for u in range(begin, end):
            b, head = u // KVH, u % KVH
            row, at = b * (NH + 2 * KVH) * HS, i64(positions[b])
            key, value = keys[u * S * HS : (u + 1) * S * HS], values[u * S * HS : (u + 1) * S * HS]
            k = row + (NH + head) * HS
            v = k + KVH * HS
            keep(key, value, inp[k : k + HS], inp[v : v + HS], at, HS)
            for h in range(head * group, (head + 1) * group):
                o = (b * NH + h) * HS
                attend(out[o : o + HS], inp[row + h * HS : row + (h + 1) * HS], key, value, at + 1, HS, p, lanes)
