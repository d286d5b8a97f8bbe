"""Records of `__transaction_state`: the bytes that Kafka 4.3.1's own `TransactionLog` writes for the same values."""

from __future__ import annotations

import pytest

from broker.transactions.model import State, Transaction, TransactionRemoved, TransactionSaved
from broker.transactions.records import decode, encode, log_version
from protocol.errors import ProtocolError

KEY = bytes.fromhex("000000056d792d7478")

EMPTY = Transaction(1000, 0, 60_000, State.EMPTY, frozenset(), 1_700_000_000_000, -1, 1000)
ONGOING = Transaction(
    1000, 5, 60_000, State.ONGOING, frozenset({("orders", 3)}), 1_700_000_000_002, 1_700_000_000_001, 1000
)
FEW = ONGOING._replace(partitions=frozenset({("a", 0), ("a", 2), ("__consumer_offsets", 17)}))
PREPARE = ONGOING._replace(producer_epoch=32767, state=State.PREPARE_COMMIT, next_producer_id=2000)
COMPLETE = ONGOING._replace(
    producer_id=2000,
    producer_epoch=0,
    state=State.COMPLETE_ABORT,
    partitions=frozenset(),
    updated_ms=1_700_000_000_003,
)

GOLDEN = [
    (EMPTY, 0, 0, "000000000000000003e800000000ea6000ffffffff0000018bcfe56800ffffffffffffffff"),
    (
        ONGOING,
        0,
        0,
        "000000000000000003e800050000ea60010000000100066f726465727300000001000000030000018bcfe568020000018bcfe56801",
    ),
    (
        PREPARE,
        0,
        0,
        "000000000000000003e87fff0000ea60020000000100066f726465727300000001000000030000018bcfe568020000018bcfe56801",
    ),
    (COMPLETE, 0, 0, "000000000000000007d000000000ea6005000000000000018bcfe568030000018bcfe56801"),
    (EMPTY, 1, 0, "000100000000000003e800000000ea6000000000018bcfe56800ffffffffffffffff01000800000000000003e8"),
    (
        ONGOING,
        1,
        1,
        "000100000000000003e800050000ea600102076f72646572730200000003000000018bcfe56802"
        "0000018bcfe5680102000800000000000003e802020001",
    ),
    (
        PREPARE,
        2,
        2,
        "000100000000000003e87fff0000ea600202076f72646572730200000003000000018bcfe56802"
        "0000018bcfe5680103000800000000000003e8010800000000000007d002020002",
    ),
    (
        COMPLETE,
        2,
        2,
        "000100000000000007d000000000ea6005010000018bcfe568030000018bcfe5680102000800000000000003e802020002",
    ),
]


@pytest.mark.parametrize(("value", "feature", "client", "data"), GOLDEN)
def test_values_are_kafkas(value: Transaction, feature: int, client: int, data: str) -> None:
    value = value._replace(client_version=client)
    saved = TransactionSaved("my-tx", value, log_version(feature))
    assert encode(saved) == (KEY, bytes.fromhex(data))
    read = decode(KEY, bytes.fromhex(data))
    if saved.log_version == 0:  # without tagged fields
        saved = saved._replace(value=value._replace(previous_producer_id=-1, next_producer_id=-1, client_version=0))
    assert read == saved


def test_partitions_by_topic() -> None:
    _, data = encode(TransactionSaved("my-tx", FEW._replace(client_version=2), 1))
    kafkas = bytes.fromhex(
        "000100000000000003e800050000ea600103026103000000020000000000135f5f636f6e73756d65725f6f6666736574730200000011"
        "000000018bcfe568020000018bcfe5680102000800000000000003e802020002"
    )
    assert data is not None and len(data) == len(kafkas), "the same topics in another order"
    assert decode(KEY, kafkas) == decode(KEY, data)


def test_removal_is_a_tombstone() -> None:
    assert encode(TransactionRemoved("my-tx")) == (KEY, None)
    assert decode(KEY, None) == TransactionRemoved("my-tx")


def test_what_a_newer_version_wrote_is_not_known() -> None:
    assert decode(b"\0\1" + KEY[2:], b"") is None
    assert decode(KEY, b"\0\2anything") is None


def test_every_truncation_is_an_error() -> None:
    _, data = encode(TransactionSaved("my-tx", FEW, 1))
    assert data is not None
    for length in range(len(data)):
        with pytest.raises(ProtocolError):
            decode(KEY, data[:length])
    with pytest.raises(ProtocolError):
        decode(KEY, data[:2] + data[2:].replace(b"\xea\x60\x01", b"\xea\x60\x09", 1))
    with pytest.raises(ProtocolError):
        decode(None, data)
