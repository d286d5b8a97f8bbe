"""AlterPartitionReassignments v0 and v1, ListPartitionReassignments v0, ElectLeaders v0 to v2.

A partition has one replica, its leader. So a reassignment is a move of leadership to the first broker of the list that
is alive; the answer comes when the wish is durable, the move follows, and ListPartitionReassignments shows it until it
is done. A null list withdraws the wish. An assigned broker becomes the preferred leader once it leads.
v1 of AlterPartitionReassignments: `allow_replication_factor_change` false refuses lists of several brokers.
ElectLeaders moves leadership back to the preferred leader: where the partition was created, or was last assigned to. It
answers when the moves are done. Unclean elections do not exist: a partition without a leader waits for its recovery.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from broker.handlers.common import patience_ms
from broker.services import RequestContext, Services
from controller.commands import CancelMoves, MovesAnswer, RequestMoves
from controller.facts import NO_NODE, Fact, MoveTarget
from protocol import messages as m
from protocol.errors import ErrorCode, KafkaError

PREFERRED, UNCLEAN = 0, 1


class Result(NamedTuple):
    """What became of one partition; code 0 is success."""

    code: int
    message: str | None = None


DONE = Result(0)


def _find(services: Services, topic: str, partition: int) -> int:
    """The log of a partition; UNKNOWN_TOPIC_OR_PARTITION."""
    known = services.controller.state.topics.get(topic)
    if known is None:
        raise KafkaError(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, f"Unable to find a topic named {topic}.")
    if not 0 <= partition < len(known.log_ids):
        raise KafkaError(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, f"Unable to find partition {topic}:{partition}.")
    return known.log_ids[partition]


def _first_alive(services: Services, nodes: Sequence[int], may_be_several: bool) -> int:
    """Who is to lead; INVALID_REPLICA_ASSIGNMENT, INVALID_REPLICATION_FACTOR."""
    brokers = services.controller.state.brokers
    unknown = [node_id for node_id in nodes if node_id not in brokers]
    if not nodes:
        why = "The manual partition assignment includes an empty replica list."
    elif len(set(nodes)) != len(nodes):
        why = f"The manual partition assignment includes a broker more than once: {list(nodes)}."
    elif unknown:
        why = f"The manual partition assignment includes broker {unknown[0]}, but no such broker is registered."
    elif not may_be_several and len(nodes) > 1:
        raise KafkaError(
            ErrorCode.INVALID_REPLICATION_FACTOR, f"The replication factor is changed from 1 to {len(nodes)}"
        )
    else:
        alive = next((node_id for node_id in nodes if brokers[node_id].alive), None)
        if alive is not None:
            return alive
        why = f"None of the brokers {list(nodes)} is alive."
    raise KafkaError(ErrorCode.INVALID_REPLICA_ASSIGNMENT, why)


def _note(results: dict[int, Result], log_ids: Iterable[int], answer: MovesAnswer | KafkaError) -> None:
    """What the controller said of these logs."""
    if isinstance(answer, KafkaError):
        results.update(dict.fromkeys(log_ids, Result(answer.code, answer.message)))
        return
    results.update(dict.fromkeys(log_ids, DONE))
    results.update({one.log_id: Result(one.error_code, one.error_message) for one in answer.refused})


async def alter_partition_reassignments(
    request: m.AlterPartitionReassignmentsRequest, context: RequestContext
) -> m.AlterPartitionReassignmentsResponse:
    """Wish for moves, or withdraw wishes."""
    services = context.services
    may_be_several = request.allow_replication_factor_change
    targets: dict[int, int] = {}
    withdrawn: list[int] = []
    found: dict[tuple[str, int], int | Result] = {}
    for topic in request.topics:
        for part in topic.partitions:
            key = topic.name, part.partition_index
            try:
                log_id = found[key] = _find(services, *key)
                if part.replicas is None:
                    withdrawn.append(log_id)
                else:
                    targets[log_id] = _first_alive(services, part.replicas, may_be_several)
            except KafkaError as error:
                found[key] = Result(error.code, error.message)
    results: dict[int, Result] = {}
    wait_ms = patience_ms(request.timeout_ms)
    for command, log_ids in (
        (RequestMoves(services.token(16), tuple(MoveTarget(*item) for item in targets.items()), True), list(targets)),
        (CancelMoves(services.token(16), tuple(withdrawn)), withdrawn),
    ):
        if log_ids:
            try:
                _note(results, log_ids, await services.controller.ask(command, wait_ms))
            except KafkaError as error:
                _note(results, log_ids, error)
    response = m.AlterPartitionReassignmentsResponse
    return response(
        error_message=None,
        allow_replication_factor_change=may_be_several,
        responses=[
            response.ReassignableTopicResponse(
                name=topic.name,
                partitions=[
                    response.ReassignablePartitionResponse(
                        partition_index=part.partition_index, error_code=result.code, error_message=result.message
                    )
                    for part in topic.partitions
                    for known in [found[topic.name, part.partition_index]]
                    for result in [known if isinstance(known, Result) else results[known]]
                ],
            )
            for topic in request.topics
        ],
    )


def list_partition_reassignments(
    request: m.ListPartitionReassignmentsRequest, context: RequestContext
) -> m.ListPartitionReassignmentsResponse:
    """The moves that are wanted and not done, of all partitions or of those asked for."""
    state = context.services.controller.state
    asked = None
    if request.topics is not None:
        asked = {(topic.name, index) for topic in request.topics for index in topic.partition_indexes}
    ongoing: dict[str, list[m.ListPartitionReassignmentsResponse.OngoingPartitionReassignment]] = {}
    for log_id, node_id in state.moves.items():
        log = state.logs[log_id]
        if log.leader_node == node_id or (asked is not None and (log.topic, log.partition) not in asked):
            continue
        leaving = [] if log.leader_node == NO_NODE else [log.leader_node]
        ongoing.setdefault(log.topic, []).append(
            m.ListPartitionReassignmentsResponse.OngoingPartitionReassignment(
                partition_index=log.partition,
                replicas=[node_id, *leaving],
                adding_replicas=[node_id],
                removing_replicas=leaving,
            )
        )
    return m.ListPartitionReassignmentsResponse(
        error_message=None,
        topics=[
            m.ListPartitionReassignmentsResponse.OngoingTopicReassignment(name=name, partitions=parts)
            for name, parts in ongoing.items()
        ],
    )


async def elect_leaders(request: m.ElectLeadersRequest, context: RequestContext) -> m.ElectLeadersResponse:
    """Bring partitions back to their preferred leaders."""
    services = context.services
    state = services.controller.state
    if request.topic_partitions is None:
        keys = [(name, index) for name, topic in sorted(state.topics.items()) for index in range(len(topic.log_ids))]
    else:
        keys = [(topic.topic, index) for topic in request.topic_partitions for index in topic.partitions]
    if request.election_type not in (PREFERRED, UNCLEAN):
        unknown = Result(ErrorCode.INVALID_REQUEST, f"Unknown election type {request.election_type}.")
        return _elected(dict.fromkeys(keys, unknown), unknown.code)
    results: dict[tuple[str, int], Result] = {}
    wanted: dict[int, tuple[str, int]] = {}
    for key in keys:
        try:
            log_id = _find(services, *key)
            _check_election(services, log_id, request.election_type)
            wanted[log_id] = key
        except KafkaError as error:
            results[key] = Result(error.code, error.message)
    outcomes = await _bring_home(services, list(wanted), patience_ms(request.timeout_ms))
    results.update({key: outcomes[log_id] for log_id, key in wanted.items()})
    if request.topic_partitions is None:  # as in Kafka: who asks for all wants to hear of those that change
        results = {key: one for key, one in results.items() if one.code != ErrorCode.ELECTION_NOT_NEEDED}
    return _elected(results)


def _elected(results: dict[tuple[str, int], Result], error_code: int = 0) -> m.ElectLeadersResponse:
    by_topic: dict[str, list[m.ElectLeadersResponse.PartitionResult]] = {}
    for (topic_name, index), one in results.items():
        by_topic.setdefault(topic_name, []).append(
            m.ElectLeadersResponse.PartitionResult(partition_id=index, error_code=one.code, error_message=one.message)
        )
    return m.ElectLeadersResponse(
        error_code=error_code,
        replica_election_results=[
            m.ElectLeadersResponse.ReplicaElectionResult(topic=name, partition_result=parts)
            for name, parts in by_topic.items()
        ],
    )


def _check_election(services: Services, log_id: int, election_type: int) -> None:
    """KafkaError if there is nothing to elect, or nobody."""
    state = services.controller.state
    log = state.logs[log_id]
    if election_type == UNCLEAN:
        if log.leader_node != NO_NODE:
            raise KafkaError(ErrorCode.ELECTION_NOT_NEEDED, "The partition has a leader.")
        raise KafkaError(
            ErrorCode.ELIGIBLE_LEADERS_NOT_AVAILABLE,
            "The partition opens when its write-ahead log was recovered (`tidelog wal list`).",
        )
    preferred = state.preferred_leader(log_id)
    if log.leader_node == preferred != NO_NODE:
        raise KafkaError(ErrorCode.ELECTION_NOT_NEEDED, "Leader election not needed for topic partition.")
    broker = state.brokers.get(preferred)
    if log.leader_node == NO_NODE or broker is None or not broker.alive:
        raise KafkaError(ErrorCode.PREFERRED_LEADER_NOT_AVAILABLE, "The preferred leader was not available.")


async def _bring_home(services: Services, log_ids: list[int], wait_ms: int) -> dict[int, Result]:
    """Move logs to their preferred leaders; what became of each after at most `wait_ms`."""
    controller = services.controller
    results: dict[int, Result] = {}
    if not log_ids:
        return results
    targets = {log_id: controller.state.preferred_leader(log_id) for log_id in log_ids}
    changed = asyncio.Event()

    def notice(_: Sequence[Fact]) -> None:
        changed.set()

    stop = controller.subscribe(notice)
    try:
        async with asyncio.timeout(wait_ms / 1000):
            moves = tuple(MoveTarget(*item) for item in targets.items())
            answer = await controller.ask(RequestMoves(services.token(16), moves), wait_ms)
            for one in answer.refused:
                results[one.log_id] = Result(ErrorCode.PREFERRED_LEADER_NOT_AVAILABLE, one.error_message)
            while True:
                changed.clear()
                results.update(_settled(services, targets))
                if len(results) == len(targets):
                    return results
                await changed.wait()
    except TimeoutError:
        late = Result(ErrorCode.REQUEST_TIMED_OUT, "The move is under way and not done yet.")
    except KafkaError as error:
        late = Result(error.code, error.message)
    finally:
        stop()
    return {log_id: results.get(log_id, late) for log_id in log_ids}


def _settled(services: Services, targets: dict[int, int]) -> dict[int, Result]:
    """Logs of which nothing more is to come."""
    state = services.controller.state
    found = {}
    for log_id, node_id in targets.items():
        log = state.logs.get(log_id)
        if log is None:
            found[log_id] = Result(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, "The topic was deleted.")
        elif log.leader_node == node_id:
            found[log_id] = DONE
        elif state.moves.get(log_id) != node_id:
            found[log_id] = Result(ErrorCode.PREFERRED_LEADER_NOT_AVAILABLE, "The move was withdrawn.")
    return found
