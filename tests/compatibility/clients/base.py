"""What the tests want from a client library; one adapter per library gives it and changes nothing of its defaults.

Options carry Kafka's own names (`"auto.offset.reset"`): each adapter translates them to its library's spelling.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, Self

Partition = tuple[str, int]
"""Topic and number."""

Headers = tuple[tuple[str, bytes | None], ...]


class Out(NamedTuple):
    """A record to produce; None where the library or the broker may choose."""

    value: bytes | None
    key: bytes | None = None
    partition: int | None = None
    timestamp_ms: int | None = None
    headers: Headers = ()


class In(NamedTuple):
    """A record as consumed."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Sent(NamedTuple):
    """Where a record went; offset -1 with acks=0."""

    partition: int
    offset: int


class Producer(Protocol):
    """A producer with its own connections."""

    def send(self, topic: str, records: Iterable[Out]) -> list[Sent]:
        """Hand over all records, then wait for all answers; raises what the library raises."""

    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


class Consumer(Protocol):
    """A consumer; group work goes on in `poll`, so every member is polled in turn by one thread."""

    def subscribe(self, *topics: str) -> None: ...
    def subscribe_pattern(self, start: str) -> None:
        """All topics whose names begin so, those of later too."""

    def assign(self, where: Mapping[Partition, int | str]) -> None:
        """Read these partitions from an offset, "beginning" or "end" (librdkafka takes 0.5 s to ask where that is)."""

    def poll(self, seconds: float = 0.1) -> list[In]: ...
    def assignment(self) -> set[Partition]: ...
    def position(self, partition: Partition) -> int: ...
    def commit(self, offsets: Mapping[Partition, int] | None = None) -> None:
        """Wait for the commit of these offsets, or of the positions."""

    def commit_async(self, done: Callable[[BaseException | None], None]) -> None:
        """Commit the positions; `done` is called with the error or None while the consumer is polled."""

    def committed(self, partition: Partition) -> int | None: ...
    def bounds(self, partition: Partition) -> tuple[int, int]:
        """Log start and high watermark, as the broker tells them."""

    def offset_for_time(self, partition: Partition, timestamp_ms: int) -> int | None:
        """The first offset at or after a time; None behind the last record."""

    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


class Client(Protocol):
    """A library."""

    name: str

    def producer(self, bootstrap: str, options: Mapping[str, object] | None = None) -> Producer: ...
    def consumer(self, bootstrap: str, options: Mapping[str, object] | None = None) -> Consumer: ...


class Closing:
    """`with` around something that has `close`."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def headers_of(items: Sequence[tuple[str, bytes | None]] | None) -> Headers:
    """Headers in the one shape that tests compare."""
    return tuple((name, value) for name, value in items or ())
