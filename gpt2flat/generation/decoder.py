"""Decoder: the fast way out of a model: prompts are read at once by the kernels of training, then a token a step against a cache."""

import numpy as np

from ..data.tokens import as_ids
from ..errors import KernelArgError, UsageError, require_number
from .cache import TOKENS, WEIGHTS, Cache

MAX_ROWS = 1 << 16
STEP = 24  # ids that are read at once in the time of a step


def first_seen(n: int, block_size: int) -> int:
    """The first of n ids that a model of this block size still sees, at its position 0: that of all while they fit, then a multiple
    of half the block size, the smallest that fits; so the cache is filled anew only once in so many tokens."""
    half = max(1, block_size // 2)
    return max(0, -(-(n - block_size) // half) * half)


class Decoder:
    """The logits of what follows up to `rows` sequences, which prefill starts and step continues by an id each; select drops and
    copies them.

    A row's logits have the same bits whatever the other rows, their number and the threads. Sequences may outgrow the block size
    (first_seen). A model has one Decoder at a time: a new one takes the memory of the one before. Parameters that change, by
    an update or by hand, count from the next prefill on; packed weights stay what they were: make a new Decoder.

    lengths: ids known of each row that there is now. error: how far packed weights are off (Cache.error)."""

    def __init__(self, model, rows: int, capacity: int | None = None, weights: str = "fp32", resume: bool = False):
        """capacity: how many ids a row may hold; None: any number, of which it sees what fits the block size. weights: the matrices
        of a step, "fp32" as they are, "bf16" rounded to nearest even, "int8" in blocks of 32 with a scale; prompts are read with
        the matrices as they are. resume: a prefill of one prompt steps on from what the only row holds of it, where that is faster;
        so parameters may not change. Raises CapacityError, UsageError."""
        require_number("rows", rows, 1, MAX_ROWS + 1, whole=True)
        require_number("capacity", 1 if capacity is None else capacity, 1, 1 << 31, whole=True)
        if not isinstance(weights, str) or weights not in WEIGHTS:
            found = f"{weights!r:.99}" if isinstance(weights, str) else f"of {type(weights).__name__}"
            raise UsageError(f"weights {found}: choose from {', '.join(WEIGHTS)}")
        self.rows, self.weights, self._config, self._resume = int(rows), weights, model.config, resume
        self._most = model.config.block_size if capacity is None else min(int(capacity), model.config.block_size)
        self._cache = Cache(model, self.rows, self._most, weights)
        self._cache.open()
        self.lengths = np.zeros(0, np.int64)
        self._first = np.zeros(0, np.int64)  # the first id of each row that is seen
        self._ids = np.zeros((self.rows, self._most), np.int32)  # from there on

    @property
    def error(self) -> dict[str, float]:
        return self._cache.error

    def matrices(self) -> list[np.ndarray]:
        """Views of the matrices that a step reads, each once."""
        return self._cache.matrices()

    def prompt_flops(self, tokens: int) -> int:
        """Flops of a prefill of one prompt of so many ids."""
        return self._cache.prompt_flops(tokens)

    @property
    def lost(self) -> bool:
        """Whether a later Decoder of the same model has the memory of this one."""
        return self._cache.lost

    def prefill(self, prompts: list[np.ndarray]) -> np.ndarray:
        """prompts: 1 to `rows` arrays (n,) of ids, n >= 1. Returns (prompts, V) float32, the logits of what follows each; valid until
        the next call. Forgets what was. Raises KernelArgError, DataError."""
        self._check()
        if not 1 <= len(prompts) <= self.rows:
            raise KernelArgError(f"prefill: {len(prompts)} prompts, expected one for each of 1 to {self.rows} rows")
        prompts = [as_ids("prompts", prompt, self._config.vocab_size, axes=(1,)) for prompt in prompts]
        lengths = np.array([len(prompt) for prompt in prompts])
        self._fit(lengths)
        if self._resume and len(prompts) == len(self.lengths) == 1 and (held := self._held(prompts[0])):
            self.lengths[0] = held
            for token in prompts[0][held:]:
                logits = self.step([token])
            return logits
        self.lengths = lengths
        self._first = np.array([first_seen(int(n), self._config.block_size) for n in lengths])
        for row, prompt in enumerate(prompts):
            seen = prompt[self._first[row] :]
            self._ids[row, : len(seen)] = seen
        self._cache.use(len(prompts))
        self._read(np.arange(len(prompts)))
        return self._cache.token["logits"]

    def begin(self, rows: int) -> None:
        """So many rows without an id, which step goes on from. Forgets what was. Raises KernelArgError."""
        self._check()
        if not 1 <= rows <= self.rows:
            raise KernelArgError(f"begin: {rows} rows, expected 1 to {self.rows}")
        self.lengths, self._first = np.zeros(rows, np.int64), np.zeros(rows, np.int64)

    def step(self, ids: np.ndarray) -> np.ndarray:
        """ids: the next id of each row that there is. Returns (ids, V) float32 as prefill does."""
        self._check()
        count = len(self.lengths)
        if not count:
            raise UsageError("step: there is nothing to go on from: prefill first")
        ids = as_ids("ids", ids, self._config.vocab_size, axes=(1,))
        if len(ids) != count:
            raise KernelArgError(f"step: {len(ids)} ids, expected one for each of {count} rows")
        self._fit(self.lengths + 1)
        self._cache.use(count)
        every, at = np.arange(count), self.lengths - self._first
        first = np.array([first_seen(int(n) + 1, self._config.block_size) for n in self.lengths])
        outgrown = np.flatnonzero(first > self._first)
        for row in outgrown:
            kept = self._ids[row, first[row] - self._first[row] : at[row]].copy()
            self._ids[row, : len(kept)] = kept
            at[row] = len(kept)
        self._ids[every, at] = ids
        self._first[:] = first
        self.lengths += 1
        if (
            len(outgrown) < count
        ):  # rows that are read anew take part too, and what they leave in the cache is overwritten
            self._cache.step(ids, at)
        if len(outgrown):
            self._read(outgrown)
        return self._cache.token["logits"]

    def select(self, sources: np.ndarray) -> None:
        """Row r goes on from a copy of what row sources[r] held: 1 to `rows` integers, and so many rows are there from now on; logits
        that were returned do not change. Raises KernelArgError."""
        self._check()
        found, sources = sources, np.asarray(sources)
        if (
            sources.ndim != 1
            or not 1 <= len(sources) <= self.rows
            or sources.dtype.kind not in "iu"
            or not 0 <= sources.min() <= sources.max() < len(self.lengths)
        ):
            there = f"1 to {self.rows} rows, whole numbers from 0 to {len(self.lengths) - 1}"
            raise KernelArgError(f"select: found {found!r:.99}, expected {there}")
        self._cache.select(sources, int((self.lengths - self._first).max()))
        self.lengths, self._first = self.lengths[sources], self._first[sources]
        self._ids[: len(sources)] = self._ids[sources]

    def _held(self, prompt: np.ndarray) -> int:
        """How many of its ids, but for the last, the only row holds; 0 where it has another window or is read anew sooner."""
        first = int(self._first[0])
        seen, held = prompt[first:], self._ids[0, : self.lengths[0] - first]
        most = min(len(held), len(seen) - 1)
        if most < 1:
            return 0
        same = np.append(held[:most] == seen[:most], False)
        known = first + int(same.argmin())
        fits = first_seen(known + 1, self._config.block_size) == first
        return known if fits and (len(prompt) - known) * STEP <= len(seen) else 0

    def _check(self) -> None:
        if self.lost:
            raise UsageError("this Decoder's memory is gone: a later one of the same model has it")

    def _fit(self, lengths: np.ndarray) -> None:
        if self._most < self._config.block_size and lengths.max() > self._most:
            raise KernelArgError(
                f"row {lengths.argmax()} would hold {lengths.max()} ids, expected at most its capacity {self._most}"
            )

    def _read(self, rows: np.ndarray) -> None:
        """Reads the ids of some rows into the cache, neighbours together, and makes their logits anew; those of others stay."""
        seen, token = self.lengths - self._first, self._cache.token
        others = np.delete(np.arange(len(seen)), rows)
        qkv, stream, logits = token["qkv"].copy(), token["stream"].copy(), token["logits"][others]
        while len(rows):
            count = 1
            while (
                count < len(rows)
                and rows[count] == rows[0] + count
                and (count + 1) * seen[rows[: count + 1]].max() <= TOKENS
            ):
                count += 1
            some, rows = rows[:count], rows[count:]
            tokens = np.zeros((count, seen[some].max()), np.int32)
            for tokens_of, row in zip(tokens, some):
                tokens_of[: seen[row]] = self._ids[row, : seen[row]]
            last = np.arange(count), seen[some] - 1
            for ours, whole in zip((qkv, stream), self._cache.read(int(some[0]), tokens)):
                ours[some] = whole[last]
        self._cache.finish(qkv, stream, seen - 1)
        token["logits"][others] = logits
