"""Credentials, access lists, quotas as they are stored, log directories, the quorum, brokers that are gone: through
sockets, at every version. The refusals are those that Apache Kafka 4.3 gave to the same requests.
"""

import base64
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from broker.dispatch import HANDLERS
from broker.handlers.credentials import keys_of
from broker.node import Broker
from broker.settings import AUTHORIZER
from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import ErrorCode
from tests.support.raw_client import RawClient, batch_of
from tests.support.whole_broker import whole_broker


def versions(key: ApiKey) -> range:
    return range(HANDLERS[key].min_version, HANDLERS[key].max_version + 1)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    async with whole_broker(tmp_path / "data", authorizer_class_name=AUTHORIZER) as running:
        yield running


@pytest.fixture
async def client(broker: Broker) -> AsyncIterator[RawClient]:
    async with RawClient(broker.listeners[0].port) as connected:
        yield connected


async def create(client: RawClient, name: str) -> None:
    topic = m.CreateTopicsRequest.CreatableTopic(name=name, num_partitions=1, replication_factor=1)
    answer = await client.ask(ApiKey.CREATE_TOPICS, 7, m.CreateTopicsRequest(topics=[topic]))
    assert answer.topics[0].error_code == 0


# Credentials

PASSWORD = b"p" * 32


async def alter_users(
    client: RawClient, *set_: tuple[str, int, int], remove: tuple[tuple[str, int], ...] = ()
) -> dict[str, tuple[int, str | None]]:
    request = m.AlterUserScramCredentialsRequest
    asked = request(
        deletions=[request.ScramCredentialDeletion(name=name, mechanism=mechanism) for name, mechanism in remove],
        upsertions=[
            request.ScramCredentialUpsertion(
                name=name, mechanism=mechanism, iterations=iterations, salt=b"salt", salted_password=PASSWORD
            )
            for name, mechanism, iterations in set_
        ],
    )
    answer = await client.ask(ApiKey.ALTER_USER_SCRAM_CREDENTIALS, 0, asked)
    assert len({one.user for one in answer.results}) == len(answer.results)
    return {one.user: (one.error_code, one.error_message) for one in answer.results}


async def users(client: RawClient, *names: str) -> dict[str, Any]:
    request = m.DescribeUserScramCredentialsRequest
    asked = request(users=[request.UserName(name=name) for name in names] or None)
    answer = await client.ask(ApiKey.DESCRIBE_USER_SCRAM_CREDENTIALS, 0, asked)
    assert answer.error_code == 0
    return {
        one.user: one.error_code or [(info.mechanism, info.iterations) for info in one.credential_infos]
        for one in answer.results
    }


async def test_credentials_are_kept_as_keys(client: RawClient, broker: Broker) -> None:
    assert await alter_users(client, ("a", 1, 4096), ("b", 2, 16384)) == {"a": (0, None), "b": (0, None)}
    assert await alter_users(client, ("a", 2, 5000)) == {"a": (0, None)}
    assert await users(client) == {"a": [(1, 4096), (2, 5000)], "b": [(2, 16384)]}
    assert PASSWORD not in broker.controller.state.encode()
    assert await alter_users(client, remove=(("a", 1),)) == {"a": (0, None)}
    assert await users(client, "a", "nobody") == {"a": [(2, 5000)], "nobody": ErrorCode.RESOURCE_NOT_FOUND}
    assert await users(client, "a", "a", "b") == {"a": ErrorCode.DUPLICATE_RESOURCE, "b": [(2, 16384)]}


def test_the_keys_are_those_of_rfc_7677() -> None:
    """The example of its section 3: password "pencil"."""
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    stored, server = keys_of(1, hashlib.pbkdf2_hmac("sha256", b"pencil", salt, 4096))
    assert base64.b64encode(stored) == b"WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY="
    assert base64.b64encode(server) == b"wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="


async def test_credentials_refused(client: RawClient) -> None:
    asked = [("low", 1, 4095), ("high", 1, 16385), ("mech", 0, 4096), ("new", 9, 4096), ("", 1, 4096), ("ok", 1, 4096)]
    answer = await alter_users(client, *asked, ("twice", 1, 4096), ("twice", 2, 4096), remove=(("gone", 1),))
    assert answer == {
        "low": (93, "Too few iterations"),
        "high": (93, "Too many iterations"),
        "mech": (33, "Unknown SCRAM mechanism"),
        "new": (33, "Unknown SCRAM mechanism"),
        "": (93, "Username must not be empty"),
        "ok": (0, None),
        "twice": (92, "A user credential cannot be altered twice in the same request"),
        "gone": (91, "Attempt to delete a user credential that does not exist"),
    }
    assert await users(client) == {"ok": [(1, 4096)]}


# Access lists

AclRow = tuple[int, str, int, str, str, int, int]
ANYTHING: tuple[Any, ...] = (1, None, 1, None, None, 1, 1)


async def create_acls(client: RawClient, *rows: AclRow, version: int = 3) -> list[tuple[int, str | None]]:
    request = m.CreateAclsRequest
    creations = [
        request.AclCreation(
            resource_type=kind,
            resource_name=name,
            resource_pattern_type=pattern,
            principal=principal,
            host=host,
            operation=operation,
            permission_type=permission,
        )
        for kind, name, pattern, principal, host, operation, permission in rows
    ]
    answer = await client.ask(ApiKey.CREATE_ACLS, version, request(creations=creations))
    return [(one.error_code, one.error_message) for one in answer.results]


async def acls(client: RawClient, wanted: tuple[Any, ...] = ANYTHING, version: int = 3) -> set[AclRow]:
    names = (
        "resource_type_filter",
        "resource_name_filter",
        "pattern_type_filter",
        "principal_filter",
        "host_filter",
        "operation",
        "permission_type",
    )
    answer = await client.ask(ApiKey.DESCRIBE_ACLS, version, m.DescribeAclsRequest(**dict(zip(names, wanted))))
    assert answer.error_code == 0
    return {
        (
            resource.resource_type,
            resource.resource_name,
            resource.pattern_type,
            acl.principal,
            acl.host,
            acl.operation,
            acl.permission_type,
        )
        for resource in answer.resources
        for acl in resource.acls
    }


async def delete_acls(client: RawClient, *filters: tuple[Any, ...], version: int = 3) -> list[int]:
    request = m.DeleteAclsRequest
    asked = [
        request.DeleteAclsFilter(
            resource_type_filter=kind,
            resource_name_filter=name,
            pattern_type_filter=pattern,
            principal_filter=principal,
            host_filter=host,
            operation=operation,
            permission_type=permission,
        )
        for kind, name, pattern, principal, host, operation, permission in filters
    ]
    answer = await client.ask(ApiKey.DELETE_ACLS, version, request(filters=asked))
    assert not any(one.error_code for one in answer.filter_results)
    return [len(one.matching_acls) for one in answer.filter_results]


READ: AclRow = (2, "t", 3, "User:a", "*", 3, 3)
PREFIX: AclRow = (2, "te", 4, "User:a", "*", 3, 3)
DENIED: AclRow = (2, "*", 3, "User:b", "1.2.3.4", 4, 2)
CLUSTER: AclRow = (4, "kafka-cluster", 3, "User:c", "*", 5, 3)


@pytest.mark.parametrize("version", versions(ApiKey.CREATE_ACLS))
async def test_access_lists(client: RawClient, version: int) -> None:
    assert await create_acls(client, READ, READ, PREFIX, DENIED, CLUSTER, version=version) == [(0, None)] * 5
    assert await create_acls(client, READ, version=version) == [(0, None)]
    assert await acls(client, version=version) == {READ, PREFIX, DENIED, CLUSTER}
    for wanted, found in (
        ((2, None, 1, None, None, 1, 1), {READ, PREFIX, DENIED}),
        ((2, "t", 1, None, None, 1, 1), {READ}),
        ((2, "t", 3, None, None, 1, 1), {READ}),
        ((2, "test", 2, None, None, 1, 1), {PREFIX, DENIED}),
        ((2, "te", 4, None, None, 1, 1), {PREFIX}),
        ((2, "test", 4, None, None, 1, 1), set()),
        ((2, "*", 2, None, None, 1, 1), {DENIED}),
        ((1, None, 1, "User:a", None, 1, 1), {READ, PREFIX}),
        ((1, None, 1, None, "*", 1, 1), {READ, PREFIX, CLUSTER}),
        ((1, None, 1, None, None, 4, 1), {DENIED}),
        ((1, None, 1, None, None, 1, 2), {DENIED}),
    ):
        assert await acls(client, wanted, version=version) == found, wanted
    test = (2, "test", 2, None, None, 1, 1)
    assert await delete_acls(client, test, (2, "none", 3, None, None, 1, 1), version=version) == [2, 0]
    assert await acls(client) == {READ, CLUSTER}
    assert await delete_acls(client, ANYTHING, ANYTHING) == [2, 2]
    assert await acls(client) == set()


async def test_one_request_deletes_only_so_many_entries(client: RawClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await create_acls(client, READ, PREFIX, DENIED) == [(0, None)] * 3
    names = ("resource_name_filter", "principal_filter", "host_filter")
    every: dict[str, Any] = dict.fromkeys(names) | {"resource_type_filter": 1, "pattern_type_filter": 1}
    every |= {"operation": 1, "permission_type": 1}
    filters = [m.DeleteAclsRequest.DeleteAclsFilter(**every) for _ in range(2)]
    for bound, most in (("DELETED_MAX", 5), ("COMPARISONS_MAX", 5)):
        with monkeypatch.context() as patch:
            patch.setattr(f"broker.handlers.acls.{bound}", most)
            answer = await client.ask(ApiKey.DELETE_ACLS, 3, m.DeleteAclsRequest(filters=filters))
            assert [one.error_code for one in answer.filter_results] == [ErrorCode.POLICY_VIOLATION] * 2
            assert len(await acls(client)) == 3
    assert await delete_acls(client, ANYTHING, ANYTHING) == [3, 3]


async def test_access_lists_refused(client: RawClient) -> None:
    bad: list[tuple[AclRow, str]] = [
        ((4, "x", 3, "User:c", "*", 5, 3), "The only valid name for the CLUSTER resource is kafka-cluster"),
        ((2, "", 3, "User:a", "*", 3, 3), "Invalid empty resource name"),
        ((2, "t", 3, "a", "*", 3, 3), "Could not parse principal from `a`"),
        ((2, "t", 9, "User:a", "*", 3, 3), "Invalid patternType UNKNOWN"),
        ((99, "t", 3, "User:a", "*", 3, 3), "Invalid resourceType UNKNOWN"),
        ((2, "t", 3, "User:a", "*", 99, 3), "Invalid operation UNKNOWN"),
        ((2, "t", 3, "User:a", "*", 3, 9), "Invalid permissionType UNKNOWN"),
        ((2, "t", 2, "User:a", "*", 3, 3), "Invalid patternType"),
        ((2, "t", 3, "User:a", "*", 1, 3), "Invalid operation"),
    ]
    results = await create_acls(client, *[row for row, _ in bad], READ)
    assert results[-1] == (0, None)
    for (code, message), (_, words) in zip(results, bad):
        assert (code, words in (message or "")) == (42, True), message
    assert await acls(client) == {READ}
    client.send(ApiKey.CREATE_ACLS, 3, m.CreateAclsRequest(creations=[m.CreateAclsRequest.AclCreation()]))
    assert await client.closed(), "UNKNOWN is never sent"


async def test_without_an_authorizer_there_is_no_access_list(tmp_path: Path) -> None:
    async with whole_broker(tmp_path / "data") as broker, RawClient(broker.listeners[0].port) as client:
        code = int(ErrorCode.SECURITY_DISABLED)
        assert await create_acls(client, READ) == [(code, "No Authorizer is configured.")]
        described = await client.ask(
            ApiKey.DESCRIBE_ACLS,
            3,
            m.DescribeAclsRequest(resource_type_filter=1, pattern_type_filter=1, operation=1, permission_type=1),
        )
        assert described.error_code == code
        deleted = await client.ask(
            ApiKey.DELETE_ACLS, 3, m.DeleteAclsRequest(filters=[m.DeleteAclsRequest.DeleteAclsFilter()])
        )
        assert [one.error_code for one in deleted.filter_results] == [code]


# Quotas, as they are stored

Entity = dict[str, str | None]


async def alter_quotas(
    client: RawClient, *entries: tuple[Entity, dict[str, float | None]], version: int = 1, validate_only: bool = False
) -> list[tuple[int, str | None]]:
    request = m.AlterClientQuotasRequest
    asked = [
        request.EntryData(
            entity=[request.EntityData(entity_type=kind, entity_name=name) for kind, name in entity.items()],
            ops=[
                request.OpData(key=key, value=0.0 if value is None else value, remove=value is None)
                for key, value in values.items()
            ],
        )
        for entity, values in entries
    ]
    answer = await client.ask(ApiKey.ALTER_CLIENT_QUOTAS, version, request(entries=asked, validate_only=validate_only))
    return [(one.error_code, one.error_message) for one in answer.entries]


async def quotas(
    client: RawClient, *components: tuple[str, int, str | None], strict: bool = False, version: int = 1
) -> Any:
    request = m.DescribeClientQuotasRequest
    asked = [
        request.ComponentData(entity_type=kind, match_type=match_type, match=match)
        for kind, match_type, match in components
    ]
    answer = await client.ask(ApiKey.DESCRIBE_CLIENT_QUOTAS, version, request(components=asked, strict=strict))
    if answer.error_code:
        return answer.error_code
    return {
        tuple((one.entity_type, one.entity_name) for one in entry.entity): {one.key: one.value for one in entry.values}
        for entry in answer.entries
    }


@pytest.mark.parametrize("version", versions(ApiKey.ALTER_CLIENT_QUOTAS))
async def test_quotas(client: RawClient, version: int) -> None:
    a, default, both = {"producer_byte_rate": 1000.0}, {"consumer_byte_rate": 5.0}, {"request_percentage": 50.5}
    assert (
        await alter_quotas(
            client,
            ({"user": "a"}, {**a}),
            ({"user": None}, {**default}),
            ({"user": "a", "client-id": None}, {**both}),
            ({"ip": "1.2.3.4"}, {"connection_creation_rate": 10.0}),
            version=version,
        )
        == [(0, None)] * 4
    )
    user, users_default, pair = (("user", "a"),), (("user", None),), (("client-id", None), ("user", "a"))
    exact, default_name, any_name = 0, 1, 2
    for components, strict, found in (
        ([("user", exact, "a")], False, {user: a, pair: both}),
        ([("user", exact, "a")], True, {user: a}),
        ([("user", default_name, None)], False, {users_default: default}),
        ([("user", any_name, None), ("client-id", any_name, None)], False, {pair: both}),
        ([("client-id", exact, "c")], True, {}),
        ([("ip", any_name, None)], False, {(("ip", "1.2.3.4"),): {"connection_creation_rate": 10.0}}),
        ([], True, {}),
        ([("other", exact, "a")], False, ErrorCode.UNSUPPORTED_VERSION),
        ([("", exact, "a")], False, ErrorCode.INVALID_REQUEST),
        ([("user", exact, None)], False, ErrorCode.INVALID_REQUEST),
        ([("user", any_name, "a")], False, ErrorCode.INVALID_REQUEST),
        ([("user", 5, None)], False, ErrorCode.INVALID_REQUEST),
        ([("user", exact, "a"), ("user", exact, "b")], False, ErrorCode.INVALID_REQUEST),
        ([("user", any_name, None), ("ip", any_name, None)], False, ErrorCode.INVALID_REQUEST),
    ):
        assert await quotas(client, *components, strict=strict, version=version) == found, components
    assert await alter_quotas(client, ({"user": "a"}, {"producer_byte_rate": None})) == [(0, None)]
    assert await quotas(client, ("user", exact, "a"), strict=True) == {}


async def test_quotas_refused(client: RawClient) -> None:
    rate = "producer_byte_rate"
    for entity, values, words in (
        ({"user": "a"}, {"other": 1.0}, "Invalid configuration key other"),
        ({"ip": "1.2.3.4"}, {rate: 1.0}, f"Invalid configuration key {rate}"),
        ({"ip": "no address"}, {"connection_creation_rate": 1.0}, "no address is not a valid IP"),
        ({"ip": "1.2.3.4", "user": "a"}, {rate: 1.0}, "Invalid quota entity combination"),
        ({"other": "a"}, {rate: 1.0}, "Unhandled client quota entity type: other"),
        ({}, {rate: 1.0}, "Invalid empty client quota entity"),
        ({"user": ""}, {rate: 1.0}, "Empty user not supported"),
        ({"user": "a"}, {rate: -1.0}, f"Quota {rate} must be greater than 0"),
        ({"user": "a"}, {rate: 0.0}, f"Quota {rate} must be greater than 0"),
        ({"user": "a"}, {rate: 1.5}, f"{rate} cannot be a fractional value."),
        ({"user": "a"}, {rate: 1e300}, f"Proposed value for {rate} is too large for a LONG."),
        ({"user": "a"}, {"request_percentage": float("nan")}, "must be greater than 0"),
    ):
        ((code, message),) = await alter_quotas(client, (entity, values))
        assert (code, words in (message or "")) == (42, True), message
    first: tuple[Entity, dict[str, float | None]] = ({"user": "a", "client-id": "c"}, {rate: 1.0})
    second: tuple[Entity, dict[str, float | None]] = ({"client-id": "c", "user": "a"}, {rate: 2.0})
    assert [code for code, _ in await alter_quotas(client, first, second)] == [42, 42]
    assert await alter_quotas(client, first, validate_only=True) == [(0, None)]
    assert await quotas(client) == {}


# The cluster


@pytest.mark.parametrize("version", versions(ApiKey.DESCRIBE_QUORUM))
async def test_describe_quorum(client: RawClient, broker: Broker, version: int) -> None:
    request = m.DescribeQuorumRequest

    async def ask(*topics: tuple[str, list[int]]) -> m.DescribeQuorumResponse:
        asked = [
            request.TopicData(
                topic_name=name, partitions=[request.PartitionData(partition_index=part) for part in parts]
            )
            for name, parts in topics
        ]
        answer: m.DescribeQuorumResponse = await client.ask(ApiKey.DESCRIBE_QUORUM, version, request(topics=asked))
        return answer

    answer = await ask(("__cluster_metadata", [0]))
    ((there,),) = [topic.partitions for topic in answer.topics]
    assert (there.error_code, there.leader_id, there.leader_epoch) == (0, 1, 1)
    assert there.high_watermark > 0
    assert [(one.replica_id, one.log_end_offset) for one in there.current_voters] == [(1, there.high_watermark)]
    assert there.observers == []
    if version == 2:
        assert (answer.error_message, there.error_message) == ("", "")
        (node,) = answer.nodes
        assert [(one.name, one.port) for one in node.listeners] == [("PLAINTEXT", broker.listeners[0].port)]
    # Kafka describes it alone, and once: else an answer could be a thousand times as large as what was asked.
    for wrong in ([("t", [0])], [("__cluster_metadata", [1])], [("__cluster_metadata", [0, 0])]):
        (topic,) = (await ask(*wrong)).topics
        assert {part.error_code for part in topic.partitions} == {ErrorCode.UNKNOWN_TOPIC_OR_PARTITION}
    answer = await ask(("__cluster_metadata", [0]), ("t", [0]))
    codes = {part.error_code for topic in answer.topics for part in topic.partitions}
    assert codes == {ErrorCode.UNKNOWN_TOPIC_OR_PARTITION}
    if version == 2:
        assert answer.nodes == []


async def test_unregister_broker(client: RawClient) -> None:
    for node_id, code in ((1, ErrorCode.INVALID_REQUEST), (7, ErrorCode.BROKER_ID_NOT_REGISTERED)):
        answer = await client.ask(ApiKey.UNREGISTER_BROKER, 0, m.UnregisterBrokerRequest(broker_id=node_id))
        assert (answer.error_code, bool(answer.error_message)) == (code, True)


@pytest.mark.parametrize("version", versions(ApiKey.ALTER_REPLICA_LOG_DIRS))
async def test_there_is_one_log_directory(client: RawClient, broker: Broker, version: int) -> None:
    await create(client, "t")
    assert (await client.produce("t", batch_of(b"v" * 1000))).error_code == 0
    described = await client.ask(ApiKey.DESCRIBE_LOG_DIRS, 4, m.DescribeLogDirsRequest(topics=None))
    (directory,) = described.results
    (topic,) = directory.topics
    assert (directory.log_dir, topic.name) == (broker.settings.storage_uri, "t")
    assert 1000 < topic.partitions[0].partition_size < 1200
    request = m.AlterReplicaLogDirsRequest
    dirs = [
        request.AlterReplicaLogDir(
            path=path,
            topics=[
                request.AlterReplicaLogDirTopic(name="t", partitions=[0, 5]),
                request.AlterReplicaLogDirTopic(name="other", partitions=[0]),
            ],
        )
        for path in (broker.settings.storage_uri, "/elsewhere")
    ]
    for directory, codes in zip(dirs, ({"t": [0, 3], "other": [3]}, {"t": [57, 57], "other": [57]})):
        answer = await client.ask(ApiKey.ALTER_REPLICA_LOG_DIRS, version, request(dirs=[directory]))
        assert {one.topic_name: [part.error_code for part in one.partitions] for one in answer.results} == codes
