"""A transactional producer of a compacted topic: what it aborts must supersede nothing, and what it has not decided yet
neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from protocol.records import NewRecord
from tests.simulation.bankers import TIMEOUT_MS, Abortable, Banker
from tests.simulation.client import encode_value, sleep_ms
from tests.simulation.producers import TIMESTAMP_MS
from tests.simulation.tables import PART, TABLE, is_tombstone, key_of

ABORT, SLOW = 0.5, 0.5
"""Shares of transactions that are not committed, and of those that stay open for long while others write."""


class TableWriter(Banker):
    """One transaction after the other, each of some values and none a tombstone."""

    topics = (TABLE,)

    async def _begin_session(self) -> None:
        await self._fence_others()

    async def _work(self) -> None:
        number = next(self.numbers)
        values = tuple(self._value() for _ in range(self.rng.randint(1, 4)))
        self._told("begin", session=self.session, txn=number, values=values)
        commit = self.rng.random() >= ABORT
        half = self.rng.randint(1, len(values))
        deadline = asyncio.get_running_loop().time() + TIMEOUT_MS / 2_000
        try:
            await self._write(number, PART, values[:half], deadline)
            if self.rng.random() < SLOW:
                await sleep_ms(self.rng.randint(200, TIMEOUT_MS * 3 // 4))
            if values[half:]:
                await self._write(number, PART, values[half:], deadline)
        except Abortable:
            commit = False
        await self._end(number, commit=commit)

    def _value(self) -> int:
        while is_tombstone(value := next(self.numbers)):
            pass
        return value

    def records_of_entries(self, entries: Sequence[int]) -> list[NewRecord]:
        """With their keys."""
        low, high = 8, 300
        return [
            (TIMESTAMP_MS, b"key %d" % key_of(value), encode_value(value, self.rng.randint(low, high)), ())
            for value in entries
        ]
