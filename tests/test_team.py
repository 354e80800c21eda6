"""The size of a team: what the policy makes of windows, on machines that are made up; that the kernels obey, and no bit with them.

A made-up machine has a number of cores, some of them taken by other programs; nothing here waits for a real clock."""

import itertools
import os
import random
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import harness
from gpt2flat import GPT2Config, Model
from gpt2flat.benchmarks.machine import Machine
from gpt2flat.benchmarks.step import Trainee
from gpt2flat.kernels import team
from gpt2flat.kernels.team import Policy, Team
from gpt2flat.kernels.threads import BINDING

NATIVES = harness.natives()
BY_ISA = pytest.mark.parametrize("native", NATIVES, ids=lambda native: native.isa)

# --- the policy

CALLS = {"gemm": 0.02, "norm": 0.001, "adamw": 0.05}  # kinds and their seconds on one core


class Made:
    """A made-up machine: the seconds of a call on a team of n, and how many of these threads wait, while `taken` cores are not
    free. A thread beside another program runs half of the time, and the others wait for it at the end of each call."""

    def __init__(self, cores: int, taken: int = 0, seed: int = 0):
        self.cores, self.taken, self.random, self.penalty = cores, taken, random.Random(seed), 2.5

    def seconds(self, kind: str, n: int) -> float:
        free = self.cores - self.taken
        if n > self.cores:
            alone = CALLS[kind] / self.cores * 1.3 ** (n - self.cores > 0) * (1 + 0.01 * (n - self.cores))
        else:
            alone = CALLS[kind] / n
        return alone * (self.penalty if n > free and self.taken else 1.0) * self.random.uniform(0.9, 1.1)

    def waiting(self, n: int) -> float:
        free = self.cores - self.taken
        return max(0.0, n - self.cores) + 0.5 * max(0, min(n, self.cores) - free) + self.random.uniform(0, 0.02)

    def window(self, n: int) -> list[tuple[str, float]]:
        laps = []
        while sum(seconds for _, seconds in laps) < team.WINDOW:
            kind = self.random.choice(list(CALLS))
            laps.append((kind, self.seconds(kind, n)))
        return laps

    def work(self, policy, seconds: float, sizes: list | None = None) -> float:
        """Seconds on one free core of what gets done in so many; policy: a Policy or the size of a team that stays."""
        done = spent = 0.0
        while spent < seconds:
            n = policy.team if isinstance(policy, Policy) else policy
            laps = self.window(n)
            spent += sum(seconds for _, seconds in laps)
            done += sum(CALLS[kind] for kind, _ in laps)
            if sizes is not None:
                sizes.append(n)
            if isinstance(policy, Policy):
                policy.next(laps, self.waiting(n))
        return done * seconds / spent


def test_on_a_quiet_machine_nothing_is_tried():
    for cores in (2, 3, 16):
        sizes = []
        Made(cores).work(Policy(cores), 50.0, sizes)
        assert set(sizes) == {cores}


@pytest.mark.parametrize(
    "cores, taken, most", [(2, 1, 2), (2, 2, 2), (4, 1, 4), (16, 1, 16), (16, 9, 16), (2, 0, 64), (2, 1, 8)]
)
def test_beside_others_it_does_nearly_what_the_best_team_would(cores, taken, most):
    best = max(Made(cores, taken).work(n, 0.5) for n in range(1, most + 1)) * 60
    for seed in range(2):
        sizes = []
        assert Made(cores, taken, seed).work(Policy(most), 30.0, sizes) > 0.9 * best, sizes[:100]


def test_it_follows_others_that_come_and_go():
    machine, policy = Made(2), Policy(2)
    machine.work(policy, 5.0)
    machine.taken, sizes = 1, []
    machine.work(policy, 20.0, sizes)
    assert sizes[:2] == [2, 2] and sizes[2:6].count(1) == 4  # as soon as two windows were crowded
    assert sizes.count(2) <= 0.1 * len(sizes)
    machine.taken, sizes = 0, []
    machine.work(policy, 10.0, sizes)
    assert sizes[-100:] == [2] * 100 and sizes.count(1) <= 5.0 / team.WINDOW


def test_it_climbs_in_growing_steps():
    machine, policy, sizes = Made(9, 8), Policy(9), []
    machine.penalty = 20.0
    machine.work(policy, 20.0)
    assert policy.team < 3
    machine.taken = 0
    machine.work(policy, 30.0, sizes)
    assert max(sizes) == sizes[-1] == 9
    assert max(larger - smaller for smaller, larger in itertools.pairwise(sizes)) >= 3


@pytest.mark.parametrize("seconds, slower", [(0.3, 3.0), (0.01, 1.1)])
def test_tries_of_a_larger_team_are_rare_and_cost_little(seconds, slower):
    policy, lost, tries, spent = Policy(2), 0.0, 0, 0.0
    while spent < 300.0:
        n = policy.team
        took = seconds * (slower if n == 2 else 1.0)
        lost += took - seconds
        spent += took
        tries += policy.next([("a", took)], 0.5 if n == 2 else 0.0) == 2 and n == 1
    assert 1 < tries <= spent and lost < 0.025 * spent


def test_what_is_gone_in_a_moment_changes_nothing():
    machine, policy = Made(2), Policy(2)
    machine.work(policy, 1.0)
    for _ in range(50):
        machine.taken = 1
        assert policy.next(machine.window(2), machine.waiting(2)) == 2
        machine.taken = 0
        assert policy.next(machine.window(2), machine.waiting(2)) == 2


def test_a_smaller_team_that_could_not_be_faster_is_not_tried_again():
    """A program that takes little: two threads are slower than alone and still faster than one."""
    machine, policy, sizes = Made(2), Policy(2), []
    machine.work(policy, 1.0)
    for _ in range(1000):
        sizes.append(policy.team)
        laps = [(kind, seconds * (1.3 if policy.team == 2 else 1.0)) for kind, seconds in machine.window(policy.team)]
        policy.next(laps, 0.3 if policy.team == 2 else 0.0)
    assert 1 <= sizes.count(1) <= team.TRY


LAPS = st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0, 10)), max_size=5)


@given(most=st.integers(1, 100), windows=st.lists(st.tuples(LAPS, st.floats(-1, 1000)), max_size=60))
def test_the_team_is_never_larger_than_asked_for(most, windows):
    policy = Policy(most)
    for laps, waiting in windows:
        assert 1 <= policy.next(laps, waiting) == policy.team <= most


def test_it_keeps_the_times_of_few_kernels():
    policy = Policy(2)
    for i in range(3 * team.KINDS):
        policy.next([(i, 0.1)], 0.0)
    assert sum(map(len, policy._best.values())) <= team.KINDS + 1


# --- the threads


class Fake:
    """Kernels without threads, that note the limits they are given; and calls of them."""

    adapts = True
    kind = "gemm"

    def __init__(self):
        self.limits = []

    def ready(self):
        pass

    def team(self, count):
        return [os.getpid()] * count

    def limit_team(self, threads):
        self.limits.append(threads)


def test_a_team_changes_in_the_middle_of_a_pass(monkeypatch):
    monkeypatch.setattr(team, "WINDOW", 0.0)
    monkeypatch.setattr(Policy, "next", lambda self, laps, waiting: setattr(self, "team", 3 - self.team) or self.team)
    kernels, seen = Fake(), []
    workers = Team(kernels, 2)
    for _ in range(2):
        with workers:
            for _call in workers.each([kernels, kernels, kernels]):
                seen.append((workers.size, kernels.limits[-1]))
        assert kernels.limits[-1] == 0  # who calls kernels without the team has all threads
    assert seen == [(2, 2), (1, 1), (2, 2), (1, 1), (2, 2), (1, 1)]
    with pytest.raises(KeyboardInterrupt), workers:
        raise KeyboardInterrupt
    assert kernels.limits[-1] == 0


def test_a_team_that_does_not_adapt_hands_its_calls_through():
    calls = [Fake()]
    numba = Fake()
    numba.adapts = False
    for workers in (Team(Fake(), 2, adapt=False), Team(Fake(), 1), Team(numba, 2)):
        with workers:
            assert workers.each(calls) is calls
    assert not numba.limits


def test_another_calling_thread_has_another_team(monkeypatch):
    asked, windows = [], []
    kernels = Fake()
    kernels.team = lambda count: asked.append(threading.get_ident()) or [os.getpid()] * count
    monkeypatch.setattr("gpt2flat.kernels.threads._cores", list)
    workers = Team(kernels, 2)

    def use():
        with workers:
            list(workers.each([kernels] * 3))
            windows.append(len(workers._laps))

    use(), use()
    other = threading.Thread(target=use)
    other.start(), other.join()
    assert len(asked) == len(set(asked)) == 2 and windows == [3, 6, 3]


def test_the_caller_is_bound_only_while_every_core_has_a_thread(monkeypatch):
    bound = []
    monkeypatch.setattr("gpt2flat.kernels.threads._cores", lambda: [{0}, {1}, {2}])
    monkeypatch.setattr(os, "sched_setaffinity", lambda who, cpus: bound.append((who, cpus)), raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda who: {0, 1, 2}, raising=False)
    for name in BINDING:
        monkeypatch.delenv(name, raising=False)
    kernels = Fake()
    kernels.team = lambda count: [10, 11, 12][:count]
    workers = Team(kernels, 3)
    with workers:
        assert bound == [(11, {1}), (12, {2}), (0, {0})]
        bound.clear()
        workers.resize(2)
        assert bound == [(0, {0, 1, 2}), (11, {0, 1, 2})] and kernels.limits[-1] == 2
        bound.clear()
        workers.resize(1)
        assert not bound
        workers.resize(3)
        assert bound == [(11, {1}), (12, {2}), (0, {0})]
    assert bound[-1] == (0, {0, 1, 2})


def test_seconds_of_waiting_are_the_systems_or_what_did_not_run(monkeypatch):
    workers = Team(Fake(), 2)
    with workers:
        list(workers.each([Fake()]))
        assert workers._ids and 0 <= workers._waited <= workers._wait()
        workers._ids = [-1]  # gone
        workers._took = 1.0
        workers._close()
        assert workers._ids == [os.getpid()] * 2 and not workers._laps
        monkeypatch.setattr(team, "WAITS", "/nowhere/{}")
        workers._open()
        assert workers._ids == []
        waited = workers._wait()
        sum(range(100_000))  # one of two threads runs: half a second of waiting in one second
        assert workers._wait() > waited


# --- kernels and bits


@BY_ISA
def test_each_calling_thread_has_its_own_limit(native):
    case = harness.Case("gelu_forward", (("N", 40), ("C", 50)))
    native.limit_team(1)
    try:
        other = threading.Thread(target=lambda: seen.append(harness.execute(case, native, 3)))
        seen = []
        other.start(), other.join()
        assert len(seen) == 1  # all three worked
    finally:
        native.limit_team(0)
    harness.execute(case, native, 3)


@BY_ISA
def test_no_bit_depends_on_a_team_that_changes_all_the_time(native, monkeypatch):
    draw, sizes, worked = random.Random(5), [], set()

    def size(self, laps, waiting):
        worked.add((sizes[-1] if sizes else self.most, native.last_team()))
        sizes.append(draw.randint(1, self.most))
        return sizes[-1]

    monkeypatch.setattr(team, "WINDOW", 0.0)
    monkeypatch.setattr(Policy, "next", size)
    config = GPT2Config(block_size=20, vocab_size=97, n_layer=2, n_head=2, n_embd=32)
    x, y = np.random.default_rng(1).integers(0, 97, (2, 2, 17))
    found = []
    for threads in (1, 2, 5, 64):
        sizes.clear()
        model = Model.init(config, seed=3, threads=threads, kernels=native)
        for _ in range(2):
            loss = model.forward_backward(x, y)
            model.update(lr=1e-2, grad_clip=0.5)
        logits = model.logits(x, last=True)
        assert not sizes or not native.openmp() or native.last_team() == sizes[-1]  # which asked its threads
        assert model.threads == threads and model.team == (sizes[-1] if sizes else 1)
        found.append((loss, logits.tobytes(), model.params.floats.tobytes(), model.grads.floats.tobytes()))
    assert found == found[:1] * len(found)
    assert not native.openmp() or all(asked == team for asked, team in worked) and len(worked) > 10


def test_a_benchmark_has_the_whole_team():
    trainee = Trainee(GPT2Config(16, 97, 1, 1, 16), Machine(NATIVES[0], 2))
    assert trainee.model._team._policy is None and Model(trainee.model.config, threads=2)._team._policy
