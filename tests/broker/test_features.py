"""UpdateFeatures and what ApiVersions shows of features, through sockets, at every version."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from broker.dispatch import HANDLERS
from broker.node import Broker
from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import ErrorCode
from tests.support.raw_client import RawClient
from tests.support.whole_broker import whole_broker


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    async with whole_broker(tmp_path / "data") as running:
        yield running


@pytest.fixture
async def client(broker: Broker) -> AsyncIterator[RawClient]:
    async with RawClient(broker.listeners[0].port) as connected:
        yield connected


async def shown(client: RawClient, version: int = 4) -> Any:
    request = m.ApiVersionsRequest(client_software_name="test", client_software_version="1")
    return await client.ask(ApiKey.API_VERSIONS, version, request)


async def levels(client: RawClient) -> dict[str, int]:
    answer = await shown(client)
    assert all(one.min_version_level == one.max_version_level for one in answer.finalized_features)
    return {one.name: one.max_version_level for one in answer.finalized_features}


async def test_a_new_cluster_finalizes_what_kafka_does(client: RawClient) -> None:
    answer = await shown(client)
    assert {one.name: (one.min_version, one.max_version) for one in answer.supported_features} == {
        "metadata.version": (30, 30),
        "transaction.version": (0, 2),
        "group.version": (0, 1),
    }
    assert await levels(client) == {"metadata.version": 30, "transaction.version": 2, "group.version": 1}
    assert answer.finalized_features_epoch > 0
    assert [one.name for one in (await shown(client, 3)).supported_features] == ["metadata.version"]


@pytest.mark.parametrize("version", range(HANDLERS[ApiKey.UPDATE_FEATURES].max_version + 1))
async def test_update_features(client: RawClient, version: int) -> None:
    async def update(name: str, level: int, **options: Any) -> Any:
        key = m.UpdateFeaturesRequest.FeatureUpdateKey(feature=name, max_version_level=level)
        if version:
            key.upgrade_type = options.pop("upgrade_type", 1)
        request = m.UpdateFeaturesRequest(feature_updates=[key], **options)
        return await client.ask(ApiKey.UPDATE_FEATURES, version, request)

    before = (await shown(client)).finalized_features_epoch
    refused = await update("group.version", 0)
    assert refused.error_code == ErrorCode.INVALID_UPDATE_VERSION
    assert "without setting the upgrade type" in refused.error_message
    assert refused.results == []
    if version:
        tried = await update("group.version", 0, upgrade_type=2, validate_only=True)
        assert tried.error_code == 0
        assert (await levels(client))["group.version"] == 1
        assert (await update("group.version", 0, upgrade_type=2)).error_code == 0
        assert "group.version" not in await levels(client)
        assert (await shown(client)).finalized_features_epoch > before
    done = await update("group.version", 1)
    assert (done.error_code, done.error_message) == (0, None)
    assert [(one.feature, one.error_code) for one in done.results] == ([] if version == 2 else [("group.version", 0)])
    assert (await levels(client))["group.version"] == 1
