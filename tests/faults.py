"""Every fault that saving must survive, as one table: python tests/faults.py [--quick] [NAME...]

A row of FAULTS is a sweep: a function of (cases, seed) that returns an Outcome, and how many cases are quick and how
many all. It ends with 1 if anything was lost."""

import argparse
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import fault_calls
import fault_crashes
import fault_damage
import fault_kills
import fault_mutants
import fault_runs
from fault_scenarios import Outcome

SEED = 20261121
ALL = 1 << 20  # more than there are
SHOWN = 5  # of what was lost


class Fault(NamedTuple):
    """run(cases, seed); a sweep with fewer cases than asked for tries them all."""

    run: Callable[[int, int], Outcome]
    quick: int
    full: int


FAULTS = {
    "power cut": Fault(fault_crashes.power_cut, 1000, 20_000),
    "power cut, one file": Fault(fault_crashes.power_cut_of_a_file, 200, 5000),
    "file operation fails": Fault(fault_calls.failing_calls, 200, ALL),
    "system call fails": Fault(fault_kills.failing_system_calls, 20, ALL),
    "short writes": Fault(fault_calls.short_writes, 10, 200),
    "file size limit": Fault(fault_calls.file_limits, 10, 40),
    "no room announced": Fault(fault_calls.announced_room, 20, 200),
    "disk full (tmpfs)": Fault(fault_calls.full_disks, 10, 40),
    "kill -9 at file operation": Fault(fault_kills.killed_at_calls, 60, ALL),
    "kill -9 at system call": Fault(fault_kills.killed_at_system_calls, 20, ALL),
    "kill -9 at random": Fault(fault_kills.killed_at_random, 15, 1000),
    "flipped bit": Fault(fault_damage.flipped_bits, 500, 5000),
    "clock jumps": Fault(fault_damage.jumping_clocks, 20, 200),
    "readers beside saves": Fault(fault_damage.readers_beside, 20, 1000),
    "starters for one run": Fault(fault_damage.many_starters, 10, 100),
    "resume at every step": Fault(fault_runs.resumed_at_every_step, 0, ALL),
    "resume again and again": Fault(fault_runs.resumed_again_and_again, 2, 100),
    "signals": Fault(fault_runs.signalled, 4, 500),
    "kill -9 of a run": Fault(fault_runs.killed, 2, 200),
    "NaN in a tensor": Fault(fault_runs.poisoned, 4, 1000),
    "seeded fault not seen": Fault(fault_mutants.seeded, 0, ALL),
    "seeded in resume, not seen": Fault(fault_runs.seeded, 2, ALL),
}


def sweep(names: list[str], quick: bool, seed: int = SEED) -> bool:
    """Runs the rows and prints them as they end; whether nothing was lost."""
    width = max(map(len, FAULTS))
    print(f"{'fault':{width}}  cases tried   lost  seconds", flush=True)
    sound = True
    for name in names:
        fault = FAULTS[name]
        cases = fault.quick if quick else fault.full
        if not cases:
            print(f"{name:{width}}  only without --quick", flush=True)
            continue
        start = time.perf_counter()
        outcome = fault.run(cases, seed)
        seconds = time.perf_counter() - start
        note = f"  left out: {outcome.left_out}" if outcome.left_out else ""
        print(f"{name:{width}}  {outcome.tried:11,}  {len(outcome.lost):5}  {seconds:7.1f}{note}", flush=True)
        for line in outcome.lost[:SHOWN]:
            print(f"    {line}", flush=True)
        sound &= not outcome.lost
    return sound


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("names", nargs="*", metavar="NAME", help=f"rows: {', '.join(FAULTS)}; default all")
    p.add_argument("--quick", action="store_true", help="fewer cases: seconds instead of minutes")
    p.add_argument("--seed", type=int, default=SEED)
    args = p.parse_args(argv)
    if unknown := set(args.names) - FAULTS.keys():
        p.error(f"no such fault: {', '.join(sorted(unknown))}")
    print(f"seed {args.seed}", flush=True)
    return int(not sweep(args.names or list(FAULTS), args.quick, args.seed))


if __name__ == "__main__":
    sys.exit(main())
