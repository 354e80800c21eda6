"""dropout: a number stays, times 1 / (1 - p), or becomes 0, by a random word of a key and the number's place (csrc/kernels.h)."""

import numpy as np
from numba import prange

from .jit import i64, parallel, part, serial
from .residual import pass_on
from .rows import ONE, ZERO

U = np.uint32
FLOATS, HALF = 256, 32  # whose mask is made at once; bits of half an index


@serial
def mix32(x):
    """Two rounds of a 32-bit mixer; U() cuts a product back to 32 bits."""
    x = U((x ^ (x >> U(16))) * U(0x7FEB352D))
    x = U((x ^ (x >> U(15))) * U(0x846CA68B))
    return x ^ (x >> U(16))


@serial
def drop(x, p_drop, key_drop, plane, row, column):
    """x[j] *= 0 or 1 / (1 - p_drop), for the places from (plane, row, column) on."""
    keep, threshold = ONE / (ONE - p_drop), U(np.float64(p_drop) * 4294967296.0)
    words = mix32(U(mix32(U(key_drop) ^ U(U(plane) * U(0x9E3779B9))) + U(row)))
    for j in range(x.size):
        x[j] *= ZERO if mix32(words ^ mix32(U(column + j))) < threshold else keep


@parallel
def dropped(out, inp, p_drop, key_drop, NT, acc):
    """out = inp with numbers dropped, or += with acc."""
    blocks = (out.size + FLOATS - 1) // FLOATS
    for worker in prange(NT):
        begin, end = part(blocks, i64(worker), NT)
        room = np.empty(FLOATS, np.float32)
        for block in range(begin, end):
            i = block * FLOATS
            y, x = out[i : i + FLOATS], inp[i : i + FLOATS]
            kept = room[: y.size]
            for j in range(y.size):
                kept[j] = x[j]
            drop(kept, p_drop[0], key_drop[0], i64(0), i >> HALF, i)
            for j in range(y.size):
                y[j] = y[j] + kept[j] if acc else kept[j]


@serial
def dropout_forward(out, inp, added, p_drop, key_drop, N, C, NT):
    dropped(out, inp, p_drop, key_drop, NT, i64(0))
    if added.size:
        pass_on(out, added, NT, i64(1))


@serial
def dropout_backward(dinp, dadded, dout, p_drop, key_drop, N, C, NT, acc_inp, acc_added):
    dropped(dinp, dout, p_drop, key_drop, NT, acc_inp)
    pass_on(dadded, dout, NT, acc_added)
