"""Outputs of merging: small ones in one PUT, large ones part by part, and whose object lies under a key."""

import tracemalloc

import pytest

import broker.outputs
from broker.outputs import OutputWriter, Pacer
from storage.memory import MemoryStore
from storage.object_store import Body, OutcomeUnknown, StoreError, body_size
from storage.retrying import RetryingStore, RetryLimits
from storage.seal import CorruptSegment
from tests.support.faulty_store import FaultyStore, Mishap, in_order

PART = 1_000


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker.outputs, "UPLOAD_PART_BYTES", PART)
    monkeypatch.setattr(broker.outputs, "BACKOFF_MS", 1)


def writer_over(store: FaultyStore) -> OutputWriter:
    patient = RetryingStore(store, token=bytes, limits=RetryLimits(attempts_max=3, backoff_ms=0))
    return OutputWriter(patient, Pacer(0, lambda: False))


async def store_blocks(writer: OutputWriter, blocks: list[bytes], end: list[bytes]) -> None:
    output = writer.output("merged/0000000001/7")
    try:
        for block in blocks:
            await output.write(block)
        await output.finish(end)
    except BaseException:
        await output.abort()
        raise


@pytest.mark.parametrize(("count", "calls"), [(1, ["put_if_absent"]), (9, ["write_part"] * 3 + ["create"])])
async def test_a_small_output_is_one_put_and_a_large_one_several_parts(count: int, calls: list[str]) -> None:
    store = FaultyStore(MemoryStore())
    writer = writer_over(store)
    blocks = [b"%d" % number * 300 for number in range(count)]
    await store_blocks(writer, blocks, [b"producers", b"tail"])
    assert store.calls == calls
    assert (await store.get("merged/0000000001/7")).data == b"".join([*blocks, b"producerstail"])
    assert writer.bytes_written == 300 * count + 13


async def test_an_answer_that_was_lost_is_looked_up() -> None:
    store = FaultyStore(MemoryStore())
    store.plan = lambda name: Mishap.UNHEARD if name == "create" else Mishap.NONE
    await store_blocks(writer_over(store), [bytes(600)] * 4, [b"tail"])
    assert store.calls[-3:] == ["head", "head", "get_range"]
    await store_blocks(writer_over(store), [bytes(600)] * 4, [b"tail"])  # done once more, by the same job
    with pytest.raises(CorruptSegment, match="other bytes lie under the key"):
        await store_blocks(writer_over(store), [bytes(600)] * 4, [b"liat"])
    assert store.calls[-1] == "abort"


async def test_a_store_that_stays_away_ends_it() -> None:
    store = FaultyStore(MemoryStore(), in_order(Mishap.NONE, *[Mishap.LOST] * 3))
    with pytest.raises(StoreError):
        await store_blocks(writer_over(store), [bytes(600)] * 9, [b"tail"])
    assert store.calls[-1] == "abort" and not store._store._keys  # type: ignore[attr-defined]
    store.plan = lambda name: Mishap.LOST if name == "create" else Mishap.NONE
    with pytest.raises(OutcomeUnknown):
        await store_blocks(writer_over(store), [bytes(600)] * 4, [b"tail"])


class Swallowing(MemoryStore):
    """Keeps no part."""

    class Upload:
        size = 0

        async def write(self, part: Body) -> None:
            self.size += body_size(part)

        async def create(self) -> str:
            return "etag"

        async def abort(self) -> None:
            pass

    def upload(self, key: str) -> Upload:
        self.made = self.Upload()
        return self.made


async def test_memory_holds_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gigabyte in blocks of half a megabyte."""
    monkeypatch.undo()
    store = Swallowing()
    output = OutputWriter(store, Pacer(0, lambda: False)).output("merged/0000000001/7")
    tracemalloc.start()
    try:
        for _ in range(2048):
            await output.write(bytearray(512 << 10))
        await output.finish([b"tail"])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert store.made.size == (1 << 30) + 4 and peak < 40 << 20
