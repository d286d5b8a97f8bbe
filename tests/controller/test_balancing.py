"""Balance where the controller is, in virtual time; leaders that move their logs as soon as they are asked to."""

import asyncio
from collections import Counter

from controller import commands as c
from controller import facts as f
from controller.balance import BalanceMove
from controller.balancing import still_fits
from controller.runtime import ControllerSettings
from protocol.errors import ErrorCode, KafkaError
from storage.memory import MemoryStore
from storage.seal import CommitAndMove, Move
from tests.controller.builders import LISTENERS, next_range, seal_command, tokens, wal_id
from tests.controller.processes import SETTINGS, Process, facts_of
from tests.controller.test_runtime import virtual

OFTEN = SETTINGS._replace(balance_interval_ms=5_000)
MB = 1_000_000


class Cluster:
    """A controller and brokers that are nothing but their incarnations; nodes in `stuck` never let a log go."""

    def __init__(self, group: asyncio.TaskGroup, store: MemoryStore, settings: ControllerSettings = OFTEN) -> None:
        self.process = Process(group, store, 1, 100, settings=settings)
        self.stuck: set[int] = set()
        self.silent: set[int] = set()
        self.facts = facts_of(self.process)
        self.most_at_once = 0
        self._group = group
        self._token = tokens("cluster")

    async def start(self, brokers: int) -> None:
        await self.process.client.wait_ready()
        await self.process.register()
        for node_id in range(2, brokers + 1):
            await self.join(node_id)
        self._group.create_task(self._live())

    async def join(self, node_id: int, rack: str | None = None) -> None:
        incarnation = 100 * node_id
        wals = (c.NewWal(wal_id(incarnation), "volume"),)
        await self.process.client.ask(
            c.RegisterBroker(self._token(16), node_id, incarnation, f"boot {node_id}", rack, LISTENERS, wals)
        )

    async def create(self, name: str, leaders: list[int], **configs: str) -> list[int]:
        """A topic with these leaders; its log ids."""
        assigned = tuple((index, (leader,)) for index, leader in enumerate(leaders))
        new = c.NewTopic(name, configs=tuple(configs.items()), assignments=assigned)
        answer = await self.process.client.ask(c.CreateTopics(self._token(16), (new,)))
        assert answer.results[0].error_code == 0, answer
        return list(self.process.state.topics[name].log_ids)

    @property
    def counts(self) -> Counter[int]:
        return Counter(log.leader_node for log in self.process.state.logs.values())

    async def seal(self, node_id: int, *lengths: tuple[int, int]) -> None:
        """The node commits so many bytes per log."""
        incarnation, state = 100 * node_id, self.process.state
        ranges = [next_range(state.logs[log_id], 1)._replace(length=length) for log_id, length in lengths]
        last = state.broker_table.incarnations[incarnation].last_seal
        await self.process.client.ask(seal_command(incarnation, last + 1, ranges))

    async def _live(self) -> None:
        state = self.process.state
        while not self.process.task.done():
            await asyncio.sleep(0.2)
            for broker in state.broker_table.alive():
                if broker.node_id not in self.silent and not self.process.task.done():
                    await self.process.client.heartbeat(broker.incarnation, self.process.client.position, {})
            self.most_at_once = max(self.most_at_once, len(state.moves))
            await self._let_go()

    async def _let_go(self) -> None:
        state = self.process.state
        for broker in state.broker_table.alive():
            own = [log_id for log_id in state.moves if state.logs[log_id].leader_incarnation == broker.incarnation]
            if not own or broker.node_id in self.stuck:
                continue
            moves = tuple(
                Move(log_id, state.logs[log_id].epoch, state.logs[log_id].end, state.moves[log_id]) for log_id in own
            )
            number = broker.last_seal + 1
            await self.process.client.ask(
                CommitAndMove(self._token(16), broker.node_id, broker.incarnation, number, (), moves=moves)
            )


@virtual
async def test_a_broker_that_joins_takes_load_by_itself(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    cluster = Cluster(group, store)
    await cluster.start(2)
    await cluster.create("t", [1, 2] * 30)
    await asyncio.sleep(20)
    assert cluster.process.runtime.balancing.moves == 0
    await cluster.join(3)
    await asyncio.sleep(25)
    assert cluster.counts == {1: 20, 2: 20, 3: 20}
    assert cluster.process.runtime.balancing.moves == 20
    assert 0 < cluster.most_at_once <= OFTEN.balance_moves_max
    cluster.facts.clear()
    await asyncio.sleep(60)
    assert not any(isinstance(fact, f.MovesRequested) for fact in cluster.facts)


@virtual
async def test_it_waits_while_brokers_come_and_go(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    cluster = Cluster(group, store)
    await cluster.start(2)
    await cluster.create("t", [1] * 10 + [2] * 10)
    for node_id in range(3, 8):
        await cluster.join(node_id)
        await asyncio.sleep(4)
    assert cluster.process.runtime.balancing.moves == 0
    await asyncio.sleep(20)
    assert max(cluster.counts.values()) == 3


@virtual
async def test_busy_logs_are_spread_once_rates_are_known(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    cluster = Cluster(group, store)
    await cluster.start(2)
    busy = [(await cluster.create(f"busy-{number}", [1]))[0] for number in range(4)]
    for number in range(4):
        await cluster.create(f"idle-{number}", [2])
    for _ in range(60):
        for log_id in busy:
            await cluster.seal(cluster.process.state.logs[log_id].leader_node, (log_id, MB))
        await asyncio.sleep(1)
    leaders = Counter(cluster.process.state.logs[log_id].leader_node for log_id in busy)
    assert leaders == {1: 2, 2: 2} and cluster.counts == {1: 4, 2: 4}
    rates = cluster.process.runtime.balancing.rates
    assert all(abs(rate / (2 * MB) - 1) < 0.2 for rate in rates.values()), rates
    await cluster.create("new", [1])
    assert cluster.process.runtime._context().rates == rates


@virtual
async def test_excluded_topics_and_a_switch(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    cluster = Cluster(group, store)
    await cluster.start(2)
    await cluster.create("mine", [1] * 8, **{"tidelog.balance": "false"})
    await cluster.create("ours", [1] * 4)
    await asyncio.sleep(30)
    state = cluster.process.state
    assert {state.logs[log_id].leader_node for log_id in state.topics["mine"].log_ids} == {1}
    assert {state.logs[log_id].leader_node for log_id in state.topics["ours"].log_ids} == {2}


@virtual
async def test_switched_off_it_moves_nothing(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    cluster = Cluster(group, store, OFTEN._replace(balance=False))
    await cluster.start(2)
    await cluster.create("t", [1] * 8)
    await asyncio.sleep(60)
    assert cluster.process.runtime.balancing.moves == 0 and cluster.counts == {1: 8}


@virtual
async def test_a_leader_that_does_not_let_go_is_not_asked_for_more(
    group: asyncio.TaskGroup, store: MemoryStore
) -> None:
    cluster = Cluster(group, store)
    await cluster.start(2)
    await cluster.create("t", [1] * 60)
    cluster.stuck.add(1)
    await asyncio.sleep(60)
    assert len(cluster.process.state.moves) == OFTEN.balance_moves_max == cluster.process.runtime.balancing.moves
    cluster.stuck.clear()
    await asyncio.sleep(30)
    assert cluster.counts == {1: 30, 2: 30}


@virtual
async def test_a_drained_broker_and_a_lost_one_get_nothing(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    cluster = Cluster(group, store)
    await cluster.start(4)
    await cluster.process.client.ask(c.DrainBroker(tokens("d")(16), 2))
    await cluster.create("t", [1] * 20 + [3] * 4)
    cluster.silent.add(3)
    await asyncio.sleep(40)
    state = cluster.process.state
    assert not state.brokers[3].alive
    assert [log.status for log in state.logs.values()].count("recovering") >= 4, "they wait for the WAL of broker 3"
    assert cluster.counts[2] == 0 and abs(cluster.counts[1] - cluster.counts[4]) <= 1


@virtual
async def test_nothing_moves_below_the_format_level_of_moves(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    cluster = Cluster(group, store)
    await cluster.start(2)
    await cluster.create("t", [1] * 8)
    cluster.process.state.format_level = 1
    await asyncio.sleep(30)
    assert cluster.process.runtime.balancing.moves == 0


@virtual
async def test_what_is_refused_is_not_asked_for_again_at_once(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    cluster = Cluster(group, store)
    await cluster.start(2)
    await cluster.create("t", [1] * 8)
    asked = []
    ask = cluster.process.runtime.ask

    async def refuse(command: object, timeout_ms: int) -> object:
        if isinstance(command, c.RequestMoves):
            asked.append(command)
            raise KafkaError(ErrorCode.UNSUPPORTED_VERSION, "not today")
        return await ask(command, timeout_ms)

    cluster.process.runtime.ask = refuse  # type: ignore[method-assign]
    await asyncio.sleep(31)
    assert 3 <= len(asked) <= 6


@virtual
async def test_a_new_controller_measures_anew(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    cluster = Cluster(group, store)
    await cluster.start(1)
    (log_id,) = await cluster.create("t", [1])
    for _ in range(30):
        await cluster.seal(1, (log_id, MB))
        await asyncio.sleep(1)
    assert cluster.process.runtime.balancing.rates
    second = Process(group, store, 2, 200, settings=OFTEN)
    await second.client.wait_ready()
    cluster.silent.add(1)
    await cluster.process.kill()
    await asyncio.sleep(15)
    assert second.client.leads and not second.runtime.balancing.rates
    await asyncio.sleep(20)
    assert second.runtime.balancing.rates == {} or set(second.runtime.balancing.rates.values()) == {0}


@virtual
async def test_what_no_longer_fits_is_not_asked_for(group: asyncio.TaskGroup, store: MemoryStore) -> None:
    cluster = Cluster(group, store)
    await cluster.start(2)
    (log_id,) = await cluster.create("t", [1])
    state = cluster.process.state
    assert still_fits(state, BalanceMove(log_id, 1, 2))
    assert not still_fits(state, BalanceMove(log_id, 2, 1)), "it is not there any more"
    assert not still_fits(state, BalanceMove(log_id, 1, 9)), "nobody knows the target"
    assert not still_fits(state, BalanceMove(log_id + 1, 1, 2)), "the log is gone"
