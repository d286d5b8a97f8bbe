"""Kafka's own tools that write, read and look at records, unmodified, of two Kafka versions: offsets by every spec, the
verifiable clients with both group protocols, transactional ones, readers of the internal topics.
"""

import json
import signal
from pathlib import Path

import pytest

from tests.compatibility.admin import create_topic
from tests.compatibility.clients import confluent, poll_until
from tests.compatibility.clients.base import Out
from tests.compatibility.jvm import Shell
from tests.compatibility.test_java_tools import CONSOLE_CONSUMER, fill
from tests.support.broker_process import BrokerProcess

pytestmark = pytest.mark.compatibility

BASE = 1_600_000_000_000


def test_offsets_by_every_spec(tools: Shell, where: tuple[str, str], broker: BrokerProcess, topic: str) -> None:
    fill(broker, topic, 20, timestamp_ms=BASE)

    def offsets(*arguments: object) -> list[str]:
        return tools.run("GetOffsetShell", *where, *arguments).lines

    specs: dict[object, int | None] = {
        "latest": 20,
        -1: 20,
        "earliest": 0,
        -2: 0,
        "max-timestamp": 19,
        -3: 19,
        "earliest-local": 0,
        -4: 0,
        BASE: 0,
        BASE + 7: 7,
        BASE + 20: None,
    }
    for spec, offset in specs.items():
        shown = [] if offset is None else [f"{topic}:0:{offset}"]
        assert offsets("--topic", topic, "--time", spec) == shown, spec
    assert offsets("--topic", topic, "--time", "latest-tiered") == [], "as of Kafka without tiers: there is none"
    if not tools.older:
        assert offsets("--topic", topic, "--time", "earliest-pending-upload") == []
    create_topic(broker, f"{topic}-more", 3)
    assert offsets("--topic", f"{topic}.*", "--partitions", "0,1", "--exclude-internal-topics") == [
        f"{topic}:0:20",
        f"{topic}-more:0:0",
        f"{topic}-more:1:0",
    ]
    assert offsets("--topic-partitions", f"{topic}-more:1-3,{topic}:0") == [
        f"{topic}:0:20",
        f"{topic}-more:1:0",
        f"{topic}-more:2:0",
    ]
    wrong = tools.try_run("GetOffsetShell", *where, "--topic", f"{topic}-nothing")
    assert wrong.code == 1 and "Could not match any topic-partitions" in wrong.err


def test_records_deleted_from_several_partitions(
    tools: Shell, where: tuple[str, str], broker: BrokerProcess, topic: str, tmp_path: Path
) -> None:
    create_topic(broker, topic, 3)
    with confluent.producer(broker.bootstrap) as producer:
        for partition in range(3):
            producer.send(topic, [Out(b"v", partition=partition) for _ in range(10)])
    plan = tmp_path / "records.json"
    wanted = [{"topic": topic, "partition": partition, "offset": at} for partition, at in ((0, 4), (1, -1), (2, 11))]
    plan.write_text(json.dumps({"version": 1, "partitions": wanted}))
    told = tools.try_run("DeleteRecordsCommand", *where, "--offset-json-file", plan)
    for line in (f"partition: {topic}-0\tlow_watermark: 4", f"partition: {topic}-1\tlow_watermark: 10"):
        assert line in told.out, told
    assert f"partition: {topic}-2\terror: " in told.out and "OffsetOutOfRangeException" in told.out


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_verifiable_clients_of_both_protocols(
    tools: Shell, where: tuple[str, str], topic: str, broker: BrokerProcess, protocol: str
) -> None:
    """Two members share what a producer writes; nobody misses a record, and offsets are committed to the end."""
    if tools.older and protocol == "consumer":
        pytest.skip("its first version is another one than that of Kafka 4")
    count, partitions = 2_000, 4
    create_topic(broker, topic, partitions)
    assignor = ("--group-remote-assignor", "range") if protocol == "consumer" else ()
    member = (*where, "--topic", topic, "--group-id", topic, "--group-protocol", protocol, *assignor, "--verbose")
    with (
        tools.running("VerifiableConsumer", *member, "--group-instance-id", "one") as one,
        tools.running("VerifiableConsumer", *member, "--enable-autocommit") as two,
    ):

        def held(lines: list[str]) -> set[int]:
            holding: set[int] = set()
            for event in map(json.loads, lines):
                parts = {part["partition"] for part in event.get("partitions", []) if isinstance(part, dict)}
                if event["name"] == "partitions_assigned":
                    holding |= parts
                elif event["name"] == "partitions_revoked":
                    holding -= parts
            return holding

        def shared() -> bool:
            return len(held(one.lines)) == len(held(two.lines)) == partitions // 2

        one.wait_for(lambda _: shared())
        spread = ("--max-messages", count, "--acks", -1, "--repeating-keys", 50)
        told = tools.run("VerifiableProducer", *where, "--topic", topic, *spread)
        events = [json.loads(line) for line in told.lines]
        sent = {
            (event["partition"], event["offset"]): event["value"]
            for event in events
            if event["name"] == "producer_send_success"
        }
        assert len(sent) == count and len({partition for partition, _ in sent}) == partitions

        def seen() -> dict[tuple[int, int], str]:
            return {
                (event["partition"], event["offset"]): event["value"]
                for event in map(json.loads, [*one.lines, *two.lines])
                if event["name"] == "record_data"
            }

        one.wait_for(lambda _: len(seen()) == count)
        assert seen() == sent
        assert {one.end(), two.end()} <= {0, 128 + signal.SIGTERM}
    with confluent.consumer(broker.bootstrap, {"group.id": topic}) as reader:
        ends = [reader.bounds((topic, partition))[1] for partition in range(partitions)]
        assert [reader.committed((topic, partition)) for partition in range(partitions)] == ends


def test_a_transactional_copy(tools: Shell, where: tuple[str, str], topic: str, broker: BrokerProcess) -> None:
    """Kafka's own consume-process-produce, with aborts; readers of committed records see each once."""
    count = 500
    create_topic(broker, f"{topic}-out", 1)
    fill(broker, topic, count)
    told = tools.run(
        "TransactionalMessageCopier",
        *("--broker-list", where[1], "--input-topic", topic, "--input-partition", 0, "--output-topic", f"{topic}-out"),
        *("--consumer-group", topic, "--transactional-id", topic, "--transaction-size", 50, "--max-messages", count),
        *("--enable-random-aborts", "--use-group-metadata", "--group-mode"),
    )
    summary = json.loads(told.lines[-1])
    assert (summary["totalProcessed"], summary["remaining"]) == (count, 0), summary
    with confluent.consumer(broker.bootstrap, {"isolation.level": "read_committed", "group.id": topic}) as reader:
        reader.assign({(f"{topic}-out", 0): "beginning"})
        got = poll_until(reader, lambda records: len(records) >= count)
        assert [one.value for one in got] == [b"%d" % number for number in range(count)]
        assert reader.committed((topic, 0)) == count


def test_a_transactional_load(tools: Shell, where: tuple[str, str], topic: str, broker: BrokerProcess) -> None:
    create_topic(broker, topic, 1)
    at = ("--producer-props", f"bootstrap.servers={where[1]}") if tools.older else where
    told = tools.run(
        "ProducerPerformance",
        *("--topic", topic, "--num-records", 5000, "--record-size", 100, "--throughput", -1, *at),
        *("--transactional-id", topic, "--transaction-duration-ms", 50),
    )
    assert told.lines[-1].startswith("5000 records sent")
    with confluent.consumer(broker.bootstrap, {"isolation.level": "read_committed"}) as reader:
        reader.assign({(topic, 0): "beginning"})
        assert len(poll_until(reader, lambda records: len(records) >= 5000)) == 5000


def test_readers_of_the_internal_topics(
    tools: Shell, where: tuple[str, str], topic: str, broker: BrokerProcess
) -> None:
    """The tools' formatters know every record there: it is Kafka's format."""
    if tools.older:
        pytest.skip("Kafka 4.3 writes versions that its own older tools do not read, and so do we")
    formats = (
        ("__consumer_offsets", "OffsetsMessageFormatter", topic),
        ("__consumer_offsets", "GroupMetadataMessageFormatter", topic),
        ("__transaction_state", "TransactionLogMessageFormatter", f"{topic}-tx"),
    )
    fill(broker, topic, 3)
    with confluent.consumer(broker.bootstrap, {"group.id": topic, "auto.offset.reset": "earliest"}) as consumer:
        consumer.subscribe(topic)
        poll_until(consumer, lambda records: len(records) >= 3)
        consumer.commit()
    tools.run(
        "TransactionalMessageCopier",
        *("--broker-list", where[1], "--input-topic", topic, "--input-partition", 0, "--output-topic", topic),
        *("--consumer-group", topic, "--transactional-id", f"{topic}-tx", "--max-messages", 3),
    )
    for internal, formatter, wanted in formats:
        told = tools.try_run(
            CONSOLE_CONSUMER,
            *(*where, "--topic", internal, "--from-beginning", "--timeout-ms", 4000),
            *("--formatter", f"org.apache.kafka.tools.consumer.{formatter}"),
        )
        assert wanted in told.out, f"{formatter}: {told.err[-2000:]}"
        assert "unknown::type" not in told.out and "Exception" not in told.out, formatter
