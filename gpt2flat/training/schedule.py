"""Learning rates by update: llm.c's formulas (llmc/schedulers.h). Pure functions of the settings."""

import math


def warmup_steps(s) -> int:
    """Updates of warm-up: s.warmup, or that fraction of s.steps when it is below 1."""
    return round(s.warmup * s.steps) if s.warmup < 1 else round(s.warmup)


def cosine(s, step: int) -> float:
    """Linear warm-up to lr, then half a cosine down to final_lr_fraction * lr at s.steps."""
    warm = warmup_steps(s)
    if step < warm:
        return s.lr * (step + 1) / warm
    ratio = (step - warm) / max(1, s.steps - warm)
    least = s.lr * s.final_lr_fraction
    return least + 0.5 * (1 + math.cos(math.pi * ratio)) * (s.lr - least)


def constant(s, step: int) -> float:
    """lr throughout; warm-up and final fraction are ignored, as in llm.c."""
    return s.lr


SCHEDULES = {"cosine": cosine, "constant": constant}


def learning_rate(s, step: int) -> float:
    """The learning rate of update `step` (from 0)."""
    return SCHEDULES[s.schedule](s, step)
