"""What the bucket alone holds: everything after a clean stop; after a lost WAL what was committed, and a report."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from controller.facts import LOSS_GAP
from tests.chaos.load import CommittingGroup, IdempotentLoad, check_all, create_topic
from tests.support.broker_process import ROOT, BrokerProcess

PARTITIONS = 3


def tidelog(*words: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of the real program."""
    return subprocess.run(
        [sys.executable, "-m", "broker", *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def load_and_group(broker: BrokerProcess, records: int) -> tuple[dict[int, int], dict[int, int]]:
    """Records per partition, all acknowledged, and what a group committed of them."""
    create_topic(broker.bootstrap, PARTITIONS)
    group = CommittingGroup(broker.bootstrap).start()
    load = IdempotentLoad(broker.bootstrap, PARTITIONS).start()
    load.wait_for(records)
    sent = load.finish()
    while sum(group.committed.values()) < records // 2:
        assert not group.problems, group.problems
    group.finish()
    return sent, group.committed


def committed_offsets(bootstrap: str, partitions: int) -> dict[int, int]:
    """What the group of the load has committed."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "group"})
    try:
        parts = consumer.committed([TopicPartition("load", partition) for partition in range(partitions)], timeout=30)
        return {part.partition: part.offset for part in parts if part.offset >= 0}
    finally:
        consumer.close()


def test_a_clean_stop_leaves_everything_in_the_bucket(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path / "data")
    with broker:
        sent, committed = load_and_group(broker, 5000)
        assert broker.stop() == 0
        shutil.rmtree(tmp_path / "data" / "wal")
        broker.start()
        check_all(broker.bootstrap, sent)
        assert committed_offsets(broker.bootstrap, PARTITIONS) == committed
        assert broker.stop() == 0


def test_a_copied_bucket_serves_a_fresh_broker(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        sent, committed = load_and_group(broker, 5000)
        assert broker.stop() == 0
    shutil.copytree(tmp_path / "data" / "bucket", tmp_path / "copy" / "bucket")
    shutil.rmtree(tmp_path / "data")
    with BrokerProcess(tmp_path / "copy", node_id=7) as fresh:
        check_all(fresh.bootstrap, sent)
        assert committed_offsets(fresh.bootstrap, PARTITIONS) == committed
        more = IdempotentLoad(fresh.bootstrap, 1, topic="more")
        create_topic(fresh.bootstrap, 1, "more")
        more.start().wait_for(100)
        check_all(fresh.bootstrap, more.finish(), "more")
        assert fresh.stop() == 0


def test_a_lost_wal_is_declared_and_no_offset_gets_two_values(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path / "data", tidelog_seal_ms=200, tidelog_session_timeout_ms=600)
    broker.overrides["tidelog.controller.lease.ms"] = 300
    with broker:
        create_topic(broker.bootstrap, PARTITIONS)
        load = IdempotentLoad(broker.bootstrap, PARTITIONS).start()
        load.wait_for(5000)
        sent = load.finish()
        broker.kill()
        shutil.rmtree(tmp_path / "data" / "wal")
        broker.start()
        # The logs say that they wait, and for what.
        assert "is not here; its logs wait for it" in broker.log_tail()
        metadata = AdminClient({"bootstrap.servers": broker.bootstrap}).list_topics("load", timeout=10)
        assert all(part.leader == -1 for part in metadata.topics["load"].partitions.values())
        listed = tidelog("wal", "list", "--http", broker.http, "--format", "json")
        (lost,) = [row for row in json.loads(listed.stdout) if row["state"] == "ended"]
        # Too early without saying that the host is gone; then the report names what.
        refused = tidelog("wal", "declare-lost", lost["wal_id"], "--http", broker.http)
        assert refused.returncode == 1, refused
        declared = tidelog("wal", "declare-lost", lost["wal_id"], "--host-is-destroyed", "--http", broker.http)
        assert declared.returncode == 0, declared.stderr
        report = json.loads(declared.stdout)
        holes = {row["partition"]: row for row in report["logs"] if row["topic"] == "load"}
        assert set(holes) == set(range(PARTITIONS))
        stored = tidelog("inspect", "losses", f"file:{tmp_path}/data/bucket", "--format", "json")
        assert json.loads(stored.stdout) == [report]
        check_holes(broker, sent, holes)
        assert broker.stop() == 0


def check_holes(broker: BrokerProcess, sent: dict[int, int], holes: dict[int, dict[str, int]]) -> None:
    """What is left is a prefix; new records come behind the hole, also for consumers that stood inside of it."""
    more = IdempotentLoad(broker.bootstrap, PARTITIONS).start()
    more.wait_for(300)
    again = more.finish()
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "check", "enable.auto.commit": False})
    try:
        for partition, hole in holes.items():
            start, end = hole["lost_from_offset"], hole["continues_at_offset"]
            assert start <= sent[partition]
            assert end == start + LOSS_GAP
            consumer.assign([TopicPartition("load", partition, 0)])
            messages = []
            while len(messages) < start + again[partition]:
                message = consumer.poll(10)
                assert message is not None, f"partition {partition}: only {len(messages)} records"
                messages.append(message)
            offsets = [message.offset() for message in messages]
            assert offsets == [*range(start), *range(end, end + again[partition])]
            low, high = consumer.get_watermark_offsets(TopicPartition("load", partition), timeout=10)
            assert (low, high) == (0, end + again[partition])
    finally:
        consumer.close()


def test_a_second_start_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        second = BrokerProcess(tmp_path / "data")
        second._stderr = tmp_path / "second.log"
        second.spawn()
        assert second.wait() != 0
        assert "in use" in second.log_tail() or "locked" in second.log_tail(), second.log_tail()
        consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "x"})
        try:
            consumer.list_topics(timeout=10)
        except KafkaException as error:
            raise AssertionError("the first broker does not serve any more") from error
        finally:
            consumer.close()
        assert broker.stop() == 0
