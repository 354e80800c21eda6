"""A model as it writes: the losses of one-token steps against a cache, so those of weights in fewer bits too.

Stands where evaluation takes a model; all else there stays as it is."""

from collections.abc import Callable

import numpy as np

from ..generation.decoder import Decoder


class ByStep:
    """Model.losses by steps, of up to B rows at once; `weights` as of Decoder, and no id is read with the matrices as they are."""

    def __init__(self, model, weights: str):
        self.config, self._model, self._weights, self._decoder = model.config, model, weights, None

    def losses(
        self, tokens: np.ndarray, targets: np.ndarray, look: Callable[[np.ndarray], None] | None = None
    ) -> np.ndarray:
        """As Model.losses; with `look` the rows are read one behind the other. Raises CapacityError, DataError."""
        if look and len(tokens) > 1:
            return np.concatenate(
                [self.losses(row[None], wanted[None], look) for row, wanted in zip(tokens, targets, strict=True)]
            )
        if self._decoder is None or self._decoder.lost or self._decoder.rows < len(tokens):
            self._decoder = Decoder(self._model, len(tokens), None, self._weights)
        ends = (np.arange(1, tokens.shape[1] + 1) * (targets >= 0)).max(1)  # what is behind the last target is not read
        order, found = np.argsort(-ends, kind="stable"), np.zeros(targets.shape, np.float32)
        for t in range(ends.max()):
            live = order[: np.count_nonzero(ends > t)]
            if t == 0:
                self._decoder.begin(len(live))
            elif len(live) < len(self._decoder.lengths):
                self._decoder.select(np.arange(len(live)))
            logits, wanted = self._decoder.step(tokens[live, t]), targets[live, t]
            counted = wanted >= 0
            if counted.any():
                found[live[counted], t] = cross_entropy(logits[counted], wanted[counted])
                if look:
                    look(logits[counted])
        return found[targets >= 0]


def cross_entropy(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """What each id costs in nats, (n,) float32; logits (n, V)."""
    x = logits - logits.max(1, keepdims=True)
    return np.log(np.exp(x).sum(1, dtype=np.float64)) - x[np.arange(len(ids)), ids]
