"""How long a packed row of weights is (PACK of csrc/kernels.h). generation/packed.py packs."""

BLOCK = 32  # elements of int8 with a scale
FP32, BF16, INT8 = range(3)
ELEMENTS = {BF16: 32, INT8: 128}  # a row is padded to whole ones of these
WORDS = {BF16: 16, INT8: 34}  # which take so many floats


def packed_floats(C: int, pack: int) -> int:
    """Floats that a row of C weights takes."""
    return C if pack == FP32 else -(-C // ELEMENTS[pack]) * WORDS[pack]
