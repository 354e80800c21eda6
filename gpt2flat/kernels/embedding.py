"""embedding: the sum of a token's and a position's vector; its gradients are a scatter and a sum over the batch."""

from numba import prange

from .jit import i64, parallel, part
from .rows import ZERO


@parallel
def embedding_forward(out, tokens, wte, wpe, N, T, C, Vp, maxT, NT):
    for worker in prange(NT):
        begin, end = part(N, i64(worker), NT)
        for n in range(begin, end):
            t, token = n % T * C, tokens[n] * C
            row, word, position = out[n * C : (n + 1) * C], wte[token : token + C], wpe[t : t + C]
            for j in range(C):
                row[j] = word[j] + position[j]


@parallel
def embedding_backward(dwte, dwpe, dout, tokens, N, T, C, Vp, maxT, NT, acc_wte, acc_wpe):
    for worker in prange(NT):
        begin, end = part(maxT, i64(worker), NT)
        for t in range(begin, end):
            row = dwpe[t * C : (t + 1) * C]
            if not acc_wpe:
                row.fill(ZERO)
            if t < T:
                for n in range(t, N, T):
                    up = dout[n * C : (n + 1) * C]
                    for j in range(C):
                        row[j] += up[j]
    for worker in prange(NT):
        # the same token may come twice, so a thread owns channels: no two threads meet, and n ascends for each
        begin, end = part(C, i64(worker), NT)
        if not acc_wte:
            for v in range(Vp):
                dwte[v * C + begin : v * C + end].fill(ZERO)
        for n in range(N):
            token = tokens[n] * C
            row, up = dwte[token + begin : token + end], dout[n * C + begin : n * C + end]
            for j in range(end - begin):
                row[j] += up[j]
