"""An operator who changes things while a cluster runs: dynamic configs of all brokers and of one, a topic's config, a
client's quota; and the look at every broker in the end, whether what was acknowledged is what it goes by.

Values are never set twice, so that a broker which tells an older one gives itself away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from controller.configs import BROKER, SET, TOPIC
from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import RETRIABLE, ErrorCode
from protocol.records import NewRecord, build_batch
from tests.simulation.client import Address, Disconnected, Part, error_name, sleep_ms
from tests.simulation.operators import Admin
from tests.simulation.producers import TIMESTAMP_MS

if TYPE_CHECKING:
    from tests.simulation.cluster import World

TUNED = "tuned"
PARTS: list[Part] = [(TUNED, number) for number in range(2)]
AUDITOR = "tune-audit"
ATTEMPTS = 5
SETTLED_MS = 10_000
"""When nothing disturbs, every broker goes by what was acknowledged so much later at the latest."""
PROBE_BYTES = 10_000
SMALL, LARGE = (2_000, 4_000), (20_000, 40_000)
"""What `max.message.bytes` may be: a probe is too large, or not."""
SLOW, FAST = (50, 200), (10**9, 2 * 10**9)
"""What the quota of the auditor's bytes may be: a probe is throttled, or not."""


class Knob(NamedTuple):
    """One thing that can be set. `node`: 0 if all brokers go by it, else the one that does, which has to be asked."""

    name: str
    key: str
    ranges: tuple[tuple[int, int], ...]
    node: int = 0


ALL_BROKERS = Knob("brokers", "tidelog.seal.ms", ((200, 4_000),))
OF_TOPIC = Knob("topic", "max.message.bytes", (SMALL, LARGE))
QUOTA = Knob("quota", "producer_byte_rate", (SLOW, FAST))


def of_broker(node: int) -> Knob:
    """A config of one broker."""
    return Knob(f"broker {node}", "tidelog.seal.bytes", ((64 << 10, 1 << 20),), node)


def knobs(nodes: int) -> list[Knob]:
    """All there are in a cluster of so many brokers."""
    return [ALL_BROKERS, OF_TOPIC, QUOTA, *map(of_broker, range(1, nodes + 1))]


def _resource(knob: Knob) -> tuple[int, str]:
    if knob.name == OF_TOPIC.name:
        return TOPIC, TUNED
    return BROKER, str(knob.node) if knob.node else ""


class Tuner(Admin):
    """Creates its topic, then sets one knob after the other; when it is told to stop, each of them once more."""

    def __init__(self, *args: Any, nodes: int, **options: Any) -> None:
        super().__init__(*args, {TUNED: len(PARTS)}, **options)
        self.knobs = knobs(nodes)
        self._used: set[int] = set()

    async def main(self) -> None:
        for name, partitions in self.topics.items():
            await self._create(name, partitions)
        self.created = True
        while not self.stopping:
            await self._set(self.rng.choice(self.knobs), ATTEMPTS)
            await sleep_ms(self.rng.randint(100, 2_000))
        for knob in self.knobs:
            await self._set(knob, None)

    def _value(self, knob: Knob) -> int:
        while True:
            value = self.rng.randint(*self.rng.choice(knob.ranges))
            if value not in self._used:
                self._used.add(value)
                return value

    async def _set(self, knob: Knob, attempts: int | None) -> None:
        """Ask until it is acknowledged, or so often; what was not may happen, or happen later."""
        value, tries = self._value(knob), 0
        while attempts is None or tries < attempts:
            tries += 1
            number = next(self.numbers)
            fields = {"client": self.name, "ask": number, "knob": knob.name, "value": value}
            self.history.record("tune.ask", **fields)
            address = self._address(knob)
            try:
                code, why = await self._ask(address, knob, value)
            except Disconnected:
                await self.back_off(address)
                continue
            if not code:
                self.history.record("tune.ok", **fields)
                return
            if code not in RETRIABLE:
                self.history.record("tune.refused", **fields, error=error_name(code), why=why)
                return
            await self.back_off()

    def _address(self, knob: Knob) -> Address:
        return self.bootstrap[knob.node - 1] if knob.node else self.rng.choice(self.bootstrap)

    async def _ask(self, address: Address, knob: Knob, value: int) -> tuple[int, str | None]:
        if knob is QUOTA:
            entity = m.AlterClientQuotasRequest.EntityData(entity_type="client-id", entity_name=AUDITOR)
            op = m.AlterClientQuotasRequest.OpData(key=knob.key, value=float(value), remove=False)
            entry = m.AlterClientQuotasRequest.EntryData(entity=[entity], ops=[op])
            request: Any = m.AlterClientQuotasRequest(entries=[entry], validate_only=False)
            answer = await self.ask(address, ApiKey.ALTER_CLIENT_QUOTAS, 1, request, timeout_ms=8_000)
            result = answer.entries[0]
        else:
            kind, name = _resource(knob)
            config = m.IncrementalAlterConfigsRequest.AlterableConfig(
                name=knob.key, config_operation=SET, value=str(value)
            )
            resource = m.IncrementalAlterConfigsRequest.AlterConfigsResource(
                resource_type=kind, resource_name=name, configs=[config]
            )
            request = m.IncrementalAlterConfigsRequest(resources=[resource], validate_only=False)
            answer = await self.ask(address, ApiKey.INCREMENTAL_ALTER_CONFIGS, 1, request, timeout_ms=8_000)
            result = answer.responses[0]
        return result.error_code, result.error_message


class TuneAuditor(Admin):
    """When all is quiet: asks every broker what it goes by, until it tells what it should or for `SETTLED_MS`; then
    sends the leaders of the topic a batch that shows which config and which quota they keep.

    `wanted`: what knobs may be at, by their names.
    """

    def __init__(self, *args: Any, nodes: int, wanted: Mapping[str, set[int]], **options: Any) -> None:
        super().__init__(*args, {}, **options)
        self.nodes = nodes
        self.wanted = wanted

    async def main(self) -> None:
        for node in range(1, self.nodes + 1):
            waited_ms = 0
            while True:
                seen = await self._look(node)
                if all(value in self.wanted.get(name, (value,)) for name, value in seen.items()):
                    break
                if waited_ms >= SETTLED_MS:
                    break
                await sleep_ms(200)
                waited_ms += 200
            for name, value in seen.items():
                self.history.record("tune.seen", client=self.name, node=node, knob=name, value=value)
        for part in PARTS:
            await self._probe(part)

    async def _look(self, node: int) -> dict[str, int | None]:
        """What a broker says of every knob; None: it is not set."""
        address = self.bootstrap[node - 1]
        own = [ALL_BROKERS, OF_TOPIC, of_broker(node)]
        resource = m.DescribeConfigsRequest.DescribeConfigsResource
        asked = [
            resource(resource_type=kind, resource_name=name, configuration_keys=[knob.key])
            for knob in own
            for kind, name in [_resource(knob)]
        ]
        request = m.DescribeConfigsRequest(resources=asked, include_synonyms=True)
        while True:
            try:
                answer = await self.ask(address, ApiKey.DESCRIBE_CONFIGS, 4, request)
                quotas = await self._quotas(address)
            except Disconnected:
                await self.back_off(address)
                continue
            if any(result.error_code for result in answer.results):
                await self.back_off()
                continue
            found = {knob.name: _told(result.configs) for knob, result in zip(own, answer.results, strict=True)}
            return found | {QUOTA.name: quotas}

    async def _quotas(self, address: Address) -> int | None:
        answer = await self.ask(address, ApiKey.DESCRIBE_CLIENT_QUOTAS, 1, m.DescribeClientQuotasRequest(components=[]))
        values = [one.value for entry in answer.entries or [] for one in entry.values if one.key == QUOTA.key]
        return int(values[0]) if values else None

    async def _probe(self, part: Part) -> None:
        """One batch; every answer goes over a connection of its own, because the one before may not be heard."""
        records: list[NewRecord] = [(TIMESTAMP_MS, None, b"." * PROBE_BYTES, ())]
        one = m.ProduceRequest.PartitionProduceData(index=part[1], records=bytes(build_batch(records)))
        topic = m.ProduceRequest.TopicProduceData(name=part[0], partition_data=[one])
        request = m.ProduceRequest(acks=-1, timeout_ms=self.settings.request_timeout_ms, topic_data=[topic])
        while True:
            address = await self.leader_address(part)
            node = self.leaders[part].node_id
            try:
                answer = await self.ask(address, ApiKey.PRODUCE, 9, request)
            except Disconnected:
                code = int(ErrorCode.NETWORK_EXCEPTION)
            else:
                code = answer.responses[0].partition_responses[0].error_code
            connection = self._connections.pop(address, None)
            if connection is not None:
                connection.abort()
            if code not in RETRIABLE:
                break
            self.leaders.pop(part, None)
            await self.back_off(address)
        fields = {"client": self.name, "node": node, "topic": part[0], "partition": part[1]}
        throttled = answer.throttle_time_ms > 0
        self.history.record("tune.probe", **fields, error=error_name(code), throttled=throttled)


def _told(configs: Sequence[Any]) -> int | None:
    """The value of the only config of an answer, if somebody set it."""
    if not configs or configs[0].value is None:
        return None
    return int(configs[0].value)


def add_tuner(world: World) -> None:
    """The operator of a world that has one."""
    world.add_client(Tuner, "tuner", nodes=len(world.nodes))


def in_effect(world: World) -> None:
    """Record by which settings the brokers of a world go."""
    for node in world.nodes:
        if node.broker is not None and node.ready:
            settings = node.broker.settings
            for name, value in (
                (ALL_BROKERS.name, settings.tidelog_seal_ms),
                (of_broker(node.node_id).name, settings.tidelog_seal_bytes),
            ):
                world.history.record("tune.seen", client="world", node=node.node_id, knob=name, value=value)
