"""What each command makes true: `decide(state, command, context)` reads, never changes.

One module per family. A command is decided on the state after entry N - 1 and its facts are written at N or not at all,
so decisions may rely on everything they read. Several commands share an entry only if `controller.batch` says that they
cannot disturb each other.
"""

from collections.abc import Callable
from typing import Any, cast

from controller import commands as c
from controller import facts as f
from controller.decide import (
    access,
    brokers,
    compacting,
    configs,
    features,
    housekeeping,
    merging,
    moves,
    recovery,
    seals,
    takeover,
    topics,
)
from controller.decide.context import Context, Decision, Heard, Limits
from controller.state import ClusterState
from protocol.errors import ErrorCode, KafkaError
from storage.seal import CommitAndMove, CommitSeal

_Decide = Callable[[ClusterState, Any, Context], Decision]

_DECIDE = cast(
    dict[type, _Decide],
    {
        c.RegisterBroker: brokers.register_broker,
        c.RegisterWal: brokers.register_wal,
        c.EndSession: brokers.end_session_now,
        c.EndSilentSessions: brokers.end_silent_sessions,
        c.CleanStop: brokers.clean_stop,
        c.ForgetClosed: brokers.forget_closed,
        c.RaiseFormatLevel: brokers.raise_format_level,
        c.NameRecoverer: recovery.name_recoverer,
        c.RecoverInstances: takeover.recover_instances,
        c.ReportScan: recovery.report_scan,
        c.RetireWal: recovery.retire_wal,
        c.RetireAbandoned: recovery.retire_abandoned,
        c.ForgetLosses: recovery.forget_losses,
        c.DeclareLost: recovery.declare_lost,
        CommitSeal: seals.commit_seal,
        CommitAndMove: moves.commit_and_move,
        c.RequestMoves: moves.request_moves,
        c.CancelMoves: moves.cancel_moves,
        c.DrainBroker: moves.drain_broker,
        c.LeaveCluster: moves.leave_cluster,
        c.CreateTopics: topics.create_topics,
        c.CreateInternalTopic: topics.create_internal_topic,
        c.CreatePartitions: topics.create_partitions,
        c.DeleteTopics: topics.delete_topics,
        c.AlterConfigs: configs.alter_configs,
        c.AdvanceLogStart: housekeeping.advance_log_start,
        c.SweepLogStarts: housekeeping.sweep_log_starts,
        c.AllocateProducerIds: housekeeping.allocate_producer_ids,
        c.ForgetObjects: housekeeping.forget_objects,
        c.FreeNames: housekeeping.free_names,
        c.OpenJobs: merging.open_jobs,
        c.ReplaceRanges: merging.replace_ranges,
        c.WriteManifests: merging.write_manifests,
        c.CloseJob: merging.close_job,
        c.DropManifestRows: merging.drop_manifest_rows,
        c.ForgetJobs: merging.forget_jobs,
        c.OpenCompactions: compacting.open_compactions,
        c.CompactRanges: compacting.compact_ranges,
        c.CloseCompaction: compacting.close_compaction,
        c.UnpackManifest: compacting.unpack_manifest,
        c.UpdateFeatures: features.update_features,
        c.AlterQuotas: access.alter_quotas,
        c.AlterScram: access.alter_scram,
        c.CreateAcls: access.create_acls,
        c.DeleteAcls: access.delete_acls,
        c.UnregisterBroker: access.unregister_broker,
    },
)


def decide(state: ClusterState, command: Any, context: Context) -> Decision:
    """The facts that the command makes true, and its answer; or `KafkaError`, a refusal.

    A command whose answer is remembered gets that answer again, whatever became of the state since. UNSUPPORTED_VERSION
    if a fact needs a higher format level than the cluster has: processes that know only that level could not go on.
    """
    first = state.answers.get(getattr(command, "command_id", b""))
    if first is not None:
        return Decision((), c.decode_answer(first))
    decision = _DECIDE[type(command)](state, command, context)
    for fact in decision.facts:
        level = f.level_of(fact)
        if level > state.format_level:
            raise KafkaError(
                ErrorCode.UNSUPPORTED_VERSION,
                f"{type(command).__name__} needs format level {level}, the cluster is at {state.format_level}: once "
                "every broker runs this version, an operator raises it with `tidelog cluster format --raise`",
            )
    return decision


def is_remembered(command: Any) -> bool:
    """Whether entries keep the command's answer: all but those that find their own first answer in the state."""
    return not isinstance(command, _NOT_REMEMBERED)


_NOT_REMEMBERED = (
    CommitSeal,
    c.EndSilentSessions,
    c.RecoverInstances,
    c.SweepLogStarts,
    c.ForgetObjects,
    c.FreeNames,
    c.OpenJobs,
    c.DropManifestRows,
    c.ForgetJobs,
    c.ForgetClosed,
    c.RetireAbandoned,
    c.ForgetLosses,
    c.OpenCompactions,
    c.UnpackManifest,
)


__all__ = ["Context", "Decision", "Heard", "Limits", "decide", "is_remembered"]
