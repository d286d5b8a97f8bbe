"""InitProducerId v0 to v5: who a producer is.

Ids come from the controller in blocks. Without a transactional id every answer is a new id with epoch 0, also for a
producer that had one (KIP-360 concerns transactional producers: an idempotent one that lost its state begins anew).
With one, its coordinator answers: whoever had the id before is fenced, and his transaction aborted first
(CONCURRENT_TRANSACTIONS: come again). v3: a producer that goes on after an error says who it was. v4: PRODUCER_FENCED
instead of INVALID_PRODUCER_EPOCH. Not implemented: two-phase commit (v6, which Kafka 4.3 does not advertise either).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from broker.transactions.model import InitProducer
from controller.commands import AllocateProducerIds, ProducerIdBlock
from protocol import messages as m
from protocol.errors import ErrorCode, KafkaError

if TYPE_CHECKING:
    from broker.services import RequestContext
    from controller.client import ControllerClient

NO_ID = -1
FENCED_FROM = 4


class ProducerIds:
    """The block of ids this broker hands out from."""

    def __init__(self, controller: ControllerClient, token: Callable[[int], bytes], *, incarnation: int) -> None:
        self._controller = controller
        self._token = token
        self._incarnation = incarnation
        self._next = self._end = 0
        self._asking = asyncio.Lock()

    def take(self) -> int | None:
        """An id never given before; None when a new block is needed."""
        if self._next == self._end:
            return None
        self._next += 1
        return self._next - 1

    async def get(self) -> int:
        """The same, asking the controller for a block if need be. KafkaError if it refuses."""
        while True:
            producer_id = self.take()
            if producer_id is not None:
                return producer_id
            async with self._asking:
                if self._next == self._end:
                    command = AllocateProducerIds(self._token(16), self._incarnation)
                    block = await self._controller.ask(command)
                    assert isinstance(block, ProducerIdBlock)
                    self._next, self._end = block.first, block.first + block.count


def init_producer_id(
    request: m.InitProducerIdRequest, context: RequestContext
) -> m.InitProducerIdResponse | Awaitable[m.InitProducerIdResponse]:
    """A producer id for an idempotent producer, or the epoch of a transactional one."""
    if (request.producer_id == NO_ID) != (request.producer_epoch == NO_ID):
        return _refused(ErrorCode.INVALID_REQUEST)
    if request.transactional_id is not None:
        return _transactional(request, request.transactional_id, context)
    producer_id = context.services.producer_ids.take()
    if producer_id is not None:
        return m.InitProducerIdResponse(producer_id=producer_id, producer_epoch=0)
    return _from_new_block(context)


async def _transactional(
    request: m.InitProducerIdRequest, transactional_id: str, context: RequestContext
) -> m.InitProducerIdResponse:
    answer = await context.services.coordinators.init_producer(
        InitProducer(0, transactional_id, request.transaction_timeout_ms, request.producer_id, request.producer_epoch)
    )
    error = answer.error
    if error is ErrorCode.PRODUCER_FENCED and context.api_version < FENCED_FROM:
        error = ErrorCode.INVALID_PRODUCER_EPOCH
    return m.InitProducerIdResponse(
        error_code=error, producer_id=answer.producer_id, producer_epoch=answer.producer_epoch
    )


async def _from_new_block(context: RequestContext) -> m.InitProducerIdResponse:
    try:
        producer_id = await context.services.producer_ids.get()
    except KafkaError as error:
        # The code that clients wait and retry on, as when Kafka's controller does not answer.
        return _refused(error.code if error.retriable else ErrorCode.COORDINATOR_LOAD_IN_PROGRESS)
    return m.InitProducerIdResponse(producer_id=producer_id, producer_epoch=0)


def _refused(code: ErrorCode) -> m.InitProducerIdResponse:
    return m.InitProducerIdResponse(error_code=code, producer_id=NO_ID, producer_epoch=NO_ID)
