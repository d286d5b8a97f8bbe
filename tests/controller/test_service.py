"""Who may ask the controller for what."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller import commands as c
from controller import service
from controller import wire as w
from controller.codec import Malformed, UnknownTag
from controller.replica import RECENT_ENTRIES_MAX, RecentEntries
from controller.service import ControllerService
from protocol.errors import ErrorCode
from storage.memory import MemoryStore
from storage.object_store import Unavailable
from tests.controller.builders import CLUSTER, next_range, seal_command
from tests.controller.processes import Process
from tests.controller.virtual import run

ASKER = (2, 200)
Ask = Callable[..., Any]


def asked(*requests: w.Request, **envelope: Any) -> list[w.Reply]:
    """What a controller of incarnation 100 (with node 2 registered as 200) replies to each."""

    async def main() -> list[w.Reply]:
        replies: list[w.Reply] = []
        async with asyncio.TaskGroup() as group:
            process = await controller(group)
            service = ControllerService(process.runtime)
            for request in requests:
                call = w.Call(CLUSTER, *ASKER, 100, request)
                if envelope:
                    call = w.Call(**{**{name: getattr(call, name) for name in call.__slots__}, **envelope})
                replies.append(w.decode_reply(await service.answer(w.encode_call(call))))
            process.task.cancel()
        return replies

    return run(main)


async def controller(group: asyncio.TaskGroup) -> Process:
    store = MemoryStore()
    process = Process(group, store, 1, 100)
    await process.client.wait_ready()
    await process.register()
    other = Process(group, store, 2, 200)
    command = await _register(other)
    await process.client.ask(command)
    await other.kill()
    return process


async def _register(process: Process) -> c.RegisterBroker:
    listeners = (("PLAINTEXT", "PLAINTEXT", "127.0.0.1", 9092),)
    return c.RegisterBroker(process.token(16), 2, 200, "boot", None, listeners, (c.NewWal(bytes([7]) * 16, "volume"),))  # type: ignore[arg-type]


def ask(command: Any) -> w.Ask:
    return w.Ask(c.encode_command(command), 5_000)


def code(reply: w.Reply) -> ErrorCode:
    assert isinstance(reply, w.Refused), reply
    return ErrorCode(reply.code)


def test_a_command_is_answered_with_its_position() -> None:
    (reply,) = asked(ask(c.AllocateProducerIds(b"a" * 16, 200)))
    assert isinstance(reply, w.Answered)
    assert c.decode_answer(reply.answer) == c.ProducerIdBlock(0, 1000) and reply.position == 4


@pytest.mark.parametrize(
    ("envelope", "expected"),
    [
        ({"cluster_id": "B" * 22}, ErrorCode.INCONSISTENT_CLUSTER_ID),
        ({"addressee": 99}, ErrorCode.NOT_CONTROLLER),
        ({"node_id": 3}, ErrorCode.CLUSTER_AUTHORIZATION_FAILED),
        ({"node_id": 1, "incarnation": 100}, ErrorCode.CLUSTER_AUTHORIZATION_FAILED),
        ({"node_id": 5, "incarnation": 500}, ErrorCode.CLUSTER_AUTHORIZATION_FAILED),
    ],
)
def test_envelopes_that_are_refused(envelope: dict[str, Any], expected: ErrorCode) -> None:
    (reply,) = asked(ask(c.AllocateProducerIds(b"a" * 16, 200)), **envelope)
    assert code(reply) is expected


@pytest.mark.parametrize(
    "command",
    [
        c.CleanStop(bytes(16), 100),
        c.EndSession(bytes(16), 100, 100),
        c.EndSilentSessions(bytes(16), (100,)),
        c.SweepLogStarts(bytes(16), ()),
        c.ForgetObjects(bytes(16), ("x",)),
        c.FreeNames(bytes(16), ("x",)),
        c.RegisterBroker(bytes(16), 1, 200, "boot", None, (), ()),
    ],
)
def test_nobody_speaks_for_another(command: Any) -> None:
    (reply,) = asked(ask(command))
    assert code(reply) is ErrorCode.CLUSTER_AUTHORIZATION_FAILED


def test_every_command_is_the_askers_or_any_brokers_or_the_controllers_own() -> None:
    own = {
        c.EndSilentSessions,
        c.RecoverInstances,
        c.SweepLogStarts,
        c.ForgetObjects,
        c.FreeNames,
        c.OpenJobs,
        c.DropManifestRows,
        c.ForgetJobs,
        c.ForgetClosed,
        c.RetireAbandoned,
        c.ForgetLosses,
        c.OpenCompactions,
        c.UnpackManifest,
    }
    asked = (*service._BY_THE_ASKER, *service._BY_ANY_BROKER, c.EndSession)
    assert {kind for kind in c.COMMAND_TAGS.values() if not issubclass(kind, asked)} == own


def test_who_is_not_registered_asks_for_nothing_but_that() -> None:
    (reply,) = asked(ask(c.CreateTopics(bytes(16), (c.NewTopic("t"),))), node_id=5, incarnation=500)
    assert code(reply) is ErrorCode.BROKER_ID_NOT_REGISTERED


def test_entries_from_memory_or_not_at_all() -> None:
    first, wait, beyond, before = asked(
        w.Follow(1, 0, 1 << 20), w.Follow(4, 50, 1 << 20), w.Follow(9, 0, 1 << 20), w.Follow(0, 0, 1 << 20)
    )
    assert isinstance(first, w.Entries) and len(first.entries) == 3
    assert wait == w.Entries(())
    assert code(beyond) is code(before) is ErrorCode.NOT_CONTROLLER


def test_who_is_there_is_said_by_everybody() -> None:
    assert asked(w.Who(), addressee=99, node_id=5, incarnation=500) == [w.Here(100)]
    (refused,) = asked(w.Who(), cluster_id="B" * 22)
    assert code(refused) is ErrorCode.INCONSISTENT_CLUSTER_ID


def test_heartbeats() -> None:
    granted, again = asked(w.Heartbeat(3, ((bytes([7]) * 16, 4),)), w.Heartbeat(3, ()))
    assert granted == again == w.Granted(6_000, 2_000)


def test_without_the_lease_nothing_is_said() -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            process = await controller(group)
            service = ControllerService(process.runtime)
            process.store.before = lambda method, key: Unavailable("away")
            waiting = group.create_task(
                service.answer(w.encode_call(w.Call(CLUSTER, *ASKER, 100, w.Follow(4, 9000, 1))))
            )
            await asyncio.sleep(4)
            for request in (w.Follow(1, 0, 1), w.Heartbeat(1, ()), ask(c.AllocateProducerIds(bytes(16), 200))):
                answer = await service.answer(w.encode_call(w.Call(CLUSTER, *ASKER, 100, request)))
                assert code(w.decode_reply(answer)) is ErrorCode.NOT_CONTROLLER
            assert code(w.decode_reply(await waiting)) is ErrorCode.NOT_CONTROLLER
            process.task.cancel()

    run(main)


def test_what_is_no_call() -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            process = await controller(group)
            service = ControllerService(process.runtime)
            newer = msgpack.packb([CLUSTER, *ASKER, 100, [99, 1]])
            longer = msgpack.packb([CLUSTER, *ASKER, 100, [3, 1, 2, 3, 4]])
            for data, expected in (
                (b"", ErrorCode.INVALID_REQUEST),
                (b"garbage", ErrorCode.INVALID_REQUEST),
                (b"\x91" * 5000, ErrorCode.INVALID_REQUEST),
                (newer, ErrorCode.UNSUPPORTED_VERSION),
                (longer, ErrorCode.UNSUPPORTED_VERSION),
            ):
                assert code(w.decode_reply(await service.answer(data))) is expected
            process.task.cancel()

    run(main)


@given(st.binary(max_size=200))
def test_garbage_is_malformed_not_a_crash(data: bytes) -> None:
    for decode in (w.decode_call, w.decode_reply):
        with pytest.raises((Malformed, UnknownTag)):
            decode(data)


def test_calls_and_replies_round_trip() -> None:
    seal = c.encode_command(
        seal_command(2**64 - 1, 1, [next_range(type("L", (), {"log_id": 1, "epoch": 0, "end": 5}))])
    )
    for request in (w.Ask(_tuples(seal), 5), w.Heartbeat(1, ((b"w" * 16, 2),)), w.Follow(1, 2, 3), w.Who()):
        call = w.Call("c", 1, 2**64 - 1, 3, request)
        assert w.decode_call(w.encode_call(call)) == call
    for reply in (w.Answered((1,), 7), w.Granted(1, 2), w.Entries((b"a", b"b")), w.Refused(41, "no", 3), w.Here(1)):
        assert w.decode_reply(w.encode_reply(reply)) == reply


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def test_recent_entries_are_bounded() -> None:
    recent = RecentEntries()
    assert recent.since(1, 100) == []
    for position in range(1, RECENT_ENTRIES_MAX + 11):
        recent.add(position, b"x" * 10)
    assert recent.since(10, 100) is None
    assert len(recent.since(11, 100) or ()) == 10
    assert len(recent.since(11, 1) or ()) == 1, "one at least"
    assert recent.since(RECENT_ENTRIES_MAX + 11, 100) == []
    recent.clear(20_000)
    assert recent.since(20_000, 100) is None and recent.since(20_001, 100) == []
