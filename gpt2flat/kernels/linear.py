"""linear: three products over the same two tables (gemm.py) and the column sums of the bias; see csrc/kernels.h."""

from numba import prange

from .gemm import gemm, gemm_scratch
from .jit import i64, parallel, part, serial
from .rows import ZERO

COLUMNS = 64  # a unit of the column sums


def linear_scratch(N, C, OC, BF16, NT):
    return gemm_scratch(OC, C, C)


@serial
def linear_forward(out, inp, weight, bias, scratch, N, C, OC, BF16, NT):
    gemm(out, inp, C, i64(1), weight, i64(1), C, bias, scratch, N, OC, C, BF16, NT, i64(0))


@parallel
def column_sums(dbias, dout, N, OC, NT, acc):
    """Threads own columns and add the rows in ascending order."""
    for worker in prange(NT):
        begin, end = part((OC + COLUMNS - 1) // COLUMNS, i64(worker), NT)
        first, last = begin * COLUMNS, min(end * COLUMNS, OC)
        if first < last:
            sums = dbias[first:last]
            if not acc:
                sums.fill(ZERO)
            for n in range(N):
                row = dout[n * OC + first : n * OC + last]
                for j in range(last - first):
                    sums[j] += row[j]


@serial
def linear_backward(dinp, dweight, dbias, dout, inp, weight, scratch, N, C, OC, BF16, NT, acc_inp, acc_weight, acc_bias):
    nothing = dbias[:0]
    gemm(dinp, dout, OC, i64(1), weight, C, i64(1), nothing, scratch, N, C, OC, BF16, NT, acc_inp)
    gemm(dweight, dout, i64(1), OC, inp, C, i64(1), nothing, scratch, OC, C, N, BF16, NT, acc_weight)
    if dbias.size:
        column_sums(dbias, dout, N, OC, NT, acc_bias)
