"""The harness is fed backends that are wrong in one way each. Every one must go red, and the sound ones stay green."""

import ctypes
import re

import numpy as np
import pytest

import conftest
import harness
import test_kernels
import truth
from gpt2flat.kernels.ops import KERNELS, OP_OF
from harness import Case

SOUND = harness.natives()[-1]


class Faulty:
    """A backend that passes each call through `fault(call, kernel, tensors, numbers)`."""

    def __init__(self, fault, isa=SOUND.isa):
        self.fault, self.isa = fault, isa

    def __getattr__(self, name):
        return getattr(SOUND, name)

    def bind(self, kernel, tensors, numbers):
        return lambda: self.fault(kernel, tensors, numbers)


def middle(name: str, **more) -> Case:
    return Case(name, harness.modest(OP_OF[name]), **more)


def written(kernel, tensors):
    """The float arrays that a test looks at, flat and writable."""
    return [tensors[a.name].reshape(-1) for a in kernel.args if not a.const and a.role not in ("work", "scratch")]


def sound(kernel, tensors, numbers):
    SOUND.bind(kernel, tensors, numbers)()


def by_reference(kernel, tensors, numbers):
    """The reference rounded to float32, what a perfect kernel would give; the team is that of a real one."""
    before = {name: array.copy() for name, array in tensors.items() if array is not None}
    sound(kernel, tensors, numbers)
    for name, value in truth.run(kernel.name, {n: before.get(n) for n in harness.read_by(kernel)}, numbers).items():
        if tensors.get(name) is not None:
            old = before[name] if numbers.get(f"acc_{name[1:]}") else 0.0
            tensors[name][...] = (value.value + old).astype(np.float32)


def one_wrong_element(kernel, tensors, numbers):
    sound(kernel, tensors, numbers)
    for array in written(kernel, tensors):
        i = int(abs(array).argmax())
        array[i] *= 1.001


def one_missing_element(kernel, tensors, numbers):
    sound(kernel, tensors, numbers)
    written(kernel, tensors)[-1][-1] = np.nan


def _word(array, step: int):
    """The word `step` words from the first of `array`, wherever that is."""
    return np.ctypeslib.as_array((ctypes.c_float * 1).from_address(array.ctypes.data + 4 * step))


def a_word_behind_the_end(kernel, tensors, numbers):
    sound(kernel, tensors, numbers)
    array = written(kernel, tensors)[0]
    _word(array, array.size)[0] = 1.0


def a_word_before_the_start(kernel, tensors, numbers):
    sound(kernel, tensors, numbers)
    _word(written(kernel, tensors)[0], -1)[0] = 1.0


def scratch_overrun(kernel, tensors, numbers):
    sound(kernel, tensors, numbers)
    _word(tensors["scratch"], tensors["scratch"].size)[0] = 1.0


def changes_an_input(kernel, tensors, numbers):
    sound(kernel, tensors, numbers)
    tensors[next(a.name for a in kernel.args if a.const)].reshape(-1)[0] = 3.0


def reads_what_it_should_overwrite(kernel, tensors, numbers):
    sound(kernel, tensors, numbers | {acc: 1 for acc in kernel.accs})


def forgets_to_add(kernel, tensors, numbers):
    sound(kernel, tensors, numbers | {acc: 0 for acc in kernel.accs})


def swaps(one: str, other: str):
    return lambda kernel, tensors, numbers: sound(kernel, tensors | {one: tensors[other], other: tensors[one]}, numbers)


def one_thread_more(kernel, tensors, numbers):
    sound(kernel, tensors, numbers | {"NT": numbers["NT"] + 1})


def last_bit_by_threads(kernel, tensors, numbers):
    sound(kernel, tensors, numbers)
    if numbers["NT"] == 3:
        array = written(kernel, tensors)[0]
        array[7] = np.nextafter(array[7], np.float32(np.inf))


def test_the_sound_backend_and_the_reference_itself_are_green():
    for name in KERNELS:
        harness.check(middle(name), SOUND, 2)
        harness.check(middle(name), Faulty(sound), 2)
        harness.check(middle(name), Faulty(by_reference), 2)


@pytest.mark.parametrize("name", KERNELS)
def test_one_wrong_element_in_any_kernel_is_red(name):
    with pytest.raises(AssertionError, match="expected"):
        harness.check(middle(name), Faulty(one_wrong_element))


@pytest.mark.parametrize("name", KERNELS)
def test_one_undefined_element_in_any_kernel_is_red(name):
    with pytest.raises(AssertionError, match="nan"):
        harness.check(middle(name), Faulty(one_missing_element))


@pytest.mark.parametrize("name", [name for name in KERNELS if KERNELS[name].accs])
def test_an_old_value_that_is_read_or_lost_is_red(name):
    with pytest.raises(AssertionError, match="nan"):
        harness.check(middle(name), Faulty(reads_what_it_should_overwrite))
    with pytest.raises(AssertionError, match="expected"):
        harness.check(middle(name, acc=7 % (1 << len(KERNELS[name].accs))), Faulty(forgets_to_add))


FAULTS = [
    ("linear_forward", a_word_behind_the_end, "words outside out"),
    ("linear_forward", a_word_before_the_start, "words outside out"),
    ("linear_forward", scratch_overrun, "words outside scratch"),
    ("linear_forward", changes_an_input, "inp is read only"),
    ("layernorm_forward", swaps("weight", "bias"), "expected"),
    ("layernorm_backward", swaps("dout", "inp"), "expected"),
    ("layernorm_backward", swaps("dweight", "dbias"), "expected"),
    ("gelu_backward", swaps("dout", "inp"), "expected"),
    ("attention_backward", swaps("dout", "out"), "expected"),
    ("classifier_backward", swaps("dlosses", "lse"), "expected"),
    ("adamw", swaps("m", "v"), "expected"),
    ("adamw", swaps("beta1", "beta2"), "expected"),
]


@pytest.mark.parametrize("name, fault, message", FAULTS)
def test_a_fault_is_red(name, fault, message):
    with pytest.raises(AssertionError, match=message):
        harness.check(middle(name), Faulty(fault))


MASKED = [(name, shift) for name in KERNELS if name.startswith("attention") for shift in (-1, 1)]
MASKED.remove(("attention_standard_backward", 1))  # it reads att, which is 0 above the diagonal


@pytest.mark.parametrize("name, shift", MASKED)
def test_a_causal_mask_off_by_one_is_red(monkeypatch, name, shift):
    case = middle(name)
    harness.expected(case)  # the reference as it is, kept by its cache
    monkeypatch.setattr(truth, "causal", lambda T: np.tril(np.ones((T, T), bool), shift))
    with pytest.raises(AssertionError, match="expected"):
        harness.check(case, Faulty(by_reference))


def test_a_team_of_another_size_is_red():
    if SOUND.openmp():
        with pytest.raises(AssertionError, match="threads worked"):
            harness.check(middle("gelu_forward"), Faulty(one_thread_more), 2)


def test_a_last_bit_that_depends_on_threads_is_red():
    faulty = Faulty(last_bit_by_threads)
    harness.check(middle("linear_forward"), faulty, 3)  # within the bound, so only the bits tell
    with pytest.raises(AssertionError, match="1 and 3 threads: out differs in 1 "):
        test_kernels.test_same_bits_for_any_number_of_threads("linear_forward", faulty)


def test_a_last_bit_that_depends_on_the_instruction_set_is_red(monkeypatch):
    monkeypatch.setattr(test_kernels, "NATIVES", [SOUND, SOUND, Faulty(last_bit_by_threads, "other")])
    monkeypatch.setattr(test_kernels, "WIDE", [SOUND, Faulty(last_bit_by_threads, "other")])
    with pytest.raises(AssertionError, match="and other: out differs in 1 "):
        test_kernels.check_everywhere(middle("linear_forward"))


def test_a_wrong_sum_of_whole_numbers_is_red_however_small():
    def off_by_one_ulp(kernel, tensors, numbers):
        sound(kernel, tensors, numbers)
        tensors["out"][3, 3] = np.nextafter(tensors["out"][3, 3], np.float32(1e9))

    harness.check(middle("linear_forward"), Faulty(off_by_one_ulp))
    with pytest.raises(AssertionError, match="1 of 1850 elements"):
        harness.check(middle("linear_forward", fill="whole"), Faulty(off_by_one_ulp))


def test_files_that_are_left_out_are_counted():
    lacks = conftest.left_out(lambda name: False)
    assert {*lacks} == {*conftest.NEEDS} and conftest.left_out(lambda name: True) == {}
    assert all(conftest.count_tests(conftest.HERE / name) > 0 for name in lacks)
    lines = conftest.advice(lacks)
    assert re.fullmatch(r"test_parity.py: \d+ tests left out: no torch and no transf.*\[parity\]'", lines[0])
    assert len(lines) == len(lacks)
