"""One shard without a log: commands in, what happens out as text. Time stands still unless told to advance."""

from __future__ import annotations

from struct import pack
from typing import Any

from broker.groups.assignors import assign, run_to_end
from broker.groups.consumer import ConsumerGroup
from broker.groups.consumer_model import (
    AssignmentRun,
    ComputeAssignment,
    ConsumerHeartbeat,
    ConsumerHeartbeatAnswer,
    CurrentRemoved,
    CurrentSaved,
    EpochRemoved,
    EpochSaved,
    GroupTimes,
    MemberRemoved,
    MemberSaved,
    MemberState,
    MigrationPolicy,
    RegexRemoved,
    RegexSaved,
    ResolveRegexes,
    TargetEpochRemoved,
    TargetEpochSaved,
    TargetRemoved,
    TargetSaved,
    TopicsOfOldVersion,
)
from broker.groups.model import (
    CancelTimer,
    Change,
    Commit,
    CommitAnswer,
    DeleteGroups,
    DeleteGroupsAnswer,
    DeleteOffsets,
    DeleteOffsetsAnswer,
    GroupConfig,
    GroupRemoved,
    GroupSaved,
    Heartbeat,
    Join,
    JoinAnswer,
    Leave,
    LeaveAnswer,
    Leaver,
    OffsetCommitted,
    OffsetToCommit,
    Outcome,
    Reply,
    SetTimer,
    Sync,
    SyncAnswer,
    TimerKey,
)
from broker.groups.records import decode, encode
from broker.groups.regexes import resolve
from broker.groups.shard import Shard
from broker.groups.subscription import read_assignment, subscribed_topics
from broker.groups.topics import TopicInfo
from protocol.errors import ErrorCode


def subscription(topics: str) -> bytes:
    names = [name.encode() for name in topics.split("+") if name]
    return pack(">hi", 0, len(names)) + b"".join(pack(">h", len(name)) + name for name in names) + pack(">i", -1)


def shown(metadata: bytes) -> str:
    topics = subscribed_topics([metadata]) if metadata[:2] == b"\0\0" else None
    return metadata.decode() if topics is None else "+".join(sorted(topics))


def assignment_text(assignment: bytes) -> str:
    """What leaders of these tests assign is text; what the coordinator does is a ConsumerProtocolAssignment."""
    if assignment[:1] != b"\0":
        return assignment.decode()
    topics = read_assignment(assignment)[0]
    return "[" + ",".join(f"{name}:{'+'.join(map(str, sorted(topics[name])))}" for name in sorted(topics)) + "]"


def topic_id(text: str) -> bytes:
    return bytes([int(text)]) * 16


class FakeTopics:
    """Topics whose ids are their names; with a number behind it one is another topic of the same name."""

    def __init__(self) -> None:
        self.version = self.created_version = 0
        self.by_name: dict[str, TopicInfo] = {}

    @staticmethod
    def id_of(name: str) -> bytes:
        return name.encode().ljust(16, b"-")

    def set(self, counts: dict[str, int]) -> None:
        self.version += 1
        if counts.keys() - self.by_name.keys():
            self.created_version = self.version
        self.by_name = {name: TopicInfo(self.id_of(name), name, count) for name, count in counts.items()}

    def named(self, name: str) -> TopicInfo | None:
        return self.by_name.get(name)

    def with_id(self, uid: bytes) -> TopicInfo | None:
        return self.by_name.get(uid.rstrip(b"-").decode())

    def names(self) -> list[str]:
        return list(self.by_name)


class World:
    """Commands are methods named like the words of a transcript; each returns the lines of what happened."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000
        self.config = GroupConfig()
        self.topics = FakeTopics()
        self.overrides: dict[str, GroupTimes] = {}
        self.shard = self.new_shard()
        self.under_way: list[ComputeAssignment | ResolveRegexes] = []
        self.timers: dict[TimerKey, int] = {}
        self.persisted: list[Change] = []
        self.waiter = 0
        self.token = 0
        self.full = False
        self.unanswered: dict[int, str] = {}
        self.lines: list[str] = []
        self.answers: list[tuple[int, Any]] = []

    def run(self, line: str) -> list[str]:
        self.lines = []
        name, *words = line.split()
        arguments = dict(word.split("=", 1) for word in words)
        getattr(self, "do_" + name.replace("-", "_"))(**arguments)
        return self.lines or ["ok"]

    # -- commands

    def do_config(self, **values: str) -> None:
        """`consumer.NAME=VALUE` is one of consumer groups; a policy, assignors joined by +."""
        for name, value in values.items():
            if not name.startswith("consumer."):
                self.config = self.config._replace(**{name: int(value)})
                continue
            name, read = name.removeprefix("consumer."), value
            makers = {"migration_policy": MigrationPolicy, "assignors": lambda text: tuple(text.split("+"))}
            made = makers.get(name, int)
            self.config = self.config._replace(consumer=self.config.consumer._replace(**{name: made(read)}))
        self.shard.config = self.config

    def do_group_config(self, group: str, session: str, heartbeat: str, assign: str) -> None:
        self.overrides[group] = GroupTimes(int(session), int(heartbeat), int(assign))

    def new_shard(self) -> Shard:
        def times_of(group_id: str) -> GroupTimes:
            consumer = self.config.consumer
            return self.overrides.get(group_id) or GroupTimes(
                consumer.session_timeout_ms, consumer.heartbeat_interval_ms, consumer.assignment_interval_ms
            )

        return Shard(self.config, self.topics, times_of)

    def do_full(self) -> None:
        self.full = True

    def do_room(self) -> None:
        self.full = False

    def do_join(
        self,
        group: str = "g",
        member: str = "",
        instance: str = "",
        client: str = "c",
        v: str = "9",
        session: str = "10000",
        rebalance: str = "60000",
        type: str = "consumer",
        protocols: str = "range:t",
    ) -> None:
        if not member:
            self.token += 1
        pairs = [one.split(":", 1) for one in protocols.split(",") if one]
        join = Join(
            self.wait("join"),
            group,
            member,
            instance or None,
            client,
            "/127.0.0.1",
            int(session),
            int(rebalance),
            type,
            tuple((name, subscription(topics) if type == "consumer" else topics.encode()) for name, topics in pairs),
            str(self.token),
            needs_member_id=int(v) >= 4,
            may_skip_assignment=int(v) >= 9,
        )
        self.execute(self.shard.join(join, self.now_ms), join.waiter)

    def do_sync(
        self,
        member: str,
        generation: str,
        group: str = "g",
        instance: str = "",
        type: str = "",
        protocol: str = "",
        assign: str = "",
    ) -> None:
        pairs = [one.split(":", 1) for one in assign.split(",") if one]
        generation = self.own_epoch(group, member) if generation == "own" else generation
        sync = Sync(
            self.wait("sync"),
            group,
            int(generation),
            member,
            instance or None,
            type or None,
            protocol or None,
            tuple((name, value.encode()) for name, value in pairs),
        )
        self.execute(self.shard.sync(sync, self.now_ms), sync.waiter)

    def do_heartbeat(self, member: str, generation: str, group: str = "g", instance: str = "") -> None:
        generation = self.own_epoch(group, member) if generation == "own" else generation
        beat = Heartbeat(self.wait("heartbeat"), group, int(generation), member, instance or None)
        self.execute(self.shard.heartbeat(beat, self.now_ms), beat.waiter)

    def do_topics(self, **counts: str) -> None:
        """All topics that there are, with their numbers of partitions; `t2=..` is a new topic when t was deleted."""
        self.topics.set({name: int(count) for name, count in counts.items()})

    def do_beat(
        self,
        member: str,
        epoch: str,
        group: str = "g",
        instance: str = "",
        topics: str | None = None,
        regex: str | None = None,
        owned: str | None = None,
        assignor: str = "",
        rebalance: str = "",
        rack: str = "",
        client: str = "c",
    ) -> None:
        """ConsumerGroupHeartbeat. `epoch=own`: the one that it has; 0: joining, what must be said is said.
        `owned=t:0+1,u:0`; empty: nothing."""
        epoch = self.own_epoch(group, member) if epoch == "own" else epoch
        joins = int(epoch) == 0
        if joins:
            topics = "t" if topics is None and regex is None else topics
            owned, rebalance = owned or "", rebalance or "30000"
        asked = ConsumerHeartbeat(
            self.wait("beat"),
            group,
            member,
            int(epoch),
            instance or None,
            rack or None,
            client,
            "/127.0.0.1",
            int(rebalance or -1),
            None if topics is None else tuple(name for name in topics.split("+") if name),
            regex,
            assignor or None,
            None if owned is None else self.partitions(owned),
            "token",
        )
        self.execute(self.shard.consumer_heartbeat(asked, self.now_ms), asked.waiter)

    def own_epoch(self, group_id: str, member_id: str) -> str:
        group = self.shard.groups[group_id]
        assert isinstance(group, ConsumerGroup)
        return str(group.members[member_id].epoch)

    def do_members(self, group: str = "g") -> None:
        view = self.shard.describe_consumer(group)
        if view.error is not ErrorCode.NONE:
            self.lines.append(f"{view.error.name} {view.message}")
            return
        self.lines.append(f"{view.state} epoch={view.epoch} assignment={view.assignment_epoch} {view.assignor}")
        for member in view.members:
            static = "" if member.instance_id is None else f"@{member.instance_id}"
            kind = " classic" if member.is_classic else ""
            regex = f" ~{member.regex}" if member.regex else ""
            self.lines.append(
                f"  {member.member_id}{static}{kind} epoch={member.epoch} {'+'.join(member.topics)}{regex}"
                f" has [{self.shown(member.assigned)}] target [{self.shown(member.target)}]"
            )

    def do_compute(self) -> None:
        """What is computed beside the requests is done now."""
        waiting, self.under_way = self.under_way, []
        for work in waiting:
            if isinstance(work, ResolveRegexes):
                resolved = run_to_end(resolve(work.regexes, self.topics.names()))
                version = self.topics.version
                outcome = self.shard.regexes_resolved(work.group_id, resolved, version, self.now_ms)
                self.execute(outcome, None)
                continue
            given = self.shard.assignor_input(work.group_id, work.epoch)
            if given is None:
                self.lines.append("not wanted any more")
                continue
            targets = run_to_end(assign(given))
            for name in targets:
                part = {name: targets[name]}
                self.execute(self.shard.assigned(work.group_id, work.epoch, given, part, self.now_ms, last=False), None)
            self.execute(self.shard.assigned(work.group_id, work.epoch, given, {}, self.now_ms, last=True), None)

    def partitions(self, text: str) -> dict[bytes, frozenset[int]]:
        """`t:0+1,u:2`"""
        found = {}
        for one in text.split(","):
            if one:
                name, _, numbers = one.partition(":")
                found[FakeTopics.id_of(name)] = frozenset(map(int, numbers.split("+")))
        return found

    def shown(self, partitions: Any) -> str:
        """By topic; what is held also since which epoch, where the mapping says so."""
        parts = []
        for uid in sorted(partitions):
            held = partitions[uid]
            numbers = (f"{one}@{held[one]}" if isinstance(held, dict) else str(one) for one in sorted(held))
            parts.append(f"{uid.rstrip(b'-').decode()}:{'+'.join(numbers)}")
        return ",".join(parts)

    def do_leave(self, members: str, group: str = "g") -> None:
        leavers = []
        for one in members.split(","):
            member, _, instance = one.partition("@")
            leavers.append(Leaver(member, instance or None))
        leave = Leave(self.wait("leave"), group, tuple(leavers))
        self.execute(self.shard.leave(leave, self.now_ms), leave.waiter)

    def do_commit(
        self,
        offsets: str,
        group: str = "g",
        member: str = "",
        generation: str = "-1",
        instance: str = "",
        retention: str = "-1",
        v: str = "9",
        metadata: str = "",
    ) -> None:
        asked = []
        for one in offsets.split(","):
            name, partition, offset = one.split(":")
            topic, _, number = name.partition("#")
            known = self.topics.named(topic)
            uid = topic_id(number or "0") if known is None else known.topic_id
            asked.append(OffsetToCommit(topic, uid, int(partition), int(offset), 5, metadata))
        commit = Commit(
            self.wait("commit"),
            group,
            int(generation),
            member,
            instance or None,
            int(retention),
            tuple(asked),
            ErrorCode.GROUP_ID_NOT_FOUND if int(v) >= 9 else ErrorCode.ILLEGAL_GENERATION,
        )
        self.execute(self.shard.commit(commit, self.now_ms), commit.waiter)

    def do_fetch(self, group: str = "g", partitions: str = "") -> None:
        asked = None
        if partitions:
            asked = []
            for one in partitions.split(","):
                name, partition = one.split(":")
                topic, _, number = name.partition("#")
                asked.append((topic, topic_id(number or "0"), int(partition)))
        for topic, partition, offset in self.shard.fetch(group, asked).offsets:
            what = "none" if offset is None else f"{offset.offset} epoch={offset.leader_epoch} '{offset.metadata}'"
            self.lines.append(f"{topic}:{partition} {what}")
        if not self.lines:
            self.lines.append("nothing")

    def do_delete_offsets(self, partitions: str, group: str = "g") -> None:
        pairs = tuple((one.split(":")[0], int(one.split(":")[1])) for one in partitions.split(","))
        command = DeleteOffsets(self.wait("delete-offsets"), group, pairs)
        self.execute(self.shard.delete_offsets(command), command.waiter)

    def do_delete_groups(self, groups: str) -> None:
        command = DeleteGroups(self.wait("delete-groups"), tuple(groups.split(",")))
        self.execute(self.shard.delete_groups(command), command.waiter)

    def do_expire(self) -> None:
        for group_id in list(self.shard.groups):
            self.execute(self.shard.expire(group_id, self.now_ms), None)

    def do_forget_topics(self, existing: str) -> None:
        known = {one.partition("#")[::2] for one in existing.split(",")}
        names = {name for name, _ in known}
        ids = {topic_id(number) for _, number in known if number}
        for group_id in list(self.shard.groups):
            outcome = self.shard.forget_topics(group_id, lambda name, uid: uid in ids if any(uid) else name in names)
            self.execute(outcome, None)

    def do_describe(self, group: str = "g") -> None:
        view = self.shard.describe(group)
        self.lines.append(
            f"{view.error.name} {view.state} type='{view.protocol_type}' protocol='{view.protocol}'"
            f" generation={view.generation} leader='{view.leader}'"
        )
        for member in view.members:
            static = "" if member.instance_id is None else f"@{member.instance_id}"
            self.lines.append(
                f"  {member.member_id}{static} client={member.client_id} host={member.client_host}"
                f" metadata={shown(member.metadata)} assignment={assignment_text(member.assignment)}"
            )

    def do_list(self, states: str = "", types: str = "") -> None:
        wanted = [frozenset(text.split(",")) if text else frozenset() for text in (states, types)]
        for one in self.shard.list_groups(*wanted):
            self.lines.append(f"{one.group_id} {one.protocol_type or '-'} {one.state} {one.type}")
        if not self.lines:
            self.lines.append("nothing")

    def do_advance(self, ms: str) -> None:
        """Timers fire in order of their time; what they set may fire in the same advance."""
        stop = self.now_ms + int(ms)
        while True:
            due = sorted((when, key) for key, when in self.timers.items() if when <= stop)
            if not due:
                break
            when, key = due[0]
            self.now_ms = max(self.now_ms, when)
            del self.timers[key]
            self.lines.append(f"+{int(ms) - (stop - when)} {' '.join(part for part in key if part)}")
            self.execute(self.shard.timer(key, self.now_ms), None, timer=key)
        self.now_ms = stop

    def do_restart(self) -> None:
        """A new leader reads what was persisted, as bytes."""
        self.shard = self.new_shard()
        self.timers = {}
        self.unanswered = {}
        self.under_way = []
        for change in self.persisted:
            key, value = encode(change)
            read = decode(key, value)
            assert read == change
            self.shard.replay(read)
        for group_id in list(self.shard.groups):
            self.execute(self.shard.loaded(group_id, self.now_ms), None)

    def do_rewrite(self) -> None:
        """The log now holds nothing but the live state."""
        keys = [key for group_id in list(self.shard.groups) for key in self.shard.keys(group_id)]
        self.persisted = self.shard.live(keys)
        for change in self.persisted:
            self.lines.append(f"persist {self.change(change)}")

    # -- what happens

    def wait(self, what: str) -> int:
        self.waiter += 1
        self.unanswered[self.waiter] = what
        return self.waiter

    def execute(self, outcome: Outcome, waiter: int | None, timer: TimerKey | None = None) -> None:
        before = {name: group.state for name, group in self.shard.groups.items()}
        if outcome.changes and self.full:
            self.lines.append("refused")
            if waiter is not None:
                del self.unanswered[waiter]
            elif timer is not None:
                self.timers[timer] = self.now_ms + 1000
            return
        for change in outcome.changes:
            self.lines.append(f"persist {self.change(change)}")
        for note in outcome.notes:
            if isinstance(note, AssignmentRun) and not note.epoch:
                self.lines.append(f"{note.group_id}: assigned")
        self.persisted += outcome.changes
        self.shard.apply(outcome)
        for effect in outcome.effects:
            match effect:
                case Reply(number, answer):
                    what = self.unanswered.pop(number)
                    self.answers.append((number, answer))
                    self.lines.append(f"{what} {number}: {self.answer(answer)}")
                case ComputeAssignment() | ResolveRegexes():
                    self.under_way.append(effect)
                    what = "assign" if isinstance(effect, ComputeAssignment) else "resolve"
                    self.lines.append(f"{what} {effect.group_id} {effect[1]}")
                case SetTimer(key, _, True) if key in self.timers:
                    pass
                case SetTimer(key, delay_ms):
                    self.timers[key] = self.now_ms + delay_ms
                    self.lines.append(f"timer {' '.join(part for part in key if part)} in {delay_ms}")
                case CancelTimer(key):
                    if self.timers.pop(key, None) is not None:
                        self.lines.append(f"cancel {' '.join(part for part in key if part)}")
        for name, group in self.shard.groups.items():
            old = before.get(name)
            if old is not group.state:
                self.lines.append(f"{name}: {old.value if old else 'none'} -> {group.state.value}")
        for name in before:
            if name not in self.shard.groups:
                self.lines.append(f"{name}: gone")

    def change(self, change: Change) -> str:
        match change:
            case GroupSaved():
                members = " ".join(
                    f"[{one.member_id}{'@' + one.instance_id if one.instance_id else ''} {shown(one.subscription)}"
                    f" -> {assignment_text(one.assignment)}]"
                    for one in change.members
                )
                return (
                    f"group {change.group_id} type='{change.protocol_type}' generation={change.generation}"
                    f" protocol={change.protocol} leader={change.leader} {members}"
                ).rstrip()
            case GroupRemoved(group_id):
                return f"group {group_id} gone"
            case OffsetCommitted(group_id, topic, partition, value):
                expires = "" if value.expire_timestamp_ms < 0 else f" expires={value.expire_timestamp_ms}"
                uid = f"#{value.topic_id[0]}" if any(value.topic_id) else ""
                return f"offset {group_id} {topic}{uid}:{partition} = {value.offset}{expires}"
            case EpochSaved(group_id, epoch):
                return f"epoch {group_id} = {epoch}"
            case TargetEpochSaved(group_id, epoch, timestamp_ms):
                return f"target epoch {group_id} = {epoch}" + (" at 0" if timestamp_ms == 0 else "")
            case MemberSaved(group_id, member_id):
                static = "" if change.instance_id is None else f"@{change.instance_id}"
                kind = "" if change.classic is None else " classic"
                regex = f" ~{change.regex}" if change.regex else ""
                return f"member {group_id} {member_id}{static}{kind} reads {'+'.join(change.topics)}{regex}"
            case TargetSaved(group_id, member_id, partitions):
                return f"target {group_id} {member_id} = [{self.shown(partitions)}]"
            case CurrentSaved(group_id, member_id, epoch, previous, state, assigned, revoking):
                lost = f" to give up [{self.shown(revoking)}]" if revoking else ""
                return (
                    f"current {group_id} {member_id} epoch={epoch}<{previous} {MemberState(state).name}"
                    f" [{self.shown(assigned)}]{lost}"
                )
            case RegexSaved(group_id, regex, topics):
                return f"regex {group_id} {regex} = {'+'.join(topics)}"
            case EpochRemoved(group_id):
                return f"epoch {group_id} gone"
            case TargetEpochRemoved(group_id):
                return f"target epoch {group_id} gone"
            case MemberRemoved(group_id, name) | TargetRemoved(group_id, name) | CurrentRemoved(group_id, name):
                return f"{type(change).__name__.removesuffix('Removed').lower()} {group_id} {name} gone"
            case RegexRemoved(group_id, regex):
                return f"regex {group_id} {regex} gone"
            case TopicsOfOldVersion():
                raise AssertionError("nobody writes it")
            case _:
                return f"offset {change.group_id} {change.topic}:{change.partition} gone"

    def answer(self, answer: Any) -> str:
        match answer:
            case JoinAnswer():
                text = f"{answer.error.name} member={answer.member_id}"
                if answer.generation >= 0:
                    text += f" generation={answer.generation} protocol={answer.protocol} leader={answer.leader}"
                if answer.skip_assignment:
                    text += " skip"
                for member in answer.members:
                    static = "" if member.instance_id is None else f"@{member.instance_id}"
                    text += f" [{member.member_id}{static} {shown(member.metadata)}]"
                return text
            case SyncAnswer():
                text = f" protocol={answer.protocol} {assignment_text(answer.assignment)}"
                return answer.error.name + (text if answer.error is ErrorCode.NONE else "")
            case ConsumerHeartbeatAnswer():
                if answer.error is not ErrorCode.NONE:
                    return f"{answer.error.name} {answer.message}"
                told = "" if answer.assignment is None else f" [{self.shown(answer.assignment)}]"
                return f"NONE member={answer.member_id} epoch={answer.member_epoch}{told}"
            case LeaveAnswer():
                return " ".join(
                    [answer.error.name, *(f"[{one.member_id}@{one.instance_id} {e.name}]" for one, e in answer.members)]
                )
            case CommitAnswer() | DeleteGroupsAnswer():
                return " ".join(error.name for error in answer.errors)
            case DeleteOffsetsAnswer():
                return " ".join(error.name for error in (answer.error, *answer.errors))
            case _:
                return ErrorCode(answer).name
