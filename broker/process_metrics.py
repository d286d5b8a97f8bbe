"""Which metrics a broker has: names and helps, each with how it is read. Nothing here runs until somebody scrapes."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from controller.describe import led_by_broker
from protocol.apis import APIS
from protocol.errors import ErrorCode
from storage.wal.objects import ObjectWal
from storage.wal.volume import VolumeWal

if TYPE_CHECKING:
    from broker.metrics import Metrics
    from broker.node import Broker
    from broker.validation import Validation

Labelled = Iterable[tuple[Mapping[str, str], float]]


def register_process(broker: Broker) -> None:
    """What can be told from the first moment on."""
    metrics = broker.metrics
    metrics.gauge("tidelog_ready", "1 while this broker serves.", lambda: broker.ready)
    metrics.gauge(
        "tidelog_memory_peak_bytes",
        "The most memory this process ever held.",
        lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def register(broker: Broker) -> None:
    """Register everything that is counted in `broker`, once it is built."""
    _requests(broker)
    _logs(broker)
    _wal(broker)
    _bucket(broker)
    _moves(broker)
    _merging(broker)
    _compaction(broker)
    _control(broker)
    _transactions(broker)
    _groups(broker)


def _requests(broker: Broker) -> None:
    counters, metrics, hub = broker.counters, broker.metrics, broker.server.hub

    def requests() -> Labelled:
        return [({"api": api.name}, counters.requests[key]) for key, api in APIS.items() if counters.requests[key]]

    def errors() -> Labelled:
        return [({"error": ErrorCode(code).name}, count) for code, count in sorted(counters.errors.items())]

    metrics.counter("tidelog_requests", "Requests read, by API.", requests)
    metrics.counter("tidelog_errors", "Error codes answered by Produce, Fetch and ListOffsets.", errors)
    metrics.histogram("tidelog_produce_seconds", "Produce, from read to answered.", counters.produce_latency)
    metrics.histogram("tidelog_fetch_seconds", "Fetch, long polls included.", counters.fetch_latency)
    metrics.histogram("tidelog_other_seconds", "All other requests.", counters.other_latency)
    metrics.histogram(
        "tidelog_control_seconds",
        "Calls of other brokers, long polls included.",
        counters.control_latency,
    )
    metrics.histogram(
        "tidelog_verification_seconds",
        "Asking a transaction coordinator before a batch opens a transaction.",
        counters.verification_latency,
    )
    for name, text in (
        ("bytes_in", "Bytes read from clients."),
        ("bytes_out", "Bytes written to clients."),
        ("produce_bytes", "Bytes of appended batches."),
        ("batches_in", "Appended batches."),
        ("duplicates", "Batches that were there already."),
        ("fetch_bytes", "Bytes of batches answered to fetches."),
        ("fetch_waits", "Fetches that waited for data."),
        ("fetch_cold", "Partitions of fetches read from the bucket."),
        ("full_waits", "Produce requests that waited for space."),
        ("full_timeouts", "Produce requests refused because there was no space."),
        ("settle_waits", "Produce requests that waited for a log that was about to move or to open."),
        ("connections_opened", "Connections accepted."),
        ("connections_closed", "Connections that ended."),
        ("connections_refused", "Connections beyond the limits."),
        ("connections_idle_closed", "Connections closed for being idle."),
        ("slow_readers_closed", "Connections closed because the client does not read."),
        ("throttled", "Connections muted because their clients used more than their quotas."),
        ("protocol_errors", "Connections closed for malformed requests."),
        ("server_errors", "Requests that failed inside the broker."),
        ("transaction_markers", "Markers appended that end transactions."),
        ("verification_failures", "Partitions that were not part of the transaction of a batch sent to them."),
    ):
        metrics.counter(f"tidelog_{name}", text, lambda name=name: getattr(counters, name))  # type: ignore[misc]
    metrics.gauge("tidelog_connections", "Open connections.", lambda: len(hub.connections))
    metrics.gauge("tidelog_request_bytes", "Memory of requests not yet answered.", lambda: hub.budget.used)
    metrics.gauge("tidelog_request_bytes_peak", "The most it ever was.", lambda: hub.budget.peak)
    metrics.gauge("tidelog_unsent_bytes", "Answers that clients have not read yet.", lambda: hub.unsent_bytes)


def _logs(broker: Broker) -> None:
    logs, metrics = broker.logs, broker.metrics
    metrics.gauge("tidelog_logs", "Logs this broker leads.", lambda: len(logs))
    metrics.gauge("tidelog_tail_bytes", "Memory of all tails.", lambda: logs.memory.bytes)
    metrics.gauge("tidelog_tail_kept_bytes", "Of that, what is in the bucket already.", lambda: logs.kept_bytes)
    metrics.gauge(
        "tidelog_open_transactions",
        "Transactions open in logs, counted in each; consumers of committed records wait behind the oldest.",
        lambda: sum(each.producers.open_count for each in logs.logs),
    )
    metrics.gauge("tidelog_space_waiting", "Produce requests waiting for space now.", lambda: len(logs.space))
    metrics.counter(
        "tidelog_alarms",
        "Named objects found missing or damaged.",
        lambda: broker.services.cold.alarms + broker.merging.alarms + broker.compacting.alarms,
    )


def _groups(broker: Broker) -> None:
    groups, metrics = broker.services.groups, broker.metrics
    metrics.gauge("tidelog_groups", "Groups this broker coordinates.", lambda: groups.counts().groups)
    metrics.gauge(
        "tidelog_consumer_groups", "Of those, consumer groups (KIP-848).", lambda: groups.counts().consumer_groups
    )
    metrics.gauge(
        "tidelog_group_partitions_loading",
        "Partitions of `__consumer_offsets` whose groups are being read; their members wait.",
        lambda: groups.counts().partitions_loading,
    )


def _wal(broker: Broker) -> None:
    for wal, validation in broker.wals:
        if isinstance(wal, VolumeWal):
            _volume(broker.metrics, wal, validation)
        elif isinstance(wal, ObjectWal):
            _objects(broker.metrics, wal, validation)


def _volume(metrics: Metrics, wal: VolumeWal, validation: Validation) -> None:
    metrics.counter("tidelog_wal_groups", "Groups made durable.", lambda: wal.groups)
    metrics.counter("tidelog_wal_bytes", "Bytes made durable.", lambda: wal.bytes)
    metrics.counter("tidelog_wal_sync_seconds", "Time spent in writes and syncs.", lambda: wal.sync_ns_sum / 1e9)
    metrics.histogram("tidelog_wal_write_seconds", "One write and sync of a group.", wal.sync_histogram)
    metrics.gauge("tidelog_wal_free_bytes", "What the WAL still takes.", lambda: wal.free_bytes)
    metrics.gauge(
        "tidelog_wal_file_error", "1 while no further WAL file can be prepared.", lambda: wal.file_error is not None
    )
    metrics.gauge("tidelog_wal_appended", "Last append sequence.", lambda: wal.appended)
    metrics.gauge("tidelog_wal_validated", "Last validated append sequence.", lambda: validation.validated)
    metrics.counter(
        "tidelog_wal_withheld", "Durable groups that could not be acknowledged.", lambda: validation.withheld
    )


def _objects(metrics: Metrics, wal: ObjectWal, validation: Validation) -> None:
    prefix = "tidelog_wal_objects"
    metrics.counter(f"{prefix}_groups", "Groups stored as objects.", lambda: wal.groups)
    metrics.counter(f"{prefix}_bytes", "Bytes of them.", lambda: wal.bytes)
    metrics.counter(f"{prefix}_puts", "PUTs begun for them; this is what the store bills.", lambda: wal.puts)
    metrics.gauge(f"{prefix}_puts_last_hour", "The same within the last hour.", lambda: wal.puts_last_hour)
    metrics.counter(f"{prefix}_looks", "Reads after PUTs that were refused or not answered.", lambda: wal.looks)
    metrics.counter(f"{prefix}_deletes", "Deletions of committed groups.", lambda: wal.deletes)
    metrics.histogram(f"{prefix}_put_seconds", "One group, from its first PUT to stored.", wal.put_histogram)
    metrics.gauge(f"{prefix}_in_flight", "Groups on their way.", lambda: wal.in_flight)
    metrics.gauge(f"{prefix}_oldest_seconds", "Age of the oldest of them.", lambda: wal.oldest_in_flight_s)
    metrics.gauge(f"{prefix}_free_bytes", "What may still be stored before its commit.", lambda: wal.free_bytes)
    metrics.gauge(f"{prefix}_appended", "Last append sequence.", lambda: wal.appended)
    metrics.gauge(f"{prefix}_validated", "Last validated append sequence.", lambda: validation.validated)
    metrics.counter(f"{prefix}_withheld", "Groups that could not be acknowledged.", lambda: validation.withheld)


def _bucket(broker: Broker) -> None:
    metrics, sealing, uploader, reader = broker.metrics, broker.sealing, broker.uploader, broker.services.reader
    metrics.counter("tidelog_seals", "Seals begun.", lambda: sealing.seals)
    metrics.counter("tidelog_sealed_bytes", "Bytes of batches in them.", lambda: sealing.sealed_bytes)
    metrics.counter("tidelog_refused_ranges", "Ranges that a commit refused.", lambda: sealing.refused_ranges)
    metrics.gauge("tidelog_unsealed_logs", "Logs with batches that are in no seal.", lambda: sealing.unsealed_logs)
    metrics.gauge("tidelog_seals_in_flight", "Seals not yet committed.", lambda: sealing.in_flight)
    metrics.counter("tidelog_objects_put", "Segments uploaded.", lambda: uploader.objects_put)
    metrics.counter("tidelog_upload_bytes", "Bytes uploaded.", lambda: uploader.bytes_put)
    metrics.counter("tidelog_upload_retries", "Uploads tried again.", lambda: uploader.put_retries)
    metrics.gauge(
        "tidelog_store_away", "1 while the bucket cannot be written.", lambda: uploader.away_since is not None
    )
    metrics.counter("tidelog_reads", "Ranged reads from the bucket.", lambda: reader.gets)
    metrics.counter("tidelog_read_bytes", "Bytes read from the bucket.", lambda: reader.bytes_fetched)


def _moves(broker: Broker) -> None:
    metrics, moves, logs = broker.metrics, broker.moves, broker.logs
    metrics.counter("tidelog_moves", "Logs that were handed over to another broker.", lambda: moves.moved)
    metrics.counter("tidelog_moves_refused", "Moves that the controller refused.", lambda: moves.refused)
    metrics.counter(
        "tidelog_moves_put_off",
        "Attempts to move logs that were given up, and made again, because the disk or the bucket was slow.",
        lambda: moves.put_off,
    )
    metrics.gauge("tidelog_moves_frozen_logs", "Logs that take no appends because they move.", lambda: moves.frozen)
    metrics.histogram(
        "tidelog_move_seconds", "From the freeze of a log to the fact that names its leader.", moves.durations
    )
    metrics.counter(
        "tidelog_moves_sealed_bytes",
        "Bytes of batches that logs had in memory when they froze: they go to the bucket with or without a move.",
        lambda: moves.moved_bytes,
    )
    metrics.counter(
        "tidelog_moves_copied_bytes",
        "Bytes of batches read back from the bucket because a log opened here.",
        lambda: logs.replayed_bytes,
    )


def _merging(broker: Broker) -> None:
    merging, metrics = broker.merging, broker.metrics
    for name, text in (
        ("jobs", "Merge jobs done."),
        ("jobs_given_up", "Merge jobs given up because the store did not answer."),
        ("refused_parts", "Outputs of merge jobs that came too late to count."),
        ("ranges", "Ranges merged into larger ones."),
        ("manifests_written", "Manifests written."),
        ("bytes_read", "Bytes read for merging."),
        ("bytes_written", "Bytes written by merging."),
    ):
        metrics.counter(f"tidelog_merge_{name}", text, lambda name=name: getattr(merging, name))  # type: ignore[misc]
    metrics.gauge("tidelog_merge_waiting", "Open merge jobs of this broker.", lambda: merging.waiting)


def _compaction(broker: Broker) -> None:
    compacting, metrics, upkeep = broker.compacting, broker.metrics, broker.runtime.compaction
    for name, text in (
        ("passes", "Passes of compaction that came to their end."),
        ("given_up", "Passes of compaction that ended early."),
        ("outputs", "Objects that compaction wrote."),
        ("ranges", "Ranges that they replaced."),
        ("records_in", "Records that compaction looked at."),
        ("records_out", "Records of those that it kept."),
        ("bytes_read", "Bytes read for compaction."),
        ("bytes_written", "Bytes written by compaction."),
    ):
        metrics.counter(f"tidelog_compaction_{name}", text, lambda name=name: getattr(compacting, name))  # type: ignore[misc]
    metrics.gauge("tidelog_compaction_waiting", "Open passes of this broker.", lambda: compacting.waiting)
    metrics.gauge("tidelog_compaction_map_bytes", "Memory of keys of the pass at work.", lambda: compacting.map_bytes)
    metrics.gauge(
        "tidelog_compaction_last_pass_seconds",
        "Unix time at which the last pass came to its end; 0: none did.",
        lambda: compacting.last_pass_ms / 1000,
    )
    metrics.gauge(
        "tidelog_compaction_dirty_bytes",
        "What could be compacted in all partitions; told by the controller's broker.",
        lambda: upkeep.dirty_bytes,
    )
    metrics.gauge(
        "tidelog_compaction_dirty_ratio_max",
        "New in what could be compacted of the dirtiest partition; told by the controller's broker.",
        lambda: upkeep.ratio_max,
    )
    metrics.gauge(
        "tidelog_compaction_logs",
        "Partitions that are compacted; told by the controller's broker.",
        lambda: upkeep.logs,
    )


def _control(broker: Broker) -> None:
    metrics, controller = broker.metrics, broker.controller
    metrics.gauge("tidelog_controller", "1 while this process is the controller.", lambda: controller.leads)
    metrics.gauge("tidelog_metadata_position", "Last applied entry of the metadata log.", lambda: controller.position)
    metrics.gauge("tidelog_metadata_reachable", "1 while the metadata log answers.", lambda: controller.reachable)
    metrics.gauge("tidelog_topics", "Topics of the cluster.", lambda: len(controller.state.topics))
    metrics.gauge("tidelog_partitions", "Partitions of the cluster.", lambda: len(controller.state.logs))
    metrics.gauge(
        "tidelog_recovery_seconds",
        "How long replaying what the bucket has not yet would take after a crash now.",
        lambda: broker.recovery.estimated_seconds(broker.logs.memory.bytes - broker.logs.kept_bytes),
    )
    metrics.gauge(
        "tidelog_wal_waiting_for_operator",
        "WAL instances here that need a decision.",
        lambda: len(broker.recovery.waiting),
    )
    metrics.counter(
        "tidelog_wal_recovered_for_others",
        "WAL instances in the bucket that this broker was named to recover.",
        lambda: broker.named.recovered,
    )
    metrics.gauge(
        "tidelog_wal_missing",
        "WAL instances that logs wait for and nobody has.",
        lambda: len(broker.recovery.missing()),
    )
    _balance(broker)


def _balance(broker: Broker) -> None:
    metrics, controller, balancing = broker.metrics, broker.controller, broker.runtime.balancing
    metrics.gauge(
        "tidelog_broker_logs",
        "Logs that each live broker leads.",
        lambda: [({"node": str(node)}, count) for node, count in led_by_broker(controller.state).items()],
    )
    metrics.gauge(
        "tidelog_broker_committed_bytes_per_second",
        "What each broker's logs take, on average, as the controller last saw it; nothing elsewhere.",
        lambda: [({"node": str(node)}, rate) for node, rate in balancing.rates.items()],
    )
    metrics.counter(
        "tidelog_balance_moves", "Moves that balance asked for while this process controls.", lambda: balancing.moves
    )


def _transactions(broker: Broker) -> None:
    metrics, coordinators, markers = broker.metrics, broker.services.coordinators, broker.services.coordinators.markers

    def by_state() -> Labelled:
        return [({"state": state.shown}, count) for state, count in coordinators.by_state().items() if count]

    metrics.gauge("tidelog_transactional_ids", "Transactional ids coordinated here, by state.", by_state)
    metrics.gauge(
        "tidelog_transaction_partitions_loading",
        "Partitions of __transaction_state that this broker leads and still reads.",
        lambda: sum(not runtime.active for runtime in coordinators.partitions.values()),
    )
    metrics.gauge(
        "tidelog_transaction_markers_waiting",
        "Markers decided here and not known to be written.",
        lambda: markers.waiting,
    )
    metrics.counter(
        "tidelog_transaction_markers_written", "Markers that leaders have written.", lambda: markers.written
    )
    metrics.counter("tidelog_transaction_markers_retried", "Markers asked for again.", lambda: markers.retries)
    metrics.counter(
        "tidelog_transactions_timed_out", "Transactions aborted over their time.", lambda: coordinators.timed_out
    )
