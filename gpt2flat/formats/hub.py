"""Models of the Hugging Face Hub by their names: huggingface_hub (the extra `hub`) fetches the files of a folder into its cache.

Only a name that asks for it goes to the network; what was fetched once is there without one."""

import re
from pathlib import Path

from ..errors import DataError, UsageError
from .pytorch import SUFFIXES

MARK = "hf:"
NAME = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}(?:@[\w.-]{1,95})?", re.ASCII)
FILES = ("config.json", "model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors", "tokenizer.json",
         "tokenizer_config.json", "vocab.json", "merges.txt")  # fmt: skip
HERE = "no file or folder is called that"
LOCAL = "or fetch config.json and model.safetensors elsewhere and name their folder"


def repository(name) -> str | None:
    """The repository that a name asks for, "gpt2" of "hf:gpt2" or "owner/name" where no file or folder is called that; None: it is
    no name of the Hub. Behind an @ may stand a revision. Raises UsageError for "hf:" with something that is no name."""
    name = str(name)
    if name.startswith(MARK):
        if not NAME.fullmatch(name.removeprefix(MARK)):
            raise UsageError(f"{name}: expected {MARK}NAME or {MARK}OWNER/NAME, such as {MARK}openai-community/gpt2")
        return name.removeprefix(MARK)
    owner, slash, _ = name.partition("/")
    here = Path(owner).exists() or name.endswith((".bin", *SUFFIXES))  # a path that is mistyped
    return name if slash and not here and NAME.fullmatch(name) else None


def fetch(name: str) -> Path:
    """The folder of a repository, fetched where it is not there yet. Raises UsageError without the extra, DataError when the Hub
    cannot be reached or has no such model."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UsageError(
            f"{name}: {HERE}; for the Hub the extra hub is needed: pip install 'gpt2flat[hub]', {LOCAL}"
        ) from None
    repo, _, revision = name.partition("@")
    try:
        return Path(
            snapshot_download(repo, revision=revision or None, allow_patterns=list(FILES), library_name="gpt2flat")
        )
    except Exception as problem:  # which, depends on its version and on the library under it
        said = " ".join(str(problem).split())[:200]
        raise DataError(f"{name}: {HERE}, and it cannot be fetched from the Hub: {said}: try again, {LOCAL}") from None


def plain_name(path: Path) -> str:
    """What people call the weights at a path: a folder's name, a file's without its ending, a fetched repository's."""
    if path.is_dir() and path.parent.name == "snapshots":
        return path.parents[1].name.rpartition("--")[2]
    return path.absolute().name if path.is_dir() else path.stem
