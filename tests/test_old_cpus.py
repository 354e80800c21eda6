"""CPUs without AVX-512 or AVX: no module holds instructions that its name does not promise, and all runs under qemu."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from gpt2flat import kernels
from gpt2flat.kernels.ops import KERNELS, OP_OF

NATIVES = harness.natives()
VEX = r"^(v\w+|andn|bextr|bls\w+|bzhi|mulx|pdep|pext|rorx|sarx|shlx|shrx)$"
UNWANTED = {  # what neither opcodes nor operands of a module may be
    "scalar": re.compile(VEX + r"|%[yz]mm|%k[0-7]|^v?ldmxcsr$"),
    "avx2": re.compile(r"%zmm|%k[0-7]|^v?ldmxcsr$"),
    "avx512": re.compile(r"^vdpbf16ps$|^v?ldmxcsr$"),
    "avx512bf16": re.compile(r"^v?ldmxcsr$"),
}


def instructions(path: str) -> set[str]:
    """Every opcode and every operand of a compiled file."""
    words = ["objdump", "-d", "--no-show-raw-insn", path]
    listing = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    code = re.findall(r"^ +[0-9a-f]+:\t(\S+) *([^#<\n]*)", listing, re.M)
    return {opcode for opcode, _rest in code} | {word for _opcode, rest in code for word in re.findall(r"%\w+", rest)}


def strangers(isa: str, found: set[str]) -> list[str]:
    return sorted(word for word in found if UNWANTED[isa].search(word))


if shutil.which("objdump"):

    @pytest.mark.parametrize("native", NATIVES, ids=lambda native: native.isa)
    def test_a_module_holds_only_instructions_of_its_set(native):
        found = instructions(importlib.import_module(f"gpt2flat.kernels._{native.isa}").__file__)
        assert {"ret", "%rdi"} <= found or sys.platform != "linux", "objdump lists nothing"
        assert strangers(native.isa, found) == []
        if native.isa == "avx2":
            assert {"vfmadd231ps", "%ymm0"} & set(strangers("scalar", found)), "the rule of scalar sees no AVX"
        if native.isa == "avx512":
            assert "%zmm0" in strangers("avx2", found), "the rule of avx2 sees no AVX-512"
        if native.isa == "avx512bf16":
            assert "vdpbf16ps" in strangers("avx512", found), "the rule of avx512 sees no bf16"


WRONG = [("scalar", "vaddps"), ("scalar", "shlx"), ("scalar", "%ymm3"), ("avx2", "%k1"), ("avx512", "vdpbf16ps")]


@pytest.mark.parametrize("isa, word", WRONG + [(isa, word) for isa in UNWANTED for word in ("ldmxcsr", "vldmxcsr")])
def test_a_wrong_instruction_is_seen(isa, word):
    assert strangers(isa, {"ret", "addps", "xgetbv", "%xmm0", "stmxcsr", word}) == [word]


# --- qemu plays the CPU

# OpenBLAS, which NumPy brings, takes qemu's Nehalem for a Haswell unless told
ENVIRONMENT = {"OPENBLAS_CORETYPE": "Nehalem", "OMP_NUM_THREADS": "2"}
CPUS = {"Nehalem": "scalar", "Haswell": "avx2"}  # CPU: the best that it has
BY_CPU = pytest.mark.parametrize("cpu", CPUS)


def on(cpu: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
    """Python on another CPU; "" is this one."""
    assert shutil.which("qemu-x86_64"), "qemu-x86_64 is not there: apt install qemu-user"
    path = os.pathsep.join([str(Path(kernels.__file__).parents[2]), str(Path(__file__).parent)])
    command = ["qemu-x86_64", "-cpu", cpu, sys.executable, *words] if cpu else [sys.executable, *words]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("COV")}  # nothing is measured
    wanted = inherited | ENVIRONMENT | {"PYTHONPATH": path} | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=wanted)


def train(cpu: str, folder: Path, **environment: str) -> tuple[str, list[float]]:
    """What the first lines say, and the losses of three updates."""
    words = "-m gpt2flat.train --n-layer 2 --n-embd 48 --batch-size 4 --steps 3 --sample-every 0 --val-every 0".split()
    done = on(cpu, *words, "--out", str(folder), **environment)
    assert done.returncode == 0, f"exit {done.returncode} on {cpu or 'this CPU'}\n{done.stdout}\n{done.stderr}"
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return done.stdout, [event["loss"] for event in events if "loss" in event]


@pytest.mark.full
@BY_CPU
def test_the_kernels_are_right_on_an_old_cpu(cpu):
    done = on(cpu, __file__)
    assert done.returncode == 0, f"exit {done.returncode} on {cpu}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    isas = kernels.ISAS[: kernels.ISAS.index(CPUS[cpu]) + 1]
    assert done.stdout.splitlines()[-1] == f"{len(KERNELS)} kernels on {', '.join(isas)}"


@pytest.mark.full
@BY_CPU
def test_an_old_cpu_trains(tmp_path, cpu):
    said, losses = train(cpu, tmp_path / "old")
    _said, wanted = train("", tmp_path / "new", GPT2FLAT_ISA=CPUS[cpu])
    assert f"C kernels, {CPUS[cpu]}" in said
    assert len(losses) == 3 and losses == pytest.approx(wanted, rel=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("cpu, isa", [("Nehalem", "avx2"), ("Nehalem", "avx512"), ("Haswell", "avx512")])
def test_what_the_cpu_lacks_is_refused(tmp_path, cpu, isa):
    done = on(cpu, "-m", "gpt2flat.train", "--steps", "1", "--out", str(tmp_path / "run"), GPT2FLAT_ISA=isa)
    assert done.returncode > 0 and f"GPT2FLAT_ISA={isa}: this machine and build have scalar" in done.stderr, done.stderr


def check_kernels() -> None:
    isas = kernels.available_isas()
    for name in KERNELS:
        op = OP_OF[name]
        for sizes in (harness.modest(op), *harness.grid(op, 3)):
            for isa in isas:
                harness.check(harness.Case(name, sizes), kernels.backend("c", isa), 2)
    print(f"{len(KERNELS)} kernels on {', '.join(isas)}")


if __name__ == "__main__":
    check_kernels()
