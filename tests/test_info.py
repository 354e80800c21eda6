"""gpt2flat info on everything that there is to ask about; what is broken is one line, and nothing here is fatal to a run."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from gpt2flat import Model
from gpt2flat.arch import gpt2
from gpt2flat.data.tokenizer import Tokenizer
from gpt2flat.errors import UnsupportedCPUError
from gpt2flat.formats import llmc
from gpt2flat.formats.debug_state import write_debug_state
from gpt2flat.info import main as info
from gpt2flat.inspection import machine
from gpt2flat.kernels import default_threads, openmp, record
from gpt2flat.train import main as train

TINY = Path(__file__).parent / "llmc_tiny"


@pytest.fixture
def ask(capfd):
    """Output of the command by label, joined per label; the exit code under "exit", stderr under "error"."""

    def asked(*words) -> dict[str, str]:
        code = info([str(word) for word in words])
        out, error = capfd.readouterr()
        told, label = {"exit": code, "error": error, "all": out}, ""
        for line in out.splitlines():
            label = line[:11].strip() or label
            told[label] = "\n".join(filter(None, (told.get(label), line[11:])))
        return told

    return asked


def test_a_token_file(ask, tmp_path):
    told = ask(TINY / "tokens_val.bin")
    ids = llmc.open_tokens(TINY / "tokens_val.bin").read(0, 24)
    count = (TINY / "tokens_val.bin").stat().st_size // 2 - 512
    assert told["exit"] == 0 and told["file"].endswith(f"a token file, {1024 + 2 * count:,} bytes")
    assert told["tokens"] == f"{count:,} of uint16, version 1" and re.match(r"from \d+ to \d+, \d+ different", told["ids"])
    assert Tokenizer.load(TINY / "tokenizer.bin").decode(ids[:3]).replace("\n", "\\n") in told["starts"]
    shutil.copy(TINY / "tokens_val.bin", tmp_path)  # alone: GPT-2's tokenizer knows all its ids
    assert "gpt2 tokenizer" in ask(tmp_path / "tokens_val.bin")["starts"]
    np.array([5, 60000], "<u2").tofile(tmp_path / "body")
    (tmp_path / "wide.bin").write_bytes(np.int32([llmc.TOKENS, 1, 2] + [0] * 253).tobytes() + (tmp_path / "body").read_bytes())
    assert ask(tmp_path / "wide.bin")["starts"] == "5 60000 (no tokenizer is beside it)"
    np.arange(300, dtype="<i4").tofile(tmp_path / "old.bin")
    assert ask(tmp_path / "old.bin")["tokens"] == "300 of int32, without header"


def test_a_tokenizer(ask, tmp_path):
    told = ask(TINY / "tokenizer.bin")
    assert told["kind"].startswith(f"table: {97} tokens")
    Tokenizer.char("ab\x1b\nc").save(tmp_path / "char.bin")
    told = ask(tmp_path / "char.bin")
    assert told["kind"] == "char: 6 tokens, end-of-text is 5" and "\x1b" not in told["all"] and '"\\n"' in told["tokens"]


def test_a_checkpoint(ask, tmp_path):
    told = ask(TINY / "model.bin")
    assert "a model checkpoint, version 3, fp32, " in told["file"] and "2 layers" in told["all"]
    model = Model.load(TINY / "model.bin")
    model.save(tmp_path / "half.bin", dtype="bf16")
    assert "version 5, bf16" in ask(tmp_path / "half.bin")["file"]
    told = ask("--tensors", TINY / "model.bin")
    assert [line.split()[0] for line in told["all"].splitlines()] == [row.name for row in gpt2.PARAMS]
    wte = model.params["wte"].astype(np.float64)
    assert f"mean {wte.mean():+.3e}  std {wte.std():.3e}  from {wte.min():+.3e} to {wte.max():+.3e}" in told["wte"]


def test_a_debug_state(ask, tmp_path):
    for name in ("model.bin", "tokenizer.bin"):
        shutil.copy(TINY / name, tmp_path)
    model = Model.load(TINY / "model.bin")
    tokens = np.random.default_rng(0).integers(0, 97, (2, 8))
    targets = np.where(tokens == tokens[0, 0], -1, tokens)
    loss = model.forward_backward(tokens, targets)
    logits = model.logits(tokens)
    path = tmp_path / "model_debug_state.bin"
    write_debug_state(path, tokens, targets, logits, loss, [model.grads[row.name] for row in gpt2.PARAMS])
    told = ask(path)
    assert f"{loss:.6f}" == told["loss"] and f"{(targets < 0).sum()} targets ignored" in told["batch"]
    assert f"norm {np.linalg.norm(model.grads['fcw'].astype(float)):.6g}" in told["fcw"]
    (tmp_path / "model.bin").unlink()
    assert ask(path)["batch"].startswith("version 2, 2 x 8 tokens; without its checkpoint")


def choice_file(path: Path, labels: list[int]) -> Path:
    """Examples of a context of two tokens and completions of one to four."""
    words, longest = [], 0
    for index, label in enumerate(labels):
        body = [2, 464, 3290, *(word for n in range(1, 5) for word in (n, *range(100, 100 + n)))]
        size = 2 * (5 + len(body))
        words += [65535, size, index, label, 4, *body]
        longest = max(longest, size)
    header = np.array([llmc.CHOICES, 1, len(labels), longest] + [0] * 252, "<i4")
    path.write_bytes(header.tobytes() + np.array(words, "<u2").tobytes())
    return path


def test_a_multiple_choice_file(ask, tmp_path):
    path = choice_file(tmp_path / "hellaswag_val.bin", labels=[2, 0, 2])
    told = ask(path)
    assert told["examples"].startswith("3, the longest row has ") and "2 in 67%" in told["examples"]
    assert "2 (right): " in told["first"]


def test_a_run(ask, tmp_path):
    assert train(["--steps", "3", "-b", "2", "-s", "0", "-v", "2", "--out", str(tmp_path / "run")]) == 0
    told = ask(tmp_path / "run")
    assert told["exit"] == 0 and "step_00000003/model.bin, 3.4 MB; the checkpoint has 10.2 MB" in told["saved"] and "steps 3" in told["settings"]
    assert re.match(r"3 updates, loss [\d.]+ \(step 0\) -> [\d.]+ \(step 2\), ", told["progress"]) and "best" in told["validation"]
    assert "byte: 257 tokens" in told["tokenizer"] and f"{default_threads().count} threads" in told["machine"]
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo\n[1]\n' + "[" * 100_000 + "\n")
    (tmp_path / "run" / "env.json").write_text("[")
    told = ask(tmp_path / "run")
    assert told["exit"] == 0 and "3 lines of metrics.jsonl are no records" in told["all"] and "commit unknown" in told["machine"]
    (tmp_path / "run" / "config.toml").unlink()
    told = ask(tmp_path / "run")
    assert told["exit"] == 5 and "is no run directory" in told["error"] and told["error"].count("\n") == 1


def test_the_machine(ask, monkeypatch):
    told = ask("--machine")
    assert told["exit"] == 0 and "scalar" in told["cpu"] and "libgomp" in told["openmp"] and "-fopenmp" in told["build"]
    assert "numpy" in told["packages"] and "available" in told["memory"]
    broken = {"sources": 1, "compiler": "", "variants": {"avx2": {"built": False, "error": "no\x1bgood"}}}
    monkeypatch.setattr(record, "read", lambda: broken)
    assert "OTHER SOURCES" in machine.build()[0] and machine.build()[1].startswith("avx2 not built: no")
    monkeypatch.setattr(record, "read", dict)
    assert "no record" in machine.build()[0]
    monkeypatch.setattr(openmp, "loaded", lambda: ["/a/libgomp.so.1", "/b/libomp.so"])
    assert ask("--machine")["openmp"].count("one of 2") == 2


@pytest.mark.parametrize("words, code, error", [
    (("nothing.bin",), 5, "no such file"),
    (("README",), 2, "README"),
    (("--tensors",), 2, "name a .bin file"),
    (("--program", TINY / "tokens_val.bin"), 2, "is no model"),
    ((Path(__file__),), 2, "is no file of llm.c's"),
    ((Path(__file__).parent,), 5, "is no run directory"),
])  # fmt: skip
def test_what_cannot_be_told_is_one_line(ask, words, code, error):
    told = ask(*words)
    assert (told["exit"], told["error"].count("\n"), told["all"]) == (code, 1, "") and error in told["error"]


def test_a_broken_file_is_one_line(ask, tmp_path):
    for name in ("model.bin", "tokens_val.bin", "tokenizer.bin"):
        (tmp_path / name).write_bytes((TINY / name).read_bytes()[:-3])
        told = ask(tmp_path / name)
        assert told["exit"] in (3, 4, 5) and told["error"].count("\n") == 1 and name in told["error"]


def test_numbers_of_a_record_that_are_none_do_no_harm(ask, tmp_path):
    (tmp_path / "config.toml").write_text("steps = 3\n")
    lines = [{"step": "x"}, {"step": 1, "loss": "x"}, {"step": 1, "loss": 2.5, "tokens_per_s": 7}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = ask(tmp_path)
    assert told["exit"] == 0 and told["progress"].startswith("2 updates, loss 2.5000 (step 1)")
    assert told["saved"] == "no checkpoint"


@pytest.mark.parametrize("rate", ["fast", None, [1], 10**400, True])
def test_a_rate_that_is_no_number_does_no_harm(ask, tmp_path, rate):
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.5, "tokens_per_s": rate}))
    assert ask(tmp_path)["progress"] == "2 updates, loss 2.5000 (step 1) -> 2.5000 (step 1)"


def test_settings_that_nest_too_deep_are_one_line(ask, tmp_path):
    (tmp_path / "config.toml").write_text("a = " + "[" * 10_000)
    told = ask(tmp_path)
    assert told["exit"] == 5 and told["error"].count("\n") == 1 and "config.toml cannot be read" in told["error"]


def test_what_a_run_says_cannot_reach_the_terminal_raw(ask, tmp_path):
    (tmp_path / "config.toml").write_text('out = "\\u001b]0;x\\u0007"\n')
    (tmp_path / "env.json").write_text('{"started": "\\u001b[2J", "cpu": "\\u001b[2J", "commit": "\\u009b"}')
    (tmp_path / "metrics.jsonl").touch()
    assert not {"\x1b", "\x07", "\x9b"} & set(ask(tmp_path)["all"])


def test_a_program_and_a_map(ask, tmp_path):
    told = ask("tiny", "--program")
    assert told["exit"] == 0 and "# classifier and backward: " in told["all"] and "linear_forward[3] -> " in told["all"]
    told = ask("tiny", "--as-code")
    assert told["exit"] == 0 and 'linear_forward(out=acts["qkv"][0], inp=acts["ln1"][0]' in told["all"]
    told = ask("tiny", "--program", "-r", 3)
    assert told["exit"] == 0 and 'attention_forward[0] -> acts["atty"][0] (256, 128)' in told["all"] and " again " in told["all"]
    told = ask("tiny", "--as-code", "--attention", "flash:32x64", "--dropout", 0.1)
    assert told["exit"] == 0 and "QB=32, KB=64" in told["all"] and 'dropout_backward(dinp=dacts["emb_full"]' in told["all"]
    told = ask("tiny", "--attention", "flash:32")
    assert told["exit"] == 2 and "attention 'flash:32': the queries and keys" in told["error"]
    told = ask("tiny", "--map", tmp_path / "absent" / "map.svg")
    assert told["exit"] == 5 and "cannot be written: no such file" in told["error"] and told["error"].count("\n") == 1


def test_a_machine_that_tells_little(ask, tmp_path, monkeypatch):
    def none(*_):
        raise UnsupportedCPUError("no kernels here")

    monkeypatch.setattr(machine, "HUGE_PAGES", tmp_path / "absent")
    monkeypatch.setattr(machine, "PACKAGES", ("numpy", "no-such-package"))
    monkeypatch.setattr(machine.kernels, "backend", none)
    monkeypatch.setattr(machine.kernels, "best_isa", none)
    told = ask("--machine")
    assert told["exit"] == 0 and told["kernels"] == "none: no kernels here" and "package absent" in told["packages"]
    assert "instruction sets unknown" in told["cpu"] and "huge pages: unknown" in told["memory"]


def test_the_map_with_generation_has_its_sections_between_v_and_scratch(tmp_path, capsys):
    picture = tmp_path / "map.svg"
    assert info(["tiny", "-b", "2", "-t", "8", "--generate", "3", "--weights", "int8", "--map", str(picture)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    sections = [line[0] for line in lines if len(line) == 4 and line[-1].endswith("%") and line[0] != "all"]
    assert sections == ["params", "grads", "m", "v", "kv", "packed", "token", "prompt", "scratch", "dacts", "acts"]
    keys = next(line for line in lines if line[0] == "keys")
    assert " ".join(keys[1:-3]) == "L x (B, KVH, S, HS) 4 x 3 x 4 x 64 x 32" and ">kv<" in picture.read_text()
    assert info(["tiny", "--generate", "3"]) == 0 and "packed" not in capsys.readouterr().out
    assert info(["tiny", "--generate", "0"]) == 2
