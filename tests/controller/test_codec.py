from dataclasses import dataclass
from typing import NamedTuple

import msgpack
import pytest

from controller.codec import Malformed, Registry, UnknownTag


class Pair(NamedTuple):
    left: int
    right: str = "right"


@dataclass(frozen=True)
class Thing:
    number: int
    pairs: tuple[Pair, ...] = ()
    name: str | None = None
    both: tuple[int, bytes] = (0, b"")


@pytest.fixture
def registry() -> Registry:
    registry = Registry("thing")
    registry.register(7, Thing)
    return registry


def through(payload: object) -> object:
    return msgpack.unpackb(msgpack.packb(payload), use_list=False)


def test_round_trip(registry: Registry) -> None:
    thing = Thing(1, (Pair(2, "x"), Pair(3)), "name", (4, b"5"))
    assert registry.decode(through(registry.encode(thing))) == thing
    assert registry.encode(thing)[0] == 7


def test_a_later_field_is_written_only_if_it_says_something() -> None:
    registry = Registry("thing")
    registry.register(7, Thing, first_fields=2)
    old, new = Thing(1, ()), Thing(1, (), "name")
    assert registry.encode(old) == [7, 1, ()] and not registry.says_more(old)
    assert registry.encode(new) == [7, 1, (), "name"] and registry.says_more(new)
    assert registry.encode(Thing(1, both=(1, b""))) == [7, 1, (), None, (1, b"")]
    for thing in (old, new):
        assert registry.decode(through(registry.encode(thing))) == thing
    with pytest.raises(AssertionError, match="grows by fields with defaults"):
        Registry("other").register(7, Thing, first_fields=0)


def test_shorter_payloads_of_older_writers_get_defaults(registry: Registry) -> None:
    assert registry.decode((7, 1)) == Thing(1)
    assert registry.decode((7, 1, ((2,),))) == Thing(1, (Pair(2),))


@pytest.mark.parametrize(
    "payload",
    [(8, 1), (7, 1, (), None, (0, b""), "more"), (7, 1, ((1, "x", "more"),))],
    ids=["tag", "fields", "nested fields"],
)
def test_what_a_newer_version_wrote_is_refused(registry: Registry, payload: object) -> None:
    with pytest.raises(UnknownTag):
        registry.decode(payload)


@pytest.mark.parametrize(
    "payload",
    [None, (), 7, ("7",), (7,), (7, "1"), (7, True), (7, 1, 2), (7, 1, ((),)), (7, 1, (), 3), (7, 1, (), None, (1,))],
)
def test_what_nobody_writes_is_malformed(registry: Registry, payload: object) -> None:
    with pytest.raises(Malformed):
        registry.decode(payload)


def test_tags_are_never_given_twice(registry: Registry) -> None:
    with pytest.raises(AssertionError):
        registry.register(7, Pair)


def test_fields_without_an_encoding_are_a_bug() -> None:
    @dataclass
    class Odd:
        field: dict[str, int]

    with pytest.raises(TypeError):
        Registry("odd").register(1, Odd)
