"""What the generated codecs call. Those named after an error return it, so that the `raise` stands in the source."""

from protocol import Buffer
from protocol.errors import ProtocolError

STRING_MAX = 32767  # bytes, as in Kafka also where the encoding could say more


def finish_varint(data: Buffer, pos: int, first: int) -> tuple[int, int]:
    """The rest of a varint whose first byte is above 127. IndexError if it is cut off."""
    value, shift = first & 0x7F, 7
    while True:
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 128:
            if value > 0xFFFFFFFF:
                raise ProtocolError("varint is longer than 32 bits")
            return value, pos
        shift += 7
        if shift > 28:
            raise ProtocolError("varint is longer than five bytes")


def read_varint(data: Buffer, pos: int) -> tuple[int, int]:
    first = data[pos]
    return (first, pos + 1) if first < 128 else finish_varint(data, pos + 1, first)


def skip_tags(data: Buffer, pos: int, end: int, count: int) -> int:
    if count > 127:
        count, pos = finish_varint(data, pos, count)
    for _ in range(count):
        _, pos = read_varint(data, pos)
        size, pos = read_varint(data, pos)
        if size > end - pos:
            raise cut_off("tagged field", size, end - pos)
        pos += size
    return pos


def cut_off(name: str, count: int, left: int) -> ProtocolError:
    return ProtocolError(f"{name} says {count}, {left} bytes are left")


def not_null(name: str) -> ProtocolError:
    return ProtocolError(f"{name} is null")


def absent_field(name: str) -> ProtocolError:
    return ProtocolError(f"{name} is set, the version has no such field")


def too_long(name: str, count: int) -> ProtocolError:
    return ProtocolError(f"{name} has {count} bytes, a string has at most {STRING_MAX}")


def bad_uuid(name: str) -> ProtocolError:
    return ProtocolError(f"{name} is not 16 bytes")
