"""Looking through many floats in pieces, without a second copy of them."""

import numpy as np

PIECE = 1 << 20  # floats at a time: they stay in a cache


def first_nonfinite(floats: np.ndarray) -> int | None:
    """The flat index of the first NaN or infinity in a contiguous array, None if all numbers are finite."""
    flat = floats.reshape(-1)
    for start in range(0, flat.size, PIECE):
        finite = np.isfinite(flat[start : start + PIECE])
        if not finite.all():
            return start + int(finite.argmin())
    return None
