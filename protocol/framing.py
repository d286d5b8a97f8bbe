"""Frames: the length prefix and the header around every request and response.

A frame is an int32 length and as many bytes. A request's header is api key, api version, correlation id, client id
(header v1) and, from the API's first flexible version on, tagged fields (v2). A response's is the correlation id (v0)
and tagged fields (v1). Which version wears which header is in `protocol.apis`.
"""

from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from protocol import Buffer
from protocol.apis import APIS, CONTROL_KEY
from protocol.errors import ProtocolError

_NEVER = 1 << 15  # above every version
_REQUEST_V2_FROM = {
    k: _NEVER if a.request_header_v2_from is None else a.request_header_v2_from for k, a in APIS.items()
}
_RESPONSE_V1_FROM = {
    k: _NEVER if a.response_header_v1_from is None else a.response_header_v1_from for k, a in APIS.items()
}
_REQUEST_V2_FROM[CONTROL_KEY] = _RESPONSE_V1_FROM[CONTROL_KEY] = _NEVER

_REQUEST = Struct(">hhih")
_RESPONSE_V0 = Struct(">ii")
_RESPONSE_V1 = Struct(">iiB")
_INT32 = Struct(">i")


class RequestHeader(NamedTuple):
    """`body` is the position in the buffer where the request's body begins."""

    api_key: int
    api_version: int
    correlation_id: int
    client_id: str | None
    body: int


def parse_request_header(buf: Buffer, pos: int = 0, end: int | None = None) -> RequestHeader:
    """Reads the header of the frame whose bytes after the length prefix are `buf[pos:end]`.

    Any version of a known API is read, so that an unsupported one can be answered. ProtocolError: unknown api key (its
    header's version is unknown too), or damage; the connection is to be closed then, as Kafka does.
    """
    if end is None:
        end = len(buf)
    if end - pos < 10:
        raise ProtocolError("request header is cut off")
    api_key, api_version, correlation_id, length = _REQUEST.unpack_from(buf, pos)
    v2_from = _REQUEST_V2_FROM.get(api_key)
    if v2_from is None:
        raise ProtocolError(f"unknown api key {api_key}")
    pos += 10
    client_id = None
    if length >= 0:
        stop = pos + length
        if stop > end:
            raise ProtocolError(f"client id of {length} bytes, {end - pos} are left")
        try:
            client_id = str(buf[pos:stop], "utf-8")
        except UnicodeDecodeError:
            raise ProtocolError("client id is not UTF-8") from None
        pos = stop
    if api_version >= v2_from:
        pos = skip_tagged_fields(buf, pos, end)
    return RequestHeader(api_key, api_version, correlation_id, client_id, pos)


def request_frame(api_key: int, api_version: int, correlation_id: int, client_id: str | None, body: Buffer) -> bytes:
    """A whole request, for our own clients and tests. ProtocolError if the client id does not fit."""
    encoded = b"" if client_id is None else client_id.encode()
    try:
        header = _REQUEST.pack(api_key, api_version, correlation_id, -1 if client_id is None else len(encoded))
    except StructError as error:
        raise ProtocolError(f"request header: {error}") from None
    tags = b"\0" if api_version >= _REQUEST_V2_FROM[api_key] else b""
    size = len(header) + len(encoded) + len(tags) + len(body)
    return b"".join((_INT32.pack(size), header, encoded, tags, body))


def response_header(api_key: int, api_version: int, correlation_id: int, body_size: int) -> bytes:
    """Length prefix and header of a response whose body of `body_size` bytes the caller sends after it."""
    if api_version >= _RESPONSE_V1_FROM[api_key]:
        return _RESPONSE_V1.pack(body_size + 5, correlation_id, 0)
    return _RESPONSE_V0.pack(body_size + 4, correlation_id)


def response_frame(api_key: int, api_version: int, correlation_id: int, body: bytes) -> bytes:
    """A whole response: length prefix, header, body."""
    return response_header(api_key, api_version, correlation_id, len(body)) + body


def parse_response_header(
    buf: Buffer, api_key: int, api_version: int, pos: int = 0, end: int | None = None
) -> tuple[int, int]:
    """For our own clients and tests: correlation id and position of the body of a frame without its length prefix."""
    if end is None:
        end = len(buf)
    if end - pos < 4:
        raise ProtocolError("response header is cut off")
    correlation_id: int = _INT32.unpack_from(buf, pos)[0]
    pos += 4
    if api_version >= _RESPONSE_V1_FROM[api_key]:
        pos = skip_tagged_fields(buf, pos, end)
    return correlation_id, pos


def skip_tagged_fields(buf: Buffer, pos: int, end: int) -> int:
    """Position after a section of tagged fields: a count, then tag, size and bytes of each."""
    count, pos = read_uvarint(buf, pos, end)
    if count > (end - pos) // 2:
        raise ProtocolError(f"{count} tagged fields in {end - pos} bytes")
    for _ in range(count):
        _, pos = read_uvarint(buf, pos, end)
        size, pos = read_uvarint(buf, pos, end)
        if size > end - pos:
            raise ProtocolError(f"tagged field of {size} bytes, {end - pos} are left")
        pos += size
    return pos


def read_uvarint(buf: Buffer, pos: int, end: int) -> tuple[int, int]:
    """An unsigned 32-bit varint (at most five bytes) and the position after it."""
    value = shift = 0
    while pos < end:
        byte = buf[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value > 0xFFFFFFFF:
                break
            return value, pos
        shift += 7
        if shift > 28:
            break
    raise ProtocolError("varint is cut off or longer than 32 bits")


def _encode_uvarint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_SMALL = tuple(_encode_uvarint(value) for value in range(1024))


def uvarint(value: int) -> bytes:
    """An unsigned varint; small ones, which nearly all are, from a table."""
    return _SMALL[value] if value < 1024 else _encode_uvarint(value)
