"""What every object store must do: the same tests for each engine, the memory store included."""

import asyncio
import random  # noqa: TID251
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import pytest

from storage.filesystem import FileSystemStore
from storage.memory import MemoryStore
from storage.object_store import (
    BLOCK_BYTES,
    KEY_BYTES_MAX,
    UPLOAD_PART_BYTES,
    NotFound,
    ObjectStore,
    OutcomeUnknown,
    PreconditionFailed,
    open_store,
)
from storage.probe import probe
from storage.retrying import RetryingStore, RetryLimits
from storage.s3 import ObstoreS3Store
from storage.s3_aiobotocore import AiobotocoreStore
from storage.s3_location import parse_s3_uri
from tests.simulation.store import Bucket, LoopTimeline
from tests.support.faulty_store import FaultyStore, Mishap
from tests.support.s3_servers import S3Server, versitygw_possible

SINGLE_PUT_BYTES_MAX = 32 * 1024 * 1024
"""Smaller than in production, so that a body of 70 MiB goes in parts."""


@dataclass(frozen=True)
class Engine:
    """One row of the matrix. `open` gives another client of the same storage each time."""

    name: str
    open: Callable[[], ObjectStore]
    uri: str | None = None  # None: other processes cannot see it
    open_fast: Callable[[], ObjectStore] | None = None  # for many writes that are not what is tested
    multi_part_if_match: bool = True


def _repeated_faults() -> RetryingStore:
    """Every other call fails. What follows an unknown outcome of put_if_match is left to `test_retrying.py`."""
    mishaps = cycle([Mishap.LOST, Mishap.NONE, Mishap.UNAVAILABLE, Mishap.NONE, Mishap.UNHEARD, Mishap.NONE])

    def plan(name: str) -> Mishap:
        mishap = next(mishaps)
        return Mishap.UNAVAILABLE if name == "put_if_match" and mishap is not Mishap.NONE else mishap

    faulty = FaultyStore(MemoryStore(), plan)
    return RetryingStore(faulty, token=secrets.token_bytes, limits=RetryLimits(attempts_max=100, backoff_ms=0))


def _s3(server: S3Server, prefix: str, client: str) -> Engine:
    uri = server.uri("bucket", prefix, client=client)
    kind = {"obstore": ObstoreS3Store, "aiobotocore": AiobotocoreStore}[client]

    def connect() -> ObjectStore:
        return kind(parse_s3_uri(uri), single_put_bytes_max=SINGLE_PUT_BYTES_MAX)

    # moto checks If-None-Match but not If-Match when a multi-part upload is completed.
    return Engine(
        f"{server.name}-{client}",
        connect,
        uri,
        open_fast=lambda: ObstoreS3Store(parse_s3_uri(uri)),
        multi_part_if_match=server.durable,
    )


def _simulated() -> ObjectStore:
    bucket = Bucket(LoopTimeline(), random.Random(1))
    return bucket.handle(SimpleNamespace(name="test", alive=True, token=secrets.token_bytes), "host")


ENGINES = [
    "memory",
    "simulated",
    "retrying",
    "filesystem",
    "moto-obstore",
    "moto-aiobotocore",
    # The first use may build the server.
    *([pytest.param("versitygw-obstore", marks=pytest.mark.timeout(600))] if versitygw_possible() else []),
]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    name: str = request.param
    match name.split("-"):
        case ["memory"]:
            memory = MemoryStore()
            return Engine(name, lambda: memory)
        case ["simulated"]:
            simulated = _simulated()
            return Engine(name, lambda: simulated)
        case ["retrying"]:
            retrying = _repeated_faults()
            return Engine(name, lambda: retrying)
        case ["filesystem"]:
            root = tmp_path / "bucket"
            return Engine(name, lambda: FileSystemStore(root, token=secrets.token_bytes), f"file:{root}")
        case [server, client]:
            return _s3(request.getfixturevalue(f"{server}_server"), f"{secrets.token_hex(6)}/pre fix", client)
    raise AssertionError(name)


@pytest.fixture
async def store(engine: Engine) -> AsyncIterator[ObjectStore]:
    opened = engine.open()
    yield opened
    await opened.close()
    await opened.close()


async def listed(store: ObjectStore, prefix: str = "", start_after: str = "") -> list[str]:
    return [info.key async for info in store.list(prefix, start_after)]


BODIES = {
    "empty": b"",
    "no-buffers": [],
    "empty-buffers": [b"", bytearray(), memoryview(b"")],
    "bytes": b"abc",
    "bytearray": bytearray(b"abc"),
    "view": memoryview(b"xabcx")[1:4],
    "mixed": [b"a", bytearray(b"b"), memoryview(b"xcx")[1:2], b"", b"d" * 100_000],
    "many-small": [bytes([n % 256]) * 700 for n in range(2000)],
    "blocks": [secrets.token_bytes(BLOCK_BYTES), secrets.token_bytes(3), secrets.token_bytes(BLOCK_BYTES + 1)],
}


def joined(body: object) -> bytes:
    return b"".join(body) if isinstance(body, list) else bytes(body)  # type: ignore[call-overload]


async def test_bodies_come_back_whole(store: ObjectStore) -> None:
    for name, body in BODIES.items():
        data = joined(body)
        etag = await store.put_if_absent(f"bodies/{name}", body)
        assert await store.get(f"bodies/{name}") == (data, etag), name
        assert await store.head(f"bodies/{name}") == (f"bodies/{name}", len(data), etag), name


async def test_put_replaces(store: ObjectStore) -> None:
    first = await store.put("key", b"first")
    second = await store.put("key", b"second!")
    assert first != second
    assert await store.get("key") == (b"second!", second)
    assert await listed(store) == ["key"]


async def test_put_if_absent_refuses_an_existing_key(store: ObjectStore) -> None:
    etag = await store.put_if_absent("a/key", b"first")
    with pytest.raises(PreconditionFailed):
        await store.put_if_absent("a/key", b"second")
    with pytest.raises(PreconditionFailed):
        await store.put_if_absent("a/key", b"")
    assert await store.get("a/key") == (b"first", etag)


async def test_put_if_match_replaces_only_what_was_seen(store: ObjectStore) -> None:
    first = await store.put_if_absent("key", b"first")
    second = await store.put_if_match("key", b"second", first)
    with pytest.raises(PreconditionFailed):
        await store.put_if_match("key", b"third", first)
    assert await store.get("key") == (b"second", second)
    third = await store.put_if_match("key", b"third", (await store.head("key")).etag)
    assert await store.get("key") == (b"third", third)


async def test_put_if_match_on_a_missing_key_is_a_failed_precondition(store: ObjectStore) -> None:
    etag = await store.put_if_absent("key", b"first")
    await store.delete("key")
    with pytest.raises(PreconditionFailed):
        await store.put_if_match("key", b"second", etag)
    with pytest.raises(PreconditionFailed):
        await store.put_if_match("never/was", b"second", etag)
    assert await listed(store) == []


async def test_a_missing_key_is_not_found(store: ObjectStore) -> None:
    for key in ("missing", "missing/deeper"):
        with pytest.raises(NotFound):
            await store.get(key)
        with pytest.raises(NotFound):
            await store.head(key)
        with pytest.raises(NotFound):
            await store.get_range(key, 0, 1)


async def test_delete_is_idempotent_and_frees_the_key(store: ObjectStore) -> None:
    await store.delete("dir/key")
    await store.put_if_absent("dir/key", b"first")
    await store.delete("dir/key")
    await store.delete("dir/key")
    with pytest.raises(NotFound):
        await store.get("dir/key")
    etag = await store.put_if_absent("dir/key", b"second")
    assert await store.get("dir/key") == (b"second", etag)


async def test_ranges_are_exact(store: ObjectStore) -> None:
    data = secrets.token_bytes(10_000)
    await store.put_if_absent("key", data)
    for start, length in ((0, 1), (0, 10_000), (17, 4000), (9_999, 1)):
        assert await store.get_range("key", start, length) == data[start : start + length]
    for start, length in ((0, 10_001), (9_999, 2), (10_000, 1), (1_000_000, 5)):
        with pytest.raises(NotFound):
            await store.get_range("key", start, length)


LISTED = ["a", "a-b", "a.b", "ab", "b!", "b/1", "b/10", "b/2/x", "b/2/y/z", "b/20", "b0", "c", "é/1", "日本"]


async def test_listings_are_in_key_order(store: ObjectStore) -> None:
    for key in reversed(LISTED):
        await store.put_if_absent(key, key.encode())
    infos = [info async for info in store.list("")]
    assert [info.key for info in infos] == LISTED
    assert [info.size for info in infos] == [len(key.encode()) for key in LISTED]
    for info in infos:
        assert info.etag in {"", (await store.head(info.key)).etag}


async def test_listings_begin_and_end_anywhere(store: ObjectStore) -> None:
    for key in LISTED:
        await store.put_if_absent(key, b"x")
    for prefix in ("", "a", "a-", "b", "b/", "b/1", "b/2", "b/2/", "b/2/y/z", "b/3", "é", "nothing", "zz/"):
        for start_after in ("", "a", "a-b", "b", "b/", "b/1", "b/2/x", "b/2/zzz", "zzz", "é/"):
            expected = [key for key in LISTED if key.startswith(prefix) and key > start_after]
            assert await listed(store, prefix, start_after) == expected, (prefix, start_after)


async def test_listings_have_no_page_end(store: ObjectStore, engine: Engine) -> None:
    keys = sorted(f"{n % 3}/{n:05}" for n in range(1010))
    gate = asyncio.Semaphore(32)
    writer = (engine.open_fast or engine.open)()

    async def write(key: str) -> None:
        async with gate:
            await writer.put_if_absent(key, b"")

    async with asyncio.TaskGroup() as group:
        for key in keys:
            group.create_task(write(key))
    await writer.close()
    assert await listed(store) == keys
    assert await listed(store, start_after=keys[999]) == keys[1000:]


async def test_a_listing_may_be_left_early(store: ObjectStore) -> None:
    for key in LISTED:
        await store.put_if_absent(key, b"x")
    async for info in store.list("b"):
        assert info.key == "b!"
        break
    assert await listed(store, "c") == ["c"]


HOSTILE = [
    " ",
    "...",
    ".hidden",
    "%",
    "%2E%2E/%2F",
    "%00",
    "a b+c&d=e?f#g",
    "back\\slash",
    "quotes'\"`",
    "<xml>&amp;",
    "trailing.",
    "trailing ",
    "tilde~^{}|[]",
    "CON",
    "con",
    "*",
    "ümläut",
    "u\u0308",
    "日本/キー",
    "😀",
    "-rf",
    ".tidelog-lock",
    ".tidelog-tmp/x",
    "long/" + "x" * 200,
    "/".join(["deep"] * 60),
]


async def test_odd_keys_are_kept_exactly(store: ObjectStore, engine: Engine) -> None:
    for number, key in enumerate(HOSTILE):
        await store.put_if_absent(key, f"{number}".encode())
    for number, key in enumerate(HOSTILE):
        assert (await store.get(key)).data == f"{number}".encode(), key
    assert await listed(store) == sorted(HOSTILE)
    other = engine.open()
    assert await listed(other) == sorted(HOSTILE)
    await other.close()
    for key in HOSTILE:
        await store.delete(key)
    assert await listed(store) == []


IMPOSSIBLE = ["", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "a/./b", "a\0b", "a\nb", "\x7f", "\ud800"]


async def test_impossible_keys_are_refused(store: ObjectStore) -> None:
    for key in [*IMPOSSIBLE, "x" * (KEY_BYTES_MAX + 1), "é" * (KEY_BYTES_MAX // 2 + 1)]:
        for call in (
            store.put(key, b""),
            store.put_if_absent(key, b""),
            store.put_if_match(key, b"", "etag"),
            store.get(key),
            store.get_range(key, 0, 1),
            store.head(key),
            store.delete(key),
        ):
            with pytest.raises(ValueError, match="object key"):
                await call
    assert await listed(store) == []


async def test_of_racing_creators_one_wins(store: ObjectStore, engine: Engine) -> None:
    other = engine.open()

    async def contend(key: str, number: int) -> int | None:
        try:
            await (store, other)[number % 2].put_if_absent(key, b"%d" % number)
        except (PreconditionFailed, OutcomeUnknown):
            return None
        return number

    for key in ("race-1", "race/2", "race/3"):
        winners = [n for n in await asyncio.gather(*(contend(key, n) for n in range(16))) if n is not None]
        assert len(winners) == 1
        assert (await store.get(key)).data == b"%d" % winners[0]
    await other.close()


async def test_racing_replacers_lose_no_update(store: ObjectStore, engine: Engine) -> None:
    """A counter: every success is exactly one step."""
    await store.put_if_absent("counter", b"0|")
    clients = [store, engine.open()]

    async def increment(number: int) -> None:
        own = clients[number % 2]
        for turn in range(5):
            while True:
                stored = await own.get("counter")
                value = int(stored.data.partition(b"|")[0])
                try:
                    await own.put_if_match("counter", b"%d|%d %d" % (value + 1, number, turn), stored.etag)
                    break
                except PreconditionFailed:
                    continue

    async with asyncio.TaskGroup() as group:
        for number in range(6):
            group.create_task(increment(number))
    assert (await store.get("counter")).data.startswith(b"30|")
    await clients[1].close()


async def test_racing_processes(engine: Engine) -> None:
    """Three processes create the same keys and count in the same object."""
    if engine.uri is None:
        pytest.skip("lives in one process")
    if engine.name == "moto-aiobotocore":
        pytest.skip("the server is what races here, and moto-obstore covers it")
    store = engine.open()
    await store.put_if_absent("counter", b"0|")
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.storage.racer", engine.uri, str(number)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        for number in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
    answers = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    won = [line.split() for out, _ in answers for line in out.splitlines()]
    created = {key for key, _ in won}
    assert len(won) == len(created) == 20  # every key had one winner
    for key, number in won:
        assert (await store.get(key.decode())).data == number
    assert (await store.get("counter")).data.startswith(b"60|")
    await store.close()


async def test_large_objects(store: ObjectStore, engine: Engine) -> None:
    """70 MiB, in parts where the engine has parts, and still created once."""
    if engine.name == "moto-obstore":
        pytest.skip("large bodies take the same way as in moto-aiobotocore")
    other = [bytes(SINGLE_PUT_BYTES_MAX), b"a little more"]
    block = secrets.token_bytes(BLOCK_BYTES)
    body = [block[n:] + block[:n] for n in range(140)]
    size = 140 * BLOCK_BYTES
    etag = await store.put_if_absent("large", body)
    assert await store.head("large") == ("large", size, etag)
    for n in (0, 31, 32, 63, 64, 100, 139):
        assert await store.get_range("large", n * BLOCK_BYTES, BLOCK_BYTES) == body[n]
    seam = 16 * 1024 * 1024
    assert await store.get_range("large", seam - 10, 20) == body[31][-10:] + body[32][:10]
    with pytest.raises(PreconditionFailed):
        await store.put_if_absent("large", other)
    assert (await store.head("large")).etag == etag
    replaced = await store.put_if_match("large", other, etag)
    assert replaced != etag
    assert await store.get_range("large", SINGLE_PUT_BYTES_MAX - 1, 14) == b"\0a little more"
    if not engine.multi_part_if_match:
        pytest.xfail("moto does not check If-Match when a multi-part upload is completed")
    with pytest.raises(PreconditionFailed):
        await store.put_if_match("large", body, etag)
    assert (await store.head("large")).etag == replaced


async def test_bytes_written_in_parts_are_all_there(store: ObjectStore) -> None:
    body = [secrets.token_bytes(SINGLE_PUT_BYTES_MAX), secrets.token_bytes(100_001)]
    await store.put("large", body)
    assert (await store.get("large")).data == b"".join(body)


async def test_an_object_that_comes_in_parts(store: ObjectStore, engine: Engine) -> None:
    """Nobody sees any of it before it is created, whole, unless the key exists."""
    parts = [[secrets.token_bytes(UPLOAD_PART_BYTES - 1_000), b"x" * 1_000], [secrets.token_bytes(100_001)]]
    upload = store.upload("parts")
    for part in parts:
        await upload.write(part)
        assert await listed(store) == []
    try:
        etag = await upload.create()
    except PreconditionFailed:  # of an earlier attempt whose answer was lost
        assert engine.name == "retrying"
        etag = (await store.head("parts")).etag
    body = b"".join(buffer for part in parts for buffer in part)
    assert await store.get("parts") == (body, etag)
    late = store.upload("parts")
    await late.write(b"small, and late")
    with pytest.raises(PreconditionFailed):
        await late.create()
    await late.abort()
    given_up = store.upload("never")
    await given_up.abort()
    await given_up.write(parts[0])
    await given_up.abort()
    assert await listed(store) == ["parts"] and (await store.head("parts")).etag == etag


async def test_of_racing_uploads_one_wins(store: ObjectStore, engine: Engine) -> None:
    uploads = [store.upload("raced") for _ in range(4)]
    for number, upload in enumerate(uploads):
        await upload.write(b"%d" % number)
    ends = await asyncio.gather(*(upload.create() for upload in uploads), return_exceptions=True)
    won = [b"%d" % number for number, end in enumerate(ends) if isinstance(end, str)]
    held = (await store.get("raced")).data
    assert won == [held] or (engine.name == "retrying" and won == [] and held in {b"0", b"1", b"2", b"3"})
    for upload in uploads:
        await upload.abort()


async def test_the_probe_accepts_it_and_leaves_nothing(store: ObjectStore) -> None:
    await store.put("other", b"")
    await probe(store, secrets.token_bytes)
    assert await listed(store) == ["other"]


async def test_a_cancelled_write_is_whole_or_absent(store: ObjectStore) -> None:
    body = [secrets.token_bytes(BLOCK_BYTES)] * 8
    for delay in (0, 0.001, 0.004, 0.016):
        key = f"key-{delay}"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(delay):
                await store.put_if_absent(key, body)
                await asyncio.sleep(1)
        try:
            assert (await store.get(key)).data == b"".join(body)
        except NotFound:
            pass
    await store.put("after", b"still works")


async def test_open_store_gives_the_same_storage(engine: Engine, store: ObjectStore) -> None:
    if engine.uri is None:
        pytest.skip("lives in one process")
    await store.put_if_absent("key", b"value")
    opened = open_store(engine.uri, token=secrets.token_bytes)
    assert (await opened.get("key")).data == b"value"
    await opened.close()
