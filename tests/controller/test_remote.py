"""Processes that reach their controller by calls, in virtual time: commands, sessions and facts across controllers."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from controller import commands as c
from controller import wire as w
from controller.client import Grant
from protocol.errors import ErrorCode, KafkaError
from storage.memory import MemoryStore
from storage.object_store import Unavailable
from tests.controller.builders import next_range, seal_command, wal_id
from tests.controller.processes import SETTINGS, Network, Process
from tests.controller.virtual import run


def several(work: Callable[["World"], Awaitable[None]]) -> Callable[[], None]:
    """A test in virtual time; what still runs at its end is killed."""

    def test() -> None:
        async def main() -> None:
            class Done(Exception):
                pass

            try:
                async with asyncio.TaskGroup() as group:
                    await work(World(group))
                    raise Done
            except* Done:
                pass

        run(main)

    test.__name__, test.__doc__ = work.__name__, work.__doc__
    return test


class World:
    """Processes over one store and one network."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self.group = group
        self.store = MemoryStore()
        self.network = Network()

    async def start(self, node_id: int, incarnation: int | None = None, *, eligible: bool = True) -> Process:
        """A registered process that keeps its session alive."""
        incarnation = incarnation or 100 * node_id
        process = Process(self.group, self.store, node_id, incarnation, network=self.network, eligible=eligible)
        await process.client.wait_ready()
        await process.register()
        self.group.create_task(beat(process))
        return process


async def beat(process: Process) -> None:
    while not process.task.done():
        try:
            await process.client.heartbeat(process.incarnation, process.client.position, {})
        except KafkaError as error:
            if error.code is ErrorCode.STALE_BROKER_EPOCH:
                return
        await asyncio.sleep(0.5)


def now() -> float:
    return asyncio.get_running_loop().time()


@several
async def test_facts_arrive_at_once_and_without_the_bucket(world: World) -> None:
    first, second = await world.start(1), await world.start(2)
    await asyncio.sleep(5)
    second.store.calls.clear()
    for i in range(10):
        began = now()
        await first.create(f"t{i}")
        await second.client.wait_applied(first.client.position)
        assert now() == began
        await asyncio.sleep(1)
    assert second.store.calls == [] and second.client.reachable
    assert second.state == first.state


@several
async def test_answers_are_applied_where_they_were_asked_for(world: World) -> None:
    first, second = await world.start(1), await world.start(2)
    assert first.client.leads and not second.client.leads
    assert (await second.create("t")).error_code == 0
    assert "t" in second.state.topics
    with pytest.raises(KafkaError, match="RESOURCE_NOT_FOUND"):
        await second.client.ask(c.NameRecoverer(second.token(16), bytes(16), 200))


@several
async def test_a_command_whose_answer_is_lost_happens_once(world: World) -> None:
    first, second = await world.start(1), await world.start(2)
    world.network.lose_answers = 3
    block = await second.client.ask(c.AllocateProducerIds(second.token(16), 200))
    assert block == c.ProducerIdBlock(0, 1000) and first.state.next_producer_id == 1000
    await second.create("t")
    log = next(log for log in second.state.logs.values())
    seal = seal_command(log.leader_incarnation, 1, [next_range(log)])
    leader = first if log.leader_incarnation == 100 else second
    world.network.lose_answers = 2
    answer = await leader.client.ask(seal)
    assert answer.refused == () and second.state.logs[log.log_id].end > 0


@several
async def test_a_command_goes_on_to_the_next_controller(world: World) -> None:
    first, second, third = await world.start(1), await world.start(2), await world.start(3)
    first.store.before = lambda method, key: Unavailable("cut off from the store")
    asking = world.group.create_task(third.create("t"))
    await asyncio.sleep(0.5)
    await first.kill()
    died = now()
    assert (await asking).error_code == 0
    assert now() - died < 4.5, "the lease, and no more than a moment"
    assert second.client.leads != third.client.leads
    assert list(third.state.topics) == ["t"]


@several
async def test_a_controller_that_hangs_with_a_command_is_left_when_there_is_another(world: World) -> None:
    """Long before the attempt is over: a controller that registers again by asking could be reached by nobody."""
    first, second, third = await world.start(1), await world.start(2), await world.start(3)
    first.store.before = lambda method, key: 3600.0
    world.network.cut.add(1)
    await asyncio.sleep(2)
    asking = world.group.create_task(third.create("t"))
    while not (second.client.leads or third.client.leads):
        await asyncio.sleep(0.05)
    elected = now()
    assert (await asking).error_code == 0
    assert now() - elected < 1.2, "third sees in the log who controls, and asks"


@several
async def test_sessions_stand_across_controllers(world: World) -> None:
    first, second, third = await world.start(1), await world.start(2), await world.start(3)
    await first.kill()
    await asyncio.sleep(30)
    state = (second if second.client.leads else third).state
    assert {node: broker.alive for node, broker in state.brokers.items()} == {1: False, 2: True, 3: True}


@several
async def test_a_controller_that_hangs_is_replaced_within_its_lease(world: World) -> None:
    first, second, third = await world.start(1), await world.start(2), await world.start(3)
    await asyncio.sleep(2.8)
    world.network.cut.add(1)
    first.store.before = lambda method, key: 3600.0
    hung = now()
    await third.create("t")
    assert now() - hung < 5.5
    assert second.client.leads != third.client.leads
    world.network.cut.clear()
    with pytest.raises(KafkaError, match="NOT_CONTROLLER"):
        await first.client.heartbeat(100, 0, {})


@several
async def test_a_controller_that_is_back_within_its_lease_is_followed_again_at_once(world: World) -> None:
    """Not only a lease later: till then each answer would wait for the next look into the bucket."""
    first, second = await world.start(1), await world.start(2)
    world.network.cut.add(1)
    await asyncio.sleep(2)
    world.network.cut.clear()
    await asyncio.sleep(0.6)
    assert first.client.leads and "follow" in {lane for _, _, lane in world.network.calls[-2:]}
    for name in "tuv":
        began = now()
        assert (await second.create(name)).error_code == 0
        assert now() == began


@several
async def test_new_logs_go_to_brokers_that_were_heard_from(world: World) -> None:
    """Whose heartbeat is overdue may be dead, long before its session ends."""
    first, _, third = await world.start(1), await world.start(2), await world.start(3)

    async def leaders(name: str) -> set[int]:
        await first.client.ask(c.CreateTopics(first.token(16), (c.NewTopic(name, 6),)))
        return {first.state.logs[log_id].leader_node for log_id in first.state.topics[name].log_ids}

    assert await leaders("before") == {1, 2, 3}
    world.network.cut.add(3)
    await asyncio.sleep(SETTINGS.session_ms * 0.6 / 1000)
    assert first.state.brokers[3].alive
    assert await leaders("meanwhile") == {1, 2}
    world.network.cut.clear()
    await asyncio.sleep(2)
    assert third.state.brokers[3].alive
    assert await leaders("afterwards") == {1, 2, 3}


@several
async def test_a_controller_without_the_store_answers_nobody(world: World) -> None:
    """Its followers must not take the end of its memory for the end of the log."""
    first, second = await world.start(1), await world.start(2)
    first.store.before = lambda method, key: Unavailable("away")
    await asyncio.sleep(4)
    assert second.client.leads, "it read the log itself and took over"
    first.store.before = lambda method, key: None
    await asyncio.sleep(3)
    assert not first.client.leads and first.state.controller_node == 2
    assert not first.state.brokers[1].alive, "its own broker's session is bound to the lease that it lost"
    with pytest.raises(KafkaError, match="NOT_CONTROLLER"):
        await first.create("t")


@several
async def test_a_command_that_waits_at_a_deposed_controller_is_asked_elsewhere(world: World) -> None:
    first, second = await world.start(1), await world.start(2)
    gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    first.store.before = lambda method, key: gate if method == "put_if_absent" else None
    asking = world.group.create_task(first.create("t"))
    while not second.client.leads:
        await asyncio.sleep(0.1)
    gate.set_result(None)
    first.store.before = lambda method, key: None
    assert (await asking).error_code == 0
    assert second.client.leads and "t" in second.state.topics


@several
async def test_a_cluster_that_restarts_as_a_whole_waits_once_for_the_sessions_of_before(world: World) -> None:
    """Its controller waits for that of its own node too, and is found where the process before was: so the silence of
    all counts meanwhile."""
    before = [await world.start(node_id) for node_id in (1, 2, 3)]
    await asyncio.sleep(2)
    for process in before:
        await process.kill()
    died = now()
    after = [Process(world.group, world.store, n, 100 * n + 1, network=world.network) for n in (1, 2, 3)]

    async def register(process: Process) -> None:
        while True:
            try:
                await process.register()
                return
            except KafkaError as error:
                assert error.code is ErrorCode.DUPLICATE_BROKER_REGISTRATION
                await asyncio.sleep(0.5)

    await asyncio.gather(*map(register, after))
    assert now() - died < 10.15 + 1, "a lease and a session, with their margins"


@several
async def test_a_controller_that_is_not_registered_is_found_where_its_node_was(world: World) -> None:
    first, second = await world.start(1), await world.start(2)
    await first.kill()
    again = Process(world.group, world.store, 1, 101, network=world.network, locked=(wal_id(100),))
    await again.client.wait_ready()
    assert again.client.leads and 101 not in again.state.broker_table.incarnations
    await second.client.wait_applied(again.client.position)
    assert (await second.client.heartbeat(200, second.client.position, {})).valid_ms == 6_000
    assert (await second.create("t")).error_code == 0


@several
async def test_the_session_of_a_remote_broker_is_the_full_one(world: World) -> None:
    first, second = await world.start(1), await world.start(2)
    assert await second.client.heartbeat(200, second.client.position, {wal_id(200): 9}) == Grant(6_000, 2_000)
    await asyncio.sleep(2)
    assert first.state.wals[wal_id(200)].validated_group == 9
    await second.client.ask(c.EndSession(second.token(16), 200, 200))
    with pytest.raises(KafkaError, match="STALE_BROKER_EPOCH"):
        await second.client.heartbeat(200, second.client.position, {})


@several
async def test_who_may_not_control_waits_for_somebody(world: World) -> None:
    broker = Process(world.group, world.store, 2, 200, network=world.network, eligible=False)
    with pytest.raises(KafkaError, match="REQUEST_TIMED_OUT"):
        await broker.register()
    assert not broker.client.leads and not broker.runtime.ready.is_set()
    await world.start(1)
    await broker.register()
    assert broker.state.brokers[2].alive and not broker.client.leads


@several
async def test_nobody_there_is_a_timeout_that_says_so(world: World) -> None:
    first, second = await world.start(1), await world.start(2, eligible=False)
    await first.kill()
    with pytest.raises(KafkaError, match=r"REQUEST_TIMED_OUT.*node 1, the controller") as caught:
        await second.create("t", 8_000)
    assert caught.value.retriable


@several
async def test_a_follower_that_fell_behind_reads_the_bucket(world: World) -> None:
    first, second = await world.start(1), await world.start(2)
    world.network.cut.add(2)
    second.store.before = lambda method, key: Unavailable("away")
    for i in range(5):
        await first.create(f"t{i}")
    first.runtime.replica.recent.clear(first.client.position)
    second.store.before = lambda method, key: None
    world.network.cut.clear()
    await asyncio.sleep(2 * SETTINGS.lease_ms / 1000)
    assert second.state == first.state


@several
async def test_a_controller_that_answers_nonsense_is_not_believed(world: World) -> None:
    first, second = await world.start(1), await world.start(2)
    second.runtime._remote.follow = nonsense  # type: ignore[union-attr,method-assign]
    await first.create("t")
    await asyncio.sleep(2)
    assert second.state == first.state and not second.task.done()


@several
async def test_an_answer_that_is_not_known_here_is_no_answer(world: World) -> None:
    """One of a newer version, say: whoever asked hears of it in time, and what waits for the answer goes on."""
    await world.start(1)
    second = await world.start(2)
    remote = second.runtime._remote
    assert remote is not None
    for strange in ((4_000_000,), (), "what"):
        remote._send = answers(strange)  # type: ignore[method-assign]
        with pytest.raises(KafkaError, match=r"REQUEST_TIMED_OUT.*not known here") as caught:
            await second.create("t", 3_000)
        assert caught.value.retriable
    del remote._send
    await second.create("t")


def answers(strange: object) -> Callable[..., Awaitable[w.Reply]]:
    async def send(lane: str, *_: object) -> w.Reply:
        return w.Granted(1_000, 300) if lane == "heartbeat" else w.Answered(strange, 1)

    return send


async def nonsense(*_: object) -> list[bytes]:
    return [b"garbage"]


@several
async def test_a_name_is_free_as_soon_as_remote_leaders_know(world: World) -> None:
    first, second = await world.start(1), await world.start(2)
    await first.create("t")
    await second.create("u")
    for name in ("t", "u"):
        await second.client.ask(c.DeleteTopics(second.token(16), (c.TopicRef(name),)))
    await asyncio.sleep(0.01)
    assert [(await second.create(name)).error_code for name in ("t", "u")] == [0, 0]
