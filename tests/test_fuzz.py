"""Every reader of files withstands 100,000 mutants of valid files (fuzz.py), and the fuzzer sees seeded faults."""

import json
import random
from collections import Counter

import pytest

import fuzz
import fuzz_faults
import harness
from fuzz_readers import ELSEWHERE, READERS

BY_READER = pytest.mark.parametrize("name", READERS)
MET = 10  # times at least that every refusal is met
CRASH = """
import ctypes, dataclasses, sys, fuzz
def read(path, deep):
    if path.read_bytes()[:1] == b"Q":
        ctypes.string_at(0)
    yield
fuzz.READERS["text"] = dataclasses.replace(fuzz.READERS["text"], read=read, seeds=(b"Quit",))
sys.exit(fuzz.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def reports():
    return fuzz.hunt()


def failures(reports) -> list[str]:
    return [failure for report in reports.values() for failure in report["failures"]]


def test_nothing_but_refusals(reports):
    assert failures(reports) == []
    assert sum(report["counts"]["cases"] for report in reports.values()) >= 100_000


@BY_READER
def test_the_mutants_come_far(reports, name):
    """Most get past the magic; some are accepted, and then they can be used."""
    count = reports[name]["counts"]
    assert count["known"] >= 0.6 * count["cases"] and count["used"] >= 0.01 * count["cases"], count


@BY_READER
def test_every_refusal_is_met(reports, name):
    reader, lines = READERS[name], fuzz.refusals()
    met = Counter({place: times for place, times in reports[name]["reasons"].items() if times >= MET})
    places = Counter(place.split(" ")[0] for place in met)
    wanted = {f"{function}:{line}" for function in reader.functions for line in lines[function]}
    assert wanted <= places.keys(), fuzz.show({name: reports[name]})
    for function, _, different in reader.details:
        most = max(times for place, times in places.items() if place.startswith(function + ":"))
        assert most == different, fuzz.show({name: reports[name]})


def test_no_refusal_is_forgotten():
    """Each raise statement in formats/ and data/ is met by the mutants, or by the tests that ELSEWHERE names."""
    met = {function for reader in READERS.values() for function in reader.functions}
    assert met | ELSEWHERE.keys() == fuzz.refusals().keys() and not met & ELSEWHERE.keys()


@BY_READER
def test_the_seeds_are_what_they_are_said_to_be(name):
    reader = READERS[name]
    assert all(map(reader.fits, reader.seeds)) and not any(map(reader.fits, reader.hostile))
    assert not reader.large or reader.fits(reader.large[0])


def test_seeded_faults_are_seen():
    done = harness.python(fuzz_faults.__file__)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    unseen = {name: found[name] for name, change in fuzz_faults.FAULTS.items() if change[-1] not in found[name]}
    assert not unseen and len(found) >= 20


def test_a_crash_is_reported_and_its_file_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz.tempfile, "tempdir", str(tmp_path))
    report = fuzz.hunt_one("text", 1, 1000, tmp_path, ["-c", CRASH])
    assert len(report["failures"]) == 1 and "Segmentation fault" in report["failures"][0]
    (kept,) = tmp_path.glob("fuzz-crash-*/file.bin")
    assert kept.read_bytes()[:1] == b"Q" and str(kept) in report["failures"][0]


@pytest.mark.full
def test_a_million_cases_of_another_seed():
    seed = random.SystemRandom().randrange(2**32)
    reports = fuzz.hunt(1_000_000, seed)
    print(fuzz.show(reports))
    assert failures(reports) == [], f"seed {seed}"
