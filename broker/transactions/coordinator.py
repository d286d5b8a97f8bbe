"""The transaction coordinator of one broker: every partition of `__transaction_state` that it leads is one
`TransactionRuntime`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from broker.coordination.coordinators import Coordinators, answered
from broker.coordination.runtime import SLICE_RECORDS, CoordinatorLog, Refusal
from broker.coordination.topic import InternalTopic
from broker.transactions.marker_sender import MarkerSender
from broker.transactions.model import (
    AddPartitions,
    EndTxn,
    InitProducer,
    ListAnswer,
    ListedTransaction,
    Outcome,
    PartitionsAnswer,
    ProducerAnswer,
    State,
    TransactionConfig,
    TransactionView,
    VerifyPartitions,
)
from broker.transactions.runtime import TransactionRuntime
from broker.transactions.shard import NeedsProducerId, NewId
from controller.features import TRANSACTION_VERSION
from protocol.errors import ErrorCode, KafkaError

if TYPE_CHECKING:
    from broker.background import Tasks
    from broker.handlers.init_producer_id import ProducerIds
    from broker.log_table import LogTable
    from broker.settings import Settings
    from broker.transactions.abandoned import Abandoned
    from controller.client import ControllerClient
    from storage.clock import Clock

log = logging.getLogger(__name__)

TRANSACTION_TOPIC = "__transaction_state"
TRANSACTION_TOPIC_CONFIGS = (
    ("cleanup.policy", "compact"),
    ("compression.type", "uncompressed"),
    ("segment.bytes", str(100 * 1024 * 1024)),
    ("unclean.leader.election.enable", "false"),
)


FORMAT_LEVEL = 3
"""Brokers of earlier ones neither coordinate transactions nor write markers."""


class TransactionCoordinators(Coordinators[TransactionRuntime]):
    """All partitions of `__transaction_state` of this broker. Commands carry waiter 0; the number is given here."""

    def __init__(
        self,
        settings: Settings,
        controller: ControllerClient,
        clock: Clock,
        token: Callable[[int], bytes],
        tasks: Tasks,
        *,
        advance_start: Callable[[CoordinatorLog, int], Awaitable[None]],
        markers: MarkerSender,
        abandoned: Abandoned,
        producer_ids: ProducerIds,
    ) -> None:
        """`advance_start` as `GroupCoordinators`."""
        topic = InternalTopic(
            TRANSACTION_TOPIC,
            partitions=settings.transaction_state_log_num_partitions,
            replication_factor=settings.transaction_state_log_replication_factor,
            configs=TRANSACTION_TOPIC_CONFIGS,
            controller=controller,
            token=token,
            tasks=tasks,
            format_level=FORMAT_LEVEL,
        )
        super().__init__(
            topic,
            [
                (settings.transaction_abort_timed_out_transaction_cleanup_interval_ms, self._abort_timed_out),
                (settings.transaction_remove_expired_transaction_cleanup_interval_ms, self._expire),
            ],
        )
        self.settings = settings
        self.config = TransactionConfig(settings.transaction_max_timeout_ms, settings.transactional_id_expiration_ms)
        self.controller = controller
        self.clock = clock
        self.tasks = tasks
        self.advance_start = advance_start
        self.markers = markers
        self.abandoned = abandoned
        self.producer_ids = producer_ids
        self.timed_out = 0

    @property
    def version(self) -> int:
        """The level at which `transaction.version` is finalized."""
        return self.controller.state.features.get(TRANSACTION_VERSION, 0)

    # -- leadership

    def follow(self, logs: LogTable) -> None:
        """Also tell the sender of markers who leads what."""
        super().follow(logs)
        self.controller.subscribe(self.markers.on_facts)

    def load(self, log: CoordinatorLog) -> TransactionRuntime:
        """What holds the transactional ids of one partition."""
        return TransactionRuntime(
            log,
            self.config,
            lambda: self.version,
            self.clock,
            self.tasks,
            batch_bytes_max=self.settings.message_max_bytes,
            advance_start=self.advance_start,
            markers=self.markers,
            abandoned=self.abandoned,
        )

    def _abort_timed_out(self) -> None:
        for runtime in self.partitions.values():
            if runtime.active:
                due = runtime.shard.timed_out(self.clock.now_ms())
                if due:
                    runtime.own(self._abort_all(runtime, due), "abort what takes too long")

    async def _abort_all(self, runtime: TransactionRuntime, due: Sequence[str]) -> None:
        """In slices; each is looked at again when it comes to it."""
        for number, transactional_id in enumerate(due, 1):
            await self._abort(runtime, transactional_id)
            if number % SLICE_RECORDS == 0:
                await asyncio.sleep(0)

    async def _abort(self, runtime: TransactionRuntime, transactional_id: str) -> None:
        new_id: NewId = None
        while runtime.active:
            try:
                outcome = runtime.shard.abort_timed_out(transactional_id, self.clock.now_ms(), new_id)
                runtime.execute(outcome)
                self.timed_out += bool(outcome.changes)
                return
            except NeedsProducerId:
                try:
                    new_id = await self.producer_ids.get()
                except KafkaError as error:
                    log.info("no producer id to end the transaction of %s with: %s", transactional_id, error)
                    return
            except KafkaError as error:
                log.info("the transaction of %s cannot be aborted now: %s", transactional_id, error)
                return

    def _expire(self) -> None:
        for runtime in self.partitions.values():
            runtime.expire()

    # -- producers

    async def init_producer(self, command: InitProducer) -> ProducerAnswer:
        """Answers when the producer's epoch is durable, and so everyone before it fenced."""
        if not command.transactional_id:
            return ProducerAnswer(ErrorCode.INVALID_REQUEST)
        return await self._decide(
            command.transactional_id,
            lambda runtime, waiter, new_id: runtime.shard.init_producer(
                command._replace(waiter=waiter), self.clock.now_ms(), new_id
            ),
        )

    async def end(self, command: EndTxn) -> ProducerAnswer:
        """Answers when the decision is durable; its markers follow."""
        if not command.transactional_id:
            return ProducerAnswer(ErrorCode.INVALID_REQUEST)
        return await self._decide(
            command.transactional_id,
            lambda runtime, waiter, new_id: runtime.shard.end(
                command._replace(waiter=waiter), self.clock.now_ms(), new_id
            ),
        )

    async def _decide(
        self, transactional_id: str, decide: Callable[[TransactionRuntime, int, NewId], Outcome]
    ) -> ProducerAnswer:
        new_id: NewId = None
        while True:
            runtime = self.runtime_for(transactional_id)
            if runtime is None:
                return ProducerAnswer(ErrorCode.NOT_COORDINATOR)
            try:
                return await _submit(runtime, transactional_id, decide, new_id)
            except NeedsProducerId:
                try:
                    new_id = await self.producer_ids.get()
                except KafkaError as error:
                    # The code that clients wait and retry on, as when Kafka's controller does not answer.
                    code = error.code if error.retriable else ErrorCode.COORDINATOR_LOAD_IN_PROGRESS
                    return ProducerAnswer(code)

    # -- partitions

    def add(self, command: AddPartitions) -> asyncio.Future[PartitionsAnswer]:
        """Answers when the partitions are durably part of the transaction."""
        if not command.transactional_id:
            return answered(PartitionsAnswer(ErrorCode.INVALID_REQUEST))
        runtime = self.runtime_for(command.transactional_id)
        if runtime is None:
            return answered(PartitionsAnswer(ErrorCode.NOT_COORDINATOR))
        return runtime.submit(
            command.transactional_id,
            lambda waiter: runtime.shard.add_partitions(command._replace(waiter=waiter), self.clock.now_ms()),
            PartitionsAnswer,
        )

    async def add_patiently(self, command: AddPartitions) -> PartitionsAnswer:
        """As `add`; the completion of the transaction before is waited for, up to `add.partitions.to.txn.retry.backoff.
        max.ms`: that takes a few milliseconds, and whoever is told to come again takes twenty or more."""
        answer = await self.add(command)
        runtime = self.runtime_for(command.transactional_id)
        if answer.error is not ErrorCode.CONCURRENT_TRANSACTIONS or runtime is None:
            return answer
        await runtime.until_complete(
            command.transactional_id, self.settings.add_partitions_to_txn_retry_backoff_max_ms / 1000
        )
        return await self.add(command)

    def verify(self, command: VerifyPartitions) -> asyncio.Future[PartitionsAnswer]:
        """Whether partitions are part of the producer's transaction."""
        if not command.transactional_id:
            return answered(PartitionsAnswer(ErrorCode.INVALID_REQUEST))
        runtime = self.runtime_for(command.transactional_id)
        if runtime is None:
            return answered(PartitionsAnswer(ErrorCode.NOT_COORDINATOR))
        return runtime.look(
            (command.transactional_id,), lambda: runtime.shard.verify_partitions(command), PartitionsAnswer
        )

    # -- looking

    def describe(self, transactional_id: str) -> asyncio.Future[TransactionView]:
        """Plain data of one transactional id."""

        def refusal(error: ErrorCode) -> TransactionView:
            return TransactionView(error, transactional_id)

        if not transactional_id:
            return answered(refusal(ErrorCode.INVALID_REQUEST))
        runtime = self.runtime_for(transactional_id)
        if runtime is None:
            return answered(refusal(ErrorCode.NOT_COORDINATOR))
        return runtime.look((transactional_id,), lambda: runtime.shard.describe(transactional_id), refusal)

    async def list_transactions(
        self,
        *,
        states: frozenset[State] | None,
        producer_ids: frozenset[int],
        longer_than_ms: int,
        matches: Callable[[str], bool],
    ) -> ListAnswer:
        """Those of all partitions that this broker leads; an error while one of them is loading."""
        now_ms = self.clock.now_ms()

        def look(runtime: TransactionRuntime) -> asyncio.Future[ListAnswer]:
            return runtime.look(
                None,
                lambda: ListAnswer(
                    ErrorCode.NONE,
                    tuple(
                        runtime.shard.list_transactions(
                            now_ms,
                            states=states,
                            producer_ids=producer_ids,
                            longer_than_ms=longer_than_ms,
                            matches=matches,
                        )
                    ),
                ),
                ListAnswer,
            )

        listed: list[ListedTransaction] = []
        for waiting in [look(runtime) for _, runtime in sorted(self.partitions.items())]:
            answer = await waiting
            if answer.error is ErrorCode.NOT_COORDINATOR:
                continue
            if answer.error is not ErrorCode.NONE:
                return answer
            listed += answer.transactions
        return ListAnswer(ErrorCode.NONE, tuple(listed))

    def by_state(self) -> dict[State, int]:
        """For metrics: transactional ids by state."""
        counts = dict.fromkeys(State, 0)
        for runtime in self.partitions.values():
            for one in runtime.shard.transactions.values():
                counts[one.state] += 1
        return counts


def _submit(
    runtime: TransactionRuntime,
    transactional_id: str,
    decide: Callable[[TransactionRuntime, int, NewId], Outcome],
    new_id: NewId,
) -> asyncio.Future[ProducerAnswer]:
    refusal: Refusal = ProducerAnswer
    return runtime.submit(transactional_id, lambda waiter: decide(runtime, waiter, new_id), refusal)
