"""layernorm: two passes over a row forward (exact variance), one pair of row sums backward; see csrc/kernels.h."""

import math

import numpy as np
from numba import prange

from .jit import i64, parallel, part, serial
from .rows import ONE, ZERO, F, row_dot, row_sum

ROWS = 32  # rows of a block of the dweight, dbias sums: a unit of work and of the order of sums
EPS = F(1e-5)


def layernorm_scratch(N, C, NT):
    return (-(-N // ROWS) + NT) * 2 * C  # dweight and dbias of each block; norm and dnorm of one row of each worker


@parallel
def layernorm_forward(out, mean, rstd, inp, weight, bias, N, C, NT):
    for worker in prange(NT):
        lanes = np.empty(16, np.float32)
        begin, end = part(N, i64(worker), NT)
        for n in range(begin, end):
            x, y = inp[n * C : (n + 1) * C], out[n * C : (n + 1) * C]
            mu = row_sum(x, lanes) / F(C)
            r = ONE / F(math.sqrt(row_dot(x, x, mu, mu, lanes) / F(C) + EPS))
            for j in range(C):
                norm = (x[j] - mu) * r
                y[j] = norm * weight[j] + bias[j]
            mean[n], rstd[n] = mu, r


@serial
def row_backward(dx, block_dweight, block_dbias, up, mu, r, x, weight, norm, dnorm, lanes, acc):
    """dx = r (dnorm - mean(dnorm) - norm mean(dnorm norm)), dnorm = up weight; adds the row to the block's sums."""
    for j in range(x.size):
        norm[j] = (x[j] - mu) * r
        dnorm[j] = up[j] * weight[j]
        block_dbias[j] += up[j]
        block_dweight[j] += norm[j] * up[j]
    a = row_sum(dnorm, lanes) / F(x.size)
    b = row_dot(dnorm, norm, ZERO, ZERO, lanes) / F(x.size)
    for j in range(x.size):
        old = dx[j] if acc else ZERO
        dx[j] = old + (dnorm[j] - a - norm[j] * b) * r


@parallel
def layernorm_backward(
    dinp, dweight, dbias, dout, mean, rstd, inp, weight, scratch, N, C, NT, acc_inp, acc_weight, acc_bias
):
    blocks = (N + ROWS - 1) // ROWS
    for worker in prange(NT):
        lanes = np.empty(16, np.float32)
        at = (blocks + i64(worker)) * 2 * C
        norm, dnorm = scratch[at : at + C], scratch[at + C : at + 2 * C]
        begin, end = part(blocks, i64(worker), NT)
        for b in range(begin, end):
            sums = scratch[b * 2 * C : (b + 1) * 2 * C]
            sums.fill(ZERO)
            for n in range(b * ROWS, min(N, (b + 1) * ROWS)):
                dx, x, up = dinp[n * C : (n + 1) * C], inp[n * C : (n + 1) * C], dout[n * C : (n + 1) * C]
                row_backward(dx, sums[:C], sums[C:], up, mean[n], rstd[n], x, weight, norm, dnorm, lanes, acc_inp)
    for worker in prange(NT):  # the blocks in ascending order, threads own columns
        begin, end = part(C, i64(worker), NT)
        for j in range(begin, end):
            w, b = dweight[j] if acc_weight else ZERO, dbias[j] if acc_bias else ZERO
            for i in range(blocks):
                w += scratch[i * 2 * C + j]
                b += scratch[(i * 2 + 1) * C + j]
            dweight[j], dbias[j] = w, b
