"""python -m gpt2flat.check [CHECKPOINT] [DEBUG_STATE]: llm.c's unit test; --gradients needs no file."""

import math
import sys
from pathlib import Path

import numpy as np

from .arch import gpt2
from .checks import gradients, unit
from .command import Parser, data_folders, number, run
from .errors import UsageError
from .model import Model
from .training.inputs import DEFAULT_CHECKPOINT, DEFAULT_PRESET
from .weights import find_shape

MISMATCH = 1
GRADIENT_BATCH = (2, 16)  # B, T at most: enough for every term of every gradient
SPREAD = 0.1  # of the noise on fresh weights: no bias stays 0, no layernorm weight 1


def parser() -> Parser:
    what = (
        "Compares logits, loss, gradients and ten updates with what PyTorch left in a debug state (llm.c's unit "
        "test), or with --gradients the gradients with numeric ones. Ends with 1 when something differs too much."
    )
    p = Parser("gpt2flat check", description=what)
    default = f"default: data/{DEFAULT_CHECKPOINT}"
    p.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help=f"llm.c's .bin file, in float32; {default}")
    beside = "default: NAME_debug_state.bin beside CHECKPOINT NAME.bin"
    p.add_argument("debug_state", nargs="?", metavar="DEBUG_STATE", help=beside)
    where = f"a .bin checkpoint, a descriptor (d6) or a preset ({DEFAULT_PRESET}, the default)"
    where = f"compare with numeric gradients: {where}, of at most {gradients.LARGEST // 1_000_000} million parameters"
    p.add_argument("--gradients", nargs="?", const=DEFAULT_PRESET, metavar="MODEL", help=where)
    p.add_argument("--attention", choices=list(gpt2.ATTENTION), default="flash")
    threads = "at most; default: physical cores, or OMP_NUM_THREADS"
    p.add_argument("--threads", type=number("--threads", int, 1, 1024), help=threads)
    return p


# --- llm.c's unit test -----------------------------------------------------------------------------------------------


def find_files(checkpoint: str | None, debug_state: str | None) -> tuple[Path, Path]:
    """The two files of a unit test. Raises UsageError when one is not there."""
    if checkpoint is None:
        found = [folder / DEFAULT_CHECKPOINT for folder in data_folders()]
        first = next((path for path in found if path.is_file()), found[-1])
    else:
        first = Path(checkpoint)
    second = Path(debug_state) if debug_state else first.with_name(f"{first.stem}_debug_state.bin")
    for path in (first, second):
        if not path.exists():
            raise UsageError(
                f"{path}: no such file: name a CHECKPOINT and its DEBUG_STATE; llm.c's starter pack has gpt2_124M.bin "
                "and gpt2_124M_debug_state.bin, and ./downloaddataset.sh --all fetches it into data/"
            )
    return first, second


def unit_test(args) -> int:
    checkpoint, debug_state = find_files(args.checkpoint, args.debug_state)
    model, state = unit.open_both(checkpoint, debug_state, attention=args.attention, threads=args.threads)
    with state:
        B, T = state.tokens.shape
        title = f"{checkpoint} against {debug_state} (version {state.version}): B {B}, T {T}"
        print(f"{title}, {model.kernels.isa}, {model.threads} threads")
        print(f"{'tensor':10}{'max difference':>16}{'llm.c allows':>14}{'relative error':>16}{'we allow':>10}")
        rows = [show(row) for row in unit.first_pass(model, state)]
        losses = unit.updates(model, state)
    if unit.known_losses(model, losses):
        rows += [show(row) for row in unit.compare_losses(losses)]
    else:
        print(f"losses of {len(losses)} updates, which are known for gpt2_124M.bin only:")
    print(" ".join(f"{loss:.6f}" for loss in losses))
    return verdict([row.name for row in rows if not row.ok], len(rows))


def show(row: unit.Compared) -> unit.Compared:
    line = f"{row.name:10}{row.difference:16.2e}{row.llmc:14.0e}{row.error:16.2e}{row.ours:10.0e}"
    print(f"{line}  {'ok' if row.ok else 'FAIL'}", flush=True)
    return row


def verdict(bad: list[str], count: int) -> int:
    print(f"{len(bad)} of {count} differ by more than is allowed: {', '.join(bad)}" if bad else f"all {count} agree")
    return MISMATCH if bad else 0


# --- numeric gradients -----------------------------------------------------------------------------------------------


def gradient_test(args) -> int:
    model = model_of(args.gradients, attention=args.attention, threads=args.threads)
    B, T = GRADIENT_BATCH[0], min(GRADIENT_BATCH[1], model.config.block_size)
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, model.config.vocab_size, (2, B, T))
    targets[0, 0] = -1  # one that is left out
    what = f"against a float64 forward, along {gradients.DIRECTIONS} directions each"
    print(f"{args.gradients}: gradients of B {B}, T {T} by {model.kernels.isa}, {model.threads} threads, {what}")
    print(f"{'tensor':10}{'norm':>14}{'relative error':>16}{'we allow':>10}")
    rows = []
    for row in gradients.compare(model, tokens, targets):
        rows.append(row)
        line = f"{'d' + row.name:10}{row.norm:14.4e}{row.error:16.2e}{gradients.BOUND:10.0e}"
        print(f"{line}  {'ok' if row.ok else 'FAIL'}", flush=True)
    worst = max(rows, key=lambda row: math.inf if math.isnan(row.error) else row.error)
    print(f"worst: d{worst.name}, {worst.error:.2e} of its norm")
    return verdict(["d" + row.name for row in rows if not row.ok], len(rows))


def model_of(name: str, **options) -> Model:
    """A checkpoint's model, or a preset with random weights in every tensor. Raises CapacityError for a large one."""
    config, path = find_shape(name)
    gradients.require_small(config)
    if path:
        return Model.load(path, **options)
    model, rng = Model.init(config, **options), np.random.default_rng(1)
    for _, view in model.params.items():
        view += SPREAD * rng.standard_normal(view.shape, np.float32)
    model.params["wte"][config.vocab_size :] = 0
    return model


def body(argv: list[str]) -> int:
    args = parser().parse(argv)
    if args.gradients is None:
        return unit_test(args)
    if args.checkpoint:
        raise UsageError("--gradients needs no debug state: name its model behind the flag, and nothing else")
    return gradient_test(args)


def main(argv: list[str] | None = None) -> int:
    return run("check", body, argv)


if __name__ == "__main__":
    sys.exit(main())
