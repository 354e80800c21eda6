"""The random stream of llm.c (llmc/rand.h) and PyTorch's CPU generator: MT19937 words, uniforms, normals, permutations.

The words are exactly theirs; normals agree to float32 rounding (log, cos and sin differ in the last bits)."""

import numpy as np

CHUNK = 1 << 14  # floats transformed at once, a multiple of 16: small enough for the second-level cache


class Stream:
    """A Mersenne Twister seeded as torch.manual_seed does (the low 32 bits of `seed`)."""

    def __init__(self, seed: int):
        self._state = np.random.RandomState(seed & 0xFFFFFFFF)

    def state(self) -> dict:
        """Where the stream stands, as plain numbers: the 624 words of the generator and how many of them are used."""
        _kind, words, position, *_ = self._state.get_state(legacy=True)
        return {"words": words.tolist(), "position": int(position)}

    def restore(self, state: dict) -> None:
        """Goes on where state() was taken. Raises ValueError for anything that is no such state."""
        words, position = state.get("words"), state.get("position")
        whole = (
            isinstance(words, list) and len(words) == 624 and all(type(w) is int and 0 <= w < 1 << 32 for w in words)
        )
        if not (whole and type(position) is int and 0 <= position <= 624):
            raise ValueError("expected 624 words of 32 bits and a position in them")
        self._state.set_state(("MT19937", np.array(words, np.uint32), position))

    def back(self, n: int) -> None:
        """Goes back by n words: the next ones are the last n that were drawn, or would have been."""
        _kind, words, position, *_ = self._state.get_state(legacy=True)
        while position < n + 1:  # a block of which nothing is used is kept as the one before it, all used, as when seeded
            words, position = _untwist(words.tolist()), position + 624
        self._state.set_state(("MT19937", words, position - n))

    def words(self, n: int) -> np.ndarray:
        """The next n raw 32-bit words, uint32."""
        return self._state.randint(0, 1 << 32, size=n, dtype=np.uint32)

    def uniform(self, n: int) -> np.ndarray:
        """n float32 in [0, 1), one word each: its low 24 bits."""
        low = (self.words(n) & np.uint32((1 << 24) - 1)).astype(np.float32)
        return np.multiply(low, np.float32(2.0**-24), out=low)

    def permutation(self, n: int) -> np.ndarray:
        """A permutation of 0..n-1, int64, as in llm.c: n-1 words, word % (i + 1) is the partner of i."""
        order = list(range(n))
        if n > 1:
            last = np.arange(n - 1, 0, -1)
            for i, j in zip(last.tolist(), (self.words(n - 1) % (last + 1)).tolist()):
                order[i], order[j] = order[j], order[i]
        return np.array(order, np.int64)


def _untwist(new: list[int]) -> np.ndarray:
    """The 624 words that MT19937 made its block `new` of, but for the low 31 bits of the first, which matter to nothing.

    A new word is another word, xored with a bit of its old self and 31 bits of its neighbour, shifted; the constant, odd in
    its first bit, is in when the lowest bit was set (Matsumoto and Nishimura 1998)."""
    block = list(new)

    def mixed(i: int) -> int:
        y = block[i] ^ block[(i + 397) % 624]
        return (y ^ 0x9908B0DF) << 1 | 1 if y >> 31 else y << 1

    for i in range(623, -1, -1):
        block[i] = mixed(i) & 0x80000000 | mixed(i - 1) & 0x7FFFFFFF
    return np.array(block, np.uint32)


def normal_(view: np.ndarray, std: float, stream: Stream) -> None:
    """Fills `view` (contiguous float32, any shape) with normals of mean 0, as torch.Tensor.normal_ does.

    Raises ValueError for any other array."""
    if view.dtype != np.float32 or not view.flags.c_contiguous:
        raise ValueError(f"normal_ fills contiguous float32, not {view.dtype} with strides {view.strides}")
    flat = view.reshape(-1)
    if flat.size < 16:
        flat[:] = _few_normals(flat.size, stream) * std
        return
    whole = flat.size - flat.size % 16
    for start in range(0, whole, CHUNK):
        chunk = flat[start : min(start + CHUNK, whole)]
        _box_muller(stream.uniform(chunk.size), std, chunk)
    if whole < flat.size:  # the tail's own words are drawn, then the last 16 slots are made anew from 16 more
        stream.words(flat.size - whole)
        _box_muller(stream.uniform(16), std, flat[-16:])


def _box_muller(uniforms: np.ndarray, std: float, out: np.ndarray) -> None:
    """Blocks of 16: the first 8 uniforms give the radius, the last 8 the angle of 8 pairs (cos half, sin half)."""
    x, y = uniforms.reshape(-1, 2, 8), out.reshape(-1, 2, 8)
    radius = np.subtract(np.float32(1), x[:, 0])  # never 0: the uniforms stop at 1 - 2^-24
    np.log(radius, out=radius)
    np.multiply(radius, np.float32(-2), out=radius)
    np.sqrt(radius, out=radius)
    angle = np.float32(2 * np.pi) * x[:, 1]
    np.multiply(radius, np.cos(angle), out=y[:, 0])
    np.multiply(radius, np.sin(angle), out=y[:, 1])
    y *= np.float32(std)


def _few_normals(n: int, stream: Stream) -> np.ndarray:
    """Fewer than 16: pairs from double uniforms of two words each (high word first, low 53 bits kept)."""
    words = stream.words(-(-n // 2) * 4).astype(np.uint64).reshape(-1, 2)
    uniforms = ((words[:, 0] << np.uint64(32) | words[:, 1]) & np.uint64((1 << 53) - 1)) * 2.0**-53
    turn, spread = uniforms.reshape(-1, 2).T
    radius, angle = np.sqrt(-2 * np.log(1 - spread + 1e-12)), 2 * np.pi * turn
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)[:n]
