"""The `tidelog` command: every verb against a real broker, as tables and JSON, and its words when all is not well."""

import asyncio
import gc
import io
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaConnectionError

import broker.cli.consume
import broker.http.port
from broker.cli import COMMANDS, main, parser
from broker.cli import brokers as brokers_command
from broker.cli import start as start_command
from broker.cli.client import TRIES, all_offsets, look_up, offsets, typed
from broker.cli.consume import render, text
from broker.cli.output import CommandError, show
from broker.cli.progress import Progress
from controller.facts import FORMAT_LEVEL
from storage.filesystem import FileSystemStore
from storage.wal.object_format import encode_fence, object_key
from tests.chaos.disk import flip_bit, groups
from tests.support.broker_process import ROOT, BrokerProcess
from tests.support.node_runs import NodeRuns, hurry
from tests.support.raw_client import batch_of
from tests.support.waiting import until

Run = Callable[..., tuple[int, str, str]]

# The client library forgets the socket of a refused connection.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def dropped_sockets() -> Iterator[None]:
    """They are found here and not in the middle of another module's test."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """One broker for the commands of a client."""
    overrides = {"tidelog_seal_ms": 50, "tidelog_wal_file_bytes": 2 << 20, "offsets_topic_num_partitions": 2}
    with BrokerProcess(tmp_path_factory.mktemp("cli") / "data", **overrides) as process:
        yield process
        assert process.stop() == 0


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: (exit code, stdout, stderr)."""

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main(words)
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def tidelog(run: Run, served: BrokerProcess) -> Run:
    """The same for client commands, against the broker."""

    def call(command: str, *words: str) -> tuple[int, str, str]:
        first, rest = (command,), words
        if command == "config":
            first, rest = (command, *words[:2]), words[2:]
        if command in ("topic", "group", "cluster"):
            first, rest = (command, words[0]), words[1:]
        return run(*first, "-b", served.bootstrap, *rest)

    return call


def lines(tmp_path: Path, *values: str) -> str:
    """A file with these lines."""
    path = tmp_path / "lines"
    path.write_text("".join(value + "\n" for value in values))
    return str(path)


# Topics


def test_partitions_without_a_leader_have_no_offsets_to_show() -> None:
    def read(partitions: list[int]) -> dict[int, int]:
        return {partition: {0: 10, 2: 30}[partition] for partition in partitions}

    assert offsets(read, [0, 2]) == {0: 10, 2: 30}
    assert offsets(read, [0, 1, 2]) == {0: 10, 2: 30}

    def nobody(partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        raise KeyError(partitions[0])

    with pytest.raises(CommandError, match="made-1 has no leader now: try again"):
        all_offsets(nobody, [TopicPartition("made", 1)])


def test_a_broker_that_has_just_died_is_not_the_end_of_a_look() -> None:
    failures = [KafkaConnectionError("refused")] * (TRIES - 1)

    def call() -> str:
        if failures:
            raise failures.pop()
        return "told"

    assert look_up(call) == "told"
    failures += [KafkaConnectionError("refused")] * TRIES
    with pytest.raises(KafkaConnectionError):
        look_up(call)


def test_topics_from_creation_to_deletion(tidelog: Run) -> None:
    assert tidelog("topic", "create", "made", "-p", "2", "-c", "retention.ms=1000000") == (
        0,
        "TOPIC  PARTITIONS\nmade            2\n",
        "",
    )
    code, out, _ = tidelog("topic", "list", "--format", "json")
    assert (code, {"topic": "made", "partitions": 2, "internal": False} in json.loads(out)) == (0, True)
    code, out, _ = tidelog("topic", "describe", "made")
    assert code == 0
    assert out.splitlines() == [
        "PARTITION  LEADER  EPOCH  START  END",
        "        0       1      0      0    0",
        "        1       1      0      0    0",
        "retention.ms=1000000",
    ]
    code, out, _ = tidelog(
        "topic", "alter", "made", "-p", "3", "-c", "cleanup.policy=compact", "--remove", "retention.ms"
    )
    assert (code, out) == (0, "")
    code, out, _ = tidelog("topic", "describe", "made", "--format", "json")
    (described,) = json.loads(out)
    assert [row["partition"] for row in described["partitions"]] == [0, 1, 2]
    assert set(described["configs"]["topic"]["made"]) == {"cleanup.policy"}
    assert tidelog("topic", "create", "other", "-r", "3")[0] == 0
    assert tidelog("topic", "delete", "made", "other") == (0, "", "")
    assert "made" not in tidelog("topic", "list")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("create", "here"), "topic here: Topic 'here' already exists."),
        (("create", "bad name"), "topic bad name: Topic name is invalid"),
        (("create", "x", "-p", "0"), "topic x: Number of partitions was set to an invalid non-positive value."),
        (("create", "x", "-c", "retention.ms"), "--config retention.ms: write key=value"),
        (("create", "x", "-c", "no.such=1"), "topic x: Unknown topic config name: no.such"),
        (("describe", "missing"), "topic missing does not exist"),
        (("alter", "here"), "nothing to do: give --partitions, --config or --remove"),
        (("alter", "here", "-p", "1"), "topic here: Topic already has 1 partition(s)."),
        (("alter", "here", "-c", "no.such=1"), "Unknown topic config name: no.such"),
        (("alter", "here", "-c", "retention.ms=many"), "retention.ms"),
        (("alter", "missing", "-c", "retention.ms=1"), "The topic 'missing' does not exist."),
        (("alter", "missing", "-p", "3"), "topic missing: The topic 'missing' does not exist."),
        (("delete", "missing"), "topic missing: This server does not host this topic."),
    ],
)
def test_what_cannot_be_done_with_topics(tidelog: Run, words: tuple[str, ...], message: str) -> None:
    tidelog("topic", "create", "here")
    code, out, err = tidelog("topic", *words)
    assert (code, out) == (1, "")
    assert err.startswith("tidelog topic: ") and message in err and err.count("\n") == 1 and len(err) < 300


# Connecting


def test_no_broker(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        address = "{}:{}".format(*unused.getsockname())
    for words in (("topic", "list"), ("group", "list"), ("consume", "t"), ("produce", "t", "-f", os.devnull)):
        code, out, err = run(
            *words, "-b", address, "-X", "bootstrap.timeout.ms=200", *(["-q"] if len(words) > 3 else [])
        )
        assert (code, out) == (1, "")
        assert err == f"tidelog {words[0]}: no broker answers at {address}; is it running?\n"


def test_settings_of_the_client(tidelog: Run) -> None:
    code, _, err = tidelog("topic", "list", "-X", "no.such.setting=1")
    assert code == 1 and "no_such_setting" in err.replace(".", "_") and "Traceback" not in err
    code, _, err = tidelog("topic", "list", "-X", "nothing")
    assert (code, err) == (1, "tidelog topic: -X nothing: write key=value\n")
    assert tidelog("topic", "list", "-X", "request.timeout.ms=20000", "-X", "client.id=me")[0] == 0
    assert [typed(word) for word in ("true", "false", "17", "1.5", "x")] == [True, False, 17, "1.5", "x"]


@pytest.mark.parametrize(
    "words",
    [(), ("nothing",), ("topic",), ("topic", "no-verb"), ("group", "reset", "g"), ("consume",), ("produce",), ("wal",)],
)
def test_unusable_arguments(run: Run, words: tuple[str, ...]) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "") and "usage: tidelog" in err


def test_every_command_has_help(run: Run) -> None:
    assert run("--help")[0] == 0
    for name in COMMANDS:
        code, out, _ = run(name, "--help")
        assert code == 0 and out.startswith(f"usage: tidelog {name}")


# Produce and consume


def test_keys_and_values_there_and_back(tidelog: Run, tmp_path: Path) -> None:
    tidelog("topic", "create", "pairs", "-p", "3")
    code, out, err = tidelog("produce", "pairs", "-f", lines(tmp_path, "a:1", "b:2", "c:", ":4"), "-k", ":")
    assert (code, out) == (0, "")
    assert re.fullmatch(r"acknowledged 4 records, 6 bytes \([\d,]+ records/s, [\d.]+ MiB/s\)\n", err)
    code, out, err = tidelog("consume", "pairs", "-e", "--format", "keyed")
    assert code == 0 and sorted(out.splitlines()) == ["\t4", "a\t1", "b\t2", "c\t"]
    assert err.startswith("consumed 4 records, 6 bytes")
    assert sorted(tidelog("consume", "pairs", "-e", "-q")[1].splitlines()) == ["", "1", "2", "4"]
    code, out, err = tidelog("consume", "pairs", "-e", "-q", "--format", "json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert err == "" and {(row["key"], row["value"]) for row in rows} == {("a", "1"), ("b", "2"), ("c", ""), ("", "4")}
    assert all(set(row) == {"partition", "offset", "timestamp", "headers", "key", "value"} for row in rows)
    code, out, err = tidelog("consume", "pairs", "-e", "--format", "none")
    assert (code, out) == (0, "") and err.startswith("consumed 4 records")


def test_headers_there_and_back(tidelog: Run, tmp_path: Path) -> None:
    tidelog("topic", "create", "headed")
    sent = ("produce", "headed", "-q", "-f", lines(tmp_path, "v"), "-H", "trace=a=b", "-H", "empty=")
    assert tidelog(*sent)[0] == 0
    code, out, _ = tidelog("consume", "headed", "-e", "-q", "--format", "json")
    assert (code, json.loads(out)["headers"]) == (0, [["trace", "a=b"], ["empty", ""]])
    assert tidelog("consume", "headed", "-e", "-q", "--format", "headers")[1] == "trace=a=b,empty=\t\tv\n"
    code, _, err = tidelog("produce", "headed", "-q", "-f", lines(tmp_path, "v"), "-H", "trace")
    assert (code, "--header trace: write key=value" in err) == (1, True)


def test_configs(tidelog: Run) -> None:
    tidelog("topic", "create", "configured")
    assert tidelog("config", "alter", "topic", "configured", "-s", "retention.ms=5000") == (0, "", "")
    shown = "CONFIG        VALUE  FROM\nretention.ms  5000   topic\n"
    code, out, _ = tidelog("config", "describe", "topic", "configured")
    assert (code, out) == (0, shown)
    everything = json.loads(tidelog("config", "describe", "topic", "configured", "--all", "--format", "json")[1])
    assert {row["config"]: row["value"] for row in everything}["cleanup.policy"] == "delete"
    assert tidelog("config", "alter", "topic", "configured", "--remove", "retention.ms")[0] == 0
    assert tidelog("config", "describe", "topic", "configured")[1] == "CONFIG  VALUE  FROM\n"
    assert tidelog("config", "alter", "broker", "default", "-s", "max.connections=5000")[0] == 0
    assert "max.connections" in tidelog("config", "describe", "broker", "default")[1]
    assert re.search(r"max.connections +5000 +all brokers", tidelog("config", "describe", "broker", "1")[1])
    assert tidelog("config", "alter", "broker", "default", "--remove", "max.connections")[0] == 0
    assert tidelog("config", "alter", "group", "g", "-s", "consumer.session.timeout.ms=50000", "--check")[0] == 0
    assert tidelog("config", "describe", "group", "g")[1] == "CONFIG  VALUE  FROM\n"
    for words, message in (
        (("alter", "topic", "configured", "-s", "retention.ms=soon"), "Not a number of type LONG"),
        (("alter", "topic", "configured", "-s", "retention.ms"), "write key=value"),
        (("alter", "topic", "configured"), "nothing to do"),
        (("alter", "broker", "1", "-s", "node.id=7"), "Cannot update these configs dynamically: [node.id]"),
        (("describe", "broker", "one"), "write a node id, or default"),
    ):
        code, out, err = tidelog("config", *words)
        assert (code, out, message in err) == (1, "", True), err


def test_quotas(tidelog: Run) -> None:
    who = ("--user", "<default>", "--client-id", "reports")
    assert tidelog(
        "config", "alter", "quota", *who, "-s", "producer_byte_rate=1000", "-s", "request_percentage=2.5"
    ) == (
        0,
        "",
        "",
    )
    code, out, _ = tidelog("config", "describe", "quota", "--client-id", "reports")
    assert (code, out) == (
        0,
        "USER       CLIENT ID  QUOTA               VALUE\n"
        "<default>  reports    producer_byte_rate  1000\n"
        "<default>  reports    request_percentage  2.5\n",
    )
    removed = ("--remove", "producer_byte_rate", "--remove", "request_percentage")
    assert tidelog("config", "alter", "quota", *who, *removed)[0] == 0
    assert tidelog("config", "describe", "quota")[1] == "QUOTA  VALUE\n"
    for words, message in (
        (("-s", "producer_byte_rate=1"), "whose quota?"),
        (("--user", "a", "-s", "producer_byte_rate=fast"), "write a number"),
        (("--user", "a", "-s", "producer_byte_rate=0"), "must be greater than 0"),
    ):
        code, out, err = tidelog("config", "alter", "quota", *words)
        assert (code, out, message in err) == (1, "", True), err


def test_a_cluster_is_described(tidelog: Run) -> None:
    code, out, _ = tidelog("cluster", "describe")
    assert code == 0
    assert re.match(r"cluster     \S{22}\ncontroller  broker 1\nNODE ID  ADDRESS +RACK  STATE\n", out)
    assert re.search(r"transaction.version +2  0 to 2", out)
    found = json.loads(tidelog("cluster", "describe", "--format", "json")[1])
    assert [broker["node_id"] for broker in found["brokers"]] == [1]


def test_partitions_and_offsets(tidelog: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tidelog("topic", "create", "numbered", "-p", "2")
    stdin = io.TextIOWrapper(io.BytesIO(b"0\n1\r\n2"))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert tidelog("produce", "numbered", "-p", "1", "-q") == (0, "", "")
    assert tidelog("produce", "numbered", "-p", "0", "-q", "-f", lines(tmp_path, "other"))[0] == 0

    def consumed(*words: str) -> list[str]:
        code, out, _ = tidelog("consume", "numbered", "-q", *words)
        assert code == 0
        return out.splitlines()

    assert consumed("-p", "1", "-e") == ["0", "1", "2"]
    assert consumed("-p", "1", "-o", "1", "-e") == ["1", "2"]
    assert consumed("-p", "1", "-o", "earliest", "-n", "2") == ["0", "1"]
    assert consumed("-o", "latest", "-e") == []
    assert sorted(consumed("-n", "4")) == ["0", "1", "2", "other"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("consume", "missing"), "topic missing does not exist"),
        (("consume", "one", "-p", "5"), "topic one has no partition 5"),
        (("consume", "one", "-o", "first"), "--offset first: write earliest, latest or an offset"),
        (("consume", "one", "-g", "g", "-p", "0"), "--group goes with neither --partition nor a numeric --offset"),
        (("consume", "one", "-g", "g", "-o", "5"), "--group goes with neither --partition nor a numeric --offset"),
        (("produce", "one", "-k", "=", "-q"), "a line has no '=': b'no key\\n'"),
        (("produce", "one", "-p", "7", "-q"), "partition 7"),
    ],
)
def test_what_cannot_be_produced_or_consumed(
    tidelog: Run, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    tidelog("topic", "create", "one")
    extra = ("-f", lines(tmp_path, "no key"), "-X", "max.block.ms=500") if words[0] == "produce" else ()
    code, out, err = tidelog(*words, *extra)
    assert (code, out) == (1, "") and err.startswith(f"tidelog {words[0]}: ") and message in err


def test_records_that_are_refused(tidelog: Run, tmp_path: Path) -> None:
    tidelog("topic", "create", "small", "-c", "max.message.bytes=100")
    code, _, err = tidelog("produce", "small", "-q", "-f", lines(tmp_path, *(["x" * 200] * 3)), "-X", "batch.size=1")
    assert code == 1 and err.startswith("tidelog produce: 3 records were not acknowledged: ")


def test_an_end_that_is_never_reached(tidelog: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A declared loss leaves a hole that no record ever ends."""
    monkeypatch.setattr(broker.cli.consume, "POLL_MS", 20)
    monkeypatch.setattr(broker.cli.consume, "IDLE_POLLS_MAX", 10)
    tidelog("topic", "create", "hole")
    tidelog("produce", "hole", "-q", "-f", lines(tmp_path, "x"))
    monkeypatch.setattr(KafkaConsumer, "end_offsets", lambda self, partitions: dict.fromkeys(partitions, 1 << 32))
    code, out, err = tidelog("consume", "hole", "-e", "-q")
    assert (code, out) == (1, "x\n") and "the end is not reached" in err


def test_records_as_they_are_printed() -> None:
    assert (text(None), text(b"a"), text(b"\xff")) == (None, "a", "base64:/w==")

    class Record:
        key, value, partition, offset, timestamp = None, b"\xff\n", 1, 2, 3
        headers = (("h", b"x"), ("h", b"\xff"))

    assert render(Record, "value") == b"\xff\n\n"
    assert json.loads(render(Record, "json")) == {
        "partition": 1,
        "offset": 2,
        "timestamp": 3,
        "headers": [["h", "x"], ["h", "base64:/w=="]],
        "key": None,
        "value": "base64:/wo=",
    }


def test_progress_is_shown_once_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    progress = Progress("moved", False, lambda: now)
    for _ in range(25):
        now += 0.1
        progress.add(1024 * 1024)
    progress.done()
    shown = capsys.readouterr().err
    assert shown.count("\r") == 2 and shown.endswith("\n")
    assert "moved 25 records, 26,214,400 bytes (10 records/s, 10.0 MiB/s)" in shown
    Progress("moved", True).done()
    assert capsys.readouterr().err == ""


# Groups


def test_a_group_from_its_first_record_to_its_deletion(tidelog: Run, tmp_path: Path) -> None:
    tidelog("topic", "create", "grouped", "-p", "2")
    for partition in ("0", "1"):
        tidelog("produce", "grouped", "-q", "-p", partition, "-f", lines(tmp_path, "a", "b", "c"))
    code, out, _ = tidelog("consume", "grouped", "-g", "readers", "-e", "-q")
    assert code == 0 and sorted(out.splitlines()) == ["a", "a", "b", "b", "c", "c"]
    assert tidelog("consume", "grouped", "-g", "readers", "-e", "-q")[1] == "", "it goes on where it committed"
    assert "readers  Empty  consumer" in tidelog("group", "list")[1]
    assert tidelog("group", "describe", "readers")[1].splitlines() == [
        "readers: Empty, 0 members",
        "TOPIC    PARTITION  COMMITTED  END  LAG  OWNER",
        "grouped          0          3    3    0      -",
        "grouped          1          3    3    0      -",
    ]
    code, out, _ = tidelog("group", "reset", "readers", "grouped", "--to", "1")
    assert out.splitlines()[1:] == ["grouped          0          1", "grouped          1          1"]
    code, out, _ = tidelog("group", "describe", "readers", "--format", "json")
    (described,) = json.loads(out)
    assert [(row["committed"], row["lag"]) for row in described["offsets"]] == [(1, 2), (1, 2)]
    for to, offset in (("earliest", 0), ("latest", 3), ("100", 3)):
        code, out, _ = tidelog("group", "reset", "readers", "grouped", "--to", to, "--format", "json")
        assert [row["committed"] for row in json.loads(out)] == [offset] * 2
    assert tidelog("group", "delete", "readers") == (0, "", "")
    assert "readers" not in tidelog("group", "list")[1]


def test_a_group_with_a_member(tidelog: Run, served: BrokerProcess, tmp_path: Path) -> None:
    tidelog("topic", "create", "owned", "-p", "2")
    tidelog("produce", "owned", "-q", "-p", "0", "-f", lines(tmp_path, "a"))
    consumer = KafkaConsumer(
        "owned", bootstrap_servers=served.bootstrap, group_id="owners", client_id="me", auto_offset_reset="earliest"
    )
    try:
        assert consumer.poll(timeout_ms=60_000), "shorter polls may miss the assignment, which is forgotten between two"
        consumer.commit()
        code, out, _ = tidelog("group", "describe", "owners")
        assert code == 0 and out.splitlines()[0] == "owners: Stable, 1 members"
        assert [line.split()[-1] for line in out.splitlines()[2:]] == ["me@127.0.0.1"] * 2
        code, _, err = tidelog("group", "reset", "owners", "owned", "--to", "earliest")
        assert code == 1 and "group owners has members: stop its consumers first" in err
        code, _, err = tidelog("group", "delete", "owners")
        assert code == 1 and "NonEmptyGroup" in err.replace("_", "")
    finally:
        consumer.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("describe", "nobody"), "Group nobody not found."),
        (("delete", "nobody"), "group nobody: GroupIdNotFound"),
        (("reset", "g", "here", "--to", "start"), "--to start: write earliest, latest or an offset"),
        (("reset", "g", "missing", "--to", "latest"), "topic missing does not exist"),
    ],
)
def test_what_cannot_be_done_with_groups(tidelog: Run, words: tuple[str, ...], message: str) -> None:
    code, out, err = tidelog("group", *words)
    assert (code, out) == (1, "") and message in err


# Inspect


@pytest.fixture(scope="module")
def left_behind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a broker that was killed left: WAL, segments, metadata."""
    path = tmp_path_factory.mktemp("left")

    async def make() -> None:
        overrides = {"tidelog_storage": f"file:{path}/bucket", "tidelog_wal_dir": path / "wal"}
        async with NodeRuns(path, **overrides) as runs:
            runs.wrap = None
            await runs.start()
            await runs.create("t", 2)
            for partition in range(2):
                await runs.produce("t", *[batch_of(b"v" * 50) for _ in range(5)], partition=partition)
                log = runs.broker.logs.find["t", partition]
                await runs.broker.sealing.commit_through(log, log.hw)
                await runs.produce("t", *[batch_of(b"v") for _ in range(3)], partition=partition)

    asyncio.run(make())
    return path


def copy_of(path: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    shutil.copytree(path, tmp_path / "copy")
    return tmp_path / "copy"


def tree(path: Path) -> dict[str, bytes]:
    """Every file and what it holds."""
    return {str(file): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_inspecting_reads_everything_and_changes_nothing(run: Run, left_behind: Path) -> None:
    before = tree(left_behind)
    (instance,) = (left_behind / "wal").iterdir()
    code, out, _ = run("inspect", "wal", str(left_behind / "wal"))
    assert code == 0 and f"{instance}: node 1, cluster " in out and "LOG ID  LEADER EPOCH  BASE  END" in out
    assert run("inspect", "wal", str(instance)) == (0, out, "")
    code, out, _ = run("inspect", "wal", str(instance), "--format", "json")
    (report,) = json.loads(out)
    assert {(log["log_id"], log["base"], log["end"]) for log in report["logs"]} == {(0, 0, 8), (1, 0, 8)}
    store = f"file:{left_behind}/bucket"
    code, out, _ = run("inspect", "metadata", store)
    assert code == 0 and "1 topics, 2 partitions, 2 ranges in 2 objects" in out
    assert f"format level {FORMAT_LEVEL}, cluster file of format 1" in out
    assert "merging      0 open jobs" in out and "moves        0 partitions" in out
    code, out, _ = run("inspect", "metadata", store, "--format", "json")
    assert code == 0 and json.loads(out)["problems"] == []
    code, out, _ = run("inspect", "segment", store, "--format", "json")
    segments = json.loads(out)
    assert code == 0 and len(segments) == 2
    code, out, _ = run("inspect", "segment", store, segments[0]["key"])
    assert code == 0 and f"{segments[0]['key']}: {segments[0]['size']} bytes, format 1" in out
    code, out, _ = run("inspect", "segment", store, segments[0]["key"], "--format", "json")
    assert json.loads(out)["logs"][0]["records"] == 5
    assert run("inspect", "losses", store, "--format", "json") == (0, "[]\n", "")
    assert tree(left_behind) == before


def test_inspecting_damaged_bytes(run: Run, left_behind: Path, tmp_path: Path) -> None:
    copy = copy_of(left_behind, tmp_path)
    (instance,) = (copy / "wal").iterdir()
    found = groups(instance)
    flip_bit(instance, found[2].file, found[2].position + found[2].header.header_size + 70)
    code, out, _ = run("inspect", "wal", str(copy / "wal"))
    assert code == 1 and "PROBLEM: " in out and "though groups" in out
    code, out, _ = run("inspect", "wal", str(instance), "--format", "json")
    assert code == 1 and json.loads(out)[0]["problems"]
    superblock = instance / "superblock"
    superblock.write_bytes(b"x" + superblock.read_bytes()[1:])
    code, out, _ = run("inspect", "wal", str(instance))
    assert code == 1 and "unreadable" in out and "PROBLEM: " in out

    store = f"file:{copy}/bucket"
    for segment in (copy / "bucket" / "segments").rglob("*-0"):
        data = bytearray(segment.read_bytes())
        data[80] ^= 1
        segment.write_bytes(data)
        key = str(segment.relative_to(copy / "bucket"))
        code, out, _ = run("inspect", "segment", store, key)
        assert code == 1 and "PROBLEM: " in out
        segment.write_bytes(bytes(data[: len(data) // 2]))
        code, out, err = run("inspect", "segment", store, key, "--format", "json")
        assert code == 1 and (err or json.loads(out)["problems"]) and "Traceback" not in err
    entry = sorted((copy / "bucket" / "meta" / "entries").iterdir())[3]
    entry.write_bytes(entry.read_bytes()[:-1])
    code, out, _ = run("inspect", "metadata", store)
    assert code == 1 and "PROBLEM: meta/entries/" in out
    (copy / "bucket" / "cluster.json").unlink()
    assert run("inspect", "metadata", store) == (1, "PROBLEM: cluster.json: missing\n", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("wal", "nowhere"), "cannot read nowhere: No such file or directory"),
        (("wal", "."), "holds no WAL instance"),
        (("segment", "file:bucket", "segments/1/0/1-0"), "there is no segment segments/1/0/1-0"),
        (("segment", "nothing"), "has no scheme"),
        (("metadata", "ftp:x"), "unknown scheme 'ftp'"),
        (("losses", "s3:"), "storage URI"),
    ],
)
def test_what_cannot_be_inspected(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("inspect", *words)
    assert (code, out) == (1, "") and message in err and err.startswith("tidelog inspect: ")


# WAL instances that need a decision


async def test_a_damaged_wal_from_the_log_line_to_the_report(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr(broker.http.port, "LATER_S", 0)
    async with NodeRuns(tmp_path, tidelog_http_listener="127.0.0.1:0") as runs:
        await runs.start()
        await runs.create("t")
        await runs.produce("t", *[batch_of(b"v") for _ in range(6)])
        await runs.kill()
        (damaged,) = runs.instances()
        found = groups(damaged)
        flip_bit(damaged, found[-2].file, found[-2].position + found[-2].header.header_size + 62)
        await runs.start()
        http = "http://{}:{}".format(*runs.broker.http_address or ())

        async def wal(*words: str) -> tuple[int, str, str]:
            return await asyncio.to_thread(run, "wal", *words, "--http", http)

        code, out, _ = await wal("list")
        assert code == 0
        assert re.search(f"{damaged.name} +1 +volume +recovering +True +1", out)
        assert f"{damaged.name}: 000000000001.wal at byte" in out, "why"
        code, _, err = await wal("declare-lost", damaged.name)
        assert code == 1 and "try again in 30 min, or say that its host is destroyed" in err
        code, out, _ = await wal("recover", damaged.name, "--accept-loss")
        report = json.loads(out)
        assert code == 0 and [(row["topic"], row["lost_from_offset"]) for row in report["logs"]] == [("t", 4)]
        code, _, err = await wal("recover", damaged.name, "--accept-loss")
        assert (code, err) == (1, f"tidelog wal: no WAL instance {damaged.name} waits for this here\n")
        code, out, _ = await wal("list", "--format", "json")
        assert [row["state"] for row in json.loads(out)] == ["active", "active"]  # a volume, and one in the bucket
        code, out, _ = await wal("list", "--all", "--format", "json")
        assert sorted(row["state"] for row in json.loads(out)) == ["active", "active", "lost", "retired"]


async def test_a_missing_wal_is_declared_lost(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr(broker.http.port, "LATER_S", 0)
    async with NodeRuns(tmp_path, tidelog_http_listener="127.0.0.1:0") as runs:
        runs.overrides |= {"tidelog.session.timeout.ms": 300, "tidelog.controller.lease.ms": 200}
        await runs.start()
        await runs.create("t")
        await runs.produce("t", batch_of(b"v"))
        await runs.kill()
        (lost,) = runs.instances()
        shutil.rmtree(lost)
        await runs.start()
        http = "http://{}:{}".format(*runs.broker.http_address or ())

        async def wal(*words: str) -> tuple[int, str, str]:
            return await asyncio.to_thread(run, "wal", *words, "--http", http)

        code, out, _ = await wal("list")
        assert re.search(f"{lost.name} +1 +volume +ended +True +1", out)
        code, _, err = await wal("recover", lost.name, "--accept-loss")
        assert code == 1 and "waits for this here" in err
        code, _, err = await wal("declare-lost", runs.instances()[0].name, "--host-is-destroyed")
        assert (code, err) == (1, "tidelog wal: this broker writes the instance: it is not lost\n")
        code, _, err = await wal("declare-lost", "ab" * 16, "--host-is-destroyed")
        assert code == 1 and "is not registered" in err
        code, _, err = await wal("declare-lost", "not hex")
        assert code == 1 and "32 hex digits" in err
        code, out, _ = await wal("declare-lost", lost.name, "--host-is-destroyed")
        assert code == 0 and json.loads(out)["logs"][0]["lost_from_offset"] == 0
        await until(lambda: ("t", 0) in runs.broker.logs.find)
        assert await runs.offsets("t") == (0, 1 << 32)


@pytest.mark.parametrize(
    ("http", "message"),
    [
        ("http://127.0.0.1:1", "no broker answers at http://127.0.0.1:1: [Errno 111] Connection refused"),
        ("nonsense", "nonsense: unknown url type"),
    ],
)
def test_no_broker_for_the_operator(run: Run, http: str, message: str) -> None:
    code, out, err = run("wal", "list", "--http", http)
    assert (code, out) == (1, "") and message in err


def test_a_port_that_speaks_something_else(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        code, _, err = run("wal", "list", "--http", "http://{}:{}".format(*server.getsockname()))
        thread.join()
    assert code == 1 and err.startswith("tidelog wal: http://127.0.0.1") and err.count("\n") == 1


def test_recovering_needs_a_word(run: Run) -> None:
    code, _, err = run("wal", "recover", "ab" * 16)
    assert code == 2 and "--accept-loss" in err


# Start


def tidelog_start(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run `tidelog start` to its end."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("KAFKA_")}
    return subprocess.run(
        [sys.executable, "-m", "broker", "start", *words],
        cwd=ROOT,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--override", "no.such=1"), "unknown setting no.such"),
        (("--override", "tidelog.wal.dirs=x"), "did you mean tidelog.wal.dir?"),
        (("--override", "node.id"), "--override node.id: write key=value"),
        (("--override", "node.id=one"), "node.id=one: write a whole number"),
        (("--override", "tidelog.wal.bytes.max=4194304"), "must hold at least three files"),
        (("missing.properties",), "cannot read missing.properties: [Errno 2] No such file or directory"),
    ],
)
def test_settings_that_cannot_be_used(run: Run, words: tuple[str, ...], message: str) -> None:
    code, out, err = run("start", *words)
    assert (code, out) == (2, "") and err.startswith("tidelog start: ") and message in err


def test_flag_over_environment_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "server.properties"
    path.write_text("node.id=1\nbroker.rack=file\nnum.partitions=1\nnum.io.threads=8\nlog.dirs=/tmp\n")
    monkeypatch.setenv("KAFKA_BROKER_RACK", "environment")
    monkeypatch.setenv("KAFKA_NUM_PARTITIONS", "2")
    monkeypatch.setenv("KAFKA_PORT", "tcp://10.0.0.1:9092")
    options = parser("start").parse_args(["start", str(path), "--override", "num.partitions=3"])
    loaded = start_command.settings(options)
    settings = loaded.settings
    assert (settings.node_id, settings.broker_rack, settings.num_partitions) == (1, "environment", 3)
    assert loaded.without_effect == ["log.dirs", "num.io.threads"]
    assert loaded.warnings == ["environment variable KAFKA_PORT: not a setting, ignored"]
    monkeypatch.setenv("KAFKA_TIDELOG_NOPE", "1")
    with pytest.raises(ValueError, match=r"unknown setting tidelog\.nope"):
        start_command.settings(options)


def test_a_start_that_fails_says_why_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"PLAINTEXT://127.0.0.1:{taken.getsockname()[1]}"
        ended = tidelog_start(
            *("--override", f"listeners={address}", "--override", "tidelog.http.listener="),
            *("--override", f"tidelog.data.dir={tmp_path}/data", "--override", "num.io.threads=3"),
            KAFKA_LOG_DIRS="/tmp/x",
        )
    assert ended.returncode == 1 and ended.stdout == ""
    effect, why = ended.stderr.splitlines()
    assert effect.endswith("settings without effect here: log.dirs, num.io.threads")
    assert why.startswith(f"tidelog start: cannot listen on {address}: ") and "in use" in why
    assert list((tmp_path / "data" / "wal").iterdir()) == []


def test_a_process_from_its_first_line_to_a_clean_end(tmp_path: Path) -> None:
    process = BrokerProcess(tmp_path / "data")
    with process:
        first, *places, last = process.output
        assert re.fullmatch(r"tidelog [\d.]+, node 1 of cluster \S{22}\n", first)
        assert [line.split()[0] for line in places] == ["clients", "bucket", "wal", "http"]
        assert re.fullmatch(r"ready in \d\.\d\d s\n", last)
        second = tidelog_start(
            *("--override", f"tidelog.data.dir={tmp_path}/data", "--override", "tidelog.http.listener="),
            *("--override", "listeners=PLAINTEXT://127.0.0.1:0"),
        )
        assert second.returncode == 1
        assert "is in use by another process: a broker with node.id=1 runs here already" in second.stderr
        process.signal(signal.SIGINT)
        assert process.wait() == 0
        assert "stopped: everything is in the bucket" in process.log_tail()
        assert "Traceback" not in process.log_tail()


def test_a_restart_after_a_kill_takes_little_of_the_processor(tmp_path: Path) -> None:
    """Seconds of the clock say nothing on a busy machine; this bounds what a start has to do before it serves."""
    process = BrokerProcess(tmp_path / "data", tidelog_wal_file_bytes=64 << 20)
    with process:
        process.kill()
        process.start()
        assert process.process is not None
        fields = Path(f"/proc/{process.process.pid}/stat").read_text().rpartition(")")[2].split()
        seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        assert seconds < 1.5
        assert process.stop() == 0


def refuses(port: int) -> bool:
    """Whether nobody listens."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return True
    return False


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
@pytest.mark.parametrize(("environment", "kept"), [({}, True), ({"MALLOC_ARENA_MAX": "2"}, False)])
def test_freed_frames_stay_with_the_process(environment: dict[str, str], kept: bool) -> None:
    """Large blocks come from the heap, not from a mapping each; who sets it up himself is left alone."""
    program = """if True:
        import ctypes
        from broker.cli.start import keep_freed_memory
        kept = keep_freed_memory()
        class Info(ctypes.Structure):
            _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd".split()]
            _fields_.append(("rest", ctypes.c_size_t * 5))
        mallinfo = ctypes.CDLL(None).mallinfo2
        mallinfo.restype = Info
        before = mallinfo().hblkhd
        frame = bytearray(1 << 20)
        print(kept, mallinfo().hblkhd == before)
    """
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.stdout.split() == [str(kept), str(kept)], run.stderr


def test_being_told_twice_ends_at_once(tmp_path: Path) -> None:
    process = BrokerProcess(tmp_path / "data", tidelog_shutdown_timeout_ms=60_000)
    with process:
        (tmp_path / "data" / "bucket").rename(tmp_path / "away")
        (tmp_path / "data" / "bucket").write_text("no directory: the store is away")
        process.signal(signal.SIGTERM)
        while not refuses(process.port):
            threading.Event().wait(0.01)
        process.signal(signal.SIGTERM)
        assert process.wait(10) == 1
        assert "told to stop again" in process.log_tail()
        (tmp_path / "data" / "bucket").unlink()
        (tmp_path / "away").rename(tmp_path / "data" / "bucket")
        assert process.start().stop() == 0


def test_nobody_needs_to_read_what_a_broker_prints(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    words = ["--override", f"tidelog.data.dir={tmp_path}/data", "--override", "tidelog.http.listener="]
    command = [sys.executable, "-m", "broker", "start", *words, "--override", f"listeners=PLAINTEXT://127.0.0.1:{port}"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log)
        assert process.stdout is not None
        process.stdout.close()
        while refuses(port):
            assert process.poll() is None
            threading.Event().wait(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, (tmp_path / "log").read_text()


def test_output_that_nobody_reads_any_more(served: BrokerProcess, tidelog: Run, tmp_path: Path) -> None:
    tidelog("topic", "create", "long")
    tidelog("produce", "long", "-q", "-f", lines(tmp_path, *(["x" * 1000] * 3000)))
    command = [sys.executable, "-m", "broker", "consume", "long", "-e", "-q", "-b", served.bootstrap]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    with process.stdout, process.stderr:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(20) == 1


def test_tables_and_their_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    show([{"name": "a", "count": 5}, {"name": "long", "count": None}], ("name", "count"), "table")
    assert capsys.readouterr().out == "NAME  COUNT\na         5\nlong      -\n"
    assert issubclass(CommandError, Exception)


async def test_inspecting_a_wal_in_the_bucket(tmp_path: Path, run: Run) -> None:
    wal_id, uri = bytes(range(16)), f"file:{tmp_path}/bucket"
    store = FileSystemStore(tmp_path / "bucket", token=os.urandom)
    await store.put(object_key(wal_id, 0, 3), encode_fence(wal_id, 0, 3, bytes(16)))
    code, out, _ = await asyncio.to_thread(run, "inspect", "wal", uri, wal_id.hex())
    assert code == 0 and re.search("0 +3 +fence +56 +0 +0", out)
    await store.put(object_key(wal_id, 0, 4), b"x" * 100)
    code, out, _ = await asyncio.to_thread(run, "inspect", "wal", uri, wal_id.hex(), "--format", "json")
    report = json.loads(out)
    assert code == 1 and [one["what"] for one in report["objects"]] == ["fence", "unreadable"]
    assert report["problems"] == [f"{object_key(wal_id, 0, 4)} is no object of a WAL"]
    code, _, err = await asyncio.to_thread(run, "inspect", "wal", uri, "ab" * 16)
    assert code == 1 and "the bucket holds nothing of WAL abab" in err
    code, _, err = await asyncio.to_thread(run, "inspect", "wal", uri, "ab")
    assert code == 1 and "ab is no WAL id" in err


# Drains


def test_a_drain_waits_and_says_when_nobody_takes_what_is_left(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[dict[str, object]] = []
    asked: list[str] = []

    def call(options: object, method: str, path: str) -> dict[str, object]:
        asked.append(f"{method} {path}")
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def told(leads: int, moving: int, *, drained: bool = True) -> dict[str, object]:
        return {"node_id": 7, "drained": drained, "alive": True, "leads": leads, "moving": moving}

    monkeypatch.setattr(brokers_command, "call", call)
    monkeypatch.setattr(brokers_command, "LOOK_S", 0)
    monkeypatch.setattr(brokers_command, "NOBODY_S", 0)
    answers[:] = [told(3, 3), told(3, 3), told(1, 1), told(0, 0)]
    code, out, err = run("broker", "drain", "7")
    assert (code, out) == (0, "broker 7 is drained and leads nothing\n")
    assert err == "3 partitions are left, 3 of them on their way\n1 partitions are left, 1 of them on their way\n"
    assert asked == ["POST /v1/brokers/7/drain?undo=false"] + ["GET /v1/brokers/7"] * 3
    answers[:] = [told(3, 2)]
    assert run("broker", "drain", "7", "--no-wait")[1] == "broker 7 is drained and still leads 3 partitions\n"
    answers[:] = [told(2, 0)]
    code, _, err = run("broker", "drain", "7")
    assert code == 1 and "still leads 2 partitions: no other live broker can take them. Start another one" in err
    answers[:] = [told(2, 2), told(2, 2, drained=False)]
    code, _, err = run("broker", "drain", "7")
    assert code == 1 and "was taken back" in err
    answers[:] = [told(2, 0, drained=False)]
    assert run("broker", "drain", "7", "--undo") == (0, "broker 7 gets partitions again\n", "")
