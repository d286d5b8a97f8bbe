"""API key -> handler: the one table from which requests are dispatched and ApiVersions answers.

A request of an unknown API or version closes the connection, as in Kafka; ApiVersions answers UNSUPPORTED_VERSION in
its version 0 instead, so that newer clients can go down to what is served.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple

from broker.connection import HOLD_MUTED, Reply
from broker.handlers import (
    acls,
    api_versions,
    cluster,
    configs,
    consumer_groups,
    control,
    credentials,
    delete_records,
    features,
    fetch,
    find_coordinator,
    groups,
    init_producer_id,
    list_offsets,
    metadata,
    offset_for_leader_epoch,
    offsets,
    produce,
    produce_old,
    quotas,
    reassignments,
    topics,
    transaction_markers,
    transactions,
    txn_offsets,
)
from broker.services import RequestContext, Services
from protocol import messages
from protocol.apis import APIS, CONTROL_KEY, CONTROL_VERSION, ApiKey
from protocol.errors import ProtocolError
from protocol.framing import parse_request_header, response_frame, skip_tagged_fields

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["HANDLERS", "INTERNAL", "Dispatcher", "Entry", "RequestContext"]

DECODED_BYTES_MAX = 1024 * 1024
"""Requests that become objects: the largest one, an object per few bytes at worst."""
GROUP_BYTES_MAX = 8 * 1024 * 1024
"""The same where members of a group send each other what only they understand."""
OFF_LOOP_BYTES = 32 * 1024
"""Larger ones are decoded off the loop."""
CONTROL_BYTES_MAX = 32 * 1024 * 1024
"""A commit of all logs that a cluster may have is one command."""
FETCH_BYTES_MAX = 4 * 1024 * 1024

_GROUP_APIS = (ApiKey.JOIN_GROUP, ApiKey.SYNC_GROUP)
_HEADER = Struct(">hhih")
_unpack_header = _HEADER.unpack_from


class Entry(NamedTuple):
    """One API.

    `handler(request, context)` takes the decoded request and returns the response or an awaitable of it. An awaitable
    runs as a task of the server and the connection's later requests wait for it, as in Kafka.
    `raw` handlers (Produce, Fetch) take the bytes instead and answer through the connection themselves:
    `handler(services, connection, buf, pos, end, api_version, correlation_id, owned)`.
    `min_version` and `max_version` are what is served; `test` names the test that proves it (README's table).
    `large`: a large request has an answer larger still, which is encoded off the loop; so the response of such a
    handler shares nothing with what may change.
    """

    handler: Callable[..., Any]
    min_version: int
    max_version: int
    test: str
    raw: bool = False
    large: bool = False


_TRANSACTIONS_TEST = "tests/broker/transactions/test_handlers.py"
ADMINISTRATION = "tests/broker/test_administration.py"

HANDLERS: dict[ApiKey, Entry] = {
    ApiKey.PRODUCE: Entry(produce.produce, 3, 13, "tests/broker/test_produce.py", raw=True),
    ApiKey.FETCH: Entry(fetch.fetch, 4, 18, "tests/broker/test_fetch.py", raw=True),
    ApiKey.LIST_OFFSETS: Entry(list_offsets.list_offsets, 1, 11, "tests/broker/test_list_offsets.py"),
    ApiKey.METADATA: Entry(metadata.metadata, 0, 13, "tests/broker/test_handlers_admin.py"),
    ApiKey.OFFSET_COMMIT: Entry(offsets.offset_commit, 2, 10, "tests/broker/test_handlers_groups.py"),
    ApiKey.OFFSET_FETCH: Entry(offsets.offset_fetch, 1, 10, "tests/broker/test_handlers_groups.py"),
    ApiKey.FIND_COORDINATOR: Entry(find_coordinator.find_coordinator, 0, 6, "tests/broker/test_handlers_groups.py"),
    ApiKey.JOIN_GROUP: Entry(groups.join_group, 0, 9, "tests/broker/test_handlers_groups.py"),
    ApiKey.HEARTBEAT: Entry(groups.heartbeat, 0, 4, "tests/broker/test_handlers_groups.py"),
    ApiKey.LEAVE_GROUP: Entry(groups.leave_group, 0, 5, "tests/broker/test_handlers_groups.py"),
    ApiKey.SYNC_GROUP: Entry(groups.sync_group, 0, 5, "tests/broker/test_handlers_groups.py"),
    ApiKey.DESCRIBE_GROUPS: Entry(groups.describe_groups, 0, 6, "tests/broker/test_handlers_groups.py"),
    ApiKey.LIST_GROUPS: Entry(groups.list_groups, 0, 5, "tests/broker/test_handlers_groups.py"),
    ApiKey.API_VERSIONS: Entry(api_versions.api_versions, 0, 4, "tests/broker/test_server.py"),
    ApiKey.CREATE_TOPICS: Entry(topics.create_topics, 2, 7, "tests/broker/test_handlers_admin.py"),
    ApiKey.DELETE_TOPICS: Entry(topics.delete_topics, 1, 6, "tests/broker/test_handlers_admin.py"),
    ApiKey.DELETE_RECORDS: Entry(delete_records.delete_records, 0, 2, "tests/broker/test_handlers_admin.py"),
    ApiKey.INIT_PRODUCER_ID: Entry(init_producer_id.init_producer_id, 0, 5, "tests/broker/test_produce.py"),
    ApiKey.OFFSET_FOR_LEADER_EPOCH: Entry(
        offset_for_leader_epoch.offset_for_leader_epoch, 2, 4, "tests/broker/test_list_offsets.py"
    ),
    ApiKey.WRITE_TXN_MARKERS: Entry(
        transaction_markers.write_txn_markers, 1, 2, "tests/broker/transactions/test_markers.py"
    ),
    ApiKey.ADD_PARTITIONS_TO_TXN: Entry(transactions.add_partitions_to_txn, 0, 5, _TRANSACTIONS_TEST),
    ApiKey.ADD_OFFSETS_TO_TXN: Entry(transactions.add_offsets_to_txn, 0, 4, _TRANSACTIONS_TEST),
    ApiKey.END_TXN: Entry(transactions.end_txn, 0, 5, _TRANSACTIONS_TEST),
    ApiKey.TXN_OFFSET_COMMIT: Entry(txn_offsets.txn_offset_commit, 0, 5, _TRANSACTIONS_TEST),
    ApiKey.DESCRIBE_CONFIGS: Entry(configs.describe_configs, 1, 4, "tests/broker/test_handlers_admin.py", large=True),
    ApiKey.ALTER_CONFIGS: Entry(configs.alter_configs, 0, 2, "tests/broker/test_handlers_admin.py"),
    ApiKey.LIST_CONFIG_RESOURCES: Entry(configs.list_config_resources, 0, 1, "tests/broker/test_dynamic_configs.py"),
    ApiKey.DESCRIBE_LOG_DIRS: Entry(cluster.describe_log_dirs, 1, 5, "tests/broker/test_handlers_admin.py"),
    ApiKey.CREATE_PARTITIONS: Entry(topics.create_partitions, 0, 3, "tests/broker/test_handlers_admin.py"),
    ApiKey.DELETE_GROUPS: Entry(groups.delete_groups, 0, 2, "tests/broker/test_handlers_groups.py"),
    ApiKey.ELECT_LEADERS: Entry(reassignments.elect_leaders, 0, 2, "tests/broker/test_reassignments.py"),
    ApiKey.INCREMENTAL_ALTER_CONFIGS: Entry(
        configs.incremental_alter_configs, 0, 1, "tests/broker/test_handlers_admin.py"
    ),
    ApiKey.ALTER_PARTITION_REASSIGNMENTS: Entry(
        reassignments.alter_partition_reassignments, 0, 1, "tests/broker/test_reassignments.py"
    ),
    ApiKey.LIST_PARTITION_REASSIGNMENTS: Entry(
        reassignments.list_partition_reassignments, 0, 0, "tests/broker/test_reassignments.py"
    ),
    ApiKey.OFFSET_DELETE: Entry(offsets.offset_delete, 0, 0, "tests/broker/test_handlers_groups.py"),
    ApiKey.UPDATE_FEATURES: Entry(features.update_features, 0, 2, "tests/broker/test_features.py"),
    ApiKey.DESCRIBE_ACLS: Entry(acls.describe_acls, 1, 3, ADMINISTRATION),
    ApiKey.CREATE_ACLS: Entry(acls.create_acls, 1, 3, ADMINISTRATION),
    ApiKey.DELETE_ACLS: Entry(acls.delete_acls, 1, 3, ADMINISTRATION),
    ApiKey.ALTER_REPLICA_LOG_DIRS: Entry(cluster.alter_replica_log_dirs, 1, 2, ADMINISTRATION),
    ApiKey.DESCRIBE_CLIENT_QUOTAS: Entry(quotas.describe_client_quotas, 0, 1, ADMINISTRATION),
    ApiKey.ALTER_CLIENT_QUOTAS: Entry(quotas.alter_client_quotas, 0, 1, ADMINISTRATION),
    ApiKey.DESCRIBE_USER_SCRAM_CREDENTIALS: Entry(credentials.describe_user_scram_credentials, 0, 0, ADMINISTRATION),
    ApiKey.ALTER_USER_SCRAM_CREDENTIALS: Entry(credentials.alter_user_scram_credentials, 0, 0, ADMINISTRATION),
    ApiKey.DESCRIBE_QUORUM: Entry(cluster.describe_quorum, 0, 2, ADMINISTRATION),
    ApiKey.UNREGISTER_BROKER: Entry(cluster.unregister_broker, 0, 0, ADMINISTRATION),
    ApiKey.DESCRIBE_CLUSTER: Entry(cluster.describe_cluster, 0, 2, "tests/broker/test_handlers_admin.py"),
    ApiKey.DESCRIBE_PRODUCERS: Entry(
        transaction_markers.describe_producers, 0, 0, "tests/broker/transactions/test_markers.py"
    ),
    ApiKey.DESCRIBE_TRANSACTIONS: Entry(transactions.describe_transactions, 0, 0, _TRANSACTIONS_TEST),
    ApiKey.LIST_TRANSACTIONS: Entry(transactions.list_transactions, 0, 2, _TRANSACTIONS_TEST),
    ApiKey.CONSUMER_GROUP_HEARTBEAT: Entry(
        consumer_groups.consumer_group_heartbeat, 0, 1, "tests/broker/test_consumer_groups.py"
    ),
    ApiKey.CONSUMER_GROUP_DESCRIBE: Entry(
        consumer_groups.consumer_group_describe, 0, 1, "tests/broker/test_consumer_groups.py"
    ),
    ApiKey.DESCRIBE_TOPIC_PARTITIONS: Entry(
        metadata.describe_topic_partitions, 0, 0, "tests/broker/test_handlers_admin.py"
    ),
}

INTERNAL: dict[int, Entry] = {
    CONTROL_KEY: Entry(control.control, CONTROL_VERSION, CONTROL_VERSION, "tests/broker/test_control.py", raw=True)
}
"""Not Kafka's and not advertised: what brokers of a cluster say to each other."""


class Dispatcher:
    """Requests of all connections -> handlers of `table`."""

    def __init__(self, services: Services, table: dict[ApiKey, Entry]) -> None:
        self._services = services
        self._table: dict[int, Entry] = {**{int(key): entry for key, entry in table.items()}, **INTERNAL}
        self._requests = services.counters.requests
        self._latency = services.counters.other_latency
        self._produce = table[ApiKey.PRODUCE].handler
        self._fetch = table[ApiKey.FETCH].handler
        self._produce_versions = range(table[ApiKey.PRODUCE].min_version, table[ApiKey.PRODUCE].max_version + 1)
        self._fetch_versions = range(table[ApiKey.FETCH].min_version, table[ApiKey.FETCH].max_version + 1)
        self._produce_v2 = APIS[ApiKey.PRODUCE].request_header_v2_from or 0
        self._fetch_v2 = APIS[ApiKey.FETCH].request_header_v2_from or 0

    def request_bytes_max(self, api_key: int) -> int:
        """The largest request of an API; 0 if it is not served."""
        if api_key not in self._table:
            return 0
        if api_key == ApiKey.PRODUCE:
            return self._services.settings.socket_request_max_bytes
        if api_key == ApiKey.FETCH:
            return FETCH_BYTES_MAX
        if api_key == CONTROL_KEY:
            return CONTROL_BYTES_MAX
        return GROUP_BYTES_MAX if api_key in _GROUP_APIS else DECODED_BYTES_MAX

    def dispatch(self, connection: Connection, buf: bytearray, start: int, end: int, owned: bool) -> None:
        """Handle one frame without its length prefix (at least ten bytes). ProtocolError: close the connection."""
        api_key, version, correlation_id, length = _unpack_header(buf, start)
        if api_key == 0 and version in self._produce_versions:
            v2_from, handler = self._produce_v2, self._produce
        elif api_key == 1 and version in self._fetch_versions:
            v2_from, handler = self._fetch_v2, self._fetch
        else:
            self._slow(connection, buf, start, end)
            return
        pos = start + 10
        if length > 0:
            pos += length
        if version >= v2_from:
            if pos >= end:
                raise ProtocolError("request header is cut off")
            pos = skip_tagged_fields(buf, pos, end) if buf[pos] else pos + 1
        if pos > end:
            raise ProtocolError("request header is cut off")
        self._requests[api_key] += 1
        handler(self._services, connection, buf, pos, end, version, correlation_id, owned)

    def _slow(self, connection: Connection, buf: bytearray, start: int, end: int) -> None:
        frame = bytes(memoryview(buf)[start:end])
        api_key, version, correlation_id, client_id, body = parse_request_header(frame)
        entry = self._table.get(api_key)
        if entry is None or version < 0:
            raise ProtocolError(f"API {api_key} version {version} is not served")
        if api_key in INTERNAL:
            if version > entry.max_version:
                raise ProtocolError(f"API {api_key} version {version} is not served")
            entry.handler(self._services, connection, frame, body, len(frame), version, correlation_id, False)
            return
        self._requests[api_key] += 1
        if not entry.min_version <= version <= entry.max_version:
            self._unsupported(connection, frame, api_key, version, correlation_id, body)
            return
        context = RequestContext(
            self._services,
            connection,
            version,
            client_id,
            connection.client_address,
            connection.listener,
            connection.principal,
        )
        # librdkafka writes three bytes too many to ask for all topics.
        decode = partial(
            getattr(messages, APIS[api_key].name + "Request").decode, frame, version, body, trailing_ok=True
        )
        response: Any
        if len(frame) > OFF_LOOP_BYTES:
            response = _decode_and_handle(decode, entry.handler, context)
        else:
            response = entry.handler(decode(), context)
        if not inspect.isawaitable(response):
            connection.answer(_encode(response, api_key, version, correlation_id), self._latency)
            return
        reply = connection.owe(1, self._latency)
        reply.held = len(frame)
        connection.hub.budget.take(len(frame))
        connection.hold(HOLD_MUTED)
        self._services.tasks.spawn(
            self._finish(connection, reply, response, api_key, version, correlation_id), name=APIS[api_key].name
        )

    async def _finish(
        self,
        connection: Connection,
        reply: Reply,
        response: Awaitable[Any],
        api_key: int,
        version: int,
        correlation_id: int,
    ) -> None:
        """Answer a slow request, then let the connection go on."""
        try:
            made = await response
            if reply.held > OFF_LOOP_BYTES and self._table[api_key].large:
                loop = asyncio.get_running_loop()
                payload = await loop.run_in_executor(None, _encode, made, api_key, version, correlation_id)
            else:
                payload = _encode(made, api_key, version, correlation_id)
        except ProtocolError as error:
            connection.refuse(str(error))
            return
        except Exception:
            connection.broken()
            return
        if not connection.closed:
            reply.fill(payload)
            connection.release(HOLD_MUTED)

    def _unsupported(
        self, connection: Connection, frame: bytes, api_key: int, version: int, correlation_id: int, body: int
    ) -> None:
        if api_key == ApiKey.API_VERSIONS:
            response = api_versions.unsupported_version(self._table)
            connection.answer(response_frame(api_key, 0, correlation_id, response.encode(0)), self._latency)
        elif api_key == ApiKey.PRODUCE and version <= 2:
            produce_old.refuse_old(self._services, connection, frame, body, version, correlation_id)
        else:
            raise ProtocolError(f"{APIS[api_key].name} version {version} is not served")


async def _decode_and_handle(decode: Callable[[], Any], handler: Callable[..., Any], context: RequestContext) -> Any:
    """A large request: what it decodes to may be a million objects."""
    request = await asyncio.get_running_loop().run_in_executor(None, decode)
    response = handler(request, context)
    return await response if inspect.isawaitable(response) else response


def _encode(response: Any, api_key: int, version: int, correlation_id: int) -> bytes:
    """The frame of a response. What the version cannot say is a bug of the handler, not of the client."""
    try:
        return response_frame(api_key, version, correlation_id, response.encode(version))
    except ProtocolError as error:
        raise AssertionError(f"{type(response).__name__} v{version} cannot be encoded: {error}") from error
