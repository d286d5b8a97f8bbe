"""Run worlds: `python -m tests.simulation --seed 7 --history` replays one, `--seeds 0-999` runs many."""

from __future__ import annotations

import argparse
import contextlib
import logging
import time
from contextlib import AbstractContextManager
from dataclasses import replace

from tests.simulation.cluster import Options, Result, World
from tests.simulation.plants import CLUSTER_PLANTS, PLANTS
from tests.simulation.scheduler import S


def main() -> int:
    plants = PLANTS | CLUSTER_PLANTS
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description="Simulated clusters, from seeds.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=int, help="one world")
    which.add_argument("--seeds", help="worlds A-B, both included")
    which.add_argument("--plants", action="store_true", help="list the planted bugs")
    parser.add_argument("--history", action="store_true", help="print everything that happened, brokers' logs too")
    parser.add_argument("--plant", choices=sorted(plants), metavar="NAME", help="with a bug planted in the product")
    parser.add_argument("--brokers", type=int, default=1)
    parser.add_argument("--no-faults", action="store_true")
    parser.add_argument("--digest", action="store_true", help="print seed and digest of every run, and nothing else")
    args = parser.parse_args()
    if args.plants:
        print("\n".join(sorted(plants)))
        return 0
    first, _, last = args.seeds.partition("-") if args.seeds else (args.seed, "", "")
    options = plants[args.plant].options if args.plant else Options(brokers=args.brokers)
    options = replace(options, log_level=logging.INFO if args.history else logging.WARNING)
    if args.no_faults:
        options = replace(options, faults={})
    bad = runs = 0
    began = time.process_time()
    for seed in range(int(first), int(last or first) + 1):
        plant: AbstractContextManager[None] = plants[args.plant].planted() if args.plant else contextlib.nullcontext()
        with plant:
            world = World(seed, options)
            result = world.run()
        runs += 1
        bad += bool(result.findings)
        if args.digest:
            print(seed, result.digest)
            continue
        if args.history:
            _tell_history(world, result)
        if result.findings:
            _tell(result, args.plant)
    if not args.digest:
        seconds = time.process_time() - began
        print(f"{runs} worlds, {bad} with findings, {seconds / runs:.2f} s of CPU each")
    return 1 if bad else 0


def _tell(result: Result, plant: str | None) -> None:
    print(f"seed {result.seed}: {len(result.findings)} findings")
    for finding in result.findings[:20]:
        print(f"  {finding}")
    planted = f" --plant {plant}" if plant else ""
    print(f"  replay: python -m tests.simulation --seed {result.seed} --history{planted}")


def _tell_history(world: World, result: Result) -> None:
    """Events and log lines in the order of their time."""
    lines = [(event.at_ns, str(event)) for event in result.history]
    lines += [(at_ns, f"{at_ns / S:12.6f} log {name} {text}") for at_ns, name, text in world.log]
    for _, line in sorted(lines, key=lambda each: each[0]):
        print(line)


if __name__ == "__main__":
    raise SystemExit(main())
