import asyncio

import pytest

from controller import commands as c
from controller.client import Grant, open_local
from controller.cluster_file import ClusterFileError
from controller.configs import PlainRules
from controller.election import Identity
from storage.memory import MemoryStore
from tests.controller.builders import LISTENERS, tokens, wal_id
from tests.controller.virtual import VirtualClock, run


def test_a_local_controller_from_an_empty_bucket_and_again() -> None:
    async def main() -> None:
        store = MemoryStore()
        for incarnation in (100, 101):
            token = tokens(str(incarnation))
            async with asyncio.TaskGroup() as group:
                client = await open_local(
                    store,
                    clock=VirtualClock(),
                    token=token,
                    identity=Identity(1, incarnation, (wal_id(incarnation),)),
                    rules=PlainRules(),
                )
                group.create_task(client.run())
                await client.wait_ready()
                wals = (c.NewWal(wal_id(incarnation), "volume"),)
                command = c.RegisterBroker(token(16), 1, incarnation, "boot", None, LISTENERS, wals)
                assert await client.ask(command) == c.Registered(())
                assert await client.heartbeat(incarnation, client.position, {}) == Grant(3_000, 1_000)
                if incarnation == 100:
                    await client.ask(c.CreateTopics(token(16), (c.NewTopic("t"),)))
                assert client.state.logs[0].leader_incarnation == incarnation
                assert client.leads and client.reachable
                await client.wait_applied(client.position)
                await client.ask(c.CleanStop(token(16), incarnation))
                await client.stop()

    run(main)


def test_another_cluster_is_refused() -> None:
    async def main() -> None:
        store = MemoryStore()
        for expected in ("A" * 22, "B" * 22):
            await open_local(
                store,
                clock=VirtualClock(),
                token=tokens(),
                identity=Identity(1, 1),
                rules=PlainRules(),
                expected_cluster_id=expected,
            )

    with pytest.raises(ClusterFileError):
        run(main)
