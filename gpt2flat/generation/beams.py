"""Beam search: the likeliest sequences that a bounded search finds, with transformers' scores and rule for the end. Ids
in, ids out."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UsageError, require_number
from .decoder import Decoder
from .sampling import USUAL, Sampling, log_softmax
from .stream import END, LENGTH, STOP, Token, check_counts, check_prompts, make_decoder

MOST = 1 << 10  # beams


@dataclass(frozen=True)
class Beam:
    """New ids, the log-probability of each by the model's own distribution, their sum after the repetition penalty, and
    once the beam has ended its score, `total` divided by the number of ids to the power of the length penalty, and why
    it ended."""

    ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    total: float = 0.0
    score: float | None = None
    end: str | None = None


def stream(model, prompts: Sequence, max_new_tokens: int, beams: int, n_best: int = 1, length_penalty: float = 1.0,
           stops: Collection[int] = (), sampling: Sampling = USUAL, weights: str = "fp32",
           decoder: Decoder | None = None) -> Iterator[Token]:  # fmt: skip
    """The ids of the n_best best of `beams` beams for each prompt, the best first: sequence i is the i % n_best-th of
    prompt i // n_best (there may be fewer). Only the repetition penalty of `sampling` counts. decoder: one of at least
    `beams` rows to use again. Raises KernelArgError, DataError, UsageError."""
    rows = check_prompts(model, prompts)
    check_counts(max_new_tokens=(max_new_tokens, 0, END), beams=(beams, 1, MOST + 1), n_best=(n_best, 1, MOST + 1))
    require_number("length_penalty", length_penalty, -1e3, 1e3)
    if n_best > beams:
        raise UsageError(f"the {n_best} best of {beams} beams: expected no more than there are")
    return _tokens(model, rows, max_new_tokens, beams, n_best, length_penalty, stops, sampling, weights, decoder)


def _tokens(model, prompts, n, beams, n_best, length_penalty, stops, sampling, weights, decoder) -> Iterator[Token]:
    if not prompts or not n:
        return
    decoder = decoder or make_decoder(model, prompts, n, beams, weights)
    for p, prompt in enumerate(prompts):
        for k, beam in enumerate(search(decoder, prompt, n, beams, length_penalty, stops, sampling)[:n_best]):
            *first, last = zip(beam.ids, beam.log_probs, strict=True)
            yield from (Token(p * n_best + k, *one) for one in first)
            yield Token(p * n_best + k, *last, beam.end, beam.score)


def search(decoder, prompt: np.ndarray, max_new_tokens: int, beams: int, length_penalty: float = 1.0, stops: Collection[int] = (),
           sampling: Sampling = USUAL) -> list[Beam]:  # fmt: skip
    """At most `beams` sequences, the best score first.

    A beam ends with one of `stops`, which counts as an id of it, or after max_new_tokens. As in transformers, a
    candidate that ends must be among the `beams` best of its step, and the search ends once `beams` have ended and the
    best that has not, at its present length, scores no better than the worst of them (early_stopping=False)."""
    logits, live, done = decoder.prefill([prompt]), [Beam()], []
    for n in range(1, max_new_tokens + 1):
        own = log_softmax(logits)
        scores = np.array([beam.total for beam in live])[:, None] + _penalised(own, prompt, live, sampling)
        V, going, sources = scores.shape[1], [], []
        for rank, at in enumerate(_largest(scores.reshape(-1), (1 + max(1, len(stops))) * beams)):
            row, token = divmod(int(at), V)
            beam, total = live[row], float(scores[row, token])
            end = STOP if token in stops else LENGTH if n == max_new_tokens else None
            grown = Beam(
                (*beam.ids, token), (*beam.log_probs, float(own[row, token])), total, total / n**length_penalty, end
            )
            if end and rank < beams:
                done = sorted([*done, grown], key=lambda beam: -beam.score)[:beams]
            elif not end and len(going) < beams:
                going.append(grown)
                sources.append(row)
        live = going
        if not live or (len(done) == beams and live[0].score <= done[-1].score):
            break
        decoder.select(np.array(sources))
        logits = decoder.step(np.array([beam.ids[-1] for beam in live], np.int32))
    return done


def _penalised(own: np.ndarray, prompt: np.ndarray, live: list[Beam], sampling: Sampling) -> np.ndarray:
    if sampling.repetition_penalty == 1.0:
        return own
    return np.stack([sampling.penalised(row, np.append(prompt, beam.ids)) for row, beam in zip(own, live, strict=True)])


def _largest(values: np.ndarray, n: int) -> np.ndarray:
    """The places of the n largest, the largest first, of equals the first."""
    if n < len(values):
        found = np.flatnonzero(values >= np.partition(values, -n)[-n])
    else:
        found = np.arange(len(values))
    return found[np.argsort(-values[found], kind="stable")][:n]
