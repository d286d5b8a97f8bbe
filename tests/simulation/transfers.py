"""A simulated bank: every transfer is one transaction that writes its number to two accounts, and is seen whole or not
at all.

Producers of both generations (KIP-890), some of which share a transactional id and fence each other, abort now and
then, give up batches that may still arrive, forget to add a partition, stop in the middle for longer than their
transaction may last, or die. A reader of committed records watches. `judge` says what must not be.

Events: `transfer.begin {transfer}`, `transfer.commit {transfer}` (the commit was sent), `transfer.ended {transfer,
outcome}` with `committed`, `aborted` or `unknown`; `committed.poll {topic, partition, offset, position, records}`,
`committed.final {topic, partition, records}`, records of (offset, value).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import RETRIABLE, ErrorCode
from protocol.records import build_batch
from tests.simulation.client import Address, Disconnected, Part, SimulatedClient, decode_value, encode_value, sleep_ms
from tests.simulation.history import Event
from tests.support.committed import committed_records

ACCOUNTS = "accounts"
ACCOUNT_PARTS: list[Part] = [(ACCOUNTS, 0), (ACCOUNTS, 1)]
STATE_PARTS: list[Part] = [("__transaction_state", number) for number in range(2)]
SETTINGS = {
    "transaction.state.log.num.partitions": str(len(STATE_PARTS)),
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
}
TIMEOUT_MS = 4_000
TRANSACTION_KEY = 1
TIMESTAMP_MS = 1_700_000_000_000
FINDINGS_MAX = 5

_LOOK_AGAIN = {
    ErrorCode.NOT_COORDINATOR,
    ErrorCode.COORDINATOR_NOT_AVAILABLE,
    ErrorCode.COORDINATOR_LOAD_IN_PROGRESS,
}


class GivenUp(Exception):
    """The session is over: somebody else has the id, or the transaction was ended for us."""


class TooLate(Exception):
    """A batch was given up: it may still arrive, after its transaction was aborted."""


class AccountClient(SimulatedClient):
    """What the clients of the bank share."""

    async def create_accounts(self) -> None:
        """Whoever comes first creates the topic."""
        wanted = m.CreateTopicsRequest.CreatableTopic(
            name=ACCOUNTS, num_partitions=len(ACCOUNT_PARTS), replication_factor=1
        )
        while True:
            request = m.CreateTopicsRequest(topics=[wanted], timeout_ms=5_000)
            answer = await self.ask_any(ApiKey.CREATE_TOPICS, 7, request)
            if answer.topics[0].error_code in (0, ErrorCode.TOPIC_ALREADY_EXISTS):
                return
            await self.back_off()


class Transferer(AccountClient):
    """One transactional producer, one request at a time."""

    def __init__(self, *args: Any, transactional_id: str, second_generation: bool, **options: Any) -> None:
        super().__init__(*args, **options)
        self.transactional_id = transactional_id
        self.second = second_generation
        self.producer = (-1, -1)
        self.sequences: dict[Part, int] = defaultdict(int)
        self._coordinator: Address | None = None

    async def main(self) -> None:
        await self.create_accounts()
        while not self.stopping:
            try:
                if self.producer[0] < 0:
                    await self._begin_session()
                await self._transfer()
            except GivenUp:
                self.producer = (-1, -1)
                await sleep_ms(self.rng.randint(100, 2_000))
            await sleep_ms(self.rng.randint(10, 300))

    async def _begin_session(self) -> None:
        request = m.InitProducerIdRequest(transactional_id=self.transactional_id, transaction_timeout_ms=TIMEOUT_MS)
        answer = await self._coordinate(ApiKey.INIT_PRODUCER_ID, 4, request)
        if answer.error_code:
            raise GivenUp
        self._begin_as(answer.producer_id, answer.producer_epoch)

    def _begin_as(self, producer_id: int, epoch: int) -> None:
        if (producer_id, epoch) != self.producer:
            self.producer = (producer_id, epoch)
            self.sequences.clear()

    async def _transfer(self) -> None:
        number = next(self.numbers)
        self.history.record("transfer.begin", client=self.name, transfer=number)
        commit = self.rng.random() < 0.75
        outcome = "aborted"
        try:
            parts = self.rng.sample(ACCOUNT_PARTS, len(ACCOUNT_PARTS))
            if not self.second:
                forgetful = self.rng.random() < 0.05  # a client with a bug: leaders must not trust it
                await self._add(parts[:1] if forgetful else parts)
            for part in parts:
                await self._produce(part, number)
                if self.rng.random() < 0.03:
                    await sleep_ms(self.rng.randint(500, 2 * TIMEOUT_MS))
            if commit:
                self.history.record("transfer.commit", client=self.name, transfer=number)
                outcome = "unknown"
            await self._end(commit)
            outcome = "committed" if commit else "aborted"
        except TooLate:
            await self._end(False)
            raise GivenUp from None
        finally:
            self.history.record("transfer.ended", client=self.name, transfer=number, outcome=outcome)

    async def _add(self, parts: Iterable[Part]) -> None:
        topics = [
            m.AddPartitionsToTxnRequest.AddPartitionsToTxnTopic(
                name=ACCOUNTS, partitions=[partition for _, partition in parts]
            )
        ]
        request = m.AddPartitionsToTxnRequest(
            v3_and_below_transactional_id=self.transactional_id,
            v3_and_below_producer_id=self.producer[0],
            v3_and_below_producer_epoch=self.producer[1],
            v3_and_below_topics=topics,
        )
        answer = await self._coordinate(ApiKey.ADD_PARTITIONS_TO_TXN, 3, request)
        if _code_of(answer):
            raise GivenUp

    async def _end(self, commit: bool) -> None:
        request = m.EndTxnRequest(
            transactional_id=self.transactional_id,
            producer_id=self.producer[0],
            producer_epoch=self.producer[1],
            committed=commit,
        )
        answer = await self._coordinate(ApiKey.END_TXN, 5 if self.second else 4, request)
        if answer.error_code:
            raise GivenUp
        if self.second:
            self._begin_as(answer.producer_id, answer.producer_epoch)

    async def _coordinate(self, api: ApiKey, version: int, request: Any) -> Any:
        """The answer of the coordinator, an error included that asking again does not mend."""
        while True:
            if self._coordinator is None:
                asked = m.FindCoordinatorRequest(key_type=TRANSACTION_KEY, coordinator_keys=[self.transactional_id])
                found = (await self.ask_any(ApiKey.FIND_COORDINATOR, 4, asked)).coordinators[0]
                if found.error_code:
                    await self.back_off()
                    continue
                self._coordinator = (found.host, found.port)
            try:
                answer = await self.ask(self._coordinator, api, version, request)
            except Disconnected:
                await self.back_off(self._coordinator)
                self._coordinator = None
                continue
            code = _code_of(answer)
            if code in _LOOK_AGAIN:
                self._coordinator = None
            elif code not in RETRIABLE and code != ErrorCode.CONCURRENT_TRANSACTIONS:
                return answer
            await self.back_off()

    async def _produce(self, part: Part, number: int) -> None:
        """The identical bytes until they are there, or until they are given up after one of the attempts."""
        sequence = self.sequences[part]
        batch = build_batch(
            [(TIMESTAMP_MS, None, encode_value(number, 40), ())],
            producer_id=self.producer[0],
            producer_epoch=self.producer[1],
            base_sequence=sequence,
            transactional=True,
        )
        data = m.ProduceRequest.PartitionProduceData(index=part[1], records=bytes(batch))
        topics = [m.ProduceRequest.TopicProduceData(name=part[0], partition_data=[data])]
        request = m.ProduceRequest(transactional_id=self.transactional_id, acks=-1, timeout_ms=3_000, topic_data=topics)
        while True:
            address = await self.leader_address(part)
            try:
                answer = await self.ask(address, ApiKey.PRODUCE, 12 if self.second else 11, request)
            except Disconnected:
                self.leaders.pop(part, None)
                if self.rng.random() < 0.3:
                    raise TooLate from None
                await self.back_off(address)
                continue
            code = answer.responses[0].partition_responses[0].error_code
            if not code:
                self.sequences[part] = sequence + 1
                return
            if code not in RETRIABLE and code != ErrorCode.CONCURRENT_TRANSACTIONS:
                raise GivenUp
            self.leaders.pop(part, None)
            await self.back_off()


def _code_of(answer: Any) -> int:
    """The error of a coordinator's answer; the first one of those of partitions."""
    topics = getattr(answer, "results_by_topic_v3_and_below", None)
    if topics is None:
        code: int = answer.error_code
        return code
    codes = [one.partition_error_code for topic in topics for one in topic.results_by_partition]
    return next((code for code in codes if code), 0)


class CommittedReader(AccountClient):
    """Reads committed records; with `to_the_end` once, until nothing is undecided."""

    def __init__(self, *args: Any, to_the_end: bool = False, **options: Any) -> None:
        super().__init__(*args, **options)
        self.to_the_end = to_the_end

    async def main(self) -> None:
        await self.create_accounts()
        if self.to_the_end:
            for part in ACCOUNT_PARTS:
                await self._read_all(part)
            return
        positions = dict.fromkeys(ACCOUNT_PARTS, 0)
        while not self.stopping:
            for part in ACCOUNT_PARTS:
                found, position, _ = await self._poll(part, positions[part])
                if position > positions[part]:
                    fields = {"topic": part[0], "partition": part[1], "offset": positions[part]}
                    self.history.record("committed.poll", client=self.name, **fields, position=position, records=found)
                    positions[part] = position
            await sleep_ms(self.rng.randint(10, 300))

    async def _read_all(self, part: Part) -> None:
        found: list[tuple[int, int]] = []
        position, decided = 0, False
        while not decided:
            more, position, decided = await self._poll(part, position)
            found += more
        self.history.record("committed.final", topic=part[0], partition=part[1], records=tuple(found))

    async def _poll(self, part: Part, offset: int) -> tuple[tuple[tuple[int, int], ...], int, bool]:
        """(offset, value) of what is new, where to go on, and whether that is the end and all is decided."""
        wanted = m.FetchRequest.FetchPartition(
            partition=part[1], fetch_offset=offset, partition_max_bytes=self.rng.choice([300, 1 << 16])
        )
        request = m.FetchRequest(
            max_wait_ms=100,
            min_bytes=1,
            isolation_level=1,
            topics=[m.FetchRequest.FetchTopic(topic=part[0], partitions=[wanted])],
        )
        try:
            answer = await self.ask(await self.leader_address(part), ApiKey.FETCH, 12, request)
        except Disconnected:
            self.leaders.pop(part, None)
            await self.back_off()
            return (), offset, False
        one = answer.responses[0].partitions[0]
        if one.error_code:
            self.leaders.pop(part, None)
            await self.back_off()
            return (), offset, False
        found, position = committed_records(one, offset)
        values = tuple((record.offset, decode_value(record.value)) for record in found)
        return values, position, position == one.high_watermark == one.last_stable_offset


def judge(history: Iterable[Event]) -> list[str]:
    """What was seen of transfers and must not be."""
    begun: dict[int, str] = {}
    final: dict[int, dict[int, int]] = {}
    polls: list[Event] = []
    for event in history:
        if event.kind == "transfer.begin":
            begun[event.fields["transfer"]] = "aborted"
        elif event.kind == "transfer.commit":
            begun[event.fields["transfer"]] = "unknown"
        elif event.kind == "transfer.ended":
            begun[event.fields["transfer"]] = event.fields["outcome"]
        elif event.kind == "committed.final":
            final[event.fields["partition"]] = dict(event.fields["records"])
        elif event.kind == "committed.poll":
            polls.append(event)
    if len(final) < len(ACCOUNT_PARTS):
        return []  # whoever was to read it all did not come to an end, which is told already
    found: list[str] = []
    for findings in (_transfers(begun, final), _polls(polls, final)):
        found += [finding for finding, _ in zip(findings, range(FINDINGS_MAX))]
    return found


def _transfers(begun: dict[int, str], final: dict[int, dict[int, int]]) -> Iterator[str]:
    """Every transfer against what is there in the end."""
    counts = [Counter(values.values()) for _, values in sorted(final.items())]
    for number, outcome in begun.items():
        there = [count[number] for count in counts]
        if max(there) > 1:
            yield f"transfer {number} is there more than once: {there}"
        elif min(there) != max(there):
            yield f"transfer {number} is torn: {there}"
        elif outcome == "committed" and not there[0]:
            yield f"transfer {number} was committed and is lost"
        elif outcome == "aborted" and there[0]:
            yield f"transfer {number} was never committed and is there"
    for count in counts:
        for number in count.keys() - begun.keys():
            yield f"value {number} is there and was never written"


def _polls(polls: Iterable[Event], final: dict[int, dict[int, int]]) -> Iterator[str]:
    """Whoever reads on while all this happens sees the same."""
    for event in polls:
        partition, offset, position = (event.fields[key] for key in ("partition", "offset", "position"))
        seen = dict(event.fields["records"])
        there = {at: value for at, value in final[partition].items() if offset <= at < position}
        for at in seen.keys() - there.keys():
            yield f"{partition}@{at} was shown to {event.fields['client']} and is not committed"
        for at in there.keys() - seen.keys():
            yield f"{partition}@{at} was not shown to {event.fields['client']} and is committed"
