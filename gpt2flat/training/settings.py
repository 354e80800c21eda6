"""Every setting of a training run: one table that drives flags, defaults, checks and the config.toml of a run.

Settings resolve as defaults < preset < config file < flags; a resumed run puts its own in place of the first three. Nothing
here prints or reads files; names of other tools are in names.py."""

import difflib
import re
from dataclasses import dataclass
from types import SimpleNamespace

from ..arch.gpt2 import RECOMPUTE
from ..errors import UsageError
from ..kernels import MAX_THREADS
from .names import OTHERS

INF = float("inf")
DIGITS = 18  # of a whole number: it fits 64 bits


@dataclass(frozen=True)
class Setting:
    """One setting. `letter` is llm.c's short flag. `checkpoint` and `scratch` are the two columns of defaults: from a
    checkpoint llm.c's own, from scratch those of a good small run; None = found out from the model or the data.
    Values lie in low <= x <= high, and below `below`, are one of `choices` or match `pattern` (words says what it means).
    `switch`: the value of the flag alone. `this_start`: it is about one start of a run and no part of the run."""

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
    pattern: str = ""
    words: str = ""
    switch: object = None
    this_start: bool = False

    @property
    def flag(self) -> str:
        return flag_of(self.name)

    @property
    def metavar(self) -> str:
        return "|".join(self.choices) or self.words.split(",")[0] or {int: "N", float: "X", bool: "0|1", str: "TEXT"}[self.kind]

    def parse(self, text: str):
        """The value of a flag's text. Raises UsageError that says what was expected."""
        try:
            value = READ[self.kind](text)
        except ValueError:
            raise UsageError(f"{self.flag} {text!r}: expected {self.expected()}") from None
        self.check(value)
        return value

    def of_file(self, value):
        """The value of a TOML file's entry. Raises UsageError for another kind or a value out of range."""
        if self.kind is float and type(value) is int:
            value = float(value)
        if type(value) is not self.kind:
            raise UsageError(f"{self.name} = {value!r}: expected {self.expected()}")
        self.check(value)
        return value

    def check(self, value) -> None:
        """Raises UsageError for a value out of range."""
        outside = (
            (self.choices and value not in self.choices)
            or (self.pattern and not re.fullmatch(self.pattern, value, re.ASCII))
            or (self.low is not None and not value >= self.low)  # `not >=` is true of NaN
            or (self.high is not None and not value <= self.high)
            or (self.below is not None and not value < self.below)
        )
        if outside:
            raise UsageError(f"{self.flag} {value}: expected {self.expected()}")

    def expected(self) -> str:
        """ "a whole number, at least 1"."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.pattern:
            return self.words
        bounds = {"at least": self.low, "at most": self.high, "below": self.below}
        limits = [f"{word} {bound}" for word, bound in bounds.items() if bound not in (None, INF)]
        return ", ".join([_WORDS[self.kind], *limits])


def _read_bool(text: str) -> bool:
    words = {"1": True, "true": True, "0": False, "false": False}
    if text.lower() not in words:
        raise ValueError(text)
    return words[text.lower()]


def _read_whole(text: str) -> int:
    if not re.fullmatch(rf"[+-]?[0-9]{{1,{DIGITS}}}", text):
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
      "weights: a .bin checkpoint, a run, a Hugging Face folder, nanoGPT's ckpt.pt, hf:gpt2 or OWNER/NAME for a model of the Hub; or a "
      "shape to start from scratch: tiny, d12, gpt2 (its shape only), gpt2:d24, gpt3:c768 ...; default data/gpt2_124M.bin if it is "
      "there, else tiny"),
    S("n_layer",           "",  int,   None,       None,     "layers", low=1),
    S("n_head",            "",  int,   None,       None,     "attention heads", low=1),
    S("n_embd",            "",  int,   None,       None,     "channels", low=1),
    S("block_size",        "",  int,   None,       None,
      "longest context; one smaller than the checkpoint's crops its position embeddings", low=1),
    S("vocab_size",        "",  int,   None,       None,     "vocabulary; default that of the tokenizer", low=1),
    S("train_data",        "i", str,   None,       None,     "token files (a path or a glob pattern) or a text file"),
    S("val_data",          "j", str,   None,       None,     "the same for validation"),
    S("dataset",           "",  str,   None,       None,
      "a pair <name>_train.bin, <name>_val.bin under data/ or $GPT2FLAT_DATA by its name; pydoc: the built-in text"),
    S("tokenizer",         "",  str,   None,       None,
      "how text becomes ids; default that of the checkpoint, gpt2 if the vocabulary is 50257, else byte",
      pattern=r"gpt2|byte|char|bpe:\d{3,5}", words="gpt2|byte|char|bpe:N"),
    S("val_fraction",      "",  float, 0.1,        0.1,      "the last part of a text, for validation", low=0, below=1),
    S("out",               "o", str,   None,       None,     "run directory; default runs/<preset>-<data>-001 ..."),
    S("batch_size",        "b", int,   4,          12,       "rows per update, B", low=1),
    S("seq_len",           "t", int,   None,       None,
      "tokens per row, T; default 64, or the block size if that is smaller", low=1),
    S("total_batch_size",  "d", int,   None,       None,
      "tokens per update, a multiple of B x T: gradients of several batches are added up; default B x T", low=1),
    S("steps",             "x", int,   41,         2000,     "optimizer updates; -1: one epoch", low=-1),
    S("epochs",            "",  float, None,       None,     "how often to go over the data, in place of --steps", low=0, below=1e9),
    S("max_time",          "",  str,   None,       None,     "stop and save after this long: 90s, 30m, 8h, 2d", pattern=r"\d{1,9}(\.\d{1,3})?[smhd]?",
      words="TIME, a number of seconds, or with m, h or d of minutes, hours, days", this_start=True),
    S("lr",                "l", float, 1e-4,       1e-3,     "learning rate, at its highest", low=0, below=1e6),
    S("warmup",            "u", float, 0.0,        100.0,
      "updates of linear warm-up, or a fraction of all if below 1; 0: off", low=0, below=INF),
    S("final_lr_fraction", "q", float, 1.0,        0.1,
      "the learning rate at the end, as a fraction of --lr; 1: no decay", low=0, high=1),
    S("schedule",          "k", str,   "constant", "cosine",
      "how the learning rate falls; constant: not at all, wsd: over the last fifth", choices=("cosine", "linear", "constant", "wsd")),
    S("weight_decay",      "c", float, 0.0,        0.1,      "decay of matrices and embeddings", low=0, below=1e6),
    S("decay_all",         "",  bool,  False,      False,    "decay biases and layernorms too, as llm.c's C test"),
    S("beta1",             "",  float, 0.9,        0.9,      "AdamW's average of gradients", low=0, below=1),
    S("beta2",             "",  float, 0.999,      0.99,     "AdamW's average of their squares", low=0, below=1),
    S("eps",               "",  float, 1e-8,       1e-8,     "AdamW's epsilon", low=1e-30, below=1e38),
    S("grad_clip",         "",  float, 0.0,        1.0,      "largest gradient norm; 0: off", low=0, below=1e38),
    S("skip_loss_z",       "sl", float, 0.0,       0.0,
      "skip updates whose loss is so many standard deviations above the mean of the last 128; 0: off", low=0, below=INF),
    S("skip_norm_z",       "sg", float, 0.0,       0.0,      "the same of gradient norms", low=0, below=INF),
    S("on_nonfinite",      "",  str,   "stop",     "stop",
      "when a loss or gradient is NaN or infinite, which never reaches the weights: stop; leave out the update, at most K in a row; "
      "or go back to the last checkpoint and leave out that batch, at most K times in a row",
      pattern=r"stop|(skip|rollback):[1-9]\d{0,8}", words="stop|skip:K|rollback:K"),
    S("dropout",           "",  float, 0.0,        0.0,      "share of embeddings, attention and residuals that is zeroed", low=0, below=1),
    S("overfit",           "a", bool,  False,      False,    "train on the first batch again and again"),
    S("val_every",         "v", int,   10,         250,
      "validate before every so many updates, the first among them, and after the last; 0: never", low=0),
    S("val_batches",       "m", int,   5,          20,       "batches per validation; -1: all", low=-1),
    S("sample_every",      "s", int,   20,         500,
      "write a sample after every so many updates, and after the last; 0: never", low=0),
    S("sample_tokens",     "g", int,   64,         160,      "tokens per sample", low=1),
    S("sample_prompt",     "",  str,   None,       None,     "text that samples go on from"),
    S("checkpoint_every",  "n", int,   0,          0,
      "save after every so many updates; 0: only at the end, on Ctrl-C and by the clock", low=0),
    S("checkpoint_minutes", "", float, 10.0,       10.0,     "also save when so many minutes have gone by; 0: off", low=0, below=INF),
    S("keep",              "nk", int,  3,          3,
      "how many of the newest checkpoints stay, beside the best by validation loss; 0: all", low=0),
    S("keep_major",        "nm", int,  0,          0,        "checkpoints after multiples of so many updates stay, too; 0: none", low=0),
    S("resume",            "y", str,   None,       None,
      "go on with a run: DIR, else --out, else the newest one; 1: start if there is none", words="0|1|DIR", pattern="(?s).+", switch="newest", this_start=True),
    S("override",          "",  str,   None,       None,
      "go on although these changed, separated by commas: data, vocabulary, isa, settings", words="NAMES, out of data, vocabulary, isa, settings, separated by commas", pattern=r"[a-z,]+", this_start=True),
    S("config",            "",  str,   None,       None,     "settings from a file: NAME = VALUE as in a run's config.toml", this_start=True),
    S("report_to",         "",  str,   None,       None,
      "also write TensorBoard's or wandb's records, separated by commas", words="NAMES, of tensorboard and wandb, separated by commas", pattern=r"(none|tensorboard|wandb)(,(tensorboard|wandb))*"),
    S("log_every",         "",  int,   1,          50,       "print a line for every so many updates; 0: none", low=0),
    S("attention",         "",  str,   "flash",    "flash",
      "standard keeps the matrices, to look at; QxK: queries and keys of a tile",
      pattern=r"flash(:\d+x\d+)?|standard", words="flash|flash:QxK|standard"),
    S("precision",         "",  str,   "fp32",     "fp32",
      "bf16: matrix products round their inputs, and add in float32; auto: what is faster here", choices=("fp32", "bf16", "auto")),
    S("recompute",         "r", int,   0,          0,
      "what backward computes again instead of keeping it, for less memory and the same bits: 1 GELU, 2 also layernorms, "
      "3 whole blocks", low=0, high=RECOMPUTE),
    S("fused",             "",  bool,  True,       True,
      "GELU and residuals within matrix products, for less memory and the same bits; 0: apart, to look at"),
    S("threads",           "",  int,   None,       None,
      "at most; default: the physical cores this process may use, or OMP_NUM_THREADS", low=1, high=MAX_THREADS),
    S("backend",           "",  str,   "auto",     "auto",   "which kernels: C, or the same in Numba",
      choices=("auto", "c", "numba")),
    S("seed",              "",  int,   42,         42,       "of weights, samples and dropout", low=0, high=(1 << 32) - 1),
    S("data_seed",         "",  int,   42,         42,       "of the order of the data; 42 is llm.c's", low=0, high=(1 << 32) - 1),
    S("trace",             "",  bool,  False,      False,    "check what every kernel call wrote; slow"),
)}
# fmt: on
SHAPE = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")


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


def accumulation(s) -> int:
    """Batches whose gradients are added up for one update."""
    return (s.total_batch_size or s.batch_size * s.seq_len) // (s.batch_size * s.seq_len)


def seconds_of(text: str | None) -> float:
    """A --max-time in seconds; None is for ever."""
    if text is None:
        return INF
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    return float(text.rstrip("smhd")) * unit.get(text[-1], 1)


def policy_of(text: str) -> tuple[str, int]:
    """("skip", 3) of an --on-nonfinite "skip:3"; ("stop", 0)."""
    name, _, count = text.partition(":")
    return name, int(count or 0)


def resolve(given: dict[str, object], preset: dict[str, object], from_checkpoint: bool) -> SimpleNamespace:
    """All settings by name: the column's defaults, over them `preset` (a model's shape), over them `given` (config file and flags).

    Raises UsageError for names that are no setting, values out of range and settings that do not go together."""
    values = {name: s.checkpoint if from_checkpoint else s.scratch for name, s in SETTINGS.items()}
    return settle(values | preset, given)


def without_other_data(values: dict[str, object], given: dict[str, object]) -> dict[str, object]:
    """`values` without the data they name where `given` names other data."""
    named = [name for name in ("train_data", "dataset") if given.get(name)]
    other = {"train_data": ("dataset",), "dataset": ("train_data", "val_data")}
    return values | {gone: None for name in named for gone in other[name] if gone in values}


def settle(values: dict[str, object], given: dict[str, object]) -> SimpleNamespace:
    """`values` (all settings) with `given` over them, checked one by one and together. Raises UsageError."""
    for name in given:
        if name not in SETTINGS:
            raise UsageError(unknown(name))
    values = without_other_data(values, given) | {name: value for name, value in given.items() if value is not None}
    for name, value in values.items():
        if value is not None:
            SETTINGS[name].check(value)
    s = SimpleNamespace(**values)
    if s.schedule == "constant" and "schedule" not in given and (given.get("warmup") or given.get("final_lr_fraction", 1) != 1):
        raise UsageError(
            "--warmup and --final-lr-fraction do nothing with a constant schedule, the default from a checkpoint: add "
            "--schedule cosine, or --schedule constant to have it so"
        )
    if "steps" in given:
        if "epochs" in given:
            raise UsageError("--steps and --epochs both say how long to train: give one of them")
        s.epochs = None  # of the run that is resumed
    if s.seq_len is None:
        s.seq_len = min(64, s.block_size)
    if s.seq_len > s.block_size:
        raise UsageError(f"--seq-len {s.seq_len}: the model's block size is {s.block_size}, expected at most that")
    if s.total_batch_size is not None and s.total_batch_size % (s.batch_size * s.seq_len):
        raise UsageError(
            f"--total-batch-size {s.total_batch_size}: expected a multiple of --batch-size x --seq-len = {s.batch_size * s.seq_len} tokens"
        )
    if s.val_batches == 0:
        raise UsageError("--val-batches 0: expected at least 1, or -1 for all; --val-every 0 turns validation off")
    return s
