"""Everything that is true of a cluster. `apply` alone changes it; everybody else reads.

A state is what the facts of entries 1 to `position` made, nothing else: two processes at one position hold equal
states. It is put together from parts that know nothing of each other (topics, brokers, WAL instances, logs, objects,
configs); this module tells each part what a fact means for it. `state_rows` names their sections of a snapshot.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from controller import facts as f
from controller.access import AccessTable, Credential, Entity
from controller.answers import AnswerTable
from controller.brokers import Broker, BrokerTable
from controller.compactions import Compaction, CompactionTable
from controller.configs import TOPIC, ConfigTable
from controller.features import FeatureTable
from controller.jobs import Job, JobTable
from controller.log_index import LEVEL_MAX, LogIndex, LogState, PackedRange, pack_merged_row
from controller.moves import MoveTable
from controller.objects import ObjectTable
from controller.rows import Load, decode_rows, encode_rows
from controller.state_rows import head_of, load_head, sections_of
from controller.topics import Topic, TopicTable
from controller.wals import ENDED, Loss, WalState, WalTable
from storage.seal import CommitAnswer, ManifestPointer, RangeRow, manifest_key, merged_key

_Bytes = bytes  # the class below has a method of that name

STATE_ROWS_LEVEL = 2
"""Format level from which on a log keeps its producer state when all its ranges go. Below, processes of the first
version hold the object for doomed."""

MOVES_LEVEL = 2
"""The format level from which on wishes and preferred leaders are part of the state."""

FORGET_LEVEL = 3
"""The format level from which on closed incarnations are forgotten."""

RANGES_PER_LOG_MAX = 65_536
"""Hard bound on the committed ranges of one log; sealing slows down long before."""

RANGES_MAX = 8_000_000
"""Hard bound on the committed ranges of all logs together (384 MB)."""


class ClusterState:
    """The state of one cluster after entry `position`.

    Read side: `topics`, `topic_by_id`, `logs`, `brokers` (newest incarnation per node), `wals`, `configs` (overrides
    of everything but topics, by (resource type, name)); these dictionaries are updated in place and stay the same
    objects, except after `adopt`.
    """

    def __init__(self, cluster_id: str) -> None:
        self.cluster_id = cluster_id
        self.position = 0
        self.entry_hash = bytes(32)
        self.wall_ms = 0
        self.format_level = 0
        self.controller_epoch = 0
        self.controller_node = f.NO_NODE
        self.controller_incarnation = 0
        self.controller_wal_ids: tuple[_Bytes, ...] = ()
        self.controller_resigned = False
        self.next_producer_id = 0
        self.topic_table = TopicTable()
        self.broker_table = BrokerTable()
        self.wal_table = WalTable()
        self.log_index = LogIndex()
        self.objects = ObjectTable()
        self.job_table = JobTable()
        self.compactions = CompactionTable()
        self.config_table = ConfigTable()
        self.move_table = MoveTable()
        self.feature_table = FeatureTable()
        self.access = AccessTable()
        self.answers = AnswerTable()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClusterState) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    # Read side

    @property
    def topics(self) -> dict[str, Topic]:
        """Topics by name."""
        return self.topic_table.topics

    @property
    def topic_by_id(self) -> dict[_Bytes, Topic]:
        """Topics by id."""
        return self.topic_table.by_id

    @property
    def logs(self) -> dict[int, LogState]:
        """Logs by id."""
        return self.log_index.logs

    @property
    def brokers(self) -> dict[int, Broker]:
        """The newest incarnation of each node, by node id."""
        return self.broker_table.brokers

    @property
    def wals(self) -> dict[_Bytes, WalState]:
        """WAL instances by id."""
        return self.wal_table.wals

    @property
    def configs(self) -> dict[tuple[int, str], dict[str, str]]:
        """Overrides by (resource type, resource name), topics not included."""
        return self.config_table.configs

    @property
    def features(self) -> dict[str, int]:
        """Levels of the finalized features by name; one that is not here is at 0."""
        return self.feature_table.levels

    @property
    def quotas(self) -> dict[Entity, dict[str, float]]:
        """Client quotas by entity."""
        return self.access.quotas

    @property
    def scram(self) -> dict[str, dict[int, Credential]]:
        """SCRAM credentials by user and mechanism."""
        return self.access.scram

    @property
    def acls(self) -> dict[f.Acl, None]:
        """The access list."""
        return self.access.acls

    @property
    def moves(self) -> dict[int, int]:
        """Node ids that are to lead logs, by log id."""
        return self.move_table.wanted

    @property
    def drained(self) -> set[int]:
        """Node ids that get no new logs."""
        return self.move_table.drained

    def preferred_leader(self, log_id: int) -> int:
        """The node where the log was created or that an operator last chose for it; else its leader."""
        return self.move_table.preferred.get(log_id, self.logs[log_id].leader_node)

    @property
    def jobs(self) -> dict[int, Job]:
        """Open merge jobs by number."""
        return self.job_table.jobs

    def manifest_at(self, log_id: int, offset: int) -> ManifestPointer | None:
        """The manifest with the first committed range that ends above `offset`; None if the state itself has it."""
        log = self.logs.get(log_id)
        return None if log is None else log.manifest_at(offset)

    def ranges(self, log_id: int, offset: int, limit: int = 64) -> list[RangeRow]:
        """The committed ranges from the one that holds `offset` (else the next one after it) on, at most `limit`;
        without those in manifests (`manifest_at`).

        Empty if the log is unknown or `offset` is at or above its committed end.
        """
        log = self.logs.get(log_id)
        if log is None:
            return []
        first = log.first_row_beyond(offset)
        return [self._range_row(log, index) for index in range(first, min(first + limit, log.range_count))]

    def newest_range(self, log_id: int) -> RangeRow | None:
        """The last committed range of the log, None if it has none."""
        log = self.logs.get(log_id)
        return self._range_row(log, log.range_count - 1) if log is not None and log.rows else None

    def range_at(self, log_id: int, index: int) -> RangeRow:
        """The committed range at `index` of `logs[log_id].range_count`. For searches by timestamp."""
        return self._range_row(self.logs[log_id], index)

    def _range_row(self, log: LogState, index: int) -> RangeRow:
        row = log.row(index)
        if row.level:
            return RangeRow(merged_key(row.object, log.log_id), row.size, row.range)
        found = self.objects.named[row.object]
        return RangeRow(found.key, found.size, row.range)

    def newest_ms(self, row: PackedRange) -> int:
        """The wall time from which retention counts the age of a range: its newest record, or else its commit."""
        if row.range.max_timestamp >= 0:
            return row.range.max_timestamp
        return row.committed_ms if row.level else self.objects.named[row.object].committed_ms

    def bytes(self, log_id: int) -> int:
        """Bytes of the committed ranges of the log; 0 if it is unknown."""
        log = self.logs.get(log_id)
        return 0 if log is None else log.size

    def range_pressure(self, log_id: int) -> float:
        """How full the range bounds are, 0.0 to 1.0, for this log or in all: what sealing slows down by."""
        log = self.logs.get(log_id)
        own = 0.0 if log is None else log.range_count / RANGES_PER_LOG_MAX
        return max(own, self.log_index.range_total / RANGES_MAX)

    def holds_nothing(self, wal: WalState) -> bool:
        """Whether the instance, whose writer's session ended, was not recovered and never needs to be: no log is led
        through it, and none ever will.
        """
        return wal.state == ENDED and not self.log_index.led_through.get(wal.wal_id)

    def is_needed(self, loss: Loss) -> bool:
        """Whether a log that the loss names still begins below the end of its hole."""
        logs = self.logs
        return any(log_id in logs and logs[log_id].start < to for log_id, _, _, _, to in loss.logs)

    # Applying facts

    def apply_entry(
        self,
        position: int,
        entry_hash: _Bytes,
        wall_ms: int,
        answers: Iterable[tuple[_Bytes, Any]],
        facts: Iterable[f.Fact],
    ) -> None:
        """Applies the entry after the present one. `entry_hash` is SHA-256 of its bytes, `wall_ms` its time."""
        assert position == self.position + 1, f"entry {position} after {self.position}"
        self.position, self.entry_hash, self.wall_ms = position, entry_hash, wall_ms
        for fact in facts:
            self.apply(fact)
        for command_id, answer in answers:
            self.answers.remember(command_id, answer)

    def apply(self, fact: f.Fact) -> None:
        """Makes one fact true. A fact that contradicts the state is an `AssertionError`: our own bug."""
        _APPLY[type(fact)](self, fact)

    def adopt(self, other: "ClusterState") -> None:
        """Becomes what `other` is; `other` is not to be used any more."""
        assert other.cluster_id == self.cluster_id
        self.__dict__.update(other.__dict__)

    def _format_level(self, fact: f.FormatLevel) -> None:
        assert fact.level > self.format_level
        before, self.format_level = self.format_level, fact.level
        if before < MOVES_LEVEL <= fact.level:
            for log in self.logs.values():
                if log.leader_node != f.NO_NODE:
                    self.move_table.lead(log.log_id, log.leader_node)
        if before < FORGET_LEVEL <= fact.level:
            self.broker_table.note_registered(self.position)

    def _controller_elected(self, fact: f.ControllerElected) -> None:
        assert fact.epoch == self.controller_epoch + 1
        self.controller_epoch, self.controller_node = fact.epoch, fact.node_id
        self.controller_incarnation, self.controller_wal_ids = fact.incarnation, fact.wal_ids
        self.controller_resigned = False

    def _controller_resigned(self, fact: f.ControllerResigned) -> None:
        assert fact.epoch == self.controller_epoch
        self.controller_resigned = True

    def _lease_extended(self, fact: f.LeaseExtended) -> None:
        self.wal_table.validate(fact.validated)

    def _broker_registered(self, fact: f.BrokerRegistered) -> None:
        older = self.brokers.get(fact.node_id)
        self.broker_table.register(fact, self.position if self.format_level >= FORGET_LEVEL else None)
        if older is not None:
            self._close_incarnation(older.incarnation)

    def _wal_registered(self, fact: f.WalRegistered) -> None:
        self.wal_table.register(fact)

    def _session_ended(self, fact: f.SessionEnded) -> None:
        self.move_table.end(fact.incarnation, self.broker_table.incarnations[fact.incarnation].node_id)
        self.broker_table.end(fact)
        for wal in self.wal_table.end(fact.incarnation):
            self.log_index.recover(wal.wal_id)
        if fact.incarnation == self.controller_incarnation:
            self.controller_resigned = True
        self.job_table.end(fact.incarnation)
        for compaction in self.compactions.of_incarnation(fact.incarnation):
            self._end_compaction(compaction)
        self._close_incarnation(fact.incarnation)

    def _recovery_named(self, fact: f.RecoveryNamed) -> None:
        self.wal_table.name_recoverer(fact)

    def _wal_scanned(self, fact: f.WalScanned) -> None:
        self.wal_table.scan(fact)

    def _wal_retired(self, fact: f.WalRetired) -> None:
        wal = self.wal_table.retire(fact.wal_id)
        self._note_closed(wal)
        self.log_index.release(wal.wal_id)
        self._close_incarnation(wal.incarnation)

    def _wal_lost(self, fact: f.WalLost) -> None:
        wal = self.wal_table.lose(fact)
        self._note_closed(wal)
        self._close_incarnation(wal.incarnation)

    def _note_closed(self, wal: WalState) -> None:
        if self.format_level >= 2:  # older processes cannot read a snapshot that holds it
            self.wal_table.note_closed(wal, self.wall_ms)

    def _loss_declared(self, fact: f.LossDeclared) -> None:
        log = self.logs[fact.log_id]
        assert fact.from_offset == log.end < fact.to_offset
        loss = self.wal_table.losses.get(log.wal_id)
        if loss is not None:
            loss.logs.append((log.log_id, log.topic, log.partition, fact.from_offset, fact.to_offset))
        log.end = fact.to_offset
        self.log_index.leave(log)

    def _close_incarnation(self, incarnation: int) -> None:
        if all(wal.closed for wal in self.wal_table.of(incarnation)):
            self.broker_table.close(incarnation)

    def _closed_forgotten(self, fact: f.ClosedForgotten) -> None:
        self.broker_table.forget(fact.incarnations, fact.position)
        for incarnation in fact.incarnations:
            self.wal_table.forget(incarnation)

    def _topic_created(self, fact: f.TopicCreated) -> None:
        topic = self.topic_table.create(fact)
        for partition, log_id in enumerate(fact.log_ids):
            self.log_index.create(log_id, topic.name, partition)

    def _partitions_added(self, fact: f.PartitionsAdded) -> None:
        topic = self.topic_table.grow(fact)
        first = len(topic.log_ids) - len(fact.log_ids)
        for partition, log_id in enumerate(fact.log_ids, first):
            self.log_index.create(log_id, topic.name, partition)

    def _topic_deleted(self, fact: f.TopicDeleted) -> None:
        logs = [self.logs[log_id] for log_id in self.topic_by_id[fact.topic_id].log_ids]
        leaders = {log.leader_incarnation for log in logs if log.leader_node != f.NO_NODE}
        self.topic_table.delete(fact.topic_id, self.position, leaders)
        self.move_table.forget(log.log_id for log in logs)
        for log in logs:
            self._unname(log.log_id, *self.log_index.remove(log.log_id))
            self.compactions.forget(log.log_id)

    def _names_freed(self, fact: f.NamesFreed) -> None:
        self.topic_table.free(fact.names)

    def _configs_changed(self, fact: f.ConfigsChanged) -> None:
        if fact.resource_type == TOPIC:
            self.topic_table.configure(fact)
        else:
            self.config_table.change(fact)

    def _leader_named(self, fact: f.LeaderNamed) -> None:
        wal = self.wals[fact.wal_id]
        broker = self.broker_table.incarnations[fact.incarnation]
        assert broker.alive and wal.incarnation == fact.incarnation
        self.log_index.name_leader(fact.log_id, fact.node_id, broker.incarnation, fact.epoch, wal.wal_id)
        if self.format_level >= MOVES_LEVEL:
            self.move_table.lead(fact.log_id, fact.node_id)

    def _seal_committed(self, fact: f.SealCommitted) -> None:
        broker = self.broker_table.incarnations[fact.incarnation]
        assert broker.alive and fact.seal == broker.last_seal + 1
        broker.last_seal, broker.last_answer = fact.seal, CommitAnswer(fact.refused, self.position)
        for item in fact.objects:
            number = self.objects.commit(item.key, item.size, len(item.ranges), self.wall_ms)
            for committed in item.ranges:
                self._unname(committed.log_id, self.log_index.commit(number, committed))
        self.wal_table.commit_through(fact.committed_through)

    def _log_start_advanced(self, fact: f.LogStartAdvanced) -> None:
        keep_state = self.format_level >= STATE_ROWS_LEVEL
        for log_id, start in fact.starts:
            self._unname(log_id, *self.log_index.advance_start(log_id, start, keep_state=keep_state))

    def _unname(self, log_id: int, rows: Iterable[PackedRange], manifests: Iterable[ManifestPointer] = ()) -> None:
        """Ranges and manifests that are no part of the log any more. Rows in manifests wait for `ManifestRowsDropped`,
        because only whoever reads the manifest knows their objects.
        """
        for row in rows:
            if row.level:
                self.objects.doom(merged_key(row.object, log_id), row.size)
            else:
                self.objects.release((row.object,))
        self.job_table.spend(log_id, manifests)

    # Merging

    def _merge_job_opened(self, fact: f.MergeJobOpened) -> None:
        assert self.broker_table.is_alive(fact.incarnation)
        self.job_table.open(fact)

    def _ranges_replaced(self, fact: f.RangesReplaced) -> None:
        job = self.job_table.close(fact.job, (output.range.log_id for output in fact.outputs))
        for size, item in fact.outputs:
            part = job.part(item.log_id)
            assert part is not None
            log = self.logs[item.log_id]
            first = log.find_part(part)
            assert first is not None, f"{part} is not there"
            inputs = [log.row(index) for index in range(first, first + part.ranges)]
            level = min(LEVEL_MAX, 1 + max(row.level for row in inputs))
            committed_ms = max(self.newest_ms(row) for row in inputs)
            packed = pack_merged_row(fact.job, item, size, level, committed_ms)
            self._unname(item.log_id, self.log_index.merge(item.log_id, part, packed))

    def _compaction_opened(self, fact: f.CompactionOpened) -> None:
        assert self.broker_table.is_alive(fact.incarnation)
        self.job_table.reserve(fact.job, fact.outputs)
        self.compactions.begin(fact)

    def _ranges_compacted(self, fact: f.RangesCompacted) -> None:
        compaction, item = self.compactions.open[fact.job], fact.output.range
        assert fact.number == compaction.next_output
        compaction.done += 1
        compaction.position = item.end
        log = self.logs[item.log_id]
        first = log.find_part(fact.part)
        assert first is not None, f"{fact.part} is not there"
        inputs = [log.row(index) for index in range(first, first + fact.part.ranges)]
        committed_ms = max(self.newest_ms(row) for row in inputs)
        packed = pack_merged_row(fact.number, item, fact.output.size, LEVEL_MAX, committed_ms)
        log.size += item.length - sum(row.range.length for row in inputs)
        self._unname(item.log_id, self.log_index.merge(item.log_id, fact.part, packed))

    def _compaction_closed(self, fact: f.CompactionClosed) -> None:
        compaction = self.compactions.open[fact.job]
        if fact.clean_end >= 0:
            self.compactions.clean[compaction.log_id] = fact.clean_end
            del self.compactions.open[fact.job]
        else:
            self._end_compaction(compaction)

    def _end_compaction(self, compaction: Compaction) -> None:
        """It did not come to its end: its next output may have been stored."""
        del self.compactions.open[compaction.number]
        if compaction.done < compaction.outputs:
            self.job_table.void[compaction.next_output] = (compaction.log_id,)

    def _manifest_unpacked(self, fact: f.ManifestUnpacked) -> None:
        pointer = self.log_index.unpack_manifest(fact)
        self.objects.doom(manifest_key(pointer.job, fact.log_id), pointer.size)

    def _manifests_written(self, fact: f.ManifestsWritten) -> None:
        job = self.job_table.close(fact.job, (new.log_id for new in fact.manifests))
        for new in fact.manifests:
            part = job.part(new.log_id)
            assert part is not None
            replaced = self.log_index.move_to_manifest(new, part)
            if replaced is not None:
                self.objects.doom(manifest_key(replaced.job, new.log_id), replaced.size)

    def _job_closed(self, fact: f.JobClosed) -> None:
        self.job_table.close(fact.job)

    def _manifest_rows_dropped(self, fact: f.ManifestRowsDropped) -> None:
        for key, size in fact.objects:
            self.objects.doom(key, size)
        log = self.logs.get(fact.log_id)
        held = [] if log is None else [pointer for pointer in log.manifests if pointer.job == fact.job]
        if held:
            assert log is not None and fact.pointer is not None, "a whole manifest below the start is spent"
            log.manifests[log.manifests.index(held[0])] = fact.pointer
            log.size -= held[0].bytes - fact.pointer.bytes
        else:
            pointer = self.job_table.spent.pop((fact.job, fact.log_id))
            assert fact.pointer is None
            self.objects.doom(manifest_key(fact.job, fact.log_id), pointer.size)

    def _jobs_forgotten(self, fact: f.JobsForgotten) -> None:
        for number in fact.jobs:
            self.job_table.void.pop(number, None)

    def _objects_deleted(self, fact: f.ObjectsDeleted) -> None:
        self.objects.deleted(fact.keys)

    def _producer_ids_allocated(self, fact: f.ProducerIdsAllocated) -> None:
        assert fact.first == self.next_producer_id
        self.next_producer_id = fact.first + fact.count

    def _moves_requested(self, fact: f.MovesRequested) -> None:
        self.move_table.request(fact)

    def _moves_cancelled(self, fact: f.MovesCancelled) -> None:
        self.move_table.cancel(fact)

    def _node_drained(self, fact: f.NodeDrained) -> None:
        self.move_table.drain(fact)

    def _broker_leaving(self, fact: f.BrokerLeaving) -> None:
        self.move_table.leave(fact, self.broker_table.incarnations[fact.incarnation].node_id)

    def _leaders_preferred(self, fact: f.LeadersPreferred) -> None:
        self.move_table.prefer(fact)

    def _broker_unregistered(self, fact: f.BrokerUnregistered) -> None:
        self.broker_table.unregister(fact.node_id)
        self.move_table.drained.discard(fact.node_id)

    # Snapshots

    def encode_chunks(self) -> Iterator[_Bytes]:
        """The snapshot in pieces of a few hundred rows. The state must not change until the last one was taken."""
        return encode_rows(head_of(self), {number: rows for number, (rows, _) in sections_of(self).items()})

    def encode(self) -> _Bytes:
        """The snapshot in one piece."""
        return b"".join(self.encode_chunks())

    @classmethod
    def decode(cls, data: "Iterable[_Bytes] | _Bytes") -> "ClusterState":
        """The state of a snapshot. `codec.Malformed` if it is none; `entries.NewerFormat`."""

        made: list[ClusterState] = []

        def begin(cluster_id: str, *head: Any) -> dict[int, Load]:
            state = cls(cluster_id)
            load_head(state, *head)
            made.append(state)
            return {number: load for number, (_, load) in sections_of(state).items()}

        decode_rows(data, begin)
        return made[0]


_APPLY = cast(
    dict[type, Callable[[ClusterState, Any], None]],
    {
        f.FormatLevel: ClusterState._format_level,
        f.ControllerElected: ClusterState._controller_elected,
        f.ControllerResigned: ClusterState._controller_resigned,
        f.LeaseExtended: ClusterState._lease_extended,
        f.BrokerRegistered: ClusterState._broker_registered,
        f.WalRegistered: ClusterState._wal_registered,
        f.SessionEnded: ClusterState._session_ended,
        f.RecoveryNamed: ClusterState._recovery_named,
        f.WalScanned: ClusterState._wal_scanned,
        f.WalRetired: ClusterState._wal_retired,
        f.WalLost: ClusterState._wal_lost,
        f.LossDeclared: ClusterState._loss_declared,
        f.TopicCreated: ClusterState._topic_created,
        f.PartitionsAdded: ClusterState._partitions_added,
        f.TopicDeleted: ClusterState._topic_deleted,
        f.NamesFreed: ClusterState._names_freed,
        f.ConfigsChanged: ClusterState._configs_changed,
        f.LeaderNamed: ClusterState._leader_named,
        f.SealCommitted: ClusterState._seal_committed,
        f.LogStartAdvanced: ClusterState._log_start_advanced,
        f.ObjectsDeleted: ClusterState._objects_deleted,
        f.ProducerIdsAllocated: ClusterState._producer_ids_allocated,
        f.MergeJobOpened: ClusterState._merge_job_opened,
        f.RangesReplaced: ClusterState._ranges_replaced,
        f.ManifestsWritten: ClusterState._manifests_written,
        f.JobClosed: ClusterState._job_closed,
        f.ManifestRowsDropped: ClusterState._manifest_rows_dropped,
        f.JobsForgotten: ClusterState._jobs_forgotten,
        f.CompactionOpened: ClusterState._compaction_opened,
        f.RangesCompacted: ClusterState._ranges_compacted,
        f.CompactionClosed: ClusterState._compaction_closed,
        f.ManifestUnpacked: ClusterState._manifest_unpacked,
        f.MovesRequested: ClusterState._moves_requested,
        f.MovesCancelled: ClusterState._moves_cancelled,
        f.NodeDrained: ClusterState._node_drained,
        f.LeadersPreferred: ClusterState._leaders_preferred,
        f.BrokerLeaving: ClusterState._broker_leaving,
        f.FeaturesFinalized: lambda state, fact: state.feature_table.finalize(fact),
        f.QuotasChanged: lambda state, fact: state.access.change_quotas(fact),
        f.ScramCredentialSet: lambda state, fact: state.access.set_credential(fact),
        f.ScramCredentialRemoved: lambda state, fact: state.access.remove_credential(fact),
        f.AclsCreated: lambda state, fact: state.access.create_acls(fact),
        f.AclsDeleted: lambda state, fact: state.access.delete_acls(fact),
        f.BrokerUnregistered: ClusterState._broker_unregistered,
        f.ClosedForgotten: ClusterState._closed_forgotten,
        f.LossesForgotten: lambda state, fact: state.wal_table.forget_losses(fact.wal_ids),
    },
)
