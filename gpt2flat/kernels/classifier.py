"""classifier: logits, softmax and cross-entropy in chunks of R rows: the logits never exist for all tokens at once.

The three forms share chunk_losses and chunk_backward and so give the same bits."""

import numpy as np
from numba import prange

from .attention import KEYS, row_lse
from .jit import i64, parallel, part, serial
from .linear import linear_backward, linear_forward, linear_scratch
from .rows import ZERO, exp


def classifier_scratch(N, C, V, Vp, R, BF16, NT):
    return linear_scratch(R, C, Vp, BF16, NT)


@parallel
def chunk_losses(losses, lse, logits, targets, rows, V, Vp, NT):
    for worker in prange(NT):
        lanes, room = np.empty(16, np.float32), np.empty(KEYS, np.float32)
        begin, end = part(rows, i64(worker), NT)
        for n in range(begin, end):
            lse[n] = row_lse(logits[n * Vp : n * Vp + V], room, lanes)
            losses[n] = ZERO if targets[n] < 0 else lse[n] - logits[n * Vp + targets[n]]


@parallel
def chunk_gradients(logits, dlosses, lse, targets, rows, V, Vp, NT):
    """logits become dlogits = (softmax - onehot) * dlosses, 0 in the padding and for ignored targets."""
    for worker in prange(NT):
        begin, end = part(rows, i64(worker), NT)
        for n in range(begin, end):
            row, shift, up = logits[n * Vp : n * Vp + V], lse[n], dlosses[n]
            logits[n * Vp + V : (n + 1) * Vp].fill(ZERO)
            if targets[n] < 0:
                row.fill(ZERO)  # not even a NaN counts
            else:
                for j in range(V):
                    row[j] = exp(row[j] - shift) * up
                row[targets[n]] -= up


@serial
def chunk_backward(
    dinp, dweight, dlosses, lse, inp, targets, weight, logits, scratch, rows, C, V, Vp, BF16, NT, acc_inp, acc_weight
):
    chunk_gradients(logits, dlosses, lse, targets, rows, V, Vp, NT)
    linear_backward(dinp, dweight, inp[:0], logits, inp, weight, scratch, rows, C, Vp, BF16, NT, acc_inp, acc_weight, i64(0))


@serial
def classifier_forward(losses, lse, inp, targets, weight, logits, held, scratch, N, C, V, Vp, R, BF16, NT):
    for n in range(0, N, R):
        rows = min(R, N - n)
        linear_forward(logits, inp[n * C :], weight, inp[:0], scratch, rows, C, Vp, BF16, NT)
        chunk_losses(losses[n:], lse[n:], logits, targets[n:], rows, V, Vp, NT)
    held[0] = N if N <= R else 0


@serial
def classifier_backward(
    dinp, dweight, dlosses, lse, inp, targets, weight, logits, held, scratch, N, C, V, Vp, R, BF16, NT, acc_inp, acc_weight
):
    for n in range(0, N, R):
        rows = min(R, N - n)
        if held[0] != N:
            linear_forward(logits, inp[n * C :], weight, inp[:0], scratch, rows, C, Vp, BF16, NT)
        chunk_backward(dinp[n * C :], dweight, dlosses[n:], lse[n:], inp[n * C :], targets[n:], weight, logits, scratch,
                       rows, C, V, Vp, BF16, NT, acc_inp, acc_weight if n == 0 else i64(1))  # fmt: skip
    held[0] = 0


@serial
def classifier_train(
    losses, dinp, dweight, lse, dlosses, inp, targets, weight, logits, held, scratch,
    N, C, V, Vp, R, BF16, NT, acc_inp, acc_weight,
):  # fmt: skip
    for n in range(0, N, R):
        rows = min(R, N - n)
        linear_forward(logits, inp[n * C :], weight, inp[:0], scratch, rows, C, Vp, BF16, NT)
        chunk_losses(losses[n:], lse[n:], logits, targets[n:], rows, V, Vp, NT)
        chunk_backward(dinp[n * C :], dweight, dlosses[n:], lse[n:], inp[n * C :], targets[n:], weight, logits, scratch,
                       rows, C, V, Vp, BF16, NT, acc_inp, acc_weight if n == 0 else i64(1))  # fmt: skip
    held[0] = 0
