"""The prompt loop: what the context is, what can be changed, and the terminal: Ctrl-C, Ctrl-D, lines typed before."""

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from made_runs import make_run, peaked_model

from gpt2flat import GPT2Config, Model
from gpt2flat.data.tokenizer import Tokenizer
from gpt2flat.generate import READERS
from gpt2flat.generation.cache import Cache
from gpt2flat.generation.interactive import Talk, talk
from gpt2flat.generation.sampling import Sampling

BYTE = Tokenizer.byte()


@pytest.fixture(scope="module")
def model() -> Model:
    return peaked_model()


class Signal:
    """Comes after so many tokens were asked about; never if None."""

    def __init__(self, after=None, number=signal.SIGINT):
        self.left, self.number = after, number

    def __call__(self):
        return contextlib.nullcontext(self)

    def __bool__(self):
        if self.left is not None:
            self.left -= 1
        return self.left is not None and self.left <= 0


def begin(model, written: list, stops=(), stop_signal=Signal(), **settings) -> Talk:  # noqa: B008
    return Talk(model, BYTE, Sampling(**settings), 6, 3, stops, READERS, written.append, stop_signal)


def test_the_text_so_far_is_the_context(model):
    written = []
    conversation = begin(model, written, top_k=50)
    assert conversation.say("ab") is None
    first = model.generate(list(b"ab"), 6, top_k=50, seed=3, stop=256)
    assert conversation.ids.tolist() == first.tolist()
    assert conversation.say("c") is None  # with the next seed
    second = model.generate([*first, ord("c")], 6, top_k=50, seed=4, stop=256)
    assert conversation.ids.tolist() == second.tolist()
    conversation.say("")  # goes on
    assert conversation.ids.tolist() == model.generate(second, 6, top_k=50, seed=5, stop=256).tolist()
    conversation.say("/reset")
    conversation.say("ab")
    assert conversation.ids.tolist() == first.tolist()
    conversation.say("/reset")
    conversation.say("")
    assert conversation.ids[0] == BYTE.start


LINES = ["abcdefgh", "/reset", "abcdefgh", "/reset", "abcdXY", "ij", "", "k", "lm", "", "/reset", "abcdefghijklmnopqrstuvwxy",
         "/reset", "abcdefghijklmnopqrSTUVWXYZ", "n", "o" * 30, "p", "q", "", "r"]  # fmt: skip


@pytest.fixture
def reads(monkeypatch) -> list[int]:
    """How many ids were read at once, each time; and they are stepped over wherever they can be."""
    counts, read = [], Cache.read
    monkeypatch.setattr(Cache, "read", lambda self, first, tokens: counts.append(tokens.size) or read(self, first, tokens))
    monkeypatch.setattr("gpt2flat.generation.decoder.STEP", 1)
    return counts


def test_what_was_read_is_not_read_again(model, monkeypatch, reads):
    """Lines that are added, forgotten and typed again with another end, and outgrow the window of 24: the text of a loop that reads all."""
    talks = []
    for step in (1, 10**9):
        monkeypatch.setattr("gpt2flat.generation.decoder.STEP", step)
        conversation = begin(model, [], top_k=50)
        talks.append([conversation.say(line) or conversation.ids.tolist() for line in LINES])
        talks.append(sum(reads))
    assert talks[0] == talks[2] and talks[1] < 0.5 * (talks[3] - talks[1])


@pytest.mark.parametrize("weights, precision", [("bf16", "fp32"), ("int8", "fp32"), ("fp32", "bf16"), ("fp32", "fp32")])
def test_what_is_coarser_in_steps_or_in_reading_is_read_again(weights, precision, reads):
    coarse = Model.init(GPT2Config(block_size=24, vocab_size=257, n_layer=1, n_head=2, n_embd=16), threads=1, precision=precision)
    conversation = Talk(coarse, BYTE, Sampling(), 3, 3, (), READERS, [].append, Signal(), weights)
    conversation.say("ab")
    conversation.say("c")
    assert reads == ([2] if weights == precision else [2, 6])


def test_settings_are_changed_and_told(model):
    written = []
    conversation = begin(model, written)
    for line in ("/temperature 0.5", "/top-k 7", "/top_p 0.9", "/min-p 0.1", "/repetition-penalty 1.1", "/repetition-window 9", "/max-tokens 2",
                 "/seed 8", '/stop "a b" c'):  # fmt: skip
        assert conversation.say(line) is None
    assert conversation.sampling == Sampling(0.5, 7, 0.9, 0.1, 1.1, 9)
    assert (conversation.max_tokens, conversation.seed, conversation.turn, conversation.stops) == (2, 8, 0, ("a b", "c"))
    assert written == []
    for line in ("/top-k off", "/temperature off", "/repetition-penalty off"):
        conversation.say(line)
    assert conversation.sampling == Sampling(1.0, None, 0.9, 0.1, 1.0, 9)
    conversation.say("/top-k")
    assert written.pop() == "/top-k off\n"
    conversation.say("/help")
    assert all(f"/{name.replace('_', '-')} " in written[-1] for name in READERS) and "/seed 8\n" in written[-1]
    assert conversation.say("/quit") == 0


@pytest.mark.parametrize("line", ["/temperature hot", "/top-k 0", "/nothing", "/max-tokens off", "/temperature nan", '/stop "', '/stop ""', "/\x1b[2J"])
def test_a_mistake_is_one_line_and_changes_nothing(model, line):
    written = []
    conversation = begin(model, written)
    before = dict(vars(conversation))
    assert conversation.say(line) is None
    assert "".join(written).count("\n") == 1 and "\x1b" not in "".join(written)
    assert {name: value for name, value in vars(conversation).items() if name != "ids"} == {k: v for k, v in before.items() if k != "ids"}


def test_what_cannot_be_encoded_is_told(model):
    written = []
    conversation = Talk(model, Tokenizer.char("ab\n"), Sampling(), 3, 0, (), READERS, written.append, Signal())
    assert conversation.say("x") is None and "'x'" in written[0] and len(conversation.ids) == 0


def test_a_stop_string_is_not_in_the_context(model):
    plain = begin(model, [], temperature=0.0)
    plain.say("ab")
    answer = bytes(plain.ids[2:].tolist())
    stop = BYTE.decode(answer[2:4])
    conversation = begin(model, [], (stop,), temperature=0.0)
    conversation.say("ab")
    text = BYTE.decode(conversation.ids.tolist())
    assert text == "ab" + BYTE.decode(answer).partition(stop)[0]


def test_an_answer_that_is_stopped_stays_in_the_context(model):
    conversation = begin(model, written := [], stop_signal=Signal(2), temperature=0.0)
    assert conversation.say("ab") is None and len(conversation.ids) == 4 and written[-1] == "\n"
    assert begin(model, [], stop_signal=Signal(1, signal.SIGTERM)).say("ab") == signal.SIGTERM


def test_lines_that_go_on_and_the_ends(model):
    typed, said, written = iter(["a\\", "b\\", "c", "/quit"]), [], []
    assert talk(SimpleNamespace(say=lambda line: said.append(line) or (0 if line == "/quit" else None)), lambda prompt: next(typed), written.append) == 0
    assert said == ["a\nb\nc", "/quit"]
    assert talk(SimpleNamespace(say=lambda line: signal.SIGTERM), lambda prompt: "x", written.append) == 128 + signal.SIGTERM

    def raises(problems=iter([KeyboardInterrupt, KeyboardInterrupt, EOFError])):  # noqa: B008
        raise next(problems)

    assert talk(SimpleNamespace(say=None), lambda prompt: raises(), written.append) == 0 and written == ["\n"] * 3


# --- on a terminal ---------------------------------------------------------------------------------------------------


class Terminal:
    """A command with a terminal of its own; `screen` is what it has written since the last `until`."""

    def __init__(self, *command: str):
        import fcntl
        import pty
        import termios

        self.fd, slave = pty.openpty()
        control = lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # noqa: E731  so that Ctrl-C reaches it
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, preexec_fn=control,
                                        env=environment)  # fmt: skip
        os.close(slave)

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def until(self, pattern: str, seconds: float = 60.0) -> str:
        """What is written up to a match of the pattern."""
        text, end = "", time.monotonic() + seconds
        while not re.search(pattern, text):
            ready = select.select([self.fd], [], [], max(0, end - time.monotonic()))[0]
            assert ready, f"{pattern!r} did not come: {text!r}"
            try:
                data = os.read(self.fd, 1 << 16)
            except OSError:  # the other end is closed
                data = b""
            assert data, f"it ended before {pattern!r}: {text!r}"
            text += data.decode(errors="replace")
        return text

    def close(self) -> int:
        self.process.kill()
        os.close(self.fd)
        return self.process.wait()


@pytest.fixture
def terminal(model, tmp_path):
    pytest.importorskip("pty")
    run = make_run(model, tmp_path / "run", "2026-01-01")
    opened = Terminal(sys.executable, "-m", "gpt2flat.generate", str(run.path), "-i", "-n", "100000000", "--threads", "1", "--history",
                      str(tmp_path / "typed"))  # fmt: skip
    yield opened
    opened.close()


PROMPT = r"> (\x1b\[\?2004h)?$"


def test_at_a_terminal(terminal, tmp_path):
    assert "/help" in terminal.until("> ")
    terminal.type("once\n")
    terminal.until(r"once\r\n[\s\S]{200}")  # it writes, and would for hours
    terminal.type("\x03")
    terminal.until(r"\r\n(\x1b\[\?2004h)?> ")
    terminal.type("/max-tokens 3\n")
    terminal.until("> ")
    terminal.type("/temperature\n")
    assert "/temperature 1.0" in terminal.until(r"1\.0\r\n[\s\S]*> ")
    terminal.type("\x1b[A\n")  # the line before once more
    assert "/temperature 1.0" in terminal.until(r"1\.0\r\n[\s\S]*> ")
    terminal.type("half a line")
    terminal.until("half a line")
    time.sleep(0.2)  # until the line editor waits: an interrupt right before is only seen at the next key
    terminal.type("\x03")  # takes it back
    terminal.until(r"\r\n[\s\S]*> ")
    terminal.type("x\n")
    answer = terminal.until(r"x\r\n[\s\S]*> ")
    assert "\x1b]" not in answer
    terminal.type("\x04")
    assert terminal.process.wait(60) == 0
    assert (tmp_path / "typed").read_text().splitlines()[:3] == ["once", "/max-tokens 3", "/temperature"]


def test_a_signal_ends_it_in_the_midst_of_an_answer(terminal):
    terminal.until("> ")
    terminal.type("once\n")
    terminal.until(r"once\r\n[\s\S]{200}")
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.process.wait(60) == 128 + signal.SIGTERM


def test_lines_from_a_pipe(model, tmp_path):
    run = make_run(model, tmp_path / "run", "2026-01-01")
    command = [sys.executable, "-m", "gpt2flat.generate", str(run.path), "-i", "-n", "4", "--greedy", "--threads", "1"]
    done = subprocess.run(command, input=b"a\xffb\n\n/quit\nnever\n", capture_output=True, check=False)
    first = model.generate(BYTE.encode("a\ufffdb"), 4, temperature=0, stop=256)
    second = model.generate(first, 4, temperature=0, stop=256)
    texts = [BYTE.decode(ids) for ids in (first[5:], second[len(first) :])]
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == "".join(f"{text}\n" for text in texts)
