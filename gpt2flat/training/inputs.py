"""What a run starts from: a checkpoint or a shape, text or token files, and the tokenizer that joins the two.

Everything is checked here before a model is made. Which folders to look in is the caller's to say."""

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..arch.gpt2 import PRESETS, GPT2Config
from ..data import corpus, huggingface_tokenizer
from ..data.tokenizer import Tokenizer, make_tokenizer
from ..data.tokens import ArrayShard, Shard, check_ids, find_datasets, find_shards
from ..errors import DataError, UsageError
from ..formats import hub, llmc
from ..weights import find_shape
from .run import find_checkpoint
from .settings import SHAPE, flag_of

DEFAULT_CHECKPOINT, DEFAULT_PRESET = "gpt2_124M.bin", "tiny"
BUILTIN = "pydoc"  # --dataset of the text that every Python carries
CHECKED_TOKENS = 1 << 26  # a tenth of a second
TOKENIZER_FILES = ("tokenizer.bin", "gpt2_tokenizer.bin")


@dataclass(frozen=True)
class Start:
    """Where the weights come from: a file or folder (`path`) or random numbers (None). `name` is for people, `asked` what --init
    was given, or would have been."""

    name: str
    path: Path | None
    config: GPT2Config
    asked: str = ""

    def shape(self) -> dict[str, int]:
        return {name: getattr(self.config, name) for name in SHAPE}


@dataclass(frozen=True)
class Data:
    """Shards to train on and to validate with (none: no validation). vocab_size is what a model must have; tokenizer is
    None when nothing tells what the ids mean. `about` describes it in one line."""

    name: str
    train: list[Shard]
    val: list[Shard]
    tokenizer: Tokenizer | None
    vocab_size: int
    about: str


# --- the model -------------------------------------------------------------------------------------------------------


def find_start(init: str | None, tokenizer: str | None, folders: list[Path]) -> Start:
    """The weights or the shape that --init names; without it gpt2_124M.bin in `folders`, else the preset `tiny`.

    Raises FormatError, CheckpointError for what holds no weights, UsageError for a name that is no shape, DataError."""
    if init is None:
        found = [folder / DEFAULT_CHECKPOINT for folder in folders if (folder / DEFAULT_CHECKPOINT).is_file()]
        init = str(found[0]) if found and tokenizer in (None, "gpt2") else DEFAULT_PRESET
    if Path(init).is_dir() and init not in PRESETS:
        init = str(find_checkpoint(init))  # of a run, say
    config, path = find_shape(init)
    asked = str(path) if path and not hub.repository(init) else init
    return Start(hub.plain_name(path) if path else init, path, config, asked)


def shape_of(start: Start, given: dict) -> GPT2Config:
    """The shape of the model: that of `start`, changed by flags. Raises UsageError if they clash with a checkpoint."""
    wanted = {name: given[name] for name in SHAPE if given.get(name) is not None}
    if start.path is None:
        return GPT2Config(**(start.shape() | wanted))
    for name, value in wanted.items():
        have = getattr(start.config, name)
        if value != have and not (name == "block_size" and value < have):
            cure = "only a smaller one can be cut out of it" if name == "block_size" else "leave the flag out"
            raise UsageError(f"{flag_of(name)} {value}: {start.path} has {have}: {cure}")
    if "block_size" in wanted:
        return GPT2Config(**{**start.shape(), **wanted, "padded_vocab_size": start.config.padded_vocab_size})
    return start.config


# --- the data --------------------------------------------------------------------------------------------------------


def find_data(s, start: Start, folders: list[Path]) -> Data:
    """The data that the flags name; without any the pair of token files in `folders`, else the built-in text.

    s: train_data, val_data, dataset, tokenizer, val_fraction, vocab_size, val_every. Raises UsageError, DataError,
    FormatError."""
    if s.dataset and s.train_data:
        raise UsageError("--dataset and --train-data both name the data: leave one out")
    if s.val_data and not s.train_data:
        raise UsageError("--val-data needs --train-data beside it")
    if s.train_data:
        return _text_file(s, start) if _is_text(s.train_data) else _token_files(s, start, s.train_data, s.val_data)
    pairs = find_datasets(folders)
    if s.dataset == BUILTIN and BUILTIN not in pairs:
        return _text(s, start, corpus.builtin(), None)
    if s.dataset or not s.tokenizer:
        if s.dataset and s.dataset not in pairs:
            there = f"there are {', '.join(pairs)}" if pairs else f"no pair of token files is in {_names(folders)}"
            raise DataError(f"--dataset {s.dataset}: {there} (a pair is NAME_train.bin and NAME_val.bin)")
        if len(pairs) > 1 and not s.dataset:
            raise UsageError(
                f"several datasets are in {_names(folders)}: say --dataset NAME, one of {', '.join(pairs)}"
            )
        if pairs:
            train, val = pairs[s.dataset or next(iter(pairs))]
            return _token_files(s, start, str(train), str(val))
    return _text(s, start, corpus.builtin(), None)


def _names(folders: list[Path]) -> str:
    return " and ".join(f"{folder}/" for folder in folders)


def _is_text(path: str) -> bool:
    """Whether a --train-data is a text file: not a pattern, not named .bin, and without the start of an llm.c file."""
    if path.endswith(".bin") or (glob.has_magic(path) and not os.path.exists(path)):
        return False
    return llmc.kind_of(path) is None


def _wanted_vocab(s, start: Start) -> int | None:
    """V where it is fixed already: by the checkpoint or by a flag."""
    return start.config.vocab_size if start.path else s.vocab_size


def _agree(s, start: Start, tokenizer: Tokenizer, where: str) -> None:
    wanted = _wanted_vocab(s, start)
    if wanted in (None, tokenizer.vocab_size):
        return
    what = f"{start.path} has" if start.path else "--vocab-size is"
    raise UsageError(
        f"the vocabularies clash: {what} {wanted}, {where} has {tokenizer.vocab_size} tokens: take data and tokenizer "
        "that belong to the model, or start from scratch without --vocab-size (it is padded to a multiple of 128)"
    )


def _text_file(s, start: Start) -> Data:
    if s.val_data and not _is_text(s.val_data):
        raise UsageError(f"--val-data {s.val_data}: expected a text file, as --train-data is one")
    return _text(s, start, corpus.read_text(s.train_data), corpus.read_text(s.val_data) if s.val_data else None)


def _text(s, start: Start, train: corpus.Corpus, val: corpus.Corpus | None) -> Data:
    tokenizer = _text_tokenizer(s, start, train.text + (val.text if val else ""))
    _agree(s, start, tokenizer, f"the {tokenizer.kind} tokenizer")
    ids = tokenizer.encode_documents(train.documents)
    if val:
        held_out = tokenizer.encode_documents(val.documents)
        kept = f"{len(held_out):,} of {val.name}"
    else:
        ids, held_out = corpus.split(ids, s.val_fraction if s.val_every else 0.0)
        kept = f"the last {len(held_out):,}" if len(held_out) else "none"
    about = (f"{train.name}, sha256 {train.sha256[:16]}: {len(ids):,} tokens to train on, {kept} for validation "
             f"({tokenizer.kind} tokenizer, V {tokenizer.vocab_size})")  # fmt: skip
    val_name = val.name if val else f"{train.name} (its last part, see --val-fraction)"
    shards = [ArrayShard(held_out, val_name)] if len(held_out) else []
    name = Path(train.name).stem if s.train_data else BUILTIN
    return Data(name, [ArrayShard(ids, train.name)], shards, tokenizer, tokenizer.vocab_size, about)


def _text_tokenizer(s, start: Start, text: str) -> Tokenizer:
    own = tokenizer_of(start.path, start.config.vocab_size) if start.path else None
    if own and (s.tokenizer or own.kind).split(":")[0] == own.kind:
        return own  # another text's characters or merges would get other ids
    vocab = _wanted_vocab(s, start) or start.config.vocab_size
    return make_tokenizer(s.tokenizer or ("gpt2" if vocab == Tokenizer.gpt2().vocab_size else "byte"), [text])


def _token_files(s, start: Start, pattern: str, val_pattern: str | None) -> Data:
    if s.tokenizer:
        raise UsageError(f"--tokenizer {s.tokenizer} is for text, and {pattern} holds tokens already: leave it out")
    train = find_shards(pattern)
    val = find_shards(val_pattern or _validation_beside(pattern)) if s.val_every else []
    wanted = _wanted_vocab(s, start)
    folder = Path(train[0].path).parent
    tokenizer = best_tokenizer(folder, wanted)
    if tokenizer is None and start.path:
        tokenizer = tokenizer_of(start.path, wanted)
    elif tokenizer is None and wanted in (None, Tokenizer.gpt2().vocab_size):
        tokenizer = Tokenizer.gpt2()  # llm.c's files without a word about it hold GPT-2's tokens
    if tokenizer:
        _agree(s, start, tokenizer, f"the tokenizer in {folder}/")
    count = [sum(shard.count for shard in shards) for shards in (train, val)]
    kind = (
        f"{tokenizer.kind} tokenizer, V {tokenizer.vocab_size}"
        if tokenizer
        else f"no tokenizer, V {wanted}: samples are ids"
    )
    about = f"{pattern}: {count[0]:,} tokens to train on, {count[1]:,} for validation ({kind})"
    name = re.sub(r"_train(_\d+)?$", "", Path(train[0].path).stem)
    return Data(name, train, val, tokenizer, tokenizer.vocab_size if tokenizer else wanted, about)


def check_shards(shards: list[Shard], vocab_size: int) -> None:
    """Looks for ids outside the vocabulary before a run starts, unless that takes long; the loader checks every batch.

    Raises DataError."""
    if sum(shard.count for shard in shards) > CHECKED_TOKENS:
        return
    for shard in shards:
        for start in range(0, shard.count, 1 << 20):
            check_ids(shard.read(start, min(1 << 20, shard.count - start)), vocab_size, shard.name, start)
        shard.close()


def _validation_beside(pattern: str) -> str:
    head, name = os.path.split(pattern)
    other = os.path.join(head, "val".join(name.rsplit("train", 1)))
    if other == pattern or not (os.path.exists(other) or glob.glob(other)):
        raise UsageError(f"no validation data for {pattern}: name it with --val-data, or --val-every 0 for none")
    return other


# --- tokenizers beside things ----------------------------------------------------------------------------------------


def best_tokenizer(folder: Path, vocab_size: int | None) -> Tokenizer | None:
    """The tokenizer file of a folder; of several the one with this vocabulary."""
    found = [Tokenizer.load(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()]
    return next((t for t in found if t.vocab_size == vocab_size), found[0] if found else None)


def tokenizer_of(checkpoint: Path, vocab_size: int) -> Tokenizer | None:
    """The tokenizer of weights: in their folder or that of their run, else GPT-2's if V is 50257, else None.

    Raises FormatError for a broken tokenizer file."""
    return tokenizer_beside(checkpoint, vocab_size)[0]


def tokenizer_beside(checkpoint: Path, vocab_size: int) -> tuple[Tokenizer | None, str]:
    """What tokenizer_of finds, and if that is None why a tokenizer that is there does not serve ("": none is)."""
    folder = checkpoint.absolute() if checkpoint.is_dir() else checkpoint.absolute().parent
    for place in [folder, *([folder.parent.parent] if folder.parent.name == "checkpoints" else [])]:
        tokenizer = best_tokenizer(place, vocab_size)
        if tokenizer and tokenizer.vocab_size == vocab_size:
            return tokenizer, ""
    if checkpoint.is_dir():
        tokenizer, why = huggingface_tokenizer.find(checkpoint, vocab_size)
        if tokenizer or why:
            return tokenizer, why
    gpt2 = Tokenizer.gpt2()
    return gpt2 if gpt2.vocab_size == vocab_size else None, ""


def prompt_ids(prompt: str | None, tokenizer: Tokenizer | None) -> np.ndarray:
    """The ids that text is to go on from, (n,); without a prompt the start of a text. Raises UsageError, DataError."""
    if not prompt:
        return np.array([tokenizer.start if tokenizer else 0], np.int32)
    if tokenizer is None:
        raise UsageError("a prompt needs a tokenizer, and none is beside the model or its data: leave the prompt out")
    return tokenizer.encode(prompt)
