"""How the time of a token grows: with the rows of the batch while they are short, and with the length of a single row."""

from collections.abc import Iterator
from dataclasses import replace

from ..arch import gpt2
from ..errors import CapacityError
from .step import StepRow, Trainee, measure_steps

SHORT = 64  # tokens of a row while rows are added
MOST_ROWS, LONGEST = 16, 4096


def stretched(config: gpt2.GPT2Config, longest: int) -> gpt2.GPT2Config:
    """The shape with positions for rows of `longest` tokens."""
    return replace(config, block_size=max(config.block_size, longest))


def shapes(most_rows: int, longest: int) -> list[tuple[int, int]]:
    """(B, T): doubling B at T 64, then doubling T at B 1."""
    short = min(SHORT, longest)
    rows = [(1 << i, short) for i in range(most_rows.bit_length())]
    return rows + [(1, short << i) for i in range(1, (longest // short).bit_length())]


def measure_growth(
    trainee: Trainee, batches: list[tuple[int, int]], memory: list, repeats: int
) -> Iterator[tuple[int, int, StepRow | None]]:
    """(B, T, row) one after the other, each as measure_steps; None for a batch that free memory cannot hold."""
    for B, T in batches:
        try:
            trainee.take(B, T)
        except CapacityError:
            yield B, T, None
            continue
        (row,), _ = measure_steps([trainee], memory, repeats)
        yield B, T, row
