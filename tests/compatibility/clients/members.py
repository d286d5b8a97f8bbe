"""Members of a group, each polled by a thread of its own, while records keep coming."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self

from tests.compatibility.clients import confluent
from tests.compatibility.clients.base import Client, In, Out, Partition
from tests.support.broker_process import BrokerProcess

POLL_S = 10
"""Longer than any rebalance here: kafka-python forgets an assignment that arrives between two polls."""


class Member:
    """A consumer that subscribed to one topic. Its thread alone uses the library."""

    def __init__(self, client: Client, bootstrap: str, topic: str, options: Mapping[str, object]) -> None:
        self.seen: list[In] = []
        self.assigned: set[Partition] = set()
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(client, bootstrap, topic, options), daemon=True)
        self._thread.start()

    def _run(self, client: Client, bootstrap: str, topic: str, options: Mapping[str, object]) -> None:
        try:
            with client.consumer(bootstrap, options) as consumer:
                consumer.subscribe(topic)
                while not self._stop.is_set():
                    self.seen += consumer.poll(POLL_S)
                    self.assigned = consumer.assignment()
        except BaseException as error:
            self.error = error
        finally:
            self.assigned = set()

    def close(self) -> None:
        """Close the consumer, which leaves the group unless the member is static."""
        self._stop.set()
        self._thread.join(3 * POLL_S)
        assert not self._thread.is_alive(), "the member does not end"
        if self.error is not None:
            raise self.error


class Traffic:
    """A record to every partition of a topic every few milliseconds, so that no poll waits for long."""

    def __init__(self, broker: BrokerProcess, topic: str, partitions: int) -> None:
        self.ends = dict.fromkeys(range(partitions), 0)
        """Partition -> offset after the last record sent."""
        self._stop = threading.Event()
        self._topic = topic
        self._producer = confluent.producer(broker.bootstrap, {"linger.ms": 0})

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            sent = self._producer.send(self._topic, [Out(b"v", partition=partition) for partition in self.ends])
            self.ends.update({one.partition: one.offset + 1 for one in sent})

    def start(self) -> None:
        """Begin, or go on."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop once what is under way is acknowledged."""
        self._stop.set()
        self._thread.join(30)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._producer.close()


def wait_until(condition: Callable[[], object], members: Sequence[Member], seconds: float = 30) -> None:
    """Until it holds; at once if a member fails."""
    deadline = time.monotonic() + seconds  # noqa: TID251
    while not condition():
        for one in members:
            if one.error is not None:
                raise one.error
        assert time.monotonic() < deadline, f"it did not happen: {[one.assigned for one in members]}"  # noqa: TID251
        time.sleep(0.005)


def shared_evenly(members: Sequence[Member], partitions: int) -> bool:
    """Whether every partition has one owner and all members have equally many."""
    parts = [one.assigned for one in members]
    return len(set().union(*parts)) == sum(map(len, parts)) == partitions and len({len(part) for part in parts}) == 1
