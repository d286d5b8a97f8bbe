"""AlterConfigs and IncrementalAlterConfigs: one result per resource; what may stand is decided by `ConfigRules`."""

from collections import Counter

from controller.commands import AlterConfigs, ConfigAlteration, ConfigChange, ConfigResult, ConfigResults
from controller.configs import APPEND, BROKER, DELETE, SET, SUBTRACT, TOPIC
from controller.decide.context import Context, Decision
from controller.decide.moves import moves_of_kind
from controller.facts import ConfigsChanged, Fact, MovesRequested, MoveTarget
from controller.state import ClusterState
from controller.topics import topic_name_problem
from protocol.errors import ErrorCode, KafkaError


def alter_configs(state: ClusterState, command: AlterConfigs, context: Context) -> Decision:
    """The overrides of each resource as they would be are validated as a whole; only differences become facts."""
    facts: list[Fact] = []
    results = []
    named = Counter((wanted.resource_type, wanted.resource_name) for wanted in command.resources)
    for wanted in command.resources:
        resource = (wanted.resource_type, wanted.resource_name)
        try:
            if named[resource] > 1:
                raise KafkaError(ErrorCode.INVALID_REQUEST, "Each resource must appear at most once.")
            changes = _changes(state, wanted, context)
        except KafkaError as error:
            results.append(ConfigResult(*resource, int(error.code), error.message))
            continue
        if changes:
            facts.append(ConfigsChanged(*resource, changes))
            moves = _moves(state, wanted, changes, context)
            if moves:
                facts.append(MovesRequested(tuple(moves)))
        results.append(ConfigResult(*resource, 0, None))
    return Decision(() if command.validate_only else tuple(facts), ConfigResults(tuple(results)))


def _changes(state: ClusterState, wanted: ConfigAlteration, context: Context) -> tuple[tuple[str, str | None], ...]:
    keys = [change.key for change in wanted.changes]
    if len(set(keys)) != len(keys):
        raise KafkaError(ErrorCode.INVALID_REQUEST, "Error due to duplicate config keys")
    nulls = [change.key for change in wanted.changes if change.value is None and change.operation != DELETE]
    if nulls:
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"Null value not supported for : {','.join(nulls)}")
    before = _overrides(state, wanted)
    after = {} if wanted.replace else dict(before)
    for change in wanted.changes:
        _change(after, wanted.resource_type, change, context)
    changed: list[tuple[str, str | None]] = [(key, None) for key in before if key not in after]
    changed += [(key, value) for key, value in after.items() if before.get(key) != value]
    context.rules.validate(wanted.resource_type, wanted.resource_name, after, [key for key, _ in changed])
    if (
        wanted.resource_type == TOPIC and wanted.resource_name not in state.topics
    ):  # in Kafka too the values count first
        raise KafkaError(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, f"The topic '{wanted.resource_name}' does not exist.")
    return tuple(sorted(changed))


def _moves(
    state: ClusterState, wanted: ConfigAlteration, changes: tuple[tuple[str, str | None], ...], context: Context
) -> list[MoveTarget]:
    """Another WAL kind is a move, to the same broker if it can be."""
    topic = state.topics.get(wanted.resource_name) if wanted.resource_type == TOPIC else None
    if topic is None:
        return []
    after = {key: value for key, value in {**topic.configs, **dict(changes)}.items() if value is not None}
    kind = context.kind_of(state, after, topic.internal)
    return moves_of_kind(state, topic, kind, context) if kind != context.wal_kind(state, topic) else []


def _overrides(state: ClusterState, wanted: ConfigAlteration) -> dict[str, str]:
    if wanted.resource_type != TOPIC:
        return state.configs.get((wanted.resource_type, wanted.resource_name), {})
    topic = state.topics.get(wanted.resource_name)
    if topic is not None:
        return topic.configs
    if not wanted.resource_name:
        raise KafkaError(ErrorCode.INVALID_REQUEST, "Default topic resources are not allowed.")
    problem = topic_name_problem(wanted.resource_name)
    if problem is not None:
        raise KafkaError(ErrorCode.INVALID_TOPIC_EXCEPTION, problem)
    return {}


def _change(overrides: dict[str, str], resource_type: int, change: ConfigChange, context: Context) -> None:
    if change.operation == DELETE:
        overrides.pop(change.key, None)
        return
    assert change.value is not None
    if change.operation == SET:
        overrides[change.key] = change.value
        return
    if change.operation not in (APPEND, SUBTRACT):
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"Unknown operations type {change.operation}")
    default = context.rules.list_default(resource_type, change.key)
    if default is None:
        verb = "APPEND" if change.operation == APPEND else "SUBTRACT"
        why = f"Can't {verb} to key {change.key} because its type is not LIST."
        if resource_type == BROKER:
            why = f"Config value {verb.lower()} is not allowed for config key: {change.key}"
        raise KafkaError(ErrorCode.INVALID_CONFIG, why)
    items = _items(overrides.get(change.key, default))
    named = _items(change.value)
    if change.operation == APPEND:
        has = set(items)
        items += [item for item in dict.fromkeys(named) if item not in has]
    else:
        gone = set(named)
        items = [item for item in items if item not in gone]
    overrides[change.key] = ",".join(items)


def _items(value: str) -> list[str]:
    return [item for part in value.split(",") if (item := part.strip())]
