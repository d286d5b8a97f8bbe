"""The S3 clients against a store and a network that misbehave: one attempt per call, and errors that tell the truth."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Coroutine

import pytest

from storage import s3_location
from storage.object_store import (
    Denied,
    NotFound,
    ObjectStore,
    OutcomeUnknown,
    PreconditionFailed,
    StoreError,
    Unavailable,
)
from storage.retrying import RetryingStore, RetryLimits
from storage.s3 import ObstoreS3Store
from storage.s3_aiobotocore import AiobotocoreStore
from storage.s3_location import parse_s3_uri
from tests.support.faulty_proxy import (
    Answer,
    Corrupt,
    Cut,
    Delay,
    Drip,
    Drop,
    Fault,
    FaultyProxy,
    Plan,
    Repeat,
    Request,
    first,
)
from tests.support.s3_servers import S3Server, client, versitygw_possible

MIB = 1024 * 1024
KINDS = {"obstore": ObstoreS3Store, "aiobotocore": AiobotocoreStore}


@pytest.fixture
async def proxy(moto_server: S3Server) -> AsyncIterator[FaultyProxy]:
    async with FaultyProxy(moto_server.host, moto_server.port) as running:
        yield running


@pytest.fixture(params=list(KINDS))
async def store(
    request: pytest.FixtureRequest, moto_server: S3Server, proxy: FaultyProxy
) -> AsyncIterator[ObjectStore]:
    """Behind the proxy, connected, and with multi-part uploads from 6 MiB on."""
    uri = moto_server.uri("bucket", secrets.token_hex(6), client=request.param, endpoint=proxy.endpoint)
    opened = KINDS[request.param](parse_s3_uri(uri), single_put_bytes_max=6 * MIB, part_bytes=5 * MIB)
    await opened.put("there", b"0123456789" * 1000)
    proxy.requests.clear()
    yield opened
    await opened.close()


def retrying(store: ObjectStore) -> RetryingStore:
    return RetryingStore(store, token=secrets.token_bytes, limits=RetryLimits(attempts_max=30, backoff_ms=1))


def always(fault: Fault) -> Plan:
    return lambda _request: fault


async def exists(store: ObjectStore, key: str) -> bool:
    try:
        await store.head(key)
    except NotFound:
        return False
    return True


async def listed(store: ObjectStore) -> list[str]:
    return [info.key async for info in store.list("")]


READS = {
    "get": lambda store: store.get("there"),
    "get_range": lambda store: store.get_range("there", 10, 5000),
    "head": lambda store: store.head("there"),
    "list": listed,
}
WRITES = {
    "put": lambda store: store.put("new", b"value"),
    "put_if_absent": lambda store: store.put_if_absent("new", b"value"),
    "put_if_match": lambda store: store.put_if_match("there", b"value", '"0123"'),
    "delete": lambda store: store.delete("there"),
}


TROUBLE = {500: "InternalError", 503: "SlowDown", 502: "", 504: "", 429: "TooManyRequests", 400: "RequestTimeout"}


async def test_trouble_in_the_store(store: ObjectStore, proxy: FaultyProxy) -> None:
    for status, code in TROUBLE.items():
        proxy.plan = always(Answer(status, code))
        for name, read in READS.items():
            if name == "head" and status == 400:
                continue  # without a body there is no code to go by
            with pytest.raises(Unavailable):
                await read(store)
        for write in WRITES.values():
            with pytest.raises(OutcomeUnknown):
                await write(store)


async def test_every_call_is_one_attempt(store: ObjectStore, proxy: FaultyProxy) -> None:
    for fault in (Answer(503, "SlowDown"), Drop(applied=False), Drop(applied=True)):
        proxy.plan = always(fault)
        for call in [*READS.values(), *WRITES.values()]:
            proxy.requests.clear()
            with pytest.raises(StoreError):
                await call(store)
            assert len(proxy.requests) == 1


HOPELESS = [
    (403, "AccessDenied", Denied),
    (403, "RequestTimeTooSkewed", Denied),
    (400, "ExpiredToken", Denied),
    (404, "NoSuchBucket", StoreError),
    (301, "PermanentRedirect", StoreError),
    (501, "NotImplemented", StoreError),
    (400, "InvalidArgument", StoreError),
]


async def test_what_no_retry_helps(store: ObjectStore, proxy: FaultyProxy) -> None:
    for status, code, kind in HOPELESS:
        proxy.plan = always(Answer(status, code))
        for name, call in {**READS, **WRITES}.items():
            if name == "head":
                continue  # without a body there is no code to go by
            with pytest.raises(StoreError) as caught:
                await call(store)
            assert type(caught.value) is kind, (status, code, name)


async def test_a_conflict_is_an_unknown_outcome(store: ObjectStore, proxy: FaultyProxy) -> None:
    proxy.plan = always(Answer(409, "ConditionalRequestConflict"))
    for name in ("put_if_absent", "put_if_match"):
        with pytest.raises(OutcomeUnknown):
            await WRITES[name](store)


async def test_a_damaged_body_was_not_applied(store: ObjectStore, proxy: FaultyProxy) -> None:
    proxy.plan = always(Answer(400, "BadDigest"))
    with pytest.raises(Unavailable):
        await store.put_if_absent("new", b"value")


async def test_a_refused_connection_was_not_applied(store: ObjectStore, proxy: FaultyProxy) -> None:
    await proxy.go_down()
    for call in [*READS.values(), *WRITES.values()]:
        with pytest.raises(Unavailable):
            await call(store)
    await proxy.come_back()
    assert (await store.get("there")).data[:10] == b"0123456789"


async def test_a_lost_answer_is_an_unknown_outcome(store: ObjectStore, proxy: FaultyProxy) -> None:
    proxy.plan = first(1, Drop(applied=True))
    with pytest.raises(OutcomeUnknown):
        await store.put_if_absent("applied", b"value")
    proxy.plan = first(1, Drop(applied=False))
    with pytest.raises(OutcomeUnknown):
        await store.put_if_absent("lost", b"value")
    assert await exists(store, "applied")
    assert not await exists(store, "lost")
    proxy.plan = first(1, Drop(applied=True))
    with pytest.raises(Unavailable):
        await store.get("applied")


async def test_a_cut_off_body_is_noticed(store: ObjectStore, proxy: FaultyProxy) -> None:
    for body_bytes in (0, 1, 4000):
        proxy.plan = first(3, Cut(body_bytes))
        for read in (READS["get"], READS["get_range"]):
            with pytest.raises(Unavailable):
                await read(store)
        proxy.plan = first(1, Cut(body_bytes // 40))
        with pytest.raises(Unavailable):
            await listed(store)


async def test_slow_bodies_arrive(store: ObjectStore, proxy: FaultyProxy) -> None:
    proxy.plan = always(Drip(2000, 0.01))
    assert (await store.get("there")).data == b"0123456789" * 1000
    assert await store.get_range("there", 10, 5000) == b"0123456789" * 500
    assert await listed(store) == ["there"]


async def test_time_is_limited(store: ObjectStore, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_location, "REQUEST_TIMEOUT_S", 0.2)
    proxy.plan = always(Drip(1, 0.05))
    with pytest.raises(Unavailable, match="no answer within"):
        await store.get("there")
    proxy.plan = always(Delay(before_s=0.6))
    with pytest.raises(OutcomeUnknown, match="no answer within"):
        await store.put_if_absent("late", b"value")
    proxy.plan = always(Delay(after_s=0.6))
    with pytest.raises(OutcomeUnknown, match="no answer within"):
        await store.put_if_absent("applied", b"value")
    proxy.plan = lambda _request: None
    assert await exists(store, "applied")


async def test_bursts_of_trouble_are_survived(store: ObjectStore, proxy: FaultyProxy) -> None:
    patient = retrying(store)
    faults: list[Fault | None] = [Answer(503, "SlowDown"), Answer(500, "InternalError"), Drop(applied=True), None]
    faults += [Drop(applied=False), None, Answer(409, "ConditionalRequestConflict"), Delay(before_s=0.01), None]

    def plan(request: Request) -> Fault | None:
        return faults[request.number % len(faults)]

    proxy.plan = plan

    async def work(number: int) -> None:
        key = f"burst/{number}"
        etag = await patient.put_if_absent(key, b"value %d" % number)
        assert await patient.get(key) == (b"value %d" % number, etag)
        with pytest.raises(PreconditionFailed):
            await patient.put_if_absent(key, b"other")

    async with asyncio.TaskGroup() as group:
        for number in range(12):
            group.create_task(work(number))
    assert len([info async for info in patient.list("burst/")]) == 12


async def test_an_applied_write_is_recognised(store: ObjectStore, proxy: FaultyProxy) -> None:
    patient = retrying(store)
    proxy.plan = first(1, Drop(applied=True), method="PUT")
    etag = await patient.put_if_absent("new", b"first")
    proxy.plan = first(1, Drop(applied=True), method="PUT")
    newer = await patient.put_if_match("new", b"second", etag)
    assert await store.get("new") == (b"second", newer)
    proxy.plan = first(1, Repeat(after_s=0.01), method="PUT")
    await patient.put_if_absent("twice", b"value")
    assert (await store.get("twice")).data == b"value"


async def test_parts_that_fail_change_nothing(store: ObjectStore, proxy: FaultyProxy, moto_server: S3Server) -> None:
    body = [secrets.token_bytes(MIB)] * 12

    def plan(request: Request) -> Fault | None:
        return Answer(503, "SlowDown") if "partNumber=2" in request.target else None

    proxy.plan = plan
    with pytest.raises(Unavailable):
        await store.put_if_absent("large", body)
    assert not await exists(store, "large")
    uploads = await asyncio.to_thread(client(moto_server.endpoint).list_multipart_uploads, Bucket="bucket")
    assert "Uploads" not in uploads


async def test_completing_an_upload_may_be_unknown(store: ObjectStore, proxy: FaultyProxy) -> None:
    body = [secrets.token_bytes(MIB)] * 12

    def plan(request: Request) -> Fault | None:
        completing = request.method == "POST" and "uploadId=" in request.target
        return Drop(applied=True) if completing else None

    proxy.plan = plan
    with pytest.raises(OutcomeUnknown):
        await store.put_if_absent("large", body)
    assert (await store.head("large")).size == 12 * MIB
    etag = await retrying(store).put_if_absent("again", body)
    assert (await store.head("again")).etag == etag
    with pytest.raises(PreconditionFailed):
        await retrying(store).put_if_absent("large", [*body[:-1], bytes(MIB)])


async def test_requests_carry_what_the_store_verifies(store: ObjectStore, proxy: FaultyProxy) -> None:
    await store.put_if_absent("new", b"value")
    await store.put("new", [secrets.token_bytes(MIB)] * 7)
    await store.delete("new")
    sent = [request for request in proxy.requests if request.method == "PUT"]
    assert len(sent) == 3
    for request in sent:
        assert {"x-amz-checksum-crc64nvme", "x-amz-checksum-sha256"} & request.headers.keys()
        signed = request.headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
        assert any(name.startswith("x-amz-checksum-") for name in signed)
        if isinstance(store, ObstoreS3Store) and "partNumber" not in request.target:
            assert len(request.headers["x-amz-content-sha256"]) == 64  # signed too: there is no TLS
    assert sent[0].headers["if-none-match"] == "*"
    assert proxy.requests[-1].method == "DELETE"


async def test_without_credentials_access_is_denied(
    store: ObjectStore, proxy: FaultyProxy, moto_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    opened = type(store)(parse_s3_uri(moto_server.uri("bucket")))  # type: ignore[call-arg]
    with pytest.raises(Denied, match="credentials"):
        await opened.put_if_absent("new", b"value")
    await opened.close()


async def test_the_region_must_be_known_at_aws(aws_environment: None) -> None:
    for kind in KINDS.values():
        opened = kind(parse_s3_uri("s3://bucket/prefix"))
        with pytest.raises(StoreError, match="region"):
            await opened.get("key")
        await opened.close()


@pytest.mark.skipif(not versitygw_possible(), reason="needs Go, or versitygw in .cache")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", list(KINDS))
async def test_a_flipped_bit_never_becomes_an_object(versitygw_server: S3Server, kind: str) -> None:
    async with FaultyProxy(versitygw_server.host, versitygw_server.port) as proxy:
        uri = versitygw_server.uri("bucket", secrets.token_hex(6), client=kind, endpoint=proxy.endpoint)
        store = KINDS[kind](parse_s3_uri(uri), single_put_bytes_max=6 * MIB)
        proxy.plan = first(1, Corrupt(), method="PUT")
        with pytest.raises(Unavailable):
            await store.put_if_absent("small", b"value")
        proxy.plan = first(1, Corrupt(), method="PUT")
        with pytest.raises(Unavailable):
            await store.put_if_absent("large", [secrets.token_bytes(MIB)] * 7)
        assert await listed(store) == []
        assert await retrying(store).put_if_absent("small", b"value")
        await store.close()


async def test_a_large_put_leaves_the_loop_free(store: ObjectStore, moto_server: S3Server) -> None:
    """64 MiB in large and in small buffers. Only the processor time of the loop's thread does not depend on luck."""
    uri = moto_server.uri("bucket", secrets.token_hex(6))
    direct = type(store)(parse_s3_uri(uri))  # type: ignore[call-arg]
    await direct.put("warm", b"")
    data = memoryview(secrets.token_bytes(64 * MIB))
    for part_bytes in (MIB, 4096):
        body = [data[start : start + part_bytes] for start in range(0, data.nbytes, part_bytes)]
        used = time.thread_time()
        pause = await _longest_pause(direct.put("large", body))
        used = time.thread_time() - used
        assert used < (1.0 if isinstance(direct, AiobotocoreStore) else 0.2)
        print(
            f"{type(store).__name__}, 64 MiB in {part_bytes}: thread {used * 1000:.0f} ms, pause {pause * 1000:.1f} ms"
        )
    await direct.close()


async def _longest_pause(call: Coroutine[object, object, object]) -> float:
    """The longest time that the loop was busy, in seconds, while `call` ran."""
    pauses = [0.0]
    async with asyncio.TaskGroup() as group:
        running = group.create_task(call)
        while not running.done():
            before = time.perf_counter()
            await asyncio.sleep(0.002)
            pauses.append(time.perf_counter() - before - 0.002)
    return max(pauses)
