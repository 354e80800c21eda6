"""How unusual a loss or gradient norm is: its z-score among the last 128 (llm.c's llmc/outlier_detector.h).

Unlike llm.c's, a window never holds a NaN, so one bad value cannot turn the detector off."""

import math

from ..errors import CheckpointError

WINDOW = 128


class Window:
    """The last WINDOW finite values."""

    def __init__(self, values=()):
        self.values = list(values)
        if len(self.values) > WINDOW or not all(type(x) is float and math.isfinite(x) for x in self.values):
            raise CheckpointError(
                f"a window of outliers holds {len(self.values)} values, expected at most {WINDOW} finite ones"
            )

    def z(self, value: float) -> float | None:
        """Takes `value` in and returns its z-score, in standard deviations of the window that it is part of; None until that is
        full and for a value that is not finite, 0 when all are equal."""
        if not math.isfinite(value):
            return None
        self.values = [*self.values[1 - WINDOW :], float(value)]
        if len(self.values) < WINDOW:
            return None
        first = self.values[0]
        apart = [x - first for x in self.values]  # small numbers: their squares lose nothing
        mean = math.fsum(apart) / WINDOW
        variance = math.fsum([x * x for x in apart]) / WINDOW - mean * mean
        return (value - first - mean) / math.sqrt(variance) if variance > 0 else 0.0
