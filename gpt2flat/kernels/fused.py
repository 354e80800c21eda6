"""fused: a linear with the GELU in front of it or the residual behind it; see csrc/kernels.h. Where C does both on the tiles
of the product, the twins take them apart and keep one GELU in scratch, for all layers."""

from .gelu import gelu_backward, gelu_forward
from .gemm import gemm
from .jit import i64, serial
from .linear import column_sums, linear_backward, linear_forward, linear_scratch
from .residual import pass_on


def linear_residual_scratch(N, C, OC, BF16, NT):
    return linear_scratch(N, C, OC, BF16, NT)


@serial
def linear_residual_forward(out, inp, added, weight, bias, scratch, N, C, OC, BF16, NT):
    linear_forward(out, inp, weight, bias, scratch, N, C, OC, BF16, NT)
    pass_on(out, added, NT, i64(1))


@serial
def linear_residual_backward(
    dinp,
    dadded,
    dweight,
    dbias,
    dout,
    inp,
    weight,
    scratch,
    N,
    C,
    OC,
    BF16,
    NT,
    acc_inp,
    acc_added,
    acc_weight,
    acc_bias,
):
    linear_backward(dinp, dweight, dbias, dout, inp, weight, scratch, N, C, OC, BF16, NT, acc_inp, acc_weight, acc_bias)
    pass_on(dadded, dout, NT, acc_added)


def gelu_linear_scratch(N, C, OC, BF16, NT):
    return N * C + linear_scratch(N, C, OC, BF16, NT)


@serial
def gelu_linear_forward(out, inp, added, weight, bias, scratch, N, C, OC, BF16, NT):
    made, rest = scratch[: N * C], scratch[N * C :]
    gelu_forward(made, inp, N, C, NT)
    linear_forward(out, made, weight, bias, rest, N, C, OC, BF16, NT)
    if added.size:
        pass_on(out, added, NT, i64(1))


@serial
def gelu_linear_backward(
    dinp,
    dadded,
    dweight,
    dbias,
    dout,
    inp,
    weight,
    scratch,
    N,
    C,
    OC,
    BF16,
    NT,
    acc_inp,
    acc_added,
    acc_weight,
    acc_bias,
):
    made, rest, nothing = scratch[: N * C], scratch[N * C :], dbias[:0]
    gemm(made, dout, OC, i64(1), weight, C, i64(1), nothing, rest, N, C, OC, BF16, NT, i64(0))
    gelu_backward(dinp, made, inp, N, C, NT, acc_inp)
    gelu_forward(made, inp, N, C, NT)
    gemm(dweight, dout, i64(1), OC, made, C, i64(1), nothing, rest, OC, C, N, BF16, NT, acc_weight)
    if dbias.size:
        column_sums(dbias, dout, N, OC, NT, acc_bias)
    pass_on(dadded, dout, NT, acc_added)
