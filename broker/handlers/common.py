"""What handlers of reads share: finding a log, checking epochs, naming the leader."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.log_table import LeaderHint
from controller.client import ASK_TIMEOUT_MS
from protocol.errors import ErrorCode, KafkaError
from protocol.fast import NodeEndpoint

if TYPE_CHECKING:
    from collections.abc import Iterable

    from broker.log import Log
    from broker.services import Services

ADMIN_WAIT_MS_MIN = 5_000


def leader_log(services: Services, topic: str | bytes, partition: int, *, authoritative: bool) -> Log:
    """The log, if this broker serves it; with `authoritative`, only while it may give authoritative answers.

    KafkaError: UNKNOWN_TOPIC_OR_PARTITION, UNKNOWN_TOPIC_ID, NOT_LEADER_OR_FOLLOWER.
    """
    log = services.logs.find.get((topic, partition))
    if log is None or not log.serving:
        raise services.logs.refusal(topic, partition)
    if authoritative and not log.may_answer_authoritatively():
        raise not_sure(log)
    return log


def patience_ms(timeout_ms: int) -> int:
    """How long an admin request waits for the controller when its client says `timeout_ms`.

    0 and other tiny values mean "do not wait until everybody knows of it" and leave time for the decision itself.
    """
    return min(max(timeout_ms, ADMIN_WAIT_MS_MIN), ASK_TIMEOUT_MS)


def not_sure(log: Log) -> KafkaError:
    """Another broker may lead the log by now, and this one cannot know."""
    return LeaderHint(
        ErrorCode.NOT_LEADER_OR_FOLLOWER, f"{log.topic}-{log.partition}: another broker may lead it by now"
    )


def check_leader_epoch(log: Log, current_leader_epoch: int) -> None:
    """KafkaError if the client's leader epoch is not ours; -1: the client does not say."""
    if current_leader_epoch < 0 or current_leader_epoch == log.epoch:
        return
    if current_leader_epoch < log.epoch:
        raise LeaderHint(
            ErrorCode.FENCED_LEADER_EPOCH,
            f"leader epoch {current_leader_epoch} is over, {log.epoch} is the present one",
            log.node_id,
            log.epoch,
        )
    raise KafkaError(
        ErrorCode.UNKNOWN_LEADER_EPOCH, f"leader epoch {current_leader_epoch} is not known here, {log.epoch} is"
    )


def endpoints_of(services: Services, listener: str, leaders: Iterable[int]) -> list[NodeEndpoint]:
    """Where clients of `listener` find these leaders (KIP-951)."""
    found = []
    for node_id in dict.fromkeys(leaders):
        broker = services.controller.state.brokers.get(node_id)
        if broker is None:
            continue
        for name, _, host, port in broker.listeners:
            if name == listener:
                found.append(NodeEndpoint(node_id, host, port, broker.rack))
    return found
