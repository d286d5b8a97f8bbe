"""DescribeConfigs v1 to v4, AlterConfigs v0 to v2, IncrementalAlterConfigs v0 to v1, ListConfigResources v0 to v1.

Resources are topics (2), brokers (4: this one by its node id, all by an empty name), loggers of this process (8) and
groups (32). Topics, brokers and groups are decided by the controller, one result per resource; loggers are changed
here and with IncrementalAlterConfigs alone. DescribeConfigs v3 tells types and documentation. ListConfigResources v0
asks for client metrics subscriptions, of which there are none: KIP-714 is not served, resource type 16 is refused.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence

from broker import group_configs
from broker.config_types import ConfigSource, ConfigValue
from broker.handlers import loggers
from broker.services import RequestContext
from controller.commands import AlterConfigs, ConfigAlteration, ConfigChange, ConfigResult
from controller.configs import BROKER, GROUP, SET, TOPIC
from controller.topics import topic_name_problem
from protocol import messages as m
from protocol.errors import ErrorCode, KafkaError

CLIENT_METRICS, BROKER_LOGGER = 16, 8
REPEATS_MAX = 10
RESOURCES_PER_STEP = 50
"""A description of many resources gives way to the event loop after so many."""
_DESCRIBED = (TOPIC, BROKER, BROKER_LOGGER, GROUP)
_LISTED = (*_DESCRIBED, CLIENT_METRICS)


async def describe_configs(request: m.DescribeConfigsRequest, context: RequestContext) -> m.DescribeConfigsResponse:
    """Every resource asked for, with the keys asked for (None: all). A type that is none refuses the whole request.

    A resource that comes several times has as many results, as in Kafka, but no end of them: an answer may be a
    thousand times as large as what was asked.
    """
    unknown = [one.resource_type for one in request.resources if one.resource_type not in _DESCRIBED]
    if unknown:
        refused = m.DescribeConfigsResponse.DescribeConfigsResult
        why = f"Unsupported resource type: {unknown[0]}"
        return m.DescribeConfigsResponse(
            results=[
                refused(
                    error_code=ErrorCode.INVALID_REQUEST,
                    error_message=why,
                    resource_type=one.resource_type,
                    resource_name=one.resource_name,
                )
                for one in request.resources
            ]
        )
    results = []
    times: Counter[tuple[int, str]] = Counter()
    for number, resource in enumerate(request.resources, 1):
        which = (resource.resource_type, resource.resource_name)
        times[which] += 1
        results.append(_describe(resource, request, context, too_often=times[which] > REPEATS_MAX))
        if number % RESOURCES_PER_STEP == 0:
            await asyncio.sleep(0)
    return m.DescribeConfigsResponse(results=results)


def _describe(
    resource: m.DescribeConfigsRequest.DescribeConfigsResource,
    request: m.DescribeConfigsRequest,
    context: RequestContext,
    *,
    too_often: bool,
) -> m.DescribeConfigsResponse.DescribeConfigsResult:
    result = m.DescribeConfigsResponse.DescribeConfigsResult(
        resource_type=resource.resource_type, resource_name=resource.resource_name
    )
    try:
        if too_often:
            raise KafkaError(ErrorCode.INVALID_REQUEST, f"A resource is described at most {REPEATS_MAX} times.")
        values = _values(resource.resource_type, resource.resource_name, context)
    except KafkaError as error:
        result.error_code, result.error_message = error.code, error.message
        return result
    wanted = set(resource.configuration_keys or ()) or None
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
        if name == "":
            return services.dynamic_configs.describe_default()
        _check_node(context, name, "broker id, expected {} or empty string, but received {}", "Broker id")
        return services.dynamic_configs.describe()
    if resource_type == BROKER_LOGGER:
        if name == "":
            raise KafkaError(ErrorCode.INVALID_REQUEST, "Broker id must not be empty")
        _check_node(context, name, "broker id, expected {} but received {}", "Broker id")
        return loggers.describe()
    assert resource_type == GROUP
    if name == "":
        raise KafkaError(ErrorCode.INVALID_REQUEST, "Group name must not be empty")
    overrides = services.controller.state.configs.get((GROUP, name), {})
    return group_configs.describe(services.settings, overrides)


def _check_node(context: RequestContext, name: str, words: str, what: str) -> None:
    """INVALID_REQUEST unless the resource is this broker."""
    own = str(context.services.settings.node_id)
    digits = name.removeprefix("-")
    if not digits.isdecimal() or not digits.isascii():
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"{what} must be an integer, but it is: {name}")
    if name != own:  # also "01": what is set for it would be found by nobody
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"Unexpected {words.format(own, name)}")


def _described(
    value: ConfigValue, synonyms: bool, documentation: bool
) -> m.DescribeConfigsResponse.DescribeConfigsResourceResult:
    return m.DescribeConfigsResponse.DescribeConfigsResourceResult(
        name=value.name,
        value=value.value,
        read_only=value.read_only,
        is_sensitive=value.sensitive,
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
    """One result per resource: those that are refused or done here, then what the controller decided."""
    results, asked = [], []
    for one in alterations:
        try:
            if not _done_here(one, validate_only, context):
                asked.append(one)
                continue
            result = ConfigResult(one.resource_type, one.resource_name, ErrorCode.NONE, None)
        except KafkaError as error:
            result = ConfigResult(one.resource_type, one.resource_name, error.code, error.message)
        results.append(result)
    if asked:
        services = context.services
        command = AlterConfigs(services.token(16), tuple(asked), validate_only)
        try:
            results += (await services.controller.ask(command)).results
        except KafkaError as error:
            results += [ConfigResult(one.resource_type, one.resource_name, error.code, error.message) for one in asked]
    return results


def _done_here(alteration: ConfigAlteration, validate_only: bool, context: RequestContext) -> bool:
    """Whether nothing is left for the controller to decide. KafkaError: refused."""
    kind, name = alteration.resource_type, alteration.resource_name
    if kind == BROKER and name != "":
        _check_node(context, name, "broker id, expected {}, but received {}", "Node id")
    elif kind == BROKER_LOGGER and not alteration.replace:
        _check_node(context, name, "node id. Expected {}, but received {}", "Node id")
        loggers.alter(alteration, validate_only)
        return True
    elif kind not in (TOPIC, BROKER, GROUP):
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"Unknown resource type {kind}")
    return False


def list_config_resources(
    request: m.ListConfigResourcesRequest, context: RequestContext
) -> m.ListConfigResourcesResponse:
    """What has configs: everything of the types asked for, or of all types."""
    response = m.ListConfigResourcesResponse
    types = set(request.resource_types) if context.api_version else {CLIENT_METRICS}
    if not types <= set(_LISTED):
        return response(error_code=ErrorCode.UNSUPPORTED_VERSION)
    state = context.services.controller.state
    nodes = [str(node_id) for node_id in sorted(state.brokers)]
    names = {
        GROUP: sorted(name for kind, name in state.configs if kind == GROUP),
        CLIENT_METRICS: [],
        BROKER_LOGGER: nodes,
        BROKER: nodes,
        TOPIC: sorted(state.topics),
    }
    return response(
        config_resources=[
            response.ConfigResource(resource_name=name, resource_type=kind)
            for kind, found in names.items()
            if not types or kind in types
            for name in found
        ]
    )
