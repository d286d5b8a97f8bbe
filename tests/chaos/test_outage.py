"""The object store is away under load and returns: acknowledged goes on or waits, nothing ends, nothing is lost.

Real processes against real S3 servers behind a proxy. 15 s in `make test`, two minutes each in `make chaos`.
"""

import json
import threading
from pathlib import Path
from time import monotonic  # noqa: TID251
from typing import NamedTuple

import pytest
from confluent_kafka.admin import AdminClient

from tests.chaos.load import CommittingGroup, IdempotentLoad, check_all, create_topic
from tests.chaos.outage import (
    BURST,
    DENY,
    DROP,
    FLAKY,
    HANG,
    REFUSE,
    SLOW,
    Probes,
    StoreUnderFaults,
    Watch,
    broker_over,
    http_status,
    timed,
    wait_until,
)
from tests.support.broker_process import BrokerProcess
from tests.support.s3_servers import S3Server, versitygw_possible

MIB = 1 << 20
PARTITIONS = 3
SESSION_MS = 3000
LEASE_MS = 1500
REQUEST_BYTES_MAX = 16 * MIB
ALLOWANCE_BYTES = 64 * MIB
"""What the process may take beside its configured bounds: connections, metadata, bodies under way, the allocator."""

needs_versitygw = pytest.mark.skipif(not versitygw_possible(), reason="versitygw is not built and Go is not here")


class Bounds(NamedTuple):
    """Whether, and by what, the broker gets full during the outage."""

    tail: int
    wal: int
    records_per_s: int
    full: bool


ROOMY = Bounds(tail=256 * MIB, wal=512 * MIB, records_per_s=5_000, full=False)
SMALL_TAIL = Bounds(tail=8 * MIB, wal=512 * MIB, records_per_s=20_000, full=True)
SMALL_WAL = Bounds(tail=256 * MIB, wal=16 * MIB, records_per_s=20_000, full=True)


def outage_broker(store: StoreUnderFaults, data_dir: Path, bounds: Bounds, **overrides: object) -> BrokerProcess:
    """Not started; the WAL file is small so that several exist."""
    settings: dict[str, object] = {
        "tidelog_seal_ms": 300,
        "tidelog_session_timeout_ms": SESSION_MS,
        "tidelog_controller_lease_ms": LEASE_MS,
        "tidelog_wal_file_bytes": 2 * MIB,
        "tidelog_wal_bytes_max": bounds.wal,
        "tidelog_tail_bytes_max": bounds.tail,
        "tidelog_tail_keep_bytes": 0,
        "tidelog_read_cache_bytes": MIB,
        "queued_max_request_bytes": REQUEST_BYTES_MAX,
    }
    return broker_over(store, data_dir, **{**settings, **overrides})


def run_outage(server: S3Server, data_dir: Path, fault: str, seconds: float, bounds: Bounds) -> None:
    """Load, outage, return; then everything is there exactly once."""
    figures: dict[str, float] = {}
    with StoreUnderFaults(server) as store, outage_broker(store, data_dir, bounds) as broker:
        create_topic(broker.bootstrap, PARTITIONS)
        create_topic(broker.bootstrap, 1, "probe")
        group = CommittingGroup(broker.bootstrap).start()
        load = IdempotentLoad(broker.bootstrap, PARTITIONS, records_per_s=bounds.records_per_s).start()
        load.wait_for(30_000)
        with Watch(broker) as watch:
            with Probes(broker, "load") as probes:
                probes.wait_all_answered()
                wait_until(lambda: watch.last.get("objects_put_total", 0) > 3, what="uploads")
                probes.cold_end = probes.end - 5_000
                probes.phase = "away"
                store.away(fault)
                began = monotonic()
                go_through(load, group, watch, fault, bounds, began, seconds)
                probes.phase = "returning"
                uploaded, acknowledged = watch.last["objects_put_total"], load.acknowledged
                store.back()
                with timed(figures, "uploading again after s"):
                    wait_until(lambda: watch.last["objects_put_total"] > uploaded, 60, "an upload")
                with timed(figures, "acknowledging again after s"):
                    load.wait_for(acknowledged + 1_000)
                probes.phase = "after"
                with timed(figures, "every question answered after s"):
                    probes.wait_all_answered()
            sent = load.finish()
            group.finish()
            with timed(figures, "the rest uploaded after s"):
                wait_until(lambda: is_uploaded(watch.last, bounds), 60, "the rest of the uploads")
            check_memory(watch, bounds)
        watch.check()
        probes.check()
        assert load.errors.keys() <= {"_ALL_BROKERS_DOWN", "_TRANSPORT", "_TIMED_OUT"}, load.errors
        check_all(broker.bootstrap, sent)
        check_created(broker, probes.created)
        assert broker.stop() == 0
    figures["peak tails MiB"] = round(watch.peak["tail_bytes"] / MIB)
    figures["acknowledged"] = sum(sent.values())
    figures["peak RSS MiB"] = round(watch.rss / MIB)
    figures["RSS MiB before"] = round(watch.rss_before / MIB)
    print(f"store {fault} for {seconds} s ({server.name}): {json.dumps(figures)}")
    print(f"answers while away: {json.dumps(probes.errors('away'))}")
    print(f"slowest: {json.dumps({' '.join(key): round(s, 2) for key, s in probes.slowest_s.items() if s > 1})}")
    print(f"load saw: {dict(load.errors)}")


def go_through(
    load: IdempotentLoad, group: CommittingGroup, watch: Watch, fault: str, bounds: Bounds, began: float, seconds: float
) -> None:
    """The outage itself. The session and the lease lapse in it: the broker goes on as an island."""
    if bounds.full:
        wait_until(lambda: watch.last["space_waiting"], seconds, "full")
        wait_until(lambda: 'errors_total{error="NOT_ENOUGH_REPLICAS"}' in watch.last, seconds, "a refusal")
    lapsed_s = (SESSION_MS + LEASE_MS) / 1000
    wait_until(lambda: monotonic() > began + lapsed_s, lapsed_s + 5)
    while monotonic() < began + seconds:
        acknowledged = load.acknowledged
        if not bounds.full:
            load.wait_for(acknowledged + bounds.records_per_s, 20)
            wait_for_commit(group, sum(group.committed.values()))
        threading.Event().wait(0.5)
        watch.check()
    if fault not in (SLOW, FLAKY):
        wait_until(lambda: not watch.last["metadata_reachable"], what="word of the metadata log being away")
        assert watch.last["store_away"] == 1


def wait_for_commit(group: CommittingGroup, committed: int) -> None:
    """The group, which reads at the end of the logs, goes on."""
    wait_until(lambda: sum(group.committed.values()) > committed, 20, "a commit of the group at the end")


def check_created(broker: BrokerProcess, created: set[str]) -> None:
    """What was answered as created is there."""
    topics = AdminClient({"bootstrap.servers": broker.bootstrap}).list_topics(timeout=10).topics
    assert created <= topics.keys()


def is_uploaded(now: dict[str, float], bounds: Bounds) -> bool:
    """Nothing is in memory that is not in the bucket, and the WAL is trimmed but for the files it keeps."""
    return (
        now["tail_bytes"] == now["tail_kept_bytes"]
        and not now["seals_in_flight"]
        and now["wal_free_bytes"] >= bounds.wal - 3 * 2 * MIB
    )


def check_memory(watch: Watch, bounds: Bounds) -> None:
    """The broker's own accounting inside its bounds, and the process inside them and the allowance."""
    assert watch.peak["tail_bytes"] <= bounds.tail
    assert watch.peak["request_bytes_peak"] <= REQUEST_BYTES_MAX
    limit = watch.rss_before + bounds.tail + REQUEST_BYTES_MAX + ALLOWANCE_BYTES
    assert watch.rss <= limit, f"{watch.rss / MIB:.0f} MiB, allowed are {limit / MIB:.0f}"


@pytest.mark.timeout(180)
def test_the_store_refuses_connections_until_full(moto_server: S3Server, tmp_path: Path) -> None:
    run_outage(moto_server, tmp_path / "data", REFUSE, 15, SMALL_TAIL)


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("fault", "bounds"),
    [(REFUSE, ROOMY), (BURST, SMALL_WAL), (HANG, ROOMY), (HANG, SMALL_TAIL), (DROP, ROOMY)],
    ids=["refuses", "503-full", "hangs", "hangs-full", "drops-replies"],
)
def test_two_minutes_without_the_store(moto_server: S3Server, tmp_path: Path, fault: str, bounds: Bounds) -> None:
    run_outage(moto_server, tmp_path / "data", fault, 120, bounds)


@pytest.mark.chaos
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("fault", "bounds"), [(DENY, SMALL_TAIL), (SLOW, ROOMY), (FLAKY, ROOMY)], ids=["denies", "slow", "flaky"]
)
def test_a_store_that_is_there_and_no_good(moto_server: S3Server, tmp_path: Path, fault: str, bounds: Bounds) -> None:
    run_outage(moto_server, tmp_path / "data", fault, 40, bounds)


@pytest.mark.chaos
@pytest.mark.timeout(900)
@needs_versitygw
def test_two_minutes_without_a_durable_store(versitygw_server: S3Server, tmp_path: Path) -> None:
    run_outage(versitygw_server, tmp_path / "data", DROP, 120, SMALL_WAL)


WAITING = "waiting for s3:"


def count_in_log(broker: BrokerProcess, text: str) -> int:
    """How often the broker, in all its runs, said so."""
    return broker.log_tail(1_000_000).count(text)


def check_waits(broker: BrokerProcess, told: int) -> None:
    """A process that starts without its store: alive, not ready, patient, and it said so once."""
    wait_until(lambda: http_status(broker, "/livez") == 200, what="/livez")
    wait_until(lambda: count_in_log(broker, WAITING) == told, 60, "a word about waiting")
    for _ in range(3):
        threading.Event().wait(0.5)  # several attempts: it says so once
        assert broker.process is not None and broker.process.poll() is None, broker.log_tail()
        assert (http_status(broker, "/livez"), http_status(broker, "/readyz")) == (200, 503)
        assert count_in_log(broker, WAITING) == told


def run_stop_and_start_while_away(server: S3Server, data_dir: Path, fault: str, ready_s: float, kills: int) -> None:
    """Stopped and killed during the outage, started and stopped and killed without the store; then it returns."""
    timeout_ms = 2_000
    figures: dict[str, float] = {}
    overrides = {"tidelog_shutdown_timeout_ms": timeout_ms}
    with StoreUnderFaults(server) as store, outage_broker(store, data_dir, ROOMY, **overrides) as broker:
        create_topic(broker.bootstrap, PARTITIONS)
        load = IdempotentLoad(broker.bootstrap, PARTITIONS, records_per_s=5_000).start()
        load.wait_for(5_000)
        for _ in range(kills):
            store.away(fault)
            load.wait_for(load.acknowledged + 5_000)
            broker.kill()
            store.back()
            broker.start()
        store.away(fault)
        load.wait_for(load.acknowledged + 5_000)
        with timed(figures, "a clean stop gives up after s"):
            assert broker.stop() == 1
        assert figures["a clean stop gives up after s"] < timeout_ms / 1000 + 2
        assert "tidelog.shutdown.timeout.ms" in broker.log_tail()
        assert list((data_dir / "wal").glob("*/*.wal"))
        said = count_in_log(broker, WAITING)
        broker.spawn()
        check_waits(broker, said + 1)
        with timed(figures, "stopped while starting after s"):
            assert broker.stop() == 1
        for _ in range(2):
            broker.kill()
            broker.spawn()
            wait_until(lambda: http_status(broker, "/livez") == 200, what="/livez")
        acknowledged = load.acknowledged
        store.back()
        with timed(figures, "ready after s"):
            broker.wait_ready(60)
        assert http_status(broker, "/readyz") == 200
        load.wait_for(acknowledged + 1_000)
        check_all(broker.bootstrap, load.finish())
        assert broker.stop() == 0
        assert not list((data_dir / "wal").glob("*/*.wal"))
    print(f"stopped, killed and started while the store {fault}: {json.dumps(figures)}")
    assert figures["ready after s"] < ready_s


@pytest.mark.timeout(180)
def test_stops_and_starts_without_the_store(moto_server: S3Server, tmp_path: Path) -> None:
    run_stop_and_start_while_away(moto_server, tmp_path / "data", REFUSE, ready_s=15, kills=0)


@pytest.mark.chaos
@pytest.mark.timeout(400)
@pytest.mark.parametrize("fault", [REFUSE, BURST, HANG, DROP])
def test_stops_and_starts_while_the_store_fails(moto_server: S3Server, tmp_path: Path, fault: str) -> None:
    run_stop_and_start_while_away(moto_server, tmp_path / "data", fault, ready_s=45, kills=2)


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_the_store_leaves_in_the_middle_of_a_start(moto_server: S3Server, tmp_path: Path) -> None:
    """Longer than a command of the recovery waits, at many points of it; each run has a WAL to recover."""
    away_s = 25
    broker_overrides = {"tidelog_seal_ms": 600_000}
    with StoreUnderFaults(moto_server) as store:
        broker = outage_broker(store, tmp_path / "data", ROOMY, **broker_overrides)
        with broker:
            create_topic(broker.bootstrap, PARTITIONS)
            load = IdempotentLoad(broker.bootstrap, PARTITIONS, records_per_s=5_000).start()
            load.wait_for(2_000)
            broker.kill()
            before = len(store.proxy.requests)
            broker.start()
            needed = len(store.proxy.requests) - before
            print(f"a start takes {needed} requests")
            for index, left in enumerate((1, 3, 6, 10, 16, 24)):
                load.wait_for(load.acknowledged + 2_000)
                broker.kill()
                store.away_after(needed - left, (HANG, BURST, DROP)[index % 3])
                broker.spawn()
                gone = threading.Event().wait(away_s)
                assert not gone and broker.process is not None and broker.process.poll() is None, broker.log_tail()
                assert http_status(broker, "/livez") == 200
                store.back()
                broker.wait_ready(60)
            load.wait_for(load.acknowledged + 2_000)
            check_all(broker.bootstrap, load.finish())
            assert broker.stop() == 0
