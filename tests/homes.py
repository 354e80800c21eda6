"""Where tests put the arrays of a kernel so that an access outside of them shows: guard words, forbidden pages."""

import ctypes
import mmap

import numpy as np

GUARD, LINE = 64, 16  # words
PATTERN = 0x7FC0DEAD  # a NaN as a float, far out of range as an index
PAGE = mmap.PAGESIZE
PROT_NONE = 0


class Bare:
    """An array that ends where its allocation ends: for sanitizers, which watch just that."""

    def __init__(self, content: np.ndarray, _offset: int):
        self.view = np.array(content, order="C")
        self.before = self.view.tobytes()

    def strays(self) -> int:
        return 0  # others watch

    def changed(self) -> bool:
        return self.view.tobytes() != self.before


class Placed(Bare):
    """An array inside guard words, its base `offset` floats behind a cache line."""

    def __init__(self, content: np.ndarray, offset: int):
        self.raw = np.full(content.size + 2 * GUARD + 2 * LINE, PATTERN, np.int32)
        self.begin = GUARD + -(self.raw.ctypes.data // 4) % LINE + offset % LINE
        self.end = self.begin + content.size
        self.view = self.raw[self.begin : self.end].view(content.dtype).reshape(content.shape)
        self.view[...] = content
        self.before = self.view.tobytes()

    def strays(self) -> int:
        """Guard words that were written."""
        return int((self.raw[: self.begin] != PATTERN).sum() + (self.raw[self.end :] != PATTERN).sum())


class Fenced(Bare):
    """An array between two forbidden pages: flush with the one behind it (`offset` even) or the one before it (odd)."""

    def __init__(self, content: np.ndarray, offset: int):
        pages = -(-content.nbytes // PAGE)
        self.region = mmap.mmap(-1, (pages + 2) * PAGE)
        whole = np.frombuffer(self.region, np.uint8)
        start = PAGE if offset % 2 else (pages + 1) * PAGE - content.nbytes
        self.view = whole[start : start + content.nbytes].view(content.dtype).reshape(content.shape)
        self.view[...] = content
        self.before = content.tobytes()
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        for page in (0, pages + 1):
            if protect(ctypes.c_void_p(whole.ctypes.data + page * PAGE), ctypes.c_size_t(PAGE), PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")
