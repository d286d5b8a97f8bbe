"""The four codecs of record batches, as the Java clients write and read them.

`compress` and `decompress` are blocking: callers with an event loop run big inputs elsewhere. What `decompress` returns
is never longer than `max_size`, and while it works it holds little more than that, whatever the input claims.

gzip: RFC 1952, members may follow each other. snappy: xerial's framing (`org.xerial.snappy.SnappyOutputStream`), which
is what Java writes; plain blocks, as librdkafka and Sarama write them, are read too. lz4: one frame of independent
blocks (`org.apache.kafka.common.compress.Lz4BlockInputStream` reads no other); linked blocks are read. zstd: frames.
"""

import zlib
from collections.abc import Callable
from enum import IntEnum
from struct import Struct
from struct import error as StructError

import cramjam
import lz4.frame
import zstandard

from protocol import Buffer
from protocol.errors import ProtocolError

_BLOCK = 128 * 1024
_GZIP_INPUT = 16 * 1024
_LZ4_INPUT = 64 * 1024
_XERIAL_BLOCK = 32 * 1024
_XERIAL_HEAD = b"\x82SNAPPY\0"
_XERIAL_HEADER = _XERIAL_HEAD + b"\0\0\0\1\0\0\0\1"  # version 1, readable by version 1
# The densest element of the format is a copy of 64 bytes encoded in three.
_SNAPPY_RATIO_MAX = 22
# libzstd's own limit for readers that were told nothing; level 22 writes windows of this size.
_ZSTD_WINDOW_MAX = 1 << 27
_ZSTD_MAGIC = 0xFD2FB528
_ZSTD_SKIPPABLE = 0x184D2A50

_INT32 = Struct(">i")
_UINT32_LE = Struct("<I")


class Codec(IntEnum):
    """The three lowest bits of a batch's attributes."""

    NONE = 0
    GZIP = 1
    SNAPPY = 2
    LZ4 = 3
    ZSTD = 4


def compress(codec: int, data: Buffer, level: int | None = None) -> bytes:
    """`data` in the codec's framing. `level` is the library's own scale, None its default; snappy has none."""
    if codec == Codec.NONE:
        return bytes(data)
    if codec == Codec.GZIP:
        gzip = zlib.compressobj(-1 if level is None else level, zlib.DEFLATED, 31)
        return gzip.compress(data) + gzip.flush()
    if codec == Codec.SNAPPY:
        return _compress_xerial(data)
    if codec == Codec.LZ4:
        # 64 KiB blocks: a Java reader allocates one block per open batch.
        framed: bytes = lz4.frame.compress(
            data,
            compression_level=level or 0,
            block_size=lz4.frame.BLOCKSIZE_MAX64KB,
            block_linked=False,
            store_size=True,
        )
        return framed
    if codec == Codec.ZSTD:
        return zstandard.ZstdCompressor(level=3 if level is None else level).compress(data)
    raise ProtocolError(f"unknown compression codec {codec}")


def decompress(codec: int, data: Buffer, max_size: int) -> Buffer:
    """The bytes that `data` stands for (`data` itself for `NONE`).

    ProtocolError: unknown codec, damaged, cut off, followed by other bytes, or longer than `max_size` decompressed.
    """
    if codec == Codec.NONE:
        if len(data) > max_size:
            raise _too_long(max_size)
        return data
    decoder = _DECODERS.get(codec)
    if decoder is None:
        raise ProtocolError(f"unknown compression codec {codec}")
    return decoder(data, max_size)


def _too_long(max_size: int) -> ProtocolError:
    return ProtocolError(f"decompressed records are longer than {max_size} bytes")


def _decompress_gzip(data: Buffer, max_size: int) -> bytearray:
    out = bytearray()
    view = memoryview(data)
    member = zlib.decompressobj(31)
    try:
        # In slices, because zlib copies the rest of its input whenever a piece of output or a member ends.
        for start in range(0, len(view), _GZIP_INPUT):
            rest: Buffer = view[start : start + _GZIP_INPUT]
            while rest:
                if member.eof:
                    member = zlib.decompressobj(31)
                out += member.decompress(rest, _BLOCK)
                if len(out) > max_size:
                    raise _too_long(max_size)
                rest = member.unused_data if member.eof else member.unconsumed_tail
        while not member.eof:
            piece = member.decompress(b"", _BLOCK)
            if not piece:
                raise ProtocolError("gzip data is cut off")
            out += piece
            if len(out) > max_size:
                raise _too_long(max_size)
    except zlib.error as error:
        raise ProtocolError(f"gzip data is damaged: {error}") from None
    return out


def _compress_xerial(data: Buffer) -> bytes:
    view = memoryview(data)
    parts: list[Buffer] = [_XERIAL_HEADER]
    for start in range(0, len(view), _XERIAL_BLOCK):
        block = memoryview(cramjam.snappy.compress_raw(view[start : start + _XERIAL_BLOCK]))
        parts += (_INT32.pack(len(block)), block)
    return b"".join(parts)


def _decompress_snappy(data: Buffer, max_size: int) -> bytearray:
    out = bytearray()
    view = memoryview(data)
    end = len(view)
    if end < 16 or view[:8] != _XERIAL_HEAD:
        _append_snappy(out, view, max_size)
        return out
    pos = 0
    while pos < end:
        # Streams may follow each other: a header's first four bytes are no possible length.
        if view[pos : pos + 8] == _XERIAL_HEAD:
            # Any version will do, as in Java: some writers have its bytes in the wrong order.
            if end - pos < 16 or _INT32.unpack_from(view, pos + 8)[0] < 1:
                raise ProtocolError("snappy data has no valid xerial header")
            pos += 16
            continue
        if end - pos < 4:
            raise ProtocolError("snappy data is cut off")
        size = _INT32.unpack_from(view, pos)[0]
        pos += 4
        if not 0 <= size <= end - pos:
            raise ProtocolError(f"snappy block of {size} bytes, {end - pos} are left")
        _append_snappy(out, view[pos : pos + size], max_size)
        pos += size
    return out


def _append_snappy(out: bytearray, block: memoryview, max_size: int) -> None:
    size = _snappy_size(block)
    if len(out) + size > max_size:
        raise _too_long(max_size)
    # The library allocates what the block claims, so the claim must be possible.
    if size > len(block) * _SNAPPY_RATIO_MAX:
        raise ProtocolError(f"snappy block of {len(block)} bytes claims to hold {size}")
    try:
        out += memoryview(cramjam.snappy.decompress_raw(block))
    except cramjam.DecompressionError as error:
        raise ProtocolError(f"snappy data is damaged: {error}") from None


def _snappy_size(block: memoryview) -> int:
    """The uncompressed length at the beginning of a block: a varint."""
    value = shift = 0
    for byte in block[:5]:
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
        shift += 7
    raise ProtocolError("snappy block has no length")


def _decompress_lz4(data: Buffer, max_size: int) -> bytearray:
    out = bytearray()
    view = memoryview(data)
    frame = lz4.frame.LZ4FrameDecompressor()
    start = 0
    try:
        while not frame.eof:
            # It copies what it did not use yet, hence slices; it asks for the next when it has used one.
            rest = b""
            if frame.needs_input:
                if start >= len(view):
                    raise ProtocolError("lz4 data is cut off")
                rest = bytes(view[start : start + _LZ4_INPUT])
                start += _LZ4_INPUT
            out += frame.decompress(rest, _BLOCK)
            if len(out) > max_size:
                raise _too_long(max_size)
    except RuntimeError as error:
        raise ProtocolError(f"lz4 data is damaged: {error}") from None
    if frame.unused_data or start < len(view):
        raise ProtocolError("other bytes follow the lz4 frame")
    return out


def _decompress_zstd(data: Buffer, max_size: int) -> bytearray:
    # The stream reader takes an unfinished frame for the end of the data: look at the frames first.
    _check_zstd_frames(memoryview(data))
    out = bytearray()
    context = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_MAX)
    try:
        with context.stream_reader(data, read_across_frames=True) as reader:
            while piece := reader.read(_BLOCK):
                out += piece
                if len(out) > max_size:
                    raise _too_long(max_size)
    except zstandard.ZstdError as error:
        raise ProtocolError(f"zstd data is damaged: {error}") from None
    return out


def _check_zstd_frames(data: memoryview) -> None:
    """Follows the lengths of all frames and blocks (RFC 8878, 3.1); they must end where the data ends."""
    pos, end = 0, len(data)
    try:
        while pos < end:
            magic = _UINT32_LE.unpack_from(data, pos)[0]
            if magic & 0xFFFFFFF0 == _ZSTD_SKIPPABLE:
                pos += 8 + _UINT32_LE.unpack_from(data, pos + 4)[0]
                continue
            if magic != _ZSTD_MAGIC:
                raise ProtocolError("zstd data is damaged: no frame")
            descriptor = data[pos + 4]
            single_segment = descriptor >> 5 & 1
            content_size = (single_segment, 2, 4, 8)[descriptor >> 6]
            pos += 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3] + content_size
            last = 0
            while not last:
                header = data[pos] | data[pos + 1] << 8 | data[pos + 2] << 16
                last = header & 1
                pos += 3 + (1 if header & 6 == 2 else header >> 3)
            pos += descriptor & 4  # the checksum's four bytes
    except (IndexError, StructError):
        raise ProtocolError("zstd data is cut off") from None
    if pos != end or not end:
        raise ProtocolError("zstd data is cut off")


_DECODERS: dict[int, Callable[[Buffer, int], bytearray]] = {
    Codec.GZIP: _decompress_gzip,
    Codec.SNAPPY: _decompress_snappy,
    Codec.LZ4: _decompress_lz4,
    Codec.ZSTD: _decompress_zstd,
}
