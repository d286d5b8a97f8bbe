"""Simulated bankers: every transfer between accounts is part of a transaction that consumes its request and writes two
entries, one that takes and one that gives. Auditors read what is committed.

A banker has a partition of requests, and commits how far it came with the entries. Of a transactional id several may be
at work: one that was thought dead, and its successor. Whoever is fenced ends.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import RETRIABLE, ErrorCode
from protocol.records import NewRecord, build_batch
from tests.simulation.client import (
    EARLIEST,
    Address,
    ClientSettings,
    Disconnected,
    Part,
    decode_value,
    encode_value,
    sleep_ms,
)
from tests.simulation.consumers import (
    Consumer,
    ConsumerLoad,
    offsets_of,
    offsets_request,
    read_records,
)
from tests.simulation.hanging import Finisher
from tests.simulation.movers import Drainer, Mover
from tests.simulation.operators import Admin, FinalReader
from tests.simulation.producers import TIMESTAMP_MS, IdempotentProducer, ProducerLoad
from tests.simulation.scheduler import MS
from tests.support.committed import committed_records

if TYPE_CHECKING:
    from tests.simulation.cluster import World

REQUESTS, ACCOUNTS = "requests", "accounts"
TOPICS = {REQUESTS: 2, ACCOUNTS: 3}
REQUEST_PARTS: list[Part] = [(REQUESTS, number) for number in range(TOPICS[REQUESTS])]
ACCOUNT_PARTS: list[Part] = [(ACCOUNTS, number) for number in range(TOPICS[ACCOUNTS])]
STATE_PARTS: list[Part] = [("__transaction_state", number) for number in range(2)]
GROUP = "bank"
LOOK_MS = 300
OVERLAP = 0.02
"""How often, at each look, a banker that lives is thought dead."""
TIMEOUT_MS = 4_000
"""Of transactions."""

_FENCED = {ErrorCode.PRODUCER_FENCED, ErrorCode.INVALID_PRODUCER_EPOCH, ErrorCode.INVALID_PRODUCER_ID_MAPPING}
_ELSEWHERE = {ErrorCode.NOT_COORDINATOR, ErrorCode.COORDINATOR_NOT_AVAILABLE}
_AGAIN = RETRIABLE | {ErrorCode.CONCURRENT_TRANSACTIONS, ErrorCode.UNSTABLE_OFFSET_COMMIT}
_GROUP, _TRANSACTION = 0, 1


@dataclass(frozen=True)
class BankLoad:
    """How a banker works: which generation of the protocol it speaks, transfers per transaction, ms between."""

    second: bool = True
    """KIP-890 part 2: partitions are added by producing, the epoch grows with every transaction."""
    transfers: tuple[int, int] = (1, 4)
    pause_ms: tuple[int, int] = (0, 60)
    abort: float = 0.2
    forgetful: float = 0.05
    """How often the first generation does not say everywhere it will write: leaders must not trust it."""
    slow: float = 0.02
    """How often a transaction is left alone for about as long as it may take."""


@dataclass(frozen=True)
class Transfer:
    """One request and the two entries that fulfil it; partitions by number, entries by the unique number they hold."""

    request: int
    debtor: int
    debit: int
    creditor: int
    credit: int


class Fenced(Exception):
    """Somebody else has our transactional id."""


class Over(Exception):
    """Only a new session helps."""


class Abortable(Exception):
    """The transaction cannot be committed."""


class Banker(Consumer):
    """One process with a transactional id."""

    topics = (REQUESTS, ACCOUNTS)

    def __init__(
        self, *args: Any, transactional_id: str, bank_load: BankLoad, settings: ClientSettings, **options: Any
    ) -> None:
        super().__init__(*args, load=ConsumerLoad(max_wait_ms=200), settings=settings, **options)
        [self.part] = self.parts
        self.transactional_id = transactional_id
        self.bank_load = bank_load
        self.session = 0
        self.producer = -1, -1
        self.sequences: dict[Part, int] = defaultdict(int)
        self._coordinators: dict[int, Address] = {}
        self._undecided = False

    async def main(self) -> None:
        await self.refresh(self.topics)
        while not self.stopping:
            try:
                await self._begin_session()
                while not self.stopping:
                    await self._work()
                    await sleep_ms(self.rng.randint(*self.bank_load.pause_ms))
            except Over:
                await self.back_off()
            except Fenced:
                self._told("fenced", session=self.session)
                return

    def _told(self, kind: str, **fields: Any) -> None:
        self.history.record(f"bank.{kind}", client=self.name, id=self.transactional_id, **fields)

    # Coordinators

    async def _call(
        self, which: int, api: ApiKey, version: int, message: Any, codes: Callable[[Any], Sequence[int]]
    ) -> Any:
        """The answer of a coordinator, asked until it says something that asking again does not change.

        Fenced, Abortable, Over.
        """
        while True:
            try:
                answer = await self.ask(await self._coordinator(which), api, version, message)
            except Disconnected:
                self._coordinators.pop(which, None)
                await self.back_off()
                continue
            code = next((ErrorCode(code) for code in codes(answer) if code), ErrorCode.NONE)
            if code not in _AGAIN:
                break
            if code in _ELSEWHERE:
                self._coordinators.pop(which, None)
            await self.back_off()
        self._check(code)
        return answer

    def _check(self, code: ErrorCode) -> None:
        if code in _FENCED:
            raise Fenced(code.name)
        if code is ErrorCode.TRANSACTION_ABORTABLE:
            raise Abortable(code.name)
        if code:
            raise Over(code.name)

    async def _coordinator(self, which: int) -> Address:
        key = GROUP if which == _GROUP else self.transactional_id
        while which not in self._coordinators:
            asked = m.FindCoordinatorRequest(key_type=which, coordinator_keys=[key])
            found = (await self.ask_any(ApiKey.FIND_COORDINATOR, 4, asked)).coordinators[0]
            if found.error_code:
                await self.back_off()
            else:
                self._coordinators[which] = (found.host, found.port)
        return self._coordinators[which]

    # A session

    async def _begin_session(self) -> None:
        """Fence whoever had the id, end what it left open, and find out how far it came."""
        await self._fence_others()
        asked = offsets_request(GROUP, [self.part])
        found = await self._call(_GROUP, ApiKey.OFFSET_FETCH, 8, asked, lambda answer: [offsets_of(answer)[0]])
        offset = offsets_of(found)[1].get(self.part, -1)
        self.positions[self.part] = offset if offset >= 0 else await self.offset_patiently(self.part, EARLIEST)
        self._told("start", session=self.session, offset=self.positions[self.part])

    async def _fence_others(self) -> None:
        self.session = next(self.numbers)
        self._told("init.invoke", session=self.session)
        request = m.InitProducerIdRequest(
            transactional_id=self.transactional_id,
            transaction_timeout_ms=TIMEOUT_MS,
            producer_id=-1,
            producer_epoch=-1,
        )
        answer = await self._call(_TRANSACTION, ApiKey.INIT_PRODUCER_ID, 4, request, _own_code)
        self.producer = answer.producer_id, answer.producer_epoch
        self.sequences.clear()
        self._told("init.ok", session=self.session, producer=self.producer)

    async def _work(self) -> None:
        """One transaction, if there is anything to do."""
        wanted = self.rng.randint(*self.bank_load.transfers)
        requests = (await self._poll())[:wanted]
        if not requests:
            return
        number, begins = next(self.numbers), self.positions[self.part]
        ends = requests[-1][0] + 1
        transfers = tuple(self._transfer(value) for _, value in requests)
        self._told("begin", session=self.session, txn=number, start=begins, end=ends, transfers=transfers)
        self._undecided = False
        commit = self.rng.random() >= self.bank_load.abort
        try:
            await self._fulfil(number, transfers, ends, whole=commit)
        except Abortable:
            commit = False
        await self._end(number, commit=commit)
        if commit:
            self.positions[self.part] = ends
        if self._undecided and not self.bank_load.second:
            raise Over("a batch of this epoch may still come")

    async def _poll(self) -> list[tuple[int, int]]:
        """(offset, value) of the next requests, as far as one Fetch gives them."""
        try:
            address = await self.leader_address(self.part)
            answer = await self.ask(address, ApiKey.FETCH, self.load.version, self.fetch_request([self.part]))
        except Disconnected:
            self.leaders.pop(self.part, None)
            await self.back_off()
            return []
        one = answer.responses[0].partitions[0]
        if one.error_code:
            self.leaders.pop(self.part, None)
            await self.back_off()
            return []
        found, end = read_records(one.records, self.positions[self.part])
        if not found:
            self.positions[self.part] = end
        return list(found)

    def _transfer(self, request: int) -> Transfer:
        debtor, creditor = (self.rng.randrange(len(ACCOUNT_PARTS)) for _ in range(2))
        return Transfer(request, debtor, next(self.numbers), creditor, next(self.numbers))

    # A transaction

    async def _fulfil(self, number: int, transfers: Sequence[Transfer], ends: int, *, whole: bool) -> None:
        """Write the entries and how far we came; not `whole`: some of it, it will be aborted."""
        entries: dict[Part, list[int]] = defaultdict(list)
        for one in transfers:
            entries[ACCOUNT_PARTS[one.debtor]].append(one.debit)
            entries[ACCOUNT_PARTS[one.creditor]].append(one.credit)
        parts = list(entries)
        self.rng.shuffle(parts)
        if not whole:
            parts = parts[: self.rng.randint(1, len(parts))]
        if not self.bank_load.second:
            forgets = self.rng.random() < self.bank_load.forgetful
            await self._add(parts[:1] if forgets else parts)
        deadline = asyncio.get_running_loop().time() + TIMEOUT_MS / 2_000
        for part in parts:
            await self._write(number, part, entries[part], deadline)
            if self.rng.random() < self.bank_load.slow:
                await sleep_ms(self.rng.randint(TIMEOUT_MS // 2, TIMEOUT_MS * 3 // 2))
        if whole or self.rng.random() < 0.5:
            await self._commit_offset(ends)

    async def _add(self, parts: Sequence[Part]) -> None:
        """The first generation says beforehand where it will write."""
        topic = m.AddPartitionsToTxnRequest.AddPartitionsToTxnTopic(name=ACCOUNTS, partitions=[at for _, at in parts])
        request = m.AddPartitionsToTxnRequest(
            v3_and_below_transactional_id=self.transactional_id,
            v3_and_below_producer_id=self.producer[0],
            v3_and_below_producer_epoch=self.producer[1],
            v3_and_below_topics=[topic],
        )
        await self._call(
            _TRANSACTION,
            ApiKey.ADD_PARTITIONS_TO_TXN,
            3,
            request,
            lambda answer: [
                one.partition_error_code
                for topic in answer.results_by_topic_v3_and_below
                for one in topic.results_by_partition
            ],
        )
        offsets = m.AddOffsetsToTxnRequest(
            transactional_id=self.transactional_id,
            producer_id=self.producer[0],
            producer_epoch=self.producer[1],
            group_id=GROUP,
        )
        await self._call(_TRANSACTION, ApiKey.ADD_OFFSETS_TO_TXN, 3, offsets, _own_code)

    async def _write(self, number: int, part: Part, entries: Sequence[int], deadline: float) -> None:
        """One batch, the identical bytes until it is answered or its time is over."""
        data = build_batch(
            self.records_of_entries(entries),
            producer_id=self.producer[0],
            producer_epoch=self.producer[1],
            base_sequence=self.sequences[part],
            transactional=True,
        )
        self.sequences[part] += len(entries)
        one = m.ProduceRequest.PartitionProduceData(index=part[1], records=bytes(data))
        request = m.ProduceRequest(
            transactional_id=self.transactional_id,
            acks=-1,
            timeout_ms=self.settings.request_timeout_ms,
            topic_data=[m.ProduceRequest.TopicProduceData(name=part[0], partition_data=[one])],
        )
        fields = {"session": self.session, "txn": number, "topic": part[0], "partition": part[1]}
        self._told("write.invoke", **fields, entries=tuple(entries))
        while True:
            try:
                address = await self.leader_address(part)
                answer = await self.ask(address, ApiKey.PRODUCE, 12 if self.bank_load.second else 9, request)
                found = answer.responses[0].partition_responses[0]
                code = ErrorCode(found.error_code)
            except Disconnected:
                code = ErrorCode.NETWORK_EXCEPTION
            if code not in _AGAIN:
                break
            self.leaders.pop(part, None)
            if asyncio.get_running_loop().time() > deadline:
                self._undecided = True
                raise Abortable("no answer in time")
            await self.back_off()
        if code:
            self._told("write.refused", **fields, error=code.name)
        self._check(code)
        self._told("write.ok", **fields, offset=found.base_offset)

    def records_of_entries(self, entries: Sequence[int]) -> list[NewRecord]:
        """How entries are written."""
        return [(TIMESTAMP_MS, None, encode_value(entry, 40), ()) for entry in entries]

    async def _commit_offset(self, ends: int) -> None:
        one = m.TxnOffsetCommitRequest.TxnOffsetCommitRequestPartition(
            partition_index=self.part[1], committed_offset=ends, committed_leader_epoch=-1, committed_metadata=""
        )
        request = m.TxnOffsetCommitRequest(
            transactional_id=self.transactional_id,
            group_id=GROUP,
            producer_id=self.producer[0],
            producer_epoch=self.producer[1],
            generation_id=-1,
            member_id="",
            group_instance_id=None,
            topics=[m.TxnOffsetCommitRequest.TxnOffsetCommitRequestTopic(name=REQUESTS, partitions=[one])],
        )
        version = 5 if self.bank_load.second else 3
        await self._call(
            _GROUP,
            ApiKey.TXN_OFFSET_COMMIT,
            version,
            request,
            lambda answer: [one.error_code for topic in answer.topics for one in topic.partitions],
        )

    async def _end(self, number: int, *, commit: bool) -> None:
        fields = {"session": self.session, "txn": number, "commit": commit}
        self._told("end.invoke", **fields)
        request = m.EndTxnRequest(
            transactional_id=self.transactional_id,
            producer_id=self.producer[0],
            producer_epoch=self.producer[1],
            committed=commit,
        )
        version = 5 if self.bank_load.second else 3
        try:
            answer = await self._call(_TRANSACTION, ApiKey.END_TXN, version, request, _own_code)
        except (Fenced, Over, Abortable) as error:
            self._told("end.unknown", **fields, error=str(error))
            if isinstance(error, Abortable):
                raise Over(str(error)) from error
            raise
        if self.bank_load.second:
            self.producer = answer.producer_id, answer.producer_epoch
            self.sequences.clear()
        self._told("end.ok", **fields, producer=self.producer)


def _own_code(answer: Any) -> list[int]:
    return [answer.error_code]


def told_as_committed(answer: Any, position: int) -> tuple[tuple[tuple[int, int], ...], int]:
    """As `read_records` for what was fetched with `read_committed`."""
    found, end = committed_records(answer, position)
    return tuple((record.offset, decode_value(record.value)) for record in found), end


class Auditor(Consumer):
    """Reads what is committed, now and then again from somewhere on."""

    told = "audit"

    def records_of(self, answer: Any, position: int) -> tuple[tuple[tuple[int, int], ...], int]:
        return told_as_committed(answer, position)


class Clerk(FinalReader):
    """When all is quiet: reads the requests, and which of them are fulfilled."""

    offsets = "bank.offsets"


class FinalAuditor(FinalReader):
    """When all is quiet: reads what is committed in every partition, to its very end."""

    final = "audit"
    isolation_level = 1

    def records_of(self, answer: Any, position: int) -> tuple[tuple[tuple[int, int], ...], int]:
        return told_as_committed(answer, position)


class Bank:
    """Keeps a banker at work for every transactional id: starts another one when one has ended, or is thought to
    have."""

    def __init__(self, world: World, settings: ClientSettings) -> None:
        self.world = world
        self.rng = world.scheduler.stream("bank")
        self.settings = settings
        self.runs = [0] * len(REQUEST_PARTS)
        self.loads = [BankLoad(second=self.rng.random() < 0.6) for _ in REQUEST_PARTS]

    def open(self) -> None:
        """Begin."""
        for number in range(len(self.runs)):
            self._start(number)
        self._later()

    def _start(self, number: int) -> None:
        self.runs[number] += 1
        self.world.add_client(
            Banker,
            f"bank-{number}.{self.runs[number]}",
            [REQUEST_PARTS[number]],
            transactional_id=f"bank-{number}",
            bank_load=self.loads[number],
            settings=self.settings,
        )

    def _later(self) -> None:
        self.world.scheduler.call_later_ns(self.rng.randint(LOOK_MS // 2, LOOK_MS * 3 // 2) * MS, self._look)

    def _look(self) -> None:
        for number, run in enumerate(self.runs):
            alive = self.world.clients[f"bank-{number}.{run}"].alive
            if not alive or (not self.world.quiet and self.rng.random() < OVERLAP):
                self._start(number)
        if not self.world.quiet:
            self._later()


def add_clients(world: World) -> None:
    """Who is there in a world with a bank, instead of the usual clients."""
    rng = world.scheduler.stream("cast")
    configs = {ACCOUNTS: {"tidelog.wal": "objects"}} if world.wal == "both" else {}
    settings = ClientSettings(request_timeout_ms=rng.choice([1_500, 3_000]))
    world.add_client(Admin, "admin", TOPICS, configs=configs, settings=settings)
    load = ProducerLoad(records=(1, 3), value_bytes=(8, 60), pause_ms=(50, 300))
    world.add_client(IdempotentProducer, "customer", REQUEST_PARTS, load, settings)
    Bank(world, settings).open()
    for number, again in enumerate((0.0, 0.2)):
        polls = ConsumerLoad(max_wait_ms=300, pause_ms=(10, 200), isolation_level=1, again=again)
        world.add_client(Auditor, f"auditor-{number}", ACCOUNT_PARTS, polls, settings=settings)
    offsets = [("__consumer_offsets", number) for number in range(2)]
    world.add_client(
        Finisher, "finisher", parts=[*ACCOUNT_PARTS, *offsets], declared=world.declared_losses, settings=settings
    )
    nodes = [node.node_id for node in world.nodes]
    if len(nodes) > 1 and world.scheduler.stream("moves").random() < world.options.moves:
        world.add_client(Mover, "mover", [*REQUEST_PARTS, *ACCOUNT_PARTS, *STATE_PARTS, *offsets], nodes)
        Drainer(world).later()
