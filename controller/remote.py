"""The controller in another process: where it is, and what can be asked of it.

One attempt per call; who calls decides what to try again. What travels is in `controller.wire`, how it travels is the
`Link`'s business.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from controller import wire as w
from controller.brokers import Broker
from controller.codec import Malformed, UnknownTag
from controller.commands import decode_answer, encode_command
from controller.state import ClusterState
from protocol.errors import ErrorCode, KafkaError

FOLLOW_BYTES = 1 << 20
SLACK_MS = 500
"""How much longer than the controller an asker waits, so that it hears the controller's own word."""


class LinkError(Exception):
    """The call came to nothing; whether it was heard is not known."""


class LinkTimeout(LinkError):
    """Connected, or trying to, and no answer in time."""


class ControllerSilent(KafkaError):
    """NOT_CONTROLLER after a timeout: the process may be stopped or cut off."""


class Target(NamedTuple):
    """Where the controller listens; `incarnation` is who is meant."""

    node_id: int
    incarnation: int
    host: str
    port: int


class Link(Protocol):
    """Carries calls to other brokers."""

    async def call(self, lane: str, target: Target, body: bytes, timeout_ms: int) -> bytes:
        """The answer's body. `LinkError`. Answers of one lane come in order; lanes do not wait for each other."""
        ...


class RemoteController:
    """Calls of one incarnation. `listener`: `inter.broker.listener.name`."""

    def __init__(self, link: Link, *, cluster_id: str, node_id: int, incarnation: int, listener: str) -> None:
        self._link = link
        self._cluster_id = cluster_id
        self._node_id = node_id
        self._incarnation = incarnation
        self._listener = listener

    def target(self, state: ClusterState) -> Target:
        """Where the controller is. NOT_CONTROLLER: there is none, it is this process, or it has no address yet.

        One that is not registered yet waits perhaps for the session of the process that its node had before, and is
        most likely where that one was. Calls name the incarnation that is meant: whoever else is there refuses.
        """
        meant = state.controller_incarnation
        if state.controller_resigned or meant in (0, self._incarnation):
            raise KafkaError(ErrorCode.NOT_CONTROLLER, "no other process controls the cluster")
        broker = state.broker_table.incarnations.get(meant)
        if broker is None and meant not in state.broker_table.closed:
            broker = state.brokers.get(state.controller_node)
        elif broker is not None and not broker.alive:
            broker = None
        if broker is None:
            raise KafkaError(ErrorCode.NOT_CONTROLLER, f"node {state.controller_node}, the controller, is starting")
        for listener in broker.listeners:
            if listener.name == self._listener:
                return Target(broker.node_id, meant, listener.host, listener.port)
        raise KafkaError(
            ErrorCode.NOT_CONTROLLER,
            f"node {broker.node_id}, the controller, has no listener {self._listener}: "
            "inter.broker.listener.name must say the same on all brokers",
        )

    async def ask(self, state: ClusterState, command: Any, timeout_ms: int) -> tuple[Any, int]:
        """(answer, position up to which its facts are). `KafkaError` as `ControllerClient.ask`."""
        reply = await self._call("ask", state, w.Ask(encode_command(command), timeout_ms), timeout_ms + SLACK_MS)
        if not isinstance(reply, w.Answered):
            raise _unexpected(reply)
        try:
            return decode_answer(reply.answer), reply.position
        except (Malformed, UnknownTag) as error:
            raise _unexpected(error) from None

    async def heartbeat(
        self, state: ClusterState, position: int, validated: Mapping[bytes, int], timeout_ms: int
    ) -> tuple[int, int]:
        """(valid for ms since this was sent, send the next one after ms). `KafkaError` as `ControllerClient`."""
        beat = w.Heartbeat(position, tuple(validated.items()))
        reply = await self._call("heartbeat", state, beat, timeout_ms)
        if not isinstance(reply, w.Granted):
            raise _unexpected(reply)
        return reply.valid_ms, reply.next_ms

    async def follow(self, state: ClusterState, position: int, wait_ms: int) -> Sequence[bytes]:
        """Entries from `position` on; empty if there is none in `wait_ms`. `KafkaError`: they are not to be had."""
        wanted = w.Follow(position, wait_ms, FOLLOW_BYTES)
        reply = await self._call("follow", state, wanted, wait_ms + SLACK_MS)
        if not isinstance(reply, w.Entries):
            raise _unexpected(reply)
        return reply.entries

    async def is_there(self, broker: Broker, timeout_ms: int) -> bool:
        """Whether this very process answers where it said that it listens."""
        for listener in broker.listeners:
            if listener.name == self._listener:
                target = Target(broker.node_id, broker.incarnation, listener.host, listener.port)
                try:
                    reply = await self._send("who", target, w.Who(), timeout_ms)
                except (LinkError, Malformed, UnknownTag):
                    return False
                return reply == w.Here(broker.incarnation)
        return False

    async def _send(self, lane: str, target: Target, request: w.Request, timeout_ms: int) -> w.Reply:
        call = w.Call(self._cluster_id, self._node_id, self._incarnation, target.incarnation, request)
        return w.decode_reply(await self._link.call(lane, target, w.encode_call(call), timeout_ms))

    async def _call(self, lane: str, state: ClusterState, request: w.Request, timeout_ms: int) -> w.Reply:
        target = self.target(state)
        try:
            reply = await self._send(lane, target, request, timeout_ms)
        except LinkError as error:
            kind = ControllerSilent if isinstance(error, LinkTimeout) else KafkaError
            raise kind(ErrorCode.NOT_CONTROLLER, f"node {target.node_id}, the controller: {error}") from None
        except (Malformed, UnknownTag) as error:
            raise _unexpected(error) from None
        if isinstance(reply, w.Refused):
            raise KafkaError(_code(reply.code), reply.message)
        return reply


def _code(number: int) -> ErrorCode:
    try:
        return ErrorCode(number)
    except ValueError:
        return ErrorCode.UNKNOWN_SERVER_ERROR


def _unexpected(reply: object) -> KafkaError:
    return KafkaError(ErrorCode.NOT_CONTROLLER, f"an answer of the controller is not known here: {reply!r:.200}")
