"""The optimizer: the norm of all gradients and one pass of AdamW, both over flat ranges; see csrc/kernels.h."""

import math

import numpy as np
from numba import prange

from .jit import i64, parallel, part, serial
from .rows import ONE, ZERO, F, row_dot

BLOCK, RUN = 65536, 4096


def grad_norm_scratch(P, NT):
    return 2 * -(-P // BLOCK)  # a double per block


@serial
def put_double(words, i, x):
    bits = np.float64(x).view(np.int64)
    words[2 * i], words[2 * i + 1] = np.int32(bits), np.int32(bits >> 32)


@serial
def get_double(words, i):
    return np.int64(np.int64(words[2 * i + 1]) << 32 | np.int64(words[2 * i]) & 0xFFFFFFFF).view(np.float64)


@parallel
def grad_norm(norm, grads, scratch, P, NT):
    blocks = (P + BLOCK - 1) // BLOCK
    words = scratch.view(np.int32)
    for worker in prange(NT):
        lanes = np.empty(16, np.float32)
        begin, end = part(blocks, i64(worker), NT)
        for b in range(begin, end):
            block = 0.0
            last = min((b + 1) * BLOCK, P)
            for i in range(b * BLOCK, last, RUN):
                g = grads[i : min(i + RUN, last)]
                block = block + np.float64(row_dot(g, g, ZERO, ZERO, lanes))
            put_double(words, b, block)
    total = 0.0
    for b in range(blocks):
        total += get_double(words, b)
    norm[0] = F(math.sqrt(total))


@parallel
def adamw(params, m, v, grads, lr, beta1, beta2, eps, weight_decay, correction1, correction2, grad_scale, P, NT):
    rate, rest1, rest2, e, decay = lr[0], ONE - beta1[0], ONE - beta2[0], eps[0], weight_decay[0]
    c1, c2, scale = ONE / correction1[0], ONE / correction2[0], grad_scale[0]
    for worker in prange(NT):
        begin, end = part(P, i64(worker), NT)
        w, m_w, v_w, g_w = params[begin:end], m[begin:end], v[begin:end], grads[begin:end]
        for i in range(end - begin):
            g = g_w[i] * scale
            m_i = m_w[i] + rest1 * (g - m_w[i])
            v_i = v_w[i] + rest2 * (g * g - v_w[i])
            step = m_i * c1 / (math.sqrt(v_i * c2) + e)
            m_w[i], v_w[i] = m_i, v_i
            w[i] = w[i] - rate * (step + decay * w[i])
