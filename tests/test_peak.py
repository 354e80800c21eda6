"""The measured peak of each instruction set against a loop by hand; the machine code of the loop that measures it."""

import ctypes
import importlib
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

import harness
from gpt2flat.benchmarks.machine import Machine, Timed

HERE = Path(__file__).parent
LOOPS = [(native, bf16) for native in harness.natives() for bf16 in (False, True)[: 1 + native.multiplies_bf16]]
BY_LOOP = pytest.mark.parametrize(
    "native, bf16", LOOPS, ids=lambda x: getattr(x, "isa", "bf16" if x is True else "fp32")
)
WITHIN = 0.03
WINDOW = 0.003  # short: a busy neighbour spoils fewer of them
ZMM = r" +%zmm\d+,%zmm\d+,%zmm\d+"
MULTIPLY_ADD = {  # (instruction set, bf16): the instruction, its flops
    ("scalar", False): (r"(mulps|addps) +%xmm\d+,%xmm\d+", 4),
    ("avx2", False): (r"vfmadd\d+ps +%ymm\d+,%ymm\d+,%ymm\d+", 2 * 8),
    ("avx512", False): (r"vfmadd\d+ps" + ZMM, 2 * 16),
    ("avx512bf16", False): (r"vfmadd\d+ps" + ZMM, 2 * 16),
    ("avx512bf16", True): ("vdpbf16ps" + ZMM, 2 * 32),
}
COUNTING = r"(add|sub|inc|dec|cmp|test|j\w+)q? .*|xchg +%ax,%ax|nop.*"


def need(tool: str) -> str:
    path = shutil.which(tool)
    assert path, f"this test needs {tool}: apt install gcc binutils"
    return path


def by_hand(native, bf16: bool, folder: Path) -> Timed:
    """tests/peak.c for the instruction set of `native`; a round is 4096 steps. Its attribute `flops` is of a round."""
    flags = runpy.run_path(str(HERE.parent / "csrc/build.py"))["ISA_FLAGS"][native.isa]
    library = folder / f"peak_{native.isa}.so"
    words = [
        need("gcc"),
        "-O2",
        *flags,
        *["-DBF16"] * bf16,
        "-shared",
        "-fPIC",
        "-o",
        str(library),
        str(HERE / "peak.c"),
    ]
    subprocess.run(words, check=True, capture_output=True, text=True)
    loaded = ctypes.CDLL(str(library))
    timed = Timed(lambda rounds: loaded.peak(ctypes.c_int64(4096 * rounds)), WINDOW)
    timed.flops = 4096 * loaded.flops_of_step()
    return timed


@pytest.mark.full
@BY_LOOP
def test_the_measured_peak_is_that_of_a_loop_by_hand(native, bf16, tmp_path):
    """The best windows of both, in turn, on one thread; more of them while the machine is too busy to show either."""
    hand, machine = by_hand(native, bf16, tmp_path), Machine(native, 1)
    machine.timed[bf16].window = WINDOW
    for _ in range(10):
        for _ in range(50):
            hand.sample()
            machine.measure_peak(bf16, windows=1)
        ratio = machine.peak(bf16) / (hand.flops / hand.best)
        if abs(ratio - 1) <= WITHIN:
            break
    assert abs(ratio - 1) <= WITHIN, f"{native.isa}: the measured peak is {ratio:.3f} of the one by hand"


def loop_of(listing: str, function: str = "fma_chains") -> list[str]:
    """The instructions of the only loop of a function in a disassembly."""
    found = re.search(rf"<{function}>:\n(.*?)(\n\n|\Z)", listing, re.S)
    assert found, f"no {function} in the module: was it stripped?"
    code = [(int(at, 16), text.strip()) for at, text in re.findall(r"^ *([0-9a-f]+):\t(.*)$", found[1], re.M)]
    jumps = [
        (at, int(to, 16)) for at, text in code for to in re.findall(r"^j\w+ +([0-9a-f]+)", text) if int(to, 16) < at
    ]
    assert len(jumps) == 1, f"{len(jumps)} loops in {function}"
    end, start = jumps[0]
    return [text.partition("#")[0].strip() for at, text in code if start <= at <= end]


def strangers(kind: tuple[str, bool], loop: list[str]) -> list[str]:
    """What is neither a multiply-add in registers nor the counting of steps."""
    return [text for text in loop if not re.fullmatch(f"{MULTIPLY_ADD[kind][0]}|{COUNTING}", text) or "(" in text]


@pytest.mark.full
@BY_LOOP
def test_the_loop_of_the_peak_stays_in_registers(native, bf16):
    module = importlib.import_module(f"gpt2flat.kernels._{native.isa}").__file__
    words = [need("objdump"), "-d", "--no-show-raw-insn", module]
    listing = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    loop, kind = loop_of(listing, "dot_chains" if bf16 else "fma_chains"), (native.isa, bf16)
    assert strangers(kind, loop) == []
    instruction, flops = MULTIPLY_ADD[kind]
    flops *= sum(bool(re.match(instruction, text)) for text in loop)
    assert native.flops_of_peak_round(bf16) % flops == 0, "each counted flop is in the loop, and no other"


def test_a_load_or_another_instruction_in_the_loop_is_seen():
    start = "1 <fma_chains>:\n   10:\tmov    %rsi,%rax\n   20:\tvfmadd132ps %ymm1,%ymm0,%ymm5\n"
    listing = start + "   25:\tadd    $0x1,%rax\n{}   39:\tjne    20 <x>\n\n"
    assert strangers(("avx2", False), loop_of(listing.format(""))) == []
    for text in (
        "vfmadd132ps (%rdi),%ymm0,%ymm5",
        "vmovups %ymm0,(%rsp)",
        "vfmadd132ps %xmm1,%xmm0,%xmm5",
        "vaddps %ymm1,%ymm0,%ymm5",
    ):
        assert strangers(("avx2", False), loop_of(listing.format(f"   30:\t{text}\n"))) == [text]
