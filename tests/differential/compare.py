"""Two answers, field by field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from protocol.apis import APIS, ApiKey
from protocol.codec import Data
from protocol.records import BatchHeader, iterate_batches
from tests.differential.allowed import allowed
from tests.differential.values import KINDS, Values

IDENTITY = (
    "name",
    "topic",
    "topic_name",
    "topic_id",
    "partition_index",
    "partition",
    "index",
    "entity_type",
    "user",
    "resource_type",
    "resource_name",
    "config_name",
    "group_id",
    "member_id",
    "transactional_id",
    "producer_id",
    "key",
    "api_key",
    "node_id",
    "feature",
    "mechanism",
)
"""Fields that tell elements of a list apart, where its order means nothing."""

LENGTH, LEADER_EPOCH, CRC, TIMESTAMPS, PRODUCER_ID = (
    slice(8, 12),
    slice(12, 16),
    slice(17, 21),
    slice(27, 43),
    slice(43, 51),
)
COORDINATOR_EPOCH = slice(73, 77)  # in a marker, which is one record: key and value are of fixed size


class Difference(NamedTuple):
    """Where two answers are not alike. `path` is as in `topics[orders].partitions[0].error_code`."""

    path: str
    kafka: Any
    tidelog: Any


def differences(api: ApiKey, version: int, request: Any, kafka: Any, tidelog: Any, values: Values) -> list[Difference]:
    """What differs and is not in the table of allowed differences. None for an answer: the connection was closed."""
    if kafka is None or tidelog is None:
        found = [] if kafka is tidelog else [Difference("connection", _open(kafka), _open(tidelog))]
    else:
        found = list(_compare("", kafka, tidelog, values))
    name = APIS[api].name
    return [one for one in found if not allowed(name, version, request, one)]


def _open(answer: Any) -> str:
    return "closed" if answer is None else "answers"


def _compare(path: str, kafka: Any, ours: Any, values: Values) -> Iterator[Difference]:
    if isinstance(kafka, Data) and isinstance(ours, Data):
        for name in kafka._fields:
            yield from _compare_field(
                f"{path}.{name}" if path else name, name, getattr(kafka, name), getattr(ours, name), values
            )
    elif isinstance(kafka, list) and isinstance(ours, list):
        yield from _compare_lists(path, kafka, ours, values)
    elif kafka != ours:
        yield Difference(path, kafka, ours)


def _compare_field(path: str, name: str, kafka: Any, ours: Any, values: Values) -> Iterator[Difference]:
    if name in KINDS and not isinstance(kafka, list | Data):
        if not values.alike(name, kafka, ours):
            yield Difference(path, kafka, ours)
    elif name == "records":
        yield from _compare_records(path, kafka, ours, values)
    else:
        yield from _compare(path, kafka, ours, values)


def _compare_lists(path: str, kafka: list[Any], ours: list[Any], values: Values) -> Iterator[Difference]:
    key = _identity(kafka or ours)
    if all(isinstance(item, int | str) for item in (*kafka, *ours)):  # partitions, brokers, names: sets, as it were
        if sorted(kafka) != sorted(ours):
            yield Difference(path, kafka, ours)
        return
    if not key:
        if len(kafka) != len(ours):
            yield Difference(f"{path}.length", len(kafka), len(ours))
        for number, (one, other) in enumerate(zip(kafka, ours)):
            yield from _compare(f"{path}[{number}]", one, other, values)
        return
    left = {_key(one, key, values): one for one in kafka}
    right = {tuple(getattr(one, name) for name in key): one for one in ours}
    if len(kafka) != len(ours):
        yield Difference(f"{path}.length", len(kafka), len(ours))
    pairs = [(identity, one, right.pop(identity, None)) for identity, one in left.items()]
    alone = [identity for identity, _, other in pairs if other is None]
    if len(alone) == len(right) == 1 and not KINDS.keys().isdisjoint(key):
        # Of ids that are seen for the first time one on each side is the same one.
        pairs = [(identity, one, right.popitem()[1] if identity in alone else other) for identity, one, other in pairs]
    for identity, one, other in pairs:
        where = f"{path}[{'/'.join(_short(part) for part in identity)}]"
        if other is not None:
            yield from _compare(where, one, other, values)
        else:
            yield Difference(where, one, None)
    for identity, one in right.items():
        yield Difference(f"{path}[{'/'.join(_short(part) for part in identity)}]", None, one)


def _key(item: Data, key: tuple[str, ...], values: Values) -> tuple[Any, ...]:
    return tuple(
        values.counterpart(name, getattr(item, name)) if name in KINDS else getattr(item, name) for name in key
    )


def _short(part: Any) -> str:
    return part.hex() if isinstance(part, bytes) else str(part)


def _identity(items: list[Any]) -> tuple[str, ...]:
    """The fields by which the elements of a list are known; none: by their place."""
    if not items or not isinstance(items[0], Data):
        return ()
    names = tuple(name for name in IDENTITY if name in items[0]._fields)
    # Ids that are seen here for the first time say nothing yet: something else has to name the element.
    plain = tuple(name for name in names if name not in KINDS)
    for candidate in (plain, names):
        keys = [tuple(getattr(item, name) for name in candidate) for item in items]
        if candidate and len(set(keys)) == len(keys):
            return candidate
    return ()


def _compare_records(path: str, kafka: Any, ours: Any, values: Values) -> Iterator[Difference]:
    if kafka is None or ours is None:
        if kafka is not ours:
            yield Difference(path, kafka, ours)
        return
    left, right = list(iterate_batches(_whole(kafka))), list(iterate_batches(_whole(ours)))
    if len(left) != len(right):
        yield Difference(f"{path}.batches", len(left), len(right))
    for number, ((start, one), (begin, other)) in enumerate(zip(left, right)):
        where = f"{path}[{number}]"
        if not values.alike("producer_id", one.producer_id, other.producer_id):
            yield Difference(f"{where}.producer_id", one.producer_id, other.producer_id)
        batch, same = _plain(one, kafka[start : start + one.size]), _plain(other, ours[begin : begin + other.size])
        if batch != same:
            yield Difference(where, batch.hex(), same.hex())


def _whole(records: Any) -> Any:
    """Without the end of what a limit of bytes has cut off: Kafka sends it, and no client reads it."""
    end = 0
    while end + LENGTH.stop <= len(records):
        following = end + LENGTH.stop + int.from_bytes(records[end:][LENGTH], "big")
        if following > len(records):
            break
        end = following
    return records[:end]


def _plain(header: BatchHeader, data: Any) -> bytes:
    """A batch without what a broker chooses: its leader's epoch, its producer's id, and times that it gave itself."""
    batch = bytearray(data)
    for field in (LEADER_EPOCH, CRC, PRODUCER_ID):
        batch[field] = bytes(field.stop - field.start)
    if header.log_append_time or header.is_control:
        batch[TIMESTAMPS] = bytes(16)
    if header.is_control:
        batch[COORDINATOR_EPOCH] = bytes(4)
    return bytes(batch)
