"""CreateTopics v2 to v7, DeleteTopics v1 to v6, CreatePartitions v0 to v3.

The controller decides; one result per topic asked for, in the order asked. A name that stands twice in one request is
INVALID_REQUEST, as in Kafka. With a quota of controller mutations (KIP-599) topics beyond it are refused with
THROTTLING_QUOTA_EXCEEDED, in CreateTopics from v6 on, DeleteTopics v5, CreatePartitions v3; older versions are only
throttled. Answers come once the facts are durable and applied here, so that what was created can be
used at once, or after the request's time-out (5 s at least, 20 s at most): then REQUEST_TIMED_OUT. Manual assignments
count as numbers of partitions and replicas: leaders are placed by the controller.
"""

from collections import Counter
from collections.abc import Iterable

from broker.config_types import ConfigValue
from broker.handlers.common import patience_ms
from broker.services import RequestContext
from controller.commands import (
    CreatePartitions,
    CreateTopics,
    DeleteTopics,
    MorePartitions,
    NewTopic,
    TopicRef,
    TopicResult,
)
from protocol import messages as m
from protocol.errors import ErrorCode, KafkaError

TWICE = "Duplicate topic in the request."
NEITHER = "Neither topic name nor id were given."
BOTH = "Topic name and id may not both be given."
NO_ID = bytes(16)


def twice(names: Iterable[str]) -> set[str]:
    """Names that stand more than once."""
    return {name for name, count in Counter(names).items() if count > 1}


def _refused(names: Iterable[str | None], error: KafkaError) -> list[TopicResult]:
    return [TopicResult(name, error.code, error.message) for name in names]


async def create_topics(request: m.CreateTopicsRequest, context: RequestContext) -> m.CreateTopicsResponse:
    """Create topics, or only say whether they could be."""
    services = context.services
    settings = services.settings
    repeated = twice(topic.name for topic in request.topics)
    asked = [topic for topic in request.topics if topic.name not in repeated]
    results = [TopicResult(name, ErrorCode.INVALID_REQUEST, TWICE) for name in sorted(repeated)]
    counts = {topic.name: len(topic.assignments) or max(topic.num_partitions, 1) for topic in asked}
    exceeded, throttle_ms = _count(context, counts, strict_from=6, counted=not request.validate_only)
    results += exceeded
    refused = {result.name for result in exceeded}
    topics = tuple(
        NewTopic(
            topic.name,
            settings.num_partitions if topic.num_partitions == -1 and not topic.assignments else topic.num_partitions,
            topic.replication_factor,
            tuple((config.name, config.value) for config in topic.configs),
            tuple((assignment.partition_index, tuple(assignment.broker_ids)) for assignment in topic.assignments),
        )
        for topic in asked
        if topic.name not in refused
    )
    if topics:
        try:
            results += (
                await services.controller.ask(
                    CreateTopics(services.token(16), topics, request.validate_only), patience_ms(request.timeout_ms)
                )
            ).results
        except KafkaError as error:
            results += _refused((topic.name for topic in topics), error)
    configs = {topic.name: {c.name: c.value for c in topic.configs if c.value is not None} for topic in asked}
    return m.CreateTopicsResponse(
        throttle_time_ms=throttle_ms, topics=[_created(context, result, configs) for result in results]
    )


def _count(
    context: RequestContext, counts: dict[str, int], *, strict_from: int, counted: bool = True
) -> tuple[list[TopicResult], int]:
    """Topics beyond the quota of mutations, and for how long the client is throttled. `counts`: partitions by topic."""
    mutations = context.services.quotas.mutations(context.principal, context.client_id) if counted else None
    if mutations is None:
        return [], 0
    exceeded = []
    for name, partitions in counts.items():
        try:
            mutations.take(partitions, strict=context.api_version >= strict_from)
        except KafkaError as error:
            exceeded.append(TopicResult(name, error.code, error.message))
    throttle_ms = mutations.throttle_ms()
    if throttle_ms:
        context.services.quotas.mute(context.connection, throttle_ms)
    return exceeded, throttle_ms


def _created(
    context: RequestContext, result: TopicResult, configs: dict[str, dict[str, str]]
) -> m.CreateTopicsResponse.CreatableTopicResult:
    name = result.name or ""
    described: list[ConfigValue] = []
    if not result.error_code:
        described = context.services.topic_defaults.describe(configs.get(name, {}))
    return m.CreateTopicsResponse.CreatableTopicResult(
        name=name,
        topic_id=result.topic_id,
        error_code=result.error_code,
        error_message=result.error_message,
        num_partitions=result.partitions,
        replication_factor=result.replication_factor,
        configs=[
            m.CreateTopicsResponse.CreatableTopicConfigs(
                name=config.name, value=config.value, read_only=config.read_only, config_source=config.source
            )
            for config in described
        ],
    )


async def delete_topics(request: m.DeleteTopicsRequest, context: RequestContext) -> m.DeleteTopicsResponse:
    """Delete topics by name, from v6 also by id."""
    services = context.services
    refs = [TopicRef(topic.name, topic.topic_id) for topic in request.topics] or [
        TopicRef(name) for name in request.topic_names
    ]
    results: list[TopicResult] = []
    throttle_ms = 0
    if not services.settings.delete_topic_enable:
        code = ErrorCode.INVALID_REQUEST if context.api_version < 3 else ErrorCode.TOPIC_DELETION_DISABLED
        results = [TopicResult(ref.name, code, "Topic deletion is disabled.", ref.topic_id) for ref in refs]
    elif refs:
        asked, results = _check_refs(refs)
        asked, exceeded, throttle_ms = _deletable(context, asked)
        results += exceeded
        command = DeleteTopics(services.token(16), asked)
        try:
            if asked:
                results += (await services.controller.ask(command, patience_ms(request.timeout_ms))).results
        except KafkaError as error:
            results += [TopicResult(ref.name, error.code, error.message, ref.topic_id) for ref in asked]
    return m.DeleteTopicsResponse(
        throttle_time_ms=throttle_ms,
        responses=[
            m.DeleteTopicsResponse.DeletableTopicResult(
                name=result.name,
                topic_id=result.topic_id,
                error_code=result.error_code,
                error_message=result.error_message,
            )
            for result in results
        ],
    )


def _check_refs(refs: Iterable[TopicRef]) -> tuple[tuple[TopicRef, ...], list[TopicResult]]:
    """What may be asked, and the refusals of what names no topic, two at once, or one twice (one refusal for all)."""
    results = []
    counts: Counter[TopicRef] = Counter()
    for ref in refs:
        if (ref.name is None) == (ref.topic_id == NO_ID):
            message = NEITHER if ref.name is None else BOTH
            results.append(TopicResult(ref.name, ErrorCode.INVALID_REQUEST, message, ref.topic_id))
        else:
            counts[ref] += 1
    results += [
        TopicResult(ref.name, ErrorCode.INVALID_REQUEST, TWICE, ref.topic_id)
        for ref, count in counts.items()
        if count > 1
    ]
    return tuple(ref for ref, count in counts.items() if count == 1), results


def _deletable(
    context: RequestContext, refs: tuple[TopicRef, ...]
) -> tuple[tuple[TopicRef, ...], list[TopicResult], int]:
    """What may be deleted, what is beyond the quota of mutations, and for how long the client is throttled."""
    state = context.services.controller.state
    found = {}
    for ref in refs:
        topic = state.topics.get(ref.name) if ref.name is not None else state.topic_by_id.get(ref.topic_id)
        if topic is not None:
            found[topic.name] = ref, len(topic.log_ids)
    exceeded, throttle_ms = _count(context, {name: count for name, (_, count) in found.items()}, strict_from=5)
    refused = [found[result.name or ""][0] for result in exceeded]
    results = [result._replace(name=ref.name, topic_id=ref.topic_id) for result, ref in zip(exceeded, refused)]
    return tuple(ref for ref in refs if ref not in refused), results, throttle_ms


async def create_partitions(request: m.CreatePartitionsRequest, context: RequestContext) -> m.CreatePartitionsResponse:
    """Grow topics."""
    services = context.services
    repeated = twice(topic.name for topic in request.topics)
    results = [TopicResult(name, ErrorCode.INVALID_REQUEST, TWICE) for name in sorted(repeated)]
    known = services.controller.state.topics
    counts = {
        topic.name: max(topic.count - len(known[topic.name].log_ids), 0)
        for topic in request.topics
        if topic.name in known and topic.name not in repeated
    }
    exceeded, throttle_ms = _count(context, counts, strict_from=3, counted=not request.validate_only)
    results += exceeded
    refused = {*repeated, *(result.name for result in exceeded)}
    topics = tuple(
        MorePartitions(
            topic.name,
            topic.count,
            None if topic.assignments is None else tuple(tuple(new.broker_ids) for new in topic.assignments),
        )
        for topic in request.topics
        if topic.name not in refused
    )
    if topics:
        try:
            results += (
                await services.controller.ask(
                    CreatePartitions(services.token(16), topics, request.validate_only),
                    patience_ms(request.timeout_ms),
                )
            ).results
        except KafkaError as error:
            results += _refused((topic.name for topic in topics), error)
    return m.CreatePartitionsResponse(
        throttle_time_ms=throttle_ms,
        results=[
            m.CreatePartitionsResponse.CreatePartitionsTopicResult(
                name=result.name or "", error_code=result.error_code, error_message=result.error_message
            )
            for result in results
        ],
    )
