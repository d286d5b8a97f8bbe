"""The private API 30000, v0: what brokers of the cluster ask the controller in this process.

Not Kafka's, not advertised, and served on the inter-broker listener alone; elsewhere it is an unknown API. The body is
`controller.wire`'s. Answers of a connection come in request order, but a request does not hold up those behind it: a
broker keeps one connection for each kind of call.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from controller.service import ControllerService
from protocol.apis import CONTROL_KEY
from protocol.errors import ProtocolError
from protocol.framing import response_frame

if TYPE_CHECKING:
    from broker.connection import Connection, Reply
    from broker.services import Services


@dataclass(slots=True)
class ControlEndpoint:
    """Where other brokers ask: `listener` is `inter.broker.listener.name`; `connections` are those that did."""

    service: ControllerService
    listener: str
    connections: dict[Connection, None] = field(default_factory=dict)

    def met(self, connection: Connection) -> None:
        """A broker asks through the connection."""
        if connection not in self.connections:
            for gone in [known for known in self.connections if known.closed]:
                del self.connections[gone]
            self.connections[connection] = None


def control(
    services: Services,
    connection: Connection,
    buf: bytes,
    pos: int,
    end: int,
    version: int,
    correlation_id: int,
    owned: bool,
) -> None:
    """Answer when the controller has; a raw handler."""
    endpoint = services.control
    if endpoint is None or connection.listener != endpoint.listener:
        raise ProtocolError(f"API {CONTROL_KEY} version {version} is not served")
    endpoint.met(connection)
    body = bytes(buf[pos:end])
    reply = connection.owe(1, services.counters.control_latency)
    reply.held = len(body)
    connection.hub.budget.take(len(body))
    services.tasks.spawn(_answer(endpoint.service, connection, reply, body, version, correlation_id), name="control")


async def _answer(
    service: ControllerService, connection: Connection, reply: Reply, body: bytes, version: int, correlation_id: int
) -> None:
    try:
        answer = await service.answer(body)
    except Exception:
        connection.broken()
        return
    if not connection.closed:
        reply.fill(response_frame(CONTROL_KEY, version, correlation_id, answer))
