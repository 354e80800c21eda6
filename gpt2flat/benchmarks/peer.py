"""A process of its own that does the same work in PyTorch or NumPy: python -P peer.py torch|numpy THREADS

Imported by nothing and imports nothing from here, or two OpenMP runtimes would share a process. One JSON object a line:
{"start": "step" or a kernel's name, ...} is answered by {"known": bool}, {"rounds": n} by {"seconds": s}. First comes
{"name": ..., "knows": [kernels]} or {"missing": why}; whatever goes wrong is {"error": what}."""

import contextlib
import json
import sys
import time

import numpy as np


class NumPy:
    """Products by BLAS, in float32 only."""

    def __init__(self, threads: int):
        self.name = f"numpy {np.__version__}"
        self.work = {"linear_forward": self.linear_forward, "linear_backward": self.linear_backward,
                     "residual_forward": self.residual_forward}  # fmt: skip

    def arrays(self, *shapes):
        rng = np.random.default_rng(0)
        return [rng.standard_normal(shape, np.float32) for shape in shapes]

    def linear_forward(self, N, C, OC, BF16=0, **_):
        x, w, b, y = self.arrays((N, C), (OC, C), OC, (N, OC))

        def run():
            np.matmul(x, w.T, out=y)
            np.add(y, b, out=y)

        return None if BF16 else run

    def linear_backward(self, N, C, OC, BF16=0, **_):
        x, w, dy, dx, dw, db = self.arrays((N, C), (OC, C), (N, OC), (N, C), (OC, C), OC)

        def run():
            np.matmul(dy, w, out=dx)
            np.matmul(dy.T, x, out=dw)
            np.sum(dy, axis=0, out=db)

        return None if BF16 else run

    def residual_forward(self, N, C, **_):
        a, b, out = self.arrays((N, C), (N, C), (N, C))
        return lambda: np.add(a, b, out=out)


class Torch:
    """Eager PyTorch. Kernels in bf16 get bf16 tensors, the step float32 tensors and autocast."""

    def __init__(self, threads: int):
        import torch

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.torch, self.name = torch, f"torch {torch.__version__}"
        self.work = {"step": self.step, "adamw": self.adamw, "grad_norm": self.grad_norm,
                     "residual_forward": lambda **dims: self.form("forward", *self.residual(**dims))}  # fmt: skip
        for op in (
            "linear",
            "linear_residual",
            "gelu",
            "gelu_linear",
            "layernorm",
            "dropout",
            "attention",
            "embedding",
            "classifier",
        ):
            for form in ("forward", "backward") + ("train",) * (op == "classifier"):
                self.work[f"{op}_{form}"] = lambda op=op, form=form, **dims: self.form(form, *getattr(self, op)(**dims))

    def form(self, form, call, *leaves):
        """The callable of a forward call, of its backward, or of both; leaves: the inputs that get gradients."""
        if form == "forward":
            return self.torch.no_grad()(call)
        out = call()
        upstream = self.torch.randn_like(out)

        def gradients(out):
            self.torch.autograd.grad(out, leaves, upstream, retain_graph=form == "backward")

        return (lambda: gradients(call())) if form == "train" else (lambda: gradients(out))

    def leaves(self, *shapes, BF16=0):
        kind = self.torch.bfloat16 if BF16 else self.torch.float32
        return [self.torch.randn(shape, dtype=kind).requires_grad_() for shape in shapes]

    def linear(self, N, C, OC, BF16=0, **_):
        x, w, b = self.leaves((N, C), (OC, C), OC, BF16=BF16)
        return lambda: self.torch.nn.functional.linear(x, w, b), x, w, b

    def linear_residual(self, N, C, OC, BF16=0, **_):
        call, *leaves = self.linear(N, C, OC, BF16)
        (added,) = self.leaves((N, OC))
        return lambda: call() + added, *leaves

    def gelu_linear(self, N, C, OC, BF16=0, **_):
        x, w, b, added = self.leaves((N, C), (OC, C), OC, (N, OC), BF16=BF16)
        F = self.torch.nn.functional
        return lambda: F.linear(F.gelu(x, approximate="tanh"), w, b) + added, x, w, b

    def gelu(self, N, C, **_):
        (x,) = self.leaves((N, C))
        return lambda: self.torch.nn.functional.gelu(x, approximate="tanh"), x

    def layernorm(self, N, C, **_):
        x, w, b = self.leaves((N, C), C, C)
        return lambda: self.torch.nn.functional.layer_norm(x, (C,), w, b), x, w, b

    def residual(self, N, C, **_):
        a, b = self.leaves((N, C), (N, C))
        return lambda: a + b, a, b

    def dropout(self, N, C, **_):
        x, added = self.leaves((N, C), (N, C))
        return lambda: self.torch.nn.functional.dropout(x, 0.1) + added, x

    def attention(self, B, T, NH, KVH, HS, BF16=0, **_):
        (qkv,) = self.leaves((B, T, (NH + 2 * KVH) * HS), BF16=BF16)

        def call():
            parts = qkv.split((NH * HS, KVH * HS, KVH * HS), dim=2)
            q, k, v = (x.view(B, T, -1, HS).transpose(1, 2) for x in parts)
            k, v = (x.repeat_interleave(NH // KVH, 1) if KVH < NH else x for x in (k, v))
            out = self.torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return out.transpose(1, 2).reshape(B, T, -1)

        return call, qkv

    def embedding(self, N, T, C, Vp, maxT, **_):
        wte, wpe = self.leaves((Vp, C), (maxT, C))
        tokens = self.torch.randint(0, Vp, (N // T, T))
        return lambda: self.torch.nn.functional.embedding(tokens, wte) + wpe[:T], wte, wpe

    def classifier(self, N, C, V, Vp, BF16=0, **_):
        x, w = self.leaves((N, C), (Vp, C), BF16=BF16)
        targets, F = self.torch.randint(0, V, (N,)), self.torch.nn.functional
        return lambda: F.cross_entropy(F.linear(x, w).float(), targets, reduction="none"), x, w

    def grad_norm(self, P, **_):
        (grads,) = self.leaves(P)
        return self.torch.no_grad()(lambda: self.torch.linalg.vector_norm(grads))

    def adamw(self, P, **_):
        (params,) = self.leaves(P)
        params.grad = self.torch.randn(P)
        return self.torch.optim.AdamW([params], lr=1e-4, weight_decay=0.1, fused=True).step

    def step(self, layers, heads, channels, vocabulary, block_size, B, T, precision):
        """A whole update as ours: forward, backward, clip, AdamW; the vocabulary padded, which is faster."""
        torch = self.torch
        model = gpt2(torch, layers, heads, channels, vocabulary, block_size)
        kinds = [[p for p in model.parameters() if (p.dim() > 1) == decayed] for decayed in (True, False)]
        groups = [{"params": found, "weight_decay": decay} for found, decay in zip(kinds, (0.1, 0.0))]
        optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True)
        tokens, targets = torch.randint(0, vocabulary, (2, B, T))
        bf16 = precision == "bf16"

        def run():
            with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
                loss = model(tokens, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.item()

        return run


def gpt2(torch, layers, heads, channels, vocabulary, block_size):
    """GPT-2 (Radford et al. 2019): pre-norm, tanh GELU, head tied to the embedding."""
    nn, F = torch.nn, torch.nn.functional

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln1, self.ln2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
            self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
            self.fc, self.fcproj = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

        def forward(self, x):
            B, T, C = x.shape
            q, k, v = (part.view(B, T, heads, -1).transpose(1, 2) for part in self.qkv(self.ln1(x)).split(C, dim=2))
            att = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.proj(att.transpose(1, 2).reshape(B, T, C))
            return x + self.fcproj(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))

    class GPT2(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(vocabulary, channels), nn.Embedding(block_size, channels)
            self.blocks, self.lnf = nn.ModuleList(Block() for _ in range(layers)), nn.LayerNorm(channels)
            for p in self.parameters():
                if p.dim() > 1:
                    nn.init.normal_(p, std=0.02)

        def forward(self, tokens, targets):
            x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
            for block in self.blocks:
                x = block(x)
            logits = F.linear(self.lnf(x), self.wte.weight)
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    return GPT2()


def answer(peer, message: dict, state: dict) -> dict:
    if "start" in message:
        state.clear()  # frees the arrays of the work before
        make = peer.work.get(message["start"])
        state["run"] = make and make(**message["with"])
        if state["run"]:
            state["run"]()  # allocates, compiles, wakes the threads
        return {"known": bool(state["run"])}
    start = time.perf_counter()
    for _ in range(message["rounds"]):
        state["run"]()
    return {"seconds": time.perf_counter() - start}


def main(name: str, threads: str) -> None:
    out, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer

    def say(found: dict) -> None:
        print(json.dumps(found), file=out, flush=True)

    try:
        peer = {"torch": Torch, "numpy": NumPy}[name](int(threads))
    except ImportError as problem:
        return say({"missing": str(problem)})
    say({"name": peer.name, "knows": list(peer.work)})
    state = {}
    for line in sys.stdin:
        try:
            say(answer(peer, json.loads(line), state))
        except (RuntimeError, MemoryError, ValueError, TypeError) as problem:
            say({"error": f"{type(problem).__name__}: {problem}"})


if __name__ == "__main__":
    main(*sys.argv[1:])
