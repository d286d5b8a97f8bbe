"""What merging and compaction share: a pace that both keep together, PUTs of what they make, and commands about it."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from controller.client import ControllerClient
from protocol import Buffer
from protocol.errors import ErrorCode, KafkaError
from storage.object_store import (
    UPLOAD_PART_BYTES,
    NotFound,
    ObjectStore,
    OutcomeUnknown,
    PreconditionFailed,
    StoreError,
    Upload,
    body_size,
)
from storage.seal import CorruptSegment

log = logging.getLogger(__name__)

PUT_ATTEMPTS = 5
BACKOFF_MS = 200
ASK_ATTEMPTS = 20
YIELD_S = 0.05
REST_S = 0.003
"""Three times what a slice of compaction takes: so it has a quarter of a core at most. Where CPU is short, a process
that always has work waits for its turn, and so do the requests in it."""
YIELD_S_MAX = 2.0
"""The longest that one step waits for busier work to end: merging must get on, or the metadata grows."""


class Pacer:
    """How fast a broker may read and write for merging and compaction, together."""

    def __init__(self, bytes_per_s: int, is_busy: Callable[[], bool]) -> None:
        """`bytes_per_s` may be changed at any time; 0: no limit. `is_busy`: others need the store or the loop now."""
        self.bytes_per_s = bytes_per_s
        self._is_busy = is_busy
        self._paced_until = 0.0

    async def pace(self, size: int) -> None:
        """Give way to busier work for a while, and keep to the rate."""
        loop = asyncio.get_running_loop()
        await self._give_way(loop, YIELD_S_MAX)
        if self.bytes_per_s:
            now = loop.time()
            begin = max(self._paced_until, now)
            self._paced_until = begin + size / self.bytes_per_s
            if begin > now:
                await asyncio.sleep(begin - now)

    async def rest(self) -> None:
        """Between slices of work on the event loop: whatever waits goes first, and most of the CPU is left to it."""
        await asyncio.sleep(REST_S)
        await self._give_way(asyncio.get_running_loop(), YIELD_S)

    async def _give_way(self, loop: asyncio.AbstractEventLoop, longest_s: float) -> None:
        until = loop.time() + longest_s
        while self._is_busy() and loop.time() < until:
            await asyncio.sleep(YIELD_S)


class OutputWriter:
    """Stores outputs under keys of their own, and counts the bytes of one kind of work."""

    def __init__(self, store: ObjectStore, pacer: Pacer) -> None:
        self._store = store
        self._pacer = pacer
        self.bytes_read = self.bytes_written = 0

    async def read_pace(self, size: int) -> None:
        """Called before so many bytes are read."""
        await self._pacer.pace(size)
        self.bytes_read += size

    def output(self, key: str) -> "StreamedOutput":
        """An object that may be large: to be written part by part."""
        return StreamedOutput(self, self._store.upload(key), key)

    async def create(self, upload: Upload, key: str, size: int, tail: bytes) -> None:
        """The object of all parts, which are on their way; as `put`."""
        try:
            await upload.create()
        except (PreconditionFailed, OutcomeUnknown):
            await self._verify_own(key, size, tail)

    async def send(self, upload: Upload, parts: Sequence[Any]) -> None:
        """One part of an upload."""
        size = body_size(parts)
        await self._pacer.pace(size)
        await upload.write(parts)
        self.bytes_written += size

    async def put(self, key: str, parts: Sequence[Any]) -> None:
        """Create the object. Its bytes follow from the job, so whatever is there under the key is ours, or damage."""
        size = body_size(parts)
        await self._pacer.pace(size)
        wait_s = BACKOFF_MS / 1000
        for attempt in range(1, PUT_ATTEMPTS + 1):
            try:
                await self._store.put_if_absent(key, parts)
                break
            except PreconditionFailed:
                await self._verify_own(key, size, bytes(parts[-1]))
                break
            except StoreError:
                if attempt == PUT_ATTEMPTS:
                    raise
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, YIELD_S_MAX)
        self.bytes_written += size

    async def _verify_own(self, key: str, size: int, tail: bytes) -> None:
        try:
            found = (await self._store.head(key)).size
            held = await self._store.get_range(key, size - len(tail), len(tail)) if found == size else b""
        except NotFound as error:
            raise OutcomeUnknown(f"{key} was refused as existing, but it does not exist") from error
        if held != tail:
            raise CorruptSegment(key, "other bytes lie under the key of a merge job")


class StreamedOutput:
    """One object on its way. A small one is stored with one PUT; of a large one memory holds a part at a time."""

    def __init__(self, writer: OutputWriter, upload: Upload, key: str) -> None:
        self._writer = writer
        self._upload = upload
        self._key = key
        self._parts: list[Any] = []
        self._held = 0
        self._sent = 0

    async def write(self, part: Buffer) -> None:
        """More of it. StoreError: `abort`."""
        if self._held >= UPLOAD_PART_BYTES:
            await self._flush()
        self._parts.append(part)
        self._held += body_size(part)

    async def finish(self, rest: Sequence[Any]) -> None:
        """All of it: `rest` is what comes last, and its last buffer holds a checksum of everything before it."""
        for part in rest:
            await self.write(part)
        if not self._sent:
            await self._writer.put(self._key, self._parts)
            return
        tail = bytes(self._parts[-1])
        await self._flush()
        await self._writer.create(self._upload, self._key, self._sent, tail)

    async def abort(self) -> None:
        """Nothing of it is wanted any more."""
        if self._sent:
            await self._upload.abort()

    async def _flush(self) -> None:
        parts, size = self._parts, self._held
        self._parts, self._held = [], 0
        self._sent += size
        await self._writer.send(self._upload, parts)


async def ask(controller: ControllerClient, command: Any) -> Any:
    """The controller's answer to a command about a job; None: it refused, or nobody answers."""
    wait_s = BACKOFF_MS / 1000
    for _ in range(ASK_ATTEMPTS):
        try:
            return await controller.ask(command)
        except KafkaError as error:
            if not error.retriable and error.code is not ErrorCode.NOT_CONTROLLER:
                log.info("%s of job %d was refused: %s", type(command).__name__, command.job, error)
                return None
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, YIELD_S_MAX)
    return None
