"""The private API on a broker's listeners: where it is served, and what a peer that misbehaves gets."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from controller import wire as w
from controller.client import ClusterController
from controller.commands import CleanStop
from protocol import messages as m
from protocol.apis import CONTROL_KEY, ApiKey
from protocol.errors import ErrorCode, KafkaError
from protocol.framing import request_frame
from tests.support.node_runs import NodeRuns, hurry
from tests.support.raw_client import RawClient
from tests.support.waiting import until

IN_AND_OUT = {
    "listener_security_protocol_map": "OUT:PLAINTEXT,IN:PLAINTEXT",
    "listeners": "OUT://127.0.0.1:0,IN://127.0.0.1:0",
    "inter_broker_listener_name": "IN",
}


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NodeRuns]:
    hurry(monkeypatch)
    async with NodeRuns(tmp_path, **IN_AND_OUT) as runs:
        await runs.start()
        yield runs


def ports(node: NodeRuns) -> tuple[int, int]:
    """(for clients, for brokers)."""
    outside, inside = node.broker.listeners
    return outside.port, inside.port


def frame(body: bytes, number: int = 7, version: int = 0) -> bytes:
    return request_frame(CONTROL_KEY, version, number, "peer", body)


async def reply(client: RawClient) -> tuple[int, w.Reply]:
    answer = await client.receive_frame()
    return int.from_bytes(answer[:4], "big"), w.decode_reply(answer[4:])


def call(node: NodeRuns, request: w.Follow | w.Heartbeat) -> bytes:
    broker = node.broker
    return w.encode_call(w.Call(broker.cluster_id, 1, broker.incarnation, broker.incarnation, request))


async def test_it_is_served_on_the_inter_broker_listener_alone(node: NodeRuns) -> None:
    outside, inside = ports(node)
    async with RawClient(inside) as peer:
        peer.writer.write(frame(call(node, w.Follow(1, 0, 100))))
        number, found = await reply(peer)
        assert number == 7 and isinstance(found, w.Entries) and len(found.entries) == 1
    async with RawClient(outside) as stranger:
        stranger.writer.write(frame(call(node, w.Follow(1, 0, 100))))
        assert await stranger.closed()
    assert node.broker.counters.protocol_errors == 1


async def test_it_is_not_advertised_and_clients_are_served_beside_it(node: NodeRuns) -> None:
    for port in ports(node):
        async with RawClient(port) as client:
            answer = await client.ask(
                ApiKey.API_VERSIONS, 3, m.ApiVersionsRequest(client_software_name="a", client_software_version="1")
            )
            assert CONTROL_KEY not in {api.api_key for api in answer.api_keys}


async def test_a_newer_version_and_garbage(node: NodeRuns) -> None:
    _, inside = ports(node)
    async with RawClient(inside) as peer:
        peer.writer.write(frame(b"garbage"))
        _, refused = await reply(peer)
        assert isinstance(refused, w.Refused) and refused.code == ErrorCode.INVALID_REQUEST
        peer.writer.write(frame(b"", version=1))
        assert await peer.closed()


async def test_a_long_poll_holds_up_nothing_but_its_own_connection(node: NodeRuns) -> None:
    _, inside = ports(node)
    position = node.broker.controller.position
    async with RawClient(inside) as polling, RawClient(inside) as beating:
        polling.writer.write(frame(call(node, w.Follow(position + 1, 20_000, 100))))
        beating.writer.write(frame(call(node, w.Heartbeat(position, ()))))
        _, granted = await reply(beating)
        assert isinstance(granted, w.Granted)
        await node.create("t")
        _, found = await reply(polling)
        assert isinstance(found, w.Entries) and found.entries


async def test_peers_that_leave_while_they_wait_leave_nothing_behind(node: NodeRuns) -> None:
    _, inside = ports(node)
    broker = node.broker
    position = broker.controller.position + 2
    for _ in range(20):
        async with RawClient(inside) as peer:
            peer.writer.write(frame(call(node, w.Follow(position, 20_000, 100))) * 3)
            await peer.writer.drain()
    await until(lambda: not broker.server.hub.connections)
    assert broker.server.hub.budget.used == 0
    async with RawClient(inside) as peer:
        peer.writer.write(frame(call(node, w.Heartbeat(1, ()))))
        await reply(peer)
    endpoint = broker.services.control
    assert endpoint is not None and len(endpoint.connections) <= 2


async def test_a_peer_is_answered_until_the_end_and_a_client_is_not(node: NodeRuns) -> None:
    """A controller that stops renews the sessions of others until its own end is a fact."""
    _, inside = ports(node)
    server = node.broker.server
    async with RawClient(inside) as peer, RawClient(inside) as client:
        peer.writer.write(frame(call(node, w.Heartbeat(1, ()))))
        await reply(peer)
        await client.ask(ApiKey.API_VERSIONS, 0, m.ApiVersionsRequest())
        await server.drain(1000, but_peers=True)
        assert await client.closed()
        peer.writer.write(frame(call(node, w.Heartbeat(1, ())), 8))
        assert (await reply(peer))[0] == 8
        async with RawClient(inside) as late, RawClient(inside) as another:
            late.send(ApiKey.API_VERSIONS, 0, m.ApiVersionsRequest())
            assert await late.closed()
            another.writer.write(frame(call(node, w.Heartbeat(1, ())), 9))
            assert (await reply(another))[0] == 9


async def test_a_broker_that_waits_at_its_start_answers_its_peers(tmp_path: Path, node: NodeRuns) -> None:
    """The controller of others may itself have much to recover before it serves clients."""
    async with NodeRuns(tmp_path / "second", **IN_AND_OUT, node_id=2) as second:
        second.memory = node.memory
        held = asyncio.Event()
        second.overrides["tidelog.http.listener"] = ""
        serving = second.spawn()
        original = second.broker._wait_for_file

        async def wait(*, may_begin_full: bool) -> None:
            await held.wait()
            await original(may_begin_full=may_begin_full)

        second.broker._wait_for_file = wait  # type: ignore[method-assign]
        await until(lambda: 2 in node.broker.controller.state.brokers and second.broker.listeners)
        outside, inside = ports(second)
        broker = second.broker
        body = w.encode_call(w.Call(broker.cluster_id, 1, 1, broker.incarnation, w.Follow(1, 0, 1)))

        async def asked() -> w.Reply:
            async with RawClient(inside) as peer:
                peer.writer.write(frame(body))
                return (await reply(peer))[1]

        found = await asked()
        assert isinstance(found, w.Refused) and found.code == ErrorCode.NOT_CONTROLLER and found.controller_node == 1
        async with RawClient(inside) as client:
            client.send(ApiKey.API_VERSIONS, 0, m.ApiVersionsRequest())
            assert await client.closed()
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", outside)
        held.set()
        assert await serving


async def test_a_client_of_a_broker_whose_session_just_ended_asks_again(
    node: NodeRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker cannot speak in its own name any more, and kafka-python would take that for the topic's fault."""
    asked = 0

    async def ask(*_: object) -> tuple[object, int]:
        nonlocal asked
        asked += 1
        raise KafkaError(ErrorCode.STALE_BROKER_EPOCH, "the session of incarnation 7 was ended")

    def create() -> None:
        admin = KafkaAdminClient(bootstrap_servers=f"127.0.0.1:{ports(node)[0]}")
        try:
            admin.create_topics([NewTopic("again", 1, 1)])
        finally:
            admin.close()

    monkeypatch.setattr(ClusterController, "leads", property(lambda _: bool(asked)))
    monkeypatch.setattr(node.broker.runtime._remote, "ask", ask)
    await asyncio.to_thread(create)
    assert asked == 1 and "again" in node.broker.controller.state.topics
    with pytest.raises(KafkaError, match="STALE_BROKER_EPOCH"):  # in its own name it hears what is true
        monkeypatch.setattr(ClusterController, "leads", False)
        await node.broker.controller.ask(CleanStop(bytes(16), node.broker.incarnation))
