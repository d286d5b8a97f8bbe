"""Brokers whose acknowledged records lie in the bucket: no disk, any other broker recovers what one of them leaves."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from broker.configs import TopicRules
from broker.log import LogStatus
from broker.settings import SettingError, Settings
from broker.settings_checks import build
from controller.wals import RETIRED
from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import ErrorCode
from storage.memory import MemoryStore
from storage.object_store import Body
from storage.wal.object_format import PREFIX, parse_key
from tests.support.faulty_store import FaultyStore, Mishap
from tests.support.node_runs import NodeRuns, hurry
from tests.support.raw_client import batch_of
from tests.support.several import SHORT, SHORTER, Several
from tests.support.waiting import until

QUICK = {"tidelog.wal": "objects", "tidelog.wal.objects.interval.ms": 5, "tidelog.wal.objects.busy.interval.ms": 2}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


def diskless(node: NodeRuns) -> NodeRuns:
    del node.overrides["tidelog.wal.dir"]
    node.overrides |= {**QUICK, "tidelog.data.dir": node.path / "nothing"}
    return node


async def start_diskless(several: Several, *node_ids: int, wrap: Any = None) -> None:
    """These brokers, together, without a disk."""
    for node_id in node_ids:
        if node_id not in several.nodes:
            node = several.nodes[node_id] = diskless(NodeRuns(several._path / str(node_id), **SHORT))
            node.memory = several.memory
            node.overrides["node.id"] = node_id
            node.wrap = wrap or node.wrap
            await several._stack.enter_async_context(node)
    await asyncio.gather(*[several.nodes[node_id].start() for node_id in node_ids])


async def wal_objects(memory: MemoryStore) -> list[str]:
    return [info.key async for info in memory.list(PREFIX)]


async def test_without_a_disk(tmp_path: Path) -> None:
    async with NodeRuns(tmp_path, **SHORTER) as runs:
        diskless(runs)
        run = await runs.start()
        assert run.wals.volume is None and not (tmp_path / "nothing").exists()
        await runs.create("t")
        assert await runs.produce("t", batch_of(b"a"), batch_of(b"b", b"c")) == [0, 1]
        assert len(await wal_objects(runs.memory)) == 2
        await runs.kill()
        run = await runs.start()
        assert await runs.offsets("t") == (0, 3)
        assert [wal.state for wal in run.controller.state.wals.values()] == [RETIRED, "active"]
        assert await runs.produce("t", batch_of(b"d")) == [3]
        assert await runs.stop() == 0
        # The run that was killed left its groups and a fence; the clean stop nothing.
        names = [parse_key(key) for key in await wal_objects(runs.memory)]
        assert [name.sequence for name in names if name] == [1, 2, 3]
        run = await runs.start()
        assert await runs.offsets("t") == (0, 4)
        assert not (tmp_path / "nothing").exists()


async def test_committed_groups_are_deleted_and_the_collector_takes_the_rest(tmp_path: Path) -> None:
    async with NodeRuns(tmp_path, tidelog_orphan_check_interval_ms=50, **SHORTER) as runs:
        diskless(runs)
        run = await runs.start()
        await runs.create("t")
        await runs.produce("t", *[batch_of(b"v") for _ in range(5)])
        await run.sealing.commit_through(run.logs.find["t", 0], 5)
        await until(lambda: run.wals.objects is not None and run.wals.objects.deletes == 5)
        assert await wal_objects(runs.memory) == []
        await runs.produce("t", *[batch_of(b"v") for _ in range(5)])
        await runs.kill()
        await runs.start()
        assert await runs.offsets("t") == (0, 10)
        for _ in range(200):
            left = await wal_objects(runs.memory)
            if len(left) == 1:
                break
            await asyncio.sleep(0.02)
        (fence,) = left
        name = parse_key(fence)
        assert name is not None and name.sequence == 11, "the fence stays for seven days"


async def test_any_broker_takes_over(several: Several) -> None:
    await start_diskless(several, 1)
    await start_diskless(several, 2, 3)
    await several.spread("t", 9, by=1)
    for index in range(9):
        assert await several.produce("t", index, b"a", b"b") == [0, 1]
    victim = several.others[0]
    await several.nodes[victim].kill()
    left = [node_id for node_id in (1, 2, 3) if node_id != victim]
    del several.nodes[victim]
    await until(
        lambda: all(several.leader("t", index, seen_by=node) in left for index in range(9) for node in left),
        seconds=10,
    )
    state = several.nodes[left[0]].broker.controller.state
    assert sorted(wal.state for wal in state.wals.values()) == ["active", "active", RETIRED]
    assert [wal.recovery_number for wal in state.wals.values() if wal.state == RETIRED] == [1]
    for index in range(9):
        await until(
            lambda index=index: (
                ("t", index) in several.nodes[several.leader("t", index, seen_by=left[0])].broker.logs.find
            )
        )  # type: ignore[misc]
        assert await several.produce("t", index, b"c") == [2]


async def test_the_controllers_own_broker_dies(several: Several) -> None:
    await start_diskless(several, 1)
    await start_diskless(several, 2, 3)
    await several.spread("t", 6, by=1)
    for index in range(6):
        await several.produce("t", index, b"a")
    await several.nodes[1].kill()
    del several.nodes[1]
    await until(
        lambda: all(several.leader("t", index, seen_by=node) in (2, 3) for index in range(6) for node in (2, 3)),
        seconds=10,
    )


async def test_a_recoverer_that_dies_gets_a_successor(several: Several) -> None:
    held = asyncio.Event()

    class Slow(MemoryStore):
        """Its user never comes to make a fence."""

        async def put_if_absent(self, key: str, body: Body) -> str:
            if isinstance(body, bytes) and parse_key(key) is not None:
                held.set()
                await asyncio.Event().wait()
            return await super().put_if_absent(key, body)

    def slow(memory: MemoryStore) -> Slow:
        store = Slow()
        store._objects, store._keys = memory._objects, memory._keys
        return store

    await start_diskless(several, 1)
    await start_diskless(several, 2, wrap=slow)
    await start_diskless(several, 3)
    await several.spread("t", 3, by=1)
    for index in range(3):
        await several.produce("t", index, b"a")
    await several.nodes.pop(1).kill()
    async with asyncio.timeout(10):
        await held.wait()
    state = several.nodes[3].broker.controller.state
    (wal,) = [wal for wal in state.wals.values() if wal.recovery_number]
    assert (wal.recoverer_node, wal.recovery_number) == (2, 1)
    wal_id = wal.wal_id
    await several.nodes.pop(2).kill()
    await until(lambda: all(wal.state == RETIRED for wal in state.wals.values() if wal.node_id != 3), seconds=10)
    assert (state.wals[wal_id].recoverer_node, state.wals[wal_id].recovery_number) == (3, 2)
    for index in range(3):
        await until(lambda index=index: ("t", index) in several.nodes[3].broker.logs.find)  # type: ignore[misc]
        assert await several.produce("t", index, b"b") == [1]


async def test_both_kinds_in_one_broker(tmp_path: Path) -> None:
    async with NodeRuns(tmp_path, **SHORTER) as runs:
        runs.overrides |= {key: value for key, value in QUICK.items() if key != "tidelog.wal"}
        run = await runs.start()
        await runs.create("disk", 2)
        await runs.create("bucket", 2, tidelog_wal="objects")
        for turn in range(3):
            for name in ("disk", "bucket"):
                assert await runs.produce(name, batch_of(b"v"), partition=turn % 2) == [turn // 2]
        assert run.wals.volume is not None and run.wals.objects is not None
        assert run.wals.volume.appended == run.wals.objects.appended == 3
        kinds = {log.wal.kind for (name, _), log in run.logs.find.items() if name == "bucket"}
        assert kinds == {"objects"}
        await runs.kill()
        run = await runs.start()
        for name in ("disk", "bucket"):
            await until(lambda name=name: (name, 0) in runs.broker.logs.find)  # type: ignore[misc]
            assert [(await runs.offsets(name, partition=index))[1] for index in (0, 1)] == [2, 1]
        assert await runs.stop() == 0


async def test_a_change_of_the_kind_moves_each_log_to_its_own_leader(tmp_path: Path) -> None:
    async with NodeRuns(tmp_path, **SHORTER) as runs:
        runs.overrides |= {key: value for key, value in QUICK.items() if key != "tidelog.wal"}
        run = await runs.start()
        await runs.create("t", 2)
        await runs.produce("t", batch_of(b"a"), batch_of(b"b"))

        async def change(kind: str) -> None:
            resource = m.IncrementalAlterConfigsRequest.AlterConfigsResource(
                resource_type=2,
                resource_name="t",
                configs=[
                    m.IncrementalAlterConfigsRequest.AlterableConfig(name="tidelog.wal", config_operation=0, value=kind)
                ],
            )
            async with runs.client() as client:
                request = m.IncrementalAlterConfigsRequest(resources=[resource], validate_only=False)
                answer = await client.ask(ApiKey.INCREMENTAL_ALTER_CONFIGS, 1, request)
            assert answer.responses[0].error_code == 0, answer

            def moved() -> bool:
                logs = [run.logs.find.get(("t", index)) for index in (0, 1)]
                return all(log is not None and log.wal.kind == kind and log.status is LogStatus.OPEN for log in logs)

            await until(moved)

        await change("objects")
        assert await runs.produce("t", batch_of(b"c")) == [2]
        assert run.wals.objects is not None and run.wals.objects.appended == 1
        assert run.logs.find["t", 0].epoch == 1
        await change("volume")
        assert await runs.produce("t", batch_of(b"d")) == [3]
        assert run.logs.find["t", 0].epoch == 2 and await runs.offsets("t") == (0, 4)
        await runs.kill()
        await runs.start()
        assert await runs.offsets("t") == (0, 4)


async def test_what_an_earlier_run_left_on_a_disk_is_recovered_by_a_run_without_one(tmp_path: Path) -> None:
    async with NodeRuns(tmp_path, **SHORTER) as runs:
        del runs.overrides["tidelog.wal.dir"]
        runs.overrides["tidelog.data.dir"] = tmp_path
        await runs.start()
        await runs.create("t")
        await runs.produce("t", batch_of(b"a"), batch_of(b"b"))
        await runs.kill()
        assert len(runs.instances()) == 1
        runs.overrides |= QUICK
        run = await runs.start()
        assert run.wals.volume is None
        await until(lambda: ("t", 0) in run.logs.find)
        assert await runs.offsets("t") == (0, 2)
        assert await runs.produce("t", batch_of(b"c")) == [2]
        await until(lambda: not runs.instances())


async def test_a_full_bucket_does_not_hold_up_the_disk(tmp_path: Path) -> None:
    async with NodeRuns(tmp_path) as runs:
        stores: list[FaultyStore] = []

        def wrap(memory: MemoryStore) -> FaultyStore:
            stores.append(FaultyStore(memory))
            return stores[-1]

        runs.wrap = wrap
        runs.overrides |= {key: value for key, value in QUICK.items() if key != "tidelog.wal"}
        runs.overrides["tidelog.wal.objects.bytes.max"] = 5 << 20
        run = await runs.start()
        await runs.create("disk")
        await runs.create("bucket", tidelog_wal="objects")
        stores[-1].plan = lambda name: Mishap.UNAVAILABLE if name == "put_if_absent" else Mishap.NONE
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(runs.client()) for _ in range(8)]
            waiting = [
                asyncio.ensure_future(client.produce("bucket", batch_of(bytes(900_000))))  # noqa: TID251
                for client in clients
            ]
            await until(lambda: len(run.logs.space))
            assert await runs.produce("disk", batch_of(b"a"), batch_of(b"b")) == [0, 1]
            assert not any(one.done() for one in waiting)
            stores[-1].plan = lambda name: Mishap.NONE
            await run.sealing.commit_through(run.logs.find["disk", 0], 2)
            answers = await asyncio.gather(*waiting)
        assert sorted(answer.base_offset for answer in answers) == list(range(8))
        assert {answer.error_code for answer in answers} == {ErrorCode.NONE}


async def test_a_fenced_writer_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with NodeRuns(tmp_path, **SHORTER) as runs:
        diskless(runs)
        run = await runs.start()
        await runs.create("t")
        await runs.produce("t", batch_of(b"a"))
        assert run.wals.objects is not None
        key = f"{run.wals.objects.path}/0/000000000002"
        from storage.wal.object_format import encode_fence

        await runs.memory.put(key, encode_fence(run.wals.objects.wal_id, 0, 2, bytes(16)))
        async with runs.client() as client:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await client.produce("t", batch_of(b"b"))
        assert await runs.ended() == 1
        assert "is a fence: another broker recovers this WAL" in caplog.text


async def test_damage_waits_for_the_operator_at_the_broker_that_was_named(tmp_path: Path) -> None:
    async with NodeRuns(tmp_path, **SHORTER) as runs:
        diskless(runs)
        await runs.start()
        await runs.create("t")
        await runs.produce("t", *[batch_of(b"v") for _ in range(4)])
        await runs.kill()
        keys = await wal_objects(runs.memory)
        data = bytearray((await runs.memory.get(keys[2])).data)
        data[-1] ^= 1
        await runs.memory.put(keys[2], data)
        run = await runs.start()
        (wal_id,) = run.recovery.waiting
        assert "may be missing: log 0 from offset 2 up to 4" in run.recovery.waiting[wal_id].why
        assert ("t", 0) not in run.logs.find
        report = await run.recovery.accept_loss(wal_id)
        assert report["logs"][0]["lost_from_offset"] == 2
        await until(lambda: ("t", 0) in run.logs.find)
        assert (await runs.offsets("t"))[1] == 1 << 32 | 2 and not run.recovery.waiting


async def test_internal_topics_use_the_strongest_kind_in_use(tmp_path: Path) -> None:
    rules = TopicRules(Settings())
    assert rules.wal_kind({}, True) == "volume" and rules.wal_kind({}, True, ["objects"]) == "objects"
    assert rules.wal_kind({"tidelog.wal": "volume"}, True, ["objects"]) == "volume"
    assert TopicRules(Settings(tidelog_internal_wal="volume")).wal_kind({}, True, ["objects"]) == "volume"
    assert TopicRules(Settings(tidelog_wal="objects")).wal_kind({}, True) == "objects"
    assert not Settings(tidelog_wal="objects").uses_volume and Settings().uses_volume
    assert Settings(tidelog_wal="objects", tidelog_wal_dir="/wal").uses_volume


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(SettingError, match=r"busy\.interval\.ms must not be longer"):
        build({"tidelog.wal.objects.interval.ms": "50"})
    with pytest.raises(SettingError, match=r"more than 1/4 of tidelog\.wal\.objects\.bytes\.max"):
        build({"tidelog.wal.objects.bytes.max": str(4 << 20)})
