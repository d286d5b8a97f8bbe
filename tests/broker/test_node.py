"""One run of a broker from start to end: patience with the store, every way to fail, the clean stop."""

import asyncio
import contextlib
import logging
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import broker.http.port
import broker.node
import broker.registration
import broker.shutdown
import broker.space
from broker.bucket import CannotStart
from broker.log import LogStatus
from broker.node import leaves
from controller.commands import EndSession
from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import ErrorCode
from storage.memory import MemoryStore
from storage.object_store import Denied, ObjectStore, OutcomeUnknown, PreconditionFailed, Unavailable
from tests.support.faulty_store import FaultyStore, Mishap
from tests.support.node_runs import NEVER_MS, NodeRuns, hurry
from tests.support.raw_client import RawClient, batch_of, fetch_request, produce_request
from tests.support.waiting import until


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr(broker.http.port, "LATER_S", 0)


@pytest.fixture
async def runs(tmp_path: Path) -> AsyncIterator[NodeRuns]:
    async with NodeRuns(tmp_path) as made:
        yield made


class AwayStore(FaultyStore):
    """Every call from number `first` on fails until `back`."""

    def __init__(self, memory: MemoryStore, first: int) -> None:
        super().__init__(memory, self._plan_of)
        self.first = first
        self.number = self.failed = 0
        self.away = True

    def _plan_of(self, name: str) -> Mishap:
        self.number += 1
        if not self.away or self.number < self.first:
            return Mishap.NONE
        self.failed += 1
        return (Mishap.UNAVAILABLE, Mishap.LOST)[self.failed % 2]


class SlowUploads(FaultyStore):
    """Segments wait until the event is set."""

    def __init__(self, memory: MemoryStore, held: asyncio.Event) -> None:
        super().__init__(memory)
        self._held = held

    async def put_if_absent(self, key: str, body: Any) -> str:
        if key.startswith("segments/"):
            await self._held.wait()
        return await super().put_if_absent(key, body)


async def status(run: NodeRuns, path: str) -> int:
    """What the HTTP port answers."""

    def ask() -> int:
        host, port = run.broker.http_address or ("", 0)
        try:
            with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=5) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    return await asyncio.to_thread(ask)


# Patience


async def test_a_start_waits_for_the_store_wherever_it_is_lost(
    runs: NodeRuns, caplog: pytest.LogCaptureFixture
) -> None:
    """Alive, not ready, said once, and it goes on by itself."""
    runs.overrides["tidelog.http.listener"] = "127.0.0.1:0"
    await runs.start()
    await runs.create("t")
    await runs.produce("t", batch_of(b"kept"))
    await runs.kill()
    back = runs.save()
    counted = AwayStore(runs.memory, 1 << 30)
    runs.wrap = lambda _: counted
    await runs.start()
    total = counted.number
    await runs.kill()
    assert total > 150
    for first in (1, 2, 40, total - 22, *range(total - 20, total + 1, 2)):
        back()
        caplog.clear()
        store = AwayStore(runs.memory, first)
        runs.wrap = lambda _, store=store: store  # type: ignore[misc]
        serving = runs.spawn()
        await until(lambda store=store: store.failed >= 4)  # type: ignore[misc]
        assert not serving.done(), f"lost at call {first}"
        assert (await status(runs, "/livez"), await status(runs, "/readyz")) == (200, 503)
        store.away = False
        assert await asyncio.wait_for(serving, 10)
        assert await status(runs, "/readyz") == 200
        assert await runs.offsets("t") == (0, 1)
        told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert told and len(told) == len(set(told)), "each thing once"
        await runs.kill()


async def test_a_stop_while_starting_is_quick_and_keeps_the_wal(runs: NodeRuns) -> None:
    runs.overrides["tidelog.shutdown.timeout.ms"] = 1000  # the last calls may come when it serves already
    await runs.start()
    await runs.create("t")
    await runs.produce("t", batch_of(b"kept"))
    await runs.kill()
    back, (kept,) = runs.save(), runs.instances()
    counted = AwayStore(runs.memory, 1 << 30)
    runs.wrap = lambda _: counted
    await runs.start()
    total = counted.number
    await runs.kill()
    for first in (1, 40, total - 16, total - 12, total - 8):
        back()
        store = AwayStore(runs.memory, first)
        runs.wrap = lambda _, store=store: store  # type: ignore[misc]
        serving = runs.spawn()
        await until(lambda store=store: store.failed >= 2)  # type: ignore[misc]
        began = asyncio.get_running_loop().time()
        assert await runs.stop() == 1
        assert asyncio.get_running_loop().time() - began < 6
        assert not await serving
        if first <= 40:
            assert runs.instances() == [kept], "what was never registered leaves nothing behind"
        runs.wrap = lambda memory: memory
        await runs.start()
        assert await runs.offsets("t") == (0, 1)
        assert await runs.stop() == 0


# What cannot start


async def refusal(runs: NodeRuns) -> str:
    """The message of a start that fails before anything is served."""
    assert not await asyncio.wait_for(runs.spawn(), 10)
    with pytest.raises(CannotStart) as caught:
        await runs.ended()
    return str(caught.value)


class Refusing(FaultyStore):
    """Raises this from every write."""

    def __init__(self, memory: MemoryStore, error: Exception) -> None:
        super().__init__(memory)
        self._error = error

    async def put_if_absent(self, key: str, body: Any) -> str:
        raise self._error


async def test_a_store_that_cannot_be_used(runs: NodeRuns) -> None:
    runs.wrap = lambda memory: Refusing(memory, Denied("s3://b: cannot write k: AccessDenied"))
    assert "check credentials and permissions" in await refusal(runs)
    runs.wrap = lambda memory: Refusing(memory, PreconditionFailed("k exists"))
    assert "cannot be used" in await refusal(runs)

    def bad(_: MemoryStore) -> ObjectStore:
        raise ValueError("storage URI 'x': unknown scheme")

    runs.wrap = bad
    assert (await refusal(runs)).startswith("tidelog.storage: storage URI 'x'")
    assert not runs.wal_dir.exists()


async def test_a_store_that_does_not_keep_its_word_gets_no_data(runs: NodeRuns) -> None:
    class Overwriting(FaultyStore):
        async def put_if_absent(self, key: str, body: Any) -> str:
            return await self.put(key, body)

    runs.wrap = Overwriting
    assert "does not refuse a write with If-None-Match" in await refusal(runs)
    assert [info.key async for info in runs.memory.list("")] == []


async def test_a_bucket_that_belongs_to_somebody_else(runs: NodeRuns) -> None:
    await runs.start()
    assert await runs.stop() == 0
    await runs.memory.put("cluster.json", b'{"cluster_id": "short", "format": 1}')
    assert "no valid cluster id" in await refusal(runs)
    await runs.memory.put("cluster.json", b"not json")
    assert "restore it" in await refusal(runs)
    await runs.memory.delete("cluster.json")
    assert "is missing, but meta/entries" in await refusal(runs)


async def test_damaged_metadata_is_one_line_and_the_wal_stays(runs: NodeRuns, caplog: pytest.LogCaptureFixture) -> None:
    await runs.start()
    await runs.kill()
    kept = runs.instances()
    key = next(key for key in runs.memory._keys if key.startswith("meta/entries/"))
    await runs.memory.put(key, b"garbage")
    assert not await asyncio.wait_for(runs.spawn(), 10)
    assert await runs.ended() == 1
    (line,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert line.getMessage().startswith("stopping: CorruptMetadata: ") and line.exc_info is None
    assert runs.instances() == kept


async def test_ports_that_are_taken(runs: NodeRuns) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        runs.overrides["listeners"] = f"PLAINTEXT://127.0.0.1:{port}"
        message = await refusal(runs)
        assert f"cannot listen on PLAINTEXT://127.0.0.1:{port}" in message and "in use" in message
        assert runs.instances() == []
        runs.overrides["tidelog.http.listener"] = f"127.0.0.1:{port}"
        message = await refusal(runs)
        assert f"cannot listen on tidelog.http.listener 127.0.0.1:{port}: Address already in use" in message
    runs.overrides["tidelog.http.listener"] = "no.such.host.invalid:1"
    assert "cannot listen on tidelog.http.listener no.such.host.invalid:1" in await refusal(runs)


async def test_wal_directories_that_cannot_be_used(runs: NodeRuns, tmp_path: Path) -> None:
    runs.wal_dir.write_text("a file")
    assert str(runs.wal_dir) in await refusal(runs)
    runs.wal_dir.unlink()
    await runs.start()
    other = NodeRuns(tmp_path)
    other.memory = runs.memory
    assert "is in use by another process: a broker with node.id=1 runs here already" in await refusal(other)
    await runs.kill()
    other.memory = MemoryStore()
    assert "belongs to cluster" in await refusal(other)


async def test_a_node_id_with_a_live_session_waits_and_takes_over(
    runs: NodeRuns, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine's directory: nothing proves that the first process is gone, so its session must end."""
    monkeypatch.setattr(broker.registration, "TELL_S", 0.1)
    runs.overrides |= {"tidelog.session.timeout.ms": 400, "tidelog.controller.lease.ms": 200}
    await runs.start()
    async with NodeRuns(tmp_path / "elsewhere") as other:
        other.overrides |= {"tidelog.session.timeout.ms": 400, "tidelog.controller.lease.ms": 200}
        other.memory = runs.memory
        serving = other.spawn()
        await until(lambda: "waiting to register" in caplog.text)
        await asyncio.sleep(0.5)
        assert not serving.done() and runs.broker.ready
        assert caplog.text.count("waiting to register: node.id 1 has a live session") == 1
        assert await runs.stop() == 0
        assert await asyncio.wait_for(serving, 10)


# How a run ends by itself


async def code_of(runs: NodeRuns, caplog: pytest.LogCaptureFixture) -> tuple[int, str]:
    """The exit code, and the one line that says why."""
    code = await runs.ended()
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]
    return code, line


async def test_a_session_that_was_ended_ends_the_process(runs: NodeRuns, caplog: pytest.LogCaptureFixture) -> None:
    await runs.start()
    run = runs.broker
    await run.controller.ask(EndSession(bytes(16), run.incarnation, run.incarnation))
    code, line = await code_of(runs, caplog)
    assert code == 1 and "this broker leads nothing any more: its session was ended (request)" in line
    assert not run.ready and runs.instances(), "what it acknowledged is recovered by the next start"
    await runs.start()


async def test_a_fence_file_ends_the_process(runs: NodeRuns, caplog: pytest.LogCaptureFixture) -> None:
    await runs.start()
    await runs.create("t")
    (instance,) = runs.instances()
    (instance / "fence").touch()
    async with runs.client() as client:
        client.send(ApiKey.PRODUCE, 9, produce_request([("t", 0, batch_of(b"never acknowledged"))]))
        assert await client.closed()
    code, line = await code_of(runs, caplog)
    assert code == 1 and "another process recovers this WAL" in line


async def test_a_deleted_wal_directory_ends_the_process(runs: NodeRuns, caplog: pytest.LogCaptureFixture) -> None:
    await runs.start()
    await runs.create("t")
    shutil.rmtree(runs.instances()[0])
    async with runs.client() as client:
        client.send(ApiKey.PRODUCE, 9, produce_request([("t", 0, batch_of(b"never acknowledged"))]))
        assert await client.closed()
    code, line = await code_of(runs, caplog)
    assert code == 1 and "the WAL cannot be written" in line


async def test_a_bug_in_the_background_is_one_line_with_its_trace(
    runs: NodeRuns, caplog: pytest.LogCaptureFixture
) -> None:
    await runs.start()

    async def broken() -> None:
        raise ZeroDivisionError("planted")

    runs.broker.services.tasks.spawn(broken(), name="a bug")
    code, line = await code_of(runs, caplog)
    assert code == 1 and line == "stopping because of a bug: ZeroDivisionError('planted')"
    assert caplog.text.count("Traceback") == 1


async def test_a_seal_that_cannot_be_committed_ends_the_process(
    runs: NodeRuns, caplog: pytest.LogCaptureFixture
) -> None:
    await runs.start()
    await runs.create("t")
    await runs.produce("t", batch_of(b"a"))
    log = runs.broker.logs.find["t", 0]

    class OtherBytes(FaultyStore):
        async def put_if_absent(self, key: str, body: Any) -> str:
            if key.startswith("segments/"):
                await self.put(key, b"somebody else's")
            return await super().put_if_absent(key, body)

    runs.broker.uploader._store = OtherBytes(runs.memory)
    waiting = asyncio.ensure_future(runs.broker.sealing.commit_through(log, 1))  # noqa: TID251
    code, line = await code_of(runs, caplog)
    waiting.cancel()
    assert code == 1 and "other bytes lie under our key" in line
    runs.wrap = lambda memory: memory
    await runs.start()
    assert await runs.offsets("t") == (0, 1)


async def test_producers_that_wait_for_space_are_told_of_once(
    runs: NodeRuns, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker.space, "WATCH_S", 0.001)
    caplog.set_level(logging.INFO)
    run = await runs.start()
    full = OSError(28, "No space left on device")
    for _ in range(2):
        caplog.clear()
        run.wals.volume._ring.error = full
        run.logs.space.wait(1 << 40, 1, 5, lambda: None, lambda: None)
        await until(lambda: "producers wait" in caplog.text)
        await asyncio.sleep(0.02)
        assert caplog.text.count("the WAL or the memory for tails is full: producers wait") == 1
        assert caplog.text.count("no further WAL file can be prepared in") == 1 and str(full) in caplog.text
        run.wals.volume._ring.error = None
        run.logs.space.expire_all()
        await until(lambda: "producers go on" in caplog.text and "can be prepared again" in caplog.text)


def test_leaves_of_nested_groups() -> None:
    first, second = ValueError(), CannotStart()
    group = BaseExceptionGroup("outer", [ExceptionGroup("inner", [first]), second])
    assert list(leaves(group)) == [first, second]


# The clean stop


async def test_a_clean_stop_leaves_everything_in_the_bucket(runs: NodeRuns) -> None:
    await runs.start()
    await runs.create("t", 3)
    for partition in range(3):
        await runs.produce("t", batch_of(b"a"), batch_of(b"b"), partition=partition)
    assert await runs.stop() == 0
    assert list(runs.wal_dir.iterdir()) == []
    shutil.rmtree(runs.wal_dir)
    run = await runs.start()
    assert [await runs.offsets("t", partition) for partition in range(3)] == [(0, 2)] * 3
    broker_ = run.controller.state.brokers[1]
    assert broker_.alive and {wal.state for wal in run.controller.state.wals.values()} == {"retired", "active"}


async def test_a_stop_answers_what_is_appended_and_what_waits(runs: NodeRuns) -> None:
    """A long poll, a member that waits for others, and appends that are on their way to the disk."""
    await runs.start()
    await runs.create("t")
    run = runs.broker
    log = run.logs.find["t", 0]
    validation = run.wals.all[0].validation
    durable = run.wals.volume._on_durable
    held: list[tuple[int, int]] = []
    run.wals.volume._on_durable = lambda sequence, group: held.append((sequence, group))
    async with runs.client() as producer, runs.client() as consumer:
        consumer.send(ApiKey.FETCH, 12, fetch_request([("t", 0, 0)], max_wait_ms=60_000))
        producer.send(ApiKey.PRODUCE, 9, produce_request([("t", 0, batch_of(b"x"))]))
        await until(lambda: held)
        stopping = asyncio.ensure_future(runs.stop())  # noqa: TID251
        await until(lambda: log.status is LogStatus.FROZEN)
        assert not log.hw and not stopping.done()
        run.wals.volume._on_durable = durable
        validation.on_durable(*held[-1])
        _, produced = await producer.receive(ApiKey.PRODUCE, 9)
        assert produced.responses[0].partition_responses[0].error_code == 0
        _, fetched = await consumer.receive(ApiKey.FETCH, 12)
        assert fetched.error_code == 0
        assert await producer.closed() and await consumer.closed()
        assert await stopping == 0
    await runs.start()
    assert await runs.offsets("t") == (0, 1)


async def test_a_stop_gives_up_on_clients_that_do_not_read(runs: NodeRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker.shutdown, "DRAIN_MS", 200)
    await runs.start()
    await runs.create("t")
    for _ in range(8):
        await runs.produce("t", batch_of(bytes(900_000)))
    reader, writer = await asyncio.open_connection("127.0.0.1", runs.port, limit=1024)
    client = RawClient(runs.port)
    for _ in range(20):
        writer.write(client.frame(ApiKey.FETCH, 12, fetch_request([("t", 0, 0)], partition_max_bytes=1 << 23))[1])
    await until(lambda: runs.broker.server.hub.unsent_bytes)
    began = asyncio.get_running_loop().time()
    assert await runs.stop() == 0
    assert asyncio.get_running_loop().time() - began < 2
    writer.transport.abort()
    del reader


async def test_the_session_is_kept_alive_while_a_stop_takes_long(runs: NodeRuns) -> None:
    runs.overrides |= {"tidelog.session.timeout.ms": 300, "tidelog.controller.lease.ms": 200}
    held = asyncio.Event()
    runs.wrap = lambda memory: SlowUploads(memory, held)
    await runs.start()
    await runs.create("t")
    await runs.produce("t", batch_of(b"a"))
    stopping = asyncio.ensure_future(runs.stop())  # noqa: TID251
    await asyncio.sleep(0.9)
    run = runs.broker
    assert not stopping.done() and run.session.stands(run.clock.boottime_ms())
    held.set()
    assert await stopping == 0


async def test_a_stop_without_the_store_says_so_and_keeps_the_wal(
    runs: NodeRuns, caplog: pytest.LogCaptureFixture
) -> None:
    runs.overrides["tidelog.shutdown.timeout.ms"] = 300
    stores: list[FaultyStore] = []

    def wrap(memory: MemoryStore) -> ObjectStore:
        stores.append(FaultyStore(memory))
        return stores[-1]

    runs.wrap = wrap
    await runs.start()
    await runs.create("t")
    await runs.produce("t", batch_of(b"a"))
    stores[-1].plan = lambda _: Mishap.UNAVAILABLE
    began = asyncio.get_running_loop().time()
    assert await runs.stop() == 1
    assert asyncio.get_running_loop().time() - began < 2
    assert "no clean stop within tidelog.shutdown.timeout.ms=300 (time is over): the WAL stays" in caplog.text
    await runs.start()
    assert await runs.offsets("t") == (0, 1)


async def test_an_unheard_answer_to_the_last_command_is_asked_for_again(runs: NodeRuns) -> None:
    stores: list[FaultyStore] = []

    def wrap(memory: MemoryStore) -> ObjectStore:
        stores.append(FaultyStore(memory))
        return stores[-1]

    runs.wrap = wrap
    for mishaps in ([Mishap.UNHEARD], [Mishap.LOST, Mishap.LATE], [Mishap.LATE, Mishap.LOST, Mishap.UNHEARD]):
        await runs.start()
        left = list(mishaps)
        stores[-1].plan = lambda name, left=left: left.pop() if left and name == "put_if_absent" else Mishap.NONE  # type: ignore[misc]
        assert await runs.stop() == 0
        assert list(runs.wal_dir.iterdir()) == []


async def test_a_wal_that_fails_while_stopping_ends_the_process_at_once(
    runs: NodeRuns, caplog: pytest.LogCaptureFixture
) -> None:
    held = asyncio.Event()
    runs.wrap = lambda memory: SlowUploads(memory, held)
    await runs.start()
    await runs.create("t")
    await runs.produce("t", batch_of(b"a"))
    stopping = asyncio.ensure_future(runs.stop())  # noqa: TID251
    await until(lambda: runs.broker.uploader.in_flight)
    runs.broker.wals.volume._on_failed(OSError(5, "Input/output error"))
    assert await stopping == 1
    assert "the WAL cannot be written: [Errno 5] Input/output error" in caplog.text


async def test_a_stop_with_thousands_of_logs_is_quick(runs: NodeRuns) -> None:
    runs.overrides["tidelog.wal.bytes.max"] = 256 << 20
    await runs.start()
    await runs.create("t", 3000)
    async with runs.client() as client:
        for start in range(0, 3000, 500):
            parts = [("t", partition, batch_of(b"x")) for partition in range(start, start + 500)]
            answer = await client.ask(ApiKey.PRODUCE, 9, produce_request(parts), timeout=20)
            assert not any(part.error_code for part in answer.responses[0].partition_responses)
    began = asyncio.get_running_loop().time()
    assert await runs.stop() == 0
    assert asyncio.get_running_loop().time() - began < 5, "a bound for busy machines"
    assert list(runs.wal_dir.iterdir()) == []


async def test_topics_deleted_while_stopping(runs: NodeRuns) -> None:
    await runs.start()
    for name in ("a", "b"):
        await runs.create(name)
        await runs.produce(name, batch_of(b"x"))
    stopping = asyncio.ensure_future(runs.stop())  # noqa: TID251
    delete = m.DeleteTopicsRequest(topic_names=["a"], timeout_ms=1000)
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        async with runs.client() as client:
            await client.ask(ApiKey.DELETE_TOPICS, 5, delete)
    assert await stopping == 0


async def test_nobody_appends_to_a_log_that_opens_while_stopping(runs: NodeRuns) -> None:
    held = asyncio.Event()
    runs.wrap = lambda memory: SlowUploads(memory, held)
    await runs.start()
    await runs.create("t", 2)
    await runs.produce("t", batch_of(b"x"))
    other, log = (runs.broker.logs.find["t", partition] for partition in range(2))
    log.status = LogStatus.OPENING
    stopping = asyncio.ensure_future(runs.stop())  # noqa: TID251
    await until(lambda: other.status is LogStatus.FROZEN)
    runs.broker.logs._opened(log)
    assert log.status is LogStatus.FROZEN
    held.set()
    assert await stopping == 0


# Around the rest


async def test_listeners_on_every_interface_tell_clients_a_name(
    runs: NodeRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker.node, "local_host", lambda: "this.host")
    runs.overrides["listeners"] = "PLAINTEXT://:0"
    await runs.start()
    (told,) = runs.broker.controller.state.brokers[1].listeners
    assert (told.host, told.port) == ("this.host", runs.port)


async def test_unknown_outcomes_are_no_reason_to_give_up(runs: NodeRuns) -> None:
    left = [OutcomeUnknown("timed out"), Unavailable("503")]

    class Hanging(FaultyStore):
        async def put_if_absent(self, key: str, body: Any) -> str:
            if left:
                raise left.pop()
            return await super().put_if_absent(key, body)

    runs.wrap = Hanging
    await runs.start()
    assert runs.overrides["tidelog.seal.ms"] == NEVER_MS


async def test_produce_is_refused_with_a_retriable_error_once_a_stop_began(runs: NodeRuns) -> None:
    await runs.start()
    await runs.create("t")
    for log in runs.broker.logs.logs:
        log.freeze()
    async with runs.client() as client:
        answer = await client.produce("t", batch_of(b"x"))
    assert answer.error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER
    assert await runs.stop() == 0
