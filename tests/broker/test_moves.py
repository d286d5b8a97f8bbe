"""Planned moves between brokers in one loop: logs leave, logs arrive, clients go along."""

import asyncio

import pytest

import broker.moves
from broker.log import LogStatus
from broker.node import Broker
from controller import commands as c
from controller.facts import MoveTarget
from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import ErrorCode
from tests.support.node_runs import hurry
from tests.support.raw_client import batch_of
from tests.support.several import Several, read
from tests.support.waiting import until


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr(broker.moves, "AGAIN_S", 0.01)


async def ask_moves(several: Several, topic: str, target: int, *partitions: int) -> c.MovesAnswer:
    controller = several.nodes[1].broker.controller
    log_ids = controller.state.topics[topic].log_ids
    moves = tuple(MoveTarget(log_ids[partition], target) for partition in partitions)
    answer: c.MovesAnswer = await controller.ask(c.RequestMoves(several.nodes[1].broker.token(16), moves))
    return answer


async def everybody_knows(several: Several) -> None:
    position = max(node.broker.controller.position for node in several.running.values())
    for node in several.running.values():
        await node.broker.controller.wait_applied(position)


def serves(several: Several, node_id: int, topic: str, *partitions: int) -> bool:
    find = several.nodes[node_id].broker.logs.find
    logs = [find.get((topic, partition)) for partition in partitions]
    return all(log is not None and log.status is LogStatus.OPEN for log in logs)


async def test_logs_move_with_all_that_they_hold(several: Several) -> None:
    await several.start(1)
    await several.start(2)
    await several.spread("t", 4, by=1)
    for index in range(4):
        assert await several.produce("t", index, b"a", b"b") == [0, 1]
    away = [index for index in range(4) if several.leader("t", index, seen_by=1) == 1]
    await ask_moves(several, "t", 2, *away)
    await until(lambda: serves(several, 2, "t", *range(4)))
    await everybody_knows(several)
    assert several.nodes[1].broker.moves.moved == 2 and several.nodes[1].broker.moves.frozen == 0
    for index in range(4):
        assert await several.produce("t", index, b"c") == [2]
        assert await read(several, "t", index) == [b"a", b"b", b"c"]
    state = several.nodes[2].broker.controller.state
    assert state.moves == {} and {log.epoch for log in state.logs.values()} == {0, 1}
    assert several.nodes[2].broker.logs.replayed_bytes == 0, "no batch is read for a move"


async def test_a_move_uploads_what_memory_holds_once_and_reads_no_batches(several: Several) -> None:
    await several.start(1)
    await several.start(2)
    await several.spread("t", 1, by=1)
    leader = several.leader("t", 0, seen_by=1)
    batch = batch_of(*[bytes(1000)] * 100)
    await several.nodes[leader].produce("t", *[batch] * 20)
    sealing = several.nodes[leader].broker.sealing
    for target in (3 - leader, leader):
        source = several.nodes[3 - target].broker
        await ask_moves(several, "t", target, 0)
        await until(lambda target=target: serves(several, target, "t", 0))  # type: ignore[misc]
        await until(lambda source=source: source.moves.moved == 1)  # type: ignore[misc]
    assert sealing.sealed_bytes == 20 * len(batch)
    assert several.nodes[3 - leader].broker.sealing.sealed_bytes == 0, "nothing was copied on the way back"
    for node in several.nodes.values():
        assert node.broker.logs.replayed_bytes == 0
        assert node.broker.services.reader.bytes_fetched <= 2 * 64 * 1024, "the ends of objects"


async def test_the_producer_goes_along(several: Several) -> None:
    await several.start(1)
    await several.start(2)
    await several.spread("t", 1, by=1)
    leader = several.leader("t", 0, seen_by=1)
    first = batch_of(b"a", producer_id=7, producer_epoch=0, base_sequence=0)
    second = batch_of(b"b", producer_id=7, producer_epoch=0, base_sequence=1)
    assert await several.nodes[leader].produce("t", first, second) == [0, 1]
    await ask_moves(several, "t", 3 - leader, 0)
    await until(lambda: serves(several, 3 - leader, "t", 0))
    third = batch_of(b"c", producer_id=7, producer_epoch=0, base_sequence=2)
    assert await several.nodes[3 - leader].produce("t", second, third, first) == [1, 2, 0], "duplicates are known"
    gap = batch_of(b"d", producer_id=7, producer_epoch=0, base_sequence=9)
    async with several.nodes[3 - leader].client() as client:
        assert (await client.produce("t", gap)).error_code == ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER


async def test_clients_at_the_old_leader_are_told_of_the_new_one(several: Several) -> None:
    await several.start(1)
    await several.start(2)
    await several.spread("t", 1, by=1)
    leader = several.leader("t", 0, seen_by=1)
    old, new = several.nodes[leader], several.nodes[3 - leader]
    async with old.client() as client, old.client() as reader:
        topic_id = old.broker.controller.state.topics["t"].topic_id
        topic = m.FetchRequest.FetchTopic(
            topic_id=topic_id, partitions=[m.FetchRequest.FetchPartition(partition=0, fetch_offset=0)]
        )
        poll = m.FetchRequest(max_wait_ms=60_000, min_bytes=1, max_bytes=1 << 20, topics=[topic])
        reader.send(ApiKey.FETCH, 16, poll)
        await until(lambda: old.broker.logs.find["t", 0].waiters)
        began = asyncio.get_running_loop().time()
        await ask_moves(several, "t", 3 - leader, 0)
        _, answer = await reader.receive(ApiKey.FETCH, 16)
        (part,) = answer.responses[0].partitions
        assert part.error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER
        assert (part.current_leader.leader_id, part.current_leader.leader_epoch) == (3 - leader, 1)
        assert [(one.node_id, one.port) for one in answer.node_endpoints] == [(3 - leader, new.port)]
        refused = await client.produce("t", batch_of(b"a"), version=10)
        assert refused.error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER
        assert (refused.current_leader.leader_id, refused.current_leader.leader_epoch) == (3 - leader, 1)
        assert asyncio.get_running_loop().time() - began < 2, "nobody waited for the deadline of the poll"


async def test_a_produce_waits_for_a_log_that_is_about_to_move(
    several: Several, monkeypatch: pytest.MonkeyPatch
) -> None:
    await several.start(1)
    await several.start(2)
    await several.spread("t", 2, by=1)
    leader = several.leader("t", 0, seen_by=1)
    old = several.nodes[leader].broker
    log = old.logs.find["t", 0]
    log.status = LogStatus.MOVING
    async with several.nodes[leader].client() as client:
        producing = asyncio.ensure_future(client.produce("t", batch_of(b"a"), version=10))  # noqa: TID251
        await until(lambda: old.counters.settle_waits == 1)
        await asyncio.sleep(0.05)
        assert not producing.done() and log.end == 0
        log.status = LogStatus.OPEN
        log.wake_all()
        assert (await producing).error_code == 0
        log.status = LogStatus.MOVING
        began = asyncio.get_running_loop().time()
        answer = await client.produce("t", batch_of(b"b"), version=10)
        assert answer.error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER
        assert 0.9 < asyncio.get_running_loop().time() - began < 1.5
        assert not log.waiters
        log.status = LogStatus.OPEN
        assert (await client.produce("t", batch_of(b"b"))).base_offset == 1


async def test_a_refused_move_leaves_the_log_where_it_is(several: Several) -> None:
    """The wish is withdrawn while the log is frozen: the commit counts, the move does not."""
    await several.start(1)
    await several.start(2)
    await several.spread("t", 1, by=1)
    leader = several.leader("t", 0, seen_by=1)
    old = several.nodes[leader].broker
    log = old.logs.find["t", 0]
    await several.produce("t", 0, b"a")
    uploader, submit = old.uploader, old.uploader.submit
    asked = []

    def late(logs, through=(), recovery=None, moves=()):  # type: ignore[no-untyped-def]
        if moves:
            asked.append(moves)
            moves = [moves[0]._replace(end=moves[0].end + 1)]
        return submit(logs, through, recovery, moves)

    uploader.submit = late  # type: ignore[method-assign]
    await ask_moves(several, "t", 3 - leader, 0)
    await until(lambda: old.moves.refused)
    del uploader.submit  # type: ignore[method-assign]
    await until(lambda: serves(several, 3 - leader, "t", 0))
    assert asked and log.status is LogStatus.CLOSED
    await everybody_knows(several)
    assert await several.produce("t", 0, b"b") == [1]


class SlowDisk:
    """What the WAL of a broker makes durable is not validated before the test says so."""

    def __init__(self, broker: Broker) -> None:
        self._validation = next(iter(broker.logs.logs)).validation
        self._recheck = self._validation.recheck
        self._validation.recheck = self._note  # type: ignore[method-assign]
        self.waits = 0

    def _note(self) -> None:
        self.waits += 1

    def goes_on(self) -> None:
        self._validation.recheck = self._recheck  # type: ignore[method-assign]
        self._recheck()


async def test_a_sync_under_way_is_waited_for_before_a_log_is_frozen(
    several: Several, monkeypatch: pytest.MonkeyPatch
) -> None:
    await several.start(1)
    await several.start(2)
    await several.spread("t", 1, by=1)
    leader = several.leader("t", 0, seen_by=1)
    old = several.nodes[leader].broker
    log = old.logs.find["t", 0]
    froze = []
    freeze = old.moves._freeze
    monkeypatch.setattr(old.moves, "_freeze", lambda batch: froze.append(log.hw) or freeze(batch))  # type: ignore[func-returns-value]
    monkeypatch.setattr(broker.moves, "FREEZE_S", 30.0)
    old.moves._freeze_s = 30.0
    disk = SlowDisk(old)
    async with several.nodes[leader].client() as client:
        producing = asyncio.ensure_future(client.produce("t", batch_of(b"a")))  # noqa: TID251
        await until(lambda: disk.waits)
        await ask_moves(several, "t", 3 - leader, 0)
        await asyncio.sleep(0.05)
        assert log.status is LogStatus.OPEN and not froze and not producing.done()
        disk.goes_on()
        assert (await producing).base_offset == 0
    await until(lambda: serves(several, 3 - leader, "t", 0))
    assert froze == [1] and old.moves.put_off == 0


async def test_a_log_takes_records_again_while_the_disk_or_the_bucket_is_too_slow_for_its_move(
    several: Several, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It freezes again and again, each time for twice as long, until what is in flight comes back in time."""
    await several.start(1)
    await several.start(2)
    await several.spread("t", 1, by=1)
    leader = several.leader("t", 0, seen_by=1)
    old = several.nodes[leader].broker
    log = old.logs.find["t", 0]
    await several.produce("t", 0, b"a")
    old.moves._freeze_s = 0.01
    freeze, disks = old.moves._freeze, []

    def freeze_in_the_middle_of_a_sync(batch):  # type: ignore[no-untyped-def]
        if not disks:
            disks.append(SlowDisk(old))
            log.append_own(bytearray(batch_of(b"b")))
        return freeze(batch)

    monkeypatch.setattr(old.moves, "_freeze", freeze_in_the_middle_of_a_sync)
    await ask_moves(several, "t", 3 - leader, 0)
    await until(lambda: old.moves.put_off == 3)
    await until(lambda: log.status is LogStatus.OPEN)
    assert old.moves._freeze_s >= 0.04 and old.moves.refused == 0
    disks[0].goes_on()
    await until(lambda: serves(several, 3 - leader, "t", 0))
    await everybody_knows(several)
    assert await several.produce("t", 0, b"c") == [2]
    assert old.moves._freeze_s == broker.moves.FREEZE_S


async def test_a_log_takes_records_again_while_its_last_seal_cannot_be_uploaded(several: Several) -> None:
    await several.start(1)
    await several.start(2)
    await several.spread("t", 1, by=1)
    leader = several.leader("t", 0, seen_by=1)
    old = several.nodes[leader].broker
    log = old.logs.find["t", 0]
    old.moves._freeze_s = 0.01
    submit, upload, away = old.uploader.submit, old.uploader._upload, asyncio.Event()

    def held(logs, through=(), recovery=None, moves=()):  # type: ignore[no-untyped-def]
        if moves and not away.is_set():
            old.uploader._upload = hold  # type: ignore[method-assign]
        return submit(logs, through, recovery, moves)

    async def hold(writer, logs):  # type: ignore[no-untyped-def]
        await away.wait()
        return await upload(writer, logs)

    freeze = old.moves._freeze

    def freeze_with_something_left(batch):  # type: ignore[no-untyped-def]
        log.append_own(bytearray(batch_of(b"b")))
        return freeze(batch)

    old.uploader.submit = held  # type: ignore[method-assign]
    old.moves._freeze = freeze_with_something_left  # type: ignore[method-assign]
    await ask_moves(several, "t", 3 - leader, 0)
    await until(lambda: old.moves.put_off)
    await until(lambda: log.status is LogStatus.OPEN)
    waiting = asyncio.ensure_future(several.produce("t", 0, b"c"))  # noqa: TID251
    assert await waiting == [1], "it takes records"
    away.set()
    await until(lambda: serves(several, 3 - leader, "t", 0))
    await everybody_knows(several)
    assert old.moves.refused == 0
    end = several.nodes[3 - leader].broker.logs.find["t", 0].end
    assert await several.produce("t", 0, b"d") == [end] and end >= 2


async def test_many_logs_move_in_batches(several: Several, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker.moves, "LOGS_PER_BATCH", 4)
    await several.start(1, tidelog_move_bytes_max=0)
    await several.start(2, tidelog_move_bytes_max=0)
    await several.spread("t", 20, by=1)
    for index in range(20):
        await several.produce("t", index, b"a")
    drained = await several.nodes[2].broker.controller.ask(c.DrainBroker(bytes(16), 1))
    assert drained == c.DrainAnswer(10, 0)
    await until(lambda: len(several.nodes[1].broker.logs) == 0)
    await until(lambda: serves(several, 2, "t", *range(20)))
    await several.spread("u", 4, by=2)
    assert {several.leader("u", index, seen_by=2) for index in range(4)} == {2}
    for index in range(20):
        assert await several.produce("t", index, b"b") == [1]


async def test_a_broker_that_stops_hands_over_first(several: Several) -> None:
    await several.start(1)
    await several.start(2)
    await several.spread("t", 6, by=1)
    for index in range(6):
        await several.produce("t", index, b"a")
    stopped = several.nodes[1].broker
    assert await several.nodes[1].stop() == 0
    assert stopped.moves.moved == 3
    state = several.nodes[2].broker.controller.state
    assert state.move_table.leaving == set() and not state.brokers[1].alive
    for index in range(6):
        assert await several.produce("t", index, b"b") == [1]


async def test_all_brokers_stop_at_once(several: Several) -> None:
    await several.start(1)
    await several.start(2, 3)
    await several.spread("t", 6, by=1)
    for index in range(6):
        await several.produce("t", index, b"a")
    codes = await asyncio.gather(*[node.stop() for node in several.nodes.values()])
    assert codes == [0, 0, 0]
    assert all(node.instances() == [] for node in several.nodes.values())
    await several.start(1)
    for index in range(6):
        assert await several.produce("t", index, b"b") == [1]
