"""The notation: what a line means, and lines that mean nothing."""

import pytest

from protocol import schema
from protocol.schema import SchemaError, _parse, load, names, parse_versions


def parse(text: str) -> schema.Message:
    return _parse([line for line in text.splitlines() if line.strip()])


def test_a_message_in_full() -> None:
    message = parse(
        """message Sample 1-4 flexible 3+ record 7
  id uuid 2+ ignorable
  name string?3+ 2-3 = null
  items []Item?
    size int32 = 0x7fffffff
    other Other? = null #5@3+
  last Item rigid
  struct Other
    on bool = true
"""
    )
    assert (message.versions, message.flexible, message.record_type) == (range(1, 5), range(3, 32768), 7)
    id_, name, items, last = message.root.fields
    assert (id_.versions, id_.ignorable, id_.default, len(id_.nullable)) == (range(2, 32768), True, bytes(16), 0)
    assert (name.versions, name.nullable, name.default) == (range(2, 4), range(3, 32768), None)
    assert (items.array, items.type, items.nullable, items.default) == (True, "Item", range(32768), [])
    assert items.struct is last.struct is message.structs["Item"]
    size, other = message.structs["Item"].fields
    assert size.default == 0x7FFFFFFF
    assert (other.tag, other.tagged, other.struct) == (5, range(3, 32768), message.structs["Other"])
    assert message.structs["Other"].fields[0].default is True
    assert last.rigid


@pytest.mark.parametrize(
    "text",
    [
        "message A 0 fancy 1+",
        "message A 0\n name text",
        "message A 0\n  name text",
        "message A 0\n  item Item",
        "message A 0\n  a int8\n  a int8",
        "message A 0\n    a int8",
        "message A 0\n  a int8 whatever",
        "message A 0\n  a []int8 = 3",
        "message A 0\n  a bytes = ab",
    ],
)
def test_lines_that_mean_nothing(text: str) -> None:
    if text.endswith("Item"):
        assert parse(text).structs["Item"].fields == []  # an empty struct, as some of Kafka's messages are
        return
    with pytest.raises(SchemaError):
        parse(text)


def test_versions() -> None:
    assert [parse_versions(text) for text in ("3", "3-5", "3+")] == [range(3, 4), range(3, 6), range(3, 32768)]


def test_every_message_parses() -> None:
    for name in names():
        message = load(name)
        assert message.name == name
        assert len(message.versions) > 0
        assert all(struct.fields for struct in message.structs.values())
    with pytest.raises(KeyError):
        load("NoSuchMessage")
