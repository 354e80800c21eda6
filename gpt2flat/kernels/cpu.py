"""The twin of what csrc/cpu.c measures: independent FMAs, and the memory of a kernel without its arithmetic."""

from numba import prange

from .jit import i64, parallel, part, serial
from .ops import READ, UPDATE
from .rows import ONE, ZERO, clear, row_sum

CHAINS = 256  # independent FMAs of `peak`; STEPS: length of a chain in a round
STEPS = 64
GRAIN = 1024  # floats of an array before the next one has its turn
R, U, W = 4096, 64, 1  # a mix of arrays that are read, updated and written is the sum of these


@parallel
def peak(out, rounds, NT):
    for worker in prange(NT):
        sums = out[i64(worker) * CHAINS : (i64(worker) + 1) * CHAINS]
        x, y = sums[0] + ONE, sums[1]
        for _ in range(rounds * STEPS // 8):
            for i in range(CHAINS):
                s = sums[i]
                s = ((s * x + y) * x + y) * x + y
                s = ((s * x + y) * x + y) * x + y
                sums[i] = (s * x + y) * x + y


# Neighbours side by side: u is updated, w written, a and b are read; f: the factors (csrc/kernels.h, stream)
@serial
def write_one(w, a, f, g):
    for i in range(w.size):
        w[i] = a[i] * g + f


@serial
def write_two(w, v, a, f, g):
    for i in range(w.size):
        w[i] = a[i] * g + f
        v[i] = f


@serial
def write_of_two(w, a, b, f, g):
    for i in range(w.size):
        w[i] = (a[i] + b[i]) * g + f


@serial
def update_one(u, a, f, g):
    for i in range(u.size):
        u[i] = a[i] * g + u[i] * f


@serial
def update_two(u, v, a, f, g):
    for i in range(u.size):
        u[i] = a[i] * g + u[i] * f
        v[i] = v[i] * f


@serial
def update_three(u, v, w, a, f, g):
    for i in range(u.size):
        u[i] = a[i] * g + u[i] * f
        v[i] = v[i] * f
        w[i] = w[i] * f


@serial
def update_of_two(u, a, b, f, g):
    for i in range(u.size):
        u[i] = (a[i] + b[i]) * g + u[i] * f


@serial
def piece(data, ranges, k, begin, end):
    return data[ranges[3 * k + 1] + begin : ranges[3 * k + 1] + end]


@serial
def one_by_one(data, ranges, first, last, begin, end, f, g):
    """Any other mix, in pieces that stay in L1: what is stored to, then what is read, into the first of these."""
    store = first
    while store < last and ranges[3 * store] == READ:
        store += 1
    for at in range(begin, end, GRAIN):
        stop = min(at + GRAIN, end)
        for k in range(store, last):
            x = piece(data, ranges, k, at, stop)
            if ranges[3 * k] == UPDATE:
                for i in range(x.size):
                    x[i] = x[i] * f
            else:
                for i in range(x.size):
                    x[i] = f
        x = piece(data, ranges, store, at, stop)
        for k in range(first, store):
            a = piece(data, ranges, k, at, stop)
            for i in range(x.size):
                x[i] = a[i] * g + x[i]


@serial
def walk(data, ranges, first, last, begin, end, f, g, lanes):
    """One round over neighbours of equal length. Returns the sum of what is only read."""
    mix = 0
    for k in range(first, last):
        mix += R if ranges[3 * k] == READ else U if ranges[3 * k] == UPDATE else W
    x0 = piece(data, ranges, first, begin, end)
    x1 = piece(data, ranges, min(first + 1, last - 1), begin, end)
    x2 = piece(data, ranges, min(first + 2, last - 1), begin, end)
    x3 = piece(data, ranges, last - 1, begin, end)
    total = ZERO
    if mix == R + W:
        write_one(x1, x0, f, g)
    elif mix == R + 2 * W:
        write_two(x1, x2, x0, f, g)
    elif mix == 2 * R + W:
        write_of_two(x2, x0, x1, f, g)
    elif mix == R + U:
        update_one(x1, x0, f, g)
    elif mix == R + 2 * U:
        update_two(x1, x2, x0, f, g)
    elif mix == R + 3 * U:
        update_three(x1, x2, x3, x0, f, g)
    elif mix == 2 * R + U:
        update_of_two(x2, x0, x1, f, g)
    elif mix % R == 0:
        for k in range(first, last):
            total += row_sum(piece(data, ranges, k, begin, end), lanes)
    else:
        one_by_one(data, ranges, first, last, begin, end, f, g)
    return total


@parallel
def stream(out, data, ranges, factors, count, rounds, NT):
    """`out` of a worker is also its lanes while it adds."""
    for worker in prange(NT):
        lanes = out[16 * i64(worker) : 16 * i64(worker) + 16]
        total = ZERO
        for _ in range(rounds):
            first = 0
            while first < count:
                n, last = ranges[3 * first + 2], first
                while last < count and ranges[3 * last + 2] == n:
                    last += 1
                begin, end = part(n, i64(worker), NT)
                total += walk(data, ranges, first, last, begin, end, factors[0], factors[1], lanes)
                first = last
        clear(lanes, ZERO)
        lanes[0] = total
