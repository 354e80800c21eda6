"""Packs rows of weights for csrc/decode.c: bf16 in halves of words, int8 in blocks of 32 with a scale, and says what they mean.

Rounding is to nearest, ties to even; int8 is symmetric, -127 to 127. Elements that pad a row to whole blocks are 0."""

import numpy as np

from ..formats import bf16
from ..kernels.packing import BF16, BLOCK, INT8, WORDS


LEAST_SCALE = np.float32(1e-37)  # blocks of smaller numbers become 0: the inverse would leave float32


def pack_rows(out: np.ndarray, rows: np.ndarray, pack: int) -> None:
    """rows (n, C), finite float32, into out (n, packed_floats), float32 as a place for words."""
    n, C = rows.shape
    if C % BLOCK:
        rows = np.concatenate([rows, np.zeros((n, -C % BLOCK), np.float32)], 1)
    blocks = rows.reshape(n, -1, BLOCK)
    if pack == BF16:
        halves = out.view(np.uint16).reshape(*blocks.shape[:2], BLOCK // 2, 2)
        bits = bf16.encode(blocks)
        halves[..., 0], halves[..., 1] = bits[..., : BLOCK // 2], bits[..., BLOCK // 2 :]
        return
    room = out.reshape(n, -1, WORDS[INT8])
    room[..., 0] = scale = _largest(blocks) / np.float32(127)
    by = np.divide(np.float32(1), scale, where=scale > LEAST_SCALE, out=np.zeros_like(scale))
    room[..., 1:].view(np.int8)[...] = np.rint(np.clip(blocks * by[..., None], -127, 127))


def _largest(blocks: np.ndarray) -> np.ndarray:
    """The largest size of each block, by halves: NumPy's max over so short an axis takes three times as long."""
    sizes = np.abs(blocks)
    while (half := sizes.shape[-1] // 2):
        sizes = np.maximum(sizes[..., :half], sizes[..., half:])
    return sizes[..., 0]


def unpack_rows(packed: np.ndarray, C: int, pack: int) -> np.ndarray:
    """(n, packed_floats) -> (n, C) float32: what the packed rows mean."""
    if pack == BF16:
        words = packed.view(np.uint32).reshape(len(packed), -1, WORDS[BF16])
        blocks = np.concatenate([words << 16, words & np.uint32(0xFFFF0000)], 2).view(np.float32)
    else:
        room = packed.reshape(len(packed), -1, WORDS[INT8])
        blocks = room[..., 1:].view(np.int8) * room[..., :1]
    return np.ascontiguousarray(blocks.reshape(len(packed), -1)[:, :C])
