"""Learning rates by update: llm.c's formulas (llmc/schedulers.h). Pure functions of the settings."""

import math


def warmup_steps(s) -> int:
    """Updates of warm-up: s.warmup, or that fraction of s.steps when it is below 1."""
    return round(s.warmup * s.steps) if s.warmup < 1 else round(s.warmup)


def cosine(s, lr: float, step: int) -> float:
    """Linear warm-up to lr, then half a cosine down to final_lr_fraction * lr at s.steps."""
    return _warm(s, lr, step) or _between(s, lr, 0.5 * (1 + math.cos(math.pi * _progress(s, step))))


def linear(s, lr: float, step: int) -> float:
    """Linear warm-up to lr, then a straight line down to final_lr_fraction * lr at s.steps."""
    return _warm(s, lr, step) or _between(s, lr, 1 - _progress(s, step))


def constant(s, lr: float, step: int) -> float:
    """lr throughout; warm-up and final fraction are ignored, as in llm.c."""
    return lr


def wsd(s, lr: float, step: int) -> float:
    """Warm-up, stable, decay: lr until int(0.8 steps), then down as 1 - sqrt of the way to final_lr_fraction * lr (arXiv
    2405.18392)."""
    decay = int(0.8 * s.steps)
    if step < decay:
        return _warm(s, lr, step) or lr
    return _between(s, lr, 1 - math.sqrt((step - decay) / max(1, s.steps - decay)))


def _warm(s, lr: float, step: int) -> float | None:
    warm = warmup_steps(s)
    return lr * (step + 1) / warm if step < warm else None


def _progress(s, step: int) -> float:
    """How far `step` is from the end of warm-up (0) to s.steps (1)."""
    warm = warmup_steps(s)
    return (step - warm) / max(1, s.steps - warm)


def _between(s, lr: float, share: float) -> float:
    least = lr * s.final_lr_fraction
    return least + share * (lr - least)


SCHEDULES = {function.__name__: function for function in (cosine, linear, constant, wsd)}


def learning_rate(s, step: int, lr: float | None = None) -> float:
    """The learning rate of update `step` (from 0); lr: at its highest, in place of s.lr."""
    return SCHEDULES[s.schedule](s, s.lr if lr is None else lr, step)
