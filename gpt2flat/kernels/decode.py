"""decode: one new token for each of B rows: products over packed rows of weights, and the cache; see csrc/kernels.h."""

import math

import numpy as np
from numba import prange

from .gelu import sigmoid
from .jit import i64, parallel, part, serial
from .layernorm import EPS
from .rows import INF, LEAST, ONE, ZERO, F, clear, exp, row_dot, row_max, row_sum, tree

BLOCK, HALF, KEYS = 32, 16, 192  # elements of a block; keys that lie together; keys of a softmax block
SUPER, SUPER_W, SUPER_X, X_SCALES = 128, 34, 48, 32  # int8: elements; floats of weights, of x, and before its scales
X_MOST, X_STEP, LEAST_SIZE = F(127), F(1) / F(127), F(1e-36)
HALFWORD, UPPER = np.uint32(16), np.uint32(0xFFFF0000)


@serial
def taken_floats(C, PACK):
    """Floats of a row of x as the products read it."""
    return (C + SUPER - 1) // SUPER * SUPER_X if PACK == 2 else C


def decode_linear_scratch(B, C, OC, W, PACK, NT):
    """Per worker: its copy of the batch, and a row of weights or of x."""
    return NT * (B * taken_floats(C, PACK) + C)


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
def unpack(row, packed, C, PACK):
    """The numbers of a row of float32 or bf16 weights, in `row` if they are packed."""
    if PACK == 0:
        return packed
    unpack_bf16(row, packed, C)
    return row[:C]


@serial
def round_x(taken, x):
    """x as int8: of each 128 elements their numbers, in the order of the weights', and the scale of each lane."""
    C, numbers = x.size, taken.view(np.int8)
    for block in range((C + SUPER - 1) // SUPER):
        at = block * SUPER_X
        for lane in range(16):
            first, most, none = block * SUPER + lane // 4 * BLOCK + lane % 4 * 4, ZERO, ZERO
            for h in range(2):
                for j in range(first + HALF * h, min(first + HALF * h + 4, C)):
                    most = max(most, abs(x[j]))
                    none += x[j] * ZERO
            by = X_MOST / most if LEAST_SIZE < most < INF else ZERO
            taken[at + X_SCALES + lane] = most * X_STEP + none
            for h in range(2):
                for i in range(4):
                    j = first + HALF * h + i
                    y = np.rint(x[j] * by) if j < C else ZERO
                    numbers[4 * at + 64 * h + 4 * lane + i] = np.int8(-X_MOST if math.isnan(y) else y)


@serial
def int8_dot(taken, row, C, lanes):
    """The sum over a row of int8 weights (csrc/kernels.h, PACK)."""
    x, w, scales = taken.view(np.int8), row.view(np.uint8), row.view(np.uint16)
    clear(lanes, ZERO)
    for block in range((C + SUPER - 1) // SUPER):
        floats, words = block * SUPER_X, block * SUPER_W
        for lane in range(16):
            dot = np.int32(0)
            for h in range(2):
                for i in range(4):
                    at = 64 * h + 4 * lane + i
                    dot += np.int32(x[4 * floats + at]) * (np.int32(w[4 * words + 8 + at]) - np.int32(128))
            scale = np.uint32(np.uint32(scales[2 * words + lane // 4]) << HALFWORD).view(np.float32)
            lanes[lane] = F(dot) * scale * taken[floats + X_SCALES + lane] + lanes[lane]
    return tree(lanes)


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
def outputs(out, x, row, added, bias, gelu, n, B, C, OC, PACK, lanes):
    """Output n of every row of the batch."""
    wide = taken_floats(C, PACK)
    for b in range(B):
        of = x[b * wide : (b + 1) * wide]
        y = int8_dot(of, row, C, lanes) if PACK == 2 else row_dot(of, row, ZERO, ZERO, lanes)
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
        lanes, wide = np.empty(16, np.float32), taken_floats(C, PACK)
        room = scratch[i64(worker) * (B * wide + C) : (i64(worker) + 1) * (B * wide + C)]
        row = room[B * wide :]
        for b in range(B):
            of = room[b * wide : (b + 1) * wide]
            if PACK == 2:
                take(row, inp[b * C : (b + 1) * C], gain, shift, lanes)
                round_x(of, row)
            else:
                take(of, inp[b * C : (b + 1) * C], gain, shift, lanes)
        begin, end = part(OC, i64(worker), NT)
        for n in range(begin, end):
            weights = weight[n * W : (n + 1) * W]
            outputs(
                out,
                room,
                weights if PACK == 2 else unpack(row, weights, C, PACK),
                added,
                bias,
                gelu,
                n,
                B,
                C,
                OC,
                PACK,
                lanes,
            )


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
