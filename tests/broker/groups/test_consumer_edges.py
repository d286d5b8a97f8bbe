"""What clients may do to a consumer group's coordinator by what they write, and what a crash may leave of a group."""

from __future__ import annotations

from typing import Any

import pytest

from broker.groups.consumer_model import ConsumerHeartbeat, ConsumerHeartbeatAnswer, ResolveRegexes
from broker.groups.model import (
    Change,
    Commit,
    DeleteGroups,
    GroupConfig,
    Join,
    OffsetToCommit,
    Outcome,
    Reply,
    Sync,
)
from broker.groups.regexes import resolve
from broker.groups.shard import Shard
from protocol.errors import ErrorCode
from tests.broker.groups.world import FakeTopics, subscription


class Coordinator:
    """A shard that keeps what it persists."""

    def __init__(self, **topics: int) -> None:
        self.topics = FakeTopics()
        self.topics.set(topics)
        self.shard = Shard(GroupConfig(), self.topics)
        self.persisted: list[Change] = []
        self.now_ms = 1_000_000

    def take(self, outcome: Outcome) -> list[Any]:
        """Puts it into effect; the answers."""
        self.persisted += outcome.changes
        self.shard.apply(outcome)
        self.asked = [one for one in outcome.effects if isinstance(one, ResolveRegexes)]
        return [one.answer for one in outcome.effects if isinstance(one, Reply)]

    def beat(self, member_id: str, epoch: int, **fields: Any) -> ConsumerHeartbeatAnswer:
        said = ("t",) if epoch == 0 else None
        asked = ConsumerHeartbeat(
            *(2, "g", member_id, epoch, None, None, "c", "/h", -1 if epoch else 30_000, said, None, None),
            *(None if epoch else {}, "token"),
        )
        (answer,) = self.take(self.shard.consumer_heartbeat(asked._replace(**fields), self.now_ms))
        assert isinstance(answer, ConsumerHeartbeatAnswer)
        return answer


def joining(token: str, *protocols: tuple[str, bytes]) -> Join:
    return Join(1, "g", "", None, "c", "/h", 10_000, 60_000, "consumer", protocols, token, False, True)


@pytest.mark.parametrize("unread", [b"", b"\xff\xff", b"\0", b"\0\3garbage"])
def test_what_was_written_for_an_assignor_that_was_not_chosen(unread: bytes) -> None:
    """Nobody has looked at it when the group becomes one of the other protocol, and one of the classic again."""
    coordinator = Coordinator(t=2)
    shard, good = coordinator.shard, subscription("t")
    coordinator.take(shard.join(joining("1", ("range", good)), 0))
    coordinator.take(shard.join(joining("2", ("odd", unread), ("range", good)), 0))
    for now_ms in (3_000, 6_000):
        coordinator.take(shard.timer(("join", "g", ""), now_ms))
    coordinator.take(shard.sync(Sync(3, "g", 1, "c-1", None, None, None, (("c-1", b""), ("c-2", b""))), 6_000))
    assert shard.describe("g").state == "Stable"
    assert coordinator.beat("m", 0).error is ErrorCode.NONE
    assert coordinator.beat("m", -1).error is ErrorCode.NONE
    assert shard.describe("g").state == "PreparingRebalance"


def test_offsets_outlive_a_group_that_nobody_wrote_anew() -> None:
    """A group of consumers is empty, a classic member is told its id, and the coordinator's broker dies before there
    is a generation: the offsets are still to be seen, to be deleted, and to expire."""
    coordinator = Coordinator(t=2)
    coordinator.beat("m", 0)
    coordinator.beat("m", -1)
    offset = OffsetToCommit("t", bytes(16), 0, 5, -1, None)
    commit = Commit(1, "g", -1, "", None, -1, (offset,), ErrorCode.GROUP_ID_NOT_FOUND)
    coordinator.take(coordinator.shard.commit(commit, 1_000))
    coordinator.take(
        coordinator.shard.join(joining("1", ("range", subscription("t")))._replace(needs_member_id=True), 0)
    )
    after = Coordinator(t=2)
    for change in coordinator.persisted:
        after.shard.replay(change)
    assert [one.group_id for one in after.shard.list_groups(frozenset(), frozenset())] == ["g"]
    assert after.shard.fetch("g", None).offsets[0][:2] == ("t", 0)
    late_ms = 1_000 + after.shard.config.offsets_retention_ms
    assert len(after.shard.expire("g", late_ms).changes) == 2, "the offset, and the group"
    after.take(after.shard.delete_groups(DeleteGroups(1, ("g",))))
    assert not after.shard.groups and not after.shard.offsets.count


def test_expressions_are_matched_in_short_slices() -> None:
    """However large they are, and however long the names."""
    names = [f"{'ab' * 120}{number:04}" for number in range(60)]
    hostile = resolve(["(a?b?){1000}c"], names)
    assert sum(1 for _ in hostile) >= len(names)
    harmless = resolve(["orders-.*"], [f"orders-{number}" for number in range(1_000)])
    assert sum(1 for _ in harmless) < 10


def test_expressions_that_cannot_be_kept_are_not_resolved_all_the_time() -> None:
    """They match more names than a record holds: another heartbeat does not help."""
    coordinator = Coordinator(t=2)
    coordinator.beat("m", 0, topics=None, regex="t.*")
    assert coordinator.asked == [ResolveRegexes("g", ("t.*",))]
    coordinator.take(coordinator.shard.regexes_resolved("g", None, 1, coordinator.now_ms))
    for wait_ms, asked in ((5_000, 0), (4_999, 0), (1, 1)):
        coordinator.now_ms += wait_ms
        coordinator.beat("m", 1)
        assert len(coordinator.asked) == asked
