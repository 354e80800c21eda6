"""How long a packed row of weights is (PACK of csrc/kernels.h). generation/packed.py packs."""

BLOCK = 32  # elements; a row is padded to whole blocks
FP32, BF16, INT8 = range(3)
WORDS = {BF16: BLOCK // 2, INT8: 1 + BLOCK // 4}  # of a block, in floats


def packed_floats(C: int, pack: int) -> int:
    """Floats that a row of C weights takes."""
    return C if pack == FP32 else -(-C // BLOCK) * WORDS[pack]
