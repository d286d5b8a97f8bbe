"""What a broker says to the controller, and what it is answered: bytes of msgpack, in a frame of the private API.

A call says who asks, in which cluster, and which process (by its incarnation) it means; `request` is one of `Ask`,
`Heartbeat` and `Follow`, which only the controller answers, and `Who`. Tags as in `controller.codec`: a class may grow
at its end, an unknown tag is refused.
"""

from dataclasses import dataclass
from typing import Any

import msgpack

from controller.codec import Malformed, Registry

_requests = Registry("request")
_replies = Registry("reply")


@dataclass(frozen=True, slots=True)
class Ask:
    """A command as `commands.encode_command` gives it. Answered with `Answered` or `Refused` within `timeout_ms`."""

    command: Any
    timeout_ms: int


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """As `ControllerClient.heartbeat`; `validated`: (wal id, group). Answered with `Granted` or `Refused`."""

    position: int
    validated: tuple[tuple[bytes, int], ...]


@dataclass(frozen=True, slots=True)
class Follow:
    """The entries from `position` on, at most about `bytes_max` of them; the first is waited for up to `wait_ms`.

    Answered with `Entries`, or with `Refused`: OFFSET_OUT_OF_RANGE when they are not in memory any more (the bucket
    has them), NOT_CONTROLLER.
    """

    position: int
    wait_ms: int
    bytes_max: int


@dataclass(frozen=True, slots=True)
class Who:
    """Are you there? Answered with `Here`, also by a process that is not the one that is meant."""


Request = Ask | Heartbeat | Follow | Who


@dataclass(frozen=True, slots=True)
class Call:
    """The envelope. `node_id` and `incarnation` are the asker's, `addressee` is the incarnation that is meant."""

    cluster_id: str
    node_id: int
    incarnation: int
    addressee: int
    request: Request


@dataclass(frozen=True, slots=True)
class Answered:
    """`answer` as `commands.encode_answer` gives it; what it says is in the entries up to `position`."""

    answer: Any
    position: int


@dataclass(frozen=True, slots=True)
class Granted:
    """See `client.Grant`."""

    valid_ms: int
    next_ms: int


@dataclass(frozen=True, slots=True)
class Entries:
    """Entries as the log has them, in order; none if there was none in time."""

    entries: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """A `KafkaError`. NOT_CONTROLLER names whom the refuser takes for the controller, -1: it knows none."""

    code: int
    message: str
    controller_node: int = -1


@dataclass(frozen=True, slots=True)
class Here:
    """Who answers."""

    incarnation: int


Reply = Answered | Granted | Entries | Refused | Here

for _tag, _cls in {1: Ask, 2: Heartbeat, 3: Follow, 4: Who}.items():
    _requests.register(_tag, _cls)
for _tag, _cls in {1: Answered, 2: Granted, 3: Entries, 4: Refused, 5: Here}.items():
    _replies.register(_tag, _cls)


def encode_call(call: Call) -> bytes:
    """The body of a request frame."""
    head = [call.cluster_id, call.node_id, call.incarnation, call.addressee]
    packed: bytes = msgpack.packb([*head, _requests.encode(call.request)])
    return packed


def decode_call(data: bytes) -> Call:
    """`Malformed`, `UnknownTag`."""
    match _unpack(data):
        case (str() as cluster_id, int() as node_id, int() as incarnation, int() as addressee, request):
            return Call(cluster_id, node_id, incarnation, addressee, _requests.decode(request))
        case _:
            raise Malformed("a call is a cluster id, a node id, two incarnations and a request")


def encode_reply(reply: Reply) -> bytes:
    """The body of a response frame."""
    packed: bytes = msgpack.packb(_replies.encode(reply))
    return packed


def decode_reply(data: bytes) -> Reply:
    """`Malformed`, `UnknownTag`."""
    reply: Reply = _replies.decode(_unpack(data))
    return reply


def _unpack(data: bytes) -> Any:
    try:
        return msgpack.unpackb(data, use_list=False)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise Malformed(f"not msgpack: {error!r}") from None
