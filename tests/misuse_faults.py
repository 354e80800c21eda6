"""Seeded faults of the checks in front of the kernels: misuse.py must see each of them.

Run as a program it prints {fault: the first thing that went wrong, or ""} as JSON. It stops at the first, before a
fault does harm; with `crash` it seeds the one that does."""

import json
import sys

import misuse
from gpt2flat.kernels import checked
from gpt2flat.memory import axes
from seeding import fault

CRASH = (checked._tensor, "if arg.optional or arg.role", "if True or arg.role")  # NULL for what is written
LAYOUT = "not view.flags.c_contiguous or not view.flags.aligned or view.size == 0"
# fault: (function, its source, the source instead)
FAULTS = {
    "any float": (checked._tensor, "view.dtype != DTYPES[arg.dtype]:", "view.dtype.kind != DTYPES[arg.dtype].kind:"),
    "subclasses": (checked._tensor, "if type(view) not in ARRAYS or", "if not isinstance(view, np.ndarray) or"),
    "strides": (checked._tensor, LAYOUT, "not view.flags.aligned or view.size == 0"),
    "alignment": (checked._tensor, LAYOUT, "not view.flags.c_contiguous or view.size == 0"),
    "read-only": (checked._tensor, "if not arg.const and not", "if False and not"),
    "shapes": (axes.solve, "if expected != tuple(given[name]):", "if len(expected) != len(given[name]):"),
    "overlap": (checked._check_overlap, "if other is not arg and", 'if other.role == "index" and'),
    "numbers": (checked._dims, "if dims[name] != value:", "if False:"),
    "fractions": (checked._whole, "operator.index(value)", "int(value)"),
    "flags": (checked._whole, "if whole not in (0, 1):", "if whole < 0:"),
    "bool": (checked._whole, "isinstance(value, bool) or not", "not"),
    "64 bits": (checked._whole, "or not abs(whole) < 1 << 63", ""),
    "threads": (checked._check_values, "if not 1 <= dims", "if not 0 <= dims"),
    "zero": (checked._check_values, "not 0 < dims[small]", "not 0 <= dims[small]"),
    "more": (checked.arguments, "if given:", "if not given:"),
    "scratch": (checked.add_scratch, ".size < needed:", ".size < needed - 1:"),
}  # fmt: skip


def first_problem(function, old: str, new: str) -> str:
    with fault(function, old, new):
        return next(iter(misuse.try_all(stop=True)["shown"]), "")


if __name__ == "__main__":
    found = {name: first_problem(*change) for name, change in ({"crash": CRASH} if sys.argv[1:] else FAULTS).items()}
    print(json.dumps(found))
