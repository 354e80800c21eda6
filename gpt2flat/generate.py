"""python -m gpt2flat.generate [RUN]: text from a trained model, as it is made: for one prompt or many, or typed in a
loop."""

import argparse
import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import fields

from .command import MODEL_HELP, Parser, StopSignal, number, open_model, run
from .data.tokenizer import Tokenizer, escape_controls, valid
from .errors import DataError, UsageError, reason
from .generation import beams, show, stream
from .generation.cache import WEIGHTS
from .generation.interactive import Talk, talk
from .generation.prompts import STDIN, read_prompts, read_text
from .generation.sampling import LIMITS, Sampling
from .generation.text import Texts
from .kernels import MAX_THREADS
from .model import PRECISIONS
from .training.inputs import prompt_ids

HELP = {
    "temperature": "below 1 safer, above 1 wilder, 0 always the likeliest (1)",
    "top_k": "choose among the K likeliest tokens only",
    "top_p": "among the fewest likeliest tokens that together have this probability",
    "min_p": "among tokens at least this likely, in terms of the likeliest",
    "repetition_penalty": "above 1: tokens that are there already become less likely (1)",
    "repetition_window": "the penalty looks at the last so many tokens only; default: at all",
}
# setting -> what reads its value, also typed in --interactive
READERS = {name: number(f"--{name.replace('_', '-')}", *limits) for name, limits in LIMITS.items()}
READERS |= {"max_tokens": number("--max-tokens", int, 1), "seed": number("--seed", int, 0)}
SEARCHED = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "greedy",
    "num_samples",
    "stop",
    "batch",
    "interactive",
)  # not with --beams
# other tools' names -> ours
OTHERS = {
    "max-new-tokens": "max-tokens", "n-predict": "max-tokens", "length": "max-tokens", "temp": "temperature", "num-beams": "beams",
    "num-return-sequences": "num-samples", "repeat-penalty": "repetition-penalty", "repeat-last-n": "repetition-window",
    "prompt-file": "file", "batch-size": "batch", "start": "prompt",
}  # fmt: skip


def unknown(flag: str) -> str:
    meant = OTHERS.get(flag.lstrip("-"))
    return f"{flag} is called --{meant} here" if meant else f"{flag} is no flag of this command: --help lists them"


def parser() -> Parser:
    p = Parser("gpt2flat generate", description="Writes text with a trained model.", unknown=unknown)
    p.add_argument("run", nargs="?", metavar="RUN", help=MODEL_HELP)
    g = p.add_argument_group("prompts")
    g.add_argument("-p", "--prompt", metavar="TEXT", action="append",
                   help="text to go on from, several times for several; - is all of standard input; default: the start of a new text")  # fmt: skip
    g.add_argument("--file", metavar="FILE", help="prompts, one on each line; - is standard input; .jsonl: see --jsonl")
    g.add_argument(
        "--jsonl", action="store_true", help='each line of --file is a JSON string, or an object with a "prompt"'
    )
    g.add_argument("--num-samples", type=number("--num-samples", int, 1, 1 << 31), help="texts for each prompt (1)")
    g.add_argument(
        "--batch", type=number("--batch", int, 1, 1 << 20), help=f"texts made at once; it changes none ({stream.BATCH})"
    )
    g.add_argument(
        "-i", "--interactive", action="store_true", help="type prompts in a loop; /help lists what can be changed there"
    )
    g.add_argument("--history", metavar="FILE", help="where --interactive keeps the lines typed; default: nowhere")
    g = p.add_argument_group("choosing tokens")
    g.add_argument("-n", "--max-tokens", type=READERS["max_tokens"], default=256, help="tokens to write (256)")
    for name, text in HELP.items():
        g.add_argument(f"--{name.replace('_', '-')}", type=READERS[name], help=text)
    g.add_argument("--greedy", action="store_true", help="always the likeliest token, as --temperature 0")
    g.add_argument("--seed", type=READERS["seed"], default=0, help="another seed, another text (0)")
    g.add_argument("--stop", metavar="STR", action="append", help="end before this text, several times for several")
    g.add_argument(
        "--beams", type=number("--beams", int, 1, beams.MOST), help="search for the likeliest text with so many beams"
    )
    g.add_argument("--length-penalty", type=number("--length-penalty", float, -1e3, 1e3),
                   help="a beam's log-probability is divided by its length to this power (1)")  # fmt: skip
    g.add_argument("--n-best", type=number("--n-best", int, 1, beams.MOST), help="so many of the best beams (1)")
    g = p.add_argument_group("how")
    g.add_argument("--json", action="store_true", help="a JSON object for each text, with ids and log-probabilities")
    g.add_argument(
        "--weights", choices=tuple(WEIGHTS), default="fp32", help="how weights are kept while writing (fp32)"
    )
    g.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="bf16: products of the prompt round their inputs (fp32)"
    )
    g.add_argument("-v", "--verbose", action="store_true", help="tell on standard error how fast it was")
    threads = "at most; default: physical cores, or OMP_NUM_THREADS"
    g.add_argument("--threads", type=number("--threads", int, 1, MAX_THREADS), help=threads)
    return p


def read_flags(argv: list[str]) -> argparse.Namespace:
    """Raises UsageError for flags that do not go together."""
    args = parser().parse(argv)
    given = {name for name, value in vars(args).items() if value is not None and value is not False}

    def refuse(flag: str, others, why: str) -> None:
        for name in others:
            if name in given:
                raise UsageError(f"--{name.replace('_', '-')} does not go with {flag}: {why}")

    if args.beams:
        refuse("--beams", SEARCHED, "beams are searched for, not drawn, several prompts in turn")
    elif given & {"n_best", "length_penalty"}:
        raise UsageError("--n-best and --length-penalty need --beams")
    if args.greedy:
        refuse("--greedy", ("temperature",), "it is temperature 0")
        args.temperature = 0.0
    if args.interactive:
        refuse(
            "--interactive",
            ("prompt", "file", "jsonl", "num_samples", "batch", "json", "verbose"),
            "prompts are typed there",
        )
    if args.file:
        refuse("--file", ("prompt",), "give one of them")
    elif args.jsonl:
        raise UsageError("--jsonl tells how --file is to be read: give it too")
    if args.history and not args.interactive:
        raise UsageError("--history is that of --interactive")
    args.batch = args.batch or stream.BATCH
    args.length_penalty = 1.0 if args.length_penalty is None else args.length_penalty
    return args


def sampling_of(args) -> Sampling:
    given = {field.name: getattr(args, field.name) for field in fields(Sampling)}
    return Sampling(**{name: value for name, value in given.items() if value is not None})


def prompts_of(args) -> list[str]:
    if args.file:
        return read_prompts(args.file, args.jsonl)
    if (args.prompt or []).count(STDIN) > 1:
        raise UsageError(f"--prompt {STDIN} is there twice, and standard input can be read once only")
    return [read_text(STDIN) if text == STDIN else text for text in args.prompt or [""]]


def body(argv: list[str]) -> int | None:
    args = read_flags(argv)
    prompts = [] if args.interactive else prompts_of(args)
    model, tokenizer, path = open_model(args.run, threads=args.threads, precision=args.precision)
    if args.run is None:
        print(f"from {path}", file=sys.stderr)
    if args.interactive:
        return converse(args, model, tokenizer)
    return write(args, model, tokenizer, prompts)


def write(args, model, tokenizer: Tokenizer | None, prompts: list[str]) -> None:
    """Prints the prompts and what follows them, or JSON."""
    began = time.perf_counter()
    ids = [prompt_ids(prompt, tokenizer) for prompt in prompts]
    texts, eot = Texts(tokenizer, tuple(args.stop or ())), tokenizer.eot if tokenizer else None
    sampling, each = sampling_of(args), args.n_best or args.num_samples or 1
    rows = args.beams or min(args.batch, len(ids) * each)
    decoder = stream.make_decoder(model, ids, args.max_tokens, rows, args.weights)
    if args.beams:
        stops = () if eot is None else (eot,)
        tokens = texts.follow(beams.stream(model, ids, args.max_tokens, args.beams, each, args.length_penalty, stops, sampling,
                                           decoder=decoder))  # fmt: skip
    else:
        tokens = stream.stream(model, ids, args.max_tokens, sampling, each, args.seed, texts.ends, args.batch, log_probs=args.json,
                               decoder=decoder)  # fmt: skip
    seen = [valid(prompt) for prompt in prompts]  # as the model saw them
    tokens, times = timed(tokens)
    parts = show.as_json(tokens, texts, seen, each, eot) if args.json else show.as_text(tokens, texts, seen, each)
    out = writer()
    for text in show.in_order(parts):
        out(text)
    if args.verbose:
        print(told(began, times, sum(map(len, ids)), decoder, not args.beams), file=sys.stderr)


def timed(tokens: Iterable) -> tuple[Iterator, list[float]]:
    """The same tokens, and when each of them was there."""
    times = []

    def note():
        for token in tokens:
            times.append(time.perf_counter())
            yield token

    return note(), times


def told(began: float, times: list[float], known: int, decoder, streamed: bool) -> str:
    """How fast it was, and what packing the weights has cost. streamed: ids came as they were made."""
    first, rest = times[0] - began, times[-1] - times[0]
    rate = f", then {(len(times) - 1) / rest:.1f} tokens/s" if streamed and rest else ""
    off = f"; {decoder.weights} weights are {100 * decoder.error['all']:.2g}% off" if decoder.error else ""
    return f"{known} tokens of prompts, {len(times)} written: the first {first:.2f} s after loading{rate}{off}"


def writer():
    """What prints text at once, safe for a terminal where there is one."""
    safe = escape_controls if sys.stdout.isatty() else str
    return lambda text: print(safe(text), end="", flush=True)


def converse(args, model, tokenizer: Tokenizer | None) -> int:
    """The prompt loop."""
    if tokenizer is None:
        raise UsageError("--interactive needs a tokenizer, and none is beside the model")
    if sys.stdin is None:
        raise DataError("standard input is closed, expected the one who types")
    sys.stdin.reconfigure(errors="replace")
    out = writer()
    conversation = Talk(model, tokenizer, sampling_of(args), args.max_tokens, args.seed, tuple(args.stop or ()), READERS, out,
                        StopSignal, args.weights)  # fmt: skip
    typed = sys.stdin.isatty()
    if typed:
        print("type text to go on from; /help lists what else there is, Ctrl-D ends", file=sys.stderr)
    with line_history(args.history if typed else None):
        return talk(conversation, (lambda prompt: input(prompt if typed else "")), out)


@contextlib.contextmanager
def line_history(path: str | None):
    """Line editing where Python has it, and the lines of earlier times."""
    try:
        import readline
    except ImportError:
        readline = None
    if not (readline and path):
        yield
        return
    try:
        with open(path, "ab") as kept:  # a file that cannot be written is told before anything is typed
            known = kept.tell()
        if known:
            readline.read_history_file(path)
    except OSError as problem:
        raise DataError(f"--history {path}: cannot be kept: {reason(problem)}: name another file") from None
    try:
        yield
    finally:
        readline.set_history_length(1000)
        try:
            readline.write_history_file(path)
        except OSError as problem:
            print(f"note: --history {path}: not kept: {reason(problem)}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    return run("generate", body, argv)


if __name__ == "__main__":
    sys.exit(main())
