"""What the fuzzer attacks: every reader of files, its seeds, valid and hostile, and what a file must be, said anew.

A reader's `read` is a generator: it yields when the file has been accepted, when it has been read whole, and then works
with it (`deep`: also with what takes long)."""

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import oracles
import samples
from fuzz_foreign import FOREIGN, FOREIGN_ELSEWHERE
from gpt2flat.data.corpus import read_text
from gpt2flat.data.tokenizer import GPT2_FILE, Tokenizer, escape_controls
from gpt2flat.data.tokens import FileShard, TokenLoader
from gpt2flat.formats.choices import ChoiceFile
from gpt2flat.formats.debug_state import DebugState
from gpt2flat.formats.llmc_state import StateFile
from gpt2flat.formats.optimizer import OptimizerFile, buffers
from gpt2flat.inspection.files import describe
from gpt2flat.inspection.runs import describe_run
from gpt2flat.model import Model
from gpt2flat.weights import open_checkpoint
from gpt2flat.training.run import Run

GPT2 = GPT2_FILE.read_bytes()
EOT = b"<|endoftext|>"
CONTROLS = {chr(c) for c in [*range(32), *range(127, 160)]} - {"\n", "\t"}


@dataclass(frozen=True)
class Reader:
    """seeds: valid files; hostile: headers that are not; large: others that take milliseconds to read.

    file: its name; beside: names and contents of others. fields: header words to attack; units: (bytes, values) of
    numbers behind the header; spots: offsets of such numbers that matter; size: the length that a header asks for. Of
    all cases it gets `share`. functions: those of the package whose every refusal it must meet, and `details`:
    {function: (a local name, how many values of it refuse)}."""

    read: Callable[[Path, bool], Iterator[None]]
    fits: Callable[[bytes], bool]
    seeds: tuple[bytes, ...]
    functions: tuple[str, ...]
    share: int
    fields: tuple[int, ...] = ()
    units: tuple[tuple[int, tuple[int, ...]], ...] = ()
    spots: tuple[int, ...] = ()
    start: int = 1024
    hostile: tuple[bytes, ...] = ()
    large: tuple[bytes, ...] = ()
    size: Callable[[bytes], int | None] = lambda data: None
    file: str = "file.bin"
    beside: tuple[tuple[str, bytes], ...] = ()
    details: tuple[tuple[str, str, int], ...] = ()

    def knows(self, data: bytes) -> bool:
        """Whether the file starts as one of this kind, so that more than its magic is looked at."""
        return not self.start or data[:4] in {seed[:4] for seed in self.seeds} or self.fits(data)


# --- checkpoints


def checkpoint(path, deep):
    with open_checkpoint(path) as file:
        yield
        file.read_into(0, np.empty(samples.parameters(file.stored), np.float32))
    yield
    if deep and file.dims["L"] < 10:  # a token, or NonFiniteError
        model = Model.load(path, threads=1)
        assert 0 <= model.generate(np.array([0]), 1)[1] < model.config.vocab_size


def checkpoint_seeds() -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    for changes in ({}, {"L": 2, "maxT": 1}, {"V": 8, "C": 6, "NH": 3}):
        floats = rng.standard_normal(samples.parameters(samples.DIMS | changes)).astype(np.float32)
        yield from (samples.versioned(version, floats, **changes) for version in samples.VERSIONS)


def checkpoint_header(dims) -> bytes:
    words = {samples.WORDS[name]: value for name, value in dims.items()}
    return samples.header({0: 20240326, 1: 3} | words)


def optimizer(path, deep):
    with OptimizerFile(path) as file:
        yield
        m, v = np.empty((2, file.end - file.begin), np.float32)
        file.read_into(file.begin, m, v)
        assert np.isfinite(m).all() and (v >= 0).all() and (v < np.inf).all()
    describe(path)


def optimizer_seeds() -> Iterator[bytes]:
    x = np.arange(1, 13, dtype=np.float32)
    for P, begin, t in ((6, 0, 0), (20, 7, 300), (1 << 40, (1 << 40) - 6, 1 << 40)):
        yield b"".join(bytes(memoryview(part)) for part in buffers(P, begin, t, x[:6], x[6:]))


def state(path, deep):
    with StateFile(path, 6) as file:
        yield
        m, v, params = np.zeros((3, 6), np.float32)
        file.read_into(m, v, params)
        assert np.isfinite([m, v, params]).all() and (v >= 0).all()
        found = file.loader(file.shards or 1)
        assert sorted(found["order"]) == list(range(file.shards or 1)) and found["shard"] < (file.shards or 1)
    describe(path)


def state_seeds() -> Iterator[bytes]:
    whole = (Path(__file__).parent / "llmc_tiny/state.bin").read_bytes()
    for master, shuffle in ((1, 1), (0, 1), (1, 0), (0, 0)):
        words = whole[:16] + struct.pack("<2i", master, shuffle) + whole[24:1024]
        yield words + whole[1024 : 1024 + 24 * (2 + master)] + (whole[1096:] if shuffle else b"")


# --- token files and tokenizers


def tokens(path, deep):
    shard = FileShard(path)
    yield
    ids, targets = TokenLoader([shard], 1, 4, oracles.GPT2_VOCAB).next_batch()
    assert 0 <= min(ids.min(), targets.min()) and max(ids.max(), targets.max()) < oracles.GPT2_VOCAB
    assert ids[0, 1:].tolist() == targets[0, :-1].tolist()
    describe(path)


def tokenizer(path, deep):
    found = Tokenizer.load(path)
    yield
    shown = escape_controls(found.decode(range(min(256, found.vocab_size))))
    assert not CONTROLS & set(shown)
    yield
    if deep or found.kind != "gpt2":  # GPT-2's encoder takes long to make
        found.encode("a 0\n")
        describe(path)


def tokenizer_seeds() -> Iterator[bytes]:
    for pieces, words in (
        ([b"a", b"bc", b" the", EOT], {}),
        ([b"\n", b" ", b"0", b"a", EOT], {}),
        ([c.encode() for c in "\n 0aé€\U0001f600"] + [EOT], {4: 1}),
        ([*oracles.BYTES, EOT], {4: 2}),
        ([*oracles.BYTES, EOT], {}),
        ([*oracles.BYTES, b"in", b" t", EOT], {4: 3}),
        ([EOT, *oracles.BYTES[::-1], b"\xc3\xa9", b"a0"], {4: 3}),
    ):
        yield samples.tokenizer_bytes(pieces, words)


def repeated(data: bytes) -> bytes:
    """GPT-2's tokenizer with its first token, "!", twice, and no double quote."""
    return data[:1027] + data[1025:1026] + data[1028:]


def older(data: bytes) -> bytes:
    """A tokenizer of GPT-2 as version 1, which leaves end-of-text out of the header."""
    return data[:4] + struct.pack("<4i", 1, oracles.GPT2_VOCAB, 0, 0) + data[20:]


# --- debug states


def debug_state(path, deep):
    with DebugState(path, samples.DIMS, samples.parameters) as state:
        yield
        state.read_into("logits", 0, np.empty(state.tokens.size * samples.DIMS["V"], np.float32))
        state.read_into("grads", 0, np.empty(samples.parameters(state.stored), np.float32))
    describe(path)


# --- multiple-choice evaluation files


def choices(path, deep):
    with ChoiceFile(path, samples.ROW) as file:
        first = [example.label for example in file]
        yield
        assert first == [example.label for example in file] and len(first) == file.count
    describe(path)


# --- texts, and what a run says of itself


def text(path, deep):
    found = read_text(path)
    yield
    ids = Tokenizer.byte().encode(found.text)
    assert ids.min() >= 0 and ids.max() < 256


def environment(path, deep):
    if Run(path.parent).started:
        yield
    describe_run(path.parent)


def run_directory(path, deep):
    describe_run(path.parent)
    yield


_HEADER = ("llmc.read_header",)
CONFIG = b'steps = 20\nlr = 1e-3\ntrain_data = "a.txt"\ntrace = false\nthreads = [1, {a = 2}]\n'
METRICS = b"".join(
    json.dumps({"step": i, "loss": 3.5 - i, "tokens_per_s": 1e3}).encode() + b'\n{"step": 1, "val_loss": 2.5}\n'
    for i in range(3)
)
TEXT = ((1, tuple(b'"{}[]:,=\\0-.eN\n\xff')),)
READERS = {
    "checkpoint": Reader(
        checkpoint, oracles.is_checkpoint, tuple(checkpoint_seeds()),
        (*_HEADER, "llmc.check_size", "checkpoint._read_header", "checkpoint.check_dims"),
        share=32, fields=(1, *samples.WORDS.values()), size=oracles.checkpoint_size, spots=(1024, 1028),
        units=((4, (0x7FC00000, 0x7F800000, 0xFF7FFFFF, 0x7F7FFFFF, 1, 0, 0x3F800000)), (2, (0x7F80, 0x7FC0, 0x7F7F))),
        hostile=(checkpoint_header(samples.wraps_64_bits(1)), checkpoint_header(samples.wraps_64_bits(6)),
                 checkpoint_header(samples.WRAPS_32_BITS) + bytes(4096), samples.versioned(2), samples.versioned(4)),
        details=(("checkpoint.check_dims", "name", 6),),
    ),
    "optimizer": Reader(
        optimizer, oracles.is_optimizer, tuple(optimizer_seeds()),
        (*_HEADER, "llmc.check_size", "optimizer._check", "optimizer.OptimizerFile.__init__",
         "optimizer.read_floats", "optimizer.read_moments"),
        share=8, fields=tuple(range(1, 10)), size=oracles.optimizer_size, spots=tuple(range(1024, 1072, 4)),
        units=((4, (0x7FC00000, 0x7F800000, 0xFF800000, 0x80000001, 0xBF800000, 0x80000000, 0, 1)),),
    ),
    "state": Reader(
        state, oracles.is_state, tuple(state_seeds()),
        (*_HEADER, "llmc.check_size", "llmc_state.StateFile.__init__", "llmc_state.StateFile._count",
         "llmc_state.StateFile.loader", "llmc_state.StateFile._order", "llmc_state.StateFile._stream"),
        share=12, fields=(1, 2, 3, 4, 5, 10, 20, 30, 31, 32), size=oracles.state_size,
        spots=(*range(1024, 1144, 4), 1284, 1288, 1292, 1300, 3796, 3800), units=((4, (0, 1, 2, 5, 41, 42, 43, 0xFFFFFFFF)),),
    ),
    "tokens": Reader(
        tokens, oracles.is_tokens,
        (samples.token_bytes(), samples.token_bytes(range(50000, 50257)), samples.token_bytes([7] * 40),
         samples.old_tokens([50256, *range(300)]), samples.old_tokens(range(6)), samples.old_tokens([0] * 255 + [9])),
        (*_HEADER, "llmc.check_size", "llmc.open_tokens", "tokens.check_ids"),
        share=18, fields=(1, 2), size=oracles.token_size, spots=(1024, 1026, 1030),
        units=((2, (0, 1, 50256, 50257, 65535)), (4, (0, 50256, 50257, 0xFFFFFFFF, 0x7FFFFFFF))),
        hostile=(bytes(4096),), details=(("llmc.open_tokens", "problem", 3),),
    ),
    "tokenizer": Reader(
        tokenizer, oracles.is_tokenizer, tuple(tokenizer_seeds()),
        (*_HEADER, "llmc.read_tokenizer", "llmc._parse_tokens", "tokenizer.Tokenizer.load"),
        share=16, fields=(1, 2, 3, 4), spots=tuple(range(1024, 1040)),
        units=((1, (0, 1, 2, 3, 32, 48, 97, 128, 195, 255)),),
        large=(GPT2, older(GPT2), repeated(GPT2)),
        details=(("llmc._parse_tokens", "problem", 2), ("tokenizer.Tokenizer.load", "problem", 3)),
    ),
    "debug state": Reader(
        debug_state, oracles.is_debug_state,
        (samples.debug_state_bytes(1), samples.debug_state_bytes(2),
         samples.debug_state_bytes(2, B=1, T=4, tokens=(4, 3, 2, 1), targets=(-1, -1, 0, 4))),
        (*_HEADER, "llmc.check_size", "debug_state.DebugState.__init__"),
        share=16, fields=(1, 2, 3), size=oracles.debug_state_size, spots=(*range(1024, 1072, 4), 1192, 1192),
        units=((4, (0xFFFFFFFF, 0xFFFFFFFE, 0, 4, 5, 0x7FC00000, 0x7F800000, 0x7FFFFFFF)),),
        details=(("debug_state.DebugState.__init__", "name", 2),),
    ),
    "choices": Reader(
        choices, oracles.is_choices,
        (samples.choice_bytes(), samples.choice_bytes({}), samples.choice_bytes(*[{}] * 9, {"label": 3}),
         samples.choice_bytes({"context": [5] * 12})),
        (*_HEADER, "choices.ChoiceFile.__init__", "choices.ChoiceFile.__iter__", "choices.ChoiceFile._read",
         "choices.ChoiceFile._words", "choices.ChoiceFile._require", "choices._require_short"),
        share=21, fields=(1, 2, 3), spots=(*range(1024, 1066, 2), *[1030] * 5),
        hostile=(samples.choice_bytes({"context": [5] * 13}),),
        units=((2, (0, 1, 2, 3, 4, 5, 6, 7, 10, 12, 13, 16, 33, 34, 36, 38, 50, 65534, 65535)),),
    ),
    "text": Reader(
        text, oracles.is_text, (b"some text\n", "\ufeffé€\U0001f600\n".encode(), "日本語".encode() * 20),
        ("corpus.read_text",),
        share=1, start=0, spots=(0,), units=((1, (0, 10, 0x80, 0xC0, 0xED, 0xFF)),), hostile=(b"", "\ufeff".encode()),
    ),
    "environment": Reader(
        environment, oracles.is_environment,
        (json.dumps({"started": "2024-04-28T12:00:00+00:00", "threads": 2, "more": {"a": [1.5, None, True]}}).encode(),
         b'{"started": "\\ud800"}', b'{"started": "now", "cpu": [1], "threads": {}, "commit": 1e999}'),
        (), share=1, start=0, spots=(0, 1, 12), units=TEXT, file="env.json", beside=(("config.toml", CONFIG),),
        hostile=(b"[" * 10000, b'{"started": ' + b"9" * 5000 + b"}", b"null", b'{"started": []}',
                 *(b'{"cpu": ' + b"[" * deep + b"]" * deep + b"}" for deep in range(930, 1000, 4))),
    ),
    "config": Reader(
        run_directory, oracles.is_config, (CONFIG, b"", b"a = " + b"[" * 100 + b"]" * 100), (),
        share=1, start=0, spots=(0, 1, 8), units=TEXT, file="config.toml", beside=(("metrics.jsonl", METRICS),),
        hostile=(b"a", b"a = " + b"[" * 10000, b"a = " + b"9" * 5000, b"\0", b"a = " + b"[" * 2000 + b"]" * 2000),
    ),
    "metrics": Reader(
        run_directory, lambda data: True,
        (METRICS, b"", b"[" * 10000, b'{"step": ' + b"9" * 5000 + b"}", b'{"step": true, "loss": 1.0}',
         b'{"step": 1, "loss": 1.5, "tokens_per_s": null}\n{"step": 1, "loss": 1.5, "tokens_per_s": "fast"}',
         b'{"step": 1, "val_loss": NaN}\n{"step": 2, "val_loss": 1e999}',
         b'{"step": 3, "loss": 1.5, "tokens_per_s": 1' + b"0" * 400 + b"}"),
        (), share=1, start=0, spots=(0, 1, 8), units=TEXT, file="metrics.jsonl", beside=(("config.toml", CONFIG),),
    ),
} | {name: Reader(**how) for name, how in FOREIGN.items()}  # fmt: skip
# Refusals that no content of a file can cause: function -> the tests that cause them
ELSEWHERE = {
    "files.RegularFile.__init__": "test_formats, test_files",
    "files.RegularFile._read_piece": "test_files; a file cut short once it is open: fuzz.Attack, test_tokens",
    "files._path": "misuse_model",
    "files.write_all": "test_files",
    "files.write_stream_atomically": "test_files",
    "choices.ChoiceLines.__init__": "test_choices",
    "choices.ChoiceLines.__iter__": "test_choices",
    "choices._question": "test_choices",
    "optimizer.buffers": "test_checkpoints",
    "optimizer.OptimizerFile._check_range": "test_checkpoints",
    "llmc_state.newest": "test_llmc_state",
    "llmc_state.write": "test_llmc_state",
    "checkpoint._rounded": "test_checkpoint_versions",
    "debug_state.write_debug_state": "test_debug_states",
    "llmc.write_tokens": "test_token_files",
    "llmc.write_tokenizer": "test_token_files",
    "llmc": "test_formats",
    "tokens.FileShard._open": "test_tokens",
    "tokens.TokenLoader.__init__": "test_tokens",
    "tokens.TokenLoader.restore": "test_tokens",
    "mt19937.Stream.restore": "test_tokens",
    "tokens.as_ids": "misuse_model",
    "tokens.find_shards": "test_tokens",
    "corpus.builtin": "test_corpus",
    "corpus.split": "test_corpus",
    "mt19937.normal_": "test_random",
    "tokenizer.Tokenizer.token_bytes": "test_tokenizer",
    "tokenizer._byte_encoder.encode": "test_tokenizer",
    "tokenizer._char_encoder.encode": "test_tokenizer",
    "tokenizer._table_encoder": "test_tokenizer",
    "bpe.learn": "test_bpe_learned",
    "choices.write_choices": "test_sets",
    "documents._blocks": "test_prepare",
    "documents._decoded": "test_prepare",
    "download._attempts": "test_sets",
    "download._get": "test_sets",
    "download.fetch": "test_sets",
    "lock.FolderLock.__init__": "test_checkpoints, test_prepare",
    "prepared._check_absent": "test_prepare",
    "prepared._check_neighbours": "test_prepare",
    "prepared._encode": "test_prepare",
    "prepared._make_folder": "test_prepare",
    "prepared._tokenizer": "test_prepare",
    "prepared._write": "test_prepare",
    "sets._member.unpacked": "test_sets",
    "sets._stories": "test_sets",
    "sets._told": "test_sets",
    "sets._unpack": "test_sets",
    "sets.locate": "test_sets",
    "sets.write_questions": "test_sets",
    "shards.write.buffers": "test_prepare",
    "sources._find": "test_prepare",
    "sources._open_hub": "test_prepare, test_sets",
    "sources.find_sources": "test_prepare",
    "spool._workers": "test_prepare",
    "tokenizer.check_tokenizer": "test_prepare",
} | FOREIGN_ELSEWHERE
