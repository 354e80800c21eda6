"""`gpt2flat <command>`, the same as `python -m gpt2flat.<command>`."""

import importlib
import sys

from .command import run
from .errors import UsageError

COMMANDS = {
    "prepare": "make token files out of text",
    "train": "train a model, from scratch or from a checkpoint",
    "generate": "write text with a trained model",
    "evaluate": "measure models on texts: loss, perplexity, bits per byte",
    "check": "compare a model with PyTorch's numbers, or its gradients with numeric ones",
    "bench": "time every kernel against what this machine can do",
    "convert": "write a checkpoint of a run as llm.c's files",
    "replay": "open a past step of a run again, to the bit",
    "runs": "list runs, compare them, list models and presets",
    "plot": "draw the curves of runs",
    "report": "make one HTML page of a run",
    "info": "print the memory map and the program of a model",
}


def usage() -> str:
    lines = [f"  {name:10} {what}" for name, what in COMMANDS.items()]
    return "\n".join(["usage: gpt2flat <command> [flags]", "", *lines, "", "gpt2flat <command> --help lists its flags"])


def main() -> int:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in COMMANDS:
        del sys.argv[1]
        return importlib.import_module(f"gpt2flat.{name}").main()
    if name in ("", "-h", "--help", "help"):
        return run("", lambda argv: print(usage()))

    def refuse(argv: list[str]):
        raise UsageError(f"no command {name!r}; there are {', '.join(COMMANDS)}")

    return run("", refuse)


if __name__ == "__main__":
    sys.exit(main())
