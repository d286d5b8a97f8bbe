"""The real controllers keep their promises over a faulty store, and the same runs catch each planted mistake.

The mistakes are those of `model/metalog.py` of the design, put into the real code.
"""

import asyncio
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from controller import facts as f
from controller.decide import Decision
from controller.entries import RememberedAnswer
from controller.metadata_log import BelowBoundary
from controller.object_log import ENTRIES, ObjectLog, entry_key
from controller.queue import Waiting
from controller.runtime import ControllerSettings, Runtime
from storage.memory import MemoryStore
from storage.object_store import NotFound, OutcomeUnknown, PreconditionFailed
from tests.controller.builders import CLUSTER
from tests.controller.chaos import World
from tests.controller.processes import Process
from tests.controller.virtual import run

SEEDS = int(os.environ.get("TIDELOG_SEEDS", "40"))
CAUGHT_WITHIN = 150


@pytest.mark.parametrize("first", range(0, SEEDS, 20))
def test_promises_hold(first: int) -> None:
    for seed in range(first, min(first + 20, SEEDS)):
        assert World(seed).run() is None, f"seed {seed}: World({seed}).run() replays it"


def test_a_seed_gives_the_same_history() -> None:
    one, other = World(7), World(7)
    assert one.run() == other.run()
    assert one.truth == other.truth and one.blocks == other.blocks and len(one.truth) > 50


class WriterIgnoresTheBoundary(ObjectLog):
    async def append(self, position: int, entry: bytes) -> bytes:
        try:
            held = await super().append(position, entry)
        except BelowBoundary:
            held = (await self._store.get(entry_key(position))).data
            if held != entry:
                raise
        return held


class ReaderIgnoresTheBoundary(ObjectLog):
    async def append(self, position: int, entry: bytes) -> bytes:
        try:
            return await super().append(position, entry)
        except BelowBoundary:
            held = (await self._store.get(entry_key(position))).data
            if held == entry:
                raise
            return held

    async def read_from(self, position: int, limit: int) -> list[bytes]:
        found: list[bytes] = []
        while len(found) < limit and (data := await self._read(position + len(found))) is not None:
            found.append(data)
        return found


class BoundaryAfterDeletion(ObjectLog):
    wanted = 0

    async def advance_boundary(self, position: int) -> int:
        self.wanted = position
        return position

    async def trim(self) -> int:
        for key in await self._keys_through(max(0, self.wanted)):
            await self._store.delete(key)
        await asyncio.sleep(10)
        await super().advance_boundary(self.wanted)
        return 0


class EveryRefusalIsOurOwn(ObjectLog):
    async def append(self, position: int, entry: bytes) -> bytes:
        try:
            await self._store.put_if_absent(entry_key(position), entry)
        except (PreconditionFailed, OutcomeUnknown):
            try:
                await self._store.get(entry_key(position))
            except NotFound:
                raise OutcomeUnknown("look again") from None
        await self._check_boundary(position)
        return entry


class StaleFactsAtTheNextPosition(Runtime):
    async def _append(
        self, facts: Sequence[f.Fact], remembered: Sequence[RememberedAnswer], epoch: int | None = None
    ) -> bool:
        won = await super()._append(facts, remembered, epoch)
        while not won and epoch is None and facts:
            won = await super()._append(facts, remembered, self.replica.state.controller_epoch)
        return won


class ReplyBeforeDurable(Runtime):
    def _decide_one(self, item: Waiting, context: Any) -> Any:
        decision = super()._decide_one(item, context)
        if isinstance(decision, Decision):
            self.queue.settle(item, decision.answer)
        return decision


def two_paused_writers(log: type[ObjectLog]) -> bool:
    """Whether a process applied what another one's late PUT put where a deleted entry had been.

    First leads and second campaigns, both paused with a PUT of one position in their hands; third takes over, goes on,
    takes a snapshot and deletes. Then second's PUT lands, then first's: it reads second's.
    """

    async def main() -> bool:
        store = MemoryStore()
        gates: dict[str, list[asyncio.Future[None]]] = {"first": [], "second": []}  # PUTs, those made again included

        def hold(who: str, method: str, key: str) -> asyncio.Future[None] | None:
            if method != "put_if_absent" or not key.startswith(ENTRIES):
                return None
            gates[who].append(asyncio.get_running_loop().create_future())
            return gates[who][-1]

        small = ControllerSettings(snapshot_entries=6, keep_entries=1)
        truth: dict[int, set[bytes]] = {}
        async with asyncio.TaskGroup() as group:
            processes = [Process(group, store, node, node, settings=small, log=log) for node in (1, 2, 3)]
            for process in processes:
                process.client.subscribe(
                    lambda facts, state=process.state: truth.setdefault(state.position, set()).add(state.entry_hash)
                )
            first, second, third = processes
            third.store.before = lambda method, key: 4.0 if key.startswith(ENTRIES) and method == "get" else None
            await asyncio.sleep(2)
            assert first.client.leads
            first.store.before = partial(hold, "first")
            second.store.before = partial(hold, "second")
            while not all(gates.values()):
                await asyncio.sleep(0.1)
            third.store.before = lambda method, key: None
            await asyncio.sleep(30)
            assert third.client.leads and await ObjectLog(store, CLUSTER).newest_snapshot() is not None
            for gate in [*gates["second"], *gates["first"]]:
                if not gate.done():
                    gate.set_result(None)
                    await asyncio.sleep(0.2)  # not so long that third deletes again
            for process in processes:
                await process.kill()
        return any(len(hashes) > 1 for hashes in truth.values())

    return run(main)


def test_the_loser_of_a_race_looks_at_the_boundary_too() -> None:
    assert not two_paused_writers(ObjectLog)
    assert two_paused_writers(ReaderIgnoresTheBoundary)


MISTAKES = [
    (WriterIgnoresTheBoundary, Runtime),
    (BoundaryAfterDeletion, Runtime),
    (EveryRefusalIsOurOwn, Runtime),
    (ObjectLog, StaleFactsAtTheNextPosition),
    (ObjectLog, ReplyBeforeDurable),
]


@pytest.mark.parametrize(("log", "runtime"), MISTAKES, ids=lambda part: part.__name__)
def test_every_planted_mistake_is_caught(log: type[ObjectLog], runtime: type[Runtime]) -> None:
    assert any(World(seed, log, runtime).run() for seed in range(CAUGHT_WITHIN))
