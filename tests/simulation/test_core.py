"""Virtual time, processes and the network behave as the real ones do, and alike in every run."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest

from tests.simulation.hosts import Host
from tests.simulation.network import Network
from tests.simulation.process import Process
from tests.simulation.scheduler import MS, S, Scheduler


class Bench:
    """Hosts `a` and `b` and what their processes noted, with times in whole milliseconds."""

    def __init__(self, seed: int = 1) -> None:
        self.scheduler = Scheduler(seed)
        self.network = Network(self.scheduler)
        self.a = Host(self.scheduler, self.network, "a")
        self.b = Host(self.scheduler, self.network, "b")
        self.notes: list[Any] = []
        self.processes: list[Process] = []

    def note(self, what: Any) -> None:
        self.notes.append(what)

    def process(self, host: Host, main: Callable[[], Coroutine[Any, Any, Any]], name: str = "") -> Process:
        process = Process(host, name or f"{host.name}{len(self.processes)}")
        process.spawn(main)
        self.processes.append(process)
        return process

    def run(self, seconds: float) -> None:
        self.scheduler.run_until(self.scheduler.now_ns + int(seconds * S))

    def now_ms(self) -> int:
        return self.scheduler.now_ns // MS


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    for process in bench.processes:
        process.kill()
        process.bury()
    gc.collect()  # what was left in the middle must go silently: warnings are errors


class Echo(asyncio.Protocol):
    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.bench.note(("made", transport.get_extra_info("peername")[0]))

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.bench.note(("lost", type(exc).__name__))


def serve(bench: Bench, protocol: Callable[[], asyncio.BaseProtocol] | None = None) -> Callable[[], Any]:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        await loop.create_server(protocol or (lambda: Echo(bench)), "b", 9092)
        await loop.create_future()

    return main


async def echo_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> bytes:
    writer.write(data)
    return await reader.readexactly(len(data))


def test_timers_fire_in_order_and_time_passes_only_in_them(bench: Bench) -> None:
    async def main() -> None:
        began = asyncio.get_running_loop().time()
        for delay in (0.3, 0.1, 0.2):
            asyncio.get_running_loop().call_later(delay, bench.note, delay)
        await asyncio.sleep(1000)
        bench.note(round(asyncio.get_running_loop().time() - began, 2))

    bench.process(bench.a, main)
    bench.run(2000)
    assert bench.notes == [0.1, 0.2, 0.3, 1000.0]


def test_a_process_ends_with_its_main_and_nobody_handles_is_told(bench: Bench) -> None:
    async def fails() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(0.1)
        raise ValueError("main")

    process = bench.process(bench.a, fails)
    bench.run(1)
    assert not process.alive and not process.killed and str(process.error) == "main"
    assert [type(failure.error) for failure in process.failures] == [ZeroDivisionError]


def test_threads_run_beside_the_loop_and_answer_it_later(bench: Bench) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        def work(number: int) -> int:
            bench.note("thread")
            with pytest.raises(RuntimeError):
                asyncio.get_running_loop()
            return number

        first = loop.run_in_executor(None, work, 1)
        bench.note("loop")
        assert await first == 1 and await asyncio.to_thread(work, 2) == 2
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)
        bench.note("done")

    process = bench.process(bench.a, main)
    bench.run(1)
    assert bench.notes == ["loop", "thread", "thread", "done"] and process.error is None


def test_nothing_of_a_killed_process_runs(bench: Bench) -> None:
    async def inner() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            bench.note("finally")

    async def generator() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            bench.note("generator's finally")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(0.5, bench.note, "timer")
        loop.run_in_executor(None, lambda: None).add_done_callback(lambda _: bench.note("thread's answer"))
        opened = generator()
        await anext(opened)
        async with asyncio.TaskGroup() as group:
            group.create_task(inner())
            group.create_task(inner())
            loop.call_soon(process.kill)
            group.create_task(inner())

    process = bench.process(bench.a, main)
    bench.run(1)
    gc.collect()
    assert bench.notes == [] and process.killed and not process.failures
    process.bury()
    gc.collect()
    assert bench.notes.count("finally") == 2 and not process.failures, "only now, and without effects"


def test_a_stopped_process_does_what_was_due_when_it_goes_on(bench: Bench) -> None:
    async def main() -> None:
        while True:
            await asyncio.sleep(1)
            bench.note(bench.now_ms() // 1000)

    process = bench.process(bench.a, main)
    bench.run(2.5)
    process.pause()
    bench.run(10)
    assert bench.notes == [1, 2]
    process.resume()
    bench.run(1.2)
    assert bench.notes == [1, 2, 12, 13]


def test_a_suspended_host_keeps_boottime_going_and_monotonic_time_not(bench: Bench) -> None:
    async def main() -> None:
        await asyncio.sleep(2)
        bench.note(bench.now_ms() // 1000)

    process = bench.process(bench.a, main)
    boottime, ticks = process.clock.boottime_ms(), process.clock.ticks_us()
    bench.run(1)
    bench.a.suspend()
    bench.run(10)
    bench.a.resume()
    bench.run(0.5)
    assert bench.notes == []
    bench.run(1)
    assert bench.notes == [12]
    assert process.clock.boottime_ms() - boottime == 12_500
    assert process.clock.ticks_us() - ticks == 2_500_000


def test_a_fast_clock_ends_waits_early() -> None:
    bench = Bench()
    fast = Host(bench.scheduler, bench.network, "fast", rate=1.25)

    async def main() -> None:
        await asyncio.sleep(10)
        bench.note(bench.now_ms())

    bench.process(fast, main)
    bench.run(20)
    assert bench.notes == [8000]
    bench.processes[0].bury()


def test_streams_carry_everything_in_order(bench: Bench) -> None:
    sent = bytes(range(256)) * 4096  # beyond every buffer on the way

    async def client() -> None:
        reader, writer = await asyncio.open_connection("b", 9092)
        assert await echo_once(reader, writer, b"hello") == b"hello"
        writer.write(sent)
        assert await reader.readexactly(len(sent)) == sent
        writer.close()
        await writer.wait_closed()
        bench.note("closed")

    bench.process(bench.b, serve(bench))
    process = bench.process(bench.a, client)
    bench.run(5)
    assert process.error is None
    assert bench.notes == [("made", "a"), "closed", ("lost", "NoneType")]


def test_who_does_not_read_stops_the_writer(bench: Bench) -> None:
    class Greedy(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            transport.set_write_buffer_limits(high=1000, low=100)
            for _ in range(100):
                transport.write(bytes(10_000))
            bench.note(transport.get_write_buffer_size() > 1000)

        def pause_writing(self) -> None:
            bench.note("pause")

        def resume_writing(self) -> None:
            bench.note("resume")

    async def client() -> None:
        reader, writer = await asyncio.open_connection("b", 9092, limit=1000)
        await asyncio.sleep(5)
        bench.note("read")
        await reader.readexactly(1_000_000)
        bench.note("done")
        await asyncio.sleep(1)
        writer.close()

    bench.process(bench.b, serve(bench, Greedy))
    bench.process(bench.a, client)
    bench.run(3)
    assert bench.notes == ["pause", True]
    bench.run(10)
    assert bench.notes[2:] in (["read", "resume", "done"], ["read", "done", "resume"])


def test_nobody_there_is_refused(bench: Bench) -> None:
    async def client() -> None:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("b", 9092)
        with pytest.raises(OSError, match="no host"):
            await asyncio.open_connection("c", 9092)
        bench.note("refused")

    bench.process(bench.a, client)
    bench.run(1)
    assert bench.notes == ["refused"]


def test_a_port_is_taken_until_its_process_is_dead(bench: Bench) -> None:
    async def second() -> None:
        with pytest.raises(OSError, match="in use"):
            await asyncio.get_running_loop().create_server(lambda: Echo(bench), "b", 9092)
        bench.note("taken")

    first = bench.process(bench.b, serve(bench))
    bench.run(1)
    bench.process(bench.b, second)
    bench.run(1)
    first.kill()
    third = bench.process(bench.b, serve(bench))
    bench.run(1)
    assert bench.notes == ["taken"] and third.alive


def connected(bench: Bench, seconds: float = 100.0) -> Callable[[], Any]:
    """A client that notes how its connection ends."""

    async def client() -> None:
        reader, writer = await asyncio.open_connection("b", 9092)
        await echo_once(reader, writer, b"hello")
        bench.note("hello")
        try:
            async with asyncio.timeout(seconds):
                bench.note(await reader.read(1))
        except (TimeoutError, OSError) as error:
            bench.note(type(error).__name__)
        writer.close()

    return client


def test_a_dead_process_closes_its_connections(bench: Bench) -> None:
    server = bench.process(bench.b, serve(bench))
    bench.process(bench.a, connected(bench))
    bench.run(1)
    server.kill()
    bench.run(1)
    assert bench.notes[:2] == [("made", "a"), "hello"] and bench.notes[2] in (b"", "ConnectionResetError")


def test_a_crashed_host_says_nothing_and_answers_with_a_reset_when_it_is_back(bench: Bench) -> None:
    bench.process(bench.b, serve(bench))
    boot = bench.b.boot_id

    async def client() -> None:
        reader, writer = await asyncio.open_connection("b", 9092)
        await echo_once(reader, writer, b"hello")
        bench.note("hello")
        await asyncio.sleep(2)
        writer.write(b"are you there?")
        try:
            await reader.read(1)
        except OSError as error:
            bench.note((type(error).__name__, bench.now_ms() // 1000))

    bench.process(bench.a, client)
    bench.run(1)
    bench.b.crash()
    bench.run(4)
    assert bench.notes[1:] == ["hello"]
    bench.b.boot()
    bench.run(2)
    assert bench.notes[2:] == [("ConnectionResetError", 5)] and bench.b.boot_id != boot


def test_a_reset_meets_both_ends(bench: Bench) -> None:
    bench.process(bench.b, serve(bench))
    bench.process(bench.a, connected(bench))
    bench.run(1)
    bench.network.reset("a", "b")
    bench.run(1)
    assert sorted(map(str, bench.notes[2:])) == ["('lost', 'ConnectionResetError')", "ConnectionResetError"]


@pytest.mark.parametrize("both", [False, True])
def test_what_a_partition_stops_arrives_when_it_heals(bench: Bench, both: bool) -> None:
    async def client() -> None:
        reader, writer = await asyncio.open_connection("b", 9092)
        await asyncio.sleep(2)
        await echo_once(reader, writer, b"hello")
        bench.note(("answered", bench.now_ms() // 1000))
        writer.close()

    bench.process(bench.b, serve(bench))
    bench.process(bench.a, client)
    bench.run(1)
    if both:
        bench.network.partition("a", "b")
    else:
        bench.network.block("b", "a")
    bench.run(9)
    assert bench.notes == [("made", "a")]
    bench.network.heal()
    bench.run(2)
    assert bench.notes[1:2] == [("answered", 10)]


@pytest.mark.parametrize("seed", range(5))
def test_a_stream_keeps_its_order_when_its_link_is_lost_again_and_others_heal(seed: int) -> None:
    bench = Bench(seed)
    sent = [b"%03d" % number for number in range(60)]

    async def client() -> None:
        reader, writer = await asyncio.open_connection("b", 9092)
        for piece in sent:
            writer.write(piece)
            await asyncio.sleep(0.05)
        bench.note(await reader.readexactly(3 * len(sent)) == b"".join(sent))
        writer.close()

    bench.process(bench.b, serve(bench))
    bench.process(bench.a, client)
    bench.run(0.3)
    for link in [("b", "a"), ("x", "y"), ("b", "a"), ("a", "b")]:
        bench.network.block("b", "a")
        bench.run(0.3)
        bench.network.heal(link)
        bench.run(0.1)
    bench.network.heal()
    bench.run(5)
    assert bench.notes[1:2] == [True]
    for process in bench.processes:
        process.kill()
        process.bury()


def test_who_closes_with_bytes_unsent_hears_that_the_other_side_is_gone(bench: Bench) -> None:
    class Closing(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transport.close()

    class Writing(Echo):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            transport.write(bytes(1_000_000))
            transport.close()

    async def client() -> None:
        await asyncio.get_running_loop().create_connection(lambda: Writing(bench), "b", 9092)
        await asyncio.sleep(10)

    bench.process(bench.b, serve(bench, Closing))
    bench.process(bench.a, client)
    bench.run(5)
    assert bench.notes == [("lost", "ConnectionResetError")]


def trace(seed: int) -> list[Any]:
    """A little of everything, and what came of it."""
    bench = Bench(seed)

    async def main() -> None:
        async def work(number: int) -> None:
            for _ in range(3):
                await asyncio.to_thread(lambda: None)
                bench.note((number, bench.scheduler.now_ns))
            await asyncio.sleep(1000)

        tasks = set()
        async with asyncio.TaskGroup() as group:
            for number in range(8):
                tasks.add(group.create_task(work(number)))
            await asyncio.sleep(1)
            for task in tasks:
                task.cancel()
                bench.note(task.get_name() != "")

    bench.process(bench.b, serve(bench))
    bench.process(bench.a, connected(bench, 1))
    bench.process(bench.a, main)
    bench.run(10)
    for process in bench.processes:
        process.kill()
        process.bury()
    return [*bench.notes, bench.scheduler.events_run]


def test_one_seed_is_one_run() -> None:
    assert trace(1) == trace(1) != trace(2)
