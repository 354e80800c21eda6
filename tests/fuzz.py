"""Attacks every reader of files with mutants of valid ones: python tests/fuzz.py --cases 1000000 --seed 7

A reader runs in a process of its own. Each case is made from (seed, reader, index) alone, so --reader R --only INDEX
makes it again, shows what happens and keeps the file. What must hold is said in Attack.judge, how far the mutants must
come in test_fuzz.py."""

import argparse
import ast
import faulthandler
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gpt2flat
from fuzz_mutants import mutant
from fuzz_readers import READERS, Reader
from gpt2flat.errors import Gpt2FlatError
from gpt2flat.formats.llmc import kind_of

try:
    import resource
except ImportError:  # not on Windows
    resource = None

PACKAGE = Path(gpt2flat.__file__).parent
SEED, CASES = 20240326, 100_000
SLOW, ROOM = 0.05, 64 << 20  # seconds (of its own, not on the clock) and bytes that a case may take
KEPT = 5  # failures told per reader
DEEP = 600  # of the first so many different headers that are accepted each is used with what takes milliseconds
READ_ONLY = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
# audit events while a file is judged, and while it is used
ALLOWED = {
    "open",
    "object.__getattr__",
    "sys._getframe",
    "builtins.id",
    "array.__new__",
    "os.scandir",
    "os.listdir",
    "pathlib.Path.glob",
}
ALLOWED_IN_USE = ALLOWED | {"mmap.__new__"}


# --- one reader, in a process of its own ----------------------------------------------------------------------------


class Attack:
    """The cases of one reader, and what they came to."""

    def __init__(self, name: str, seed: int, folder: Path):
        self.name, self.seed, self.reader = name, seed, READERS[name]
        self.path = folder / self.reader.file
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)  # once: nothing is opened to write while watched
        for other, content in self.reader.beside:
            (folder / other).write_bytes(content)
        self.counts, self.reasons, self.failures = Counter(), Counter(), []
        self._allowed, self._forbidden, self._headers = None, [], set()
        sys.addaudithook(self._audit)
        for data in (*self.reader.seeds, *self.reader.large, *self.reader.hostile):
            self.attempt(data, deep=True)  # loads whatever is loaded at the first use
        for seen in (self.counts, self.reasons, self.failures, self._forbidden):
            seen.clear()
        self._peak = peak_memory()

    def _audit(self, event: str, args) -> None:
        if self._allowed is not None and (event not in self._allowed or (event == "open" and args[2] & ~READ_ONLY)):
            self._forbidden.append(f"{event} {args!r:.200}")

    def case(self, index: int) -> bytes:
        return mutant(self.reader, random.Random(f"{self.seed}/{self.name}/{index}"))

    def run(self, first: int, count: int, stop: bool = False) -> dict:
        """Judges `count` cases; stop: only up to the first failure."""
        start = time.perf_counter()
        for index in range(first, first + count):
            data = self.case(index)
            self.judge(index, data)
            if index % 256 == 0 or index == first + count - 1:
                grown = peak_memory() - self._peak
                if grown > ROOM:
                    self.fail(index, f"memory grew by {grown >> 20} MiB within the 256 cases up to this one")
                    self._peak += grown
            if stop and self.failures:
                break
        os.close(self._fd)
        seconds = time.perf_counter() - start
        return {"reader": self.name, "seconds": seconds, "failures": self.failures} | {
            "counts": dict(self.counts), "reasons": dict(self.reasons)}  # fmt: skip

    def fail(self, index: int, what: str) -> None:
        self.counts["failed"] += 1
        if len(self.failures) < KEPT:
            self.failures.append(f"{self.name} case {index} of seed {self.seed}: {what}")

    def judge(self, index: int, data: bytes) -> None:
        """A reader accepts what fits and refuses the rest by an error of the family that names the file in one line;
        what it accepted can be used. It runs, imports and writes nothing, and takes little memory and time."""
        self.counts["cases"] += 1
        self.counts["known"] += self.reader.knows(data)
        header = data[:1024]
        deep = index % 16 == 0 or (len(self._headers) < DEEP and header not in self._headers)
        accepted, error, seconds = self.attempt(data, deep, cut=index % 8 == 1)
        if accepted and deep:
            self._headers.add(header)
        if error and not isinstance(error, Gpt2FlatError):
            self.fail(index, "".join(traceback.format_exception(error))[-1500:])
        elif error and not accepted and (str(self.path.parent) not in str(error) or "\n" in str(error)):
            self.fail(index, f"a message that does not name the file in one line: {error}")
        elif accepted != self.reader.fits(data):
            self.fail(index, f"accepted {accepted}, but it fits {self.reader.fits(data)}: {error}")
        if self._forbidden:
            self.fail(index, f"did {'; '.join(self._forbidden):.500}")
            self._forbidden.clear()
        if seconds > SLOW:
            self.counts["slow at first"] += 1
            again = min(self.attempt(data, deep)[2] for _ in range(3))  # a busy machine slows what shares its caches
            if again > SLOW:
                self.fail(index, f"took {1000 * again:.0f} ms")

    def attempt(self, data: bytes, deep: bool, cut: bool = False) -> tuple[bool, BaseException | None, float]:
        """(whether the file was accepted, the error, seconds). cut: it is truncated once it has been accepted."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, data, 0)
        reading, accepted, error, seconds = self.reader.read(self.path, deep), False, None, 0.0
        before = limit_memory(ROOM)
        start = time.process_time()
        self._allowed = ALLOWED
        try:
            if self.reader.start:
                kind_of(self.path)
            accepted = next(reading, reading) is None
            self._allowed = None
            unlimit_memory(before)
            if cut and accepted:
                os.ftruncate(self._fd, len(data) // 2)
            self._allowed = ALLOWED_IN_USE
            next(reading, None)  # reads it whole
            seconds = time.process_time() - start
            next(reading, None)  # and works with it, which may take time
            self.counts["used"] += accepted and not cut
        except BaseException as problem:  # a panic of Rust is no Exception
            error, seconds = problem, seconds or time.process_time() - start
        self._allowed = None
        unlimit_memory(before)
        self.counts["accepted"] += accepted
        if error:
            self.reasons[where(error, self.reader)] += 1
        return accepted, error, seconds


def where(error: BaseException, reader: Reader) -> str:
    """The place in the package that raised: "llmc.check_size:12", and for some functions what for."""
    found = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename.startswith(str(PACKAGE)):
            found = frame, line
    if not found:
        return type(error).__name__
    code = found[0].f_code
    function = f"{Path(code.co_filename).stem}.{code.co_qualname}"
    told = "".join(f" {plain(found[0].f_locals.get(name))}" for of, name, _ in reader.details if of == function)
    return f"{function}:{found[1]}{told}"


def plain(value) -> str:
    """A local variable without the numbers and bytes in it."""
    return re.sub(r"b'[^']*'|b\"[^\"]*\"|-?\d+", "_", str(value))


def limit_memory(room: int):
    """Lets this process map `room` bytes more than it has, so that a large allocation fails at once. The old limits."""
    if not resource or not os.path.exists("/proc/self/statm"):
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", "rb", buffering=0) as file:
        mapped = int(file.read(64).split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + room, hard))
    return soft, hard


def unlimit_memory(before) -> None:
    if before:
        resource.setrlimit(resource.RLIMIT_AS, before)


def peak_memory() -> int:
    """The most bytes that this process has had in memory. (getrusage would count in what the parent had.)"""
    try:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) << 10
    except OSError:
        return (
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)
            if resource
            else 0
        )


# --- all readers -----------------------------------------------------------------------------------------------------


def refusals() -> dict[str, list[int]]:
    """{function: the lines of its raise statements} for everything in formats/ and data/."""
    found = {}

    def visit(node, name: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = isinstance(child, ast.FunctionDef | ast.ClassDef)
            if isinstance(child, ast.Raise) and child.exc:
                found.setdefault(name.replace(".<locals>", ""), []).append(child.lineno)
            visit(child, f"{name}.{child.name}" if inner else name)

    for path in [*PACKAGE.glob("formats/*.py"), *PACKAGE.glob("data/*.py")]:
        visit(ast.parse(path.read_text()), path.stem)
    return found


def folder() -> tempfile.TemporaryDirectory:
    """A new folder, in memory where there is one."""
    return tempfile.TemporaryDirectory(prefix="fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)


def hunt(cases: int = CASES, seed: int = SEED, jobs: int = 2) -> dict[str, dict]:
    """Attacks every reader with its share of the cases, `jobs` readers at a time; {reader: report}."""
    whole = sum(reader.share for reader in READERS.values())
    shares = {name: -(-cases * reader.share // whole) for name, reader in READERS.items()}
    with folder() as where_to, ThreadPoolExecutor(jobs) as pool:
        asked = {name: pool.submit(hunt_one, name, seed, count, Path(where_to)) for name, count in shares.items()}
        return {name: report.result() for name, report in asked.items()}


def hunt_one(name: str, seed: int, count: int, parent: Path, program=(__file__,)) -> dict:
    """A reader in a process of its own; the signal that ended it, if one did, is among the failures."""
    place = Path(tempfile.mkdtemp(dir=parent))
    path = os.pathsep.join([str(PACKAGE.parent), str(Path(__file__).parent)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    environment.pop("COVERAGE_PROCESS_CONFIG", None)  # to count lines would take as long again
    command = [sys.executable, "-X", "faulthandler", *program, "--worker", str(place), "--reader", name]
    command += ["--seed", str(seed), "--cases", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == 0:
        return json.loads(done.stdout)
    kept = Path(tempfile.mkdtemp(prefix="fuzz-crash-")) / READERS[name].file
    kept.write_bytes((place / READERS[name].file).read_bytes())
    what = f"{name}, seed {seed}: the process ended with {done.returncode} on {kept}: {done.stderr[-2000:]}"
    return {"reader": name, "seconds": 0.0, "failures": [what], "counts": {"failed": 1}, "reasons": {}}


def show(reports: dict[str, dict]) -> str:
    lines = [f"{'reader':12}{'cases':>9}{'known':>9}{'accepted':>9}{'used':>9}{'failed':>7}{'seconds':>8}"]
    for name, report in reports.items():
        count = Counter(report["counts"])
        numbers = "".join(f"{count[key]:9}" for key in ("cases", "known", "accepted", "used"))
        lines.append(f"{name:12}{numbers}{count['failed']:7}{report['seconds']:8.1f}")
        lines += [f"    {times:9} {reason}" for reason, times in sorted(report["reasons"].items())]
    return "\n".join(lines + [failure for report in reports.values() for failure in report["failures"]])


def again(name: str, seed: int, index: int) -> None:
    """One case: keeps its file, and shows what its reader makes of it."""
    attack = Attack(name, seed, Path(tempfile.mkdtemp(prefix="fuzz-")))
    attack.judge(index, attack.case(index))
    print(attack.path, dict(attack.counts), dict(attack.reasons), *attack.failures, sep="\n")


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--cases", type=int, default=CASES)
    p.add_argument("--seed", type=int, default=SEED)
    p.add_argument("--jobs", type=int, default=2, help="readers that are attacked at the same time")
    p.add_argument("--reader", choices=READERS)
    p.add_argument("--only", type=int, metavar="INDEX", help="with --reader: just this case")
    p.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if args.worker:
        faulthandler.dump_traceback_later(600 + args.cases / 100, exit=True)
        print(json.dumps(Attack(args.reader, args.seed, args.worker).run(0, args.cases)))
        return 0
    if args.only is not None:
        again(args.reader, args.seed, args.only)
        return 0
    print(f"seed {args.seed}, {args.cases} cases", flush=True)
    with folder() as place:
        one = {args.reader: hunt_one(args.reader, args.seed, args.cases, Path(place))} if args.reader else None
    reports = one or hunt(args.cases, args.seed, args.jobs)
    print(show(reports))
    return int(any(report["failures"] for report in reports.values()))


if __name__ == "__main__":
    sys.exit(main())
