"""C (+)= A B + bias for strided A (M,K) and B (K,N), as csrc/gemm.c: X W^T, dY W and dY^T X are this one product.

Every element of C is one chain over ascending k, from 0 or from C on: no bit depends on tiles, blocks or threads. A
tile is swept by four rows of A and four of B at a time, 16 products for 4 loads of B; numba makes vectors of columns.
B is read as it lies where its rows are contiguous, else it is transposed into strips of NB columns first."""

from numba import prange

from .jit import i64, parallel, part, serial
from .rows import ZERO, rounded

NB = 384  # columns of a tile: four rows of C and of B are 12 KB of L1; 768, 2304 and 3072 are multiples
MB = 64  # rows of a tile
KC = 192  # rows of B that stay in L2 while the rows of a tile pass: KC x NB floats = 288 KB
KS, NS = 768, 1536  # B is packed in pieces of KS x NS floats = 4.5 MB, which all threads read


@serial
def four(a, ai, acs, bf16):
    x0, x1, x2, x3 = a[ai], a[ai + acs], a[ai + 2 * acs], a[ai + 3 * acs]
    return rounded(x0, bf16), rounded(x1, bf16), rounded(x2, bf16), rounded(x3, bf16)


@serial
def sweep(c, ci, ldc, a, ai, ars, acs, b, bi, pitch, n, bf16):
    """Four rows of C, four k: c(i,j) += sum of a(i,k) b(k,j) for n columns j."""
    c0, c1 = c[ci : ci + n], c[ci + ldc : ci + ldc + n]
    c2, c3 = c[ci + 2 * ldc : ci + 2 * ldc + n], c[ci + 3 * ldc : ci + 3 * ldc + n]
    b0, b1 = b[bi : bi + n], b[bi + pitch : bi + pitch + n]
    b2, b3 = b[bi + 2 * pitch : bi + 2 * pitch + n], b[bi + 3 * pitch : bi + 3 * pitch + n]
    a00, a01, a02, a03 = four(a, ai, acs, bf16)
    ai += ars
    a10, a11, a12, a13 = four(a, ai, acs, bf16)
    ai += ars
    a20, a21, a22, a23 = four(a, ai, acs, bf16)
    ai += ars
    a30, a31, a32, a33 = four(a, ai, acs, bf16)
    for j in range(n):
        x0, x1, x2, x3 = rounded(b0[j], bf16), rounded(b1[j], bf16), rounded(b2[j], bf16), rounded(b3[j], bf16)
        c0[j] = c0[j] + a00 * x0 + a01 * x1 + a02 * x2 + a03 * x3
        c1[j] = c1[j] + a10 * x0 + a11 * x1 + a12 * x2 + a13 * x3
        c2[j] = c2[j] + a20 * x0 + a21 * x1 + a22 * x2 + a23 * x3
        c3[j] = c3[j] + a30 * x0 + a31 * x1 + a32 * x2 + a33 * x3


@serial
def sweep_row(c, ci, a, ai, acs, b, bi, pitch, n, K, bf16):
    """One row of C, all k: what is left of a tile, and generation of single tokens."""
    c0 = c[ci : ci + n]
    k4 = K // 4 * 4
    for k in range(0, k4, 4):
        at, of = bi + k * pitch, ai + k * acs
        b0, b1 = b[at : at + n], b[at + pitch : at + pitch + n]
        b2, b3 = b[at + 2 * pitch : at + 2 * pitch + n], b[at + 3 * pitch : at + 3 * pitch + n]
        a0, a1, a2, a3 = four(a, of, acs, bf16)
        for j in range(n):
            x0, x1, x2, x3 = rounded(b0[j], bf16), rounded(b1[j], bf16), rounded(b2[j], bf16), rounded(b3[j], bf16)
            c0[j] = c0[j] + a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3
    for k in range(k4, K):
        b0, a0 = b[bi + k * pitch : bi + k * pitch + n], rounded(a[ai + k * acs], bf16)
        for j in range(n):
            c0[j] = c0[j] + a0 * rounded(b0[j], bf16)


@serial
def tile(c, ci, ldc, a, ai, ars, acs, b, bi, pitch, M, N, K, add, bf16):
    """A product on one thread: c (M,N) = a b, or += with `add`; bf16 rounds a and b. b(k,j) = b[bi + k pitch + j]; at most
    NB columns."""
    for k in range(0, K, KC):
        depth = min(KC, K - k)
        for i in range(0, M, 4):
            rows, done = min(4, M - i), 0
            at, of, by = ci + i * ldc, ai + i * ars + k * acs, bi + k * pitch
            if not add and k == 0:
                for r in range(rows):
                    c[at + r * ldc : at + r * ldc + N].fill(ZERO)
            if rows == 4:
                done = depth // 4 * 4
                for d in range(0, done, 4):
                    sweep(c, at, ldc, a, of + d * acs, ars, acs, b, by + d * pitch, pitch, N, bf16)
            for r in range(rows if done < depth else 0):
                of_r = of + r * ars + done * acs
                sweep_row(c, at + r * ldc, a, of_r, acs, b, by + done * pitch, pitch, N, depth - done, bf16)


@serial
def transpose(strip, si, pitch, b, bi, bcs, K, N):
    """strip(k,j) = b[bi + k + j bcs], in squares that stay in L1."""
    for j0 in range(0, N, 16):
        width = min(16, N - j0)
        for k in range(K):
            row = strip[si + k * pitch + j0 : si + k * pitch + j0 + width]
            for j in range(width):
                row[j] = b[bi + (j0 + j) * bcs + k]


def gemm_scratch(N, K, bcs):
    """Floats of packed B."""
    return 0 if bcs == 1 else min(-(-N // NB) * NB, NS) * min(K, KS)


@parallel
def gemm(c, a, ars, acs, b, brs, bcs, bias, scratch, M, N, K, bf16, NT, acc):
    """c (M,N), a(m,k) = a[m ars + k acs], b(k,n) = b[k brs + n bcs], where brs or bcs is 1; bias (N) or empty, last."""
    down = (M + MB - 1) // MB
    for n0 in range(0, N, NS):
        strips = (min(NS, N - n0) + NB - 1) // NB
        for k0 in range(0, K, KS):
            deep, last, add = min(KS, K - k0), k0 + KS >= K, acc if k0 == 0 else i64(1)
            if bcs != 1:
                pieces = (deep + 31) // 32
                for worker in prange(NT):
                    begin, end = part(strips * pieces, i64(worker), NT)
                    for u in range(begin, end):
                        s, k = u // pieces, u % pieces * 32
                        n, rows = n0 + s * NB, min(32, deep - k)
                        bi = n * bcs + k0 + k
                        transpose(scratch, (s * deep + k) * NB, i64(NB), b, bi, bcs, rows, min(NB, N - n))
            for worker in prange(NT):
                begin, end = part(strips * down, i64(worker), NT)
                for t in range(begin, end):
                    n, m = n0 + t // down * NB, t % down * MB
                    rows, cols, ci, ai = min(MB, M - m), min(NB, N - n), m * N + n, m * ars + k0 * acs
                    if bcs != 1:
                        tile(c, ci, N, a, ai, ars, acs, scratch, t // down * deep * NB, i64(NB), rows, cols, deep, add, bf16)
                    else:
                        tile(c, ci, N, a, ai, ars, acs, b, k0 * brs + n, brs, rows, cols, deep, add, bf16)
                    if last and bias.size:
                        extra = bias[n : n + cols]
                        for i in range(rows):
                            row = c[ci + i * N : ci + i * N + cols]
                            for j in range(cols):
                                row[j] += extra[j]
