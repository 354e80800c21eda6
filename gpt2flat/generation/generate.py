"""Model.generate: whole rows of ids in, whole rows out."""

import numpy as np

from ..data.tokens import as_ids
from ..errors import UsageError, require_number
from . import beams, stream
from .sampling import Sampling


def generate(
    model,
    tokens,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop: int | tuple[int, ...] | None = None,
    *,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    repetition_window: int | None = None,
    num_samples: int = 1,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    n_best: int = 1,
    batch: int = stream.BATCH,
    weights: str = "fp32",
) -> np.ndarray:
    """`tokens` and behind them the new ids: (n,) or (B, n) integers in, int32 of shape (n + new,) or (B, n + new) out.

    temperature to repetition_window: as of generation.sampling.Sampling; temperature 0 takes the likeliest id. Row r draws from NumPy's
    PCG64(seed + r). stop: an id or several: a row ends with one of them and then repeats it until every row has ended.
    num_samples: so many rows for each of the prompts, next to each other. num_beams above 1: the n_best best beams for
    each prompt in place of drawn samples, by their log-probability divided by their number of new ids to the power of
    length_penalty. batch: rows at once. weights: "fp32", "bf16" or "int8". None of batch and threads changes a result.
    Raises KernelArgError and DataError for tokens that do not fit, UsageError for settings that do not."""
    prompts = np.atleast_2d(as_ids("tokens", tokens, model.config.vocab_size, axes=(1, 2)))
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, repetition_window)
    stops = () if stop is None else tuple(np.atleast_1d(stop).tolist())
    for i in stops:
        require_number("stop", i, 0, model.config.vocab_size, whole=True)
    stream.check_counts(
        num_samples=(num_samples, 1, stream.END),
        num_beams=(num_beams, 1, beams.MOST + 1),
        n_best=(n_best, 1, beams.MOST + 1),
    )
    if num_beams > 1:
        if (temperature, top_k, top_p, min_p, num_samples) != (1.0, None, None, None, 1):
            raise UsageError(
                "beams are searched for, not drawn: leave out temperature, top_k, top_p, min_p and num_samples"
            )
        each = n_best
        new = beams.stream(model, prompts, max_new_tokens, num_beams, n_best, length_penalty, stops, sampling, weights)
    else:
        if (n_best, length_penalty) != (1, 1.0):
            raise UsageError("n_best and length_penalty go with num_beams: num_samples draws several")
        each = num_samples
        new = stream.stream(
            model, prompts, max_new_tokens, sampling, num_samples, seed, stream.at_ids(stops), batch, weights
        )
    rows = [prompt.tolist() for prompt in prompts for _ in range(each)]
    for token in new:
        rows[token.sequence].append(token.id)
    longest = max(map(len, rows))
    whole = np.array([row + row[-1:] * (longest - len(row)) for row in rows], np.int32)
    return whole if np.ndim(tokens) == 2 or each > 1 else whole[0]
