"""The decoder written plainly, an oracle: a full forward over the context for every id, through model.logits."""

import numpy as np

PLAN = 64  # contexts are padded to a multiple of this, so that the activations are planned once per 64 tokens


class Decoder:
    """Sequences that grow by an id at a time; see decoder.py for the contract."""

    def __init__(self, model, rows: int, capacity: int | None = None, weights: str = "fp32"):
        self.model, self.rows = model, rows
        self.held: list[list[int]] = []

    def prefill(self, prompts: list[np.ndarray]) -> np.ndarray:
        self.held = [[int(i) for i in prompt] for prompt in prompts]
        return self._logits()

    def step(self, ids: np.ndarray) -> np.ndarray:
        for row, i in zip(self.held, ids, strict=True):
            row.append(int(i))
        return self._logits()

    def select(self, sources: np.ndarray) -> None:
        self.held = [list(self.held[source]) for source in sources]

    def _logits(self) -> np.ndarray:
        assert 1 <= len(self.held) <= self.rows
        return np.concatenate([next_logits(self.model, np.array(row, np.int32)) for row in self.held])


def window(n: int, block_size: int) -> int:
    """From where on a sequence of n ids is seen: all while it fits, then from a multiple of half a block."""
    half = max(1, block_size // 2)
    return next(s for s in range(0, n, half) if n - s <= block_size)


def next_logits(model, ids: np.ndarray) -> np.ndarray:
    """The logits of what follows n ids, (1, V)."""
    limit = model.config.block_size
    context = ids[window(len(ids), limit) :]
    padded = np.zeros((1, min(limit, -(-len(context) // PLAN) * PLAN)), np.int32)
    padded[0, : len(context)] = context  # attention looks back only, so what stands behind changes nothing
    return model.logits(padded, at=len(context) - 1)
