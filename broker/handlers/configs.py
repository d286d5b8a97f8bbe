"""DescribeConfigs v1 to v4, AlterConfigs v0 to v2, IncrementalAlterConfigs v0 to v1.

Resources are topics (2) and this broker (4). Topic configs are decided by the controller, one result per resource.
Broker configs are shown and read-only: they are set in the process's settings. Not implemented: dynamic broker configs,
broker loggers, client metrics and group configs, which answer INVALID_REQUEST.
"""

from collections.abc import Sequence

from broker.configs import ConfigSource, ConfigValue, describe_broker
from broker.services import RequestContext
from controller.commands import AlterConfigs, ConfigAlteration, ConfigChange, ConfigResult
from controller.topics import topic_name_problem
from protocol import messages as m
from protocol.errors import ErrorCode, KafkaError

TOPIC, BROKER = 2, 4
SET, DELETE = 0, 1


def describe_configs(request: m.DescribeConfigsRequest, context: RequestContext) -> m.DescribeConfigsResponse:
    """Every resource asked for, with the keys asked for (None: all)."""
    return m.DescribeConfigsResponse(results=[_describe(resource, request, context) for resource in request.resources])


def _describe(
    resource: m.DescribeConfigsRequest.DescribeConfigsResource,
    request: m.DescribeConfigsRequest,
    context: RequestContext,
) -> m.DescribeConfigsResponse.DescribeConfigsResult:
    result = m.DescribeConfigsResponse.DescribeConfigsResult(
        resource_type=resource.resource_type, resource_name=resource.resource_name
    )
    try:
        values = _values(resource.resource_type, resource.resource_name, context)
    except KafkaError as error:
        result.error_code, result.error_message = error.code, error.message
        return result
    wanted = None if resource.configuration_keys is None else set(resource.configuration_keys)
    result.configs = [
        _described(value, request.include_synonyms, request.include_documentation)
        for value in values
        if wanted is None or value.name in wanted
    ]
    return result


def _values(resource_type: int, name: str, context: RequestContext) -> list[ConfigValue]:
    services = context.services
    if resource_type == TOPIC:
        topic = services.controller.state.topics.get(name)
        if topic is None:
            problem = topic_name_problem(name)
            if problem is not None:
                raise KafkaError(ErrorCode.INVALID_TOPIC_EXCEPTION, problem)
            raise KafkaError(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, f"The topic '{name}' does not exist.")
        return services.topic_defaults.describe(topic.configs)
    if resource_type == BROKER:
        if name == "":  # the cluster-wide default, which only dynamic configs would have
            return []
        if name != str(services.settings.node_id):
            raise KafkaError(
                ErrorCode.INVALID_REQUEST,
                f"Unexpected broker id, expected {services.settings.node_id} or empty string, but received {name}",
            )
        return describe_broker(services.settings)
    raise KafkaError(ErrorCode.INVALID_REQUEST, f"Unsupported resource type: {resource_type}")


def _described(
    value: ConfigValue, synonyms: bool, documentation: bool
) -> m.DescribeConfigsResponse.DescribeConfigsResourceResult:
    return m.DescribeConfigsResponse.DescribeConfigsResourceResult(
        name=value.name,
        value=value.value,
        read_only=value.read_only,
        config_source=value.source,
        config_type=value.type,
        documentation=value.documentation if documentation else None,
        synonyms=[
            m.DescribeConfigsResponse.DescribeConfigsSynonym(
                name=synonym.name, value=synonym.value, source=synonym.source
            )
            for synonym in value.synonyms
            if synonyms and (synonym.value is not None or synonym.source is not ConfigSource.DEFAULT_CONFIG)
        ],
    )


async def alter_configs(request: m.AlterConfigsRequest, context: RequestContext) -> m.AlterConfigsResponse:
    """Replace all overrides of each resource."""
    alterations = [
        ConfigAlteration(
            resource.resource_type,
            resource.resource_name,
            True,
            tuple(ConfigChange(config.name, SET, config.value) for config in resource.configs),
        )
        for resource in request.resources
    ]
    return m.AlterConfigsResponse(
        responses=[
            m.AlterConfigsResponse.AlterConfigsResourceResponse(
                error_code=result.error_code,
                error_message=result.error_message,
                resource_type=result.resource_type,
                resource_name=result.resource_name,
            )
            for result in await _alter(alterations, request.validate_only, context)
        ]
    )


async def incremental_alter_configs(
    request: m.IncrementalAlterConfigsRequest, context: RequestContext
) -> m.IncrementalAlterConfigsResponse:
    """Set, remove, append to or subtract from single overrides."""
    alterations = [
        ConfigAlteration(
            resource.resource_type,
            resource.resource_name,
            False,
            tuple(ConfigChange(config.name, config.config_operation, config.value) for config in resource.configs),
        )
        for resource in request.resources
    ]
    return m.IncrementalAlterConfigsResponse(
        responses=[
            m.IncrementalAlterConfigsResponse.AlterConfigsResourceResponse(
                error_code=result.error_code,
                error_message=result.error_message,
                resource_type=result.resource_type,
                resource_name=result.resource_name,
            )
            for result in await _alter(alterations, request.validate_only, context)
        ]
    )


async def _alter(
    alterations: Sequence[ConfigAlteration], validate_only: bool, context: RequestContext
) -> list[ConfigResult]:
    """One result per resource; only topics reach the controller."""
    results = [_refusal(alteration) for alteration in alterations if alteration.resource_type != TOPIC]
    topics = tuple(alteration for alteration in alterations if alteration.resource_type == TOPIC)
    if topics:
        services = context.services
        try:
            results += (await services.controller.ask(AlterConfigs(services.token(16), topics, validate_only))).results
        except KafkaError as error:
            results += [ConfigResult(TOPIC, topic.resource_name, error.code, error.message) for topic in topics]
    return results


def _refusal(alteration: ConfigAlteration) -> ConfigResult:
    if alteration.resource_type == BROKER:
        if not alteration.replace and all(change.operation == DELETE for change in alteration.changes):
            # Nothing is set that way, so nothing is there to remove: Kafka's tools do so after a reassignment.
            return ConfigResult(alteration.resource_type, alteration.resource_name, ErrorCode.NONE, None)
        why = "Broker configs are set in the process's settings and need a restart."
    else:
        why = f"Unsupported resource type: {alteration.resource_type}"
    return ConfigResult(alteration.resource_type, alteration.resource_name, ErrorCode.INVALID_REQUEST, why)
