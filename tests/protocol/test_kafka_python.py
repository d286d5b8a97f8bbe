"""Our codecs against those of kafka-python, which reads Kafka's own message definitions: the same bytes both ways."""

import importlib
import pkgutil
import uuid
from random import Random  # noqa: TID251
from typing import Any

import kafka.protocol
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka.protocol.api_data import ApiData
from kafka.protocol.api_message import ApiMessage as TheirMessage

from protocol import messages as m
from protocol import schema
from protocol.codec import ApiMessage
from protocol.schema import Field, Struct
from tests.protocol.instances import random_message


def their_classes() -> dict[str, Any]:
    """kafka-python's classes by message name."""
    found: dict[str, Any] = {}
    for module in pkgutil.walk_packages(kafka.protocol.__path__, "kafka.protocol."):
        if ".old" not in module.name and "generate" not in module.name:
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and issubclass(value, (TheirMessage, ApiData)):
                    found[value.__name__] = value
    return found


THEIRS = their_classes()
SHARED = [name for name in schema.names() if name in THEIRS]


def their_bytes(theirs: Any, version: int) -> bytes:
    if isinstance(theirs, TheirMessage):
        theirs._header = None  # what they decoded without a header does not know that it has none
    return bytes(theirs.encode(version, header=False))


def decode_theirs(name: str, data: bytes, version: int) -> Any:
    return THEIRS[name].decode(data, version, header=False)


def theirs_of(name: str, message: ApiMessage, version: int) -> Any:
    """Their object with the values of ours, built without our bytes."""
    return THEIRS[name](version=version, **values(message, message.schema.root, version, THEIRS[name]))


def values(ours: Any, struct: Struct, version: int, their_class: Any) -> dict[str, Any]:
    """Tagged fields only when set: they write what they were given, Kafka and we leave out a default."""
    default = type(ours)()
    found = {}
    for item in struct.fields:
        one = getattr(ours, item.name)
        if version in item.versions and not (version in item.tagged and one == getattr(default, item.name)):
            name = item.name if item.name in their_class._struct.fields else "authorized_operations"
            found[name] = value(one, item, version, their_class)
    return found


def value(ours: Any, item: Field, version: int, their_class: Any) -> Any:
    if isinstance(ours, list):
        return [value(one, item, version, their_class) for one in ours]
    if ours is not None and item.struct:
        made = their_class._struct.fields[item.name].data_class
        return made(version=version, **values(ours, item.struct, version, made))
    if item.name not in their_class._struct.fields or their_class._struct.fields[item.name]._type_str == "bitfield":
        return {bit for bit in range(32) if ours >> bit & 1}
    if item.type == "uuid":
        return uuid.UUID(bytes=ours)
    return bytes(ours) if isinstance(ours, memoryview) else ours


def test_they_know_most_of_the_messages() -> None:
    assert len(SHARED) >= 106


@pytest.mark.parametrize("name", SHARED)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_the_same_bytes_both_ways(name: str, seed: int) -> None:
    rng = Random(seed)
    ours = getattr(m, name)
    for version in ours.versions:
        if version > THEIRS[name].max_version:
            continue
        for _ in range(3):
            message = random_message(ours, version, rng)
            if name == "ApiVersionsResponse":
                message.error_code = 0  # any error is read as v0 there, whatever the version
            encoded = message.encode(version)
            read_by_them = decode_theirs(name, encoded, version)
            assert their_bytes(read_by_them, version) == encoded, version
            written_by_them = their_bytes(theirs_of(name, message, version), version)
            assert written_by_them == encoded, version
            assert ours.decode(written_by_them, version) == message
