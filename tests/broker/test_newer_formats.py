"""What a newer version wrote is refused with what to do, and not touched: the newer version goes on from there."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from crc32c import crc32c

from broker.bucket import CannotStart
from controller.cluster_file import KEY
from controller.object_log import ENTRIES, SNAPSHOTS
from protocol import messages as m
from protocol.apis import ApiKey
from storage.memory import MemoryStore
from storage.segment import _FOOTER_CRC_POSITION, FOOTER_SIZE
from tests.support.node_runs import NodeRuns, hurry
from tests.support.raw_client import batch_of
from tests.support.waiting import until


@pytest.fixture
async def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NodeRuns]:
    """A broker that stopped cleanly: a topic with records in a segment."""
    hurry(monkeypatch)
    async with NodeRuns(tmp_path) as runs:
        await runs.start()
        await runs.create("t")
        await runs.produce("t", batch_of(b"a"), batch_of(b"b"))
        assert await runs.stop() == 0
        yield runs


async def newest(store: MemoryStore, prefix: str) -> str:
    return [info.key async for info in store.list(prefix)][-1]


async def newer_cluster_file(store: MemoryStore) -> None:
    await store.put(KEY, (await store.get(KEY)).data.replace(b'"format": 1', b'"format": 3'))


async def newer_entry(store: MemoryStore) -> None:
    key = await newest(store, ENTRIES)
    data = bytearray((await store.get(key)).data)
    data[4] = 2
    await store.put(key, bytes(data))


async def newer_snapshot(store: MemoryStore) -> None:
    key = await newest(store, ENTRIES)
    data = bytearray(b"TLMS" + (await store.get(key)).data[4:])
    data[4] = 2
    await store.put(SNAPSHOTS + key.removeprefix(ENTRIES), bytes(data))


async def contents(runs: NodeRuns) -> dict[str, bytes]:
    keys = [info.key async for info in runs.memory.list("") if not info.key.startswith("probe/")]
    return {key: (await runs.memory.get(key)).data for key in keys}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (newer_cluster_file, r"cluster.json is of format 3 .*this version reads up to 2: use a newer version"),
        (newer_entry, "format 2, this version reads 1: upgrade"),
        (newer_snapshot, "format 2, this version reads 1: upgrade"),
    ],
)
async def test_metadata(
    stopped: NodeRuns,
    change: Callable[[MemoryStore], Awaitable[None]],
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await change(stopped.memory)
    before = await contents(stopped)
    stopped.spawn()
    try:
        assert await stopped.ended() == 1
        told = caplog.text
    except CannotStart as error:
        told = str(error)
    assert "bug" not in told
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(told)
    assert await contents(stopped) == before
    assert stopped.instances() == []


async def test_a_wal(stopped: NodeRuns) -> None:
    await stopped.start()
    await stopped.produce("t", batch_of(b"c"))
    await stopped.kill()
    (instance,) = stopped.instances()
    superblock = (instance / "superblock").read_bytes()
    (instance / "superblock").write_bytes(superblock.replace(b"tidelog-wal 1", b"tidelog-wal 2"))
    files = {path: path.read_bytes() for path in instance.iterdir()}
    with pytest.raises(CannotStart, match=r"WAL format 2; this version reads 1: start the version that wrote it"):
        stopped.spawn()
        await stopped.ended()
    assert {path: path.read_bytes() for path in instance.iterdir()} == files
    (instance / "superblock").write_bytes(superblock)
    await stopped.start()
    assert await stopped.offsets("t") == (0, 3)


async def test_a_segment(stopped: NodeRuns, caplog: pytest.LogCaptureFixture) -> None:
    """The log that it cannot open is not led, with an alarm, and the broker does not serve."""
    key = await newest(stopped.memory, "segments/")
    whole = (await stopped.memory.get(key)).data
    data = bytearray(whole)
    footer = memoryview(data)[-FOOTER_SIZE:]
    footer[24:26] = (2).to_bytes(2, "big")
    checksum = crc32c(footer[:_FOOTER_CRC_POSITION])
    footer[_FOOTER_CRC_POSITION : _FOOTER_CRC_POSITION + 4] = checksum.to_bytes(4, "big")
    await stopped.memory.put(key, bytes(data))
    starting = stopped.spawn()
    await until(lambda: "cannot open" in caplog.text)
    assert "format version 2, flags 0x0; this version reads 1: upgrade" in caplog.text
    assert not starting.done()
    await stopped.kill()
    await stopped.memory.put(key, whole)
    await stopped.start()
    assert await stopped.offsets("t") == (0, 2)
    async with stopped.client() as client:
        answer = await client.ask(ApiKey.METADATA, 12, m.MetadataRequest(topics=None))
        assert [topic.name for topic in answer.topics] == ["t"]
        assert (await client.fetch("t", 0)).error_code == 0
