"""The row verbs of the twins, as csrc/simd.h is to C: exp, and sums and maxima over 16 lanes (kernels.h, tree16).

Element i goes to lane i % 16, a chain per lane; then lanes +8, +4, +2, +1. `lanes` is room for 16 floats."""

import math

import numpy as np

from .jit import serial

F = np.float32  # float64 creeps in with every Python number
ZERO, ONE, HALF, INF = F(0), F(1), F(0.5), F(np.inf)
LEAST = F(-3.0e38)  # finite, so that a row of -inf has no inf - inf
EXP_LOW, EXP_HIGH, LOG2E, LN2_HIGH, LN2_LOW = F(-87.3), F(88.3762589), F(1.44269504), F(-0.693145752), F(-1.42860677e-6)
E3, E4, E5, E6 = F(1.66666667e-1), F(4.16666667e-2), F(8.33333333e-3), F(1.38888889e-3)
ROUND = F(12582912.0)  # 1.5 * 2^23: adding and subtracting it rounds to the nearest whole number
BIAS, SHIFT = np.int32(127), np.int32(23)  # of a float32's exponent


@serial
def exp(x):
    """2^n e^r, |r| <= ln2/2, degree 6, within 3 ulp; 0 below -87.3, inf above 88.376, NaN stays."""
    y = min(max(x, EXP_LOW), EXP_HIGH)
    n = y * LOG2E + ROUND - ROUND
    r = y + n * LN2_HIGH
    r = r + n * LN2_LOW
    p = (((E6 * r + E5) * r + E4) * r + E3) * r + HALF
    p = p * r * r + r
    p = (p + ONE) * np.int32((np.int32(n) + BIAS) << SHIFT).view(np.float32)
    if x > EXP_HIGH:
        p = INF
    if x < EXP_LOW:
        p = ZERO
    return p if x == x else x


ROUND_BF16, ODD, HIGH, QUIET, HALFWORD = np.uint32(0x7FFF), np.uint32(1), np.uint32(0xFFFF0000), np.uint32(0x400000), np.uint32(16)


@serial
def rounded(x, bf16):
    """x, or with bf16 the bf16 nearest to it, ties to even; NaN stays one."""
    if not bf16:
        return x
    bits = F(x).view(np.uint32)
    up = np.uint32(bits + ROUND_BF16 + np.uint32(np.uint32(bits >> HALFWORD) & ODD)) if x == x else np.uint32(bits | QUIET)
    return np.uint32(up & HIGH).view(np.float32)


@serial
def clear(lanes, value):
    for i in range(16):
        lanes[i] = value


@serial
def tree(lanes):
    width = 8
    while width:
        for i in range(width):
            lanes[i] += lanes[i + width]
        width //= 2
    return lanes[0]


@serial
def row_sum(x, lanes):
    n = x.size // 64 * 64
    clear(lanes, ZERO)
    for j in range(0, n, 64):
        x0, x1, x2, x3 = x[j : j + 16], x[j + 16 : j + 32], x[j + 32 : j + 48], x[j + 48 : j + 64]
        for i in range(16):
            lanes[i] = lanes[i] + x0[i] + x1[i] + x2[i] + x3[i]
    for j in range(n, x.size):
        lanes[j % 16] += x[j]
    return tree(lanes)


@serial
def row_dot(x, y, from_x, from_y, lanes):
    """sum of (x - from_x) (y - from_y)"""
    n = x.size // 64 * 64
    clear(lanes, ZERO)
    for j in range(0, n, 64):
        x0, x1, x2, x3 = x[j : j + 16], x[j + 16 : j + 32], x[j + 32 : j + 48], x[j + 48 : j + 64]
        y0, y1, y2, y3 = y[j : j + 16], y[j + 16 : j + 32], y[j + 32 : j + 48], y[j + 48 : j + 64]
        for i in range(16):
            s = lanes[i] + (x0[i] - from_x) * (y0[i] - from_y)
            s = s + (x1[i] - from_x) * (y1[i] - from_y)
            s = s + (x2[i] - from_x) * (y2[i] - from_y)
            lanes[i] = s + (x3[i] - from_x) * (y3[i] - from_y)
    for j in range(n, x.size):
        lanes[j % 16] += (x[j] - from_x) * (y[j] - from_y)
    return tree(lanes)


@serial
def row_max(x, lanes):
    """The largest element; a NaN is passed over."""
    n = x.size // 16 * 16
    clear(lanes, LEAST)
    for j in range(0, n, 16):
        part = x[j : j + 16]
        for i in range(16):
            lanes[i] = part[i] if part[i] > lanes[i] else lanes[i]
    most = LEAST
    for j in range(n, x.size):
        most = x[j] if x[j] > most else most
    for i in range(16):
        most = lanes[i] if lanes[i] > most else most
    return most


@serial
def exp_row(out, x, scale, shift):
    """out = exp(x scale - shift); out may be x"""
    for j in range(out.size):
        out[j] = exp(x[j] * scale - shift)


@serial
def log(x):
    return F(math.log(np.float64(x)))
