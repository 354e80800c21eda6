"""csrc/kernels.h == the op table == every compiled module == the twins; the d-rule; what sources may not contain."""

import importlib
import re
import shutil
import subprocess
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import pytest

import harness
from gpt2flat.kernels.jit import STEMS
from gpt2flat.kernels.ops import I32, KERNELS, OP_OF, OPS

CSRC = Path(__file__).parents[1] / "csrc"
PACKAGE = CSRC.parent / "gpt2flat/kernels"
HEADER = (CSRC / "kernels.h").read_text()
SOURCES = sorted([*CSRC.glob("*.c"), *CSRC.glob("*.h")])
NATIVES = harness.natives()
TWINS = harness.backends()[-1]
BY_ISA = pytest.mark.parametrize("native", NATIVES, ids=lambda native: native.isa)
MACHINE = {"last_team", "limit_team", "team_threads", "has_openmp", "sources_hash", "peak_fma", "peak_flops", "stream", "cpu_isa"}  # what is no op


def without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)


def parse(header: str) -> dict[str, list[tuple[str, str]]]:
    """{function: [(type, name)], the result as ("result type", "")} of every prototype."""
    found = {}
    for result, name, arguments in re.findall(r"(\w+) (\w+)\(([^)]*)\);", without_comments(header)):
        pairs = re.findall(r"((?:const )?\w+ \*?)(\w+)(?:,|$)", " ".join(arguments.split()))
        found[name] = [(result, "")] + [(kind.strip().replace(" *", "*"), argument) for kind, argument in pairs]
    return found


def wanted() -> dict[str, list[tuple[str, str]]]:
    """The prototypes that the op table implies."""
    functions = {}
    for name, kernel in KERNELS.items():
        pointers = [("const " * a.const + ("int32_t*" if a.dtype == I32 else "float*"), a.name) for a in kernel.args]
        functions[name] = [("void", "")] + pointers + [("int64_t", number) for number in (*kernel.dims, *kernel.accs)]
    for op in OPS.values():
        if op.scratch:
            functions[f"{op.name}_scratch"] = [("int64_t", "")] + [("int64_t", dim) for dim in (*op.dims.split(), "NT")]
    return functions


def differences(header: str) -> list[str]:
    declared, table = parse(header), wanted()
    one_sided = table.keys() ^ (declared.keys() - MACHINE)
    faults = [f"{name} is only in the {'table' if name in table else 'header'}" for name in one_sided]
    for name in table.keys() & declared.keys():
        pairs = zip_longest(declared[name], table[name], fillvalue=("nothing", ""))
        faults += [f"{name}: '{a[0]} {a[1]}' in the header, '{b[0]} {b[1]}' in the table" for a, b in pairs if a != b]
    return faults


def test_header_and_op_table_agree():
    assert differences(HEADER) == []
    assert MACHINE <= parse(HEADER).keys()


@pytest.mark.parametrize(
    "change",
    [("const float *inp, const float *weight", "const float *weight, const float *inp"),
     ("const int32_t *tokens", "const float *tokens"), ("const float *inp,", "float *inp,"),
     ("float *out,", "const float *out,"), ("int64_t acc_inp);", "int64_t acc_x);"),
     ("int64_t BF16, int64_t NT", "int64_t NT, int64_t BF16"), ("void gelu_forward", "void gelu"),
     ("int64_t grad_norm_scratch", "int64_t norm_scratch"), ("float *dinp1, float *dinp2", "float *dinp1")],
    ids=lambda change: change[1],
)  # fmt: skip
def test_a_header_that_differs_is_seen(change):
    assert change[0] in HEADER
    assert differences(HEADER.replace(*change, 1))


@BY_ISA
def test_compiled_functions_have_the_declared_types(native):
    declared = parse(HEADER)
    assert declared.keys() == {name for name in dir(native.lib) if not name.startswith("_")}
    for name, (result, *arguments) in declared.items():
        compiled = native.ffi.typeof(getattr(native.lib, name))
        kinds = [result[0], *(kind.removeprefix("const ") for kind, _name in arguments)]
        assert [t.cname.replace(" ", "") for t in (compiled.result, *compiled.args)] == kinds, name


def twin_differences(declared: dict[str, list[tuple[str, str]]]) -> list[str]:
    """The twins have the header's functions with its argument names in its order; types follow from the op table."""
    faults = []
    for name in declared.keys() - MACHINE:
        names, found = [argument for _kind, argument in declared[name][1:]], TWINS.signature(name)
        faults += [f"{name} has {found}, the header {names}"] * (found != names)
    return faults


def test_twins_have_the_declared_arguments():
    assert twin_differences(parse(HEADER)) == []


@pytest.mark.parametrize(
    "change", [("float *mean, float *rstd", "float *rstd, float *mean"), ("int64_t V, int64_t Vp", "int64_t Vp")]
)
def test_a_header_that_differs_from_the_twins_is_seen(change):
    assert twin_differences(parse(HEADER.replace(*change, 1)))


# --- the d-rule


def d_rule_faults(kernels=KERNELS, op_of=OP_OF) -> list[str]:
    faults = []
    for name, kernel in kernels.items():
        op = op_of[name]
        inputs = {a.name: a for a in op.args("written", "read", "weight")}
        for arg in kernel.args:
            source = inputs.get(arg.name[1:]) if arg.name.startswith("d") else None
            if arg.name.startswith("d") and (source is None or name == op.forward.name):
                faults.append(f"{name}: {arg.name} is the gradient of nothing")
            elif source and (arg.axes, arg.dtype) != (source.axes, source.dtype):
                faults.append(f"{name}: {arg.name} and {source.name} differ")
            elif source and arg.optional != (source.optional or not arg.const and source.name in op.identity.split()):
                faults.append(f"{name}: {arg.name} and {source.name} differ")
        gradients = [a.name for a in kernel.args if a.name.startswith("d") and not a.const]
        if gradients != [f"d{acc.removeprefix('acc_')}" for acc in kernel.accs]:
            faults.append(f"{name}: writes {gradients}, flags {kernel.accs}")
        if name == f"{op.name}_backward" and gradients != [f"d{a.name}" for a in op.differentiable]:
            faults.append(f"{name}: writes {gradients}")
    return faults


def test_backward_follows_the_d_rule():
    assert d_rule_faults() == []


def test_a_broken_d_rule_is_seen():
    kernel = KERNELS["linear_backward"]
    for args, accs in (
        ((replace(kernel.args[0], name="dx"), *kernel.args[1:]), kernel.accs),
        ((replace(kernel.args[0], axes="N,OC"), *kernel.args[1:]), kernel.accs),
        (kernel.args[1:], kernel.accs),
        (kernel.args, kernel.accs[1:]),
    ):
        assert d_rule_faults({kernel.name: replace(kernel, args=args, accs=accs)})


def test_every_scratch_function_serves_a_kernel_that_takes_scratch():
    for op in OPS.values():
        taking = {kernel.name for kernel in op.kernels if any(a.role == "scratch" for a in kernel.args)}
        assert bool(taking) == bool(op.scratch) == (f"{op.name}_scratch" in parse(HEADER)), op.name


# --- what csrc may not contain

FORBIDDEN = {
    r"\breduction\s*\(": "a reduction clause adds floats in an order that depends on threads",
    r"\bomp\s+(atomic|critical)": "atomics add in an order that depends on time",
    r"schedule\s*\(\s*(dynamic|guided)": "a dynamic schedule ties work to time",
    r"-march=native|-mtune=native|-Ofast|-ffast-math|-funsafe-math|fast_math": "not portable, or not the same bits",
    r"\b(malloc|calloc|realloc|alloca|free|mmap|aligned_alloc)\s*\(": "C allocates nothing",
    r"\bf?(printf|puts|putc|write|open)\s*\(|\bperror\s*\(": "C prints and opens nothing",
    r"\b(exit|_exit|abort|assert|longjmp|raise|signal)\s*\(": "C never exits",
    r"_mm_setcsr|_MM_SET_|ldmxcsr|fesetround|fesetenv": "MXCSR is never written",
    r"\bgetenv\s*\(": "the environment is read in Python",
}


def offences(text: str) -> list[str]:
    return [why for pattern, why in FORBIDDEN.items() if re.search(pattern, without_comments(text))]


@pytest.mark.parametrize("path", [*SOURCES, CSRC / "build.py", CSRC.parent / "setup.py"], ids=lambda path: path.name)
def test_sources_obey_the_laws(path):
    text = path.read_text()
    if path.suffix == ".py":  # flags are strings; the words of a docstring are none
        text = "\n".join(re.findall(r'"-[^"]*"', text))
    assert offences(text) == []


@pytest.mark.parametrize(
    "line",
    ['_Pragma("omp parallel for reduction(+:sum)")', "#pragma omp atomic", '"-march=native"', '"-Ofast"', "free(p);",
     "float *p = malloc(4);", 'fprintf(stderr, "x");', "exit(1);", "_mm_setcsr(0x9fc0);", "schedule(dynamic)",
     "assert(n > 0);"],
)  # fmt: skip
def test_an_offence_is_seen(line):
    assert offences(line) and not offences("// " + line)


# --- what the twins may not contain

FORBIDDEN_IN_TWINS = {
    r"fastmath=(True|\{(?!\"contract\"\}))": "a sum would be reordered",
    r"parallel=True": "code would be made parallel behind the reader's back",
    r"\bprint\(|\bopen\(|os\.environ|\bgetenv": "kernels print, open and ask nothing",
    r"np\.(dot|matmul|einsum|sum|exp|zeros|empty_like)\b|\w @ \w": "no array expressions and no BLAS",
}


def twin_offences(text: str) -> list[str]:
    return [why for pattern, why in FORBIDDEN_IN_TWINS.items() if re.search(pattern, text, re.M)]


@pytest.mark.parametrize("stem", ["rows", "gemm", *STEMS])
def test_twins_obey_the_laws(stem):
    assert twin_offences((PACKAGE / f"{stem}.py").read_text()) == []


def test_every_source_that_holds_ops_has_its_twin():
    no_op = {"kernels", "cpu", "pack", "gemm", "tiles", "decode_float", "decode_int8"}
    assert {path.stem for path in CSRC.glob("*.c")} - no_op == set(STEMS)
    assert twin_offences((PACKAGE / "jit.py").read_text().replace("os.environ", "")) == []


@pytest.mark.parametrize(
    "line",
    ["@njit(fastmath=True)", 'fastmath={"contract", "reassoc"}', "y = a @ b", "print(1)", "njit(parallel=True)"],
)
def test_an_offence_of_a_twin_is_seen(line):
    assert twin_offences(line)


def test_intrinsics_live_in_one_file():
    intrinsic = re.compile(r"__m(128|256|512)|\b_mm\d*_")
    assert {path.name for path in SOURCES if intrinsic.search(without_comments(path.read_text()))} == {"simd.h"}


UNWANTED = re.compile(r"^(malloc|calloc|realloc|free|mmap|_?exit|abort|puts|f?open|write|getenv|__assert_fail)$|printf")


def undefined_symbols(path: str) -> list[str]:
    listing = subprocess.run(["nm", "-D", "--undefined-only", path], capture_output=True, text=True, check=True).stdout
    return [line.split()[-1].split("@")[0] for line in listing.splitlines()]


if shutil.which("nm"):

    @BY_ISA
    def test_modules_import_nothing_that_allocates_prints_or_exits(native):
        symbols = undefined_symbols(importlib.import_module(f"gpt2flat.kernels._{native.isa}").__file__)
        assert any(s.startswith("Py") for s in symbols), "nm lists nothing"
        assert [s for s in symbols if UNWANTED.search(s)] == []
        assert UNWANTED.search("malloc") and UNWANTED.search("__printf_chk")
