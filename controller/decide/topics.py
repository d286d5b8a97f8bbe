"""Create, grow and delete topics. Refusals are per topic, with the codes and words of Kafka's controller.

Any replication factor of at least 1, or -1, is accepted and stored: durability is the WAL's. A manual assignment may
name known brokers only; its first live broker leads. Internal topics are compacted unless the request says otherwise.
"""

import base64
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from controller import facts as f
from controller.commands import (
    CreateInternalTopic,
    CreatePartitions,
    CreateTopics,
    DeleteTopics,
    MorePartitions,
    NewTopic,
    TopicRef,
    TopicResult,
    TopicResults,
)
from controller.configs import TOPIC
from controller.decide.context import Context, Decision
from controller.decide.housekeeping import is_free
from controller.placement import Candidate, Place, Wanted, place
from controller.state import ClusterState
from controller.topics import Topic, collision_key, topic_name_problem
from protocol.errors import ErrorCode, KafkaError

INTERNAL_TOPICS = frozenset({"__consumer_offsets", "__transaction_state", "__share_group_state"})


class _Made(NamedTuple):
    facts: list[f.Fact]
    result: TopicResult


def check_name(name: str) -> None:
    """INVALID_TOPIC_EXCEPTION unless Kafka allows the name."""
    problem = topic_name_problem(name)
    if problem is not None:
        raise KafkaError(ErrorCode.INVALID_TOPIC_EXCEPTION, problem)


def _check_new_name(state: ClusterState, name: str, context: Context) -> None:
    check_name(name)
    if name == "__cluster_metadata":
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"Creation of internal topic {name} is prohibited.")
    if name in state.topics:
        raise KafkaError(ErrorCode.TOPIC_ALREADY_EXISTS, f"Topic '{name}' already exists.")
    deleted = state.topic_table.deleted.get(name)
    if deleted is not None and not is_free(state, deleted, context):
        raise KafkaError(ErrorCode.TOPIC_ALREADY_EXISTS, f"Topic '{name}' is marked for deletion.")
    other = state.topic_table.by_key.get(collision_key(name))
    if other is not None:
        raise KafkaError(ErrorCode.INVALID_TOPIC_EXCEPTION, f"Topic '{name}' collides with existing topic: {other}")


def _new_topic_id(state: ClusterState, token: Callable[[int], bytes]) -> bytes:
    # A random UUID, version 4. Kafka avoids ids whose text begins with a dash, and so do we.
    while True:
        raw = bytearray(token(16))
        raw[6] = raw[6] & 0x0F | 0x40
        raw[8] = raw[8] & 0x3F | 0x80
        topic_id = bytes(raw)
        if topic_id not in state.topic_by_id and not base64.urlsafe_b64encode(topic_id).startswith(b"-"):
            return topic_id


def _each(names: Sequence[str], one: Callable[[int], _Made]) -> tuple[list[f.Fact], tuple[TopicResult, ...]]:
    """Decides item by item; a refusal, or a name that stands twice, becomes the item's result."""
    facts: list[f.Fact] = []
    results = []
    for index, name in enumerate(names):
        try:
            if names.count(name) > 1:
                raise KafkaError(ErrorCode.INVALID_REQUEST, "Duplicate topic name.")
            made = one(index)
        except KafkaError as error:
            results.append(TopicResult(name, int(error.code), error.message))
        else:
            facts += made.facts
            results.append(made.result)
    return facts, tuple(results)


def create_topics(state: ClusterState, command: CreateTopics, context: Context) -> Decision:
    """One result per topic; the facts of those that succeed."""
    budget = [context.limits.partitions_per_request]
    keys: set[str] = set()

    def one(index: int) -> _Made:
        new = command.topics[index]
        _check_new_name(state, new.name, context)
        if collision_key(new.name) in keys:
            raise KafkaError(ErrorCode.INVALID_TOPIC_EXCEPTION, f"Topic '{new.name}' collides with one of this request")
        made = _create(state, new, new.name in INTERNAL_TOPICS, context, budget, command.validate_only)
        keys.add(collision_key(new.name))
        return made

    facts, results = _each([topic.name for topic in command.topics], one)
    return Decision(() if command.validate_only else tuple(facts), TopicResults(results))


def create_internal_topic(state: ClusterState, command: CreateInternalTopic, context: Context) -> Decision:
    """Created once; whoever asks later is told what is there."""
    topic = state.topics.get(command.name)
    if topic is not None:
        found = TopicResult(topic.name, 0, None, topic.topic_id, len(topic.log_ids), topic.replication_factor)
        return Decision((), TopicResults((found,)))
    new = NewTopic(command.name, command.partitions, command.replication_factor, command.configs)

    def one(_: int) -> _Made:
        _check_new_name(state, new.name, context)
        return _create(state, new, True, context, [context.limits.partitions_per_request], False)

    facts, results = _each([new.name], one)
    return Decision(tuple(facts), TopicResults(results))


def _create(
    state: ClusterState, new: NewTopic, internal: bool, context: Context, budget: list[int], validate_only: bool
) -> _Made:
    configs = _new_configs(new, internal, context)
    partitions, assigned = _shape(state, new, context)
    _spend(budget, partitions)
    replication = new.replication_factor
    if replication == -1:
        replication = len(new.assignments[0][1]) if new.assignments else context.rules.default_replication()
    result = TopicResult(new.name, 0, None, bytes(16), partitions, replication)
    if validate_only:
        return _Made([], result)
    kind = context.kind_of(state, configs, internal)
    places = _places(state, context, Wanted(new.name, kind), partitions, assigned)
    log_ids = context.take_log_ids(state, partitions)
    topic_id = _new_topic_id(state, context.token)
    created = f.TopicCreated(new.name, topic_id, internal, log_ids, tuple(configs.items()), replication)
    return _Made([created, *_first_leaders(log_ids, places)], result._replace(topic_id=topic_id))


def _first_leaders(log_ids: Sequence[int], places: Sequence[Place]) -> list[f.LeaderNamed]:
    return [
        f.LeaderNamed(log_id, chosen.node_id, chosen.incarnation, 0, chosen.wal_id)
        for log_id, chosen in zip(log_ids, places)
    ]


def _new_configs(new: NewTopic, internal: bool, context: Context) -> dict[str, str]:
    configs = {}
    for key, value in new.configs:
        if value is None:
            raise KafkaError(ErrorCode.INVALID_CONFIG, f"Null value not supported for topic configs: {key}")
        configs[key] = value
    if internal:
        configs.setdefault("cleanup.policy", "compact")
    context.rules.validate(TOPIC, new.name, configs)
    return configs


def _shape(state: ClusterState, new: NewTopic, context: Context) -> tuple[int, list[tuple[int, ...]] | None]:
    """Number of partitions, and the assigned node ids per partition if they were given."""
    if new.assignments:
        for what, value in (("replication factor", new.replication_factor), ("numPartitions", new.partitions)):
            if value != -1:
                raise KafkaError(
                    ErrorCode.INVALID_REQUEST,
                    f"A manual partition assignment was specified, but {what} was not set to -1.",
                )
        by_partition = dict(new.assignments)
        if len(by_partition) != len(new.assignments):
            counts = Counter(index for index, _ in new.assignments)
            raise KafkaError(
                ErrorCode.INVALID_REPLICA_ASSIGNMENT,
                f"Found multiple manual partition assignments for partition {counts.most_common(1)[0][0]}",
            )
        if sorted(index for index, _ in new.assignments) != list(range(len(new.assignments))):
            raise KafkaError(
                ErrorCode.INVALID_REPLICA_ASSIGNMENT, "partitions should be a consecutive 0-based integer sequence"
            )
        assigned = [by_partition[index] for index in range(len(by_partition))]
        _check_assignment(state, assigned)
        return len(assigned), assigned
    if new.replication_factor < 1 and new.replication_factor != -1:
        raise KafkaError(
            ErrorCode.INVALID_REPLICATION_FACTOR,
            "Replication factor must be larger than 0, or -1 to use the default value.",
        )
    if new.partitions < 1 and new.partitions != -1:
        raise KafkaError(ErrorCode.INVALID_PARTITIONS, "Number of partitions was set to an invalid non-positive value.")
    return (context.rules.default_partitions() if new.partitions == -1 else new.partitions), None


def _check_assignment(state: ClusterState, assigned: Sequence[tuple[int, ...]]) -> None:
    width = len(assigned[0]) if assigned else 0
    for index, nodes in enumerate(assigned):
        if not nodes:
            why = "The manual partition assignment includes an empty replica list."
        elif len(set(nodes)) != len(nodes):
            why = f"The manual partition assignment includes the broker {nodes[0]} more than once."
        elif len(nodes) != width:
            why = f"Partition {index} has {len(nodes)} replicas, the others have {width}."
        else:
            unknown = [node for node in nodes if node not in state.brokers]
            if not unknown:
                continue
            why = f"The manual partition assignment includes broker {unknown[0]}, but no such broker is registered."
        raise KafkaError(ErrorCode.INVALID_REPLICA_ASSIGNMENT, why)


def _spend(budget: list[int], partitions: int) -> None:
    if partitions > budget[0]:
        raise KafkaError(ErrorCode.POLICY_VIOLATION, "Excessively large number of partitions per request.")
    budget[0] -= partitions


def _places(
    state: ClusterState, context: Context, wanted: Wanted, count: int, assigned: Sequence[tuple[int, ...]] | None
) -> list[Place]:
    candidates = context.candidates(state)
    if not candidates:
        raise KafkaError(
            ErrorCode.INVALID_REPLICATION_FACTOR, "Unable to place the partitions: no broker has a live session."
        )
    able = [candidate for candidate in candidates if wanted.kind in candidate.wals]
    if not able:
        raise KafkaError(ErrorCode.INVALID_CONFIG, f"No live broker has a WAL of kind '{wanted.kind}'.")
    if assigned is None:
        places = context.places(state, able, [wanted] * count)
    else:
        places = [_assigned(able, wanted, nodes) for nodes in assigned]
        context.count_loads(able)
    return [chosen for chosen in places if chosen is not None]


def _assigned(able: list[Candidate], wanted: Wanted, nodes: tuple[int, ...]) -> Place | None:
    by_node = {candidate.node_id: candidate for candidate in able}
    named = next((by_node[node] for node in nodes if node in by_node), None)
    return place(able if named is None else [named], [wanted])[0]


def create_partitions(state: ClusterState, command: CreatePartitions, context: Context) -> Decision:
    """One result per topic; the facts of those that succeed."""
    budget = [context.limits.partitions_per_request]

    def one(index: int) -> _Made:
        return _grow(state, command.topics[index], context, budget, command.validate_only)

    facts, results = _each([topic.name for topic in command.topics], one)
    return Decision(() if command.validate_only else tuple(facts), TopicResults(results))


def _grow(state: ClusterState, more: MorePartitions, context: Context, budget: list[int], validate_only: bool) -> _Made:
    topic = state.topics.get(more.name)
    if topic is None:
        raise KafkaError(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, f"The topic '{more.name}' does not exist.")
    present = len(topic.log_ids)
    if more.total == present:
        raise KafkaError(ErrorCode.INVALID_PARTITIONS, f"Topic already has {present} partition(s).")
    if more.total < present:
        raise KafkaError(
            ErrorCode.INVALID_PARTITIONS,
            f"The topic {more.name} currently has {present} partition(s); {more.total} would not be an increase.",
        )
    added = more.total - present
    if more.assignments is not None:
        if len(more.assignments) != added:
            raise KafkaError(
                ErrorCode.INVALID_REPLICA_ASSIGNMENT,
                f"Attempted to add {added} additional partition(s), but only {len(more.assignments)} assignment(s) "
                "were specified.",
            )
        _check_assignment(state, more.assignments)
    _spend(budget, added)
    result = TopicResult(more.name, 0, None, topic.topic_id, more.total, topic.replication_factor)
    if validate_only:
        return _Made([], result)
    places = _places(state, context, Wanted(topic.name, context.wal_kind(state, topic)), added, more.assignments)
    log_ids = context.take_log_ids(state, added)
    return _Made([f.PartitionsAdded(topic.topic_id, log_ids), *_first_leaders(log_ids, places)], result)


def delete_topics(state: ClusterState, command: DeleteTopics, context: Context) -> Decision:
    """One result per topic; their objects are doomed, their names come free later."""
    facts: list[f.Fact] = []
    results = []
    named = Counter(topic.topic_id for topic in (find(state, ref) for ref in command.topics) if topic is not None)
    twice = {topic_id for topic_id, count in named.items() if count > 1}  # once by name and once by id
    for topic_id in twice:
        message = "The provided topic name maps to an ID that was already supplied."
        results.append(TopicResult(state.topic_by_id[topic_id].name, ErrorCode.INVALID_REQUEST, message, topic_id))
    for ref in command.topics:
        topic = find(state, ref)
        if topic is not None and topic.topic_id in twice:
            continue
        if topic is None:
            code = ErrorCode.UNKNOWN_TOPIC_ID if ref.name is None else ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
            results.append(TopicResult(ref.name, int(code), "This server does not host this topic.", ref.topic_id))
            continue
        facts.append(f.TopicDeleted(topic.topic_id))
        count = len(topic.log_ids)
        results.append(TopicResult(topic.name, 0, None, topic.topic_id, count, topic.replication_factor))
    return Decision(tuple(facts), TopicResults(tuple(results)))


def find(state: ClusterState, ref: TopicRef) -> Topic | None:
    """The topic by name, or by id when there is no name."""
    return state.topics.get(ref.name) if ref.name is not None else state.topic_by_id.get(ref.topic_id)
