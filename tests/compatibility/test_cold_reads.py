"""After a clean restart everything comes from the bucket: each library reads it as it read it from memory."""

from collections.abc import Callable, Iterator

import pytest

from tests.compatibility.clients import CLIENTS, confluent, each_client, poll_until, read
from tests.compatibility.clients.base import Client, Out
from tests.support.broker_process import BrokerProcess

BASE = 1_650_000_000_000
CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
COUNT = 3000


def value(codec: str, i: int) -> bytes:
    return b"%s %06d " % (codec.encode(), i) + b"compresses well " * 20


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A broker with a topic per codec, sealed in many small segments, started anew."""
    settings = {"tidelog_seal_ms": 20, "tidelog_seal_bytes": 65536, "tidelog_tail_keep_bytes": 0}
    with BrokerProcess(tmp_path_factory.mktemp("cold") / "data", **settings) as broker:
        for codec in CODECS:
            with confluent.producer(broker.bootstrap, {"compression.type": codec, "linger.ms": 0}) as producer:
                for first in range(0, COUNT, 100):
                    numbers = range(first, first + 100)
                    producer.send(codec, [Out(value(codec, i), timestamp_ms=BASE + 10 * i) for i in numbers])
        assert broker.stop() == 0
        broker.start()
        yield broker


@each_client
def test_all_codecs(cold: BrokerProcess, client: Client) -> None:
    with client.consumer(cold.bootstrap) as consumer:
        consumer.assign({(codec, 0): 0 for codec in CODECS})
        found = read(consumer, COUNT * len(CODECS))
    for codec in CODECS:
        mine = [one for one in found if one.topic == codec]
        assert [one.offset for one in mine] == list(range(COUNT))
        assert [one.value for one in mine] == [value(codec, i) for i in range(COUNT)]
        assert [one.timestamp_ms for one in mine] == [BASE + 10 * i for i in range(COUNT)]


@each_client
def test_offsets_and_times(cold: BrokerProcess, client: Client) -> None:
    with client.consumer(cold.bootstrap) as asker, client.consumer(cold.bootstrap) as consumer:
        for codec in CODECS:
            assert asker.bounds((codec, 0)) == (0, COUNT)
            for i in (0, 1, 1234, COUNT - 1):
                assert asker.offset_for_time((codec, 0), BASE + 10 * i - 3) == i
            assert asker.offset_for_time((codec, 0), BASE + 10 * COUNT) is None
        consumer.assign({(codec, 0): 2345 for codec in CODECS})
        found = read(consumer, (COUNT - 2345) * len(CODECS))
        assert {one.value for one in found} == {value(codec, i) for codec in CODECS for i in range(2345, COUNT)}


def test_from_the_bucket_into_memory(make_broker: Callable[..., BrokerProcess]) -> None:
    """Consumers pass from old records to new ones while both grow."""
    broker = make_broker(tidelog_seal_ms=20, tidelog_tail_keep_bytes=0)
    with confluent.producer(broker.bootstrap) as producer:
        producer.send("t", [Out(b"%d" % i) for i in range(2000)])
    assert broker.stop() == 0
    broker.start()
    consumers = [client.consumer(broker.bootstrap) for client in CLIENTS]
    with confluent.producer(broker.bootstrap) as producer:
        for consumer in consumers:
            consumer.assign({("t", 0): 0})
        seen: dict[int, list[int]] = {number: [] for number in range(len(consumers))}
        for first in range(2000, 4000, 50):
            producer.send("t", [Out(b"%d" % i) for i in range(first, first + 50)])
            for number, consumer in enumerate(consumers):
                seen[number] += [one.offset for one in consumer.poll(0.01)]
        for number, consumer in enumerate(consumers):
            had = len(seen[number])
            seen[number] += [
                one.offset for one in poll_until(consumer, lambda found, had=had: had + len(found) >= 4000)
            ]
            assert seen[number] == list(range(4000))
            consumer.close()
