"""Whatever members of both protocols, timers, restarts, topics and a full log do: what must hold of consumer groups."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from broker.groups.classic import ClassicGroup
from broker.groups.consumer import ConsumerGroup
from broker.groups.consumer_model import ConsumerHeartbeatAnswer, Partitions
from broker.groups.model import GroupSaved, JoinAnswer, SyncAnswer
from broker.groups.records import decode, encode
from broker.groups.shard import Shard
from broker.groups.subscription import read_assignment
from protocol.errors import ErrorCode
from tests.broker.groups.world import FakeTopics, World

SOFT = {"seen_version", "assigning", "resolving"}
TOPICS = st.fixed_dictionaries({}, optional={name: st.integers(0, 4) for name in ("t", "u", "v")})
SUBSCRIPTIONS = st.sampled_from(["topics=t", "topics=u", "topics=t+u", "topics= regex=[tv]", "topics=u regex=.*"])
CLASSIC_PROTOCOLS = "cooperative-sticky:t+u"


class Client:
    """An honest member: it owns what it was given until it says that it has given it up."""

    def __init__(self, member_id: str, instance: str, subscription: str) -> None:
        self.member_id = member_id
        self.instance = instance
        self.subscription = subscription
        self.epoch = 0
        self.owned: Partitions = {}
        self.asked: Partitions | None = None
        self.gone = False

    def line(self, *, full: bool) -> str:
        line = f"beat member={self.member_id} epoch={self.epoch} instance={self.instance}"
        if self.epoch == 0 or full:
            line += f" {self.subscription} rebalance=30000"
        if self.epoch != 0:
            line += f" owned={text(self.owned)}"
        return line


def text(partitions: Partitions) -> str:
    named = ((topic.rstrip(b"-").decode(), numbers) for topic, numbers in sorted(partitions.items()) if numbers)
    return ",".join(f"{name}:{'+'.join(map(str, sorted(numbers)))}" for name, numbers in named)


class ConsumerGroupMachine(RuleBasedStateMachine):
    @initialize(interval=st.sampled_from([0, 1000]), topics=TOPICS)
    def start(self, interval: int, topics: dict[str, int]) -> None:
        self.world = World()
        self.world.run(f"config consumer.assignment_interval_ms={interval} consumer.max_size=4")
        self.change_topics(topics)
        self.clients: list[Client] = []
        self.classic: dict[str, int] = {}
        """Member id -> generation of members of the classic protocol."""
        self.number = 0

    def change_topics(self, topics: dict[str, int]) -> None:
        self.world.run("topics " + " ".join(f"{name}={count}" for name, count in topics.items()))
        self.counts = topics

    def answer_to(self, line: str) -> Any:
        before = len(self.world.answers)
        self.world.run(line)
        new = [answer for number, answer in self.world.answers[before:] if number == self.world.waiter]
        return new[0] if new else None

    def pick(self, data: st.DataObject) -> Client | None:
        living = [client for client in self.clients if not client.gone]
        return data.draw(st.sampled_from(living)) if living else None

    # -- what may happen

    @rule(subscription=SUBSCRIPTIONS, instance=st.sampled_from(["", "", "i", "j"]))
    def join(self, subscription: str, instance: str) -> None:
        self.number += 1
        client = Client(f"m{self.number}", instance, subscription)
        self.clients.append(client)
        self.beat_of(client, lost=False, revoke=True)

    @rule(data=st.data(), lost=st.booleans(), revoke=st.booleans())
    def beat(self, data: st.DataObject, lost: bool, revoke: bool) -> None:
        client = self.pick(data)
        if client is not None:
            self.beat_of(client, lost=lost, revoke=revoke)

    def beat_of(self, client: Client, *, lost: bool, revoke: bool, full: bool = False) -> None:
        """`lost`: the answer does not arrive. `revoke`: what it is to give up it gives up at once."""
        if client.asked is not None and revoke:
            client.owned = {
                topic: kept
                for topic, numbers in client.owned.items()
                if (kept := numbers & client.asked.get(topic, frozenset()))
            }
        line = client.line(full=full)
        answer = self.answer_to(line)
        if lost or answer is None:
            return
        assert isinstance(answer, ConsumerHeartbeatAnswer)
        if answer.error in (ErrorCode.FENCED_MEMBER_EPOCH, ErrorCode.UNKNOWN_MEMBER_ID):
            client.epoch, client.owned, client.asked = 0, {}, None
            client.gone = bool(client.instance) and answer.error is ErrorCode.UNKNOWN_MEMBER_ID
        elif answer.error is not ErrorCode.NONE:
            client.gone, client.owned = True, {}
        else:
            assert answer.member_epoch > 0
            assert answer.member_epoch >= client.epoch
            client.epoch = answer.member_epoch
            if answer.assignment is not None:
                client.asked = answer.assignment
                for topic, numbers in answer.assignment.items():
                    client.owned = {**client.owned, topic: numbers | client.owned.get(topic, frozenset())}
        self.check_owners()

    @rule(data=st.data(), epoch=st.sampled_from([-1, -2]))
    def leave(self, data: st.DataObject, epoch: int) -> None:
        client = self.pick(data)
        if client is not None and (client.instance or epoch == -1):
            client.gone, client.owned = True, {}
            self.world.run(f"beat member={client.member_id} epoch={epoch} instance={client.instance}")

    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        client = self.pick(data)
        if client is not None:
            client.gone = True

    @rule(data=st.data(), subscription=SUBSCRIPTIONS)
    def subscribe(self, data: st.DataObject, subscription: str) -> None:
        client = self.pick(data)
        if client is not None:
            if "regex" not in subscription:
                subscription += " regex="
            client.subscription = subscription
            self.beat_of(client, lost=False, revoke=False, full=True)

    @rule(version=st.sampled_from([3, 9]), instance=st.sampled_from(["", "i"]))
    def classic_join(self, version: int, instance: str) -> None:
        line = f"join protocols={CLASSIC_PROTOCOLS} rebalance=20000 session=10000 v={version} instance={instance}"
        answer = self.answer_to(line)
        if isinstance(answer, JoinAnswer) and answer.error is ErrorCode.MEMBER_ID_REQUIRED:
            answer = self.answer_to(f"{line} member={answer.member_id}")
        if isinstance(answer, JoinAnswer) and answer.error is ErrorCode.NONE:
            self.classic[answer.member_id] = answer.generation

    @rule()
    def classic_goes_on(self) -> None:
        """Every member of the classic protocol sends a heartbeat, and joins and syncs again if it is to."""
        for member_id, generation in list(self.classic.items()):
            error = self.answer_to(f"heartbeat member={member_id} generation={generation}")
            if error is ErrorCode.NONE:
                continue
            answer = self.answer_to(
                f"join member={member_id} protocols={CLASSIC_PROTOCOLS} rebalance=20000 session=10000"
            )
            if not isinstance(answer, JoinAnswer):
                continue
            if answer.error is not ErrorCode.NONE:
                del self.classic[member_id]
                continue
            self.classic[member_id] = answer.generation
            synced = self.answer_to(f"sync member={member_id} generation={answer.generation}")
            if isinstance(synced, SyncAnswer) and synced.error is ErrorCode.NONE:
                read_assignment(synced.assignment)

    @rule(data=st.data())
    def classic_leave(self, data: st.DataObject) -> None:
        if self.classic:
            member_id = data.draw(st.sampled_from(sorted(self.classic)))
            del self.classic[member_id]
            self.world.run(f"leave members={member_id}")

    @rule(topics=TOPICS)
    def topics_change(self, topics: dict[str, int]) -> None:
        # A topic does not shrink: if it comes back smaller, it was another one. Ids here are names.
        self.change_topics({name: max(count, self.counts.get(name, 0)) for name, count in topics.items()})

    @rule(ms=st.sampled_from([500, 1000, 9000, 31_000, 46_000]))
    def advance(self, ms: int) -> None:
        self.world.run(f"advance ms={ms}")

    @rule()
    def compute(self) -> None:
        self.world.run("compute")

    @rule(full=st.booleans())
    def log_fills(self, full: bool) -> None:
        self.world.run("full" if full else "room")

    @rule()
    def restart(self) -> None:
        self.world.run("rewrite")
        self.world.run("restart")
        self.classic = dict.fromkeys(self.classic, -1)

    @rule()
    def commit(self) -> None:
        for client in self.clients:
            for topic, numbers in client.owned.items():
                name = topic.rstrip(b"-").decode()
                if not client.gone and name in self.counts and numbers:
                    self.world.run(
                        f"commit member={client.member_id} instance={client.instance} generation={client.epoch}"
                        f" offsets={name}:{min(numbers)}:1"
                    )

    # -- what must hold

    def group(self) -> ConsumerGroup | None:
        group = self.world.shard.groups.get("g")
        return group if isinstance(group, ConsumerGroup) else None

    def check_owners(self) -> None:
        """No partition is owned by two living clients that the coordinator knows."""
        group = self.group()
        owners: dict[tuple[bytes, int], str] = {}
        for client in self.clients:
            member = group.members.get(client.member_id) if group is not None else None
            if client.gone or member is None or client.epoch == 0:
                continue
            for topic, numbers in client.owned.items():
                for number in numbers:
                    other = owners.setdefault((topic, number), client.member_id)
                    assert other == client.member_id, f"{topic!r}:{number} of {other} and {client.member_id}"

    @invariant()
    def partitions_have_one_holder(self) -> None:
        group = self.group()
        if group is None:
            return
        held: dict[tuple[bytes, int], str] = {}
        for member in group.members.values():
            for partitions in (member.assigned, member.revoking):
                for topic, numbers in partitions.items():
                    for number in numbers:
                        assert (topic, number) not in held
                        held[topic, number] = member.member_id
                        assert group.owner(topic, number) == member.member_id
        assert sum(map(len, group.owners.values())) == len(held)

    @invariant()
    def epochs_are_in_order(self) -> None:
        group = self.group()
        if group is None:
            return
        assert group.epoch >= group.assignment_epoch >= 1
        for member in group.members.values():
            assert member.epoch <= group.assignment_epoch
            assert member.epoch != 0 or member.classic is not None
        assert group.classic_members == sum(member.classic is not None for member in group.members.values())

    @invariant()
    def the_log_says_all(self) -> None:
        """What was written, read again, and what a rewrite writes, read again, is the state."""
        assert same(self.world, self.world.persisted)
        keys = [key for group_id in list(self.world.shard.groups) for key in self.world.shard.keys(group_id)]
        assert same(self.world, self.world.shard.live(keys))

    def teardown(self) -> None:
        """Once nothing more happens, those who are left get to the end."""
        if not hasattr(self, "world"):
            return
        self.world.run("room")
        for member_id in list(self.classic):
            self.world.run(f"leave members={member_id}")
        self.classic = {}
        self.world.run("advance ms=50000")
        for client in self.clients:
            client.gone = client.gone or bool(client.instance)
        # Those that are left join again if they have to.
        living = [client for client in self.clients if not client.gone][:3]
        for _ in range(12):
            for client in living:
                self.beat_of(client, lost=False, revoke=True)
            self.world.run("compute")
            self.world.run("advance ms=11000")
        group = self.group()
        if not living or group is None:
            return
        assert group.state == "Stable", group.state
        read = {name for name in self.counts if group.is_subscribed(name)}
        everything = {(FakeTopics.id_of(name), number) for name in read for number in range(self.counts[name])}
        assert {(topic, number) for topic, numbers in group.owners.items() for number in numbers} == everything
        assert sum(len(numbers) for client in living for numbers in client.owned.values()) == len(everything)


def same(world: World, changes: list[Any]) -> bool:
    """Does reading these changes give the state, but for what is not kept?"""
    shard = Shard(world.config)
    for change in changes:
        read = decode(*encode(change))
        assert read == change
        shard.replay(read)
    for group_id, group in world.shard.groups.items():
        found = shard.groups.get(group_id)
        if isinstance(group, ConsumerGroup):
            assert isinstance(found, ConsumerGroup)
            for one in fields(ConsumerGroup):
                if one.name not in SOFT:
                    assert getattr(found, one.name) == getattr(group, one.name), one.name
        elif group.saved is not None:
            assert isinstance(found, ClassicGroup)
            assert isinstance(found.saved, GroupSaved)
            assert found.saved == group.saved
    return True


TestConsumerGroups = ConsumerGroupMachine.TestCase
TestConsumerGroups.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
