"""UpdateFeatures v0 to v2: all updates of a request or none, decided by the controller.

v0: a lower level is refused whatever `allow_downgrade` says, as Kafka 4.3 does. v1: upgrade types and validate-only.
Before v2 a success names every feature; a failure is one for the whole request in all versions.
"""

from broker.handlers.common import patience_ms
from broker.services import RequestContext
from controller.commands import FeatureUpdate, UpdateFeatures
from protocol import messages as m
from protocol.errors import KafkaError


async def update_features(request: m.UpdateFeaturesRequest, context: RequestContext) -> m.UpdateFeaturesResponse:
    """Raise or lower finalized features."""
    services = context.services
    updates = tuple(
        FeatureUpdate(update.feature, update.max_version_level, update.upgrade_type)
        for update in request.feature_updates
    )
    response = m.UpdateFeaturesResponse
    try:
        await services.controller.ask(
            UpdateFeatures(services.token(16), updates, request.validate_only), patience_ms(request.timeout_ms)
        )
    except KafkaError as error:
        return response(error_code=error.code, error_message=error.message)
    if context.api_version >= 2:
        return response(error_message=None)
    return response(
        error_message=None,
        results=[response.UpdatableFeatureResult(feature=name, error_message="NONE") for name, _, _ in updates],
    )
