"""What the metadata of a cluster says, for `tidelog inspect metadata`. Verifies every byte it reads; never modifies.

Works on any store, also on a copy of a bucket, and on the tables in PostgreSQL; it needs no broker and takes no part in
the cluster.
"""

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from controller.cluster_file import ClusterFile, ClusterFileError, read_cluster
from controller.codec import Malformed
from controller.entries import (
    FIRST_HASH,
    CorruptMetadata,
    Entry,
    NewerFormat,
    decode_entry,
    hash_of,
    unframe_snapshot,
)
from controller.facts import UnknownFact
from controller.object_log import BOUNDARY, ENTRIES, SNAPSHOTS
from controller.state import ClusterState
from controller.wals import Loss
from storage.object_store import NotFound, ObjectStore

_UNREADABLE = (CorruptMetadata, NewerFormat, UnknownFact, Malformed, AssertionError, KeyError)


class LogBytes(Protocol):
    """Everything that a metadata log holds, as bytes with names, in order."""

    async def boundary(self) -> tuple[int, str]:
        """The boundary, and whose it is. `ValueError` if it cannot be read."""
        ...

    def snapshots(self) -> AsyncIterator[tuple[str, bytes]]:
        """Snapshots, oldest first."""
        ...

    def entries(self) -> AsyncIterator[tuple[int, str, bytes]]:
        """Entries with their positions."""
        ...

    async def notes(self) -> list[str]:
        """What else is to be said, a line each."""
        ...


class BucketBytes:
    """The log in the bucket itself."""

    def __init__(self, store: ObjectStore, cluster_id: str) -> None:
        self._store = store
        self._cluster_id = cluster_id

    async def boundary(self) -> tuple[int, str]:
        """See `LogBytes`."""
        try:
            value = json.loads((await self._store.get(BOUNDARY)).data)
            return int(value["position"]), str(value["cluster_id"])
        except NotFound:
            return 0, self._cluster_id
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{BOUNDARY}: cannot be read: {error!r}") from None

    async def snapshots(self) -> AsyncIterator[tuple[str, bytes]]:
        """See `LogBytes`."""
        async for item in self._bodies(SNAPSHOTS):
            yield item

    async def entries(self) -> AsyncIterator[tuple[int, str, bytes]]:
        """See `LogBytes`."""
        async for key, data in self._bodies(ENTRIES):
            yield int(key.removeprefix(ENTRIES)), key, data

    async def notes(self) -> list[str]:
        """See `LogBytes`."""
        return []

    async def _bodies(self, prefix: str) -> AsyncIterator[tuple[str, bytes]]:
        async for info in self._store.list(prefix):
            try:
                yield info.key, (await self._store.get(info.key)).data
            except NotFound:
                continue  # trimmed meanwhile


@dataclass(slots=True)
class MetadataReport:
    """The findings. `state` is that after the last entry that could be applied; `problems` is empty if all is well.

    `zombies`: entries at or below the boundary, left by paused writers or not trimmed yet; nobody reads them.
    """

    cluster: ClusterFile | None = None
    boundary: int = 0
    snapshots: list[int] = field(default_factory=list)
    first_entry: int = 0
    last_entry: int = 0
    entries: int = 0
    entry_bytes: int = 0
    zombies: int = 0
    facts: dict[str, int] = field(default_factory=dict)
    state: ClusterState | None = None
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """The report as plain values, for tables and JSON."""
        state = self.state
        return {
            "cluster_id": self.cluster.cluster_id if self.cluster else None,
            "boundary": self.boundary,
            "snapshots": self.snapshots,
            "entries": {
                "first": self.first_entry,
                "last": self.last_entry,
                "count": self.entries,
                "bytes": self.entry_bytes,
                "below_boundary": self.zombies,
            },
            "facts": dict(sorted(self.facts.items())),
            "state": describe_state(state) if state is not None else None,
            "notes": self.notes,
            "problems": self.problems,
        }

    def lines(self) -> list[str]:
        """The report for a terminal; `problems` are not among the lines."""
        if self.cluster is None or self.state is None:
            return []
        facts = ", ".join(f"{name} {count}" for name, count in sorted(self.facts.items()))
        about = describe_state(self.state)
        controller = about["controller"]
        lines = [
            f"cluster      {self.cluster.cluster_id}, format level {about['format_level']}, "
            f"cluster file of format {self.cluster.format}",
            f"entries      {self.first_entry} to {self.last_entry}, {self.entry_bytes} bytes; boundary {self.boundary}",
            f"snapshots    {', '.join(map(str, self.snapshots)) or 'none'}",
            f"facts        {facts or 'none'}",
            f"controller   node {controller['node_id']}, epoch {controller['epoch']}"
            + (", resigned" if controller["resigned"] else ""),
            f"contents     {about['topics']} topics, {about['partitions']} partitions, {about['ranges']} ranges in "
            f"{about['objects']} objects, {about['bytes']} bytes, {about['doomed_objects']} objects to delete",
            f"merging      {len(about['jobs'])} open jobs, {about['closed_jobs']} closed ones to search for leftovers; "
            f"{about['manifests']} manifests of {about['manifest_ranges']} ranges",
            f"moves        {about['moves']} partitions are to move"
            + (f"; drained: {', '.join(map(str, about['drained']))}" if about["drained"] else ""),
        ]
        for broker in about["brokers"]:
            how = (
                f"live session, leads {broker['logs']} logs"
                if broker["alive"]
                else f"session ended ({broker['ended']})"
            )
            lines.append(f"broker       {broker['node_id']}, incarnation {broker['incarnation']}, {how}")
        for wal in about["wals"]:
            lines.append(
                f"WAL          {wal['wal_id']} ({wal['kind']}) of broker {wal['node_id']}: {wal['state']}, "
                f"{wal['logs']} logs"
            )
        for loss in about["losses"]:
            lines.append(f"loss         WAL {loss['wal_id']} of broker {loss['node_id']}, {len(loss['logs'])} logs")
        if self.zombies:
            lines.append(f"leftovers    {self.zombies} entries at or below the boundary")
        return lines + self.notes


async def describe_metadata(
    store: ObjectStore, elsewhere: Callable[[ClusterFile], LogBytes] | None = None
) -> MetadataReport:
    """Reads cluster file, boundary, snapshots and entries; checks checksums, chain and that the facts apply.

    `elsewhere`: the log of a cluster that does not keep it in the bucket. What cannot be read becomes a problem in the
    report. `StoreError` if the store cannot be reached.
    """
    report = MetadataReport()
    try:
        report.cluster = await read_cluster(store)
    except NotFound:
        report.problems.append("cluster.json: missing")
        return report
    except ClusterFileError as error:
        report.problems.append(str(error))
        return report
    report.state = ClusterState(report.cluster.cluster_id)
    log = BucketBytes(store, report.cluster.cluster_id) if elsewhere is None else elsewhere(report.cluster)
    await _read_boundary(log, report)
    await _read_snapshots(log, report)
    await _read_entries(log, report)
    report.notes = await log.notes()
    return report


async def _read_boundary(log: LogBytes, report: MetadataReport) -> None:
    try:
        report.boundary, owner = await log.boundary()
    except ValueError as error:
        report.problems.append(str(error))
        return
    if report.cluster and owner != report.cluster.cluster_id:
        report.problems.append(f"{BOUNDARY}: belongs to cluster {owner}")


async def _read_snapshots(log: LogBytes, report: MetadataReport) -> None:
    assert report.cluster is not None
    async for name, data in log.snapshots():
        try:
            head, encoded = unframe_snapshot(data)
            if head.cluster_id != report.cluster.cluster_id:
                raise CorruptMetadata(f"belongs to cluster {head.cluster_id}")
            state = ClusterState.decode([bytes(encoded)])
            if (state.position, state.entry_hash) != (head.position, head.entry_hash):
                raise CorruptMetadata(f"says entry {head.position}, holds the state at {state.position}")
        except _UNREADABLE as error:
            report.problems.append(f"{name}: {error}")
            continue
        report.snapshots.append(head.position)
        report.state = state
    if report.boundary and not any(position > report.boundary for position in report.snapshots):
        report.problems.append(f"no readable snapshot above the boundary {report.boundary}")


async def _read_entries(log: LogBytes, report: MetadataReport) -> None:
    """Follows the chain from the first entry above the boundary; applies those beyond the newest snapshot."""
    previous: bytes | None = FIRST_HASH if not report.boundary else None
    expected = report.boundary + 1
    async for position, key, data in log.entries():
        if position <= report.boundary:
            report.zombies += 1
            continue
        if position != expected:
            report.problems.append(f"{key}: entries {expected} to {position - 1} are missing")
            previous = None
        try:
            entry = decode_entry(data)
            _check(report, entry, position, previous)
        except _UNREADABLE as error:
            report.problems.append(f"{key}: {type(error).__name__}: {error}")
        else:
            _count(report, entry, len(data))
        previous = hash_of(data)
        expected = position + 1


def _check(report: MetadataReport, entry: Entry, position: int, previous: bytes | None) -> None:
    assert report.cluster is not None and report.state is not None
    if entry.cluster_id != report.cluster.cluster_id or entry.position != position:
        raise CorruptMetadata(f"is entry {entry.position} of cluster {entry.cluster_id}")
    if previous is not None and entry.previous != previous:
        raise CorruptMetadata("does not name the hash of the entry before it")
    if position == report.state.position + 1:
        report.state.apply_entry(position, b"", entry.wall_ms, entry.answers, entry.facts)


def _count(report: MetadataReport, entry: Entry, size: int) -> None:
    report.first_entry = report.first_entry or entry.position
    report.last_entry = entry.position
    report.entries += 1
    report.entry_bytes += size
    for fact in entry.facts:
        name = type(fact).__name__
        report.facts[name] = report.facts.get(name, 0) + 1


def describe_state(state: ClusterState) -> dict[str, Any]:
    """The state in plain values: who is alive, who leads how much, what lies where, what was lost."""
    led = led_by_broker(state)
    return {
        "position": state.position,
        "format_level": state.format_level,
        "controller": {
            "node_id": state.controller_node,
            "epoch": state.controller_epoch,
            "resigned": state.controller_resigned,
        },
        "brokers": [
            {
                "node_id": broker.node_id,
                "incarnation": f"{broker.incarnation:016x}",
                "alive": broker.alive,
                "ended": broker.end_reason or None,
                "rack": broker.rack,
                "logs": led.get(broker.node_id, 0),
                "last_seal": broker.last_seal,
            }
            for broker in state.brokers.values()
        ],
        "wals": [
            {
                "wal_id": wal.wal_id.hex(),
                "node_id": wal.node_id,
                "kind": wal.kind,
                "state": wal.state,
                "logs": len(state.log_index.led_through.get(wal.wal_id, ())),
                "validated_group": wal.validated_group,
            }
            for wal in state.wals.values()
            if not wal.closed
        ],
        "topics": len(state.topics),
        "partitions": len(state.logs),
        "ranges": state.log_index.range_total,
        "bytes": sum(log.size for log in state.logs.values()),
        "moves": len(state.moves),
        "drained": sorted(state.drained),
        "jobs": [
            {"job": job.number, "node_id": job.node_id, "kind": job.kind, "partitions": len(job.parts)}
            for job in state.jobs.values()
        ],
        "closed_jobs": len(state.job_table.void),
        "manifests": sum(len(log.manifests) for log in state.logs.values()),
        "manifest_ranges": sum(pointer.rows for log in state.logs.values() for pointer in log.manifests),
        "closed_incarnations": len(state.broker_table.closed),
        "objects": len(state.objects.named),
        "doomed_objects": len(state.objects.doomed),
        "losses": [describe_loss(loss) for loss in state.wal_table.losses.values()],
    }


def led_by_broker(state: ClusterState) -> dict[int, int]:
    """How many logs each live broker leads, by node id."""
    return {
        broker.node_id: sum(
            len(state.log_index.led_through.get(wal.wal_id, ())) for wal in state.wal_table.of(broker.incarnation)
        )
        for broker in state.broker_table.alive()
    }


def describe_loss(loss: Loss) -> dict[str, Any]:
    """A declared loss in plain values, as the report in the bucket has it."""
    return {
        "wal_id": loss.wal_id.hex(),
        "node_id": loss.node_id,
        "incarnation": f"{loss.incarnation:016x}",
        "declared_ms": loss.now_ms,
        "validated_group": loss.validated_group,
        "recovered_group": loss.recovered_group,
        "logs": [
            {
                "log_id": log_id,
                "topic": topic,
                "partition": partition,
                "lost_from_offset": start,
                "continues_at_offset": end,
            }
            for log_id, topic, partition, start, end in loss.logs
        ],
    }
