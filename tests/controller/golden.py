"""Every durable form of the controller, once: facts, answers, entry, snapshot, `cluster.json`, tables in PostgreSQL.

`python -m tests.controller.golden` writes the files that are missing; it never changes one. Bytes of the first
release are read for ever: when a form grows, add a new file beside the old ones.
"""

from pathlib import Path
from typing import Any

import msgpack

from controller import commands as c
from controller import facts as f
from controller.commands import encode_answer
from controller.entries import Entry, RememberedAnswer, SnapshotHead, encode_entry, frame_snapshot, hash_of
from controller.jobs import MANIFEST, MERGE
from controller.postgres_tables import CREATE, schema_of
from controller.state import ClusterState
from storage.manifest import ManifestRow, point_to
from storage.seal import CommitAnswer, CommittedThrough, ManifestPointer, Range, Recovery, SegmentObject
from tests.controller.builders import CLUSTER, LISTENERS, Cluster, next_range, wal_id

FILES = Path(__file__).parents[1] / "golden" / "metadata"
W, T = b"wal-id-16-bytes!", b"topic-id-16-byte"

FACTS: list[f.Fact] = [
    f.FormatLevel(1),
    f.ControllerElected(3, 1, 2**64 - 1, (W,)),
    f.ControllerResigned(3),
    f.LeaseExtended((f.WalGroup(W, 2**40),)),
    f.BrokerRegistered(1, 2**63, "boot-id", "rack", LISTENERS, 1, 1_700_000_000_000),
    f.BrokerRegistered(2, 5, "boot-id", None, (), 1, 0),
    f.WalRegistered(W, 1, 2**63, "volume"),
    f.SessionEnded(2**63, "silence", 1_700_000_000_001),
    f.RecoveryNamed(W, 2, 5, 1),
    f.WalScanned(W, 1, (f.ScannedLog(7, 10, 2**40),), 99, False),
    f.WalRetired(W),
    f.WalLost(W, 99, 98, 1_700_000_000_002),
    f.LossDeclared(7, 10, 10 + 2**32),
    f.TopicCreated("topic", T, True, (7, 8), (("cleanup.policy", "compact"),), 3),
    f.PartitionsAdded(T, (9,)),
    f.TopicDeleted(T),
    f.NamesFreed(("topic", "tøpic")),
    f.ConfigsChanged(4, "1", (("key", "value"), ("gone", None))),
    f.LeaderNamed(7, 1, 2**63, 4, W),
    f.SealCommitted(
        5,
        2,
        (SegmentObject("segments/1/5/2-0", 900, (Range(7, 4, 10, 20, 0, 800, 1_700_000_000_003, 15, 2),)),),
        (CommittedThrough(W, 98),),
        (8,),
        Recovery(W, 1),
    ),
    f.SealCommitted(5, 3, ()),
    f.LogStartAdvanced((f.LogStart(7, 15),)),
    f.ObjectsDeleted(("segments/1/5/1-0",)),
    f.ProducerIdsAllocated(1000, 1000),
]

ANSWERS: list[object] = [
    c.Done(),
    c.Registered((Recovery(W, 1),)),
    Recovery(W, 2),
    c.ScanAnswer((c.ReplayLog(7, 4, 10, 20),)),
    c.LossReport(W, 1, 5, 1_700_000_000_002, 99, 98, (c.LostLog(7, "topic", 0, 10, 10 + 2**32),)),
    c.TopicResults((c.TopicResult("topic", 0, None, T, 2, 3), c.TopicResult(None, 3, "unknown"))),
    c.ConfigResults((c.ConfigResult(2, "topic", 40, "invalid"),)),
    c.LogStarts((f.LogStart(7, 15),)),
    c.ProducerIdBlock(1000, 1000),
    CommitAnswer((8,), 77),
]


MOVE_FACTS: list[f.Fact] = [
    f.MovesRequested((f.MoveTarget(7, 2), f.MoveTarget(2**32 - 1, 3))),
    f.MovesRequested((f.MoveTarget(7, 2),), explicit=True),
    f.MovesCancelled((7, 8)),
    f.NodeDrained(2),
    f.NodeDrained(2, undone=True),
    f.LeadersPreferred((f.MoveTarget(7, 1),)),
    f.BrokerLeaving(2**64 - 1),
]

MOVE_ANSWERS: list[object] = [
    c.MovesAnswer(3),
    c.MovesAnswer(1, (c.MoveRefusal(7, 39, "broker 2 is drained"),)),
    c.DrainAnswer(1000, 1),
]

POINTER = ManifestPointer(12, 900, 3, 16, 2**40, 10, 2**40, 1_700_000_000_003, 1_700_000_000_001, 2**30)

MERGE_FACTS: list[f.Fact] = [
    f.MergeJobOpened(12, 1, 2**63, "merge", (f.MergePart(7, 10, 2**40, 16, 2**32 - 1),)),
    f.RangesReplaced(12, (f.Merged(900, Range(7, 4, 10, 20, 0, 800, 1_700_000_000_003, 15, 2)),)),
    f.ManifestsWritten(12, (f.NewManifest(7, -1, POINTER), f.NewManifest(8, 11, POINTER))),
    f.JobClosed(12),
    f.ManifestRowsDropped(7, 12, POINTER, (f.UnnamedObject("merged/0000000012/7", 900),)),
    f.ManifestRowsDropped(7, 12, None, ()),
    f.JobsForgotten((12, 2**32 - 1)),
]

MERGE_ANSWERS: list[object] = [c.JobAnswer((7, 8))]

ACL = f.Acl(2, "t", 3, "User:a", "*", 3, 3)

ADMINISTRATION_FACTS: list[f.Fact] = [
    f.QuotasChanged((("client-id", None), ("user", "a")), (("producer_byte_rate", 1e3), ("request_percentage", None))),
    f.ScramCredentialSet("a", 1, b"salt", b"s" * 32, b"k" * 32, 4096),
    f.ScramCredentialRemoved("a", 1),
    f.AclsCreated((ACL,)),
    f.AclsDeleted((ACL,)),
    f.BrokerUnregistered(7),
]

ADMINISTRATION_ANSWERS: list[object] = [c.Results((c.Result(), c.Result(42, "why")))]

FEATURE_FACTS: list[f.Fact] = [f.FeaturesFinalized((("transaction.version", 2), ("group.version", 0)))]
FORGETTING_FACTS: list[f.Fact] = [f.ClosedForgotten((2**64 - 1, 5), 2**40), f.ClosedForgotten((), 0)]

LOSS_FACTS: list[f.Fact] = [f.LossesForgotten((W, bytes(16))), f.LossesForgotten(())]

COMPACTION_FACTS: list[f.Fact] = [
    f.CompactionOpened(12, 40, 1, 2**63, 7, 10, 2**40),
    f.RangesCompacted(
        12,
        13,
        f.MergePart(7, 10, 20, 2, 2**32 - 1),
        f.Merged(900, Range(7, 4, 10, 20, 0, 0, -1, 20, 0)),
    ),
    f.CompactionClosed(12, 2**40),
    f.CompactionClosed(12),
    f.ManifestUnpacked(7, 11, (f.UnpackedRange(10, 900, 1_700_000_000_003, Range(7, 4, 0, 9, 0, 800, -1, 9, 2)),)),
]

TEXTS: dict[str, tuple[list[f.Fact], list[object]]] = {
    "facts-1.txt": (FACTS, ANSWERS),
    "moves-2.txt": (MOVE_FACTS, MOVE_ANSWERS),
    "merging-2.txt": (MERGE_FACTS, MERGE_ANSWERS),
    "features-3.txt": (FEATURE_FACTS, []),
    "administration-3.txt": (ADMINISTRATION_FACTS, ADMINISTRATION_ANSWERS),
    "forgetting-3.txt": (FORGETTING_FACTS, []),
    "losses-3.txt": (LOSS_FACTS, []),
    "compaction-3.txt": (COMPACTION_FACTS, []),
}
"""File name, which ends in the format level, -> facts and answers."""


def facts_text(facts: list[f.Fact], answers: list[object]) -> str:
    """One fact or answer per line: its bytes in hex."""
    lines = [f"fact {msgpack.packb(f.encode_fact(fact)).hex()}" for fact in facts]
    return "\n".join([*lines, *[f"answer {msgpack.packb(encode_answer(answer)).hex()}" for answer in answers]]) + "\n"


def entry() -> Entry:
    """An entry with every fact and one answer."""
    answers = (RememberedAnswer(b"c" * 16, tuple(encode_answer(ANSWERS[-2]))),)
    return Entry(CLUSTER, 12, b"h" * 32, 3, b"n" * 16, 1_700_000_000_000, answers, tuple(FACTS))


def cluster() -> Cluster:
    """A cluster with something in every section of its snapshot."""
    made = Cluster(format_level=1)
    made.register(1, 100)
    made.create("t", 2, retention_ms="5")
    made.create("gone")
    made.decide(c.AlterConfigs(made.token(16), (c.ConfigAlteration(4, "", False, (c.ConfigChange("k", 0, "v"),)),)))
    made.commit(100, made.log("t"), made.log("gone"), timestamp=1_699_999_999_999)
    made.commit(100, made.log("t"))
    made.decide(c.DeleteTopics(made.token(16), (c.TopicRef("gone"),)))
    made.decide(c.AdvanceLogStart(made.token(16), (f.LogStart(0, 10),)))
    made.register(2, 200)
    made.apply(f.LeaseExtended((f.WalGroup(wal_id(100), 9),)))
    made.register(1, 101, locked=(wal_id(100),))
    found = f.ScannedLog(0, 0, 40)
    made.decide(c.ReportScan(made.token(16), wal_id(100), 101, 1, (found,), 9))
    made.seal(101, 1, [next_range(made.log("t"), 20)], Recovery(wal_id(100), 1), through=(CommittedThrough(b"?", 1),))
    made.decide(c.RetireWal(made.token(16), wal_id(100), 101, 1))
    made.decide(c.DeclareLost(made.token(16), wal_id(200), host_is_destroyed=True))
    made.decide(c.AllocateProducerIds(made.token(16), 101))
    return made


def tables() -> str:
    """A metadata log in PostgreSQL as SQL: one entry, one snapshot in two parts, a boundary, a doubt."""
    schema, state = schema_of(CLUSTER), cluster().state
    head = SnapshotHead(CLUSTER, state.position, state.entry_hash)
    snapshot = b"".join(frame_snapshot(head, state.encode_chunks()))
    data = encode_entry(entry())
    rows = {
        "cluster": f"(true, '{CLUSTER}', 1, '7/1', 11, NULL)",
        "entry": f"(12, '\\x{hash_of(data).hex()}', '\\x{data.hex()}')",
        "snapshot": f"({state.position}, 2)",
        "snapshot_part": f"({state.position}, 0, '\\x{snapshot[:99].hex()}'), "
        f"({state.position}, 1, '\\x{snapshot[99:].hex()}')",
        "doubt": f"('broker 2', 12, '\\x{hash_of(data).hex()}')",
    }
    lines = [f"CREATE SCHEMA {schema}", *[statement.format(schema=schema) for statement in CREATE]]
    lines += [f"INSERT INTO {schema}.{table} VALUES {values}" for table, values in rows.items()]
    return ";\n".join(lines) + ";\n"


def merging() -> Cluster:
    """A cluster with every form of ranges, jobs and manifests in its snapshot."""
    made = Cluster(format_level=2)
    made.register(1, 100)
    made.create("t", 2)
    for stamp in (-1, 1_699_999_999_999, -1, -1):
        made.commit(100, made.log("t"), made.log("t", 1), timestamp=stamp)
    log, other = made.log("t"), made.log("t", 1)

    def do(kind: str, count: int, *logs: Any) -> tuple[int, list[Any]]:
        parts = tuple(each.part(0, count) for each in logs)
        made.decide(c.OpenJobs(made.token(16), (c.NewJob(100, kind, parts),)))
        return made.state.job_table.next_job - 1, [[each.row(index) for index in range(count)] for each in logs]

    def merge(count: int) -> None:
        number, inputs = do(MERGE, count, log, other)
        outputs = tuple(f.Merged(100 * count + 77, merged_range([row.range for row in rows])) for rows in inputs)
        made.decide(c.ReplaceRanges(made.token(16), 100, number, outputs))

    merge(2)
    number, inputs = do(MANIFEST, 1, log, other)
    manifests = []
    for each, rows in zip((log, other), inputs):
        old = [ManifestRow(row.object, row.size, row.range, made.state.newest_ms(row)) for row in rows]
        manifests.append(f.NewManifest(each.log_id, -1, point_to(number, 200, old)))
    made.decide(c.WriteManifests(made.token(16), 100, number, tuple(manifests)))
    made.decide(c.AdvanceLogStart(made.token(16), (f.LogStart(other.log_id, other.end),)))
    number, _ = do(MERGE, 1, log)
    made.decide(c.CloseJob(made.token(16), 100, number))
    do(MERGE, 2, log)
    return made


def forgetting() -> Cluster:
    """A cluster that forgot an incarnation and remembers two: the controller's, and one that closed at level 3."""
    made = Cluster(format_level=2)
    for incarnation in (100, 101, 102):
        made.register(1, incarnation)
        made.decide(c.CleanStop(made.token(16), incarnation))
    made.decide(c.RaiseFormatLevel(made.token(16), 3))
    made.register(1, 103)
    made.decide(c.ForgetClosed(made.token(16), (100, 101)))
    return made


def compacting() -> Cluster:
    """A cluster with a log that was compacted, and passes over two more, one of which has begun."""
    made = Cluster()
    made.register(1, 100)
    made.create("t", 3, cleanup_policy="compact")
    logs = [made.log("t", partition) for partition in range(3)]
    for _ in range(2):
        made.commit(100, *logs, timestamp=1_699_999_999_999)
    made.decide(c.OpenCompactions(made.token(16), tuple(c.NewCompaction(100, each, 0, 20) for each in range(3))))
    made.decide(c.CloseCompaction(made.token(16), 100, 0, 15))
    rows = [logs[1].row(index).range for index in range(2)]
    output = f.Merged(90, merged_range(rows)._replace(length=0, batch_count=0, max_timestamp=-1))
    made.decide(c.CompactRanges(made.token(16), 100, 2, 2, logs[1].part(0, 2), output))
    return made


def administration() -> Cluster:
    """A cluster with everything in its snapshot that administrators decide beside topics."""
    made = Cluster(format_level=3)
    made.register(1, 100)
    made.register(2, 200)
    made.apply(*FEATURE_FACTS, *ADMINISTRATION_FACTS[:2], ADMINISTRATION_FACTS[3])
    made.decide(c.CleanStop(made.token(16), 200))
    made.decide(c.UnregisterBroker(made.token(16), 2))
    return made


def merged_range(inputs: list[Range]) -> Range:
    """What a merge job makes of ranges."""
    last = inputs[-1]
    return last._replace(
        base=inputs[0].base,
        position=0,
        length=sum(one.length for one in inputs),
        max_timestamp=max(one.max_timestamp for one in inputs),
        batch_count=sum(one.batch_count for one in inputs),
    )


def snapshot(state: ClusterState) -> bytes:
    """A snapshot as it lies in the bucket."""
    head = SnapshotHead(CLUSTER, state.position, state.entry_hash)
    return b"".join(frame_snapshot(head, state.encode_chunks()))


def files() -> dict[str, bytes]:
    """File name to bytes, as this version writes them."""
    return {
        **{name: facts_text(*held).encode() for name, held in TEXTS.items()},
        "cluster-1.json": f'{{"cluster_id": "{CLUSTER}", "format": 1}}\n'.encode(),
        "cluster-2.json": f'{{"cluster_id": "{CLUSTER}", "format": 2, "metadata": "postgresql"}}\n'.encode(),
        "postgres-1.sql": tables().encode(),
        "entry-1.bin": encode_entry(entry()),
        "snapshot-1.bin": snapshot(cluster().state),
        "merging-snapshot-2.bin": snapshot(merging().state),
        "administration-snapshot-3.bin": snapshot(administration().state),
        "forgetting-snapshot-3.bin": snapshot(forgetting().state),
        "compaction-snapshot-3.bin": snapshot(compacting().state),
    }


if __name__ == "__main__":
    FILES.mkdir(parents=True, exist_ok=True)
    for name, data in files().items():
        if not (FILES / name).exists():
            (FILES / name).write_bytes(data)
