"""Connection without a socket: frames however they are cut, holding, order of answers, memory accounting."""

import random  # noqa: TID251
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.connection import (
    HOLD_MUTED,
    READY_BYTES_MAX,
    SCRATCH_BYTES,
    WRITE_HIGH_BYTES,
    Connection,
    Hub,
    Reply,
)
from broker.metrics import Counters
from protocol.errors import ProtocolError


class Transport:
    """What a `Connection` asks of its transport, recorded."""

    def __init__(self) -> None:
        self.written = b""
        self.writes = 0
        self.reading = True
        self.closed = self.aborted = False
        self.unsent = 0

    def get_extra_info(self, name: str) -> Any:
        return ("10.0.0.1", 4242) if name == "peername" else None

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        assert low < high == WRITE_HIGH_BYTES

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def write(self, data: Any) -> None:
        self.written += data
        self.writes += 1

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


class Bench:
    """A hub whose dispatcher records frames and does what the test says."""

    def __init__(self, requests_bytes_max: int = 1 << 20, pending_max: int = 100) -> None:
        self.frames: list[bytes] = []
        self.owned: list[bool] = []
        self.answer_each = False
        self.mute_on: bytes | None = None
        self.fail: Exception | None = None
        self.counters = Counters()
        self.now_us = 0
        self.hub = Hub(
            self.dispatch,
            lambda api_key: 1 << 20 if api_key < 100 else 0,
            self.counters,
            lambda: self.now_us,
            request_bytes_max=1 << 20,
            requests_bytes_max=requests_bytes_max,
            pending_max=pending_max,
        )

    def connect(self) -> tuple[Connection, Transport]:
        connection, transport = Connection(self.hub, "PLAINTEXT"), Transport()
        connection.connection_made(transport)  # type: ignore[arg-type]
        return connection, transport

    def dispatch(self, connection: Connection, buf: bytearray, start: int, end: int, owned: bool) -> None:
        if self.fail is not None:
            raise self.fail
        frame = bytes(buf[start:end])
        assert not owned or (start, end) == (0, len(buf))
        self.frames.append(frame)
        self.owned.append(owned)
        if self.mute_on is not None and self.mute_on in frame:
            connection.hold(HOLD_MUTED)
        if self.answer_each:
            connection.answer(frame[-4:], self.counters.other_latency)


def frame(body: bytes, api_key: int = 3) -> bytes:
    """A frame whose header is an api key, a version, a correlation id and no client id."""
    content = api_key.to_bytes(2, "big") + b"\0\1" + b"\0\0\0\7" + b"\xff\xff" + body
    return len(content).to_bytes(4, "big") + content


def feed(connection: Connection, data: bytes, cuts: list[int] | None = None) -> None:
    """What a transport does: get a buffer, fill at most all of it, tell."""
    pos = 0
    cuts = cuts or []
    while pos < len(data):
        buffer = connection.get_buffer(-1)
        assert connection.get_buffer(-1) == buffer, "asking again changes nothing"
        size = min(len(buffer), len(data) - pos, cuts.pop() if cuts else 1 << 30)
        buffer[:size] = data[pos : pos + size]
        pos += size
        connection.buffer_updated(size)
        # Nothing may stay in the scratch: others use it next.
        connection.hub.scratch[:] = b"\xee" * SCRATCH_BYTES


@given(
    st.lists(st.sampled_from([0, 1, 2, 5, 100, 5000, 70_000, 200_000]), min_size=1, max_size=12),
    st.lists(st.one_of(st.integers(1, 12), st.integers(1, 100_000)), max_size=60),
    st.booleans(),
)
def test_frames_arrive_whole_however_they_are_cut(sizes: list[int], cuts: list[int], two: bool) -> None:
    bench = Bench()
    bodies = [random.Random(i).randbytes(size) for i, size in enumerate(sizes)]
    connection, _ = bench.connect()
    other, _ = bench.connect()
    if two:  # another connection is in the middle of a frame all the while
        feed(other, frame(b"x" * 90_000)[:50_000])
    feed(connection, b"".join(frame(body) for body in bodies), list(cuts))
    assert [got[10:] for got in bench.frames] == bodies
    if two:
        feed(other, frame(b"x" * 90_000)[50_000:])
        assert bench.frames[-1][10:] == b"x" * 90_000
    assert bench.hub.budget.used == 0
    assert bench.counters.bytes_in == sum(len(frame(body)) for body in bodies) + (90_014 if two else 0)


def test_small_frames_are_handled_in_the_scratch_and_large_ones_in_their_own_memory() -> None:
    bench = Bench()
    connection, _ = bench.connect()
    feed(connection, frame(b"a") + frame(b"b" * 100_000) + frame(b"c"))
    assert bench.owned == [False, True, False]


def test_every_connection_may_stop_after_any_byte() -> None:
    data = frame(b"abc") + frame(b"d" * 70_000)
    for stop in [*range(30), 17 + 65_000]:
        bench = Bench()
        connection, _ = bench.connect()
        feed(connection, data[:stop])
        connection.connection_lost(None)
        assert bench.hub.budget.used == 0


def test_answers_go_out_in_request_order_in_one_write() -> None:
    bench = Bench()
    connection, transport = bench.connect()
    latency = bench.counters.other_latency
    first, second = connection.owe(1, latency), connection.owe(2, latency, b"two")
    connection.answer(b"three", latency)
    assert transport.written == b""
    second.waits -= 1
    connection.flush()
    second.waits -= 1
    connection.flush()
    assert transport.written == b""
    bench.now_us = 5
    first.fill([b"o", b"ne"])
    assert (transport.written, transport.writes) == (b"onetwothree", 1)
    assert sum(latency) == latency[3] == 3
    assert bench.counters.bytes_out == 11


def test_a_muted_connection_keeps_its_requests_and_stops_reading() -> None:
    bench = Bench()
    bench.mute_on = b"slow"
    connection, transport = bench.connect()
    feed(connection, frame(b"slow"))
    assert transport.reading, "reading goes on until something has to be kept"
    feed(connection, frame(b"next") + frame(b"slow2") + frame(b"last"))
    assert (len(bench.frames), transport.reading) == (1, False)
    assert bench.hub.budget.used == sum(len(frame(b)) - 4 for b in (b"next", b"slow2", b"last"))
    connection.release(HOLD_MUTED)
    assert [f[10:] for f in bench.frames] == [b"slow", b"next", b"slow2"]
    assert not transport.reading
    connection.release(HOLD_MUTED)
    assert [f[10:] for f in bench.frames][-1] == b"last"
    assert (transport.reading, bench.hub.budget.used) == (True, 0)


def test_a_large_frame_that_completes_while_muted_is_kept() -> None:
    bench = Bench()
    bench.mute_on = b"slow"
    connection, transport = bench.connect()
    feed(connection, frame(b"slow") + frame(b"x" * 100_000))
    assert (len(bench.frames), transport.reading) == (1, False)
    connection.release(HOLD_MUTED)
    assert (len(bench.frames), transport.reading, bench.hub.budget.used) == (2, True, 0)


def test_too_many_owed_answers_stop_reading() -> None:
    bench = Bench(pending_max=4)
    connection, transport = bench.connect()
    replies: list[Reply] = []

    def owe(connection: Connection, *_: object) -> None:
        replies.append(connection.owe(1, bench.counters.other_latency))

    bench.hub.dispatch = owe
    feed(connection, frame(b"x") * 10)
    assert (len(replies), transport.reading) == (4, False)
    replies[0].fill(b"")
    assert len(replies) == 4
    replies[1].fill(b"")
    assert len(replies) == 6, "half are answered: on it goes"
    for i in range(2, 10):
        replies[i].fill(b"")
    assert (len(replies), transport.reading) == (10, True)


def test_memory_for_requests_is_bounded_and_comes_in_turn() -> None:
    bench = Bench(requests_bytes_max=250_000)
    connections = [bench.connect() for _ in range(4)]
    data = frame(b"x" * 100_000)
    for connection, _ in connections:
        feed(connection, data[:60_000])
    assert [t.reading for _, t in connections] == [True, True, False, False]
    assert bench.hub.budget.used == 200_020
    assert len(bench.hub.budget.waiting) == 2
    # A small request needs no memory of its own and passes by.
    small, _ = bench.connect()
    feed(small, frame(b"small"))
    assert len(bench.frames) == 1
    feed(connections[1][0], data[60_000:])
    assert [t.reading for _, t in connections] == [True, True, True, False]
    connections[0][0].connection_lost(None)
    assert connections[3][1].reading
    for connection, _ in connections[2:]:
        feed(connection, data[60_000:])
    assert len(bench.frames) == 4
    assert (bench.hub.budget.used, bench.hub.budget.peak) == (0, 200_020)


def test_a_connection_that_waits_for_memory_may_go() -> None:
    bench = Bench(requests_bytes_max=100_000)
    first, second, third = (bench.connect() for _ in range(3))
    for connection, _ in (first, second, third):
        feed(connection, frame(b"x" * 90_000)[:20_000])
    second[0].connection_lost(None)
    first[0].connection_lost(None)
    assert third[1].reading
    assert bench.hub.budget.used == 90_010


def test_a_request_larger_than_all_memory_goes_alone() -> None:
    bench = Bench(requests_bytes_max=100_000)
    connection, _ = bench.connect()
    feed(connection, frame(b"x" * 300_000))
    assert len(bench.frames) == 1
    assert (bench.hub.budget.used, bench.hub.budget.peak) == (0, 300_010)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP"),
        (b"PRI * HTTP/2.0\r\n\r\n", "HTTP"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"r" * 40, "TLS"),
        (b"\xff\xff\xff\xff" + b"x" * 20, "-1 bytes"),
        (b"\0\0\0\0", "0 bytes"),
        (b"\0\0\0\x09", "9 bytes"),
        (b"\x00\x10\x00\x01\x00\x03\x00\x01", "1048577 bytes"),
        (b"\x00\x0f\xff\xff\x00\x7b\x00\x01", "API 123"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "bytes"),
    ],
)
def test_what_is_not_kafka_is_closed_with_one_line(data: bytes, word: str, caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    connection, transport = bench.connect()
    feed(connection, data)
    assert transport.closed and not bench.frames
    assert len(caplog.messages) == 1 and word in caplog.text
    assert bench.counters.protocol_errors == 1
    assert bench.hub.budget.peak == 0, "no memory was taken for it"


def test_log_lines_about_clients_are_few(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    for _ in range(100):
        connection, _ = bench.connect()
        feed(connection, b"GET / HTTP/1.0\r\n\r\n")
    assert len(caplog.messages) == 10
    assert bench.counters.protocol_errors == 100


@pytest.mark.parametrize("failure", [ProtocolError("nonsense"), KeyError("bug")])
@pytest.mark.parametrize("large", [False, True])
def test_a_request_that_fails_closes_its_connection_alone(
    failure: Exception, large: bool, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench()
    connection, transport = bench.connect()
    other, other_transport = bench.connect()
    connection.answer(b"earlier", bench.counters.other_latency)
    bench.fail = failure
    feed(connection, frame(b"x" * (100_000 if large else 1)))
    bench.fail = None
    feed(other, frame(b"y"))
    assert transport.closed and transport.written == b"earlier"
    assert not other_transport.closed and len(bench.frames) == 1
    assert bench.hub.budget.used == 0
    bug = isinstance(failure, KeyError)
    assert (bench.counters.server_errors, bench.counters.protocol_errors) == ((1, 0) if bug else (0, 1))
    assert ("Traceback" in caplog.text) == bug


def test_large_answers_wait_for_a_client_that_does_not_read() -> None:
    bench = Bench()
    connection, transport = bench.connect()
    reply = connection.owe(1, bench.counters.fetch_latency)
    assert connection.may_fill(reply)
    transport.unsent = WRITE_HIGH_BYTES + 1
    connection.pause_writing()
    assert not connection.may_fill(reply)
    assert bench.hub.unsent_bytes == WRITE_HIGH_BYTES + 1
    feed(connection, frame(b"kept"))
    assert not bench.frames and not transport.reading
    retried: list[bool] = []
    connection.defer(lambda: retried.append(connection.may_fill(reply)))
    connection.resume_writing()
    assert retried == [True]
    assert (bench.hub.unsent_bytes, len(bench.frames), transport.reading) == (0, 1, True)


def test_finished_answers_behind_an_unfinished_one_are_bounded() -> None:
    bench = Bench()
    connection, transport = bench.connect()
    latency = bench.counters.fetch_latency
    replies = [connection.owe(1, latency) for _ in range(3)]
    replies[1].fill(b"x" * READY_BYTES_MAX)
    assert not connection.may_fill(replies[2])
    assert connection.may_fill(replies[0]), "what all others wait for is always made"
    retried: list[bool] = []
    connection.defer(lambda: retried.append(connection.may_fill(replies[2])))
    replies[0].fill(b"y")
    assert retried == [True] and len(transport.written) == READY_BYTES_MAX + 1


def test_finish_answers_what_is_owed_and_takes_nothing_more() -> None:
    bench = Bench()
    connection, transport = bench.connect()
    reply = connection.owe(1, bench.counters.other_latency)
    feed(connection, frame(b"z" * 100_000)[:50_000])
    connection.finish()
    assert (transport.reading, transport.closed, bench.hub.budget.used) == (False, False, 0)
    reply.fill(b"bye")
    assert (transport.written, transport.closed) == (b"bye", True)
    idle, idle_transport = bench.connect()
    idle.finish()
    assert idle_transport.closed
