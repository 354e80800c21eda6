"""Keys for random numbers that are functions of a key and a place: splitmix64 (Steele, Lea, Flood: OOPSLA 2014), integers only.

A key is a whole number below 2^64. Nothing is drawn and nothing kept, so a run goes on from its numbers alone."""

import numpy as np

END, STEP = 1 << 64, 0x9E3779B97F4A7C15


def _mix(z: int) -> int:
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % END
    z = (z ^ z >> 27) * 0x94D049BB133111EB % END
    return z ^ z >> 31


def key_of(*numbers: int) -> int:
    """One key for several whole numbers in their order, as seed, update, micro-batch."""
    key = 0
    for number in numbers:
        key = _mix((key + STEP + number) % END)
    return key


def words(key: int, count: int) -> np.ndarray:
    """The first `count` outputs of a splitmix64 that starts at `key`: the upper half of each, int32."""
    return np.array([_mix((key + i * STEP) % END) >> 32 for i in range(1, count + 1)], np.uint32).view(np.int32)
