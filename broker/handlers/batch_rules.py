"""What a topic asks of a batch before it may be appended.

CreateTime bounds are checked on the first and the greatest timestamp of a batch, not on every record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.errors import ErrorCode, KafkaError, ProtocolError
from protocol.records import BatchHeader, records

if TYPE_CHECKING:
    from broker.log import Log

ZSTD = 4
COMPACTED_BYTES_MAX = 16 * 1024 * 1024
"""Decompressed size of a batch for a compacted topic: its records are looked at on the loop."""

_NO_TIMESTAMP = -1


class InvalidRecords(KafkaError):
    """Single records are at fault: (index in the batch, message)."""

    def __init__(self, code: ErrorCode, message: str, errors: list[tuple[int, str | None]]) -> None:
        super().__init__(code, message)
        self.errors = errors


def check_rules(
    log: Log, header: BatchHeader, buf: bytearray, start: int, stop: int, now_ms: int, version: int
) -> None:
    """What topic and version of the request ask of the sound batch `buf[start:stop]`; KafkaError if it is not so."""
    config = log.config
    if log.internal:
        raise KafkaError(ErrorCode.INVALID_TOPIC_EXCEPTION, f"Cannot append to internal topic {log.topic}")
    size = stop - start
    if size > config.max_message_bytes:
        raise KafkaError(
            ErrorCode.MESSAGE_TOO_LARGE,
            f"The record batch of {size} bytes is larger than max.message.bytes={config.max_message_bytes}",
        )
    if header.base_offset != 0:
        why = f"The base offset of a batch is 0, not {header.base_offset}: the broker gives offsets"
        raise KafkaError(ErrorCode.INVALID_RECORD, why)
    if header.is_control:
        raise KafkaError(ErrorCode.INVALID_RECORD, "Clients are not allowed to write control records")
    if header.codec == ZSTD and version < 7:
        raise KafkaError(
            ErrorCode.UNSUPPORTED_COMPRESSION_TYPE,
            "Produce requests with version below 7 are not allowed to use ZStandard compression",
        )
    if not config.log_append_time:
        _check_timestamps(log, header, now_ms)
    if config.compacted:
        _check_keys(memoryview(buf)[start:stop])


def _check_timestamps(log: Log, header: BatchHeader, now_ms: int) -> None:
    config = log.config
    for timestamp in (header.base_timestamp, header.max_timestamp):
        if timestamp == _NO_TIMESTAMP:
            continue
        oldest, newest = now_ms - config.timestamp_before_max_ms, now_ms + config.timestamp_after_max_ms
        if not oldest <= timestamp <= newest:
            message = f"Timestamp {timestamp} is out of range: it must lie between {oldest} and {newest}"
            raise InvalidRecords(ErrorCode.INVALID_TIMESTAMP, message, [(0, message)])


def _check_keys(batch: memoryview) -> None:
    """Every record of a compacted topic has a key: without one it could never be compacted away."""
    try:
        errors: list[tuple[int, str | None]] = [
            (index, "Compacted topic cannot accept message without key")
            for index, record in enumerate(records(batch, max_size=COMPACTED_BYTES_MAX))
            if record.key is None
        ]
    except ProtocolError as error:
        raise KafkaError(ErrorCode.INVALID_RECORD, f"The records cannot be read: {error}") from None
    if errors:
        raise InvalidRecords(
            ErrorCode.INVALID_RECORD, "One or more records have been rejected: they have no key", errors
        )
