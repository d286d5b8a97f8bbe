"""The codecs: round trips, other writers and readers, damage, bombs."""

import gzip
import random  # noqa: TID251
import struct
import tracemalloc
import zlib
from functools import cache

import cramjam
import lz4.frame
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka import codec as kafka_codec

from protocol.compression import Codec, compress, decompress
from protocol.errors import ProtocolError

COMPRESSED = [codec for codec in Codec if codec is not Codec.NONE]
KAFKA_PYTHON = {
    Codec.GZIP: (kafka_codec.gzip_encode, kafka_codec.gzip_decode),
    Codec.SNAPPY: (kafka_codec.snappy_encode, kafka_codec.snappy_decode),
    Codec.LZ4: (kafka_codec.lz4_encode, kafka_codec.lz4_decode),
    Codec.ZSTD: (kafka_codec.zstd_encode, kafka_codec.zstd_decode),
}
MIB = 1 << 20


def mixed(size: int) -> bytes:
    """Neither random nor constant, the same every time."""
    source = random.Random(size)
    return b"".join(source.randbytes(7) + b"the same thing again " * 3 for _ in range(size // 70 + 1))[:size]


SAMPLES = [b"", b"a", b"abc" * 5, mixed(1000), bytes(100_000), mixed(100_000), random.Random(1).randbytes(200_000)]


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("data", SAMPLES, ids=len)
def test_round_trip(codec: Codec, data: bytes) -> None:
    packed = compress(codec, data)
    assert decompress(codec, packed, len(data)) == data
    assert decompress(codec, memoryview(bytearray(b"x" + packed))[1:], len(data)) == data
    assert compress(codec, memoryview(data)) == packed


@pytest.mark.parametrize("codec", COMPRESSED)
@given(data=st.binary(max_size=2000))
@settings(max_examples=30)
def test_round_trip_of_anything(codec: Codec, data: bytes) -> None:
    assert decompress(codec, compress(codec, data), len(data)) == data


@pytest.mark.parametrize("codec", COMPRESSED)
@pytest.mark.parametrize("data", SAMPLES[1:], ids=len)
def test_kafka_python_reads_and_writes_the_same(codec: Codec, data: bytes) -> None:
    write, read = KAFKA_PYTHON[codec]
    assert bytes(read(compress(codec, data))) == data
    assert decompress(codec, write(data), len(data)) == data


@pytest.mark.parametrize("codec", [Codec.GZIP, Codec.LZ4, Codec.ZSTD])
def test_levels(codec: Codec) -> None:
    data = mixed(50_000)
    for level in (1, 3, 9):
        assert decompress(codec, compress(codec, data, level), len(data)) == data


@pytest.mark.parametrize("codec", COMPRESSED)
def test_one_byte_more_than_allowed_is_refused(codec: Codec) -> None:
    for data in SAMPLES[1:]:
        with pytest.raises(ProtocolError, match="longer than"):
            decompress(codec, compress(codec, data), len(data) - 1)


def test_uncompressed_is_bounded_too() -> None:
    with pytest.raises(ProtocolError, match="longer than"):
        decompress(Codec.NONE, b"abc", 2)


@pytest.mark.parametrize("codec", [5, 6, 7, -1])
def test_unknown_codec(codec: int) -> None:
    with pytest.raises(ProtocolError, match="unknown"):
        decompress(codec, b"", 10)
    with pytest.raises(ProtocolError, match="unknown"):
        compress(codec, b"")


@pytest.mark.parametrize("codec", [Codec.GZIP, Codec.LZ4, Codec.ZSTD])
def test_cut_off_anywhere(codec: Codec) -> None:
    packed = compress(codec, mixed(600))
    for size in range(len(packed)):
        with pytest.raises(ProtocolError):
            decompress(codec, packed[:size], MIB)
    long = compress(codec, mixed(300_000))
    for size in range(1, len(long), 997):
        with pytest.raises(ProtocolError):
            decompress(codec, long[:size], MIB)


def test_snappy_cut_off_anywhere() -> None:
    data = mixed(70_000)
    packed = compress(Codec.SNAPPY, data)
    block_ends = [16]
    while block_ends[-1] < len(packed):
        block_ends.append(block_ends[-1] + 4 + struct.unpack_from(">i", packed, block_ends[-1])[0])
    for size in (*range(200), *range(200, len(packed), 331), *block_ends[:-1]):
        if size in block_ends:  # the framing does not tell; the records inside do
            assert len(decompress(Codec.SNAPPY, packed[:size], MIB)) < len(data)
            continue
        with pytest.raises(ProtocolError):
            decompress(Codec.SNAPPY, packed[:size], MIB)


@pytest.mark.parametrize("codec", COMPRESSED)
def test_other_bytes_after_the_end_are_refused(codec: Codec) -> None:
    with pytest.raises(ProtocolError):
        decompress(codec, compress(codec, mixed(1000)) + b"and more", MIB)


@pytest.mark.parametrize("codec", COMPRESSED)
@given(data=st.data())
@settings(max_examples=60)
def test_damage_gives_other_data_or_an_error(codec: Codec, data: st.DataObject) -> None:
    packed = bytearray(compress(codec, mixed(3000)))
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        assert len(decompress(codec, packed, 10_000)) <= 10_000
    except ProtocolError:
        pass


@pytest.mark.parametrize("codec", COMPRESSED)
@given(data=st.binary(max_size=200))
@settings(max_examples=60)
def test_noise(codec: Codec, data: bytes) -> None:
    heads = {Codec.GZIP: b"\x1f\x8b\x08\0", Codec.LZ4: b"\x04\x22\x4d\x18", Codec.ZSTD: b"\x28\xb5\x2f\xfd"}
    for noise in (data, heads.get(codec, b"\x82SNAPPY\0\0\0\0\1\0\0\0\1") + data):
        try:
            assert len(decompress(codec, noise, 1000)) <= 1000
        except ProtocolError:
            pass


@cache
def bombs() -> dict[str, tuple[Codec, bytes]]:
    """Few bytes that stand for 64 MiB, or say so."""
    size = 64 * MIB
    zeros = bytes(size)
    unknown_size = zstandard.ZstdCompressor(write_content_size=False).compress(zeros)
    members = compress(Codec.GZIP, bytes(4 * MIB)) * 16
    frames = compress(Codec.ZSTD, bytes(4 * MIB)) * 16
    blocks = b"\x82SNAPPY\0\0\0\0\1\0\0\0\1"
    block = bytes(cramjam.snappy.compress_raw(bytes(4 * MIB)))
    return {
        "gzip": (Codec.GZIP, compress(Codec.GZIP, zeros, 9)),
        "gzip members": (Codec.GZIP, members),
        "snappy": (Codec.SNAPPY, bytes(cramjam.snappy.compress_raw(zeros))),
        "snappy blocks": (Codec.SNAPPY, blocks + (struct.pack(">i", len(block)) + block) * 16),
        "snappy that lies": (Codec.SNAPPY, b"\x80\x80\x80\x20" + b"\0a" * 4),
        "snappy that lies within the limit": (Codec.SNAPPY, b"\x80\x80\x20" + b"\0a" * 4),
        "lz4": (Codec.LZ4, compress(Codec.LZ4, zeros)),
        "lz4 of large blocks": (Codec.LZ4, lz4.frame.compress(zeros, block_size=lz4.frame.BLOCKSIZE_MAX4MB)),
        "zstd": (Codec.ZSTD, compress(Codec.ZSTD, zeros)),
        "zstd of unknown size": (Codec.ZSTD, unknown_size),
        "zstd frames": (Codec.ZSTD, frames),
    }


@pytest.mark.parametrize("name", bombs())
def test_bombs_are_refused_and_take_no_memory(name: str) -> None:
    codec, packed = bombs()[name]
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            decompress(codec, packed, MIB)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * MIB


def test_many_empty_gzip_members_take_linear_time() -> None:
    empty = compress(Codec.GZIP, b"")
    assert decompress(Codec.GZIP, empty * 20_000 + compress(Codec.GZIP, b"end"), 10) == b"end"


def test_gzip_of_python_and_of_several_members() -> None:
    data = mixed(40_000)
    assert decompress(Codec.GZIP, gzip.compress(data), len(data)) == data
    two = gzip.compress(data[:100]) + compress(Codec.GZIP, data[100:])
    assert decompress(Codec.GZIP, two, len(data)) == data


def test_gzip_checks_the_checksum() -> None:
    packed = bytearray(compress(Codec.GZIP, mixed(100)))
    packed[-8] ^= 1
    with pytest.raises(ProtocolError, match="damaged"):
        decompress(Codec.GZIP, packed, MIB)


def test_plain_deflate_is_not_gzip() -> None:
    with pytest.raises(ProtocolError):
        decompress(Codec.GZIP, zlib.compress(b"abc"), MIB)


def test_snappy_is_written_as_xerial_writes_it() -> None:
    data = mixed(70_000)
    packed = compress(Codec.SNAPPY, data)
    assert packed[:16] == b"\x82SNAPPY\0\0\0\0\1\0\0\0\1"
    sizes, pos = [], 16
    while pos < len(packed):
        (size,) = struct.unpack_from(">i", packed, pos)
        sizes.append(len(cramjam.snappy.decompress_raw(packed[pos + 4 : pos + 4 + size])))
        pos += 4 + size
    assert sizes == [32768, 32768, 4464]


def test_snappy_plain_concatenated_and_with_a_version_in_the_wrong_order() -> None:
    data = mixed(50_000)
    assert decompress(Codec.SNAPPY, bytes(cramjam.snappy.compress_raw(data)), len(data)) == data
    packed = compress(Codec.SNAPPY, data[:300]) + compress(Codec.SNAPPY, data[300:])
    assert decompress(Codec.SNAPPY, packed, len(data)) == data
    assert decompress(Codec.SNAPPY, packed[:8] + b"\1\0\0\0\1\0\0\0" + packed[16:], len(data)) == data
    with pytest.raises(ProtocolError, match="xerial"):
        decompress(Codec.SNAPPY, packed[:8] + bytes(8) + packed[16:], len(data))


def test_lz4_is_what_java_reads() -> None:
    """`Lz4BlockInputStream`: version 1, independent blocks, known block size, one frame."""
    packed = compress(Codec.LZ4, mixed(200_000))
    info = lz4.frame.get_frame_info(packed)
    assert packed[4] >> 6 == 1
    assert not info["block_linked"]
    assert info["block_size_id"] == lz4.frame.BLOCKSIZE_MAX64KB
    assert info["content_size"] == 200_000
    assert not info["skippable"]


def test_lz4_of_others() -> None:
    data = mixed(300_000)
    for linked in (True, False):
        for checksums in (True, False):
            packed = lz4.frame.compress(
                data, block_linked=linked, content_checksum=checksums, block_checksum=checksums, store_size=False
            )
            assert decompress(Codec.LZ4, packed, len(data)) == data
            if checksums:
                damaged = bytearray(packed)
                damaged[-1] ^= 1
                with pytest.raises(ProtocolError):
                    decompress(Codec.LZ4, damaged, len(data))


def test_zstd_of_others() -> None:
    data = mixed(300_000)
    for options in (
        {"write_content_size": False},
        {"write_checksum": True},
        {"level": 19, "write_content_size": False, "write_checksum": True},
        {"level": -5},
    ):
        packed = zstandard.ZstdCompressor(**options).compress(data)
        assert decompress(Codec.ZSTD, packed, len(data)) == data
        assert decompress(Codec.ZSTD, packed + b"\x50\x2a\x4d\x18\3\0\0\0abc" + packed, 2 * len(data)) == data * 2
    stream = zstandard.ZstdCompressor(level=22).compressobj()  # no size in the frame, the largest window
    assert decompress(Codec.ZSTD, stream.compress(data) + stream.flush(), len(data)) == data


def test_zstd_checks_the_checksum() -> None:
    packed = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(mixed(100)))
    packed[-1] ^= 1
    with pytest.raises(ProtocolError, match="damaged"):
        decompress(Codec.ZSTD, packed, MIB)
