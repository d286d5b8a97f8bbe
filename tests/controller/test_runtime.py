"""The controller as a process part, in virtual time over a memory store."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from controller import collector
from controller import commands as c
from controller import facts as f
from controller.decide import Context, Decision, decide
from controller.entries import NewerFormat
from controller.features import NEW_CLUSTER
from controller.object_log import ENTRIES, ObjectLog, entry_key
from controller.runtime import ControllerSettings
from controller.state import ClusterState
from protocol.errors import ErrorCode, KafkaError
from storage.memory import MemoryStore
from storage.object_store import ObjectStore, OutcomeUnknown, Unavailable
from storage.retrying import RetryingStore
from tests.controller.builders import LISTENERS, next_range, seal_command, tokens, wal_id
from tests.controller.processes import SETTINGS, Process, facts_of
from tests.controller.virtual import run


def virtual(work: Callable[[asyncio.TaskGroup, MemoryStore], Awaitable[None]]) -> Callable[[], None]:
    """A test in virtual time; what still runs at its end is killed."""

    def test() -> None:
        async def main() -> None:
            class Done(Exception):
                pass

            try:
                async with asyncio.TaskGroup() as group:
                    await work(group, MemoryStore())
                    raise Done
            except* Done:
                pass

        run(main)

    test.__name__, test.__doc__ = work.__name__, work.__doc__
    return test


def now() -> float:
    return asyncio.get_running_loop().time()


@virtual
async def test_an_empty_bucket_has_a_controller_at_once(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    process = Process(group, store, 1, 100)
    seen = facts_of(process)
    started = now()
    await process.client.wait_ready()
    assert now() == started
    assert seen == [
        f.StateReloaded(),
        f.ControllerElected(1, 1, 100, (wal_id(100),)),
        f.FormatLevel(f.FORMAT_LEVEL),
        NEW_CLUSTER,
    ]
    assert process.client.leads and process.client.reachable and process.client.position == 1


@virtual
async def test_answers_come_after_the_facts_are_durable_and_applied(
    group: asyncio.TaskGroup, store: MemoryStore
) -> None:
    process = Process(group, store, 1, 100)
    await process.client.wait_ready()
    await process.register()
    gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    process.store.before = lambda method, key: gate if method == "put_if_absent" else None
    asking = group.create_task(process.create("t"))
    await asyncio.sleep(0.5)
    assert not asking.done() and "t" not in process.state.topics
    process.store.before = lambda method, key: None
    gate.set_result(None)
    assert (await asking).error_code == 0
    assert "t" in process.state.topics


@virtual
async def test_commands_of_one_moment_share_an_entry(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    process = Process(group, store, 1, 100)
    await process.client.wait_ready()
    await process.register()
    before = process.client.position
    results = await asyncio.gather(*[process.create(f"t{i}") for i in range(20)])
    assert [result.error_code for result in results] == [0] * 20
    assert process.client.position <= before + 2
    assert sorted(process.state.logs) == list(range(20))


@virtual
async def test_a_refusal_writes_nothing(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    process = Process(group, store, 1, 100)
    await process.client.wait_ready()
    before = process.client.position
    with pytest.raises(KafkaError, match="BROKER_ID_NOT_REGISTERED"):
        await process.client.ask(c.AllocateProducerIds(process.token(16), 100))
    assert process.client.position == before


def test_a_command_that_trips_the_controller_is_refused_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Were the controller to end, whoever asked would ask the next one, and end that too."""

    def tripped(state: ClusterState, command: object, context: Context) -> Decision:
        assert not isinstance(command, c.AllocateProducerIds), "planted"
        return decide(state, command, context)

    monkeypatch.setattr("controller.runtime.decide", tripped)

    @virtual
    async def test(group: asyncio.TaskGroup, store: MemoryStore) -> None:
        process = Process(group, store, 1, 100)
        await process.client.wait_ready()
        await process.register()
        beside = group.create_task(process.create("t"))
        with pytest.raises(KafkaError, match="UNKNOWN_SERVER_ERROR"):
            await process.client.ask(c.AllocateProducerIds(process.token(16), 100))
        assert (await beside).error_code == 0 and process.client.leads

    test()
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.getMessage() == "cannot decide AllocateProducerIds"


@virtual
async def test_asking_twice_with_one_id_is_asking_once(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    process = Process(group, store, 1, 100)
    await process.client.wait_ready()
    await process.register()
    command = c.AllocateProducerIds(process.token(16), 100)
    first, second = await asyncio.gather(process.client.ask(command), process.client.ask(command))
    third = await process.client.ask(command)
    assert first == second == third == c.ProducerIdBlock(0, 1000)
    assert process.state.next_producer_id == 1000


@virtual
async def test_an_idle_controller_extends_its_lease_and_repeats_group_numbers(
    group: asyncio.TaskGroup, store: MemoryStore
) -> None:
    process = Process(group, store, 1, 100)
    await process.client.wait_ready()
    await process.register()
    seen = facts_of(process)
    await process.client.heartbeat(100, process.client.position, {wal_id(100): 7, b"unknown": 5})
    await asyncio.sleep(3.05)
    leases = [fact for fact in seen if isinstance(fact, f.LeaseExtended)]
    assert leases == [f.LeaseExtended((f.WalGroup(wal_id(100), 7),)), f.LeaseExtended(), f.LeaseExtended()]
    assert process.state.wals[wal_id(100)].validated_group == 7


@virtual
async def test_its_own_broker_never_outlives_the_lease(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    process = Process(group, store, 1, 100)
    await process.client.wait_ready()
    await process.register()
    await asyncio.sleep(0.4)
    grant = await process.client.heartbeat(100, 0, {})
    assert 2000 < grant.valid_ms <= 2600 and grant.next_ms == 1000


@virtual
async def test_heartbeats_are_refused_when_they_must_be(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    first, second = Process(group, store, 1, 100), Process(group, store, 2, 200)
    await asyncio.gather(first.client.wait_ready(), second.client.wait_ready())
    leader, other = (first, second) if first.client.leads else (second, first)
    with pytest.raises(KafkaError, match="BROKER_ID_NOT_REGISTERED"):
        await leader.client.heartbeat(5, 0, {})
    with pytest.raises(KafkaError, match="NOT_CONTROLLER"):
        await other.client.heartbeat(leader.incarnation, 0, {})
    await leader.register()
    leader.store.before = lambda method, key: Unavailable("away")
    await asyncio.sleep(4)
    with pytest.raises(KafkaError, match="no session may be granted"):
        await leader.client.heartbeat(leader.incarnation, 0, {})
    assert not leader.client.reachable


@virtual
async def test_a_silent_broker_loses_its_session_a_talking_one_does_not(
    group: asyncio.TaskGroup, store: MemoryStore
) -> None:
    process = Process(group, store, 1, 100)
    await process.client.wait_ready()
    await process.register()
    keep = group.create_task(beat(process))
    for node, incarnation in ((2, 200), (3, 300)):
        wals = (c.NewWal(wal_id(incarnation), "volume"),)
        await process.client.ask(c.RegisterBroker(process.token(16), node, incarnation, "boot", None, LISTENERS, wals))
    for _ in range(15):  # longer than a new controller waits for what an older one may have granted
        await process.client.heartbeat(200, 0, {})
        await process.client.heartbeat(300, 0, {})
        await asyncio.sleep(1)
    silent_since = now() - 1
    ended: list[float] = []

    def listen(facts: object) -> None:
        ended.extend(now() for fact in facts if isinstance(fact, f.SessionEnded))  # type: ignore[attr-defined]

    process.client.subscribe(listen)
    while not ended:
        await asyncio.sleep(1)
        await process.client.heartbeat(300, 0, {})
    assert 6.85 <= ended[0] - silent_since < 8.5, "session + 10 % + 250 ms, seen at the next step"
    assert process.state.brokers[3].alive and not process.state.brokers[2].alive
    with pytest.raises(KafkaError, match="STALE_BROKER_EPOCH"):
        await process.client.heartbeat(200, 0, {})
    await asyncio.sleep(20)
    assert not process.state.brokers[3].alive
    keep.cancel()


@virtual
async def test_nobody_is_silent_before_the_controller_can_be_found(
    group: asyncio.TaskGroup, store: MemoryStore
) -> None:
    """A restarted broker takes control while its registration waits for the session of its former run."""
    first = Process(group, store, 1, 100)
    await first.client.wait_ready()
    await first.register()
    wals = (c.NewWal(wal_id(200), "volume"),)
    await first.client.ask(c.RegisterBroker(first.token(16), 2, 200, "boot", None, LISTENERS, wals))
    await first.kill()
    second = Process(group, store, 1, 101)
    await asyncio.sleep(60)
    assert second.client.leads
    assert not second.state.broker_table.is_alive(100), "it stands in the way of our own"
    assert second.state.brokers[2].alive, "it does not know whom to tell that it lives"
    await second.register()
    registered = now()
    keep = group.create_task(beat(second))
    while second.state.brokers[2].alive:
        await asyncio.sleep(0.1)
    assert 3.85 <= now() - registered < 5.5, "half a session from when it could be heard, and the margin of a whole one"
    keep.cancel()


@virtual
async def test_a_lost_reply_is_looked_up_not_repeated(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    process = Process(group, store, 1, 100)
    await process.client.wait_ready()
    await process.register()
    errors = iter([OutcomeUnknown("lost"), None, OutcomeUnknown("lost")])
    process.store.after = lambda method, key: next(errors, None) if method == "put_if_absent" else None
    blocks = [await process.client.ask(c.AllocateProducerIds(process.token(16), 100)) for _ in range(3)]
    assert [block.first for block in blocks] == [0, 1000, 2000]
    assert process.state.next_producer_id == 3000


@virtual
async def test_with_the_store_away_commands_wait_up_to_their_deadline(
    group: asyncio.TaskGroup, store: MemoryStore
) -> None:
    process = Process(group, store, 1, 100)
    await process.client.wait_ready()
    await process.register()
    process.store.before = lambda method, key: Unavailable("away")
    with pytest.raises(KafkaError, match="REQUEST_TIMED_OUT") as caught:
        await process.create("t", 5_000)
    assert caught.value.retriable
    patient = group.create_task(process.create("u", 60_000))
    await asyncio.sleep(10)
    assert not process.client.reachable and not process.task.done()
    process.store.before = lambda method, key: None
    assert (await patient).error_code == 0
    assert process.client.reachable
    assert process.client.leads, "nobody else took over"


@virtual
async def test_a_store_that_hangs_is_away_after_a_lease(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    process = Process(group, store, 1, 100)
    await process.client.wait_ready()
    await process.register()
    await asyncio.sleep(10)
    assert process.client.reachable
    process.store.before = lambda method, key: 60.0
    await asyncio.sleep((SETTINGS.lease_ms + SETTINGS.lease_ms // 3) / 1000)
    assert not process.client.reachable, "no call has failed yet, but none has come back either"
    process.store.before = lambda method, key: None
    await asyncio.sleep(130)
    assert process.client.reachable
    process.store.before = lambda method, key: SETTINGS.lease_ms * 0.6 / 1000
    await asyncio.sleep(2 * SETTINGS.lease_ms / 1000)
    for _ in range(60):
        await asyncio.sleep(0.5)
        assert not process.client.reachable, "what is answered is older than a lease: look and append take longer"


@virtual
async def test_one_request_that_hangs_costs_nobody_the_lease(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    """Neither the controller's append, nor its look, nor what a follower reads."""

    def hurried(under: ObjectStore, cluster_id: str) -> ObjectLog:
        retried = RetryingStore(under, token=lambda n: bytes(n))
        return ObjectLog(retried, cluster_id, attempt_ms=SETTINGS.lease_ms // 3)

    first = Process(group, store, 1, 100, log=hurried)
    await first.client.wait_ready()
    await first.register()
    second = Process(group, store, 2, 200, log=hurried)
    await second.client.wait_ready()
    await first.client.ask(
        c.RegisterBroker(b"r" * 16, 2, 200, "boot", None, LISTENERS, (c.NewWal(wal_id(200), "volume"),))
    )
    lapses = 0
    for hung, method in [(first, "put_if_absent"), (first, "get"), (second, "get")] * 4:
        once = [60.0]

        def before(called: str, key: str, method: str = method, once: list[float] = once) -> float | None:
            return once.pop() if once and called == method else None

        hung.store.before = before
        for _ in range(6):
            await heartbeats(first, second)
            lapses += not first.runtime.may_grant
            assert first.client.leads and first.state.controller_epoch == 1
        assert not once, "it was met"
    assert not lapses
    assert [broker.alive for broker in first.state.brokers.values()] == [True, True]


@virtual
async def test_an_outage_of_the_store_ends_no_session(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    """Nobody could be granted anything meanwhile: silence counts from when it was possible again."""
    first = Process(group, store, 1, 100)
    await first.client.wait_ready()
    await first.register()
    second = Process(group, store, 2, 200)
    await second.client.wait_ready()
    await first.client.ask(
        c.RegisterBroker(b"r" * 16, 2, 200, "boot", None, LISTENERS, (c.NewWal(wal_id(200), "volume"),))
    )
    for _ in range(12):
        await heartbeats(first, second)
    for process in (first, second):
        process.store.before = lambda method, key: Unavailable("away")
    for _ in range(60):
        await heartbeats(first, second)
    for process in (first, second):
        process.store.before = lambda method, key: None
    for _ in range(30):
        await heartbeats(first, second)
    assert [broker.alive for broker in first.state.brokers.values()] == [True, True]
    assert first.client.leads and first.state.controller_epoch == 1, "the same controller went on"


async def heartbeats(controller: Process, *others: Process) -> None:
    for process in (controller, *others):
        try:
            await controller.client.heartbeat(process.incarnation, 0, {})
        except KafkaError as error:
            assert error.code is ErrorCode.NOT_CONTROLLER
    await asyncio.sleep(1)


@virtual
async def test_the_queue_is_bounded(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    process = Process(group, store, 1, 100, settings=SETTINGS._replace(commands_max=2))
    await process.client.wait_ready()
    await process.register()
    process.store.before = lambda method, key: Unavailable("away")
    waiting = [asyncio.ensure_future(process.create(f"t{i}", 4_000)) for i in range(2)]  # noqa: TID251
    await asyncio.sleep(0.1)
    with pytest.raises(KafkaError, match="THROTTLING_QUOTA_EXCEEDED"):
        await process.create("t3")
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, KafkaError) and outcome.code is ErrorCode.REQUEST_TIMED_OUT
    process.store.before = lambda method, key: None
    assert (await process.create("t4")).error_code == 0


@virtual
async def test_another_takes_over_when_the_lease_is_silent(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    first = Process(group, store, 1, 100)
    await first.client.wait_ready()
    await first.register()
    second = Process(group, store, 2, 200)
    await second.client.wait_ready()
    wals = (c.NewWal(wal_id(200), "volume"),)
    await first.client.ask(c.RegisterBroker(first.token(16), 2, 200, "boot", None, LISTENERS, wals))
    for _ in range(10):
        await asyncio.sleep(1)
        await first.client.heartbeat(100, 0, {})
        await first.client.heartbeat(200, 0, {})
    assert first.client.leads and not second.client.leads
    assert second.client.position == first.client.position or second.client.position >= first.client.position - 1
    await first.kill()
    died = now()
    while not second.client.leads:
        await asyncio.sleep(0.05)
    assert 2.0 <= now() - died <= 3.6
    assert second.state.controller_epoch == 2
    while second.state.brokers[1].alive:
        await asyncio.sleep(0.05)
    assert now() - died <= 2 * 3.6 + 1, "the controller's own broker is bound to the lease, not to the session"


@virtual
async def test_a_restart_on_the_same_machine_takes_over_at_once(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    first = Process(group, store, 1, 100)
    await first.client.wait_ready()
    await first.register()
    await first.create("t")
    await first.kill()
    started = now()
    second = Process(group, store, 1, 101, locked=(wal_id(100),))
    await second.client.wait_ready()
    assert second.client.leads
    assert await second.register() == c.Registered((c.Recovery(wal_id(100), 1),))
    assert now() - started < 0.01
    assert second.state.logs[0].status == "recovering"


@virtual
async def test_even_if_the_old_one_died_before_it_registered(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    first = Process(group, store, 1, 100)
    await first.client.wait_ready()
    await first.kill()
    started = now()
    second = Process(group, store, 1, 101, locked=(wal_id(100),))
    await second.client.wait_ready()
    assert second.client.leads and now() - started < 0.01


@virtual
async def test_a_clean_stop_resigns(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    first = Process(group, store, 1, 100)
    await first.client.wait_ready()
    await first.register()
    await first.client.ask(c.CleanStop(first.token(16), 100))
    assert not first.client.leads
    await first.client.stop()
    await first.task
    started = now()
    second = Process(group, store, 2, 200)
    await second.client.wait_ready()
    assert second.client.leads and now() - started < 0.01
    with pytest.raises(KafkaError, match="NOT_CONTROLLER"):
        await first.create("t")


@virtual
async def test_a_controller_without_broker_resigns_when_stopped(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    first = Process(group, store, 1, 100)
    await first.client.wait_ready()
    seen = facts_of(first)
    await first.client.stop()
    await first.task
    assert seen == [f.ControllerResigned(1)]


@virtual
async def test_stopping_does_not_wait_for_a_store_that_is_away(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    first = Process(group, store, 1, 100)
    await first.client.wait_ready()
    first.store.before = lambda method, key: Unavailable("away")
    await asyncio.sleep(5)
    await first.client.stop()
    async with asyncio.timeout(5):
        await first.task


@virtual
async def test_a_controller_whose_session_was_ended_never_leads_again(
    group: asyncio.TaskGroup, store: MemoryStore
) -> None:
    process = Process(group, store, 1, 100)
    await process.client.wait_ready()
    await process.register()
    await process.client.ask(c.EndSession(process.token(16), 100, 100))
    await asyncio.sleep(30)
    assert not process.client.leads and process.state.controller_epoch == 1
    calls = len(process.store.calls)
    await asyncio.sleep(1)
    assert len(process.store.calls) - calls < 20, "it follows calmly"


@virtual
async def test_the_loser_of_a_race_applies_the_winner_and_decides_again(
    group: asyncio.TaskGroup, store: MemoryStore
) -> None:
    first = Process(group, store, 1, 100)
    await first.client.wait_ready()
    await first.register()
    gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    first.store.before = lambda method, key: gate if key.startswith(ENTRIES) and method == "put_if_absent" else None
    asking = group.create_task(first.create("t"))
    await asyncio.sleep(0.01)
    second = Process(group, store, 2, 200)
    while not second.client.leads:
        await asyncio.sleep(0.1)
    await second.register()
    assert (await second.create("t")).error_code == 0
    await second.client.heartbeat(100, 0, {})
    gate.set_result(None)
    first.store.before = lambda method, key: None
    await asyncio.sleep(1)
    assert not first.client.leads and not asking.done(), "deposed: its command waits for a controller"
    await second.kill()
    assert (await asking).error_code == ErrorCode.TOPIC_ALREADY_EXISTS, "decided again on the newest facts"


@virtual
async def test_snapshots_boundary_and_trimming(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    small = ControllerSettings(snapshot_entries=10, keep_entries=5)
    first = Process(group, store, 1, 100, settings=small)
    await first.client.wait_ready()
    await first.register()
    for i in range(25):
        await first.create(f"t{i}")
    await asyncio.sleep(1)
    log = first.runtime.replica.log
    newest = await log.newest_snapshot()
    assert newest is not None and newest.position >= 20
    keys = [info.key async for info in store.list("meta/")]
    boundary = newest.position - 5
    assert keys[0] == "meta/boundary" and keys[1] == entry_key(boundary + 1)
    assert len([key for key in keys if "snapshots" in key]) == 2
    second = Process(group, store, 2, 200)
    await second.client.wait_ready()
    assert second.state == first.state


@virtual
async def test_a_follower_below_the_boundary_loads_the_snapshot(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    small = ControllerSettings(snapshot_entries=10, keep_entries=2)
    first = Process(group, store, 1, 100, settings=small)
    await first.client.wait_ready()
    await first.register()
    second = Process(group, store, 2, 200)
    await second.client.wait_ready()
    seen = facts_of(second)
    second.store.before = lambda method, key: Unavailable("away")
    for i in range(30):
        await first.create(f"t{i}")
    await asyncio.sleep(2)
    second.store.before = lambda method, key: None
    await asyncio.sleep(3)
    assert seen[0] == f.StateReloaded()
    assert set(second.state.topics) == set(first.state.topics)
    await second.client.wait_applied(first.client.position)


@virtual
async def test_retention_collector_and_names(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    settings = SETTINGS._replace(retention_check_ms=5_000, delete_grace_ms=20_000, orphan_check_ms=30_000)
    process = Process(group, store, 1, 100, settings=settings)
    await process.client.wait_ready()
    await process.register()
    await process.client.ask(
        c.CreateTopics(tokens("t")(16), (c.NewTopic("short", 1, 1, (("retention.ms", "1000"),)), c.NewTopic("gone")))
    )
    for seal, log_id in ((1, 0), (2, 1)):
        command = seal_command(100, seal, [next_range(process.state.logs[log_id])])
        await store.put(command.objects[0].key, b"bytes")
        await process.client.ask(command)
    orphan, future = "segments/1/0000000000000064/2-7", "segments/1/0000000000000064/3-0"
    await store.put(orphan, b"never named")
    await store.put(future, b"may be named yet")
    await process.client.ask(c.DeleteTopics(tokens("d")(16), (c.TopicRef("gone"),)))
    keep = group.create_task(beat(process))
    await asyncio.sleep(10)
    assert process.state.logs[0].start == 10
    assert len(process.state.objects.doomed) == 1, "the grace is not over; the other one holds a producer state"
    await asyncio.sleep(60)
    keep.cancel()
    assert not process.state.objects.doomed and not process.state.topic_table.deleted
    kept = "segments/1/0000000000000064/1-0"
    assert [info.key async for info in store.list("segments/")] == [kept, future]


async def beat(process: Process) -> None:
    while True:
        await process.client.heartbeat(process.incarnation, process.client.position, {})
        await asyncio.sleep(1)


@virtual
async def test_a_declared_loss_is_reported_in_the_bucket(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    process = Process(group, store, 1, 100, settings=SETTINGS._replace(delete_grace_ms=4_000))
    await process.client.wait_ready()
    await process.register()
    await process.create("t")
    await process.client.ask(c.DeclareLost(process.token(16), wal_id(100), host_is_destroyed=True))
    await process.kill()
    second = Process(group, store, 2, 200, settings=SETTINGS._replace(delete_grace_ms=4_000))
    await asyncio.sleep(10)
    assert second.client.leads
    reports = [info.key async for info in store.list("reports/losses/")]
    assert reports == [f"reports/losses/{wal_id(100).hex()}.json"]
    assert b'"continues_at_offset": 4294967296' in (await store.get(reports[0])).data


@virtual
async def test_a_loss_is_forgotten_when_its_report_is_stored(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    settings = SETTINGS._replace(delete_grace_ms=4_000)
    first = Process(group, store, 1, 100, settings=settings)
    await first.client.wait_ready()
    await first.register()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collector, "LOSSES_KEPT", 0)
        first.store.before = lambda method, key: Unavailable("away") if key.startswith("reports/") else None
        await first.client.ask(c.DeclareLost(first.token(16), wal_id(100), host_is_destroyed=True))
        await first.kill()
        second = Process(group, store, 2, 200, settings=settings)
        second.store.before = first.store.before
        await asyncio.sleep(20)
        assert second.client.leads and list(second.state.wal_table.losses) == [wal_id(100)]
        second.store.before = lambda method, key: None
        await asyncio.sleep(10)
        assert not second.state.wal_table.losses
    assert [info.key async for info in store.list("reports/losses/")] == [f"reports/losses/{wal_id(100).hex()}.json"]


def test_a_fact_of_a_newer_version_stops_the_follower() -> None:
    async def main() -> None:
        store = MemoryStore()
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                process = Process(group, store, 1, 100)
                await process.client.wait_ready()
                data = (await store.get(entry_key(1))).data
                await store.put(entry_key(process.client.position + 1), data[:4] + b"\x02" + data[5:])
        assert caught.group_contains(NewerFormat) if hasattr(caught, "group_contains") else True

    run(main)
