"""ApiVersions: v0 to v4, from the dispatch table.

v3: client software name and version (checked as Kafka does), features. Produce is shown from version 0 because older
clients look for it (KAFKA-18659); 0 to 2 answer UNSUPPORTED_VERSION. A version above 4 is answered in version 0 with
UNSUPPORTED_VERSION and the versions of ApiVersions alone (KIP-511). Before v4 a feature that may be at 0 is not among
the supported ones, because older clients refuse such a range (KAFKA-17011). The epoch of the finalized ones is the
position in the metadata log: it only grows, and is the same on all brokers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from controller.features import SUPPORTED
from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import ErrorCode

if TYPE_CHECKING:
    from broker.dispatch import Entry
    from broker.services import RequestContext

_SOFTWARE = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9\-.]*[a-zA-Z0-9])?")
_ADVERTISED_MIN = {ApiKey.PRODUCE: 0}


def api_versions(request: m.ApiVersionsRequest, context: RequestContext) -> m.ApiVersionsResponse:
    """What this broker serves."""
    table: Mapping[ApiKey, Entry] = context.services.handlers
    if context.api_version >= 3:
        for text in (request.client_software_name, request.client_software_version):
            if not _SOFTWARE.fullmatch(text):
                return m.ApiVersionsResponse(error_code=ErrorCode.INVALID_REQUEST)
        software = f"{request.client_software_name} {request.client_software_version}"
        context.connection.client_software = software[:200]
    state = context.services.controller.state
    response = m.ApiVersionsResponse
    return response(
        api_keys=[
            response.ApiVersion(
                api_key=key,
                min_version=_ADVERTISED_MIN.get(key, entry.min_version),
                max_version=entry.max_version,
            )
            for key, entry in sorted(table.items())
        ],
        supported_features=[
            response.SupportedFeatureKey(name=name, min_version=known.least, max_version=known.most)
            for name, known in SUPPORTED.items()
            if known.least or context.api_version >= 4
        ],
        finalized_features_epoch=state.position,
        finalized_features=[
            response.FinalizedFeatureKey(name=name, max_version_level=level, min_version_level=level)
            for name, level in state.features.items()
        ],
    )


def unsupported_version(table: Mapping[int, Entry]) -> m.ApiVersionsResponse:
    """The answer to a version that is not served, to be encoded in version 0."""
    entry = table[ApiKey.API_VERSIONS]
    return m.ApiVersionsResponse(
        error_code=ErrorCode.UNSUPPORTED_VERSION,
        api_keys=[
            m.ApiVersionsResponse.ApiVersion(
                api_key=ApiKey.API_VERSIONS, min_version=entry.min_version, max_version=entry.max_version
            )
        ],
    )
