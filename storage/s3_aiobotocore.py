"""S3 and its kin through aiobotocore: the alternative client, and the one that can make multi-part uploads conditional.

One attempt per call. Every PUT and every part carries a SHA-256 that the store verifies. The signature covers that
checksum header, hence the payload itself is not signed.
"""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
)

from storage.object_store import (
    Body,
    Denied,
    NotFound,
    ObjectInfo,
    OutcomeUnknown,
    PreconditionFailed,
    StoredObject,
    StoreError,
    Unavailable,
    Upload,
    body_blocks,
    body_size,
    check_key,
    gathered_blocks,
)
from storage.s3_location import (
    CONNECT_TIMEOUT_S,
    PART_BYTES,
    PARTS_IN_FLIGHT,
    REQUEST_TIMEOUT_S,
    SINGLE_PUT_BYTES_MAX,
    S3Location,
    error_for_status,
    region_unknown,
    timeout_s,
)

ABORT_TIMEOUT_S = 2


class AiobotocoreStore:
    """An `ObjectStore` in one bucket. Opens itself at the first call."""

    def __init__(
        self, location: S3Location, *, single_put_bytes_max: int = SINGLE_PUT_BYTES_MAX, part_bytes: int = PART_BYTES
    ) -> None:
        self._location = location
        self._single_put_bytes_max = single_put_bytes_max
        self._part_bytes = part_bytes
        self._client: Any = None
        self._exit = AsyncExitStack()
        self._opening = asyncio.Lock()

    def __repr__(self) -> str:
        return str(self._location)

    async def put(self, key: str, body: Body) -> str:
        return await self._put(key, body, {})

    async def put_if_absent(self, key: str, body: Body) -> str:
        return await self._put(key, body, {"IfNoneMatch": "*"})

    def upload(self, key: str) -> Upload:
        return _S3Upload(self, check_key(key))

    async def put_if_match(self, key: str, body: Body, etag: str) -> str:
        try:
            return await self._put(key, body, {"IfMatch": etag})
        except NotFound as error:
            raise PreconditionFailed(f"{self!r}: {key} does not exist, so it has not etag {etag}") from error

    async def get(self, key: str) -> StoredObject:
        check_key(key)
        async with self._attempt("read", key, 0) as client:
            answer = await client.get_object(Bucket=self._location.bucket, Key=self._full(key))
        size = answer["ContentLength"]
        async with self._attempt("read", key, size), answer["Body"] as stream:
            data = await stream.read()
        if len(data) != size:
            raise Unavailable(f"{self!r}: {key}: {len(data)} of {size} bytes came")
        return StoredObject(data, answer["ETag"])

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        check_key(key)
        assert start >= 0 and length > 0, (start, length)
        span = f"bytes={start}-{start + length - 1}"
        async with self._attempt("read", key, length) as client:
            answer = await client.get_object(Bucket=self._location.bucket, Key=self._full(key), Range=span)
            async with answer["Body"] as stream:
                if not answer.get("ContentRange", "").startswith(f"bytes {start}-"):
                    raise StoreError(f"{self!r}: ranged read of {key} answered with other bytes: unsupported store")
                data: bytes = await stream.read()
        if len(data) != answer["ContentLength"]:
            raise Unavailable(f"{self!r}: {key}: {len(data)} of {answer['ContentLength']} bytes came")
        if len(data) != length:
            raise NotFound(f"{self!r}: {key} ends before byte {start + length}")
        return data

    async def head(self, key: str) -> ObjectInfo:
        check_key(key)
        async with self._attempt("look at", key, 0) as client:
            answer = await client.head_object(Bucket=self._location.bucket, Key=self._full(key))
        return ObjectInfo(key, answer["ContentLength"], answer["ETag"])

    async def list(self, prefix: str, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        ask: dict[str, str] = {"Bucket": self._location.bucket, "Prefix": self._full(prefix)}
        if start_after:
            ask["StartAfter"] = self._full(start_after)
        last = ""
        while True:
            async with self._attempt("list", prefix, 0) as client:
                answer = await client.list_objects_v2(**ask)
            for row in answer.get("Contents", ()):
                key = row["Key"][len(self._location.prefix) :]
                if key <= last:
                    raise StoreError(f"{self!r} lists {key!r} after {last!r}, not in key order: unsupported store")
                last = key
                if key > start_after:
                    yield ObjectInfo(key, row["Size"], row["ETag"])
            if not answer.get("IsTruncated"):
                return
            ask["ContinuationToken"] = answer["NextContinuationToken"]

    async def delete(self, key: str) -> None:
        check_key(key)
        try:
            async with self._attempt("delete", key, 0, write=True) as client:
                await client.delete_object(Bucket=self._location.bucket, Key=self._full(key))
        except NotFound:
            pass

    async def close(self) -> None:
        self._client = None
        await self._exit.aclose()

    def _full(self, key: str) -> str:
        return self._location.prefix + key

    async def _put(self, key: str, body: Body, condition: dict[str, str]) -> str:
        check_key(key)
        blocks = list(body_blocks(await gathered_blocks(body)))
        size = body_size(body)
        if size > self._single_put_bytes_max:
            return await self._put_in_parts(key, blocks, condition)
        checksum = await asyncio.to_thread(_sha256, blocks)
        async with self._attempt("write", key, size, write=True) as client:
            answer = await client.put_object(
                Bucket=self._location.bucket,
                Key=self._full(key),
                Body=_Blocks(blocks),
                ContentLength=size,
                ChecksumSHA256=checksum,
                **condition,
            )
        return str(answer["ETag"])

    async def _put_in_parts(self, key: str, blocks: Sequence[memoryview], condition: dict[str, str]) -> str:
        """Nothing is visible before the last request, which carries the condition; errors before it changed nothing."""
        upload = await self.begin_parts(key)
        completing = False
        try:
            parts = await self._send_parts(key, upload, _cut(blocks, self._part_bytes))
            completing = True
            return await self.complete_parts(key, upload, parts, sum(block.nbytes for block in blocks), condition)
        except BaseException as error:
            # The last request may still be at work when its outcome is unknown.
            if not completing or not isinstance(error, OutcomeUnknown | asyncio.CancelledError):
                await self.abort_parts(key, upload)
            raise

    async def begin_parts(self, key: str) -> dict[str, str]:
        """What names a new upload in its further requests."""
        target = {"Bucket": self._location.bucket, "Key": self._full(key)}
        async with self._attempt("write", key, 0) as client:
            started = await client.create_multipart_upload(**target, ChecksumAlgorithm="SHA256")
        return {**target, "UploadId": started["UploadId"]}

    async def send_part(
        self, key: str, upload: dict[str, str], number: int, blocks: Sequence[memoryview]
    ) -> dict[str, Any]:
        """One part, counted from 1; what completing the upload has to say of it."""
        checksum = await asyncio.to_thread(_sha256, blocks)
        size = sum(block.nbytes for block in blocks)
        async with self._attempt("write", key, size) as client:
            answer = await client.upload_part(
                **upload, PartNumber=number, Body=_Blocks(blocks), ContentLength=size, ChecksumSHA256=checksum
            )
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": checksum}

    async def complete_parts(
        self, key: str, upload: dict[str, str], parts: Sequence[dict[str, Any]], size: int, condition: dict[str, str]
    ) -> str:
        """The object of all parts, `size` bytes; its etag."""
        async with self._attempt("write", key, size, write=True) as client:
            done = await client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}, **condition)
        return str(done["ETag"])

    async def _send_parts(
        self, key: str, upload: dict[str, str], parts: Iterator[tuple[int, Sequence[memoryview]]]
    ) -> Sequence[dict[str, Any]]:
        sent = []

        async def work() -> None:
            for number, blocks in parts:
                sent.append(await self.send_part(key, upload, number, blocks))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(PARTS_IN_FLIGHT):
                    group.create_task(work())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return sorted(sent, key=lambda part: part["PartNumber"])

    async def abort_parts(self, key: str, upload: dict[str, str]) -> None:
        """Best effort; a rule in the bucket that ends old incomplete uploads covers what this misses."""
        try:
            async with asyncio.timeout(ABORT_TIMEOUT_S), self._attempt("write", key, 0) as client:
                await client.abort_multipart_upload(**upload)
        except (StoreError, TimeoutError):
            pass

    @asynccontextmanager
    async def _attempt(self, verb: str, key: str, size: int, *, write: bool = False) -> AsyncIterator[Any]:
        """One request: its time limit, and its errors in the port's terms. `write`: it may change what readers see."""
        what = f"{self!r}: cannot {verb} {key}"
        unsure = OutcomeUnknown if write else Unavailable
        try:
            async with asyncio.timeout(timeout_s(size)):
                yield await self._opened()
        except TimeoutError:
            raise unsure(f"{what}: no answer within {timeout_s(size):.0f} s") from None
        except ClientError as error:
            raise _translate(what, error, write) from error
        except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError) as error:
            raise Denied(f"{what}: {error}: set AWS credentials, a profile or a role") from error
        except ConnectTimeoutError as error:
            raise Unavailable(f"{what}: {error}") from error
        except EndpointConnectionError as error:
            # Also raised for connections lost while sending; only this kind is certainly from before.
            refused = isinstance(error.kwargs.get("error"), aiohttp.ClientConnectorError)
            raise (Unavailable if refused else unsure)(f"{what}: {error}") from error
        except (BotoCoreError, aiohttp.ClientError, OSError) as error:
            raise unsure(f"{what}: {error}") from error

    async def _opened(self) -> Any:
        if self._client is None:
            async with self._opening:
                if self._client is None:
                    self._client = await self._open()
        return self._client

    async def _open(self) -> Any:
        # Slow to import, and not needed for other stores.
        from aiobotocore.config import AioConfig
        from aiobotocore.httpsession import AIOHTTPSession
        from aiobotocore.session import get_session

        class SingleAttempt(AIOHTTPSession):  # type: ignore[misc]
            async def _get_session(self, proxy_url: str | None) -> _SingleRequests:
                return _SingleRequests(await super()._get_session(proxy_url))

        location = self._location
        session = get_session()
        region = (
            location.region or session.get_config_variable("region") or ("us-east-1" if location.endpoint else None)
        )
        if region is None:
            raise StoreError(region_unknown(location))
        config = AioConfig(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=REQUEST_TIMEOUT_S,
            max_pool_connections=64,
            http_session_cls=SingleAttempt,
            retries={"total_max_attempts": 1},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={
                "payload_signing_enabled": False,
                "addressing_style": "path" if location.endpoint else "virtual",
            },
            user_agent_extra="tidelog",
        )
        client = await self._exit.enter_async_context(
            session.create_client(
                "s3",
                region_name=region,
                endpoint_url=location.endpoint,
                config=config,
            )
        )
        client.meta.events.register_first("needs-retry.s3", _no_redirect)
        return client


class _S3Upload:
    """A multi-part upload whose last request is conditional."""

    def __init__(self, store: AiobotocoreStore, key: str) -> None:
        self._store = store
        self._key = key
        self._upload: dict[str, str] | None = None
        self._parts: list[dict[str, Any]] = []
        self._size = 0

    async def write(self, part: Body) -> None:
        if self._upload is None:
            self._upload = await self._store.begin_parts(self._key)
        blocks = list(body_blocks(await gathered_blocks(part)))
        self._parts.append(await self._store.send_part(self._key, self._upload, len(self._parts) + 1, blocks))
        self._size += body_size(part)

    async def create(self) -> str:
        assert self._upload is not None, "an upload has at least one part"
        condition = {"IfNoneMatch": "*"}
        return await self._store.complete_parts(self._key, self._upload, self._parts, self._size, condition)

    async def abort(self) -> None:
        if self._upload is not None:
            await self._store.abort_parts(self._key, self._upload)


def _no_redirect(request_dict: dict[str, Any], **_: object) -> None:
    """A bucket in another region is an error of the configuration, not to be searched for with every request."""
    request_dict["context"].setdefault("s3_redirect", {})["redirected"] = True


def _translate(what: str, error: ClientError, write: bool) -> StoreError:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
    told = error.response.get("Error", {})
    code = str(told.get("Code", ""))
    if status < 300:
        status = 500  # an error in the body of a 200, as CompleteMultipartUpload may answer
    return error_for_status(what, status, code if not code.isdigit() else "", str(told.get("Message", "")), write=write)


class _SingleRequests:
    """An aiohttp session that sends what it is asked to send, once.

    By itself aiohttp repeats a PUT when a kept connection breaks: a write that was applied would then be refused by its
    own condition. There is no public switch for that.
    """

    def __init__(self, session: aiohttp.ClientSession) -> None:
        session._retry_connection = False
        self._session = session

    async def request(self, method: str, **options: Any) -> aiohttp.ClientResponse:
        return await self._session.request(method, allow_redirects=False, **options)


class _Blocks:
    """A request body of several buffers, as often as it is asked for. `read` only makes botocore take it for a file."""

    def __init__(self, blocks: Sequence[memoryview]) -> None:
        self._blocks = blocks

    def __len__(self) -> int:
        return sum(block.nbytes for block in self._blocks)

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        for block in self._blocks:
            yield block
            await asyncio.sleep(0)  # a socket that takes everything would never make aiohttp wait

    def read(self, _size: int = -1) -> bytes:
        raise NotImplementedError


def _sha256(blocks: Sequence[memoryview]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return base64.b64encode(digest.digest()).decode()


def _cut(blocks: Sequence[memoryview], part_bytes: int) -> Iterator[tuple[int, Sequence[memoryview]]]:
    """Numbered parts of at least `part_bytes`, but for the last one."""
    number, part, size = 1, list[memoryview](), 0
    for block in blocks:
        part.append(block)
        size += block.nbytes
        if size >= part_bytes:
            yield number, part
            number, part, size = number + 1, [], 0
    if part:
        yield number, part
