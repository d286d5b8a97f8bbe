"""Quotas on virtual time: over minutes nobody gets more than his share, whatever he sends and whether he waits as he is
told; who has no quota notices nothing; and nobody stays muted, whatever happens to him meanwhile.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.connection import HOLD_THROTTLED
from broker.quotas import FETCH_RATE, MUTATIONS, PRODUCE_RATE, REQUEST_TIME
from protocol.apis import ApiKey
from protocol.errors import KafkaError
from tests.support.quota_world import SECOND, Client, World, world

KIB = 1024
WINDOWS = 11
SPAN_S = 60
GENEROUS = 1.25
"""Windows count from their first request, so that over minutes a quota may be exceeded by a part, as Kafka's."""
LIMITED, FREE = "limited", "free"
LIMITED_CLIENTS = (("client-id", LIMITED),)
EVERYBODY = (("client-id", None),)


def per_client(made: World, clients: list[Client]) -> list[int]:
    """Bytes of Produce requests that the broker took of each."""
    return [sum(size for _, whose, size in made.taken if whose is client.connection) for client in clients]


@given(
    bound_kib=st.integers(10, 500),
    sizes=st.lists(st.floats(0.2, 30), min_size=1, max_size=3),
    depth=st.integers(1, 4),
    polite=st.booleans(),
)
@settings(max_examples=8)
def test_producers_over_minutes(bound_kib: int, sizes: list[float], depth: int, polite: bool) -> None:
    """`sizes`: of requests, in seconds at the rate of the quota. Each client has its own quota and connection."""
    bound, span_s = bound_kib * KIB, SPAN_S
    with world() as made:
        for number in range(len(sizes)):
            made.set_quota((("client-id", f"{LIMITED}{number}"),), producer_byte_rate=bound)
        clients = [
            Client(made, f"{LIMITED}{number}", ApiKey.PRODUCE, int(size * bound), polite=polite).start(depth)
            for number, size in enumerate(sizes)
        ]
        made.run(span_s)
        for took, client in zip(per_client(made, clients), clients, strict=True):
            assert took <= bound * (span_s * GENEROUS + WINDOWS) + client.size + KIB
            assert took >= bound * (span_s - WINDOWS) - client.size, "and no less"


@given(
    bound_kib=st.integers(10, 200),
    sizes=st.lists(st.floats(0.2, 1), min_size=1, max_size=4),
    depth=st.integers(1, 3),
)
@settings(max_examples=8)
def test_producers_that_share_a_quota(bound_kib: int, sizes: list[float], depth: int) -> None:
    """Each is muted for itself, so that in each round of the windows every connection may send one request more."""
    bound, span_s = bound_kib * KIB, SPAN_S
    with world() as made:
        made.set_quota(LIMITED_CLIENTS, producer_byte_rate=bound)
        clients = [Client(made, LIMITED, ApiKey.PRODUCE, int(size * bound)).start(depth) for size in sizes]
        made.run(span_s)
        took = per_client(made, clients)
        a_round = sum(client.size + KIB for client in clients)
        assert sum(took) <= bound * (span_s * GENEROUS + WINDOWS) + (span_s / WINDOWS + 1) * a_round
        assert sum(took) >= bound * (span_s - WINDOWS)
        assert min(took) > 0


@given(
    bound_kib=st.integers(10, 200),
    most_kib=st.lists(st.integers(50, 8000), min_size=1, max_size=4),
    batch_s=st.sampled_from([0.01, 0.5, 5, 30]),
    polite=st.booleans(),
)
@settings(max_examples=8)
def test_consumers_over_minutes(bound_kib: int, most_kib: list[int], batch_s: float, polite: bool) -> None:
    """Batches that are larger than all windows allow come through as well, one at a time."""
    bound, span_s = bound_kib * KIB, SPAN_S
    with world(batch_bytes=max(100, int(batch_s * bound))) as made:
        made.set_quota(LIMITED_CLIENTS, consumer_byte_rate=bound)
        clients = [Client(made, LIMITED, ApiKey.FETCH, most * KIB, polite=polite).start() for most in most_kib]
        made.run(span_s)
        got = [sum(size for _, size in client.received) for client in clients]
        batch = made.log.tail.batch_bytes
        assert sum(got) <= bound * (span_s * GENEROUS + WINDOWS) + batch * len(clients)
        assert sum(got) >= bound * (span_s - WINDOWS) / 2 - 2 * batch
        told = [ms for client in clients for ms in client.throttled]
        assert told, "they ask for more than they may have"


def test_a_throttled_fetch_is_empty() -> None:
    with world() as made:
        made.set_quota(LIMITED_CLIENTS, consumer_byte_rate=100 * KIB)
        client = Client(made, LIMITED, ApiKey.FETCH, 600 * KIB).start()
        made.run(0.5)
        sizes = [size for _, size in client.received]
        assert sizes[0] > 590 * KIB and 390 * KIB < sizes[1] < 410 * KIB, "as much as there is room for in 10 s"
        assert sizes[2] < 100 and 900 < client.throttled[0] <= 1000, "100 KiB more would have been too much"
        assert len(sizes) == 3 and len(client.throttled) == 1
        assert made.hub.counters.fetch_bytes == sum(size // 100 * 100 for size in sizes)


def test_a_fetch_is_emptied_once_for_the_time_of_requests() -> None:
    """Every request takes a hundred times what the quota allows: the client gets on, if slowly."""
    with world(work_us=100_000) as made:
        made.set_quota(LIMITED_CLIENTS, request_percentage=0.1)
        client = Client(made, LIMITED, ApiKey.FETCH, 10 * KIB).start()
        made.run(60)
        sizes = [size > KIB for _, size in client.received]
        assert len(sizes) > 40 and sizes[:5] == [True, False, True, False, True]


@given(
    share=st.floats(1, 50),
    part=st.floats(0.2, 0.9),
    api=st.sampled_from([ApiKey.METADATA, ApiKey.PRODUCE, ApiKey.FETCH]),
    polite=st.booleans(),
)
@settings(max_examples=8)
def test_the_time_of_requests_over_minutes(share: float, part: float, api: ApiKey, polite: bool) -> None:
    """One connection whose requests take `part` of what the quota gives in a window, which is as long as a throttle."""
    span_s, work_us = SPAN_S, max(1000, int(share / 100 * part * SECOND))
    with world(work_us=work_us) as made:
        made.set_quota(EVERYBODY, request_percentage=share)
        client = Client(made, LIMITED, api, 100, polite=polite).start()
        made.run(span_s)
        used_s = len(client.received) * work_us / SECOND
        assert used_s <= share / 100 * (span_s * GENEROUS + WINDOWS) + 2 * work_us / SECOND
        assert all(ms <= 1000 for ms in client.throttled)


@given(
    bound=st.floats(0.5, 50),
    asked=st.lists(st.tuples(st.integers(1, 400), st.integers(0, 5000)), min_size=1, max_size=100),
    strict=st.booleans(),
)
@settings(max_examples=30)
def test_mutations_over_minutes(bound: float, asked: list[tuple[int, int]], strict: bool) -> None:
    """`asked`: partitions, and ms since the request before. Those who are only throttled wait as they are told."""
    with world() as made:
        made.set_quota(LIMITED_CLIENTS, controller_mutation_rate=bound)
        done, most = 0, 0
        for partitions, pause_ms in asked:
            made.run(pause_ms / 1000)
            mutations = made.quotas.mutations("User:ANONYMOUS", LIMITED)
            assert mutations is not None
            try:
                mutations.take(partitions, strict=strict)
                done, most = done + partitions, max(most, partitions)
            except KafkaError:
                assert strict
            if not strict:
                made.run(mutations.throttle_ms() / 1000)
        assert done <= bound * (made.time() + WINDOWS) + most + 1


@given(
    limited=st.lists(st.sampled_from([ApiKey.PRODUCE, ApiKey.FETCH, ApiKey.METADATA]), min_size=1, max_size=6),
    depth=st.integers(1, 5),
)
@settings(max_examples=8)
def test_who_has_no_quota_does_not_notice(limited: list[ApiKey], depth: int) -> None:
    with world() as made:
        made.set_quota(
            LIMITED_CLIENTS, producer_byte_rate=50 * KIB, consumer_byte_rate=50 * KIB, request_percentage=0.01
        )
        muted = [Client(made, LIMITED, api, 300 * KIB).start(depth) for api in limited]
        free = [Client(made, FREE, api, 10 * KIB, pause_s=0.05).start() for api in (ApiKey.PRODUCE, ApiKey.FETCH)]
        made.run(20)
        assert all(client.throttled for client in muted)
        for client in free:
            assert len(client.received) > 300 and not client.throttled
            assert max(client.waits_us) < 10_000, "2 ms for the disk, and the requests of the others"


class Story:
    """Clients that are muted now and then while quotas change, connections end and the broker drains."""

    def __init__(self, made: World) -> None:
        self.world = made
        self.clients: list[Client] = []

    def join(self, api: ApiKey) -> None:
        self.clients.append(Client(self.world, LIMITED, api, 200 * KIB, pause_s=0.05).start(2))

    def change(self, rate: float | None) -> None:
        quota = {} if rate is None else {PRODUCE_RATE: rate, FETCH_RATE: rate, REQUEST_TIME: 1.0, MUTATIONS: 1.0}
        self.world.set_quota(LIMITED_CLIENTS, **quota)

    def leave(self, number: int) -> None:
        if self.clients:
            self.clients[number % len(self.clients)].close()

    def drain(self, number: int) -> None:
        if self.clients:
            self.clients[number % len(self.clients)].connection.finish()

    def check(self) -> None:
        """When everybody may take what he likes, and nobody is muted any more."""
        made = self.world
        for client in self.clients:
            if not client.gone:
                assert not client.connection.holds & HOLD_THROTTLED
                answers = len(client.received)
                made.run(3)
                assert len(client.received) > answers + 2, "it goes on"
                client.close()
        made.run(0)
        assert not made.quotas._muted and not made.quotas._emptied and not made.hub.connections
        assert made.hub.budget.used == 0


STEPS = st.one_of(
    st.tuples(st.just("join"), st.sampled_from([ApiKey.PRODUCE, ApiKey.FETCH, ApiKey.METADATA])),
    st.tuples(st.just("change"), st.sampled_from([None, 20.0 * KIB, 100.0 * KIB, 5000.0 * KIB])),
    st.tuples(st.just("leave"), st.integers(0, 9)),
    st.tuples(st.just("drain"), st.integers(0, 9)),
)


@given(st.lists(st.tuples(STEPS, st.sampled_from([0.0, 0.001, 0.5, 3.0])), min_size=3, max_size=14))
@settings(max_examples=15)
def test_nobody_stays_muted(steps: list[tuple[tuple[str, object], float]]) -> None:
    with world() as made:
        story = Story(made)
        story.change(20.0 * KIB)
        for (what, argument), pause_s in steps:
            getattr(story, what)(argument)
            made.run(pause_s)
        story.change(None)
        for client in story.clients:
            client.pause_s = 1
        made.run(600)
        story.check()


@pytest.mark.parametrize("end", ["leave", "drain"])
def test_a_muted_connection_that_ends_is_forgotten(end: str) -> None:
    with world() as made:
        story = Story(made)
        story.change(20.0 * KIB)
        story.join(ApiKey.PRODUCE)
        made.run(0.5)
        assert made.quotas._muted
        getattr(story, end)(0)
        made.run(0.1)
        assert not made.quotas._muted and not made.hub.connections and made.hub.budget.used == 0


def test_a_connection_that_ended_is_not_muted() -> None:
    """A slow request may be answered, and throttled, when its connection is gone."""
    with world() as made:
        client = Client(made, LIMITED, ApiKey.METADATA)
        client.close()
        made.run(0)
        made.quotas.mute(client.connection, 3_600_000)
        assert not made.quotas._muted
