"""What a model is evaluated on: token files, texts, multiple-choice questions, the validation data of its run.

Each set is opened once and measured with every model; whether the model can read it is checked here."""

import glob
import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple, Protocol

from ..data import corpus
from ..data.tokenizer import Tokenizer
from ..data.tokens import ArrayShard, Shard, find_shards
from ..errors import DataError, UsageError
from ..formats import huggingface, llmc, pytorch
from ..formats.choices import COMPLETIONS, ChoiceFile, ChoiceLines
from ..generation.stream import BATCH
from ..model import Model
from ..training import config
from ..training.inputs import Start, best_tokenizer, find_data
from ..training.manifest import MODEL
from . import choices, text
from .heat import Piece, pieces, tell
from .steps import ByStep
from .text import Windows

TOKEN_KINDS = (llmc.KINDS[llmc.TOKENS], llmc.OLD_TOKENS)
MODEL_FILES = (huggingface.SUFFIX, *pytorch.SUFFIXES, ".gguf")
MODEL_FOLDERS = ("config.toml", "checkpoints", MODEL, "config.json")  # any of these makes a folder a model's
BATCH_TOKENS = 1024  # of a batch, by default


class Opened(NamedTuple):
    """A model as it was named, its tokenizer (None: nothing tells what its ids mean), the path of its weights, and how many rows at
    once are worth it at least."""

    name: str
    model: Model | ByStep
    tokenizer: Tokenizer | None
    path: Path
    rows: int = 1

    def packed(self, weights: str) -> "Opened":
        """The same with weights in fewer bits, as another model: read step by step. fp32: itself."""
        if weights == "fp32":
            return self
        return self._replace(name=f"{self.name} {weights}", model=ByStep(self.model, weights), rows=BATCH)


class How(NamedTuple):
    """Settings of an evaluation; None: T the model's block size, the stride T, batches of about BATCH_TOKENS tokens, no limit of
    tokens and of questions."""

    seq_len: int | None = None
    stride: int | None = None
    batch_size: int | None = None
    max_tokens: int | None = None
    limit: int | None = None

    def windows(self, model: Model) -> Windows:
        """Raises UsageError for windows that the model cannot take."""
        longest = model.config.block_size
        T = self.seq_len or longest
        if T > longest:
            raise UsageError(f"--seq-len {T}: the model takes {longest} tokens at most")
        stride = self.stride or T
        if stride > T:
            raise UsageError(
                f"--stride {stride}: expected at most the window of {T} tokens, or tokens would be left out"
            )
        return Windows(T, stride, self.max_tokens)

    def batch(self, opened: Opened, T: int) -> int:
        return self.batch_size or max(opened.rows, BATCH_TOKENS // T)


class Set(Protocol):
    """`title` heads its columns; `metrics` are their names; measure() returns them, and facts beside them; facts() says these."""

    title: str
    metrics: tuple[str, ...]

    def measure(self, opened: Opened, how: How, told: Callable[[int, int], None]) -> dict[str, object]: ...

    def facts(self, found: dict[str, object]) -> str: ...


class TextSet(ABC):
    """Texts whose ids depend on the model's tokenizer, or token files, whose ids do not."""

    metrics = ("loss", "perplexity", "bits_per_byte")

    def __init__(self, title: str):
        self.title = title

    @abstractmethod
    def shards(self, opened: Opened) -> tuple[list[Shard], Tokenizer | None]:
        """The ids that the model is to read, and what they mean. Raises UsageError, DataError when it cannot."""

    def measure(self, opened: Opened, how: How, told: Callable[[int, int], None]) -> dict[str, object]:
        windows = how.windows(opened.model)
        shards, tokenizer = self.shards(opened)
        total = windows.predictions(shards)
        if not total:
            raise DataError(f"{self.title}: holds fewer than two tokens, so there is nothing to predict")
        lengths = text.bytes_of_tokens(tokenizer) if tokenizer else None
        found = text.measure(
            opened.model, shards, windows, how.batch(opened, windows.T), lengths, lambda done: told(done, total)
        )
        return found | {"window": windows.T, "stride": windows.stride}

    def heat(self, opened: Opened, how: How, tokens: int) -> tuple[list[Piece], Tokenizer]:
        """The first `tokens` predictions piece by piece. Raises UsageError when nothing tells what the ids mean."""
        windows = how.windows(opened.model)
        shards, tokenizer = self.shards(opened)
        if tokenizer is None:
            raise UsageError(f"--heat shows text, and no tokenizer is beside {self.title} or {opened.path}")
        windows = windows._replace(limit=min(tokens, windows.limit or tokens))
        return list(pieces(tell(opened.model, shards, windows), tokenizer)), tokenizer

    def facts(self, found: dict[str, object]) -> str:
        size = f", {found['bytes']:,} bytes" if found["bytes"] is not None else ""
        return (
            f"{found['tokens']:,} tokens predicted{size}, in windows of {found['window']:,}, stride {found['stride']:,}"
        )


class TextFile(TextSet):
    """A UTF-8 text, one document: end-of-text stands before it, so that its first token is predicted too."""

    def __init__(self, path: str):
        super().__init__(path)
        self._text = corpus.read_text(path)

    def shards(self, opened: Opened) -> tuple[list[Shard], Tokenizer]:
        if opened.tokenizer is None:
            raise UsageError(
                f"{self.title} is text, and no tokenizer is beside {opened.path}: give token files instead"
            )
        ids = opened.tokenizer.encode_documents(self._text.documents)
        return [ArrayShard(ids, self.title)], opened.tokenizer


class TokenFiles(TextSet):
    """Token files by name or pattern; each is a text of its own, and its first token is predicted by nothing."""

    def __init__(self, pattern: str):
        super().__init__(pattern)
        self._shards = find_shards(pattern)

    def shards(self, opened: Opened) -> tuple[list[Shard], Tokenizer | None]:
        V = opened.model.config.vocab_size
        folder = Path(self._shards[0].path).parent
        own = best_tokenizer(folder, V)
        if own and (clash := _differ(own, opened.tokenizer, V)):
            raise UsageError(
                f"the vocabularies clash: {self.title} was made with the tokenizer in {folder}/ ({own.vocab_size} tokens), "
                f"{opened.name} {clash}: prepare the text with the model's tokenizer, or name the text itself"
            )
        return self._shards, own or opened.tokenizer


class Validation(TextSet):
    """The validation data of a run, all of it."""

    def __init__(self, title: str, shards: list[Shard], tokenizer: Tokenizer | None):
        super().__init__(title)
        self._found = shards, tokenizer

    def shards(self, opened: Opened) -> tuple[list[Shard], Tokenizer | None]:
        return self._found


class Choices:
    """Multiple-choice questions: llm.c's file, whose tokens are GPT-2's unless a tokenizer is beside it, or HellaSwag's lines."""

    metrics = ("acc", "acc_norm")

    def __init__(self, path: str):
        self.title = path

    def measure(self, opened: Opened, how: How, told: Callable[[int, int], None]) -> dict[str, object]:
        with self._open(opened, opened.model.config.block_size) as file:
            total = min(file.count, how.limit or file.count)
            examples = list(itertools.islice(file, total))
        batch = how.batch(opened, choices.GRAIN * 2)
        return choices.measure(opened.model, examples, batch, self.title, lambda done: told(done, total))

    def _open(self, opened: Opened, T: int) -> ChoiceFile | ChoiceLines:
        if llmc.kind_of(self.title) != llmc.KINDS[llmc.CHOICES]:
            if opened.tokenizer is None:
                raise UsageError(
                    f"{self.title} is text, and no tokenizer is beside {opened.path}: give llm.c's file instead"
                )
            return ChoiceLines(self.title, T, opened.tokenizer.encode)
        V = opened.model.config.vocab_size
        own = best_tokenizer(Path(self.title).parent, V) or (Tokenizer.gpt2() if opened.tokenizer else None)
        if own and (clash := _differ(own, opened.tokenizer, V)):
            raise UsageError(
                f"the vocabularies clash: {self.title} holds tokens of a vocabulary of {own.vocab_size}, {opened.name} {clash}: "
                "take the questions as JSON lines, which every tokenizer can read"
            )
        return ChoiceFile(self.title, T)

    def facts(self, found: dict[str, object]) -> str:
        return f"{found['questions']:,} questions of {COMPLETIONS} completions, so {1 / COMPLETIONS:.2f} is chance"


def _differ(data: Tokenizer, of_model: Tokenizer | None, V: int) -> str:
    """What a model of V tokens has instead of the tokenizer of the data; "" when it is the same."""
    if data.vocab_size != V:
        return f"has a vocabulary of {V}"
    if of_model and (of_model.tokens, of_model.eot) != (data.tokens, data.eot):
        return f"was trained with another of {V} tokens"
    return ""


def validation_of(opened: Opened, folders: list[Path]) -> Set:
    """The validation data of the run that a model belongs to. folders: where token files are looked for.

    Raises UsageError for a model of no run, or of one without validation data; DataError when its data is gone."""
    run = opened.path.absolute().parents[2] if opened.path.absolute().parent.parent.name == "checkpoints" else None
    if run is None or not (run / "config.toml").is_file():
        raise UsageError(f"{opened.name} is not the model of a run: name what to evaluate it on, a text or token files")
    s = SimpleNamespace(**config.stored(run / "config.toml"))
    try:
        data = find_data(s, Start(str(s.init), opened.path, opened.model.config), folders)
    except DataError as problem:
        raise DataError(
            f"{problem} (paths in {run / 'config.toml'} are as they were typed: start from the same folder)"
        ) from None
    if not data.val:
        raise UsageError(
            f"{run} was trained without validation data: name what to evaluate it on, a text or token files"
        )
    return Validation(f"{data.name} (validation)", data.val, data.tokenizer)


# --- words of a command line -----------------------------------------------------------------------------------------


def open_set(word: str) -> Set | None:
    """The set that a word names, None when it names a model, or nothing that is there. Raises DataError, FormatError."""
    path = Path(word)
    if path.is_dir():
        return None if any((path / name).exists() for name in MODEL_FOLDERS) else _folder(path)
    if not path.exists():
        return TokenFiles(word) if glob.has_magic(word) else None
    kind = llmc.kind_of(word)
    if kind == llmc.KINDS[llmc.CHECKPOINT] or path.suffix in MODEL_FILES:
        return None
    if kind in TOKEN_KINDS:
        return TokenFiles(word)
    if kind == llmc.KINDS[llmc.CHOICES] or (kind is None and path.suffix == ".jsonl"):
        return Choices(word)
    if kind is not None:
        raise UsageError(f"{word}: is {kind}, expected a model, token files, a text or multiple-choice questions")
    return TextFile(word)


def _folder(path: Path) -> Set:
    """Prepared data: its validation files, which are token files or questions."""
    pattern = os.path.join(glob.escape(str(path)), "*_val*.bin")
    found = sorted(glob.glob(pattern))
    if not found:
        raise DataError(f"{path}: is neither a model's folder nor one of prepared data, which would hold a *_val.bin")
    questions = [name for name in found if llmc.kind_of(name) == llmc.KINDS[llmc.CHOICES]]
    return Choices(questions[0]) if questions == found else TokenFiles(pattern)
