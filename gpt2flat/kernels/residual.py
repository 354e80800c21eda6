"""residual: a sum. In GPT-2 its gradients share one home and no backward runs; this one serves homes that differ."""

from numba import prange

from .jit import i64, parallel, part
from .rows import ZERO


@parallel
def residual_forward(out, inp1, inp2, N, C, NT):
    for worker in prange(NT):
        begin, end = part(N * C, i64(worker), NT)
        y, x1, x2 = out[begin:end], inp1[begin:end], inp2[begin:end]
        for i in range(end - begin):
            y[i] = x1[i] + x2[i]


@parallel
def residual_backward(dinp1, dinp2, dout, N, C, NT, acc_inp1, acc_inp2):
    for worker in prange(NT):
        begin, end = part(N * C, i64(worker), NT)
        dx1, dx2, up = dinp1[begin:end], dinp2[begin:end], dout[begin:end]
        for i in range(end - begin):
            dx1[i] = (dx1[i] if acc_inp1 else ZERO) + up[i]
            dx2[i] = (dx2[i] if acc_inp2 else ZERO) + up[i]
