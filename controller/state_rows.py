"""What a snapshot holds of a state (`controller.rows`): its head, and for each part the sections that the part fills.

A section's number is written to disk: it is never used for anything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from controller import facts as f

if TYPE_CHECKING:
    from controller.rows import Load
    from controller.state import ClusterState


def head_of(state: ClusterState) -> list[Any]:
    """What is not in a section."""
    return [
        *[state.cluster_id, state.position, state.entry_hash, state.wall_ms, state.format_level],
        *[state.controller_epoch, state.controller_node, state.controller_incarnation, state.controller_wal_ids],
        *[state.controller_resigned, state.next_producer_id],
        *[state.log_index.next_log_id, state.objects.next_number],
    ]


def load_head(
    state: ClusterState, position: int, entry_hash: bytes, wall_ms: int, format_level: int, *rest: Any
) -> None:
    """Takes what `head_of` gave, the cluster id left out."""
    state.position, state.entry_hash, state.wall_ms, state.format_level = position, entry_hash, wall_ms, format_level
    state.controller_epoch, state.controller_node, state.controller_incarnation, state.controller_wal_ids = rest[:4]
    state.controller_resigned, state.next_producer_id, state.log_index.next_log_id = rest[4:7]
    (state.objects.next_number,) = rest[7:]


def sections_of(state: ClusterState) -> dict[int, tuple[Iterator[list[Any]], Load]]:
    """By number: the rows of each section, and what loads one."""
    return {
        1: (state.topic_table.topic_rows(), state.topic_table.load_topic),
        2: (state.topic_table.deleted_rows(), state.topic_table.load_deleted),
        3: (state.broker_table.broker_rows(), state.broker_table.load_broker),
        4: (state.broker_table.closed_rows(), state.broker_table.load_closed),
        5: (state.wal_table.wal_rows(), state.wal_table.load_wal),
        6: (state.wal_table.loss_rows(), state.wal_table.load_loss),
        7: (_log_rows(state), partial(_load_log, state)),
        8: (state.objects.named_rows(), state.objects.load_named),
        9: (state.objects.doomed_rows(), state.objects.load_doomed),
        10: (state.config_table.rows(), state.config_table.load),
        11: (state.answers.rows(), state.answers.load),
        12: (state.job_table.rows(), state.job_table.load),
        13: (state.log_index.manifest_rows(), state.log_index.load_manifests),
        16: (state.move_table.wanted_rows(), state.move_table.load_wanted),
        17: (state.move_table.drained_rows(), state.move_table.load_drained),
        18: (state.move_table.preferred_rows(), state.move_table.load_preferred),
        19: (state.move_table.leaving_rows(), state.move_table.load_leaving),
        20: (state.wal_table.closed_rows(), state.wal_table.load_closed),
        22: (state.feature_table.rows(), state.feature_table.load),
        23: (state.access.quota_rows(), state.access.load_quotas),
        24: (state.access.scram_rows(), state.access.load_scram),
        25: (state.access.acl_rows(), state.access.load_acl),
        35: (state.broker_table.registered_rows(), state.broker_table.load_registered),
        36: (state.broker_table.forgotten_rows(), state.broker_table.load_forgotten),
        30: (state.compactions.rows(), state.compactions.load),
    }


def _log_rows(state: ClusterState) -> Iterator[list[Any]]:
    for row in state.log_index.rows():
        log = state.logs[row[0]]
        yield [log.topic, log.partition, row]


def _load_log(state: ClusterState, row: tuple[Any, ...]) -> None:
    topic, partition, rest = row
    found = state.topics[topic]
    wal = state.wals.get(rest[4])
    wal_id = f.NO_UUID if wal is None else wal.wal_id
    state.log_index.load((*rest[:4], wal_id, *rest[5:]), found.name, partition)
