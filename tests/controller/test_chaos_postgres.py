"""The controllers keep their promises over PostgreSQL too, through failovers; the same runs catch planted mistakes."""

import os

import pytest

from controller.entries import hash_of
from controller.metadata_log import BelowBoundary
from controller.postgres_log import PostgresLog
from controller.postgres_tables import Page
from tests.controller.chaos_postgres import PostgresWorld

SEEDS = int(os.environ.get("TIDELOG_SEEDS", "30"))
CAUGHT_WITHIN = 150


@pytest.mark.parametrize("loses", [False, True])
def test_promises_hold(loses: bool) -> None:
    for seed in range(SEEDS):
        world = PostgresWorld(seed, loses=loses)
        assert world.run() is None, f"seed {seed}: PostgresWorld({seed}, loses={loses}).run() replays it"
        assert loses or len(world.truth) > 20, "it got somewhere"


class EveryRefusalIsOurOwn(PostgresLog):
    async def append(self, position: int, entry: bytes) -> bytes:
        await self._tables.insert_entry(position, entry, hash_of(entry), None)
        return entry


class BelievesAnyServer(PostgresLog):
    async def append(self, position: int, entry: bytes) -> bytes:
        held = await self._tables.read(position, 1)
        if held.server != held.trusted:
            await self._tables.trust(held.trusted, held.server)
        self._applied = 0
        return await super().append(position, entry)

    async def _page(self, position: int, limit: int) -> Page:
        page = await self._tables.read(position, limit)
        if position <= page.boundary:
            raise BelowBoundary("below")
        if page.server != page.trusted:
            await self._trust(page)
        return page


class BoundaryAfterDeletion(PostgresLog):
    async def advance_boundary(self, position: int) -> int:
        self._wanted = position
        return position

    async def trim(self) -> int:
        database = self._tables._database  # type: ignore[attr-defined]
        for at in [at for at in database.entries if at <= self._wanted]:
            del database.entries[at]
        return 0


@pytest.mark.parametrize(
    ("log", "loses"),
    [(EveryRefusalIsOurOwn, False), (BelievesAnyServer, True), (BoundaryAfterDeletion, False)],
)
def test_planted_mistakes_are_caught(log: type[PostgresLog], loses: bool) -> None:
    assert any(PostgresWorld(seed, log, loses=loses).run() for seed in range(CAUGHT_WITHIN))
