"""AlterPartitionReassignments, ListPartitionReassignments and ElectLeaders between brokers in one loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import broker.moves
from broker.moves import Moves
from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import ErrorCode
from tests.support.node_runs import hurry
from tests.support.several import Several
from tests.support.waiting import until


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr(broker.moves, "AGAIN_S", 0.01)


@pytest.fixture
async def several(tmp_path: Path) -> AsyncIterator[Several]:
    """Two brokers and topic `t`, whose partition n is led by broker n + 1."""
    async with contextlib.AsyncExitStack() as stack:
        made = Several(stack, tmp_path)
        await made.start(1)
        await made.start(2)
        await made.spread("t", 2, by=1)
        if made.leader("t", 0, seen_by=1) == 2:
            await reassign(made, ("t", 0, [1]), ("t", 1, [2]))
            await until(lambda: leaders(made) == [1, 2])
        yield made


def leaders(several: Several) -> list[int]:
    return [several.leader("t", index, seen_by=1) for index in range(2)]


async def reassign(
    several: Several, *wanted: tuple[str, int, list[int] | None], version: int = 1, several_allowed: bool = True
) -> list[tuple[int, str | None]]:
    topic = m.AlterPartitionReassignmentsRequest.ReassignableTopic
    part = m.AlterPartitionReassignmentsRequest.ReassignablePartition
    request = m.AlterPartitionReassignmentsRequest(
        allow_replication_factor_change=several_allowed,
        topics=[topic(name=name, partitions=[part(partition_index=i, replicas=nodes)]) for name, i, nodes in wanted],
    )
    answer = await several.ask(2, ApiKey.ALTER_PARTITION_REASSIGNMENTS, version, request)
    assert answer.error_code == 0
    return [(one.error_code, one.error_message) for topic in answer.responses for one in topic.partitions]


async def ongoing(
    several: Several, topics: Any = None
) -> dict[tuple[str, int], tuple[list[int], list[int], list[int]]]:
    request = m.ListPartitionReassignmentsRequest(topics=topics)
    answer = await several.ask(2, ApiKey.LIST_PARTITION_REASSIGNMENTS, 0, request)
    return {
        (topic.name, one.partition_index): (one.replicas, one.adding_replicas, one.removing_replicas)
        for topic in answer.topics
        for one in topic.partitions
    }


async def elect(
    several: Several, *keys: tuple[str, int], version: int = 2, election_type: int = 0, every: bool = False
) -> dict[tuple[str, int], int]:
    topic = m.ElectLeadersRequest.TopicPartitions
    request = m.ElectLeadersRequest(
        election_type=election_type,
        topic_partitions=None if every else [topic(topic=name, partitions=[index]) for name, index in keys],
        timeout_ms=5_000,
    )
    answer = await several.ask(2, ApiKey.ELECT_LEADERS, version, request)
    # A kind of election that is none refuses the request as a whole, too.
    assert version == 0 or answer.error_code == (0 if election_type in (0, 1) else ErrorCode.INVALID_REQUEST)
    return {
        (topic.topic, one.partition_id): one.error_code
        for topic in answer.replica_election_results
        for one in topic.partition_result
    }


def nobody_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaders do not look at wishes."""
    monkeypatch.setattr(Moves, "_choose", lambda self: {})


async def test_a_reassignment_moves_the_leader_and_makes_it_preferred(several: Several) -> None:
    assert await reassign(several, ("t", 0, [2]), version=0) == [(0, None)]
    await until(lambda: leaders(several) == [2, 2])
    assert await ongoing(several) == {}
    assert await elect(several, ("t", 0)) == {("t", 0): ErrorCode.ELECTION_NOT_NEEDED}
    assert await reassign(several, ("t", 0, [2, 1])) == [(0, None)], "it is there already"
    state = several.nodes[1].broker.controller.state
    assert state.preferred_leader(state.topics["t"].log_ids[0]) == 2 and state.moves == {}


async def test_what_is_wanted_is_listed_and_can_be_withdrawn(several: Several, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody_moves(monkeypatch)
    assert await reassign(several, ("t", 0, [2]), ("t", 1, [1, 2])) == [(0, None)] * 2
    assert await ongoing(several) == {("t", 0): ([2, 1], [2], [1]), ("t", 1): ([1, 2], [1], [2])}
    topic = m.ListPartitionReassignmentsRequest.ListPartitionReassignmentsTopics
    assert list(await ongoing(several, [topic(name="t", partition_indexes=[1, 5])])) == [("t", 1)]
    assert await ongoing(several, []) == {}
    assert await reassign(several, ("t", 0, None)) == [(0, None)]
    assert list(await ongoing(several)) == [("t", 1)]
    ((code, _),) = await reassign(several, ("t", 0, None))
    assert code == ErrorCode.NO_REASSIGNMENT_IN_PROGRESS
    state = several.nodes[1].broker.controller.state
    assert state.preferred_leader(state.topics["t"].log_ids[0]) == 1, "as before"


async def test_what_cannot_be_reassigned(several: Several) -> None:
    await several.nodes[1].broker.controller.wait_applied(1)
    bad: list[tuple[str, int, list[int] | None]] = [
        ("x", 0, [1]),
        ("t", 9, [1]),
        ("x", 0, None),
        ("t", 0, []),
        ("t", 0, [1, 1]),
        ("t", 0, [1, 5]),
    ]
    for one, code in zip(bad, [ErrorCode.UNKNOWN_TOPIC_OR_PARTITION] * 3 + [ErrorCode.INVALID_REPLICA_ASSIGNMENT] * 3):
        ((found, message),) = await reassign(several, one)
        assert found == code and message, one
    ((code_, _),) = await reassign(several, ("t", 0, [2, 1]), several_allowed=False)
    assert code_ == ErrorCode.INVALID_REPLICATION_FACTOR
    await several.nodes[2].stop()
    await several.start(3)
    request = m.AlterPartitionReassignmentsRequest(
        topics=[
            m.AlterPartitionReassignmentsRequest.ReassignableTopic(
                name="t",
                partitions=[
                    m.AlterPartitionReassignmentsRequest.ReassignablePartition(partition_index=0, replicas=nodes)
                    for nodes in ([2],)
                ],
            )
        ]
    )
    answer = await several.ask(1, ApiKey.ALTER_PARTITION_REASSIGNMENTS, 1, request)
    assert answer.responses[0].partitions[0].error_code == ErrorCode.INVALID_REPLICA_ASSIGNMENT
    request.topics[0].partitions[0].replicas = [2, 3]
    answer = await several.ask(1, ApiKey.ALTER_PARTITION_REASSIGNMENTS, 1, request)
    assert answer.responses[0].partitions[0].error_code == 0, "the first one that is alive"
    await until(lambda: several.leader("t", 0, seen_by=1) == 3)


async def test_leaders_are_brought_home(several: Several) -> None:
    assert await several.nodes[2].stop() == 0
    assert leaders(several) == [1, 1]
    await several.start(2)
    await until(lambda: 2 in several.running)
    assert await elect(several, ("t", 0), ("t", 1), ("t", 9), ("x", 0)) == {
        ("t", 0): ErrorCode.ELECTION_NOT_NEEDED,
        ("t", 1): 0,
        ("t", 9): ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
        ("x", 0): ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
    }
    assert several.leader("t", 1, seen_by=2) == 2, "the answer comes when it is done"
    assert await elect(several, every=True) == {}
    assert await elect(several, ("t", 1), version=0) == {("t", 1): ErrorCode.ELECTION_NOT_NEEDED}
    assert await elect(several, ("t", 1), version=1) == {("t", 1): ErrorCode.ELECTION_NOT_NEEDED}


async def test_elections_that_cannot_be(several: Several, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await elect(several, ("t", 0), election_type=1) == {("t", 0): ErrorCode.ELECTION_NOT_NEEDED}
    assert await elect(several, ("t", 0), election_type=7) == {("t", 0): ErrorCode.INVALID_REQUEST}
    await reassign(several, ("t", 0, [2]))
    await until(lambda: leaders(several) == [2, 2])
    nobody_moves(monkeypatch)
    await reassign(several, ("t", 1, [1]))
    asking = asyncio.ensure_future(elect(several, ("t", 1)))  # noqa: TID251
    assert await asking == {("t", 1): ErrorCode.ELECTION_NOT_NEEDED}, "not preferred before it is there"
    controller = several.nodes[2].broker.controller
    await several.nodes[1].kill()
    await until(lambda: not controller.state.brokers[1].alive)
    await until(lambda: controller.leads)
    await several.spread("u", 1, by=2)
    state = controller.state
    state.move_table.preferred[state.topics["u"].log_ids[0]] = 1
    assert await elect(several, ("u", 0)) == {("u", 0): ErrorCode.PREFERRED_LEADER_NOT_AVAILABLE}
