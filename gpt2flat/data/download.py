"""Fetches files from the web, and goes on where it was interrupted. A file takes its name only when it is whole."""

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from ..errors import CheckpointError, DataError, reason

ATTEMPTS = 5  # in a row that bring nothing new
PIECE = 1 << 18
PATIENCE = 60  # seconds without a byte


class _Broken(Exception):
    """An attempt that failed in a way that may go better next time."""


class _Unreachable(_Broken):
    """No server answered: a network that dropped, if one did before."""


def fetch(url: str, path: Path, size: int | None, sha256: str | None, watch: Callable[[int], None] = lambda got: None,
          sleep: Callable[[float], None] = time.sleep) -> None:  # fmt: skip
    """The file behind `url` as `path`, which is left alone if it is there with that size and hash; PATH.part goes on,
    but anew when the ETag that is kept beside it tells that the server has another file now.

    size, sha256: None where nobody knows. Raises DataError for what cannot be had or is another file, CheckpointError if it
    cannot be written."""
    if path.is_file() and not _problem(path, size, sha256):
        return
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab") as file:
            _attempts(url, file, sleep, watch)
            file.flush()
            os.fsync(file.fileno())
        _tag(part).unlink(missing_ok=True)
        if problem := _problem(part, size, sha256):
            part.unlink()
            raise DataError(f"{url}: {problem}: it was changed there, or on its way")
        os.replace(part, path)
    except DataError:
        if part.exists() and not part.stat().st_size:
            part.unlink()
            _tag(part).unlink(missing_ok=True)
        raise
    except OSError as problem:
        raise CheckpointError(
            f"{part}: cannot be written: {reason(problem)}: make room and start again to go on"
        ) from None


def _problem(path: Path, size: int | None, sha256: str | None) -> str:
    """Why a file is not the one that is wanted, or nothing."""
    found = path.stat().st_size
    if size is not None and found != size:
        return f"has {found} bytes, expected {size}"
    if sha256 is not None:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != sha256:
            return f"has the sha256 {digest[:16]}..., expected {sha256[:16]}..."
    return ""


def _attempts(url: str, file, sleep: Callable[[float], None], watch: Callable[[int], None]) -> None:
    failures, begun = 0, file.tell()
    best = begun
    while True:
        try:
            return _get(url, file, watch)
        except _Broken as problem:
            if isinstance(problem, _Unreachable) and max(best, file.tell()) == begun:
                raise DataError(f"{url}: {problem}: {_other_way()}") from None
            failures, best = (0, file.tell()) if file.tell() > best else (failures + 1, best)
            if failures == ATTEMPTS:
                raise DataError(
                    f"{url}: given up, {ATTEMPTS} attempts brought nothing new ({problem}): {_other_way()}"
                ) from None
            sleep(2 * failures)


def _get(url: str, file, watch: Callable[[int], None]) -> None:
    """Appends to `file` what it lacks. Raises _Broken, DataError, OSError (of the file)."""
    start = file.tell()
    try:
        asked = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
        reply = urllib.request.urlopen(asked, timeout=PATIENCE)
    except urllib.error.HTTPError as problem:
        problem.close()
        if problem.code == 416:  # nothing lies behind what is here: whole, or of another file, which size and hash tell
            if problem.headers.get("Content-Range") == f"bytes */{start}":
                return
            _empty(file)
            raise _Broken("the server cannot go on from here") from None
        if problem.code in (408, 429) or problem.code >= 500:
            raise _Broken(f"{problem.code} {problem.reason}") from None
        raise DataError(f"{url}: {problem.code} {problem.reason}: {_other_way()}") from None
    except urllib.error.URLError as problem:
        raise _Unreachable(f"cannot be reached: {str(problem.reason).lower()}") from None
    except (OSError, http.client.HTTPException, ValueError) as problem:
        raise _Broken(str(problem)) from None
    with reply:
        if start and not (reply.status == 206 and reply.headers.get("Content-Range", "").startswith(f"bytes {start}-")):
            _empty(file)
            if reply.status == 206:
                raise _Broken("the server sent another range than asked for")
        tag, known = reply.headers.get("ETag", ""), _tag(file.name)
        if file.tell() and tag and known.exists() and known.read_text() != tag:
            _empty(file)
            raise _Broken("the file was changed there")
        if tag and not file.tell():
            known.write_text(tag)
        missing = reply.length
        while True:
            try:
                data = reply.read1(PIECE)
            except (OSError, http.client.HTTPException) as problem:
                raise _Broken(str(problem)) from None
            if not data:
                break
            file.write(data)
            missing = missing and missing - len(data)
            watch(file.tell())
        file.flush()
    if missing:
        raise _Broken(f"the connection ended {missing} bytes too early")


def _tag(part) -> Path:
    """Where the ETag of the file is kept that a part belongs to."""
    return Path(f"{part}.etag")


def _empty(file) -> None:
    file.seek(0)
    file.truncate()


def _other_way() -> str:
    return "--from names another address, or a local file or folder"
