"""Seeded faults that the fuzzer must see: a line of a reader is changed, and the attack must fail within CASES cases.

Run as a program it prints {fault: the first failure, or ""} as JSON: an audit hook and limits on memory want a process
of their own."""

import json
from pathlib import Path

import fuzz
from seeding import fault

from gpt2flat.data import corpus, tokenizer, tokens
from gpt2flat.formats import checkpoint, choices, debug_state, files, llmc, pytorch, safetensors, zip_members

CASES = 4000
SIZE = "if file.size != HEADER_BYTES + payload:"
WORDS = 'words = list(struct.unpack("<256i", raw))'
ACCEPTED, NAME, IMPORT = "accepted True", "name the file", WORDS + "; import "
check_dims, read_choice = checkpoint.check_dims, choices.ChoiceFile._read
open_checkpoint, open_debug_state = checkpoint.Checkpoint.__init__, debug_state.DebugState.__init__
# fault: (reader, function, its source, the source instead, what the failure says)
FAULTS = {
    "a longer file": ("checkpoint", llmc.check_size, SIZE, SIZE.replace("!=", "<"), ACCEPTED),
    "a shorter file": ("tokens", llmc.check_size, SIZE, SIZE.replace("!=", ">"), ACCEPTED),
    "sizes of 32 bits": (
        "checkpoint", llmc.check_size, SIZE, "if (file.size - HEADER_BYTES - payload) % 2**32:", ACCEPTED),
    "heads that do not share": ("checkpoint", check_dims, 'if dims["C"] % dims["NH"]:', "if False:", NAME),
    "negative dims": ("checkpoint", check_dims, "1 <= dims[name] <= cap", "0 != dims[name] <= cap", NAME),
    "V above Vp": ("checkpoint", check_dims, 'if dims["V"] > dims["Vp"]:', "if False:", NAME),
    "allocated before the check": (
        "checkpoint", open_checkpoint, "llmc.check_size(", "np.empty(parameters(self.stored)); llmc.check_size(",
        "Unable to allocate"),
    "reserved words": ("choices", llmc.read_header, "if words[index]:", "if words[index] < 0:", ACCEPTED),
    "no tokens": ("tokens", llmc.open_tokens, "if count < 1:", "if count < 0:", ACCEPTED),
    "ids above V": ("tokens", tokens.check_ids, "<= ids[place] < vocab_size", "<= ids[place]", "AssertionError"),
    "end-of-text at V": ("tokenizer", llmc.read_tokenizer, "if not 0 <= eot < count:", "if not 0 <= eot:", ACCEPTED),
    "an empty token": ("tokenizer", llmc._parse_tokens, "if length == 0 or at", "if at", ACCEPTED),
    "a character twice": ("tokenizer", tokenizer._check_char, "or character in seen", "", ACCEPTED),
    "a loss of NaN": ("debug state", open_debug_state, "if not math.isfinite(self.loss):", "if False:", ACCEPTED),
    "a target of V": ("debug state", open_debug_state, '< dims["V"]:', '<= dims["V"]:', ACCEPTED),
    "a label too many": ("choices", read_choice, "0 <= label < COMPLETIONS", "0 <= label <= COMPLETIONS", "IndexError"),
    "a completion too long": ("choices", read_choice, "length + 1 > len(rest)", "length > len(rest)", ACCEPTED),
    "a foreign error": ("tokens", llmc.read_header, WORDS, WORDS + "; 1 // raw[8]", "ZeroDivisionError"),
    "two lines": ("tokens", llmc.read_header, "raw, words[0])}, expected", "raw, words[0])};\\nexpected", "one line"),
    "open to write": ("checkpoint", files.RegularFile.__init__, "os.O_RDONLY", "os.O_RDWR", "did open"),
    "code": ("tokenizer", llmc.read_header, WORDS, WORDS + "; compile('1', '', 'eval')", "did compile"),
    "pickle": ("choices", llmc.read_header, WORDS, IMPORT + "marshal; marshal.loads(b'N')", "did marshal.loads"),
    "a socket": ("tokens", llmc.read_header, WORDS, IMPORT + "_socket; _socket.socket()", "did socket"),
    "a command": ("tokens", llmc.read_header, WORDS, IMPORT + "os; os.system(':')", "did os.system"),
    "a hole between tensors": ("safetensors", safetensors.read_tensors, "if begin != end:", "if begin < end:", ACCEPTED),
    "a tensor beyond its numbers": (
        "nanoGPT's", pytorch._tensor, "if offset + prod(size) > storage.count:", "if False:", ACCEPTED),
    "a member over another": ("nanoGPT's", zip_members.read_members, "or header < before or", "or", ACCEPTED),
    "slow": ("text", corpus.read_text, "data = file.read(", "sum(range(1 << 23)); data = file.read(", "took"),
    "memory is kept": (
        "debug state", llmc.read_header, WORDS, WORDS + "; KINDS.setdefault('', []).append(bytearray(1 << 20))",
        "memory grew"),
}  # fmt: skip


def first_failure(reader: str, function, old: str, new: str) -> str:
    with fuzz.folder() as folder, fault(function, old, new):
        failures = fuzz.Attack(reader, fuzz.SEED, Path(folder)).run(0, CASES, stop=True)["failures"]
    return failures[0] if failures else ""


if __name__ == "__main__":
    print(json.dumps({name: first_failure(*change[:4]) for name, change in FAULTS.items()}))
