"""Run directories for the tests of what reads them: small real ones, and hand-made ones with anything in their files."""

import json
from pathlib import Path

from gpt2flat import GPT2Config, Model
from gpt2flat.data.tokenizer import Tokenizer
from gpt2flat.train import main
from gpt2flat.training.run import Run

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


def peaked_model() -> Model:
    """A small model of bytes whose distributions are far from uniform."""
    model = Model.init(GPT2Config(block_size=24, vocab_size=257, n_layer=2, n_head=2, n_embd=16), threads=1)
    for _name, view in model.params.items():
        view *= 8
    return model


def make_run(model: Model, path: Path, started: str, tokenizer=Tokenizer.byte(), steps=(1,)) -> Run:
    """A run directory with a model after each of these steps."""
    run = Run(path)
    run.reserve()
    run.create({"started": started}, tokenizer)
    for step in steps:
        place = run.checkpoints / f"step_{step:08d}"
        place.mkdir()
        model.save(place / "model.bin")
    return run


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
