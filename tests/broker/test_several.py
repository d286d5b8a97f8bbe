"""Several brokers in one loop over one bucket: one controls, all serve; each of them may be lost."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.bucket import CannotStart
from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import ErrorCode
from tests.support.node_runs import hurry
from tests.support.raw_client import batch_of
from tests.support.several import SHORTER, Several, read
from tests.support.waiting import until


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@pytest.fixture
async def siblings(tmp_path: Path) -> AsyncIterator[Several]:
    async with contextlib.AsyncExitStack() as stack:
        yield Several(stack, tmp_path, one_machine=True)


async def test_brokers_find_each_other_and_share_the_work(several: Several) -> None:
    await several.start(1)
    await several.start(2, 3)
    assert several.controller == 1
    await several.spread("t", 6, by=3)
    leaders = [several.leader("t", index, seen_by=2) for index in range(6)]
    assert sorted(leaders) == [1, 1, 2, 2, 3, 3]
    for node_id in (1, 2, 3):
        answer = await several.ask(node_id, ApiKey.METADATA, 12, m.MetadataRequest(topics=None))
        assert [broker.node_id for broker in answer.brokers] == [1, 2, 3] and answer.controller_id == 1
        assert [
            one.leader_id for one in sorted(answer.topics[0].partitions, key=lambda p: p.partition_index)
        ] == leaders
        described = await several.ask(node_id, ApiKey.DESCRIBE_CLUSTER, 1, m.DescribeClusterRequest(endpoint_type=1))
        assert {broker.broker_id: broker.port for broker in described.brokers} == {
            other: node.port for other, node in several.nodes.items()
        }
    for index in range(6):
        assert await several.produce("t", index, b"a", b"b") == [0, 1]


async def test_a_produce_to_the_wrong_broker_names_the_right_one(several: Several) -> None:
    await several.start(1, 2)
    await several.spread("t", 2, by=2)
    leader = several.leader("t", 0, seen_by=1)
    other = 3 - leader
    async with several.nodes[other].client() as client:
        answer = await client.produce("t", batch_of(b"a"), version=10)
    assert answer.error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER
    assert (answer.current_leader.leader_id, answer.current_leader.leader_epoch) == (leader, 0)


async def test_groups_are_spread_and_found(several: Several) -> None:
    await several.start(1, 2, 3, offsets_topic_num_partitions=6)
    found = set()
    for number in range(12):
        request = m.FindCoordinatorRequest(key=f"group {number}", key_type=0)
        answers = [await several.ask(node_id, ApiKey.FIND_COORDINATOR, 3, request) for node_id in (1, 2, 3)]
        assert {answer.error_code for answer in answers} == {0}
        assert len({(answer.node_id, answer.port) for answer in answers}) == 1
        assert answers[0].port == several.nodes[answers[0].node_id].port
        found.add(answers[0].node_id)
    assert found == {1, 2, 3}


async def test_another_one_controls_when_the_controller_is_lost(several: Several) -> None:
    await several.start(1)
    await several.start(2, 3)
    await several.spread("t", 3, by=2)
    await several.produce("t", [several.leader("t", index, seen_by=2) for index in range(3)].index(2), b"a")
    await several.nodes[1].kill()
    asking = asyncio.ensure_future(several.nodes[2].create("u", 2))  # noqa: TID251
    await asyncio.wait_for(asking, 10)
    assert several.controller in (2, 3)
    await until(lambda: not several.nodes[2].broker.controller.state.brokers[1].alive)
    assert [one.broker.ready for one in several.nodes.values()] == [False, True, True]
    await several.start(1)
    await until(lambda: several.leader("t", 0, seen_by=3) > 0)
    for index in range(3):
        await several.produce("t", index, b"b")


async def test_a_broker_that_is_lost_returns_while_the_others_go_on(several: Several) -> None:
    await several.start(1)
    await several.start(2, 3)
    await several.spread("t", 3, by=1)
    for index in range(3):
        assert await several.produce("t", index, b"a", b"b", b"c") == [0, 1, 2]
    lost = [several.leader("t", index, seen_by=1) for index in range(3)].index(2)
    await several.nodes[2].kill()
    await until(lambda: several.leader("t", lost, seen_by=1) == -1)
    for index in range(3):
        if index != lost:
            assert await several.produce("t", index, b"d") == [3]
    await several.start(2)
    await until(lambda: several.leader("t", lost, seen_by=1) > 0)
    assert await several.produce("t", lost, b"d") == [3]
    await until(lambda: len(several.nodes[2].instances()) == 1)


async def test_one_of_several_stops_cleanly(several: Several) -> None:
    await several.start(1)
    await several.start(2, 3)
    await several.spread("t", 6, by=1)
    for index in range(6):
        await several.produce("t", index, b"a")
    for left in ([1, 2], [1]):
        stopped = max(several.running)
        assert await several.nodes[stopped].stop() == 0
        assert several.nodes[stopped].instances() == []
        await until(lambda left=left: {several.leader("t", i, seen_by=1) for i in range(6)} == set(left))  # type: ignore[misc]
        for index in range(6):
            await several.produce("t", index, b"b")


async def test_a_broker_that_is_gone_for_good_leaves_the_list_and_may_come_back(several: Several) -> None:
    await several.start(1)
    await several.start(2)
    await several.spread("t", 4, by=1)

    async def listed() -> list[tuple[int, bool]]:
        request = m.DescribeClusterRequest(endpoint_type=1, include_fenced_brokers=True)
        answer = await several.ask(1, ApiKey.DESCRIBE_CLUSTER, 2, request)
        return sorted((broker.broker_id, broker.is_fenced) for broker in answer.brokers)

    async def unregister() -> int:
        request = m.UnregisterBrokerRequest(broker_id=2)
        code: int = (await several.ask(1, ApiKey.UNREGISTER_BROKER, 0, request)).error_code
        return code

    assert await unregister() == ErrorCode.INVALID_REQUEST, "it is alive"
    assert await several.nodes[2].stop() == 0
    assert await listed() == [(1, False), (2, True)]
    assert await unregister() == 0
    assert await listed() == [(1, False)]
    assert await unregister() == ErrorCode.BROKER_ID_NOT_REGISTERED
    await several.start(2)
    assert await listed() == [(1, False), (2, False)]
    await several.spread("u", 4, by=2)
    assert 2 in {several.leader("u", index, seen_by=1) for index in range(4)}


async def test_configs_and_quotas_reach_every_broker(several: Several) -> None:
    await several.start(1)
    await several.start(2, 3)
    change = m.IncrementalAlterConfigsRequest.AlterableConfig(
        name="message.max.bytes", config_operation=0, value="5000"
    )
    resource = m.IncrementalAlterConfigsRequest.AlterConfigsResource
    for node_id, name in ((2, ""), (3, "3")):
        asked = m.IncrementalAlterConfigsRequest(
            resources=[resource(resource_type=4, resource_name=name, configs=[change])]
        )
        answer = await several.ask(node_id, ApiKey.INCREMENTAL_ALTER_CONFIGS, 1, asked)
        assert answer.responses[0].error_code == 0
        change.value = "6000"
    request = m.AlterClientQuotasRequest
    entity = [request.EntityData(entity_type="user", entity_name=None)]
    entry = request.EntryData(entity=entity, ops=[request.OpData(key="producer_byte_rate", value=1e6)])
    altered = await several.ask(3, ApiKey.ALTER_CLIENT_QUOTAS, 1, request(entries=[entry]))
    assert altered.entries[0].error_code == 0

    def everywhere() -> bool:
        brokers = [several.nodes[node_id].broker for node_id in (1, 2, 3)]
        active = all(broker.services.quotas.active for broker in brokers)
        return active and [broker.settings.message_max_bytes for broker in brokers] == [5000, 5000, 6000]

    await until(everywhere)


async def test_the_controller_stops_cleanly_and_the_next_one_takes_over_at_once(several: Several) -> None:
    await several.start(1)
    await several.start(2, 3)
    await several.spread("t", 3, by=1)
    sessions = [several.nodes[node_id].broker.session for node_id in (2, 3)]
    assert await several.nodes[1].stop() == 0
    await several.spread("u", 2, by=2)
    assert several.controller in (2, 3) and not any(session.ended for session in sessions)
    assert {several.leader("t", index, seen_by=2) for index in range(3)} == {2, 3}


async def test_who_is_only_a_broker_never_controls(several: Several) -> None:
    await several.start(1)
    await several.start(2, process_roles="broker")
    assert await several.nodes[1].stop() == 0
    await asyncio.sleep(1)
    assert not several.nodes[2].broker.controller.leads and several.nodes[2].broker.ready
    await several.start(1)
    await several.spread("t", 2, by=2)


async def test_a_node_id_that_is_in_use_is_refused(several: Several) -> None:
    await several.start(1, **SHORTER)
    await several.start(2, **SHORTER)
    twin = several.nodes.pop(2)
    with pytest.raises(AssertionError, match="ended before it served"):
        await several.start(2, tidelog_wal_dir=several.nodes[1].path / "elsewhere", **SHORTER)
    with pytest.raises(CannotStart, match=r"node\.id=2 is in use by a live broker at 127"):
        await several.nodes[2].ended()
    assert twin.broker.ready and not twin.broker.session.ended


async def test_a_node_id_whose_process_is_gone_is_free_when_its_session_has_ended(several: Several) -> None:
    await several.start(1, **SHORTER)
    await several.start(2, **SHORTER)
    await several.spread("t", 2, by=1)
    lost = several.nodes.pop(2)
    await lost.kill()
    await several.start(2, tidelog_wal_dir=several.nodes[1].path / "elsewhere", **SHORTER)
    state = several.nodes[1].broker.controller.state
    assert state.brokers[2].alive and state.brokers[2].incarnation != lost.broker.incarnation
    partition = [several.leader("t", index, seen_by=1) for index in range(2)].index(-1)
    assert several.leader("t", 1 - partition, seen_by=1) == 1, "what the lost volume holds waits for it, nothing else"


# On one machine


async def test_a_survivor_recovers_a_sibling_at_once(siblings: Several) -> None:
    await siblings.start(1)
    await siblings.start(2, 3)
    await siblings.spread("t", 6, by=1)
    for index in range(6):
        assert await siblings.produce("t", index, b"a", b"b", b"c") == [0, 1, 2]
    await siblings.nodes[2].kill()
    began = asyncio.get_running_loop().time()
    await until(lambda: {siblings.leader("t", index, seen_by=1) for index in range(6)} == {1, 3})
    assert asyncio.get_running_loop().time() - began < 1, "long before its session ends"
    state = siblings.nodes[1].broker.controller.state
    assert state.brokers[2].end_reason == "restart"
    for index in range(6):
        assert await siblings.produce("t", index, b"d") == [3]
        assert await read(siblings, "t", index) == [b"a", b"b", b"c", b"d"]
    await siblings.start(2)
    assert siblings.nodes[2].broker.recovery.waiting == {}
    await siblings.spread("u", 2, by=2)


async def test_a_survivor_takes_control_at_once(siblings: Several) -> None:
    await siblings.start(1)
    await siblings.start(2, 3)
    await siblings.spread("t", 3, by=1)
    for index in range(3):
        assert await siblings.produce("t", index, b"a") == [0]
    await siblings.nodes[1].kill()
    began = asyncio.get_running_loop().time()
    await until(lambda: {siblings.leader("t", index, seen_by=2) for index in range(3)} == {2, 3})
    assert asyncio.get_running_loop().time() - began < 1
    for index in range(3):
        assert await siblings.produce("t", index, b"b") == [1]


async def test_two_are_lost_and_the_last_one_has_it_all(siblings: Several) -> None:
    await siblings.start(1)
    await siblings.start(2, 3)
    await siblings.spread("t", 6, by=1)
    for index in range(6):
        await siblings.produce("t", index, b"a")
    await asyncio.gather(siblings.nodes[1].kill(), siblings.nodes[3].kill())
    await until(lambda: {siblings.leader("t", index, seen_by=2) for index in range(6)} == {2})
    for index in range(6):
        assert await siblings.produce("t", index, b"b") == [1]
    await until(lambda: len(list(Path(siblings.nodes[2].broker.settings.wal_dir).iterdir())) == 1)
    await siblings.start(1, 3)
    await siblings.spread("u", 2, by=3)


async def test_a_restart_does_not_fight_with_the_sibling_that_recovers(siblings: Several) -> None:
    await siblings.start(1)
    await siblings.start(2)
    await siblings.spread("t", 4, by=1)
    for round in range(3):
        for index in range(4):
            await until(lambda index=index: siblings.leader("t", index, seen_by=1) > 0)  # type: ignore[misc]
            assert await siblings.produce("t", index, b"a") == [round]
        await siblings.nodes[2].kill()
        await siblings.start(2)
    assert siblings.nodes[1].broker.ready and siblings.nodes[2].broker.ready


# Balance


async def test_a_broker_that_joins_is_given_its_share(several: Several) -> None:
    often = {"tidelog_balance_interval_ms": 200, "tidelog_balance_moves_max": 4}
    await several.start(1, **often)
    await several.start(2, **often)
    await several.spread("t", 12, by=1)
    await several.spread("mine", 4, by=1)
    change = m.IncrementalAlterConfigsRequest.AlterableConfig(name="tidelog.balance", config_operation=0, value="false")
    resource = m.IncrementalAlterConfigsRequest.AlterConfigsResource(
        resource_type=2, resource_name="mine", configs=[change]
    )
    altered = await several.ask(
        1, ApiKey.INCREMENTAL_ALTER_CONFIGS, 1, m.IncrementalAlterConfigsRequest(resources=[resource])
    )
    assert altered.responses[0].error_code == 0
    for index in range(12):
        assert await several.produce("t", index, b"a", b"b") == [0, 1]
    await several.start(3, **often)

    controller = several.nodes[several.controller].broker

    def figures(name: str) -> dict[str, float]:
        (family,) = [family for family in controller.metrics.read() if family.name == f"tidelog_{name}"]
        return {dict(sample.labels).get("node", ""): sample.value for sample in family.samples}

    def is_even() -> bool:
        led = figures("broker_logs").values()
        return len(led) == 3 and max(led) - min(led) <= 1 and not controller.controller.state.moves

    await until(is_even, 10)
    assert sum(several.leader("t", index, seen_by=1) == 3 for index in range(12)) >= 4
    assert sorted(several.leader("mine", index, seen_by=1) for index in range(4)) == [1, 1, 2, 2]
    assert figures("balance_moves")[""] >= 4
    await until(lambda: set(figures("broker_committed_bytes_per_second")) == {"1", "2", "3"})
    for index in range(12):
        assert await several.produce("t", index, b"c") == [2]
        assert await read(several, "t", index) == [b"a", b"b", b"c"]
