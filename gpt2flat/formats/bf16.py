"""bfloat16, the upper half of a float32: encoded to the nearest, ties to even, as PyTorch does; decoded exactly."""

from collections.abc import Iterator

import numpy as np

BF16 = np.dtype("<u2")
PIECE = 1 << 20  # numbers at a time: 6 MB of work space for a file of any size
_NAN = 0x7FC0


def pieces(count: int) -> Iterator[slice]:
    """Slices that cut `count` numbers into pieces."""
    return (slice(start, min(start + PIECE, count)) for start in range(0, count, PIECE))


def encode(floats: np.ndarray) -> np.ndarray:
    """The bits of float32 numbers as bfloat16 (uint16, same shape). What rounds beyond the largest becomes infinite."""
    bits = np.ascontiguousarray(floats, np.float32).view(np.uint32)
    # half of the last place that stays, less one when that place is even: exactly the ties to even are not carried
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    return np.where(np.isnan(floats), _NAN, rounded).astype(BF16)


def is_finite(bits: np.ndarray) -> np.ndarray:
    """Where bfloat16 numbers (uint16 bits) are neither infinite nor NaN."""
    return (bits & 0x7F80) != 0x7F80


def decode_into(bits: np.ndarray, floats: np.ndarray) -> None:
    """Puts bfloat16 numbers (uint16 bits) into `floats` (float32, contiguous, same shape)."""
    np.left_shift(bits, 16, out=floats.view(np.uint32), dtype=np.uint32)
