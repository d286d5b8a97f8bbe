"""Markers: the control batches by which a coordinator ends a transaction in every log that is part of it.

A marker is told to be written once it is durable and this broker still had the right to acknowledge it. To write one
again changes nothing: coordinators send until they hear so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from broker.log import Log
from broker.log_table import LogTable
from broker.metrics import Counters
from broker.transactions.verification import Part
from protocol.errors import ErrorCode, KafkaError

APPENDS_PER_STEP = 200
"""Then the event loop goes on with something else."""


class Marker(NamedTuple):
    producer_id: int
    producer_epoch: int
    coordinator_epoch: int
    commit: bool
    transaction_version: int


class _Written:
    """Logs whose markers are appended, until they are validated."""

    def __init__(self) -> None:
        self.pending: dict[Log, int] = {}
        """Log -> end of the last marker."""
        self.lost: set[Log] = set()
        """Closed before: what became of the markers is the next leader's to know."""
        self._complete = False
        self._done = asyncio.Event()

    def add(self, log: Log) -> None:
        self.pending[log] = log.end
        log.waiters[self] = None

    def wake(self) -> None:
        """A log's high watermark rose, or it was closed."""
        for log, end in list(self.pending.items()):
            if log.hw >= end:
                del self.pending[log]
            elif not log.serving:
                del self.pending[log]
                self.lost.add(log)
        if not self.pending and self._complete:
            self._done.set()

    async def wait(self, timeout_s: float) -> None:
        """All are appended: until all is known, or time is over and `pending` has what is not."""
        self._complete = True
        self.wake()
        try:
            async with asyncio.timeout(timeout_s):
                await self._done.wait()
        except TimeoutError:
            pass

    def leave(self, logs: Iterable[Log]) -> None:
        for log in logs:
            log.waiters.pop(self, None)


async def write_markers(
    logs: LogTable, counters: Counters, wanted: Sequence[tuple[Marker, Sequence[Part]]], timeout_s: float
) -> list[dict[Part, ErrorCode]]:
    """Append each marker to these partitions, led here, and wait until all are validated; a result per partition.

    Errors of a partition: UNKNOWN_TOPIC_OR_PARTITION, those of `Log.append_marker`, NOT_LEADER_OR_FOLLOWER and
    REQUEST_TIMED_OUT (the marker may be written or not). Only INVALID_PRODUCER_EPOCH and
    TRANSACTION_COORDINATOR_FENCED are final.
    """
    written = _Written()
    found: list[dict[Part, Log | ErrorCode]] = []
    count = 0
    try:
        for marker, parts in wanted:
            result: dict[Part, Log | ErrorCode] = {}
            found.append(result)
            for part in parts:
                try:
                    log = logs.find.get(part)
                    if log is None:
                        raise logs.refusal(*part)
                    log.append_marker(
                        marker.producer_id,
                        marker.producer_epoch,
                        marker.coordinator_epoch,
                        commit=marker.commit,
                        transaction_version=marker.transaction_version,
                    )
                except KafkaError as error:
                    result[part] = error.code
                else:
                    result[part] = log
                    written.add(log)
                    counters.transaction_markers += 1
                count += 1
                if count % APPENDS_PER_STEP == 0:
                    await asyncio.sleep(0)
        await written.wait(timeout_s)
    finally:
        written.leave(each for result in found for each in result.values() if isinstance(each, Log))
    return [{part: _outcome(written, each) for part, each in result.items()} for result in found]


def _outcome(written: _Written, each: Log | ErrorCode) -> ErrorCode:
    if not isinstance(each, Log):
        return each
    if each in written.lost:
        return ErrorCode.NOT_LEADER_OR_FOLLOWER
    return ErrorCode.REQUEST_TIMED_OUT if each in written.pending else ErrorCode.NONE
