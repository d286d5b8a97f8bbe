"""Worlds of many seeds, in several processes when they are many."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Generator
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple

from tests.simulation.cluster import Options, Result, World
from tests.simulation.plants import BY_NAME
from tests.simulation.scheduler import S

SEEDS_PER_PROCESS = 12
"""A process takes as long to begin as two worlds: fewer seeds are not worth another one."""


class Wanted(NamedTuple):
    """What to run with each seed, and what to tell of it."""

    options: Options
    plant: str | None = None
    history: bool = False
    digest: bool = False


class Ran(NamedTuple):
    """What came of one world. `digest` and `told`, its history, are there if they are wanted."""

    seed: int
    findings: list[str]
    digest: str
    told: list[str]
    cpu_s: float


def run_all(wanted: Wanted, seeds: range, jobs: int) -> Generator[Ran, None, None]:
    """What came of every seed, in their order."""
    jobs = min(jobs, len(seeds) // SEEDS_PER_PROCESS)
    if jobs <= 1:
        yield from map(partial(run_one, wanted), seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(partial(run_one, wanted), seeds)


def run_one(wanted: Wanted, seed: int) -> Ran:
    """One world."""
    began = time.process_time()
    plant: AbstractContextManager[None] = BY_NAME[wanted.plant].planted() if wanted.plant else contextlib.nullcontext()
    with plant:
        world = World(seed, wanted.options)
        result = world.run()
    digest = result.digest if wanted.digest else ""
    told = _history(world, result) if wanted.history else []
    return Ran(seed, result.findings, digest, told, time.process_time() - began)


def _history(world: World, result: Result) -> list[str]:
    """Events and log lines in the order of their time."""
    lines = [(event.at_ns, str(event)) for event in result.history]
    lines += [(at_ns, f"{at_ns / S:12.6f} log {name} {text}") for at_ns, name, text in world.log]
    return [line for _, line in sorted(lines, key=lambda each: each[0])]
