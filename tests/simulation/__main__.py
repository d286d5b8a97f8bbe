"""Run worlds: `python -m tests.simulation --seed 7 --history` replays one, `--seeds 0-999` runs many."""

from __future__ import annotations

import argparse
import logging
import os
from dataclasses import replace

from tests.simulation.machines import LAYOUTS
from tests.simulation.many import Ran, Wanted, run_all
from tests.simulation.options import GROUPS, WAL_KINDS, Options
from tests.simulation.plants import BY_NAME


def main() -> int:
    plants = BY_NAME
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description="Simulated clusters, from seeds.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=int, help="one world")
    which.add_argument("--seeds", help="worlds A-B, both included")
    which.add_argument("--plants", action="store_true", help="list the planted bugs")
    parser.add_argument("--history", action="store_true", help="print everything that happened, brokers' logs too")
    parser.add_argument("--plant", choices=sorted(plants), metavar="NAME", help="with a bug planted in the product")
    parser.add_argument("--brokers", type=int, help="how many; otherwise drawn from the seed")
    parser.add_argument("--layout", choices=sorted(LAYOUTS), help="how they are spread; otherwise drawn")
    parser.add_argument("--groups", choices=sorted(set(GROUPS)), help="protocol of the group; otherwise drawn")
    parser.add_argument("--wal", choices=sorted(WAL_KINDS), help="kind of the WAL; otherwise drawn")
    parser.add_argument("--bank", action="store_true", default=None, help="with transactional clients; otherwise drawn")
    parser.add_argument("--no-faults", action="store_true")
    parser.add_argument("--digest", action="store_true", help="print seed and digest of every run, and nothing else")
    jobs = os.cpu_count() or 1
    parser.add_argument("--jobs", type=int, default=jobs, help="processes that run worlds; one per CPU if not given")
    args = parser.parse_args()
    if args.plants:
        print("\n".join(sorted(plants)))
        return 0
    first, _, last = args.seeds.partition("-") if args.seeds else (args.seed, "", "")
    asked_for = Options(
        brokers=args.brokers,
        layout=args.layout,
        wal=args.wal,
        groups=args.groups,
        bank=args.bank,
    )
    options = plants[args.plant].options if args.plant else asked_for
    options = replace(options, log_level=logging.INFO if args.history else logging.WARNING)
    if args.no_faults:
        options = replace(options, faults={})
    seeds = range(int(first), int(last or first) + 1)
    wanted = Wanted(options, args.plant, history=args.history, digest=args.digest)
    asked = {"plant": args.plant, "brokers": args.brokers, "layout": args.layout, "wal": args.wal}
    which_worlds = "".join(f" --{name} {value}" for name, value in asked.items() if value is not None)
    which_worlds += " --bank" if args.bank else ""
    bad = 0
    cpu_s = 0.0
    for ran in run_all(wanted, seeds, args.jobs):
        bad += bool(ran.findings)
        cpu_s += ran.cpu_s
        if args.digest:
            print(ran.seed, ran.digest)
            continue
        for line in ran.told:
            print(line)
        if ran.findings:
            _tell(ran, which_worlds)
    if not args.digest:
        print(f"{len(seeds)} worlds, {bad} with findings, {cpu_s / len(seeds):.2f} s of CPU each")
    return 1 if bad else 0


def _tell(ran: Ran, which_worlds: str) -> None:
    print(f"seed {ran.seed}: {len(ran.findings)} findings")
    for finding in ran.findings[:20]:
        print(f"  {finding}")
    print(f"  replay: python -m tests.simulation --seed {ran.seed} --history{which_worlds}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
