"""Run directories for the tests of what reads them: small real ones, and hand-made ones with anything in their files."""

import json
from pathlib import Path

from gpt2flat.train import main

SMALL = ("--n-layer 1 --n-embd 16 --n-head 2 --block-size 16 -b 4 --val-batches 1 --sample-tokens 8 --threads 1 --val-every 4 "
         "--sample-every 4 --warmup 2").split()  # fmt: skip
HOSTILE = "</pre><script>alert(1)</script>\x1b]0;x\x07 $\\frac{ \u202e\u2028 <b onclick=x> & \"'"


def train(path: Path, *flags: str) -> Path:
    """A real run of eight updates."""
    assert main([*SMALL, "--steps", "8", "--out", str(path), *flags]) == 0
    return path


def make(path: Path, records: list = (), config: str = "steps = 4\n", env: object = None) -> Path:
    """A run directory with these lines in metrics.jsonl: dicts, or texts as they are."""
    path.mkdir(parents=True)
    (path / "config.toml").write_text(config)
    if env is not None:
        (path / "env.json").write_text(json.dumps(env))
    lines = (r if isinstance(r, str) else json.dumps(r) for r in records)
    (path / "metrics.jsonl").write_text("".join(line + "\n" for line in lines), errors="surrogatepass")
    return path


def update(step: int, **more) -> dict:
    """The record of an update that took 12 tokens and 10 ms."""
    return {
        "step": step,
        "loss": 4.0 - step / 10,
        "lr": 1e-3,
        "grad_norm": 1.0,
        "ms": 10.0,
        "tokens_per_s": 1200.0,
    } | more
