"""downloaddataset.sh against a server on 127.0.0.1 that drops, lies and redirects, with each of curl, wget and python3.

A PATH of chosen links decides which of the three the script finds; of those that this machine lacks nothing is tested."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from itertools import repeat
from pathlib import Path

import pytest
from faulty_server import Server, cut, elsewhere, error, hang_up, ignore_range, serve
from samples import DIMS, checkpoint_words, choice_bytes, debug_state_bytes, header, parameters, tokenizer_bytes

from gpt2flat.arch.gpt2 import config_of
from gpt2flat.formats import checkpoint, choices, debug_state, llmc

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "downloaddataset.sh"
TINY = {
    "gpt2_124M.bin": "model",
    "gpt2_tokenizer.bin": "tokenizer",
    "tiny_shakespeare_train.bin": "tokens_train",
    "tiny_shakespeare_val.bin": "tokens_val",
}
BASE = {name: (ROOT / f"tests/llmc_tiny/{stem}.bin").read_bytes() for name, stem in TINY.items()}
MODEL, TOKENIZER, TRAIN, VAL = BASE
PART = MODEL + ".part"
NEEDED = "awk bash cat cp df dirname head mkdir mktemp mv od rm sed sh sync tail tr wc"


def works(tool):
    """Whether it is here, and the one that the script takes (GNU Wget 1, which is neither Wget2 nor busybox's)."""
    path = shutil.which(tool)
    said = path and subprocess.run([path, "--version"], capture_output=True, text=True).stdout
    return said and said.startswith(("curl", "GNU Wget 1."))


TOOLS = ["python3", *filter(works, ("curl", "wget"))]


def can_mount():
    line = [shutil.which("unshare"), "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return line[0] and not subprocess.run(line, capture_output=True).returncode


# --- the script and what it finds -------------------------------------------------------------------------------------


def put_program(folder, name, text):
    """A shell script in the place of a link; "x" never writes through one, into the system's own program."""
    (folder / name).unlink(missing_ok=True)
    with open(folder / name, "x") as file:
        file.write(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


class Place:
    """A data folder of its own, and a PATH with one of the tools."""

    def __init__(self, root, address, tool):
        self.data, self.bin, self.address = root / "data", root / "bin", address
        self.bin.mkdir()
        for program in {*NEEDED.split(), tool} - {"python3"}:
            (self.bin / program).symlink_to(shutil.which(program))
        if tool == "python3":
            put_program(self.bin, tool, f'exec {sys.executable} "$@"')
        put_program(self.bin, "sleep", "exit 0")
        self.env = {"PATH": str(self.bin), "HOME": str(root), "TMPDIR": str(root)}
        self.env |= {"GPT2FLAT_DATA": str(self.data), "GPT2FLAT_DOWNLOAD_BASE": address}

    def put(self, files):
        self.data.mkdir(exist_ok=True)
        for name, data in files.items():
            (self.data / name).write_bytes(data)

    def run(self, *flags, script=SCRIPT, **how):
        line = [str(self.bin / "bash"), str(script), *flags]
        return subprocess.run(line, **{"env": self.env, "capture_output": True, "text": True, "timeout": 60} | how)

    def files(self):
        return {path.name: path.read_bytes() for path in self.data.iterdir()}


def all_but(name):
    return {other: data for other, data in BASE.items() if other != name}


@pytest.fixture
def server():
    with Server(BASE) as server:
        yield server


@pytest.fixture(params=TOOLS)
def place(request, tmp_path, server):
    """With each tool in turn."""
    return Place(tmp_path, server.address, request.param)


@pytest.fixture
def one_place(tmp_path, server):
    """With one of them; for what does not depend on it."""
    return Place(tmp_path, server.address, TOOLS[-1])


def succeeded(done):
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def failed(done, *says, code=1):
    assert done.returncode == code and done.stderr.count("\n") == 1, done
    assert all(word in done.stderr for word in says), done.stderr


# --- what goes well ---------------------------------------------------------------------------------------------------


def test_fetches_once(place, server):
    said = succeeded(place.run())
    assert place.files() == BASE and [name for name, _ in server.requests] == list(BASE)
    assert re.search(
        r"gpt2_124M.bin +497.9 MB\n.*\ntotal +498.9 MB from .*\ngpt2_124M.bin +127.4 kB, done", said, re.DOTALL
    )
    assert succeeded(place.run()).count("there already") == 4 and len(server.requests) == 4


def test_the_trainer_finds_what_was_fetched(one_place, tmp_path):
    succeeded(one_place.run())
    environ = os.environ | {"GPT2FLAT_DATA": str(one_place.data), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "gpt2flat.train", "-x", "2", "-s", "0"]
    succeeded(subprocess.run(line, cwd=tmp_path, env=environ, capture_output=True, text=True))
    run = tmp_path / "runs/gpt2_124M-tiny_shakespeare-001/metrics.jsonl"
    losses = [event["loss"] for event in map(json.loads, run.read_text().splitlines()) if "loss" in event]
    printed = json.loads((ROOT / "tests/llmc_tiny/losses.json").read_text())["train"]
    assert losses == pytest.approx(printed[:2], abs=2e-5)


def test_goes_on_after_a_drop(place, server):
    place.put(all_but(MODEL))
    server.faults[MODEL] = iter([cut(5000), hang_up, cut(70000), error(503)])
    assert succeeded(place.run()).count("once more") == 4
    assert place.files() == BASE
    assert server.requests == [(MODEL, at and f"bytes={at}-") for at in (None, 5000, 5000, 70000, 70000)]


def test_goes_on_from_where_an_earlier_run_was_given_up(place, server):
    place.put(all_but(MODEL))
    server.faults[MODEL] = repeat(cut(5000))
    failed(place.run(), "given up, 5 attempts", "has 5000 bytes, its header asks for at least 127488")
    assert len(server.requests) == 6 and place.files()[PART] == BASE[MODEL][:5000]
    assert not (place.data / MODEL).exists()
    del server.faults[MODEL], server.requests[:]
    assert "of which 5.0 kB are here" in succeeded(place.run())
    assert place.files() == BASE and server.requests == [(MODEL, "bytes=5000-")]


def test_a_server_that_ignores_ranges_starts_anew(place, server):
    place.put(all_but(MODEL))
    place.put({PART: BASE[MODEL][:5000]})
    server.faults[MODEL] = repeat(ignore_range)
    succeeded(place.run())
    assert place.files() == BASE and (MODEL, "bytes=5000-") in server.requests


def test_follows_redirects_and_goes_on_behind_them(place, server):
    place.put(all_but(TRAIN))
    server.faults[TRAIN] = repeat(lambda *asked: elsewhere(*asked, until=None if asked[2] else 2000))
    succeeded(place.run())
    assert place.files() == BASE
    assert server.requests == [(TRAIN, at) for at in (None, None, "bytes=2000-", "bytes=2000-")]


def test_a_whole_part_only_takes_its_name(one_place, server):
    one_place.put(all_but(MODEL))
    one_place.put({PART: BASE[MODEL]})
    one_place.run()
    assert one_place.files() == BASE and not server.requests


def test_into_data_beside_the_script_from_a_folder(one_place, tmp_path):
    """No network and no tool; relative, absolute and file:// all name the folder."""
    (tmp_path / "stick").mkdir()
    for name, data in BASE.items():
        (tmp_path / "stick" / name).write_bytes(data)
    (tmp_path / "clone").mkdir()
    script = shutil.copy(SCRIPT, tmp_path / "clone")
    del one_place.env["GPT2FLAT_DATA"]
    (one_place.bin / TOOLS[-1]).unlink()
    one_place.data = tmp_path / "clone/data"
    for base in ("stick", f"file://{tmp_path}/stick/"):
        succeeded(one_place.run(f"--from={base}", script=script, cwd=tmp_path))
        assert one_place.files() == BASE
        shutil.rmtree(one_place.data)
    failed(one_place.run("--from", "clone", script=script, cwd=tmp_path), "clone/gpt2_124M.bin: no such file")


# --- what goes wrong --------------------------------------------------------------------------------------------------

PAGE = b"<!DOCTYPE html><title>sign in</title>" + b" " * 2000
WRONG = [
    (PAGE, "starts with '<!DOCTYPE html>"),
    (BASE[TRAIN], "(20240520), expected 20240326, a checkpoint"),
    (header(checkpoint_words() | {1: 1}) + bytes(4 * 300), "is a checkpoint of version 1, expected 3"),
    (header(checkpoint_words(C=0)), "cannot be"),
    (header(checkpoint_words(C=1 << 20, L=1 << 20)) + bytes(4 * 300), "cannot be"),
    (BASE[MODEL] + b"\0\0", "has 127490 bytes, its header asks for 127488"),
]


@pytest.mark.parametrize("content, says", WRONG)
def test_wrong_content_is_refused_and_thrown_away(one_place, server, content, says):
    one_place.put(all_but(MODEL))
    server.files[MODEL] = content
    failed(one_place.run(), f"{server.address}/{MODEL}: is not the file: it ", says)
    assert one_place.files() == all_but(MODEL)
    assert len(server.requests) == 1


def test_an_error_page_is_no_model(place, server):
    server.files[MODEL] = PAGE
    failed(place.run(), "is not the file: it starts with '<!DOCTYPE html>")
    assert place.files() == {}


def test_a_file_that_is_short_on_the_server(place, server):
    """Its length is what the server says, and not what its own header asks for."""
    place.put(all_but(MODEL))
    server.files[MODEL] = BASE[MODEL][:-2]
    failed(place.run(), "given up, 5 attempts", "at least 127488")
    assert not (place.data / MODEL).exists()


def test_a_server_that_promises_more_than_the_file(place, server):
    place.put(all_but(MODEL))
    server.files[MODEL] = BASE[MODEL] + bytes(100)
    server.faults[MODEL] = repeat(cut(len(BASE[MODEL])))
    failed(place.run(), "is whole by its header, but not for the server")
    assert not (place.data / MODEL).exists()


def test_a_file_that_is_not_there(place, server):
    del server.files[MODEL]
    failed(place.run(), f"{server.address}/{MODEL}: ", "404", "--from")
    assert place.files() == {} and len(server.requests) == 1


def test_a_server_in_trouble(one_place, server):
    server.faults[MODEL] = repeat(error(500))
    failed(one_place.run(), "given up, 5 attempts brought nothing new", "500")
    assert one_place.files() == {} and len(server.requests) == 5


def test_offline(place, server, tmp_path):
    with Server() as closed:
        address = closed.address
    says = [f"{address}/{MODEL}: cannot be reached", "by hand", "--from", "the built-in text", "--init d12"]
    failed(place.run("--from", address), *says)
    assert place.files() == {} and sorted(path.name for path in tmp_path.iterdir()) == ["bin", "data"]


def lie_about_space(place, kilobytes):
    put_program(place.bin, "df", f"echo; echo disk 1 1 {kilobytes}")


ON_A_SMALL_DISK = f"""set -e
mount -t tmpfs -o size=64k tmpfs data
if PATH=$PWD/bin bash {SCRIPT} 2>said; then exit 1; fi
ls data >there
mount -o remount,size=1m data
PATH=$PWD/bin bash {SCRIPT}
cp data/* out
"""


def check_full_disk(server, said, there, fetched):
    assert said.count("\n") == 1 and "cannot be written beyond" in said and "make room" in said
    assert there == [PART] and fetched == BASE
    assert server.requests[1][0] == MODEL and 0 < int(server.requests[1][1][6:-1]) <= 65536


def test_a_file_that_may_not_grow(place, server):
    done = place.run(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536)))
    there = os.listdir(place.data)
    succeeded(place.run())
    check_full_disk(server, done.stderr, there, place.files())


def test_a_full_disk(place, server, tmp_path):
    """A file system of 64 kB, later enlarged; where mounting one is not allowed, the limit on files stands for it."""
    if not can_mount():
        return
    lie_about_space(place, 1 << 30)
    place.data.mkdir()
    (tmp_path / "out").mkdir()
    line = [shutil.which("unshare"), "-Urm", "bash", "-c", ON_A_SMALL_DISK]
    environ = place.env | {"PATH": os.environ["PATH"]}
    done = subprocess.run(line, cwd=tmp_path, env=environ, capture_output=True, text=True)
    succeeded(done)
    place.data = tmp_path / "out"
    check_full_disk(server, (tmp_path / "said").read_text(), (tmp_path / "there").read_text().split(), place.files())


def test_too_little_space_is_said_before_anything_is_fetched(one_place, server):
    lie_about_space(one_place, 10_000)
    failed(one_place.run(), "has room for 10.2 MB, not for 498.9 MB")
    failed(one_place.run("--all"), "not for 1.3 GB")
    assert not server.requests and one_place.files() == {}


def test_what_is_there_and_wrong_is_replaced_only_by_a_whole_file(one_place, server):
    one_place.put(all_but(MODEL))
    old = BASE[MODEL][:3000]
    one_place.put({MODEL: old, PART: PAGE})
    server.faults[MODEL] = iter([error(404)])
    done = one_place.run()
    failed(done, "404")
    assert "what is there has 3000 bytes, its header asks for at least 127488: to be replaced" in done.stdout
    assert "begun anew: what" in done.stdout and one_place.files() == BASE | {MODEL: old}
    succeeded(one_place.run())
    assert one_place.files() == BASE | {MODEL + ".old": old}


def test_a_signal_ends_the_fetching_too(place, server):
    """What came so far stays for the next run, and nothing goes on writing into it."""
    stalled, release = threading.Event(), threading.Event()

    def stall(to, data, start):
        to.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data[:5000])
        to.wfile.flush()
        stalled.set()
        release.wait(30)
        serve(to, data, 5000)

    place.put(all_but(MODEL))
    server.faults[MODEL] = iter([stall])
    line = [str(place.bin / "bash"), str(SCRIPT)]
    with subprocess.Popen(line, env=place.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert stalled.wait(30)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=30)[1]
    release.set()
    assert (process.returncode, said) == (143, b"") and not (place.data / ".download.lock").exists()
    assert not (place.data / MODEL).exists() and len(place.files().get(PART, b"")) <= 5000
    succeeded(place.run())
    assert place.files() == BASE


def test_one_at_a_time(one_place, server):
    one_place.put({".download.lock": b"%d\n" % os.getpid()})
    failed(one_place.run(), f"process {os.getpid()} fetches into it already")
    assert not server.requests
    gone = subprocess.Popen(["true"])
    gone.wait()
    one_place.put({".download.lock": b"%d\n" % gone.pid})
    succeeded(one_place.run())
    assert one_place.files() == BASE


def test_tools(one_place):
    failed(one_place.run("--with", "fetch"), "expected curl, wget or python3", code=2)
    failed(one_place.run("--al"), "--al: is no argument of this script", code=2)
    failed(one_place.run("--from"), "--from: needs a value", code=2)
    failed(one_place.run("--from", "/nonexistent"), "is neither a web address nor a folder", code=2)
    for tool in ("curl", "wget", "python3"):
        put_program(one_place.bin, tool, "echo GNU Wget2 2.1.0")  # exits with 0 whatever happens
    failed(one_place.run("--with=wget"), "no wget that works is here: install one")
    failed(one_place.run(), "no curl, wget or python3 that works is here", "by hand")
    put_program(one_place.bin, "python3", f'exec {sys.executable} "$@"')
    succeeded(one_place.run())
    assert one_place.files() == BASE
    one_place.env["GPT2FLAT_DATA"] = "/dev/null/data"
    failed(one_place.run(), "/dev/null/data: cannot be made a folder")
    assert "--all" in succeeded(one_place.run("--help"))


# --- the table and the lengths ----------------------------------------------------------------------------------------


def table():
    rows = re.search(r'^FILES="\n(.*?)"', SCRIPT.read_text(), re.DOTALL | re.MULTILINE)[1]
    return {row.split()[0]: row.split()[1:] for row in rows.splitlines()}


def length_of_debug_state(B, T, V, count):
    return 1024 + 4 * (2 * B * T + B * T * V + 1 + count)


def test_the_table_agrees_with_the_readers():
    count = config_of("d12").num_parameters
    expected = {
        MODEL: (llmc.CHECKPOINT, {checkpoint.WRITTEN["fp32"]}, 1024 + 4 * count),
        TOKENIZER: (llmc.TOKENIZER, {1, llmc.TOKENIZER_VERSION}, (ROOT / "gpt2flat/data" / TOKENIZER).stat().st_size),
        TRAIN: (llmc.TOKENS, {llmc.TOKENS_VERSION}, 1024 + 2 * 305_260),  # the counts that llm.c's README prints
        VAL: (llmc.TOKENS, {llmc.TOKENS_VERSION}, 1024 + 2 * 32_768),
        "gpt2_124M_bf16.bin": (llmc.CHECKPOINT, {checkpoint.WRITTEN["bf16"]}, 1024 + 2 * count),
        "gpt2_124M_debug_state.bin": (llmc.DEBUG_STATE, {debug_state.VERSIONS[-1]}, length_of_debug_state(4, 64, 50257, count)),
        "hellaswag_val.bin": (llmc.CHOICES, {choices.VERSION}, 3_600_000),
    }  # fmt: skip
    found = {name: (int(m), {*map(int, v.split(","))}, int(n)) for name, (_, _, m, v, n) in table().items()}
    assert found == expected
    assert [name for name, row in table().items() if row[0] == "base"] == list(BASE)


@pytest.mark.parametrize("dims", [DIMS, dict(maxT=1024, V=50257, L=12, NH=12, C=768, Vp=50304)])
def test_lengths_by_header(one_place, tmp_path, dims):
    """Every kind, as long as the tensor table says, is whole; a byte more or less is not, and is said."""
    words = checkpoint_words(**dims)
    lengths = {MODEL: 1024 + 4 * parameters(dims), "gpt2_124M_bf16.bin": 1024 + 2 * parameters(dims)}
    lengths["gpt2_124M_debug_state.bin"] = length_of_debug_state(2, 3, dims["V"], parameters(dims))
    state = debug_state_bytes()[:1024]
    starts = BASE | {MODEL: header(words), "gpt2_124M_bf16.bin": header(words | {1: 5})}
    starts |= {"gpt2_124M_debug_state.bin": state, "hellaswag_val.bin": choice_bytes()}
    if dims is DIMS:
        assert lengths["gpt2_124M_debug_state.bin"] == len(debug_state_bytes())
    lengths = {name: lengths.get(name, len(data)) for name, data in starts.items()}
    (tmp_path / "empty").mkdir()
    one_place.put(starts)
    for extra in (0, -1, 1):
        for name, length in lengths.items():
            os.truncate(one_place.data / name, length + extra)  # sparse
        done = one_place.run("--all", "--from", str(tmp_path / "empty"))
        assert done.returncode == bool(extra) and done.stdout.count("there already") == (0 if extra else 7), done
        for name, length in lengths.items():
            claim = f"{name:28}what is there has {length + extra} bytes, its header asks for {'at least ' * (extra < 0)}{length}:"
            assert (claim in done.stdout) == bool(extra), done.stdout


CHOICES = len(choice_bytes())


@pytest.mark.parametrize(
    "name, data, says",
    [
        (TOKENIZER, tokenizer_bytes((b"a", b"", b"c")), "is a tokenizer whose header or records cannot be"),
        (TOKENIZER, tokenizer_bytes()[:1026], "has 1026 bytes, its header asks for at least 1030"),
        ("hellaswag_val.bin", choice_bytes({"start": 1}), "is a choice file whose header or records cannot be"),
        ("hellaswag_val.bin", choice_bytes({"size": 9}), "is a choice file whose header or records cannot be"),
        ("hellaswag_val.bin", choice_bytes(_2=3), f"has {CHOICES} bytes, its header asks for at least {CHOICES + 30}"),
    ],
)
def test_records(one_place, tmp_path, name, data, says):
    """What the records of a stream ask for; it is short, not whole, where it ends between two of them."""
    one_place.put({name: data})
    assert f"{name:28}what is there {says}" in one_place.run("--all", "--from", str(tmp_path)).stdout
