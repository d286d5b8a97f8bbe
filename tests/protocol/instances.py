"""Random messages: any value that a version can say, edges more often than chance would have them."""

import struct
from collections.abc import Iterator
from random import Random  # noqa: TID251
from typing import Any

from protocol import messages as m
from protocol import schema
from protocol.codec import ApiMessage
from protocol.schema import FIXED, Field, Struct

_TEXTS = ("", "a", "topic-1", "größe", "日本", "\U0001f40d", "x" * 126, "x" * 127, "y" * 300)


def every_version() -> Iterator[tuple[type[ApiMessage], int]]:
    """All there is."""
    for name in schema.names():
        cls = getattr(m, name)
        for version in cls.versions:
            yield cls, version


def random_message(cls: type[ApiMessage], version: int, rng: Random) -> Any:
    """Fields that the version has not are left at their defaults."""
    return _fill(cls, cls, cls.schema.root, version, rng)


def _fill(cls: Any, message: type[ApiMessage], struct_: Struct, version: int, rng: Random) -> Any:
    values = {}
    for item in struct_.fields:
        tagged = version in item.tagged and version in message.flexible
        exists = version in item.versions and (not item.tagged or tagged or version not in item.tagged)
        if exists and not (tagged and rng.random() < 0.5):
            values[item.name] = _value(message, item, version, rng)
    return cls(**values)


def _value(message: type[ApiMessage], item: Field, version: int, rng: Random) -> Any:
    if version in item.nullable and rng.random() < 0.25:
        return None
    if item.array:
        count = rng.choice((0, 1, 1, 2, 3) if item.struct else (0, 1, 2, 5, 130))
        return [_single(message, item, version, rng) for _ in range(count)]
    return _single(message, item, version, rng)


def _single(message: type[ApiMessage], item: Field, version: int, rng: Random) -> Any:
    if item.struct is not None:
        return _fill(getattr(message, item.type), message, item.struct, version, rng)
    if item.type == "string":
        return rng.choice(_TEXTS)
    if item.type in ("bytes", "records"):
        return rng.randbytes(rng.choice((0, 1, 126, 127, 500)))
    if item.type == "uuid":
        return rng.randbytes(16)
    if item.type == "bool":
        return rng.random() < 0.5
    if item.type == "float64":
        return rng.choice((0.0, -1.5, 1e300, float("inf"), rng.random()))
    size = struct.calcsize(FIXED[item.type])
    signed = item.type.startswith("int")
    low, high = (-(1 << (8 * size - 1)), (1 << (8 * size - 1)) - 1) if signed else (0, (1 << (8 * size)) - 1)
    return rng.choice((0, 1, low, high, rng.randint(low, high)))
