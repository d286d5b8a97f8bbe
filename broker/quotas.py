"""Client quotas are kept: who takes more than his share is told to wait, and is not heard meanwhile (KIP-219).

While quotas of users or client ids are set, requests pass `ClientQuotas.dispatch` on their way to their handlers;
without any, nothing here is called. It measures what arrives (`producer_byte_rate`: the bytes of Produce requests) and
how long the event loop is kept (`request_percentage`: of one thread, as there is one); answers of Fetch are measured
when they are made (`consumer_byte_rate`). The answer of who is above says `throttle_time_ms`, and its connection is
muted for so long. Each broker measures on its own.

As in Kafka the answer itself is not held back, and that of a throttled Fetch is empty: its records count when they go
out. A fetch is cut to what the quota has room for. Unlike in Kafka nobody waits for ever: a batch larger than all
windows allow goes out as soon as the rate without it is within the quota, and a Fetch that only the request time would
empty is emptied once, not again and again. What a request does after its first wait is not counted as time.
Controller mutations (KIP-599) are counted in the handlers of topics, by the partitions that a request names.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from struct import Struct
from typing import TYPE_CHECKING, Protocol

from broker.connection import HOLD_THROTTLED, Reply
from broker.quota_meters import IP, Found, Rate, TokenBucket, find
from controller import facts as f
from protocol import messages
from protocol.apis import APIS, CONTROL_KEY, ApiKey
from protocol.errors import ErrorCode, KafkaError, ProtocolError
from protocol.framing import parse_response_header, response_frame

if TYPE_CHECKING:
    from broker.connection import Connection, Dispatch
    from broker.metrics import Counters
    from broker.settings import Settings
    from controller.access import Entity
    from protocol import Buffer
    from storage.clock import Clock

PRODUCE_RATE, FETCH_RATE = "producer_byte_rate", "consumer_byte_rate"
REQUEST_TIME, MUTATIONS = "request_percentage", "controller_mutation_rate"
CONNECTIONS = "connection_creation_rate"
METERS_MAX = 10_000
"""Beyond so many meters the one goes that was not used for the longest time."""
CUT_AFTER_MS = 24 * 3600 * 1000
"""No throttle is longer: clients keep it in 32 bits."""

_HEADER = Struct(">hhih")
_INT32 = Struct(">i")
_FETCH_MAX_BYTES = {version: 8 if version >= 15 else 12 for version in range(19)}
"""Where in a Fetch request, behind its header, `max_bytes` is: behind wait, minimum and, once, the replica."""


class State(Protocol):
    """What of the cluster's state is needed."""

    @property
    def quotas(self) -> dict[Entity, dict[str, float]]:
        """By entity."""
        ...


class MeteredReply(Reply):
    """An answer whose making waits for something: it is measured, and told to wait, when it is known."""

    __slots__ = ("request",)
    request: MeteredRequest

    def fill(self, payload: bytes | list[Buffer]) -> None:
        """See `Reply.fill`."""
        super().fill(self.request.answered(payload))


class MeteredRequest:
    """One request of a client while quotas are set."""

    __slots__ = ("api_key", "client_id", "connection", "counted", "quotas", "throttle_ms", "user", "version")

    def __init__(
        self, quotas: ClientQuotas, connection: Connection, api_key: int, version: int, client_id: str
    ) -> None:
        self.quotas = quotas
        self.connection = connection
        self.api_key = api_key
        self.version = version
        self.client_id = client_id
        self.user = connection.principal.partition(":")[2]
        self.throttle_ms = 0
        self.counted: int | None = None
        """Bytes of a Fetch that are counted already; None: nothing was decided about them."""

    def owed(self, waits: int, latency: list[int], payload: bytes | list[Buffer]) -> Reply:
        """The reply that the connection owes."""
        if payload:
            return Reply(self.connection, self.answered(payload), waits, self.connection.started_us, latency)
        reply = MeteredReply(self.connection, payload, waits, self.connection.started_us, latency)
        reply.request = self
        return reply

    def answered(self, payload: bytes | list[Buffer]) -> bytes | list[Buffer]:
        """The answer as it goes out."""
        if self.api_key == ApiKey.FETCH and not self.throttle_ms:
            size = sum(map(len, payload)) if type(payload) is list else len(payload)
            throttle_ms = self.quotas.took(FETCH_RATE, self.user, self.client_id, size - (self.counted or 0))
            if self.counted is None:  # a refusal, which holds no records
                self.wait(max(throttle_ms, self.quotas.busy(self)))
        if not self.throttle_ms:
            return payload
        return with_throttle(self.api_key, self.version, payload, self.throttle_ms)

    def empties_fetch(self, size: int) -> bool:
        """Whether a Fetch that found records of so many bytes is answered without them. Then they are not counted."""
        throttle_ms, empty = self.quotas.throttle_fetch(self, size)
        self.wait(throttle_ms)
        self.counted = size
        return empty

    def wait(self, throttle_ms: int) -> None:
        """Mute the connection for so long from now on, and say so in the answer."""
        if throttle_ms > self.throttle_ms:
            self.throttle_ms = min(throttle_ms, CUT_AFTER_MS)
            self.quotas.mute(self.connection, self.throttle_ms)


def with_throttle(api_key: int, version: int, payload: bytes | list[Buffer], throttle_ms: int) -> bytes | list[Buffer]:
    """The frame with another `throttle_time_ms`; as it is where the version has none."""
    if api_key == ApiKey.FETCH:
        pieces: list[Buffer] = payload if isinstance(payload, list) else [payload]
        head = bytearray(pieces[0])
        _INT32.pack_into(head, parse_response_header(head, api_key, version, 4)[1], throttle_ms)
        return [bytes(head), *pieces[1:]]
    frame = payload if isinstance(payload, bytes) else b"".join(payload)
    correlation_id, pos = parse_response_header(frame, api_key, version, 4)
    response = getattr(messages, APIS[ApiKey(api_key)].name + "Response").decode(frame, version, pos)
    if not hasattr(response, "throttle_time_ms"):
        return payload
    response.throttle_time_ms = throttle_ms
    try:
        return response_frame(api_key, version, correlation_id, response.encode(version))
    except ProtocolError:
        return payload


class ClientQuotas:
    """The quotas of the cluster's state, and what clients of this broker used of them."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        ticks_us: Callable[[], int],
        counters: Counters,
        state: Callable[[], State],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._ticks_us = ticks_us
        self._counters = counters
        self._state = state
        self.active = False
        """Whether requests are to be measured."""
        self._quotas: Mapping[Entity, Mapping[str, float]] = {}
        self._found: dict[tuple[str, str, str], Found | None] = {}
        self._rates: dict[Hashable, Rate] = {}
        self._buckets: dict[Hashable, TokenBucket] = {}
        self._by_address: dict[Hashable, Rate] = {}
        self._used: OrderedDict[Hashable, None] = OrderedDict()
        """Meters, the one last used last."""
        self._muted: dict[Connection, asyncio.TimerHandle] = {}
        self._emptied: dict[Connection, None] = {}
        """Those whose last fetch was emptied for the time of their requests: the next one is not."""
        self._on_change: Callable[[], None] = lambda: None

    def follow(self, on_change: Callable[[], None]) -> None:
        """Call it when `active` may have changed."""
        self._on_change = on_change
        self._reload()

    def on_facts(self, facts: Sequence[f.Fact]) -> None:
        """The listener given to `ControllerClient.subscribe`."""
        if any(isinstance(fact, f.QuotasChanged | f.StateReloaded) for fact in facts):
            self._reload()

    def _reload(self) -> None:
        self._quotas = self._state().quotas
        self._found.clear()
        keys = {key for values in self._quotas.values() for key in values}
        self.active = bool(keys - {CONNECTIONS})
        if not self._quotas:
            self._rates.clear()
            self._buckets.clear()
            self._by_address.clear()
            self._used.clear()
        self._on_change()

    def _find(self, key: str, user: str, client_id: str) -> Found | None:
        asked = key, user, client_id
        try:
            return self._found[asked]
        except KeyError:
            if len(self._found) >= METERS_MAX:
                self._found.clear()
            found = self._found[asked] = find(self._quotas, key, user, client_id)
            return found

    def _note(self, meter: Hashable) -> None:
        """The meter is used: it is the newest one."""
        self._used.pop(meter, None)
        self._used[meter] = None
        if len(self._used) > METERS_MAX:
            oldest = next(iter(self._used))
            del self._used[oldest]
            self._rates.pop(oldest, None)
            self._buckets.pop(oldest, None)
            self._by_address.pop(oldest, None)

    def _rate(self, key: str, found: Found, now_ms: int) -> Rate:
        meter = (key, *found.sharers)
        self._note(meter)
        rate = self._rates.get(meter)
        if rate is None:
            settings = self._settings
            rate = Rate(settings.quota_window_num, settings.quota_window_size_seconds * 1000, now_ms)
            self._rates[meter] = rate
        return rate

    def took(self, key: str, user: str, client_id: str, amount: float) -> int:
        """So much was taken just now; for how many ms the client is to be throttled."""
        found = self._find(key, user, client_id)
        if found is None:
            return 0
        now_ms = self._clock.boottime_ms()
        rate = self._rate(key, found, now_ms)
        if amount > rate.most(found.bound) and key != REQUEST_TIME:
            rate.record_large(amount, found.bound, now_ms)
        else:
            rate.record(amount, now_ms)
        return rate.throttle_ms(found.bound, now_ms)

    # Requests

    def dispatch(self, inner: Dispatch) -> Dispatch:
        """`inner` with requests measured."""

        def metered(connection: Connection, buf: bytearray, start: int, end: int, owned: bool) -> None:
            api_key, version, _, length = _HEADER.unpack_from(buf, start)
            if api_key == CONTROL_KEY:
                inner(connection, buf, start, end, owned)
                return
            body = start + 10 + max(length, 0)
            client_id = bytes(buf[start + 10 : body]).decode("utf-8", "replace")
            request = MeteredRequest(self, connection, api_key, version, client_id)
            if api_key == ApiKey.PRODUCE:
                request.wait(self.took(PRODUCE_RATE, request.user, client_id, end - start + 4))
            elif api_key == ApiKey.FETCH:
                self._cut_fetch(request, buf, body, end)
            if api_key != ApiKey.FETCH:  # which may wait for long before it is answered
                request.wait(self.busy(request))
            began = self._ticks_us()
            connection.metered = request
            try:
                inner(connection, buf, start, end, owned)
            finally:
                connection.metered = None
                self.took(REQUEST_TIME, request.user, client_id, (self._ticks_us() - began) / 10_000)

        return metered

    def busy(self, request: MeteredRequest) -> int:
        """For how long the client is to be throttled for the time of its requests: by what was used up to now, at most
        one window (KIP-124). This request counts for the next one.
        """
        found = self._find(REQUEST_TIME, request.user, request.client_id)
        if found is None:
            return 0
        now_ms = self._clock.boottime_ms()
        throttle_ms = self._rate(REQUEST_TIME, found, now_ms).throttle_ms(found.bound, now_ms)
        return min(throttle_ms, self._settings.quota_window_size_seconds * 1000)

    def throttle_fetch(self, request: MeteredRequest, size: int) -> tuple[int, bool]:
        """For how many ms the client of a Fetch that found so many bytes is to be throttled, and whether they stay
        here. What goes out is counted.
        """
        busy_ms, over_ms = self.busy(request), 0
        found = self._find(FETCH_RATE, request.user, request.client_id)
        rate, large = None, False
        if found is not None:
            now_ms = self._clock.boottime_ms()
            rate = self._rate(FETCH_RATE, found, now_ms)
            large = size > rate.most(found.bound)
            rate.record(0 if large else size, now_ms)
            over_ms = rate.throttle_ms(found.bound, now_ms)
        if over_ms or (busy_ms and request.connection not in self._emptied):
            if not over_ms:
                self._emptied[request.connection] = None
            if rate is not None and not large:
                rate.record(-size, now_ms)
            return max(over_ms, busy_ms), True
        self._emptied.pop(request.connection, None)
        if rate is not None and found is not None and large:
            rate.record_large(size, found.bound, now_ms)
            over_ms = rate.throttle_ms(found.bound, now_ms)
        return max(over_ms, busy_ms), False

    def _cut_fetch(self, request: MeteredRequest, buf: bytearray, body: int, end: int) -> None:
        """A fetch gets at most what its quota has room for: with more it would be emptied, again and again."""
        found = self._find(FETCH_RATE, request.user, request.client_id)
        at = _FETCH_MAX_BYTES.get(request.version)
        if found is None or at is None:
            return
        if request.version >= 12:  # tagged fields of the header; with any, the fetch is not cut
            if body >= end or buf[body]:
                return
            body += 1
        if body + at + 4 > end:
            return
        now_ms = self._clock.boottime_ms()
        most = self._rate(FETCH_RATE, found, now_ms).room(found.bound, now_ms)
        if _INT32.unpack_from(buf, body + at)[0] > most:
            _INT32.pack_into(buf, body + at, most)

    # Muting

    def mute(self, connection: Connection, throttle_ms: int) -> None:
        """Hear nothing of the connection for so long; a mute that lasts longer stays."""
        if connection.closed:
            return  # it was forgotten: nobody would forget it once more
        loop = asyncio.get_running_loop()
        when = loop.time() + throttle_ms / 1000
        present = self._muted.get(connection)
        if present is not None:
            if present.when() >= when:
                return
            present.cancel()
        self._counters.throttled += 1
        connection.hold(HOLD_THROTTLED)
        self._muted[connection] = loop.call_at(when, self._unmute, connection)

    def _unmute(self, connection: Connection) -> None:
        del self._muted[connection]
        connection.active_tick = connection.hub.tick
        connection.release(HOLD_THROTTLED)

    def forget(self, connection: Connection) -> None:
        """The connection is gone."""
        self._emptied.pop(connection, None)
        handle = self._muted.pop(connection, None)
        if handle is not None:
            handle.cancel()

    # Mutations, connections

    def mutations(self, principal: str, client_id: str | None) -> Mutations | None:
        """What counts the partitions that a request makes or deletes; None: there is no such quota."""
        if not self.active:
            return None
        found = self._find(MUTATIONS, principal.partition(":")[2], client_id or "")
        if found is None:
            return None
        now_ms = self._clock.boottime_ms()
        self._note(found.sharers)
        bucket = self._buckets.get(found.sharers)
        if bucket is None:
            settings = self._settings
            seconds = settings.controller_quota_window_num * settings.controller_quota_window_size_seconds
            bucket = self._buckets[found.sharers] = TokenBucket(seconds, found.bound, now_ms)
        return Mutations(bucket, found.bound, self._clock)

    def connection_delay_ms(self, address: str) -> int:
        """How long a new connection of the address has to wait for nothing before it is closed; 0: it is welcome."""
        if not self._quotas:
            return 0
        for name in (address, None):
            bound = self._quotas.get(((IP, name),), {}).get(CONNECTIONS)
            if bound is not None:
                break
        else:
            return 0
        now_ms = self._clock.boottime_ms()
        self._note(address)
        rate = self._by_address.get(address)
        settings = self._settings
        if rate is None:
            window_ms = settings.quota_window_size_seconds * 1000
            rate = self._by_address[address] = Rate(settings.quota_window_num, window_ms, now_ms)
        if bound <= 0:
            return settings.quota_window_size_seconds * 1000
        rate.record(1, now_ms)
        delay_ms = rate.throttle_ms(bound, now_ms)
        if delay_ms:
            rate.record(-1, now_ms)  # it did not come in
        return delay_ms


class Mutations:
    """Controller mutations of one request."""

    def __init__(self, bucket: TokenBucket, bound: float, clock: Clock) -> None:
        self._bucket = bucket
        self._bound = bound
        self._clock = clock

    def take(self, partitions: int, *, strict: bool) -> None:
        """Count them. THROTTLING_QUOTA_EXCEEDED if the quota is used up; older clients are only throttled then."""
        now_ms = self._clock.boottime_ms()
        if strict and self._bucket.throttle_ms(self._bound, now_ms):
            raise KafkaError(ErrorCode.THROTTLING_QUOTA_EXCEEDED, "The throttling quota has been exceeded.")
        self._bucket.take(partitions, self._bound, now_ms)

    def throttle_ms(self) -> int:
        """For how long the client is to be throttled."""
        return min(self._bucket.throttle_ms(self._bound, self._clock.boottime_ms()), CUT_AFTER_MS)
