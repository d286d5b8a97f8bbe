"""Whatever members, timers, restarts and a full log do: what must hold of every classic group."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.groups.model import GroupState, JoinAnswer, SyncAnswer
from broker.groups.records import decode, encode
from broker.groups.shard import Shard
from protocol.errors import ErrorCode
from tests.broker.groups.world import World

GROUPS = st.sampled_from(["g", "h"])
PROTOCOLS = st.sampled_from(["range:t", "range:t,sticky:t", "sticky:t,range:t+u", "sticky:t"])


class GroupMachine(RuleBasedStateMachine):
    @initialize(max_size=st.sampled_from([2, 3, 100]))
    def start(self, max_size: int) -> None:
        self.world = World()
        self.world.run(f"config max_size={max_size}")
        self.ids: list[tuple[str, str, str]] = []
        """(group, member id, instance id or "") of everybody who was ever told an id."""
        self.generations: dict[str, int] = {}
        self.leaders: dict[tuple[str, int], str] = {}
        self.asked: dict[int, dict[str, str]] = {}
        self.seen = 0

    def run_line(self, line: str) -> None:
        before = self.world.waiter
        self.world.run(line)
        name, *words = line.split()
        if self.world.waiter > before:
            self.asked[self.world.waiter] = {"name": name, "group": "g", **dict(word.split("=", 1) for word in words)}
        for number, answer in self.world.answers[self.seen :]:
            self.check_answer(self.asked[number], answer)
        self.seen = len(self.world.answers)
        # A group that was deleted begins anew.
        self.leaders = {known: one for known, one in self.leaders.items() if known[0] in self.world.shard.groups}

    def check_answer(self, asked: dict[str, str], answer: Any) -> None:
        group = asked["group"]
        if isinstance(answer, JoinAnswer):
            if answer.error in (ErrorCode.NONE, ErrorCode.MEMBER_ID_REQUIRED):
                self.ids.append((group, answer.member_id, asked.get("instance", "")))
            if answer.error is ErrorCode.NONE and answer.members and not answer.skip_assignment:
                told = self.leaders.setdefault((group, answer.generation), answer.member_id)
                assert told == answer.member_id, "two leaders of one generation"
                assert answer.leader == answer.member_id
        elif isinstance(answer, SyncAnswer) and answer.error is ErrorCode.NONE:
            # Static members keep their assignment under a new id: what counts is the instance.
            name = asked.get("instance") or asked["member"]
            assert answer.assignment in (f"{asked['generation']}/{name}".encode(), b"")

    # -- what may happen

    @rule(group=GROUPS, version=st.sampled_from([3, 9]), protocols=PROTOCOLS, session=st.sampled_from([6000, 20000]))
    def join_new(self, group: str, version: int, protocols: str, session: int) -> None:
        self.run_line(f"join group={group} v={version} protocols={protocols} session={session} rebalance=15000")

    @rule(group=GROUPS, instance=st.sampled_from(["i", "j"]), version=st.sampled_from([8, 9]), protocols=PROTOCOLS)
    def join_static(self, group: str, instance: str, version: int, protocols: str) -> None:
        self.run_line(f"join group={group} instance={instance} v={version} protocols={protocols} rebalance=15000")

    @precondition(lambda self: self.ids)
    @rule(data=st.data(), protocols=PROTOCOLS)
    def rejoin(self, data: st.DataObject, protocols: str) -> None:
        group, member, instance = self.pick(data)
        self.run_line(f"join group={group} member={member} instance={instance} protocols={protocols} rebalance=15000")

    @precondition(lambda self: self.ids)
    @rule(data=st.data(), stale=st.integers(0, 5))
    def sync(self, data: st.DataObject, stale: int) -> None:
        group, member, instance = self.pick(data)
        state = self.world.shard.groups.get(group)
        generation = (state.generation if state else 0) - (stale == 0)
        members = state.members.values() if state else ()
        assign = ",".join(f"{one.member_id}:{generation}/{one.instance_id or one.member_id}" for one in members)
        self.run_line(f"sync group={group} member={member} instance={instance} generation={generation} assign={assign}")

    @rule(group=GROUPS, protocols=PROTOCOLS)
    def all_rejoin(self, group: str, protocols: str) -> None:
        state = self.world.shard.groups.get(group)
        for one in list(state.members.values()) if state else ():
            self.run_line(
                f"join group={group} member={one.member_id} instance={one.instance_id or ''} protocols={protocols}"
                " rebalance=15000"
            )

    @rule(group=GROUPS, leader=st.booleans(), followers=st.booleans(), stale=st.integers(0, 5))
    def all_sync(self, group: str, leader: bool, followers: bool, stale: int) -> None:
        state = self.world.shard.groups.get(group)
        if state is None:
            return
        members = list(state.members.values())
        generation = state.generation - (stale == 0)
        assign = ",".join(f"{one.member_id}:{generation}/{one.instance_id or one.member_id}" for one in members)
        for one in members:
            if leader if one.member_id == state.leader else followers:
                self.run_line(
                    f"sync group={group} member={one.member_id} instance={one.instance_id or ''}"
                    f" generation={generation} assign={assign}"
                )

    @precondition(lambda self: self.ids)
    @rule(data=st.data())
    def heartbeat(self, data: st.DataObject) -> None:
        group, member, instance = self.pick(data)
        state = self.world.shard.groups.get(group)
        generation = state.generation if state else 0
        self.run_line(f"heartbeat group={group} member={member} instance={instance} generation={generation}")

    @precondition(lambda self: self.ids)
    @rule(data=st.data(), administrator=st.booleans())
    def leave(self, data: st.DataObject, administrator: bool) -> None:
        group, member, instance = self.pick(data)
        self.run_line(f"leave group={group} members={'' if administrator else member}@{instance}")

    @rule(group=GROUPS, offset=st.integers(0, 9), topic=st.sampled_from("tuv"))
    def commit(self, group: str, offset: int, topic: str) -> None:
        self.run_line(f"commit group={group} offsets={topic}:0:{offset}")

    @rule(ms=st.sampled_from([1, 3000, 7000, 16000, 400_000]))
    def advance(self, ms: int) -> None:
        self.run_line(f"advance ms={ms}")

    @rule()
    def expire(self) -> None:
        self.run_line("expire")

    @rule(group=GROUPS)
    def delete(self, group: str) -> None:
        self.run_line(f"delete-groups groups={group}")

    @rule()
    def change_room(self) -> None:
        self.run_line("room" if self.world.full else "full")

    @rule()
    def rewrite(self) -> None:
        self.run_line("rewrite")

    @rule()
    def restart(self) -> None:
        self.run_line("restart")
        # Generations that were never assigned are unknown to the new coordinator, as in Kafka.
        self.generations = {}
        self.leaders = {}

    def pick(self, data: st.DataObject) -> tuple[str, str, str]:
        return self.ids[data.draw(st.integers(max(0, len(self.ids) - 8), len(self.ids) - 1))]

    # -- what must hold

    @invariant()
    def generations_only_grow(self) -> None:
        if not hasattr(self, "world"):
            return
        groups = self.world.shard.groups
        for group_id, group in groups.items():
            assert group.generation >= self.generations.get(group_id, 0)
        self.generations = {group_id: group.generation for group_id, group in groups.items()}

    @invariant()
    def groups_are_consistent(self) -> None:
        if not hasattr(self, "world"):
            return
        waiting = set()
        for group in self.world.shard.groups.values():
            members = group.members
            assert (group.leader in members) if members else group.leader is None
            assert not (group.state in (GroupState.STABLE, GroupState.COMPLETING_REBALANCE) and not members)
            assert not (group.state is GroupState.EMPTY and members)
            assert group.joining_count == sum(member.joining is not None for member in members.values())
            assert group.static_members == {
                member.instance_id: member.member_id for member in members.values() if member.instance_id is not None
            }
            names = [name for member in members.values() for name, _ in member.protocols]
            assert group.protocol_counts == {name: names.count(name) for name in names}
            assert set(group.pending_syncs) <= set(members)
            assert not set(group.pending_joins) & set(members)
            if group.state is not GroupState.PREPARING_REBALANCE:
                assert group.joining_count == 0
            for member in members.values():
                assert not (member.syncing is not None and group.state is not GroupState.COMPLETING_REBALANCE)
                waiting |= {number for number in (member.joining, member.syncing) if number is not None}
                timed = ("session", group.group_id, member.member_id) in self.world.timers
                assert timed or member.joining is not None or member.syncing is not None, "nobody would miss it"
            if group.state is GroupState.PREPARING_REBALANCE:
                assert ("join", group.group_id, "") in self.world.timers
            if group.pending_syncs:
                assert ("sync", group.group_id, "") in self.world.timers
        assert waiting == set(self.world.unanswered), "a request that nobody will answer"

    @invariant()
    def restart_finds_what_was_persisted(self) -> None:
        if not hasattr(self, "world"):
            return
        found = Shard(self.world.config)
        for change in self.world.persisted:
            read = decode(*encode(change))
            assert read is not None
            found.replay(read)
        live = self.world.shard
        assert found.offsets.by_group == live.offsets.by_group
        assert {name: group.saved for name, group in found.groups.items()} == {
            name: group.saved for name, group in live.groups.items()
        }

    def teardown(self) -> None:
        """Nobody does anything any more: every request is answered, every member is gone."""
        if not hasattr(self, "world"):
            return
        self.world.full = False
        self.run_line("advance ms=3600000")
        assert not self.world.unanswered
        assert all(group.state is GroupState.EMPTY for group in self.world.shard.groups.values())


TestGroups = GroupMachine.TestCase
TestGroups.settings = settings(max_examples=60, stateful_step_count=60, derandomize=True)
