"""Kafka's own command-line tools, unmodified, of two Kafka versions: what they print, not only that they end well."""

import json
import re
from pathlib import Path

import pytest

from tests.compatibility.clients import confluent, poll_until, read
from tests.compatibility.clients.base import Out
from tests.compatibility.health import metric
from tests.compatibility.jvm import Shell
from tests.support.broker_process import BrokerProcess

pytestmark = pytest.mark.compatibility

CONSOLE_CONSUMER = "consumer.ConsoleConsumer"
GROUPS = "consumer.group.ConsumerGroupCommand"


def fill(broker: BrokerProcess, topic: str, count: int, timestamp_ms: int | None = None) -> None:
    with confluent.producer(broker.bootstrap) as producer:
        producer.send(
            topic,
            [
                Out(b"%d" % i, partition=0, timestamp_ms=None if timestamp_ms is None else timestamp_ms + i)
                for i in range(count)
            ],
        )


def cells(lines: list[str]) -> list[list[str]]:
    """The words of table rows."""
    return [line.split() for line in lines]


def test_topics(tools: Shell, where: tuple[str, str], broker: BrokerProcess, topic: str) -> None:
    def command(*arguments: object) -> list[str]:
        return tools.run("TopicCommand", *where, *arguments).lines

    create = ("--create", "--topic", topic, "--partitions", 3, "--replication-factor", 1)
    assert f"Created topic {topic}." in command(*create, "--config", "retention.ms=123456")
    assert topic in command("--list")
    had = metric(broker, "tidelog_requests_total", api="DescribeTopicPartitions")
    first, *rest = command("--describe", "--topic", topic)
    assert metric(broker, "tidelog_requests_total", api="DescribeTopicPartitions") > had
    assert re.fullmatch(
        rf"Topic: {re.escape(topic)}\tTopicId: [\w-]{{22}}\tPartitionCount: 3\tReplicationFactor: 1\t"
        "Configs: retention.ms=123456",
        first,
    )
    assert [line.split("\t")[1:6] for line in rest] == [
        ["Topic: " + topic, f"Partition: {partition}", "Leader: 1", "Replicas: 1", "Isr: 1"] for partition in range(3)
    ]
    command("--alter", "--topic", topic, "--partitions", 5)
    assert len(command("--describe", "--topic", topic)) == 6
    for unhealthy in ("--under-replicated-partitions", "--unavailable-partitions", "--under-min-isr-partitions"):
        assert command("--describe", unhealthy) == []
    assert command(*create, "--if-not-exists") in ([], [f"Created topic {topic}."])
    again = tools.try_run("TopicCommand", *where, *create)
    assert again.code == 1
    assert f"Topic '{topic}' already exists" in again.out + again.err
    fewer = tools.try_run("TopicCommand", *where, "--alter", "--topic", topic, "--partitions", 2)
    assert fewer.code == 1
    assert "InvalidPartitionsException" in fewer.out + fewer.err
    command("--delete", "--topic", topic)
    assert topic not in command("--list")


def test_configs(tools: Shell, where: tuple[str, str], broker: BrokerProcess, topic: str) -> None:
    entity = ("--entity-type", "topics", "--entity-name", topic)

    def command(*arguments: object) -> list[str]:
        return tools.run("kafka.admin.ConfigCommand", *where, *arguments).lines

    fill(broker, topic, 1)
    assert command("--describe", *entity) == [f"Dynamic configs for topic {topic} are:"]
    change = "retention.ms=555000,cleanup.policy=[compact,delete]"
    assert command("--alter", *entity, "--add-config", change) == [f"Completed updating config for topic {topic}."]
    assert [line.split()[0] for line in command("--describe", *entity)[1:]] == [
        "cleanup.policy=compact,delete",
        "retention.ms=555000",
    ]
    command("--alter", *entity, "--delete-config", "cleanup.policy")
    (line,) = command("--describe", *entity)[1:]
    assert line.strip() == ("retention.ms=555000 sensitive=false synonyms={DYNAMIC_TOPIC_CONFIG:retention.ms=555000}")
    everything = command("--describe", "--all", *entity)
    assert "  segment.ms=604800000 sensitive=false synonyms={}" in everything
    assert "  min.insync.replicas=1 sensitive=false synonyms={DEFAULT_CONFIG:min.insync.replicas=1}" in everything
    wrong = tools.try_run(
        "kafka.admin.ConfigCommand", *where, "--alter", *entity, "--add-config", "max.message.bytes=many"
    )
    assert wrong.code == 1
    assert (
        "InvalidConfigurationException: Invalid value many for configuration max.message.bytes" in wrong.out + wrong.err
    )
    of_broker = command("--describe", "--all", "--entity-type", "brokers", "--entity-name", 1)
    assert any(line.startswith("  group.initial.rebalance.delay.ms=0 ") for line in of_broker)


def test_console_clients(tools: Shell, where: tuple[str, str], topic: str, broker: BrokerProcess) -> None:
    """Keys, headers, null values, compression; by group and by partition and offset."""
    to_write, to_print = ("--property",) * 2 if tools.older else ("--reader-property", "--formatter-property")
    tools.run(
        "ConsoleProducer",
        *(*where, "--topic", topic, "--compression-codec", "zstd"),
        *(to_write, "parse.key=true", to_write, "key.separator=:", to_write, "parse.headers=true"),
        *(to_write, "null.marker=NULL"),
        text="h:1,g:2\tkey:value\nh:x\tgone:NULL\n",
    )
    show = []
    for what in ("key", "headers", "offset", "partition", "timestamp"):
        show += [to_print, f"print.{what}=true"]
    read_all = ("--from-beginning", "--max-messages", 2)
    got = tools.run(CONSOLE_CONSUMER, *where, "--topic", topic, *read_all, *show)
    assert [line.split("\t")[1:] for line in got.lines] == [
        ["Partition:0", "Offset:0", "h:1,g:2", "key", "value"],
        ["Partition:0", "Offset:1", "h:x", "gone", "null"],
    ]
    assert "Processed a total of 2 messages" in got.out + got.err
    got = tools.run(
        CONSOLE_CONSUMER, *where, "--topic", topic, "--partition", 0, "--offset", 1, "--max-messages", 1, *show
    )
    assert [line.split("\t")[2] for line in got.lines] == ["Offset:1"]
    # The group goes on where it committed, so nothing is left for the second reader.
    for count, wait_ms in ((2, 20_000), (0, 3000)):
        more = ("--max-messages", count) if count else ()
        got = tools.try_run(
            CONSOLE_CONSUMER,
            *(*where, "--topic", topic, "--from-beginning", "--group", topic, "--timeout-ms", wait_ms, *more),
        )
        assert len(got.lines) - sum("Processed" in line for line in got.lines) == count
    with confluent.consumer(broker.bootstrap, {"group.id": topic}) as consumer:
        assert consumer.committed((topic, 0)) == 2


@pytest.mark.parametrize("acks", ["0", "1", "all"])
def test_console_producer_acks(
    tools: Shell, where: tuple[str, str], topic: str, broker: BrokerProcess, acks: str
) -> None:
    tools.run("ConsoleProducer", *where, "--topic", topic, "--request-required-acks", acks, text="a\nb\n")
    with confluent.consumer(broker.bootstrap) as consumer:
        consumer.assign({(topic, 0): "beginning"})
        assert [one.value for one in read(consumer, 2)] == [b"a", b"b"]


def test_performance_tools(tools: Shell, where: tuple[str, str], topic: str) -> None:
    records = "--messages" if tools.older else "--num-records"
    at = ("--producer-props", f"bootstrap.servers={where[1]}") if tools.older else where
    told = tools.run(
        "ProducerPerformance",
        *("--topic", topic, "--num-records", 20_000, "--record-size", 500, "--throughput", -1, *at),
    )
    assert re.match(r"20000 records sent, \d+\.\d+ records/sec \(\d+\.\d+ MB/sec\), .* ms 99.9th\.", told.lines[-1])
    told = tools.run("ConsumerPerformance", *where, "--topic", topic, records, 20_000)
    header, row = told.lines[-2:]
    values = dict(zip(header.split(", "), row.split(", "), strict=True))
    assert int(values["data.consumed.in.nMsg"]) == 20_000
    assert values["data.consumed.in.MB"] == "9.5367"
    told = tools.run("EndToEndLatency", where[1], f"{topic}.e2e", 200, "all", 100)
    assert any(re.match(r"Avg latency: \d+\.\d+ ms", line) for line in told.lines)
    assert any(re.match(r"Percentiles: 50th = \d+, 99th = \d+, 99.9th = \d+", line) for line in told.lines)


def test_verifiable_clients(tools: Shell, where: tuple[str, str], topic: str) -> None:
    """What was acknowledged is what is consumed; offsets are committed as told."""
    told = tools.run("VerifiableProducer", *where, "--topic", topic, "--max-messages", 500, "--repeating-keys", 7)
    events = [json.loads(line) for line in told.lines]
    acked = [event for event in events if event["name"] == "producer_send_success"]
    assert [(event["offset"], event["value"]) for event in acked] == [(i, str(i)) for i in range(500)]
    summary = next(event for event in events if event["name"] == "tool_data")
    assert (summary["sent"], summary["acked"]) == (500, 500)
    told = tools.run(
        "VerifiableConsumer", *where, "--topic", topic, "--group-id", topic, "--max-messages", 500, "--verbose"
    )
    events = [json.loads(line) for line in told.lines]
    consumed = [event for event in events if event["name"] == "record_data"]
    assert [(event["offset"], event["value"]) for event in consumed] == [(i, str(i)) for i in range(500)]
    commits = [event for event in events if event["name"] == "offsets_committed"]
    assert all(event["success"] for event in commits)
    assert commits[-1]["offsets"] == [{"topic": topic, "partition": 0, "offset": 500}]


def test_groups(tools: Shell, where: tuple[str, str], broker: BrokerProcess, topic: str) -> None:
    """A group with a member, then its offsets by every way to reset them, then its end."""
    base = 1_600_000_000_000
    fill(broker, topic, 20, timestamp_ms=base)

    def command(*arguments: object) -> list[str]:
        return tools.run(GROUPS, *where, *arguments).lines

    options = {"group.id": topic, "auto.offset.reset": "earliest", "client.id": "reader"}
    with confluent.consumer(broker.bootstrap, options) as consumer:
        consumer.subscribe(topic)
        read(consumer, 20)
        consumer.commit()
        assert topic in command("--list")
        ((name, state),) = [row for row in cells(command("--list", "--state")) if row[0] == topic]
        assert (name, state) == (topic, "Stable")
        row = cells(command("--describe", "--group", topic))[-1]
        assert row[:6] == [topic, topic, "0", "20", "20", "0"]
        assert row[7:] == ["/127.0.0.1", "reader"]
        row = cells(command("--describe", "--group", topic, "--members"))[-1]
        assert [row[0], row[2], row[3], row[4]] == [topic, "/127.0.0.1", "reader", "1"]
        row = cells(command("--describe", "--group", topic, "--state"))[-1]
        assert row == [topic, broker.bootstrap, "(1)", "range", "Stable", "1"]
        refused = tools.try_run(GROUPS, *where, "--delete", "--group", topic)
        assert "GroupNotEmptyException" in refused.out + refused.err
    select = ("--group", topic, "--topic", topic)
    for how, offset in (
        (("--to-earliest",), 0),
        (("--to-latest",), 20),
        (("--to-offset", 7), 7),
        (("--shift-by", -3), 4),
        (("--to-current",), 4),
        (("--to-datetime", "2020-09-13T12:26:40.005"), 5),
        (("--by-duration", "PT1H"), 20),
    ):
        # Kafka 3.9 prints this table on one line.
        words = tools.run(GROUPS, *where, "--reset-offsets", *select, *how, "--execute").out.split()
        assert words[-8:] == ["GROUP", "TOPIC", "PARTITION", "NEW-OFFSET", topic, topic, "0", str(offset)], how
        with confluent.consumer(broker.bootstrap, {"group.id": topic}) as consumer:
            assert consumer.committed((topic, 0)) == offset
    assert tools.run(GROUPS, *where, "--delete-offsets", *select).out.split()[-3:] == [topic, "0", "Successful"]
    assert command("--delete", "--group", topic) == [
        f"Deletion of requested consumer groups ('{topic}') was successful."
    ]
    assert topic not in command("--list")


def test_offsets_and_deleted_records(
    tools: Shell, where: tuple[str, str], broker: BrokerProcess, topic: str, tmp_path: Path
) -> None:
    base = 1_600_000_000_000
    fill(broker, topic, 20, timestamp_ms=base)

    def offsets(time: object) -> list[str]:
        return tools.run("GetOffsetShell", *where, "--topic", topic, "--time", time).lines

    wanted = {"latest": 20, "earliest": 0, "max-timestamp": 19, base + 4: 4, "earliest-local": 0}
    for time, offset in wanted.items():
        assert offsets(time) == [f"{topic}:0:{offset}"], time
    assert tools.run("GetOffsetShell", *where, "--topic-partitions", f"{topic}:0").lines == [f"{topic}:0:20"]
    plan = tmp_path / "records.json"
    plan.write_text(json.dumps({"version": 1, "partitions": [{"topic": topic, "partition": 0, "offset": 6}]}))
    told = tools.run("DeleteRecordsCommand", *where, "--offset-json-file", plan)
    assert f"partition: {topic}-0\tlow_watermark: 6" in told.lines
    assert offsets("earliest") == [f"{topic}:0:6"]
    plan.write_text(json.dumps({"version": 1, "partitions": [{"topic": topic, "partition": 0, "offset": 21}]}))
    told = tools.try_run("DeleteRecordsCommand", *where, "--offset-json-file", plan)
    assert "OffsetOutOfRangeException" in told.out + told.err


def test_log_dirs(tools: Shell, where: tuple[str, str], broker: BrokerProcess, topic: str) -> None:
    fill(broker, topic, 100)
    told = tools.run("LogDirsCommand", *where, "--describe", "--topic-list", topic)
    (described,) = json.loads(told.lines[-1])["brokers"]
    (directory,) = described["logDirs"]
    assert (described["broker"], directory["error"]) == (1, None)
    assert directory["logDir"].startswith("file:")
    (partition,) = directory["partitions"]
    assert (partition["partition"], partition["offsetLag"], partition["isFuture"]) == (f"{topic}-0", 0, False)
    assert partition["size"] > 100


def test_cluster(tools: Shell, where: tuple[str, str], broker: BrokerProcess) -> None:
    told = tools.run("BrokerApiVersionsCommand", *where).out
    assert told.startswith(f"{broker.bootstrap} (id: 1 rack: null")
    usable = dict(re.findall(r"^\t(\w+)\(\d+\): .*\[usable: (\d+)\]", told, re.MULTILINE))
    if not tools.older:
        assert usable["Produce"] == "13"
        assert usable["Fetch"] == "18"
        assert usable["ApiVersions"] == "4"
    (line,) = tools.run("ClusterTool", "cluster-id", *where).lines
    assert re.fullmatch(r"Cluster ID: [\w-]{22}", line)
    if not tools.older:
        row = cells(tools.run("ClusterTool", "list-endpoints", *where).lines)[-1]
        assert row == ["1", "127.0.0.1", str(broker.port), "null", "unfenced", "broker"]
        rows = cells(tools.run("GroupsCommand", *where, "--list").lines)
        assert rows[0] == ["GROUP", "TYPE", "PROTOCOL"]


def test_replica_verification(tools: Shell, where: tuple[str, str], broker: BrokerProcess, topic: str) -> None:
    """A tool that fetches as a replica would, by an old Fetch of its own."""
    fill(broker, topic, 100)
    arguments = ("--broker-list", where[1], "--topics-include", re.escape(topic), "--report-interval-ms", 200)
    with tools.running("ReplicaVerificationTool", *arguments) as running:
        running.wait_for(lambda lines: any("max lag is 0 for partition" in line for line in lines))


def test_client_compatibility(tools: Shell, where: tuple[str, str], topic: str) -> None:
    """Kafka's own test of a client against brokers of any version."""
    tools.run("TopicCommand", *where, "--create", "--topic", topic)
    tools.run("TopicCommand", *where, "--delete", "--if-exists", "--topic", "newtopic")  # it makes this one
    supported = ("offsets-for-times", "cluster-id", "create-topics", "describe-configs", "idempotent-producer")
    told = tools.try_run(
        "ClientCompatibilityTest",
        *(*where, "--topic", topic, "--num-cluster-nodes", 1),
        *(part for name in supported for part in (f"--{name}-supported", "True")),
        *("--expect-record-too-large-exception", "False", "--describe-acls-supported", "True"),
    )
    assert told.code == 0, told
    assert "SUCCESS" in told.out


def test_clients_go_on_after_kills(tools: Shell, tmp_path: Path) -> None:
    """The verifiable tools across SIGKILLs of the broker: what was acknowledged stands in the log, there and once.

    This producer gives up on what was under way (`retries=0`): such records may stand in the log or not.
    """
    with BrokerProcess(tmp_path / "data", group_initial_rebalance_delay_ms=3000) as broker:
        at = ("--bootstrap-server", broker.bootstrap, "--topic", "killed")
        with (
            tools.running("VerifiableProducer", *at, "--throughput", 300) as producer,
            tools.running("VerifiableConsumer", *at, "--group-id", "g", "--verbose") as consumer,
        ):
            consumer.wait_for(lambda lines: any('"record_data"' in line for line in lines))
            for _ in range(3):
                for running in (producer, consumer):
                    had = len(running.lines)
                    running.wait_for(lambda lines, had=had: len(lines) > had + 200)
                broker.kill()
                broker.start()
            had = len(producer.lines)
            producer.wait_for(lambda lines: len(lines) > had + 200)
            producer.end()
            events = [json.loads(line) for line in producer.lines]
            acked = {event["offset"]: event["value"] for event in events if event["name"] == "producer_send_success"}
            failed = [event for event in events if event["name"] == "producer_send_error"]
            assert {event["exception"].rpartition(".")[2] for event in failed} <= {"NetworkException"}
            last = max(acked)
            consumer.wait_for(
                lambda lines: any('"record_data"' in line and f'"offset":{last}}}' in line for line in lines)
            )
            consumer.end()
        with confluent.consumer(broker.bootstrap) as reader:
            reader.assign({("killed", 0): "beginning"})
            found = poll_until(reader, lambda records: records and records[-1].offset >= last)
    stored = {one.offset: (one.value or b"").decode() for one in found}
    assert sorted(stored) == list(range(len(stored)))
    assert len(set(stored.values())) == len(stored), "a record stands in the log twice"
    assert stored.items() >= acked.items()
    consumed = [event for event in map(json.loads, consumer.lines) if event["name"] == "record_data"]
    assert {event["offset"]: event["value"] for event in consumed}.items() >= acked.items()
    assert all(stored[event["offset"]] == event["value"] for event in consumed)
