"""Apache Kafka and tidelog beside each other: one request goes to both, the two answers are compared.

What each broker chooses by itself (topic ids, producer ids, member ids, ports) differs between the two. Requests are
written with Kafka's values; `Values` knows which of ours stands for which of Kafka's, and both have to be used alike.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from select import select
from struct import Struct
from typing import Any, TypeAlias

from protocol import messages as m
from protocol.apis import APIS, ApiKey
from protocol.codec import Data
from protocol.framing import parse_response_header, request_frame
from tests.differential.compare import Difference, differences
from tests.differential.values import Values

_LENGTH = Struct(">i")
CLIENT_ID = "differential"
LOADING = 14

Part: TypeAlias = Callable[[Any], Any]


def whole(answer: Any) -> Any:
    """All of an answer is compared."""
    return answer


class Closed(Exception):
    """The broker closed the connection instead of answering."""


class Connection:
    """One connection to one broker: a request, its answer."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._number = 0

    def send(self, api: ApiKey, version: int, message: Any) -> None:
        """Send without waiting for the answer."""
        self._number += 1
        self._socket.sendall(request_frame(api, version, self._number, CLIENT_ID, message.encode(version)))

    def receive(self, api: ApiKey, version: int) -> Any:
        """The answer to the request sent last. `Closed`."""
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        frame = self._exactly(length)
        number, position = parse_response_header(frame, api, version)
        assert number == self._number, (number, self._number)
        return getattr(m, APIS[api].name + "Response").decode(frame, version, position)

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                got = self._socket.recv(size - len(data))
            except ConnectionError:
                got = b""
            if not got:
                raise Closed
            data += got
        return bytes(data)

    def readable(self) -> bool:
        """Has something come?"""
        return bool(select([self._socket], [], [], 0)[0])

    def close(self) -> None:
        """Close it."""
        self._socket.close()


class Pair:
    """Both brokers. `ask` fails with every field that differs and is not in the table of allowed differences."""

    def __init__(self, kafka_port: int, tidelog_port: int) -> None:
        self.ports = (kafka_port, tidelog_port)
        self.values = Values()
        self._connections: dict[str, tuple[Connection, Connection]] = {}
        self.versions = self._common_versions()
        self._wait_until_warm("any")
        self.asked = 0
        self.translate_records: Callable[[bytes], bytes] | None = None

    def _common_versions(self) -> Mapping[ApiKey, range]:
        served = []
        for port in self.ports:
            connection = Connection(port)
            connection.send(
                ApiKey.API_VERSIONS, 3, m.ApiVersionsRequest(client_software_name="d", client_software_version="1")
            )
            answer = connection.receive(ApiKey.API_VERSIONS, 3)
            connection.close()
            served.append({one.api_key: one for one in answer.api_keys})
        kafka, ours = served
        return {
            ApiKey(key): range(
                max(kafka[key].min_version, ours[key].min_version, APIS[ApiKey(key)].min_version),
                min(kafka[key].max_version, ours[key].max_version) + 1,
            )
            for key in kafka
            if key in ours and key in set(ApiKey)
        }

    def _wait_until_warm(self, key: str) -> None:
        """Until both have a coordinator, whose topic is made when somebody first asks, and a block of producer ids."""
        deadline = time.perf_counter() + 30
        for kind in (0, 1):
            request = m.FindCoordinatorRequest(key=key, key_type=kind)
            while any(answer.error_code for answer in self.each(ApiKey.FIND_COORDINATOR, 3, request)):
                assert time.perf_counter() < deadline, "no coordinator"
                time.sleep(0.05)
        transactions = m.DescribeTransactionsRequest(transactional_ids=[key])
        while any(
            answer.transaction_states[0].error_code == LOADING
            for answer in self.each(ApiKey.DESCRIBE_TRANSACTIONS, 0, transactions)
        ):
            assert time.perf_counter() < deadline, "the coordinator of transactions does not load"
            time.sleep(0.05)
        describe = m.DescribeGroupsRequest(groups=[key])
        while any(answer.groups[0].error_code == LOADING for answer in self.each(ApiKey.DESCRIBE_GROUPS, 5, describe)):
            assert time.perf_counter() < deadline, "the coordinator does not load"
            time.sleep(0.05)
        producer = m.InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=1000)
        while any(answer.error_code for answer in self.each(ApiKey.INIT_PRODUCER_ID, 4, producer)):
            assert time.perf_counter() < deadline, "no producer ids"
            time.sleep(0.05)

    def begin(self, api: ApiKey, version: int, request: Any, connection: str = "main") -> None:
        """Send a request to both; `finish` takes the answers. One at a time on each named connection."""
        pair = self._connections.get(connection)
        if pair is None:
            pair = self._connections[connection] = (Connection(self.ports[0]), Connection(self.ports[1]))
        kafka, tidelog = pair
        kafka.send(api, version, request)
        tidelog.send(api, version, self._ours(request))

    def _ours(self, request: Any) -> Any:
        return self.values.ours(request, self.translate_records)

    def finish(self, api: ApiKey, version: int, request: Any, connection: str = "main", part: Part = whole) -> Any:
        """Kafka's answer, which ours is like. None: both closed the connection. `part`: what is compared of it."""
        answers = []
        for one in self._connections[connection]:
            try:
                answers.append(part(one.receive(api, version)))
            except Closed:
                answers.append(None)
        kafka, tidelog = answers
        if kafka is None or tidelog is None:
            self.drop(connection)
        self.asked += 1
        found = differences(api, version, request, kafka, tidelog, self.values)
        if found:
            raise AssertionError(_text(api, version, request, found))
        return kafka

    def ask(self, api: ApiKey, version: int, request: Any, connection: str = "main", part: Part = whole) -> Any:
        """One request to both, Kafka's answer."""
        self.begin(api, version, request, connection)
        return self.finish(api, version, request, connection, part)

    def answered(self, connection: str) -> bool:
        """Whether either has something to say on a connection where an answer is awaited."""
        return any(one.readable() for one in self._connections[connection])

    def each(self, api: ApiKey, version: int, request: Any) -> tuple[Any, Any]:
        """The answers of Kafka and tidelog, not compared: for waiting until both have come so far."""
        pair = []
        for port, message in zip(self.ports, (request, self.values.ours(request))):
            connection = Connection(port)
            connection.send(api, version, message)
            pair.append(connection.receive(api, version))
            connection.close()
        return pair[0], pair[1]

    def drop(self, connection: str) -> None:
        """Close a named connection to both."""
        for one in self._connections.pop(connection, ()):
            one.close()

    def close(self) -> None:
        """Close all connections."""
        for name in list(self._connections):
            self.drop(name)


def _text(api: ApiKey, version: int, request: Data, found: list[Difference]) -> str:
    lines = [f"{APIS[api].name} v{version} is answered differently", f"  request: {request!r}"]
    lines += [f"  {one.path}: Kafka {one.kafka!r}, tidelog {one.tidelog!r}" for one in found]
    return "\n".join(lines)
