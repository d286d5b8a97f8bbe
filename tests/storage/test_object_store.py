"""The port's own helpers: URIs, keys and bodies."""

import secrets
from pathlib import Path

import pytest

from storage.filesystem import FileSystemStore
from storage.memory import MemoryStore
from storage.object_store import (
    BLOCK_BYTES,
    SMALL_PART_BYTES,
    body_blocks,
    body_size,
    check_key,
    gathered_blocks,
    open_store,
)
from storage.retrying import RetryingStore
from storage.s3_location import S3Location, parse_s3_uri

S3 = "s3://bucket/a/prefix?region=eu-central-1"


def opened(uri: str) -> object:
    return open_store(uri, token=secrets.token_bytes)


async def test_each_scheme_opens_its_engine() -> None:
    assert isinstance(opened("memory:"), MemoryStore)
    for uri in (S3, S3 + "&client=aiobotocore"):
        store = opened(uri)
        assert isinstance(store, RetryingStore)
        assert "s3://bucket/a/prefix/" in repr(store)
    for uri in ("file:some/path", "file:/some/path", "file:///some/path"):
        store = opened(uri)
        assert isinstance(store, FileSystemStore)
        assert repr(store) in {"file:/some/path", f"file:{Path.cwd()}/some/path"}
        await store.close()


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("", "no scheme; write file:PATH"),
        ("./bucket", "no scheme"),
        ("gs://bucket", "unknown scheme 'gs'"),
        ("S3://bucket", "unknown scheme 'S3'"),
        ("file:", "no path"),
        ("file://", "no path|host name"),
        ("file://some/path", "write file:some/path or file:/some/path"),
        ("memory:x", "write memory:"),
        ("s3:", "no bucket name; write s3://"),
        ("s3:///prefix", "no bucket name"),
        ("s3://bucket:80/", "'bucket:80' is no bucket name"),
        ("s3://key:secret@bucket/", "no credentials"),
        ("s3://bucket/?endpoint=https://key:secret@store:9000", "no credentials"),
        ("s3://bucket/a//b", "prefix 'a//b'"),
        ("s3://bucket/a/../b", r"prefix 'a/\.\./b'"),
        ("s3://bucket/" + "x" * 256, "longer than 255"),
        ("s3://bucket/a#b", "%23"),
        (S3 + "&regoin=x", "unknown option 'regoin'; there are allow_http, client, endpoint, region"),
        (S3 + "&region=other", "'region' must be given once"),
        (S3 + "&endpoint=", "'endpoint' must be given once, with a value"),
        (S3 + "&nonsense", "write s3://bucket"),
        (S3 + "&client=boto", "write client=obstore or client=aiobotocore"),
        (S3 + "&endpoint=localhost:9000", "write endpoint=https://host:port"),
        (S3 + "&endpoint=http://minio:9000", "write https, or add allow_http=true"),
        (S3 + "&endpoint=http://10.0.0.1:9000&allow_http=yes", "allow_http='yes'"),
        (S3 + "&endpoint=https://host/path", "write endpoint=https://host:port"),
    ],
)
def test_a_bad_uri_is_told_what_to_write(uri: str, named: str) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        opened(uri)
    assert "secret" not in str(caught.value)


def test_s3_uris() -> None:
    assert parse_s3_uri("s3://b") == S3Location("b", "", None, None, "obstore")
    assert parse_s3_uri("s3://b/p/q/?region=r") == S3Location("b", "p/q/", "r", None, "obstore")
    for endpoint in ("http://127.0.0.1:1", "http://localhost:1/", "http://[::1]:1", "https://minio.example:9000"):
        location = parse_s3_uri(f"s3://b/p?endpoint={endpoint}")
        assert location.endpoint == endpoint.rstrip("/")
        assert location.tls == endpoint.startswith("https")
    assert not parse_s3_uri("s3://b/p?endpoint=http://minio:9000&allow_http=true").tls
    assert parse_s3_uri("s3://b").tls


def test_keys() -> None:
    for key in ("a", "a/b", "segments/1/ff/0-0", "é" * 384, "...", "a b"):
        assert check_key(key) == key


async def test_small_buffers_are_joined_and_large_ones_left_alone() -> None:
    large = memoryview(bytes(SMALL_PART_BYTES))
    assert await gathered_blocks([b"a", b"", b"b", large, b"c", large, large]) == [b"ab", large, b"c", large, large]
    many = [bytes([n % 256]) * 1000 for n in range(2000)]
    blocks = await gathered_blocks(many)
    assert b"".join(blocks) == b"".join(many)
    assert all(BLOCK_BYTES <= len(block) < BLOCK_BYTES + 1000 for block in blocks[:-1])
    assert await gathered_blocks([]) == []


def test_bodies_are_cut_into_views() -> None:
    body = [b"abcdefgh", bytearray(b""), memoryview(b"ijk")]
    assert [bytes(block) for block in body_blocks(body, 3)] == [b"abc", b"def", b"gh", b"ijk"]
    assert body_size(body) == 11
    assert body_size(memoryview(bytearray(8)).cast("I")) == 8
    assert [block.nbytes for block in body_blocks(memoryview(bytearray(8)).cast("I"), 5)] == [5, 3]
    assert list(body_blocks(b"")) == []
