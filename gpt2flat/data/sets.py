"""The known data sets, as rows of a table: where they come from, what is made of them and what must come out.

Sizes, hashes and counts are None where they could not be checked; nothing is guessed."""

import io
import json
import random
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import CheckpointError, DataError, UsageError, reason
from ..formats.choices import ChoiceLines, write_choices
from ..formats.files import RegularFile, remove_empty, write_stream_atomically
from .documents import PIECE, Counted, Document, Reading, Tally, documents_of
from .download import fetch
from .shards import SHARD, Split
from .sources import Source, file_source, find_sources
from .tokenizer import Tokenizer, valid


@dataclass(frozen=True)
class File:
    """A file that a set is made of. `url` may be overruled by --from."""

    url: str
    size: int | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]


@dataclass(frozen=True)
class Known:
    """name: what it is called; stem: what its files are called. It comes from a file, or by the name `hub` from Hugging Face.

    open(file, what --from names, or hub) -> (sources, sources for validation); None: multiple-choice questions, for evaluate.
    expected: the tokens that must come out, by side, or the questions; None: not known."""

    name: str
    stem: str
    about: str
    licence: str
    file: File | None
    open: Callable[[Path | str], tuple[list[Source], list[Source]]] | None
    reading: Reading = Reading()
    split: Split | None = None
    tokenizer: str = "gpt2"
    expected: dict[str, int] | None = None
    hub: str | None = None

    def facts(self) -> dict:
        """For the report."""
        return {
            "name": self.name,
            "about": self.about,
            "licence": self.licence,
            "source": self.file.url if self.file else self.hub,
        }


# --- how a file becomes sources --------------------------------------------------------------------------------------


def _texts(place) -> tuple[list[Source], list[Source]]:
    return find_sources([str(place)], Tally()), []


def _members(train: str, val: str, path) -> tuple[list[Source], list[Source]]:
    """Two files of a zip archive, or of the folder that it was unpacked into."""
    path = Path(path)
    if path.is_dir():
        found = [next(iter(sorted(path.rglob(name))), path / name) for name in (train, val)]
        return [file_source(found[0])], [file_source(found[1])]
    return [_member(path, train)], [_member(path, val)]


def _member(path: Path, name: str) -> Source:
    def unpacked(reading: Reading, tally: Tally) -> Iterator[Document]:
        try:
            with zipfile.ZipFile(path) as archive:
                inside = next((n for n in archive.namelist() if n.rsplit("/", 1)[-1] == name), None)
                if inside is None:
                    raise DataError(f"{path}: has no {name} in it, expected the archive of the raw text")
                with archive.open(inside) as stream:
                    yield from documents_of(f"{path}/{name}", Counted(stream.read, tally), reading, tally)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as problem:
            raise DataError(f"{path}: is no zip archive that can be read: {problem}: delete it and fetch it again") from None

    return Source(f"{path}/{name}", unpacked)


STORIES = re.compile(r"data\d+\.json")
MOST_STORIES = 1 << 30  # bytes of one file, which is read as a whole


def _stories(path) -> tuple[list[Source], list[Source]]:
    """llm.c's recipe: a file of stories each, stripped and shuffled; the first one is for validation."""
    path = Path(path)
    folder = path if path.is_dir() else _unpack(path, path.with_name("TinyStories_all_data"))
    files = sorted(p for p in folder.rglob("*.json") if STORIES.fullmatch(p.name))
    if len(files) < 2:
        raise DataError(
            f"{folder}: found {len(files)} files named as data00.json, expected at least 2, one for validation"
        )
    sides = [files[1:], files[:1]]
    return tuple([Source(str(p), partial(_told, p, i), p.stat().st_size) for i, p in enumerate(side)] for side in sides)


def _told(path: Path, index: int, reading: Reading, tally: Tally) -> Iterator[Document]:
    tally.now = str(path)
    with RegularFile(path, DataError) as file:
        if file.size > MOST_STORIES:
            raise DataError(f"{path}: has {file.size} bytes, expected at most {MOST_STORIES}")
        raw = Counted(io.BytesIO(file.read(0, file.size)).read, tally)
    try:
        told = [entry["story"].strip() for entry in json.loads(raw.read(file.size))]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise DataError(f'{path}: is no list of {{"story": ...}} in JSON: delete it and the archive, and fetch that again') from None
    random.Random(1337 + index).shuffle(told)
    for story in told:
        yield (valid(story),)
    tally.finish(str(path), raw.size, raw.sha256.hexdigest())


def _unpack(path: Path, folder: Path) -> Path:
    """The files of stories in a tar archive, in a folder of their own."""
    try:
        folder.mkdir(exist_ok=True)
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                target = folder / name
                if (
                    member.isfile()
                    and STORIES.fullmatch(name)
                    and not (target.exists() and target.stat().st_size == member.size)
                ):
                    stream = archive.extractfile(member)
                    write_stream_atomically(target, iter(partial(stream.read, PIECE), b""))
    except (tarfile.TarError, EOFError, zlib.error) as problem:
        raise DataError(f"{path}: is no tar.gz archive that is whole: {problem}: delete it and fetch it again") from None
    except OSError as problem:
        raise CheckpointError(f"{path}: cannot be unpacked into {folder}: {reason(problem)}") from None
    return folder


# --- the table -------------------------------------------------------------------------------------------------------

_SHAKESPEARE = File(
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    1_115_394, "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)  # fmt: skip
_WIKI = "wiki.train.raw", "wiki.valid.raw"
_WIKI_LICENCE = "CC BY-SA 3.0 and GFDL (Wikipedia)"

KNOWN = {known.name: known for known in (
    Known("tinyshakespeare", "tiny_shakespeare", "40,000 lines of Shakespeare, as llm.c takes them: a document per paragraph", "public domain",
          _SHAKESPEARE, _texts, Reading("text", separator="\n\n", keep=True), Split("first", 32_768),
          expected={"train": 305_260, "val": 32_768}),
    Known("tinyshakespeare-char", "shakespeare_char", "the same text as one document, by characters, as nanoGPT takes it", "public domain",
          _SHAKESPEARE, _texts, Reading("text"), Split("last", 0.1), "char", {"train": 1_003_856, "val": 111_539}),
    Known("tinystories", "TinyStories", "stories of a 3-year-old's words by GPT-3.5 and GPT-4 (arXiv 2305.07759), as llm.c takes them",
          "CDLA-Sharing 1.0",
          File("https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/TinyStories_all_data.tar.gz"), _stories,
          expected={"train": 925_653_391, "val": 19_043_638}),
    Known("wikitext-2", "wikitext-2", "2 million words of good Wikipedia articles (arXiv 1609.07843), raw, one document", _WIKI_LICENCE,
          File("https://huggingface.co/datasets/ggml-org/ci/resolve/main/wikitext-2-raw-v1.zip"), partial(_members, *_WIKI)),
    Known("wikitext-103", "wikitext-103", "103 million words of good Wikipedia articles (arXiv 1609.07843), raw, one document", _WIKI_LICENCE,
          File("https://wikitext.smerity.com/wikitext-103-raw-v1.zip"), partial(_members, *_WIKI)),
    Known("hellaswag", "hellaswag", "10,042 questions of how a story goes on (arXiv 1905.07830): llm.c's hellaswag_val.bin, for evaluate", "MIT",
          File("https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"), None, expected={"questions": 10_042}),
    Known("fineweb-edu", "edu_fineweb", "educational web pages, 10 billion tokens (arXiv 2406.17557), as llm.c takes them", "ODC-By 1.0",
          None, _texts, split=Split("first", SHARD), hub="hf:HuggingFaceFW/fineweb-edu:sample-10BT"),
)}  # fmt: skip


def locate(known: Known, origin: str | None, folder: Path, watch: Callable[[int], None]) -> Path | None:
    """The file of a set: from `origin`, which is a local file or folder or a web address, else from the set's own address
    into `folder`. None for a set that has none. Raises UsageError, DataError, CheckpointError."""
    if origin and not re.match(r"https?://", origin):
        path = Path(origin.removeprefix("file://"))
        inside = path / known.file.name if known.file else path
        if not path.exists():
            raise DataError(
                f"--from {origin}: no such file or folder, expected {known.file.name if known.file else 'text'}"
            )
        return inside if path.is_dir() and inside.exists() else path
    if known.file is None:
        if origin:
            raise UsageError(f"--from {origin}: {known.name} comes as {known.hub} or from here: name a local file or folder")
        return None
    name = known.file.name
    url = origin if origin and origin.endswith(f"/{name}") else f"{origin.rstrip('/')}/{name}" if origin else known.file.url
    try:
        fetch(url, folder / name, known.file.size, known.file.sha256, watch)
    finally:
        remove_empty(folder, folder.parent)
    return folder / name


def write_questions(path: Path, folder: Path) -> tuple[Path, int]:
    """llm.c's multiple-choice file of HellaSwag's JSON lines, with GPT-2's ids, and how many questions it holds.

    Raises DataError, FormatError, CheckpointError."""
    out = folder / "hellaswag_val.bin"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise CheckpointError(f"{folder}: cannot be made: {reason(problem)}") from None
    try:
        with ChoiceLines(path, 1 << 16, Tokenizer.gpt2().encode) as questions:
            return out, write_choices(out, questions)
    finally:
        remove_empty(folder)


def surprise(known: Known, report: dict) -> str:
    """How the counts differ from the ones that are expected, or nothing."""
    if known.expected is None or report["tokenizer"]["kind"] != known.tokenizer:
        return ""
    if all(report["tokens"][side] == count for side, count in known.expected.items()):
        return ""
    counts = " and ".join(
        f"{count:,} to {'train on' if side == 'train' else 'validate with'}" for side, count in known.expected.items()
    )
    sources = report["sources"]
    other = known.file and known.file.sha256 and sources and sources[0]["sha256"] != known.file.sha256
    return f"expected {counts}: " + (
        f"{sources[0]['name']} is another version of the text" if other else "not all of it was taken"
    )
