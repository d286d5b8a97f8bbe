"""The simulated bucket: late, lost and in doubt, and still exact about conditions."""

from __future__ import annotations

import asyncio
import gc
import random  # noqa: TID251
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from storage.object_store import (
    Body,
    NotFound,
    ObjectStore,
    OutcomeUnknown,
    PreconditionFailed,
    StoreError,
    Unavailable,
)
from storage.probe import probe
from storage.retrying import RetryingStore
from tests.simulation.hosts import Host
from tests.simulation.network import Network
from tests.simulation.process import Process
from tests.simulation.scheduler import MS, S, Scheduler
from tests.simulation.store import Bucket, StoreFaults

Main = Callable[[ObjectStore], Awaitable[Any]]


class Bench:
    """Processes on two hosts over one bucket; `notes` is what they saw, `landed` every content that was written."""

    def __init__(self, seed: int = 1) -> None:
        self.scheduler = Scheduler(seed)
        network = Network(self.scheduler)
        self.hosts = [Host(self.scheduler, network, name) for name in ("a", "b")]
        self.bucket = Bucket(self.scheduler, self.scheduler.stream("bucket"), record=self.scheduler.history.record)
        self.notes: list[Any] = []
        self.landed: list[tuple[str, bytes]] = []
        self.processes: list[Process] = []
        store = self.bucket.memory._store

        def noting(key: str, body: Body) -> str:
            etag = store(key, body)
            self.landed.append((key, self.bucket.memory._objects[key].data))
            return etag

        self.bucket.memory._store = noting  # type: ignore[method-assign]

    def start(self, main: Main, host: int = 0, *, bare: bool = True) -> Process:
        process = Process(self.hosts[host], f"process {len(self.processes)}")
        self.processes.append(process)
        name = self.hosts[host].name
        store = self.bucket.handle(process, name) if bare else self.bucket.opener(process, name)("s3://bucket")

        async def run() -> None:
            self.notes.append(await main(store))

        process.spawn(run)
        return process

    def run(self, ns: int) -> None:
        self.scheduler.run_until(self.scheduler.now_ns + ns)

    def end(self) -> None:
        for process in self.processes:
            assert process.failures == [] and process.error is None
            process.kill()
            process.bury()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.end()
    gc.collect()  # what was left in the middle must go silently: warnings are errors


def said(error: BaseException | None) -> str:
    return "ok" if error is None else type(error).__name__


async def outcome(call: Awaitable[Any]) -> str:
    try:
        await call
    except StoreError as error:
        return said(error)
    return "ok"


def test_a_call_takes_time_and_calls_overlap(bench: Bench) -> None:
    async def main(store: ObjectStore) -> None:
        await store.put_if_absent("key", b"value")
        bench.notes.append(bench.scheduler.now_ns)
        await asyncio.gather(*(store.get("key") for _ in range(20)))
        bench.notes.append(bench.scheduler.now_ns)

    bench.start(main)
    bench.run(60 * S)
    wrote_ns, read_ns, _ = bench.notes
    assert wrote_ns > 5 * MS and 15 * MS < read_ns - wrote_ns < 20 * 15 * MS


def test_outcomes_say_what_happened() -> None:
    """Applied once, never, or either when unknown; of racing writers at most one passes a condition."""
    seen: Counter[tuple[str, str, int]] = Counter()
    for seed in range(12):
        bench = Bench(seed)
        bench.bucket.faults = StoreFaults(0.05, 0.05, 0.05, 0.1, 0.05, 0.05, 0.05)
        results: list[tuple[str, str, bytes, str]] = []

        async def main(
            store: ObjectStore, number: int, bench: Bench = bench, results: list[tuple[str, str, bytes, str]] = results
        ) -> None:
            rng = bench.processes[number].random("test")
            for turn in range(60):
                key, body = f"key/{rng.randrange(8)}", b"%d %d" % (number, turn)
                name = rng.choice(["put_if_absent", "put_if_match", "delete"])
                try:
                    if name == "delete":
                        await store.delete(key)
                    elif name == "put_if_absent":
                        await store.put_if_absent(key, body)
                    else:
                        await store.put_if_match(key, body, (await store.head(key)).etag)
                    told = "ok"
                except NotFound:
                    continue
                except StoreError as error:
                    told = said(error)
                results.append((name, key, body, told))

        for number in range(4):
            bench.start(lambda store, number=number, main=main: main(store, number))  # type: ignore[misc]
        bench.run(900 * S)
        assert len(bench.notes) == 4
        landed = Counter(bench.landed)
        for name, key, body, told in results:
            if name != "delete":
                seen[name, told, landed[key, body]] += 1
        bench.end()
    for name in ("put_if_absent", "put_if_match"):
        for told, times in (("ok", {1}), ("PreconditionFailed", {0}), ("OutcomeUnknown", {0, 1})):
            assert {count for (n, t, count) in seen if (n, t) == (name, told)} == times, (name, told, seen)
    assert not [key for key in seen if key[1] == "Unavailable" and key[2]], seen


def test_a_refused_condition_is_never_false(bench: Bench) -> None:
    """One process alone, without late writes: nobody else can have changed the object."""
    bench.bucket.faults = StoreFaults(unavailable=0.1, lost=0.1, hang=0.02, cut=0.1, slow=0.1)

    async def main(store: ObjectStore) -> Counter[str]:
        told: Counter[str] = Counter()
        for number in range(100):
            told[await outcome(store.put_if_absent(f"{number}", b""))] += 1
        return told

    bench.start(main)
    bench.run(2000 * S)
    [told] = bench.notes
    assert told["PreconditionFailed"] == 0 and min(told["ok"], told["OutcomeUnknown"], told["Unavailable"]) > 4


@pytest.mark.parametrize("seed", range(8))
def test_the_products_retries_master_it(seed: int) -> None:
    """A counter that three processes increase: every success is exactly one step, and doubt is rare."""
    bench = Bench(seed)
    bench.bucket.faults = StoreFaults(0.08, 0.03, 0.03, 0.03, 0.02, 0.05, 0.02, late_ns_max=20 * S)

    async def main(store: ObjectStore, number: int) -> tuple[int, int]:
        assert isinstance(store, RetryingStore)
        successes, doubts = 0, 0
        turn = 0
        while successes + doubts < 15:
            turn += 1
            try:
                stored = await store.get("counter")
                value = int(stored.data.partition(b"|")[0])
                await store.put_if_match("counter", b"%d|%d %d" % (value + 1, number, turn), stored.etag)
                successes += 1
            except OutcomeUnknown:
                doubts += 1
            except (PreconditionFailed, Unavailable):
                pass
        return successes, doubts

    async def begin(store: ObjectStore) -> tuple[int, int]:
        while await outcome(store.put_if_absent("counter", b"0|")) != "ok":
            pass
        return 0, 0

    bench.start(begin, bare=False)
    bench.run(60 * S)
    for number in range(3):
        bench.start(lambda store, number=number: main(store, number), number % 2, bare=False)  # type: ignore[misc]
    bench.run(900 * S)
    assert len(bench.notes) == 4
    successes, doubts = (sum(column) for column in zip(*bench.notes))
    final = int(bench.bucket.objects["counter"].partition(b"|")[0])
    assert successes <= final <= successes + doubts and doubts < successes
    bench.end()


def test_the_probe_accepts_it(bench: Bench) -> None:
    async def main(store: ObjectStore) -> None:
        await probe(store, bench.processes[0].token)

    bench.start(main, bare=False)
    bench.run(60 * S)
    assert bench.notes == [None] and bench.bucket.objects == {}


def test_killed_with_the_request_in_its_hands_or_on_its_way() -> None:
    landed = set()
    for seed in range(40):
        bench = Bench(seed)
        process = bench.start(lambda store: store.put_if_absent("key", b"value"))
        bench.run(random.Random(seed).randint(1, 40 * MS))
        told = bool(bench.notes)
        process.kill()
        bench.run(60 * S)
        landed.add((told, "key" in bench.bucket.objects))
        bench.end()
    assert landed == {(False, False), (False, True), (True, True)}


def test_stopped_with_the_request_in_its_hands(bench: Bench) -> None:
    """It lands when the process goes on, whatever happened meanwhile, and is judged then."""

    async def first(store: ObjectStore) -> str:
        return await outcome(store.put_if_absent("key", b"first"))

    async def second(store: ObjectStore) -> str:
        return await outcome(store.put_if_absent("key", b"second"))

    stopped = bench.start(first)
    bench.run(200_000)
    stopped.pause()
    bench.start(second, 1)
    bench.run(60 * S)
    assert bench.notes == ["ok"]
    stopped.resume()
    bench.run(60 * S)
    assert bench.notes == ["ok", "PreconditionFailed"] and bench.bucket.objects == {"key": b"second"}


def test_a_late_write_is_judged_when_it_lands(bench: Bench) -> None:
    """Also when the process that sent it is long dead."""
    bench.bucket.faults = StoreFaults(late=1.0)

    async def main(store: ObjectStore) -> list[str]:
        return await asyncio.gather(*(outcome(store.put_if_absent(f"{number}", b"late")) for number in range(30)))

    process = bench.start(main)
    while not bench.notes:
        bench.run(1 * S)
    process.kill()
    assert bench.notes == [["OutcomeUnknown"] * 30]
    bench.bucket.faults = StoreFaults()

    async def other(store: ObjectStore) -> list[str]:
        return [await outcome(store.put_if_absent(f"{number}", b"other")) for number in range(30)]

    bench.start(other)
    bench.run(200 * S)
    told = bench.notes[1]
    assert told.count("ok") > 3 and told.count("PreconditionFailed") > 3
    for number in range(30):
        assert bench.bucket.objects[f"{number}"] == (b"other" if told[number] == "ok" else b"late")
    outcomes = [event.fields["outcome"] for event in bench.scheduler.history if event.kind == "store.late"]
    assert sorted(set(outcomes)) == ["PreconditionFailed", "applied"] and len(outcomes) == 30


def test_whoever_gives_up_may_have_written(bench: Bench) -> None:
    bench.bucket.faults = StoreFaults(hang=1.0)

    async def main(store: ObjectStore) -> None:
        for number in range(60):
            try:
                async with asyncio.timeout(0.005 + 0.0005 * number):
                    await store.put_if_absent(f"{number}", b"")
            except TimeoutError:
                pass

    bench.start(main)
    bench.run(60 * S)
    assert bench.notes == [None] and 5 < len(bench.bucket.objects) < 60


def test_what_takes_too_long_is_given_up_by_the_engine_and_may_be_applied(bench: Bench) -> None:
    bench.bucket.slowness = 300.0

    async def main(store: ObjectStore) -> set[str]:
        began = bench.scheduler.now_ns
        wrote = {await outcome(store.put_if_absent(f"{number}", b"")) for number in range(20)}
        read = {await outcome(store.get("missing")) for _ in range(20)}
        assert bench.scheduler.now_ns - began < 40 * 12.1 * S
        return wrote | read

    process = bench.start(main)
    bench.run(600 * S)
    assert process.error is None and bench.notes == [{"ok", "OutcomeUnknown", "NotFound", "Unavailable"}]
    assert 10 < len(bench.bucket.objects) <= 20


def test_outages(bench: Bench) -> None:
    async def main(store: ObjectStore) -> dict[str, Counter[str]]:
        told: dict[str, Counter[str]] = {"get": Counter(), "put": Counter()}
        for number in range(400):
            call = store.put(f"{number}", b"") if number % 2 else store.get("there")
            told["put" if number % 2 else "get"][await outcome(call)] += 1
            await asyncio.sleep(0.01)
        return told

    bench.bucket.memory._store("there", b"")
    bench.start(main, 0)
    bench.start(main, 1)
    for _ in range(8):
        bench.run(1 * S)
        bench.bucket.outage()
        bench.run(2 * S)
        bench.bucket.end_outage()
    bench.run(100 * S)
    bench.bucket.outage(("a",))
    bench.run(1 * S)
    assert len(bench.notes) == 2
    for told in bench.notes:
        assert set(told["get"]) == {"ok", "Unavailable"} and set(told["put"]) >= {"ok", "Unavailable"}

    async def after(store: ObjectStore) -> str:
        return await outcome(store.get("there"))

    bench.start(after, 0)
    bench.run(20 * S)
    bench.start(after, 1)
    bench.run(20 * S)
    assert bench.notes[2:] == ["Unavailable", "ok"]


def test_an_outage_that_begins_under_way_leaves_doubt() -> None:
    seen: Counter[tuple[str, bool]] = Counter()
    for seed in range(60):
        bench = Bench(seed)
        bench.start(lambda store: outcome(store.put_if_absent("key", b"")))
        bench.run(random.Random(seed).randint(1, 40 * MS))
        bench.bucket.outage()
        bench.run(60 * S)
        [told] = bench.notes
        seen[told, "key" in bench.bucket.objects] += 1
        bench.end()
    assert set(seen) == {("ok", True), ("Unavailable", False), ("OutcomeUnknown", True), ("OutcomeUnknown", False)}


def test_listings_come_in_pages(bench: Bench) -> None:
    keys = [f"{number:04}" for number in range(250)]
    for key in keys:
        bench.bucket.memory._store(key, b"x")

    async def main(store: ObjectStore) -> list[str]:
        return [info.key async for info in store.list("0", "0009")]

    bench.start(main)
    bench.run(5 * S)
    assert bench.notes == [keys[10:]] and bench.bucket.calls["list"] == 3
    bench.bucket.faults = StoreFaults(cut=0.5)
    bench.start(main, bare=False)
    bench.run(60 * S)
    assert bench.notes[1] == keys[10:] and bench.bucket.mishaps["cut"]


def test_a_body_that_changes_is_found(bench: Bench) -> None:
    first = bytearray(b"first")
    body: list[bytes | bytearray | memoryview] = [first, b" ", memoryview(bytearray(b"second"))[2:]]

    async def main(store: ObjectStore) -> None:
        await store.put("before", body)
        async with asyncio.TaskGroup() as group:
            group.create_task(store.put("during", body))
            await asyncio.sleep(0.004)
            first[0] = 0
        first[1] = 0

    bench.start(main)
    bench.run(5 * S)
    assert bench.bucket.findings == ["process 0: put during: its body changed meanwhile"]
    assert bench.bucket.objects == {"before": b"first cond", "during": b"first cond"}


def test_one_seed_is_one_run() -> None:
    def run(seed: int) -> tuple[str, list[Any], dict[str, bytes]]:
        bench = Bench(seed)
        bench.bucket.faults = StoreFaults.some(random.Random(seed))
        bench.bucket.slowness = 2.0

        async def main(store: ObjectStore) -> list[str]:
            names = [await outcome(store.put_if_absent(f"{number % 40}", b"%d" % number)) for number in range(80)]
            return names + [info.key async for info in store.list("")]

        bench.start(main, 0, bare=False)
        bench.start(main, 1, bare=False)
        bench.run(600 * S)
        found = bench.scheduler.history.digest(), bench.notes, bench.bucket.objects
        bench.end()
        return found

    assert run(3) == run(3) != run(4)
