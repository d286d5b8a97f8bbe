"""The settings of a world's brokers, and what clients find there: drawn from its seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from tests.simulation import bankers, tables
from tests.simulation.checker_owners import SESSION_MS
from tests.simulation.options import OFFSETS_PARTS, WAL_KINDS

if TYPE_CHECKING:
    from tests.simulation.cluster import World


class Drawn(NamedTuple):
    """`wal`: one of `WAL_KINDS`. `table`: the configs of the compacted topic, None if there is none. `values`: settings
    that all brokers have."""

    wal: str
    table: dict[str, str] | None
    values: dict[str, str]


def draw(world: World) -> Drawn:
    """What the seed gives, but for what the world's options fix."""
    choice = world.rng.choice
    values: dict[str, Any] = {
        "tidelog.http.listener": "",
        "tidelog.storage": "memory:",
        "tidelog.wal.dir": "/wal",
        "tidelog.wal.file.bytes": 1 << 20,
        "tidelog.wal.bytes.max": 4 << 20,
        "message.max.bytes": 128 << 10,
        "socket.request.max.bytes": 1 << 20,
        "queued.max.request.bytes": 4 << 20,
        "tidelog.tail.bytes.max": choice([1 << 20, 8 << 20]),
        "tidelog.tail.keep.bytes": choice([0, 16 << 10, 512 << 10]),
        "tidelog.seal.bytes": choice([64 << 10, 1 << 20]),
        "tidelog.seal.ms": choice([200, 1_000, 4_000]),
        "tidelog.read.cache.bytes": 1 << 20,
        "tidelog.session.timeout.ms": world.session_ms,
        "tidelog.controller.lease.ms": world.lease_ms,
        "tidelog.delete.grace.ms": choice([0, 2_000]),
        "tidelog.orphan.check.interval.ms": choice([3_000, 3_600_000]),
        "tidelog.shutdown.timeout.ms": choice([2_000, 30_000]),
        "log.retention.check.interval.ms": 2_000,
        "offsets.topic.num.partitions": len(OFFSETS_PARTS),
        "transaction.state.log.num.partitions": len(bankers.STATE_PARTS),
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": 500,
        "group.initial.rebalance.delay.ms": choice([0, 300]),
        "group.min.session.timeout.ms": 1_000,
        "group.consumer.min.session.timeout.ms": 1_000,
        "group.consumer.session.timeout.ms": SESSION_MS,
        "group.consumer.min.heartbeat.interval.ms": 100,
        "group.consumer.heartbeat.interval.ms": 400,
        "group.consumer.assignment.interval.ms": 200,
        "auto.create.topics.enable": False,
        "tidelog.balance.interval.ms": choice([400, 2_000, 30_000]),
        "tidelog.balance.moves.max": choice([2, 10]),
    }
    rng = world.scheduler.stream("object wal")
    wal = world.options.wal or rng.choices(list(WAL_KINDS), list(WAL_KINDS.values()))[0]
    if wal != "volume":
        values["tidelog.wal.objects.bytes.max"] = 4 << 20
        values["tidelog.wal.objects.group.bytes"] = rng.choice([64 << 10, 4 << 20])
        values["tidelog.wal.objects.interval.ms"] = rng.choice([100, 250, 250])
        values["tidelog.wal.objects.in.flight.max"] = rng.choice([1, 3, 8])
    if wal == "objects":
        values["tidelog.wal"] = "objects"
        del values["tidelog.wal.dir"]
    rng = world.scheduler.stream("tables")
    table: dict[str, str] | None = None
    if rng.random() < world.options.tables and not world.bank:
        table, cleaner = tables.draw(rng)
        values |= cleaner
    return Drawn(wal, table, {key: str(value) for key, value in (values | _draw_merging(world)).items()})


def _draw_merging(world: World) -> dict[str, Any]:
    """Thresholds so low that logs of a few seconds are merged through several levels and into manifests."""
    choice = world.scheduler.stream("merging").choice
    head = choice([4, 6])
    return {
        "tidelog.merge.enable": choice([True, True, True, False]),
        "tidelog.merge.fan.out": choice([2, 3]),
        "tidelog.merge.object.bytes": choice([64 << 10, 1 << 20]),
        "tidelog.merge.shared.ms": choice([500, 5_000]),
        "tidelog.merge.check.interval.ms": choice([100, 1_000]),
        "tidelog.merge.bytes.per.second": choice([0, 256 << 10]),
        "tidelog.log.ranges.head.max": head,
        "tidelog.manifest.ranges.max": choice([4, 16]),
    }
