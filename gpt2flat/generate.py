"""python -m gpt2flat.generate [RUN]: text from a trained model, as it is made."""

import sys

from .command import MODEL_HELP, Parser, number, open_model, run
from .data.tokenizer import Decoder, Tokenizer, escape_controls
from .generation.sample import stream
from .kernels import MAX_THREADS
from .training.inputs import prompt_ids


def parser() -> Parser:
    p = Parser("gpt2flat generate", description="Writes text with a trained model.")
    p.add_argument("run", nargs="?", metavar="RUN", help=MODEL_HELP)
    p.add_argument("-p", "--prompt", metavar="TEXT", help="text to go on from; default: the start of a new text")
    p.add_argument("-n", "--max-tokens", type=number("--max-tokens", int, 1), default=256, help="tokens to write (256)")
    p.add_argument("--temperature", type=number("--temperature", float, 0, 1e6), default=1.0,
                   help="below 1 safer, above 1 wilder, 0 always the likeliest (1)")  # fmt: skip
    p.add_argument("--top-k", type=number("--top-k", int, 1), help="choose among the K likeliest tokens only")
    p.add_argument("--seed", type=number("--seed", int, 0), default=0, help="another seed, another text (0)")
    threads = "at most; default: physical cores, or OMP_NUM_THREADS"
    p.add_argument("--threads", type=number("--threads", int, 1, MAX_THREADS), help=threads)
    return p


def body(argv: list[str]) -> None:
    args = parser().parse(argv)
    model, tokenizer, path = open_model(args.run, threads=args.threads)
    ids = prompt_ids(args.prompt, tokenizer)
    if args.run is None:
        print(f"from {path}", file=sys.stderr)
    stop = tokenizer.eot if tokenizer else None
    new = stream(model, ids, args.max_tokens, args.temperature, args.top_k, seed=args.seed, stop=stop)
    write(args.prompt or "", (int(step[0]) for step in new), tokenizer)


def write(prompt: str, new, tokenizer: Tokenizer | None) -> None:
    """Prints the prompt and the new tokens as they come, up to the end of the text."""
    safe = escape_controls if sys.stdout.isatty() else str
    decoder = Decoder(tokenizer) if tokenizer else None
    print(safe(prompt), end="", flush=True)
    for token in new:
        if tokenizer and token == tokenizer.eot:
            break
        print(safe(decoder.feed(token)) if decoder else f"{token} ", end="", flush=True)
    print(safe(decoder.flush()) if decoder else "")


def main(argv: list[str] | None = None) -> int:
    return run("generate", body, argv)


if __name__ == "__main__":
    sys.exit(main())
