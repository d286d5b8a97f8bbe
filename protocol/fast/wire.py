"""What the hand-written codecs share: strings, varints, tagged fields, and how damage is reported.

The parsers read on without asking whether a fixed field still lies before `end`: positions only grow, so a parser that
stops exactly at `end` never read beyond it, and one that does not refuses the request. They do ask before every slice,
and a count is compared with the bytes left before anything is made for it.
"""

from collections.abc import Sequence
from struct import Struct
from typing import NamedTuple, TypeAlias

from protocol import Buffer
from protocol.errors import ProtocolError
from protocol.framing import read_uvarint, uvarint

#: A topic's name, or its id (16 bytes) in the versions that use ids.
Topic: TypeAlias = str | bytes

STRING_MAX = 32767

_INT16 = Struct(">h")
_ENDPOINT_PORT = Struct(">i")


class NodeEndpoint(NamedTuple):
    """Where a client finds the leader that an answer names (KIP-951)."""

    node_id: int
    host: str
    port: int
    rack: str | None = None


def refuse_version(name: str, version: int) -> ProtocolError:
    return ProtocolError(f"{name} has no version {version}")


def cut_off(what: str, count: int, left: int) -> ProtocolError:
    return ProtocolError(f"{what} says {count}, {left} bytes are left")


def is_null(what: str) -> ProtocolError:
    return ProtocolError(f"{what} is null")


def parse_compact_string(buf: Buffer, pos: int, end: int, what: str) -> tuple[str | None, int]:
    """A string with a varint length, and the position after it. IndexError: the buffer ends before the length."""
    size = buf[pos]
    pos += 1
    if size > 127:
        size, pos = read_uvarint(buf, pos - 1, end)
        if size > STRING_MAX + 1:
            raise cut_off(what, size - 1, end - pos)
    if not size:
        return None, pos
    stop = pos + size - 1
    if stop > end:
        raise cut_off(what, size - 1, end - pos)
    return str(buf[pos:stop], "utf-8"), stop


def parse_string(buf: Buffer, pos: int, end: int, what: str) -> tuple[str | None, int]:
    """A string with an int16 length, and the position after it. struct.error: the buffer ends before the length."""
    size: int = _INT16.unpack_from(buf, pos)[0]
    pos += 2
    if size < 0:
        return None, pos
    stop = pos + size
    if stop > end:
        raise cut_off(what, size, end - pos)
    return str(buf[pos:stop], "utf-8"), stop


def parse_compact_count(buf: Buffer, pos: int, end: int, what: str, least: int) -> tuple[int, int]:
    """The count of an array that is not null, and the position after it; an element has at least `least` bytes."""
    count = buf[pos]
    pos += 1
    if count > 127:
        count, pos = read_uvarint(buf, pos - 1, end)
    if not count:
        raise is_null(what)
    count -= 1
    if count * least > end - pos:
        raise cut_off(what, count, end - pos)
    return count, pos


def _utf8(text: str, what: str) -> bytes:
    data = text.encode()
    if len(data) > STRING_MAX:
        raise ProtocolError(f"{what} has {len(data)} bytes, a string has at most {STRING_MAX}")
    return data


def compact_string(text: str | None, what: str) -> bytes:
    if text is None:
        return b"\0"
    data = _utf8(text, what)
    return uvarint(len(data) + 1) + data


def string(text: str | None, what: str) -> bytes:
    if text is None:
        return b"\xff\xff"
    data = _utf8(text, what)
    return _INT16.pack(len(data)) + data


def tagged_fields(fields: Sequence[tuple[int, bytes]]) -> bytes:
    """A section of tagged fields, given in the order of their tags."""
    if not fields:
        return b"\0"
    parts = [uvarint(len(fields))]
    for tag, data in fields:
        parts += (uvarint(tag), uvarint(len(data)), data)
    return b"".join(parts)


def node_endpoints(endpoints: Sequence[NodeEndpoint]) -> bytes:
    """The tagged section that ends an answer: endpoints under tag 0, or nothing."""
    if not endpoints:
        return b"\0"
    parts = [uvarint(len(endpoints) + 1)]
    for node_id, host, port, rack in endpoints:
        parts += (
            _ENDPOINT_PORT.pack(node_id),
            compact_string(host, "host"),
            _ENDPOINT_PORT.pack(port),
            compact_string(rack, "rack"),
            b"\0",
        )
    return tagged_fields([(0, b"".join(parts))])
