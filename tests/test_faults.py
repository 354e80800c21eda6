"""The sweeps of faults.py lose nothing, and they see seeded faults. Here the quick ones; --full runs them all."""

import inspect
import re

import pytest

import fault_mutants
import fault_runs
import faults
import harness
from fault_mutants import MUTANTS, seen

QUICK = (
    "the new name is not synced",
    "hashes are not checked",
    "the newest by time",
    "a short write is taken for a whole one",
)


def rows(*arguments: str, timeout: int) -> list[list[str]]:
    """Runs faults.py in a process of its own, which may fork; the rows of its table."""
    done = harness.python(faults.__file__, *arguments, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return re.findall(r"^(\S.*?) {2,}([\d,]+) +(\d+) +[\d.]+(.*)$", done.stdout, re.M)


def test_nothing_is_lost():
    found = rows("--quick", timeout=120)
    assert {name for name, *_ in found} == {name for name, fault in faults.FAULTS.items() if fault.quick}
    assert all(lost == "0" and (cases != "0" or "left out" in note) for _, cases, lost, note in found), found


def test_what_is_lost_is_told(capsys, monkeypatch):
    row = faults.FAULTS["flipped bit"]
    monkeypatch.setitem(
        faults.FAULTS, "flipped bit", row._replace(run=lambda cases, seed: faults.Outcome(3, ["bit 7"]))
    )
    assert faults.main(["--quick", "flipped bit", "clock jumps"]) == 1
    assert re.search(r"flipped bit +3 +1 .*\n    bit 7\nclock jumps +20 +0 ", capsys.readouterr().out)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_has_its_place(name):
    function, old, new, _ = MUTANTS[name]
    assert inspect.getsource(function).count(old) == 1 and old != new


@pytest.mark.parametrize("name", fault_runs.FAULTS)
def test_a_fault_of_resume_has_its_place(name):
    function, old, new, _ = fault_runs.FAULTS[name]
    assert inspect.getsource(function).count(old) == 1 and old != new


@pytest.mark.parametrize("name", QUICK)
def test_some_seeded_faults_are_seen(name):
    assert seen(MUTANTS[name], faults.SEED)


@pytest.mark.full
def test_all_faults_and_all_seeded_ones():
    found = rows(timeout=3600)
    assert {name for name, *_ in found} == faults.FAULTS.keys() and all(lost == "0" for _, _, lost, _ in found), found
    tried = {name: int(cases.replace(",", "")) for name, cases, *_ in found}
    assert tried["seeded fault not seen"] == len(fault_mutants.MUTANTS)
    assert tried["seeded in resume, not seen"] == len(fault_runs.FAULTS)
