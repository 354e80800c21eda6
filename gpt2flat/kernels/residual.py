"""residual: a sum. In GPT-2 its gradients share one home and no backward runs; this one serves homes that differ."""

from numba import prange

from .jit import i64, parallel, part, serial
from .rows import ZERO


@parallel
def residual_forward(out, inp1, inp2, N, C, NT):
    for worker in prange(NT):
        begin, end = part(N * C, i64(worker), NT)
        y, x1, x2 = out[begin:end], inp1[begin:end], inp2[begin:end]
        for i in range(end - begin):
            y[i] = x1[i] + x2[i]


@parallel
def pass_on(dinp, dout, NT, acc):
    """dinp = dout, or += with acc; nothing where dinp is absent."""
    for worker in prange(NT):
        begin, end = part(dinp.size, i64(worker), NT)
        dx, up = dinp[begin:end], dout[begin:end]
        for i in range(end - begin):
            dx[i] = (dx[i] if acc else ZERO) + up[i]


@serial
def residual_backward(dinp1, dinp2, dout, N, C, NT, acc_inp1, acc_inp2):
    pass_on(dinp1, dout, NT, acc_inp1)
    pass_on(dinp2, dout, NT, acc_inp2)
