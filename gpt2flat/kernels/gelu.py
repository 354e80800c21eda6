"""gelu: x s with s = sigmoid(u), u = 2 sqrt(2/pi) (x + 0.044715 x^3): one exp and no cancellation in the tails."""

from numba import prange

from .jit import i64, parallel, part, serial
from .rows import ONE, ZERO, F, exp

A, B = F(-1.59576912), F(-0.0713548163)  # -2 sqrt(2/pi), and that times 0.044715
SLOPE = F(0.214064449)  # 3 * 0.0713548163


@serial
def sigmoid(x):
    return ONE / (ONE + exp(x * (x * x * B + A)))


@parallel
def gelu_forward(out, inp, N, C, NT):
    for worker in prange(NT):
        begin, end = part(N * C, i64(worker), NT)
        y, x = out[begin:end], inp[begin:end]
        for i in range(end - begin):
            y[i] = x[i] * sigmoid(x[i])


@parallel
def gelu_backward(dinp, dout, inp, N, C, NT, acc_inp):
    """d = s + x s (1 - s) u'"""
    for worker in prange(NT):
        begin, end = part(N * C, i64(worker), NT)
        dx, up, x = dinp[begin:end], dout[begin:end], inp[begin:end]
        for i in range(end - begin):
            s = sigmoid(x[i])
            bend = x[i] * s * (ONE - s) * (x[i] * x[i] * SLOPE - A)
            old = dx[i] if acc_inp else ZERO
            dx[i] = old + (s + bend) * up[i]
