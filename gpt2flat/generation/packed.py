"""Packs rows of weights for csrc/decode.c: bf16 in halves of words, int8 in blocks of 32 with a bf16 scale, and says what they mean.

Rounding is to nearest, ties to even; int8 is symmetric, -127 to 127. Elements that pad a row to whole blocks are 0."""

import numpy as np

from ..formats import bf16
from ..kernels.packing import BF16, BLOCK, ELEMENTS, INT8, WORDS

LEAST_SCALE = np.float32(1e-37)  # blocks of smaller numbers become 0: the inverse would leave float32
LARGEST, ZERO_POINT = np.float32(127), 128  # of int8; what a byte holds in place of 0
SCALES, HALVES = ELEMENTS[INT8] // BLOCK, BLOCK // 16  # blocks of 32 that lie together, first their first halves


def pack_rows(out: np.ndarray, rows: np.ndarray, pack: int) -> None:
    """rows (n, C), finite float32, into out (n, packed_floats), float32 as a place for words."""
    n, C = rows.shape
    if C % ELEMENTS[pack]:
        rows = np.concatenate([rows, np.zeros((n, -C % ELEMENTS[pack]), np.float32)], 1)
    blocks = rows.reshape(n, -1, BLOCK)
    if pack == BF16:
        halves = out.view(np.uint16).reshape(n, -1, BLOCK // 2, 2)
        bits = bf16.encode(blocks)
        halves[..., 0], halves[..., 1] = bits[..., : BLOCK // 2], bits[..., BLOCK // 2 :]
        return
    room = out.view(np.uint8).reshape(n, -1, 4 * WORDS[INT8])
    scales = bf16.encode(_largest(blocks) / LARGEST)
    room[..., : 2 * SCALES].view(bf16.BF16)[...] = scales.reshape(n, -1, SCALES)
    scale = (scales.astype(np.uint32) << 16).view(np.float32)
    by = np.divide(np.float32(1), scale, where=scale > LEAST_SCALE, out=np.zeros_like(scale))
    numbers = np.rint(np.clip(blocks * by[..., None], -LARGEST, LARGEST)) + ZERO_POINT
    room[..., 2 * SCALES :].reshape(n, -1, HALVES, SCALES, 16)[...] = numbers.reshape(
        n, -1, SCALES, HALVES, 16
    ).swapaxes(2, 3)


def _largest(blocks: np.ndarray) -> np.ndarray:
    """The largest size of each block, by halves: NumPy's max over so short an axis takes three times as long."""
    sizes = np.abs(blocks)
    while half := sizes.shape[-1] // 2:
        sizes = np.maximum(sizes[..., :half], sizes[..., half:])
    return sizes[..., 0]


def unpack_rows(packed: np.ndarray, C: int, pack: int) -> np.ndarray:
    """(n, packed_floats) -> (n, C) float32: what the packed rows mean."""
    n = len(packed)
    if pack == BF16:
        words = packed.view(np.uint32).reshape(n, -1, WORDS[BF16])
        blocks = np.concatenate([words << 16, words & np.uint32(0xFFFF0000)], 2).view(np.float32)
    else:
        room = packed.view(np.uint8).reshape(n, -1, 4 * WORDS[INT8])
        scale = (room[..., : 2 * SCALES].view(bf16.BF16).astype(np.uint32) << 16).view(np.float32)
        numbers = (
            room[..., 2 * SCALES :].reshape(n, -1, HALVES, SCALES, 16).swapaxes(2, 3).reshape(n, -1, SCALES, BLOCK)
        )
        blocks = (numbers.astype(np.float32) - ZERO_POINT) * scale[..., None]
    return np.ascontiguousarray(blocks.reshape(n, -1)[:, :C])
