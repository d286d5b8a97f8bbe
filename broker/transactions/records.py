"""Transactions <-> keys and values of `__transaction_state`, exactly as Kafka 4.3 writes them.

A key begins with its record type (int16, 0), a value with its schema version (int16): 0, or 1 when the feature
`transaction.version` is finalized at 1 or more. Partitions are in order, which Kafka leaves open.
"""

from __future__ import annotations

from struct import Struct
from struct import error as StructError

from broker.transactions.model import (
    TV1,
    Change,
    State,
    Transaction,
    TransactionRemoved,
    TransactionSaved,
)
from protocol import messages as m
from protocol.errors import ProtocolError

VALUE_VERSIONS = (0, 1)
_KEY = 0
_INT16 = Struct(">h")


def log_version(transaction_version: int) -> int:
    """The value's version that a level of `transaction.version` writes."""
    return 1 if transaction_version >= TV1 else 0


def encode(change: Change) -> tuple[bytes, bytes | None]:
    """Key and value; the value of a removal is None (a tombstone)."""
    key = _INT16.pack(_KEY) + m.TransactionLogKey(transactional_id=change.transactional_id).encode(0)
    match change:
        case TransactionRemoved():
            return key, None
        case TransactionSaved(_, value, version):
            return key, _INT16.pack(version) + _value(value, version).encode(version)


def decode(key: bytes | None, value: bytes | None) -> Change | None:
    """The change that a record is; None for a type or version that this version does not know. ProtocolError:
    malformed."""
    try:
        if key is None:
            raise ProtocolError("record of __transaction_state without a key")
        (kind,) = _INT16.unpack_from(key, 0)
        if kind != _KEY:
            return None
        transactional_id = m.TransactionLogKey.decode(key, 0, 2).transactional_id
        if value is None:
            return TransactionRemoved(transactional_id)
        (version,) = _INT16.unpack_from(value, 0)
        if version not in VALUE_VERSIONS:
            return None
        return TransactionSaved(transactional_id, _parse(m.TransactionLogValue.decode(value, version, 2)), version)
    except (StructError, ValueError) as error:
        raise ProtocolError(f"record of __transaction_state with key {key!r}: {error}") from error


def _value(transaction: Transaction, version: int) -> m.TransactionLogValue:
    partitions = None
    if transaction.state is not State.EMPTY:
        by_topic: dict[str, list[int]] = {}
        for topic, partition in sorted(transaction.partitions):
            by_topic.setdefault(topic, []).append(partition)
        partitions = [
            m.TransactionLogValue.PartitionsSchema(topic=topic, partition_ids=ids) for topic, ids in by_topic.items()
        ]
    value = m.TransactionLogValue(
        producer_id=transaction.producer_id,
        producer_epoch=transaction.producer_epoch,
        transaction_timeout_ms=transaction.timeout_ms,
        transaction_status=transaction.state.value,
        transaction_partitions=partitions,
        transaction_last_update_timestamp_ms=transaction.updated_ms,
        transaction_start_timestamp_ms=transaction.started_ms,
    )
    if version >= 1:
        value.previous_producer_id = transaction.previous_producer_id
        value.next_producer_id = transaction.next_producer_id
        value.client_transaction_version = transaction.client_version
    return value


def _parse(value: m.TransactionLogValue) -> Transaction:
    return Transaction(
        producer_id=value.producer_id,
        producer_epoch=value.producer_epoch,
        timeout_ms=value.transaction_timeout_ms,
        state=State(value.transaction_status),
        partitions=frozenset(
            (topic.topic, partition)
            for topic in value.transaction_partitions or ()
            for partition in topic.partition_ids
        ),
        updated_ms=value.transaction_last_update_timestamp_ms,
        started_ms=value.transaction_start_timestamp_ms,
        previous_producer_id=value.previous_producer_id,
        next_producer_id=value.next_producer_id,
        client_version=value.client_transaction_version,
    )
