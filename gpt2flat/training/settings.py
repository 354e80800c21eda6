"""Every setting of a training run: one table that drives flags, defaults, checks and the config.toml of a run.

SETTINGS are what can be set; REFUSED is what later versions and llm.c's GPU program know and this one does not; OTHERS
are the names of other tools. Settings resolve as defaults < preset < flags. Nothing here prints or reads files."""

import difflib
import re
from dataclasses import dataclass
from types import SimpleNamespace

from ..arch.gpt2 import RECOMPUTE
from ..errors import UsageError
from ..kernels import MAX_THREADS

INF = float("inf")


@dataclass(frozen=True)
class Setting:
    """One setting. `letter` is llm.c's short flag. `checkpoint` and `scratch` are the two columns of defaults: from a
    checkpoint llm.c's own, from scratch those of a good small run; None = found out from the model or the data.
    Values lie in low <= x <= high, and below `below`, or are one of `choices`; `later` ones are to come."""

    name: str
    letter: str
    kind: type
    checkpoint: object
    scratch: object
    help: str
    low: float | None = None
    high: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    later: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        return flag_of(self.name)

    @property
    def metavar(self) -> str:
        return "|".join(self.choices) or {int: "N", float: "X", bool: "0|1", str: "TEXT"}[self.kind]

    def parse(self, text: str):
        """The value of a flag's text. Raises UsageError that says what was expected."""
        try:
            value = READ[self.kind](text)
        except ValueError:
            raise UsageError(f"{self.flag} {text!r}: expected {self.expected()}") from None
        self.check(value)
        return value

    def check(self, value) -> None:
        """Raises UsageError for a value out of range."""
        outside = (
            (self.choices and re.sub(r":\d+x\d+$", ":QxK", value) not in self.choices)
            or (self.low is not None and not value >= self.low)  # `not >=` is true of NaN
            or (self.high is not None and not value <= self.high)
            or (self.below is not None and not value < self.below)
        )
        if value in self.later:
            raise UsageError(f"{self.flag} {value} comes with a later version: expected {self.expected()}")
        if outside:
            raise UsageError(f"{self.flag} {value}: expected {self.expected()}")

    def expected(self) -> str:
        """ "a whole number, at least 1"."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        bounds = {"at least": self.low, "at most": self.high, "below": self.below}
        limits = [f"{word} {bound}" for word, bound in bounds.items() if bound not in (None, INF)]
        return ", ".join([_WORDS[self.kind], *limits])


def _read_bool(text: str) -> bool:
    words = {"1": True, "true": True, "0": False, "false": False}
    if text.lower() not in words:
        raise ValueError(text)
    return words[text.lower()]


def _read_whole(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise ValueError(text)
    return int(text)


def _read_number(text: str) -> float:
    if "_" in text:  # 1_000 is Python's, not a number's
        raise ValueError(text)
    return float(text)


def _read_text(text: str) -> str:
    if not text:
        raise ValueError("empty")
    return text


READ = {int: _read_whole, float: _read_number, str: _read_text, bool: _read_bool}
_WORDS = {int: "a whole number", float: "a finite number", str: "text", bool: "0 or 1"}


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


# fmt: off
S = Setting
SETTINGS = {s.name: s for s in (
    #  name              letter kind  checkpoint  scratch
    S("init",              "e", str,   None,       None,
      "a .bin checkpoint, or a shape to start from scratch: tiny, d12, gpt2:d24, gpt3:c768 ...; default "
      "data/gpt2_124M.bin if it is there, else tiny"),
    S("n_layer",           "",  int,   None,       None,     "layers", low=1),
    S("n_head",            "",  int,   None,       None,     "attention heads", low=1),
    S("n_embd",            "",  int,   None,       None,     "channels", low=1),
    S("block_size",        "",  int,   None,       None,
      "longest context; one smaller than the checkpoint's crops its position embeddings", low=1),
    S("vocab_size",        "",  int,   None,       None,     "vocabulary; default that of the tokenizer", low=1),
    S("train_data",        "i", str,   None,       None,     "token files (a path or a glob pattern) or a text file"),
    S("val_data",          "j", str,   None,       None,     "the same for validation"),
    S("dataset",           "",  str,   None,       None,
      "a pair <name>_train.bin, <name>_val.bin under data/ or $GPT2FLAT_DATA, by its name"),
    S("tokenizer",         "",  str,   None,       None,
      "how text becomes ids; default that of the checkpoint, gpt2 if the vocabulary is 50257, else byte",
      choices=("gpt2", "byte", "char")),
    S("val_fraction",      "",  float, 0.1,        0.1,      "the last part of a text, for validation", low=0, below=1),
    S("out",               "o", str,   None,       None,     "run directory; default runs/<preset>-<data>-001 ..."),
    S("batch_size",        "b", int,   4,          12,       "rows per update, B", low=1),
    S("seq_len",           "t", int,   None,       None,
      "tokens per row, T; default 64, or the block size if that is smaller", low=1),
    S("steps",             "x", int,   41,         2000,     "optimizer updates; -1: one epoch", low=-1),
    S("lr",                "l", float, 1e-4,       1e-3,     "learning rate, at its highest", low=0, below=1e6),
    S("warmup",            "u", float, 0.0,        100.0,
      "updates of linear warm-up, or a fraction of all if below 1; 0: off", low=0, below=INF),
    S("final_lr_fraction", "q", float, 1.0,        0.1,
      "the learning rate at the end, as a fraction of --lr; 1: no decay", low=0, high=1),
    S("schedule",          "k", str,   "constant", "cosine",
      "how the learning rate falls, constant: not at all", choices=("cosine", "constant"), later=("linear", "wsd")),
    S("weight_decay",      "c", float, 0.0,        0.1,      "decay of matrices and embeddings", low=0, below=1e6),
    S("decay_all",         "",  bool,  False,      False,    "decay biases and layernorms too, as llm.c's C test"),
    S("beta1",             "",  float, 0.9,        0.9,      "AdamW's average of gradients", low=0, below=1),
    S("beta2",             "",  float, 0.999,      0.99,     "AdamW's average of their squares", low=0, below=1),
    S("eps",               "",  float, 1e-8,       1e-8,     "AdamW's epsilon", low=1e-30, below=1e38),
    S("grad_clip",         "",  float, 0.0,        1.0,      "largest gradient norm; 0: off", low=0, below=1e38),
    S("val_every",         "v", int,   10,         250,
      "validate before every so many updates, the first among them, and after the last; 0: never", low=0),
    S("val_batches",       "m", int,   5,          20,       "batches per validation; -1: all", low=-1),
    S("sample_every",      "s", int,   20,         500,
      "write a sample after every so many updates, and after the last; 0: never", low=0),
    S("sample_tokens",     "g", int,   64,         160,      "tokens per sample", low=1),
    S("sample_prompt",     "",  str,   None,       None,     "text that samples go on from"),
    S("log_every",         "",  int,   1,          50,       "print a line for every so many updates; 0: none", low=0),
    S("attention",         "",  str,   "flash",    "flash",
      "standard keeps the matrices, to look at; QxK: queries and keys of a tile",
      choices=("flash", "flash:QxK", "standard")),
    S("precision",         "",  str,   "fp32",     "fp32",
      "bf16: matrix products round their inputs, and add in float32; auto: what is faster here", choices=("fp32", "bf16", "auto")),
    S("recompute",         "r", int,   0,          0,
      "what backward computes again instead of keeping it, for less memory and the same bits: 1 GELU, 2 also layernorms, "
      "3 whole blocks", low=0, high=RECOMPUTE),
    S("fused",             "",  bool,  True,       True,
      "GELU and residuals within matrix products, for less memory and the same bits; 0: apart, to look at"),
    S("threads",           "",  int,   None,       None,
      "default: the physical cores this process may use, or OMP_NUM_THREADS", low=1, high=MAX_THREADS),
    S("backend",           "",  str,   "auto",     "auto",   "which kernels: C, or the same in Numba",
      choices=("auto", "c", "numba")),
    S("seed",              "",  int,   42,         42,       "of weights and samples", low=0, high=(1 << 32) - 1),
    S("trace",             "",  bool,  False,      False,    "check what every kernel call wrote; slow"),
)}
# fmt: on
SHAPE = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")


@dataclass(frozen=True)
class Refused:
    """A flag that is known but not served; values in `fine` ask for what happens anyway and pass in silence."""

    flags: tuple[str, ...]
    fine: tuple[str, ...]
    advice: str

    def served(self, value: str) -> bool:
        return value in self.fine or any(_same_number(value, fine) for fine in self.fine)


def _same_number(a: str, b: str) -> bool:
    try:
        return float(a) == float(b)
    except ValueError:
        return False


_NEXT = "comes with a later version: leave it out"
_GPU = "is for llm.c on GPUs: leave it out"
REFUSED = tuple(
    Refused(tuple(flags.split()), fine, advice)
    for flags, fine, advice in (
        ("-d --total-batch-size", (), _NEXT + ", an update is --batch-size times --seq-len tokens"),
        ("--epochs", (), _NEXT + ", --steps -1 is one epoch"),
        ("-n --checkpoint-every", ("0",), _NEXT + ", a run is saved at its end and on Ctrl-C"),
        ("-nk --keep", ("0",), _NEXT),
        ("-nm --keep-major", ("0",), _NEXT),
        ("-y --resume", ("0",), _NEXT + ", --init CHECKPOINT.bin goes on from its weights"),
        ("-a --overfit", ("0",), _NEXT),
        ("--dropout", ("0",), _NEXT),
        ("--config", (), _NEXT + ", give flags"),
        ("-h --hellaswag", ("0",), "evaluation " + _NEXT),
        ("-sl", ("0",), "skipping of outliers " + _NEXT),
        ("-sg", ("0",), "skipping of outliers " + _NEXT),
        ("-z", ("0",), _GPU),
        ("-f", ("0",), _GPU),
        ("-w", ("1",), _GPU),
        ("-ge", ("0",), _GPU),
        ("-lg", ("-1", "0"), _GPU),
        ("-pn", ("1",), "several processes: " + _NEXT),
        ("-pr", ("0",), "several processes: " + _NEXT),
        ("-pg", ("1", "8"), _GPU),
        ("-pi", ("mpi",), "several processes: " + _NEXT),
        ("-pf", ("",), "several processes: " + _NEXT),
        ("-ps", ("",), "several processes: " + _NEXT),
    )
)
# What other tools (nanoGPT, llm.c's train_gpt2.py, Hugging Face's Trainer) call things: the flag here.
OTHERS = {
    "max_iters": "--steps",
    "max_steps": "--steps",
    "num_iterations": "--steps",
    "lr_decay_iters": "--steps (the schedule ends there)",
    "learning_rate": "--lr",
    "min_lr": "--final-lr-fraction (a fraction of --lr)",
    "learning_rate_decay_frac": "--final-lr-fraction",
    "decay_lr": "--schedule cosine or constant",
    "lr_scheduler_type": "--schedule",
    "warmup_iters": "--warmup",
    "warmup_steps": "--warmup",
    "warmup_ratio": "--warmup (a fraction below 1)",
    "eval_interval": "--val-every",
    "eval_steps": "--val-every",
    "val_loss_every": "--val-every",
    "eval_iters": "--val-batches",
    "val_max_steps": "--val-batches",
    "log_interval": "--log-every",
    "logging_steps": "--log-every",
    "gradient_accumulation_steps": "--batch-size (accumulation comes with a later version)",
    "per_device_train_batch_size": "--batch-size",
    "sequence_length": "--seq-len",
    "max_seq_len": "--block-size",
    "context_length": "--block-size",
    "n_layers": "--n-layer",
    "num_layers": "--n-layer",
    "n_heads": "--n-head",
    "num_heads": "--n-head",
    "d_model": "--n-embd",
    "hidden_size": "--n-embd",
    "channels": "--n-embd",
    "input_bin": "--train-data",
    "input_val_bin": "--val-data",
    "data": "--train-data or --dataset",
    "out_dir": "--out",
    "output_dir": "--out",
    "init_from": "--init",
    "model": "--init",
    "preset": "--init",
    "checkpoint": "--init",
    "max_grad_norm": "--grad-clip",
    "adam_beta1": "--beta1",
    "adam_beta2": "--beta2",
    "adam_epsilon": "--eps",
    "dtype": "--precision fp32, bf16 or auto",
    "flash": "--attention flash or standard",
    "device": "--backend and --threads",
    "compile": "no such flag: the kernels are compiled already",
    "num_threads": "--threads",
    "max_new_tokens": "--sample-tokens",
    "save_interval": "--checkpoint-every (which comes with a later version)",
    "save_steps": "--checkpoint-every (which comes with a later version)",
}


def unknown(name: str) -> str:
    """What to say about a flag or key that no table has: names the flag that is meant."""
    key = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    if key in OTHERS:
        return f"{name} is called {OTHERS[key]} here" if OTHERS[key].startswith("--") else f"{name}: {OTHERS[key]}"
    if key in SETTINGS:
        return f"{name}: write {SETTINGS[key].flag}"
    near = difflib.get_close_matches(key, [*SETTINGS, *OTHERS], 1, 0.7)
    hint = f", is {SETTINGS[near[0]].flag if near[0] in SETTINGS else OTHERS[near[0]]} meant?" if near else ""
    return f"{name} is not a flag of this command{hint or ': --help lists them'}"


def resolve(given: dict[str, object], preset: dict[str, object], from_checkpoint: bool) -> SimpleNamespace:
    """All settings by name: the column's defaults, over them `preset` (a model's shape), over them `given` (flags).

    Raises UsageError for names that are no setting, values out of range and settings that do not go together."""
    for name in given:
        if name not in SETTINGS:
            raise UsageError(unknown(name))
    values = {name: s.checkpoint if from_checkpoint else s.scratch for name, s in SETTINGS.items()}
    values |= preset | {name: value for name, value in given.items() if value is not None}
    for name, value in values.items():
        if value is not None:
            SETTINGS[name].check(value)
    s = SimpleNamespace(**values)
    if s.schedule == "constant" and "schedule" not in given and (given.get("warmup") or given.get("final_lr_fraction", 1) != 1):
        raise UsageError(
            "--warmup and --final-lr-fraction do nothing with a constant schedule, the default from a checkpoint: add "
            "--schedule cosine, or --schedule constant to have it so"
        )
    if s.seq_len is None:
        s.seq_len = min(64, s.block_size)
    if s.seq_len > s.block_size:
        raise UsageError(f"--seq-len {s.seq_len}: the model's block size is {s.block_size}, expected at most that")
    if s.val_batches == 0:
        raise UsageError("--val-batches 0: expected at least 1, or -1 for all; --val-every 0 turns validation off")
    return s
