"""The group coordinator of one broker: every partition of `__consumer_offsets` that it leads is one `ShardRuntime`.

Routing and error mapping are those of Kafka's GroupCoordinatorService.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from uuid import UUID

from broker.coordination.coordinators import Coordinators, answered
from broker.coordination.runtime import CoordinatorLog, Refusal
from broker.coordination.topic import InternalTopic
from broker.groups.configs import GROUP_RESOURCE, times_in_force
from broker.groups.consumer import ConsumerGroup
from broker.groups.consumer_model import (
    ConsumerConfig,
    ConsumerGroupView,
    ConsumerHeartbeat,
    ConsumerHeartbeatAnswer,
    GroupTimes,
    MigrationPolicy,
)
from broker.groups.model import (
    Commit,
    CommitAnswer,
    DeleteGroups,
    DeleteGroupsAnswer,
    DeleteOffsets,
    DeleteOffsetsAnswer,
    FetchAnswer,
    GroupConfig,
    GroupView,
    Heartbeat,
    Join,
    JoinAnswer,
    Leave,
    LeaveAnswer,
    ListAnswer,
    ListedGroup,
    Outcome,
    Sync,
    SyncAnswer,
    TxnCommit,
)
from broker.groups.runtime import ShardRuntime
from broker.groups.topics import ClusterTopics
from broker.transactions.verification import TransactionVerifier, verify
from controller.facts import Fact, StateReloaded, TopicDeleted
from protocol.errors import ErrorCode, KafkaError

if TYPE_CHECKING:
    from broker.background import Tasks
    from broker.log import Log
    from broker.log_table import LogTable
    from broker.settings import Settings
    from controller.client import ControllerClient
    from storage.clock import Clock

OFFSETS_TOPIC = "__consumer_offsets"
OFFSETS_TOPIC_CONFIGS = (
    ("cleanup.policy", "compact"),
    ("compression.type", "producer"),
    ("segment.bytes", str(100 * 1024 * 1024)),
)

_Command = TypeVar("_Command", Join, Sync, Heartbeat, Leave, Commit, DeleteOffsets, ConsumerHeartbeat)


class GroupCounts(NamedTuple):
    partitions_active: int
    partitions_loading: int
    groups: int
    consumer_groups: int
    """Of those, the ones of KIP-848."""
    offsets: int
    rewrites: int


class GroupCoordinators(Coordinators[ShardRuntime]):
    """All group partitions of this broker. Requests carry waiter 0; the number is given here."""

    def __init__(
        self,
        settings: Settings,
        controller: ControllerClient,
        clock: Clock,
        token: Callable[[int], bytes],
        tasks: Tasks,
        advance_start: Callable[[CoordinatorLog, int], Awaitable[None]],
    ) -> None:
        """`advance_start(log, offset)` seals and commits up to `offset` where needed, then has the controller move the
        log start there; KafkaError or StoreError: try again later."""
        topic = InternalTopic(
            OFFSETS_TOPIC,
            partitions=settings.offsets_topic_num_partitions,
            replication_factor=settings.offsets_topic_replication_factor,
            configs=OFFSETS_TOPIC_CONFIGS,
            controller=controller,
            token=token,
            tasks=tasks,
        )
        super().__init__(topic, [(settings.offsets_retention_check_interval_ms, self._expire)])
        self.settings = settings
        self.config = group_config(settings)
        self.controller = controller
        self.clock = clock
        self.token = token
        self.tasks = tasks
        self.advance_start = advance_start
        self.topics = ClusterTopics(lambda: controller.state)

    # -- leadership

    def follow(self, logs: LogTable) -> None:
        """Also follow the markers of transactions in the logs, and forget offsets of deleted topics."""
        super().follow(logs)
        logs.before_marker(self._before_marker)
        logs.on_marker(self._marked)
        self.controller.subscribe(self._facts)

    def load(self, log: CoordinatorLog) -> ShardRuntime:
        """The shard of one partition."""
        return ShardRuntime(
            log,
            self.config,
            self.clock,
            self.tasks,
            batch_bytes_max=self.settings.message_max_bytes,
            advance_start=self.advance_start,
            topic_exists=self._topic_exists,
            topics=self.topics,
            times_of=self._times_of,
        )

    def _before_marker(self, marked: Log) -> None:
        """KafkaError while the log is being read, which would miss the marker. The code is one on which Kafka's tools
        try again too."""
        shard = self.partitions.get(marked.partition)
        if marked.topic == OFFSETS_TOPIC and (shard is None or not shard.active):
            raise KafkaError(
                ErrorCode.NOT_LEADER_OR_FOLLOWER, f"the group coordinator of partition {marked.partition} is not active"
            )

    def _marked(self, marked: Log, producer_id: int, committed: bool) -> None:
        if marked.topic == OFFSETS_TOPIC:
            self.partitions[marked.partition].marked(producer_id, committed)

    def _facts(self, facts: Sequence[Fact]) -> None:
        self.topics.on_facts(facts)
        if any(isinstance(fact, TopicDeleted | StateReloaded) for fact in facts):
            for shard in self.partitions.values():
                shard.forget_deleted_topics()

    def _times_of(self, group_id: str) -> GroupTimes:
        return times_in_force(self.controller.state.configs.get((GROUP_RESOURCE, group_id), {}), self.settings)

    def _topic_exists(self, name: str, topic_id: bytes) -> bool:
        state = self.controller.state
        return topic_id in state.topic_by_id if any(topic_id) else name in state.topics

    def _expire(self) -> None:
        for shard in self.partitions.values():
            shard.expire()

    # -- groups

    def new_token(self) -> str:
        """Text of a random UUID, which makes a member id unique."""
        return str(UUID(bytes=self.token(16), version=4))

    def join(self, join: Join) -> asyncio.Future[JoinAnswer]:
        """Answers when the member is to know its generation: often only after all have joined."""
        if not join.group_id:
            return answered(JoinAnswer(ErrorCode.INVALID_GROUP_ID, join.member_id))
        return self._submit(
            join,
            lambda shard, command: shard.shard.join(command, self.clock.now_ms()),
            lambda error: JoinAnswer(error, join.member_id),
        )

    def sync(self, sync: Sync) -> asyncio.Future[SyncAnswer]:
        """Answers when the leader's assignment is durable."""
        if not sync.group_id:
            return answered(SyncAnswer(ErrorCode.INVALID_GROUP_ID))
        return self._submit(
            sync, lambda shard, command: shard.shard.sync(command, self.clock.now_ms()), lambda error: SyncAnswer(error)
        )

    def heartbeat(self, heartbeat: Heartbeat) -> asyncio.Future[ErrorCode]:
        """While the group is being loaded, its members are only told that all is well, as in Kafka."""
        if not heartbeat.group_id:
            return answered(ErrorCode.INVALID_GROUP_ID)
        return self._submit(
            heartbeat,
            lambda shard, command: shard.shard.heartbeat(command, self.clock.now_ms()),
            lambda error: ErrorCode.NONE if error is ErrorCode.COORDINATOR_LOAD_IN_PROGRESS else error,
        )

    def leave(self, leave: Leave) -> asyncio.Future[LeaveAnswer]:
        if not leave.group_id:
            return answered(LeaveAnswer(ErrorCode.INVALID_GROUP_ID))
        return self._submit(
            leave,
            lambda shard, command: shard.shard.leave(command, self.clock.now_ms()),
            lambda error: LeaveAnswer(error),
        )

    def consumer_heartbeat(self, asked: ConsumerHeartbeat) -> asyncio.Future[ConsumerHeartbeatAnswer]:
        """Answers when what it says is durable; it never waits for other members."""
        return self._submit(
            asked,
            lambda shard, command: shard.shard.consumer_heartbeat(command, self.clock.now_ms()),
            lambda error: ConsumerHeartbeatAnswer(error),
        )

    def describe_consumer(self, group_id: str) -> asyncio.Future[ConsumerGroupView]:
        """Plain data of one consumer group."""

        def refusal(error: ErrorCode) -> ConsumerGroupView:
            return ConsumerGroupView(error, group_id)

        shard = self.runtime_for(group_id)
        if shard is None:
            return answered(refusal(ErrorCode.NOT_COORDINATOR))
        return shard.look((group_id,), lambda: shard.shard.describe_consumer(group_id), refusal)

    def describe(self, group_id: str) -> asyncio.Future[GroupView]:
        """Plain data of one group; an unknown one is Dead."""

        def refusal(error: ErrorCode) -> GroupView:
            return GroupView(error, group_id, "")

        shard = self.runtime_for(group_id)
        if shard is None:
            return answered(refusal(ErrorCode.NOT_COORDINATOR))
        return shard.look((group_id,), lambda: shard.shard.describe(group_id), refusal)

    async def list_groups(self, states: Iterable[str] = (), types: Iterable[str] = ()) -> ListAnswer:
        """Groups of all partitions that this broker leads; an error while one of them is loading."""
        wanted_states = frozenset(state.lower() for state in states)
        wanted_types = frozenset(type.lower() for type in types)

        def ask(shard: ShardRuntime) -> asyncio.Future[ListAnswer]:
            return shard.look(
                None,
                lambda: ListAnswer(ErrorCode.NONE, tuple(shard.shard.list_groups(wanted_states, wanted_types))),
                lambda error: ListAnswer(error),
            )

        groups: list[ListedGroup] = []
        for waiting in [ask(shard) for _, shard in sorted(self.partitions.items())]:
            answer = await waiting
            if answer.error is ErrorCode.NOT_COORDINATOR:
                continue
            if answer.error is not ErrorCode.NONE:
                return answer
            groups += answer.groups
        return ListAnswer(ErrorCode.NONE, tuple(groups))

    async def delete_groups(self, group_ids: Sequence[str]) -> dict[str, ErrorCode]:
        """One error per group; groups of one partition go together."""
        by_partition: dict[int, list[str]] = {}
        for group_id in dict.fromkeys(group_ids):
            by_partition.setdefault(self.partition_for(group_id), []).append(group_id)
        waiting = [(asked, self._delete_groups(partition, tuple(asked))) for partition, asked in by_partition.items()]
        errors = dict.fromkeys(group_ids, ErrorCode.NONE)
        for asked, future in waiting:
            errors.update(zip(asked, (await future).errors))
        return errors

    def _delete_groups(self, partition: int, group_ids: tuple[str, ...]) -> asyncio.Future[DeleteGroupsAnswer]:
        def refusal(error: ErrorCode) -> DeleteGroupsAnswer:
            return DeleteGroupsAnswer((error,) * len(group_ids))

        shard = self.partitions.get(partition)
        if shard is None:
            return answered(refusal(ErrorCode.NOT_COORDINATOR))
        return shard.submit(
            group_ids, lambda waiter: shard.shard.delete_groups(DeleteGroups(waiter, group_ids)), refusal
        )

    # -- offsets

    def commit(self, commit: Commit) -> asyncio.Future[CommitAnswer]:
        def refusal(error: ErrorCode) -> CommitAnswer:
            return CommitAnswer((error,) * len(commit.offsets))

        shard = self.runtime_for(commit.group_id)
        if shard is None:
            return answered(refusal(ErrorCode.NOT_COORDINATOR))
        return shard.commit(lambda waiter: commit._replace(waiter=waiter), refusal)

    async def txn_commit(
        self, command: TxnCommit, transactional_id: str, verifier: TransactionVerifier, *, implicit: bool
    ) -> CommitAnswer:
        """Offsets that are in force when the producer's transaction is committed. The first ones of a transaction in
        their partition wait for its coordinator's word; `implicit`: which adds the partition."""

        def refusal(error: ErrorCode) -> CommitAnswer:
            return CommitAnswer((error,) * len(command.commit.offsets))

        if not command.commit.group_id:
            return refusal(ErrorCode.INVALID_GROUP_ID)
        shard = self.runtime_for(command.commit.group_id)
        if shard is None:
            return refusal(ErrorCode.NOT_COORDINATOR)
        if not shard.active:
            return refusal(shard.inactive_error)
        producer = command.producer_id, command.producer_epoch
        verification = None
        if not shard.log.producers.in_transaction(*producer):
            verification = shard.log.verifications.begin_own(*producer, implicit, self.clock.now_ms())
            part = (OFFSETS_TOPIC, shard.log.partition)
            refused = await verify(
                verifier,
                transactional_id,
                producer,
                [part],
                implicit=implicit,
                boottime_ms=self.clock.boottime_ms,
                backoff_ms=self.settings.add_partitions_to_txn_retry_backoff_ms,
                backoff_ms_max=self.settings.add_partitions_to_txn_retry_backoff_max_ms,
            )
            if part in refused:
                return refusal(refused[part])
        return await shard.txn_commit(command, verification, refusal)

    def fetch(
        self,
        group_id: str,
        partitions: Sequence[tuple[str, bytes, int]] | None,
        *,
        require_stable: bool,
        member_id: str | None = None,
        member_epoch: int = -1,
    ) -> asyncio.Future[FetchAnswer]:
        """Committed offsets of (topic, topic id or zero, partition), or all, in the name of a member of a consumer
        group or of nobody. Errors are those that consumers of all ages know to retry."""

        def refusal(error: ErrorCode) -> FetchAnswer:
            unavailable = error is ErrorCode.COORDINATOR_NOT_AVAILABLE
            return FetchAnswer(ErrorCode.NOT_COORDINATOR if unavailable else error)

        shard = self.runtime_for(group_id)
        if shard is None:
            return answered(refusal(ErrorCode.NOT_COORDINATOR))

        def look() -> FetchAnswer:
            error = shard.shard.check_fetch(group_id, member_id, member_epoch)
            if error is not ErrorCode.NONE:
                return FetchAnswer(error)
            return shard.shard.fetch(group_id, partitions, require_stable=require_stable)

        return shard.look((group_id,), look, refusal)

    def delete_offsets(self, command: DeleteOffsets) -> asyncio.Future[DeleteOffsetsAnswer]:
        if not command.group_id:
            return answered(DeleteOffsetsAnswer(ErrorCode.INVALID_GROUP_ID))
        return self._submit(
            command, lambda shard, asked: shard.shard.delete_offsets(asked), lambda error: DeleteOffsetsAnswer(error)
        )

    def counts(self) -> GroupCounts:
        """For metrics: what this broker coordinates now."""
        shards = list(self.partitions.values())
        return GroupCounts(
            sum(shard.active for shard in shards),
            sum(not shard.active for shard in shards),
            sum(len(shard.shard.groups) for shard in shards),
            sum(isinstance(group, ConsumerGroup) for shard in shards for group in shard.shard.groups.values()),
            sum(shard.shard.offsets.count for shard in shards),
            sum(shard.rewrites for shard in shards),
        )

    # -- helpers

    def _submit(
        self, command: _Command, decide: Callable[[ShardRuntime, _Command], Outcome], refusal: Refusal
    ) -> asyncio.Future[Any]:
        shard = self.runtime_for(command.group_id)
        if shard is None:
            return answered(refusal(ErrorCode.NOT_COORDINATOR))
        return shard.submit((command.group_id,), lambda waiter: decide(shard, command._replace(waiter=waiter)), refusal)


def group_config(settings: Settings) -> GroupConfig:
    """The settings that the cores need."""
    return GroupConfig(
        initial_rebalance_delay_ms=settings.group_initial_rebalance_delay_ms,
        min_session_timeout_ms=settings.group_min_session_timeout_ms,
        max_session_timeout_ms=settings.group_max_session_timeout_ms,
        max_size=settings.group_max_size,
        offset_metadata_max_bytes=settings.offset_metadata_max_bytes,
        offsets_retention_ms=settings.offsets_retention_minutes * 60_000,
        consumer=ConsumerConfig(
            session_timeout_ms=settings.group_consumer_session_timeout_ms,
            heartbeat_interval_ms=settings.group_consumer_heartbeat_interval_ms,
            assignment_interval_ms=settings.group_consumer_assignment_interval_ms,
            max_size=settings.group_consumer_max_size,
            assignors=settings.consumer_assignors,
            migration_policy=MigrationPolicy(settings.group_consumer_migration_policy),
            regex_refresh_interval_ms=settings.group_consumer_regex_refresh_interval_ms,
        ),
    )
