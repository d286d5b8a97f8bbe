"""Disks that are full, damaged or older than they should be; processes that are stopped and killed at bad moments."""

import json
import shutil
import signal
import threading
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from storage.wal.format import file_name
from tests.chaos.disk import begin_of_group, fill, flip_bit, groups, instance, overwrite, small_disk
from tests.chaos.load import IdempotentLoad, check_all, create_topic, seeded
from tests.chaos.outage import (
    REFUSE,
    Probes,
    StoreUnderFaults,
    Watch,
    broker_over,
    http_status,
    metrics,
    wait_until,
)
from tests.chaos.test_bucket import check_holes, tidelog
from tests.support.broker_process import BrokerProcess
from tests.support.s3_servers import S3Server

MIB = 1 << 20
PARTITIONS = 3
FILE_BYTES = 2 * MIB
NEVER_MS = 600_000
SESSION_MS, LEASE_MS = 2000, 1000
SMALL: dict[str, object] = {
    "tidelog_wal_file_bytes": FILE_BYTES,
    "tidelog_session_timeout_ms": SESSION_MS,
    "tidelog_controller_lease_ms": LEASE_MS,
    "tidelog_seal_ms": 300,
    "tidelog_tail_keep_bytes": 0,
}


def load_of(broker: BrokerProcess, records_per_s: int = 20_000, value_bytes: int = 100) -> IdempotentLoad:
    """A load on a new topic."""
    create_topic(broker.bootstrap, PARTITIONS)
    return IdempotentLoad(broker.bootstrap, PARTITIONS, value_bytes, records_per_s=records_per_s).start()


# Full disks


@pytest.mark.timeout(120)
def test_a_disk_full_of_wal_and_bucket(tmp_path: Path) -> None:
    """Nothing can be written any more, not even metadata: producers wait and are refused; then they go on."""
    with small_disk(tmp_path / "disk", 128 * MIB) as disk:
        broker = broker_over(None, disk / "data", **SMALL)
        broker._stderr = tmp_path / "broker.log"
        with broker, Watch(broker) as watch:
            create_topic(broker.bootstrap, 1, "probe")
            # So slow that what it writes fits for a minute: a busy machine must not fill the disk once more.
            load = load_of(broker, 5_000, value_bytes=400)
            load.wait_for(2_000)
            # Commands of admins wait longer than this test has time for.
            with Probes(broker, "load", without=["CreateTopics", "IncrementalAlterConfigs"]) as probes:
                probes.wait_all_answered()
                probes.phase = "full"
                filler = fill(disk)
                wait_until(lambda: ("full", "Produce", "NOT_ENOUGH_REPLICAS") in probes.seen, 30, "a refusal")
                wait_until(lambda: watch.last["metadata_reachable"] == 0, what="word of the full bucket")
                acknowledged = load.acknowledged
                wait_until(lambda: probes.seen["full", "Produce", "NOT_ENOUGH_REPLICAS"] >= 3, 30, "more refusals")
                assert load.acknowledged == acknowledged, "full, and records are acknowledged"
                probes.phase = "after"
                filler.unlink()
                load.wait_for(acknowledged + 5_000)
                probes.wait_all_answered()
            check_all(broker.bootstrap, load.finish())
            print(f"answers of a full disk: {json.dumps(probes.errors('full'))}")
            watch.check()
            probes.check()
            assert broker.stop() == 0


@pytest.mark.chaos
@pytest.mark.timeout(120)
def test_a_full_bucket_is_a_bucket_away(tmp_path: Path) -> None:
    """The WAL is elsewhere: appends go on, and everything reaches the bucket once there is room."""
    with small_disk(tmp_path / "disk", 64 * MIB) as disk:
        broker = broker_over(None, tmp_path / "data", **SMALL)
        broker.overrides["tidelog.storage"] = f"file:{disk / 'bucket'}"
        with broker, Watch(broker) as watch:
            load = load_of(broker, 5_000)
            load.wait_for(5_000)
            filler = fill(disk)
            wait_until(lambda: watch.last["store_away"] == 1, what="word of the full bucket")
            load.wait_for(load.acknowledged + 10_000)
            filler.unlink()
            sent = load.finish()
            wait_until(lambda: watch.last["tail_bytes"] == 0, what="upload of everything")
            watch.check()
            check_all(broker.bootstrap, sent)
            assert broker.stop() == 0


@pytest.mark.chaos
@pytest.mark.timeout(120)
def test_restart_on_a_full_wal_disk(moto_server: S3Server, tmp_path: Path) -> None:
    """An outage filled the disk, then a kill: the old instance holds all the space that a new one would need."""
    with small_disk(tmp_path / "disk", 4 * FILE_BYTES + MIB) as disk, StoreUnderFaults(moto_server) as store:
        broker = broker_over(store, tmp_path / "data", **SMALL)
        broker.overrides["tidelog.wal.dir"] = disk
        with broker:
            load = load_of(broker)
            load.wait_for(2_000)
            store.away(REFUSE)
            wait_until(lambda: metrics(broker)["space_waiting"], 30, "a full WAL")
            assert len(list(instance(disk).glob("*.wal"))) == 4
            broker.kill()
            store.back()
            acknowledged = load.acknowledged
            broker.start()
            load.wait_for(acknowledged + 5_000)
            check_all(broker.bootstrap, load.finish())
            assert broker.stop() == 0


# Processes stopped and killed at bad moments


@pytest.mark.chaos
@pytest.mark.timeout(120)
def test_a_process_that_slept_longer_than_its_session(tmp_path: Path) -> None:
    with broker_over(None, tmp_path / "data", **SMALL) as broker:
        load = load_of(broker)
        load.wait_for(load.acknowledged + 2_000)
        broker.signal(signal.SIGSTOP)
        threading.Event().wait((SESSION_MS + LEASE_MS) / 1000 + 0.5)
        broker.signal(signal.SIGCONT)
        if wait_for_progress_or_end(broker, load):
            print("it exited")
            broker.start()
        load.wait_for(load.acknowledged + 1_000)
        check_all(broker.bootstrap, load.finish())
        assert broker.stop() == 0


def wait_for_progress_or_end(broker: BrokerProcess, load: IdempotentLoad) -> bool:
    """Whether the process ended before more records were acknowledged."""
    process, goal = broker.process, load.acknowledged + 1_000
    assert process is not None
    wait_until(lambda: load.acknowledged > goal or process.poll() is not None, what="progress")
    return process.poll() is not None


def kill_at(broker: BrokerProcess, seconds: float) -> None:
    """SIGKILL, so long from now."""
    threading.Event().wait(seconds)
    broker.kill()


def run_kills_at_bad_moments(data_dir: Path, starts: int, stops: int) -> None:
    """Killed again and again while it recovers, then while it stops."""
    instants = seeded()
    broker = broker_over(None, data_dir, **{**SMALL, "tidelog_seal_ms": NEVER_MS})
    with broker:
        load = load_of(broker)
        load.wait_for(20_000)
        broker.kill()
        for _ in range(starts):
            broker.spawn()
            kill_at(broker, instants.uniform(0.05, 1.5))
        broker.start()
        for _ in range(stops):
            load.wait_for(load.acknowledged + 3_000)
            broker.signal(signal.SIGTERM)
            kill_at(broker, instants.uniform(0, 0.4))
            broker.start()
        load.wait_for(load.acknowledged + 1_000)
        check_all(broker.bootstrap, load.finish())
        assert broker.stop() == 0


@pytest.mark.timeout(120)
def test_killed_while_recovering_and_while_stopping(tmp_path: Path) -> None:
    run_kills_at_bad_moments(tmp_path / "data", starts=3, stops=1)


@pytest.mark.chaos
@pytest.mark.timeout(400)
def test_killed_often_while_recovering_and_while_stopping(tmp_path: Path) -> None:
    run_kills_at_bad_moments(tmp_path / "data", starts=30, stops=15)


# Damage and copies


def write_and_kill(broker: BrokerProcess, records: int) -> dict[int, int]:
    """Acknowledge records that only the WAL has, in many groups."""
    load = load_of(broker, 5_000)
    load.wait_for(records)
    wait_until(lambda: metrics(broker)["wal_groups_total"] > 40, what="many groups")
    sent = load.finish()
    broker.kill()
    return sent


def check_waits_for_operator(broker: BrokerProcess, other_topic: str) -> str:
    """The broker serves, the logs of the instance do not; its id."""
    assert http_status(broker, "/readyz") == 200
    metadata = AdminClient({"bootstrap.servers": broker.bootstrap}).list_topics("load", timeout=10)
    assert all(part.leader == -1 for part in metadata.topics["load"].partitions.values())
    listed = tidelog("wal", "list", "--http", broker.http, "--format", "json")
    (waiting,) = [row for row in json.loads(listed.stdout) if row["waits_for_operator"]]
    assert metrics(broker)["wal_waiting_for_operator"] == 1
    other = IdempotentLoad(broker.bootstrap, 1, topic=other_topic)
    create_topic(broker.bootstrap, 1, other_topic)
    other.start().wait_for(100)
    check_all(broker.bootstrap, other.finish(), other_topic)
    return str(waiting["wal_id"])


def accept_loss(broker: BrokerProcess, wal_id: str, sent: dict[int, int], kept: dict[int, int]) -> None:
    """The operator decides: exactly `kept` is left, the report names the rest, and no offset comes twice."""
    recovered = tidelog("wal", "recover", wal_id, "--accept-loss", "--http", broker.http)
    assert recovered.returncode == 0, recovered.stderr
    report = json.loads(recovered.stdout)
    holes = {row["partition"]: row for row in report["logs"] if row["topic"] == "load"}
    assert {partition: hole["lost_from_offset"] for partition, hole in holes.items()} == kept
    stored = tidelog("inspect", "losses", f"file:{broker.data_dir}/bucket", "--format", "json")
    assert json.loads(stored.stdout) == [report]
    check_holes(broker, sent, holes)
    assert broker.stop() == 0


def ends_below(path: Path, sent: dict[int, int], group: int) -> dict[int, int]:
    """Per partition the end of what the groups below `group` hold; log ids follow partitions."""
    begins: dict[int, int] = {}
    for found in groups(path):
        if found.header.group >= group:
            for entry in found.header.entries:
                begins.setdefault(entry.log_id, entry.base_offset)
    logs = sorted(begins)
    assert len(logs) == len(sent), "every log has batches in later groups"
    return {partition: begins[log_id] for partition, log_id in enumerate(logs)}


def run_damage(data_dir: Path, restarts: int) -> None:
    """A bit flips in the middle of the WAL, where later groups prove that it was durable once."""
    instants = seeded()
    with broker_over(None, data_dir, **{**SMALL, "tidelog_seal_ms": NEVER_MS}) as broker:
        sent = write_and_kill(broker, 5_000)
        path = instance(data_dir / "wal")
        found = groups(path)
        assert len(found) > 10
        hit = found[instants.randrange(3, len(found) - 3)]
        kept = ends_below(path, sent, hit.header.group)
        at = instants.randrange(hit.header.size)
        flip_bit(path, hit.file, hit.position + at)
        print(f"byte {at} of group {hit.header.group} of {len(found)}")
        broker.start()
        assert "stays as it is" in broker.log_tail() and "tidelog wal recover --accept-loss" in broker.log_tail()
        wal_id = check_waits_for_operator(broker, "other")
        assert wal_id == path.name and path.exists()
        for number in range(restarts):  # it waits as long as it takes
            broker.kill()
            broker.start()
            assert check_waits_for_operator(broker, f"other-{number}") == wal_id
        accept_loss(broker, wal_id, sent, kept)


@pytest.mark.timeout(120)
def test_a_damaged_wal_waits_for_the_operator(tmp_path: Path) -> None:
    run_damage(tmp_path / "data", restarts=0)


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_damage_at_many_places(tmp_path: Path) -> None:
    for number in range(8):
        run_damage(tmp_path / f"data-{number}", restarts=1)


def tear(path: Path, kind: str) -> None:
    """What a crash or a lost write leaves behind the last group of an instance."""
    last = groups(path)[-1]
    end = last.position + last.header.size
    if kind == "half a group":
        overwrite(path, last.file, end, begin_of_group(path, last) + b"\x5a" * 300)
    elif kind == "garbage":
        overwrite(path, last.file, end, bytes(range(256)) * 16)
    else:
        with open(path / file_name(last.file), "r+b") as file:
            file.truncate(end + 10)


@pytest.mark.chaos
@pytest.mark.timeout(120)
def test_a_torn_tail_is_nothing_to_talk_about(tmp_path: Path) -> None:
    """What is behind the last group was never acknowledged."""
    with broker_over(None, tmp_path / "data", **{**SMALL, "tidelog_seal_ms": NEVER_MS}) as broker:
        load = load_of(broker)
        for kind in ("half a group", "garbage", "cut off", "half a group"):
            load.wait_for(load.acknowledged + 3_000)
            broker.kill()
            tear(instance(tmp_path / "data" / "wal"), kind)
            broker.start()
        sent = load.finish()
        assert "ERROR" not in broker.log_tail(), broker.log_tail()
        check_all(broker.bootstrap, sent)
        assert broker.stop() == 0


@pytest.mark.timeout(120)
def test_an_older_copy_of_the_wal_is_refused(tmp_path: Path) -> None:
    """A restored snapshot: it ends below what heartbeats told the controller to be validated."""
    with broker_over(None, tmp_path / "data", **{**SMALL, "tidelog_seal_ms": NEVER_MS}) as broker:
        load = load_of(broker)
        load.wait_for(5_000)
        before = load.finish()
        path = instance(tmp_path / "data" / "wal")
        shutil.copytree(path, tmp_path / "copy")
        # Not so fast that it waits for WAL files: that would start an upload, and what is uploaded is not lost.
        more = IdempotentLoad(broker.bootstrap, PARTITIONS, records_per_s=5_000).start()
        more.wait_for(3_000)
        sent = {partition: count + before[partition] for partition, count in more.finish().items()}
        position = metrics(broker)["metadata_position"]
        wait_until(lambda: metrics(broker)["metadata_position"] >= position + 3, what="word of the last groups")
        broker.kill()
        shutil.rmtree(path)
        shutil.copytree(tmp_path / "copy", path)
        broker.start()
        assert "was acknowledged" in broker.log_tail(), broker.log_tail()
        accept_loss(broker, check_waits_for_operator(broker, "other"), sent, before)
