"""python -m gpt2flat.convert RUN FOLDER: a checkpoint of a run as llm.c's files, for train_gpt2cu -y 1 -o FOLDER. The other way, train
--resume FOLDER goes on with a run of llm.c's."""

import sys
from pathlib import Path

from .command import Parser, number, run
from .errors import CheckpointError
from .formats import llmc_state
from .model import Model
from .training.checkpoints import Checkpoint
from .training.replay import checkpoint_before
from .training.run import Run
from .training.saving import load
from .training.screen import say
from .training.start import settings_at
from .weights import find_shape


def parser() -> Parser:
    p = Parser("gpt2flat convert", description=__doc__.split(": ", 1)[1])
    p.add_argument("run", metavar="RUN", help="a run directory")
    p.add_argument("folder", metavar="FOLDER", help="where model_*.bin, state_*_00000.bin and DONE_* go")
    p.add_argument("--step", type=number("--step", int, 0, 1 << 30), default=1 << 60, metavar="N",
                   help="the newest checkpoint of step N or before; default the newest")  # fmt: skip
    return p


def body(argv: list[str]) -> None:
    args = parser().parse(argv)
    source = Run(args.run)
    if not source.config.is_file():
        raise CheckpointError(f"{source.path}: is no run directory, it has no config.toml")
    found = checkpoint_before(source, args.step)
    model = Model(find_shape(found.model)[0])
    state = load(model, found)
    folder = Path(args.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise CheckpointError(f"{folder}: cannot be made: {problem.strerror}") from None
    floats = (section.floats for section in (model.params, model.m, model.v))
    names = llmc_state.write(
        folder, found.step, model.config.dims(), *floats, state["data"], samples(source, found, state["data"])
    )
    say("saved", f"{names.model}, {names.state.name} and {names.done.name}")


def samples(source: Run, found: Checkpoint, data: dict) -> int:
    """Of the shard that the data stands in. Raises CheckpointError for a manifest that does not tell."""
    settings = settings_at(source, found)
    try:
        tokens = found.facts["data"]["train"][data["order"][data["shard"]]][0]
        return (tokens - 1) // (settings["batch_size"] * settings["seq_len"])
    except (KeyError, IndexError, TypeError):
        raise CheckpointError(f"{found.path}: its manifest does not tell of the data") from None


def main(argv: list[str] | None = None) -> int:
    return run("convert", body, argv)


if __name__ == "__main__":
    sys.exit(main())
