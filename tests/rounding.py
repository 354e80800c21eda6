"""Numbers that know how wrong a float32 computation of them may be: running error analysis (Higham, ASNA, ch. 3).

A Num holds a float64 value, a bound `err` on |float32 result - value| whatever the order of the sums, and `terms`, the
longest chain of additions so far. References written with Nums yield their own tolerance, with no absolute constants.
Whole numbers stay exact while no partial sum can reach 2^24: their bound is 0, and the comparison an equality."""

import numpy as np

U = 2.0**-24  # half the distance from 1 to the next float32
TINY = 2.0**-149  # the least float32: what a product may lose to underflow
FLUSH = 2.0**-126  # exp may give 0 where the result would be subnormal
U_BF16 = 2.0**-8  # half the distance from 1 to the next bf16
ELEMENTARY = 8 * U  # exp, log, sigmoid: 4 units in the last place
WHOLE = 2.0**24


def num(x) -> "Num":
    """Anything as a Num; a Python float is a constant of a formula, which the kernel rounds to float32."""
    if isinstance(x, Num):
        return x
    if isinstance(x, float):
        return Num(x, U * abs(x) if np.float32(x) != x else 0.0)
    return Num(np.asarray(x, np.float64))


class Num:
    def __init__(self, value, err=0.0, terms: int = 0, whole: bool | None = None):
        self.value = np.asarray(value, np.float64)
        self.err = np.broadcast_to(np.asarray(err, np.float64), self.value.shape)
        self.terms = terms
        self.whole = whole if whole is not None else not self.err.any() and _whole(self.value)

    @property
    def shape(self):
        return self.value.shape

    def _round(self, value, carried, size, steps: int, terms: int, exact: bool, lost: float = 0.0) -> "Num":
        """The result of `steps` roundings of partial results below `size`, the operands' errors giving `carried`."""
        if exact and np.max(size, initial=0.0) <= WHOLE:
            return Num(value, 0.0, terms, True)
        growth = steps * U / (1 - steps * U)
        err = carried + growth * (size + carried) + lost
        return Num(value, np.where(np.isnan(err), np.inf, err), terms, False)  # inf * 0: nothing is known

    def __add__(self, other):
        a, b = self, num(other)
        value = a.value + b.value
        return a._round(value, a.err + b.err, abs(value), 1, max(a.terms, b.terms) + 1, a.whole and b.whole)

    def __mul__(self, other):
        a, b = self, num(other)
        value = a.value * b.value
        carried = abs(a.value) * b.err + a.err * abs(b.value) + a.err * b.err
        return a._round(value, carried, abs(value), 1, max(a.terms, b.terms), a.whole and b.whole, TINY)

    def __truediv__(self, other):
        a, b = self, num(other)
        value = a.value / b.value
        with np.errstate(divide="ignore", invalid="ignore"):
            carried = np.where(b.err < abs(b.value), (a.err + abs(value) * b.err) / (abs(b.value) - b.err), np.inf)
        return a._round(value, carried, abs(value), 1, max(a.terms, b.terms), False, TINY)

    def __matmul__(self, other):
        a, b = self, num(other)
        k = a.shape[-1]
        size = abs(a.value) @ abs(b.value)
        carried = 0.0
        if b.err.any():
            carried = (abs(a.value) + a.err) @ b.err
        if a.err.any():
            carried = carried + a.err @ abs(b.value)
        terms = max(a.terms, b.terms) + k
        return a._round(a.value @ b.value, carried, size, k + 1, terms, a.whole and b.whole, (k + 1) * TINY)

    def bf16(self) -> "Num":
        """Rounded to the nearest bf16, ties to even, as far as it is known; a CPU may take a denormal for 0."""
        value = bf16(self.value)
        exact = not self.err.any()
        err = abs(value - self.value) + self.err + U_BF16 * (abs(self.value) + self.err)
        return Num(value if exact else self.value, np.where(abs(self.value) < FLUSH, np.maximum(abs(value), abs(self.value)), 0.0) if exact else err + FLUSH, self.terms)

    def product(self, other, BF16: int) -> "Num":
        """self @ other, of rounded inputs if BF16: then a product or sum that is denormal may be lost."""
        if not BF16:
            return self @ other
        made = self.bf16() @ num(other).bf16()
        if not made.whole:
            made.err = made.err + 2 * self.shape[-1] * FLUSH
        return made

    def __neg__(self):
        return Num(-self.value, self.err, self.terms, self.whole)

    def __sub__(self, other):
        return self + -num(other)

    def __rsub__(self, other):
        return num(other) + -self

    __radd__, __rmul__ = __add__, __mul__

    def __rtruediv__(self, other):
        return num(other) / self

    def sum(self, axis, chain: int | None = None, keepdims: bool = False) -> "Num":
        """A sum in any order in which no element passes through more than `chain` additions (its length by default)."""
        chain = chain or self.shape[axis]
        total = self.value.sum(axis, keepdims=keepdims)
        size, carried = (x.sum(axis, keepdims=keepdims) for x in (abs(self.value), self.err))
        return self._round(total, carried, size, chain, self.terms + chain, self.whole)

    def max(self, axis, keepdims: bool = False) -> "Num":
        value, err = (x.max(axis, keepdims=keepdims) for x in (self.value, self.err))
        return Num(value, err, self.terms, self.whole)

    def _rising(self, f, rounding: float, lost: float = 0.0) -> "Num":
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            value = f(self.value)
            above, below = self.value + self.err, np.maximum(self.value - self.err, _LOWEST.get(f, -np.inf))
            carried = np.maximum(f(above) - value, value - f(below))
        carried = np.where(np.isnan(carried), np.inf, carried)
        return Num(value, carried + rounding * (abs(value) + carried) + lost, self.terms, False)

    def exp(self):
        return self._rising(np.exp, ELEMENTARY, FLUSH)

    def log(self):
        return self._rising(np.log, ELEMENTARY)

    def sqrt(self):
        return self._rising(np.sqrt, 2 * U)

    def sigmoid(self):
        return self._rising(_sigmoid, ELEMENTARY, FLUSH)

    def onto(self, old) -> "Num":
        """old + self as a kernel with acc = 1 makes it: the chain starts from the old value, or ends with it."""
        total = self + num(old)
        if not total.whole:
            total.err = total.err + U * self.terms * abs(num(old).value)
        return total

    def only(self, mask) -> "Num":
        """Zero outside the mask, as if those elements had never been looked at."""
        return Num(np.where(mask, self.value, 0.0), np.where(mask, self.err, 0.0), self.terms, self.whole)

    def _each(self, f) -> "Num":
        return Num(f(self.value), f(self.err), self.terms, self.whole)

    def __getitem__(self, index):
        return self._each(lambda x: x[index])

    def reshape(self, *shape):
        return self._each(lambda x: x.reshape(*shape))

    def swapaxes(self, i, j):
        return self._each(lambda x: x.swapaxes(i, j))

    def repeat(self, n, axis):
        return self._each(lambda x: x.repeat(n, axis))

    @property
    def T(self):
        return self._each(lambda x: x.T)


def bf16(x) -> np.ndarray:
    """float64 numbers that are float32 ones, as the nearest bf16."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    up = bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1)
    near = (up & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return np.where(np.isnan(x), np.nan, near).astype(np.float64)


def concatenate(parts, axis) -> Num:
    parts = [num(p) for p in parts]
    values, errors = (np.concatenate([getattr(p, part) for p in parts], axis) for part in ("value", "err"))
    return Num(values, errors, max(p.terms for p in parts), all(p.whole for p in parts))


def scatter_rows(rows: int, index, source: Num) -> Num:
    """out[index[n]] += source[n], a chain per row of out."""
    pick = (np.arange(rows)[:, None] == np.asarray(index)[None, :]).astype(np.float64)
    longest = int(np.bincount(index, minlength=1).max())
    total, carried, size = (pick @ x for x in (source.value, source.err, abs(source.value)))
    return source._round(total, carried, size, longest, source.terms + longest, source.whole)


def _whole(value) -> bool:
    return bool(np.isfinite(value).all() and (value == np.round(value)).all() and abs(value).max(initial=0.0) <= WHOLE)


def _sigmoid(x):
    return np.where(x >= 0, 1 / (1 + np.exp(-abs(x))), np.exp(-abs(x)) / (1 + np.exp(-abs(x))))


_LOWEST = {np.sqrt: 0.0, np.log: 0.0}
