"""Produce v0 to v2: shown by ApiVersions, because clients take that for a sign of codecs, and refused with an error."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from protocol.apis import ApiKey
from protocol.errors import ErrorCode, ProtocolError
from protocol.framing import response_frame

if TYPE_CHECKING:
    from broker.connection import Connection
    from broker.services import Services

_unpack_head = Struct(">hii").unpack_from
_unpack_size = Struct(">h").unpack_from
_unpack_count = Struct(">i").unpack_from
_unpack_partition = Struct(">ii").unpack_from
_pack_count = Struct(">i").pack
_OLD_PARTITION = {0: Struct(">ihq"), 1: Struct(">ihq"), 2: Struct(">ihqq")}
_OLD_PARTITIONS_MAX = 10_000


def refuse_old(
    services: Services, connection: Connection, frame: bytes, pos: int, version: int, correlation_id: int
) -> None:
    """Produce v0 to v2: every partition answers UNSUPPORTED_VERSION in that version's shape."""
    try:
        acks, _, topics = _unpack_head(frame, pos)
        pos += 10
        out = [_pack_count(topics)]
        left = _OLD_PARTITIONS_MAX
        for _ in range(topics):
            (size,) = _unpack_size(frame, pos)
            (count,) = _unpack_count(frame, pos + 2 + size)
            out.append(frame[pos : pos + 6 + size])
            pos += 6 + size
            for _ in range(count):
                partition, size = _unpack_partition(frame, pos)
                pos += 8 + max(size, 0)
                values = (partition, ErrorCode.UNSUPPORTED_VERSION, -1, -1)
                out.append(_OLD_PARTITION[version].pack(*values[: 3 if version < 2 else 4]))
                left -= 1
                if size < -1 or pos > len(frame) or not left:
                    raise ProtocolError("Produce request is cut off")
    except Exception as error:
        raise ProtocolError(f"Produce version {version} cannot be read: {error}") from None
    services.counters.error(ErrorCode.UNSUPPORTED_VERSION)
    if not acks:
        connection.close()
        return
    if version >= 1:
        out.append(_pack_count(0))
    connection.answer(
        response_frame(ApiKey.PRODUCE, version, correlation_id, b"".join(out)), services.counters.produce_latency
    )
