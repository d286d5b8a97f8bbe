"""Machines are destroyed and what was on them is declared lost while clients go on: worlds run clean.

A reader that comes to a loss must not skip what was written behind it. One did, when the bucket was asked for long
enough that this left the tail meanwhile: it is planted here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from broker.cold import ColdReads
from broker.handlers import fetch
from controller.facts import LOSS_GAP
from tests.simulation.cluster import Options, Result, World

SHORT_TAILS = {
    "tidelog.tail.keep.bytes": "0",
    "tidelog.seal.ms": "200",
    "tidelog.seal.bytes": "65536",
    "tidelog.merge.enable": "false",
}
SLOW_S = 0.3
SEEDS = 12


def behind_a_loss(result: Result) -> int:
    """How many polls got records from there."""
    polls = [event.fields["records"] for event in result.history if event.kind == "poll.ok"]
    return sum(1 for records in polls if records and records[-1][0] >= LOSS_GAP)


def test_worlds_that_lose_machines_run_clean() -> None:
    crossed = 0
    for seed in range(8):
        result = World(seed, Options(wal="volume", faults_s=10, faults={"destroy": 2, "outage": 1, "kill": 1})).run()
        assert not result.findings, (seed, result.findings)
        crossed += behind_a_loss(result)
    assert crossed > 50


@contextmanager
def reads_that_take_a_while() -> Iterator[None]:
    """Those that find nothing, as from ranges whose records there are gone."""
    read: Callable[..., Any] = ColdReads.read

    async def slow(self: ColdReads, *args: Any, **options: Any) -> Any:
        found = await read(self, *args, **options)
        if not found.buffers:
            await asyncio.sleep(SLOW_S)
        return found

    with patch.object(ColdReads, "read", slow):
        yield


def test_a_reader_that_skips_what_left_the_tail_while_it_crossed_a_loss_is_caught() -> None:
    across = fetch._across

    def planted(log: Any, offset: int, read_to: int, limit: int, max_bytes: int) -> Any:
        return across(log, offset, max(read_to, min(limit, log.tail.start)), limit, max_bytes)

    options = Options(brokers=1, wal="volume", moves=0.0, faults_s=12, settings=SHORT_TAILS, faults={"destroy": 1})
    for seed in range(SEEDS):
        with reads_that_take_a_while():
            with patch.object(fetch, "_across", planted):
                findings = World(seed, options).run().findings
            assert not World(seed, options).run().findings, seed
        if findings:
            assert "skipped-poll" in findings[0]
            return
    raise AssertionError("nobody saw it")
