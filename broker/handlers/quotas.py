"""DescribeClientQuotas v0 to v1, AlterClientQuotas v0 to v1 (KIP-546).

Entities are combinations of `user` and `client-id`, or `ip`; a null name is the default. They are facts and count for
every broker on its own, as in Kafka. Addresses are literal: names of hosts are refused.
"""

from broker.services import RequestContext
from controller.access import Entity
from controller.commands import AlterQuotas, QuotaAlteration, Result
from protocol import messages as m
from protocol.errors import ErrorCode, KafkaError

EXACT, DEFAULT, SPECIFIED = 0, 1, 2
USER, CLIENT_ID, IP = "user", "client-id", "ip"


def describe_client_quotas(
    request: m.DescribeClientQuotasRequest, context: RequestContext
) -> m.DescribeClientQuotasResponse:
    """Entities that match every component; `strict`: and have no other."""
    response = m.DescribeClientQuotasResponse
    try:
        wanted = _components(request)
    except KafkaError as error:
        return response(error_code=error.code, error_message=error.message, entries=None)
    return response(
        entries=[
            response.EntryData(
                entity=[response.EntityData(entity_type=kind, entity_name=name) for kind, name in entity],
                values=[response.ValueData(key=key, value=value) for key, value in sorted(values.items())],
            )
            for entity, values in context.services.controller.state.quotas.items()
            if _matches(entity, wanted, strict=request.strict)
        ],
    )


def _components(request: m.DescribeClientQuotasRequest) -> dict[str, tuple[int, str | None]]:
    """Match type and name by entity type. INVALID_REQUEST, UNSUPPORTED_VERSION."""
    found: dict[str, tuple[int, str | None]] = {}
    names = {EXACT: "EXACT", DEFAULT: "DEFAULT", SPECIFIED: "SPECIFIED"}
    for one in request.components:
        kind = one.entity_type
        if not kind:
            raise KafkaError(ErrorCode.INVALID_REQUEST, "Invalid empty entity type.")
        if kind in found:
            raise KafkaError(
                ErrorCode.INVALID_REQUEST, f"Entity type {kind} cannot appear more than once in the filter."
            )
        if kind not in (USER, CLIENT_ID, IP):
            raise KafkaError(ErrorCode.UNSUPPORTED_VERSION, f"Unsupported entity type {kind}")
        if one.match_type not in names:
            raise KafkaError(ErrorCode.INVALID_REQUEST, f"Unknown match type {one.match_type}")
        said = f"Request specified MATCH_TYPE_{names[one.match_type]}"
        if one.match_type == EXACT and one.match is None:
            raise KafkaError(ErrorCode.INVALID_REQUEST, f"{said}, but set match string to null.")
        if one.match_type != EXACT and one.match is not None:
            raise KafkaError(ErrorCode.INVALID_REQUEST, f"{said}, but also specified a match string.")
        found[kind] = one.match_type, one.match
    if IP in found and len(found) > 1:
        raise KafkaError(
            ErrorCode.INVALID_REQUEST,
            "Invalid entity filter component combination. IP filter component should not be used with user or clientId "
            "filter component.",
        )
    return found


def _matches(entity: Entity, wanted: dict[str, tuple[int, str | None]], *, strict: bool) -> bool:
    has = dict(entity)
    if not wanted.keys() <= has.keys() or (strict and len(wanted) != len(has)):
        return False
    for kind, (match_type, name) in wanted.items():
        if (match_type == EXACT and has[kind] != name) or (match_type == DEFAULT and has[kind] is not None):
            return False
    return True


async def alter_client_quotas(
    request: m.AlterClientQuotasRequest, context: RequestContext
) -> m.AlterClientQuotasResponse:
    """One result per entity."""
    services = context.services
    entries = tuple(
        QuotaAlteration(
            tuple({one.entity_type: one.entity_name for one in entry.entity}.items()),
            tuple((op.key, None if op.remove else op.value) for op in entry.ops),
        )
        for entry in request.entries
    )
    results: tuple[Result, ...] = ()
    if entries:
        command = AlterQuotas(services.token(16), entries, request.validate_only)
        try:
            results = (await services.controller.ask(command)).results
        except KafkaError as error:
            results = (Result(error.code, error.message),) * len(entries)
    response = m.AlterClientQuotasResponse
    return response(
        entries=[
            response.EntryData(
                error_code=result.error_code,
                error_message=result.error_message,
                entity=[response.EntityData(entity_type=kind, entity_name=name) for kind, name in entry.entity],
            )
            for entry, result in zip(entries, results)
        ]
    )
