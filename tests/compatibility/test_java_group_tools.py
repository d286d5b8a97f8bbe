"""`kafka-consumer-groups.sh` and `kafka-groups.sh`, unmodified, of two Kafka versions: every way to list, show, reset
and delete, with groups of both protocols.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compatibility.admin import create_topic
from tests.compatibility.clients import confluent, read
from tests.compatibility.clients.base import Out
from tests.compatibility.jvm import Output, Shell
from tests.compatibility.test_java_tools import GROUPS, cells
from tests.support.broker_process import BrokerProcess

pytestmark = pytest.mark.compatibility

BASE = 1_600_000_000_000
"""2020-09-13T12:26:40Z."""
COUNT = 20
PARTITIONS = 2
Command = Callable[..., list[str]]


@pytest.fixture
def command(tools: Shell, broker: BrokerProcess) -> Command:
    """`kafka-consumer-groups.sh`; the lines that it prints."""
    return lambda *arguments: tools.run(GROUPS, "--bootstrap-server", broker.bootstrap, *arguments).lines


def try_command(tools: Shell, broker: BrokerProcess, *arguments: object) -> Output:
    return tools.try_run(GROUPS, "--bootstrap-server", broker.bootstrap, *arguments)


def fill(broker: BrokerProcess, *topics: str) -> None:
    """Twenty records in each of two partitions, a millisecond apart."""
    with confluent.producer(broker.bootstrap) as producer:
        for topic in topics:
            create_topic(broker, topic, PARTITIONS)
            for partition in range(PARTITIONS):
                producer.send(topic, [Out(b"v", partition=partition, timestamp_ms=BASE + i) for i in range(COUNT)])


def commit(broker: BrokerProcess, group: str, offsets: dict[str, int]) -> None:
    """Committed offsets, by topic, of both partitions, of a group without members."""
    wanted = {(topic, partition): offset for topic, offset in offsets.items() for partition in range(PARTITIONS)}
    with confluent.consumer(broker.bootstrap, {"group.id": group}) as consumer:
        consumer.assign(dict.fromkeys(wanted, "end"))
        consumer.commit(wanted)


def committed(broker: BrokerProcess, group: str, topic: str) -> list[int | None]:
    with confluent.consumer(broker.bootstrap, {"group.id": group}) as consumer:
        return [consumer.committed((topic, partition)) for partition in range(PARTITIONS)]


def plan(lines: list[str]) -> dict[tuple[str, int], int]:
    """What a reset says that it will do; Kafka 3.9 prints its table on one line."""
    words = " ".join(lines).split()
    words = words[words.index("NEW-OFFSET") + 1 :]
    return {(words[at + 1], int(words[at + 2])): int(words[at + 3]) for at in range(0, len(words), 4)}


@pytest.mark.parametrize(
    ("how", "offset"),
    [
        (("--to-earliest",), 0),
        (("--to-latest",), 20),
        (("--to-current",), 10),
        (("--to-offset", 7), 7),
        (("--shift-by", 4), 14),
        (("--shift-by", -4), 6),
        (("--to-datetime", "2020-09-13T12:26:40.005"), 5),
        (("--to-datetime", "2020-09-13T14:26:40.003+02:00"), 3),
        (("--to-datetime", "2020-09-13T12:26:41.000Z"), 20),
        (("--by-duration", "PT1H"), 20),
        (("--by-duration", "P20000D"), 0),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_reset(command: Command, broker: BrokerProcess, topic: str, how: tuple[object, ...], offset: int) -> None:
    """A plan changes nothing and is what is then done, of one partition, of a topic, of all topics."""
    fill(broker, topic)
    commit(broker, topic, {topic: 10})
    of_group = ("--reset-offsets", "--group", topic)
    both = {(topic, partition): offset for partition in range(PARTITIONS)}
    for scope in (("--topic", topic), ("--topic", f"{topic}:0,1"), ("--all-topics",)):
        assert plan(command(*of_group, *scope, *how, "--dry-run")) == both
    assert plan(command(*of_group, "--topic", f"{topic}:1", *how)) == {(topic, 1): offset}, "planned unless told"
    assert committed(broker, topic, topic) == [10, 10]
    assert plan(command(*of_group, "--topic", f"{topic}:1", *how, "--execute")) == {(topic, 1): offset}
    assert committed(broker, topic, topic) == [10, offset]
    if how != ("--to-current",) and how[0] != "--shift-by":
        assert plan(command(*of_group, "--all-topics", *how, "--execute")) == both
        assert committed(broker, topic, topic) == [offset] * 2


def test_reset_beyond_the_ends(tools: Shell, command: Command, broker: BrokerProcess, topic: str) -> None:
    fill(broker, topic)
    commit(broker, topic, {topic: 10})
    scope = ("--reset-offsets", "--group", topic, "--topic", f"{topic}:0")
    for how, offset in ((("--to-offset", 500), 20), (("--shift-by", -500), 0)):
        told = try_command(tools, broker, *scope, *how)
        assert told.code == 0 and plan(told.lines) == {(topic, 0): offset}


def test_reset_from_a_file(tools: Shell, command: Command, broker: BrokerProcess, topic: str, tmp_path: Path) -> None:
    """What was exported of one group, and of two, is imported again."""
    other = f"{topic}-other"
    fill(broker, topic, other)
    groups = [f"{topic}-g1", f"{topic}-g2"]
    for number, group in enumerate(groups):
        commit(broker, group, {topic: 3 + number, other: 13 + number})

    def export(*names: object) -> list[str]:
        told = command("--reset-offsets", *names, "--all-topics", "--to-current", "--export", "--dry-run")
        return [line.replace('"', "") for line in told]

    one = export("--group", groups[0])
    assert sorted(one) == sorted(f"{name},{part},{at}" for name, at in ((topic, 3), (other, 13)) for part in (0, 1))
    named = [word for group in groups for word in ("--group", group)]
    both = export(*named)
    assert len(both) == 8 and f"{groups[1]},{other},0,14" in both
    for group in groups:
        command("--reset-offsets", "--group", group, "--all-topics", "--to-earliest", "--execute")
        assert committed(broker, group, other) == [0, 0]
    file = tmp_path / "offsets.csv"
    file.write_text("\n".join(one) + "\n")
    command("--reset-offsets", "--group", groups[0], "--from-file", file, "--execute")
    assert (committed(broker, groups[0], topic), committed(broker, groups[0], other)) == ([3, 3], [13, 13])
    file.write_text("\n".join(both) + "\n")
    command("--reset-offsets", *named, "--from-file", file, "--execute")
    assert (committed(broker, groups[1], topic), committed(broker, groups[1], other)) == ([4, 4], [14, 14])
    file.write_text("no,numbers\n")
    wrong = try_command(tools, broker, "--reset-offsets", "--group", groups[0], "--from-file", file)
    assert "Error" in wrong.out + wrong.err


def test_what_a_group_with_members_refuses(tools: Shell, command: Command, broker: BrokerProcess, topic: str) -> None:
    fill(broker, topic)
    options = {"group.id": topic, "auto.offset.reset": "earliest", "client.id": "reader"}
    with confluent.consumer(broker.bootstrap, options) as consumer:
        consumer.subscribe(topic)
        read(consumer, PARTITIONS * COUNT)
        consumer.commit()
        reset = try_command(tools, broker, "--reset-offsets", "--group", topic, "--all-topics", "--to-earliest")
        assert "Assignments can only be reset if the group" in reset.out + reset.err
        assert "inactive" in reset.out + reset.err
        offsets = try_command(tools, broker, "--delete-offsets", "--group", topic, "--topic", topic)
        assert offsets.out.split()[-6:] == [topic, "0", "Error:", "group", "subscribed", "to"] or "Error" in offsets.out
        assert "GroupNotEmptyException" in "".join(try_command(tools, broker, "--delete", "--group", topic)[1:])
        header, row = cells(command("--describe", "--group", topic, "--members", "--verbose"))
        told = dict(zip(header, row, strict=False))
        assert told["GROUP"] == topic and told["#PARTITIONS"] == "2"
        assert f"{topic}" in " ".join(row)
        header, row = cells(command("--describe", "--group", topic, "--state", "--verbose"))
        assert "Stable" in row and "range" in row
        rows = cells(command("--describe", "--group", topic, "--offsets", "--verbose"))[1:]
        assert [(line[0], line[1]) for line in rows] == [(topic, topic)] * 2
    assert committed(broker, topic, topic) == [COUNT, COUNT]


def test_lists(tools: Shell, command: Command, broker: BrokerProcess, topic: str) -> None:
    fill(broker, topic)
    kept, gone = f"{topic}-kept", f"{topic}-gone"
    commit(broker, kept, {topic: 4})
    commit(broker, gone, {topic: 5})
    assert {kept, gone} <= set(command("--list"))
    states = {row[0]: row[1:] for row in cells(command("--list", "--state"))}
    assert states["GROUP"] == ["STATE"] and states[kept] == ["Empty"]
    assert kept in "\n".join(command("--list", "--state", "empty"))
    assert kept not in "\n".join(command("--list", "--state", "Stable"))
    assert [row[1] for row in cells(command("--list", "--type", "classic")) if row[0] == kept] == ["Classic"]
    assert kept not in "\n".join(command("--list", "--type", "consumer"))
    every = "\n".join(command("--describe", "--all-groups", "--offsets"))
    assert kept in every and gone in every
    assert kept in "\n".join(command("--describe", "--all-groups", "--state"))
    rows = cells(command("--describe", "--group", kept))
    assert sorted(row[1:6] for row in rows if row[0] == kept) == [
        [topic, str(part), "4", "20", "16"] for part in (0, 1)
    ]
    deleted = command("--delete-offsets", "--group", kept, "--topic", f"{topic}:1")
    assert " ".join(deleted).split()[-3:] == [topic, "1", "Successful"]
    assert committed(broker, kept, topic) == [4, None]
    told = try_command(tools, broker, "--delete", "--group", gone, "--group", f"{topic}-nobody")
    assert f"'{gone}'" in told.out + told.err and "GroupIdNotFoundException" in told.out + told.err
    assert gone not in command("--list") and kept in command("--list")
    missing = try_command(tools, broker, "--describe", "--group", f"{topic}-nobody")
    assert ("does not exist" if tools.older else "GroupIdNotFoundException") in missing.out + missing.err


def test_expressions_are_checked(tools: Shell, command: Command) -> None:
    if tools.older:
        pytest.skip("since Kafka 4.2")
    assert command("--validate-regex", "orders-.*") != command("--validate-regex", "(")


def test_groups_of_all_kinds(tools: Shell, broker: BrokerProcess, topic: str) -> None:
    """`kafka-groups.sh`."""
    if tools.older:
        pytest.skip("since Kafka 4.0")
    fill(broker, topic)
    classic, modern = f"{topic}-classic", f"{topic}-modern"
    commit(broker, classic, {topic: 4})
    options = {"group.id": modern, "group.protocol": "consumer", "auto.offset.reset": "earliest"}
    with confluent.consumer(broker.bootstrap, options) as consumer:
        consumer.subscribe(topic)
        read(consumer, PARTITIONS * COUNT)

        def listed(*filters: object) -> dict[str, list[str]]:
            told = tools.run("GroupsCommand", "--bootstrap-server", broker.bootstrap, "--list", *filters)
            return {row[0]: row[1:] for row in cells(told.lines[1:]) if row[0] in (classic, modern)}

        assert listed()[modern] == ["Consumer", "consumer"]
        assert listed()[classic][0] == "Classic"
        assert set(listed("--group-type", "consumer")) == {modern}
        assert set(listed("--group-type", "classic")) == {classic}
        assert set(listed("--consumer")) == {classic, modern}
        assert set(listed("--protocol", "consumer")) == {modern}
        assert listed("--share") == listed("--streams") == {}
