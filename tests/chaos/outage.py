"""The object store goes away and comes back under a real broker; what clients are told meanwhile, and what it costs.

`StoreUnderFaults` stands between broker and store, `Probes` ask every kind of question all the time, `Watch` looks at
the process: alive, `/livez`, memory.
"""

import asyncio
import contextlib
import itertools
import os
import socket
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator
from concurrent.futures import Future
from pathlib import Path
from time import monotonic  # noqa: TID251
from types import TracebackType
from typing import Any, Self, TypeVar

from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import RETRIABLE, ErrorCode
from tests.chaos.load import seeded
from tests.support.broker_process import BrokerProcess
from tests.support.faulty_proxy import Answer, Cut, Delay, Drop, Fault, FaultyProxy, Hang, Plan, Repeat
from tests.support.raw_client import RawClient, batch_of
from tests.support.s3_servers import S3Server

T = TypeVar("T")

REFUSE, BURST, HANG, DROP = "refuses connections", "answers 503", "never answers", "drops replies after applying"
DENY, SLOW, FLAKY = "says that the credentials expired", "takes longer than a lease", "does all of that by turns"
PLANS: dict[str, Plan] = {
    BURST: lambda _: Answer(503, "SlowDown"),
    HANG: lambda _: Hang(),
    DROP: lambda _: Drop(applied=True),
    DENY: lambda _: Answer(403, "ExpiredToken"),
    SLOW: lambda _: Delay(before_s=2),
}
FLAKY_FAULTS: list[Fault | None] = [
    None,
    None,
    None,
    Answer(503, "SlowDown"),
    Answer(500, "InternalError"),
    Drop(applied=True),
    Drop(applied=False),
    Delay(before_s=0.5),
    Delay(after_s=2),
    Delay(before_s=5),
    Repeat(after_s=1),
    Cut(body_bytes=3),
    Hang(),
]
ANSWER_TIMEOUT_S = 60
"""No question may stay without an answer for longer: a request that waits has a limit of at most 30 s."""
PAUSE_S = 0.2
COLD_STRIDE = 7919


def wait_until(condition: Callable[[], T], timeout_s: float = 30, what: str = "it") -> T:
    """The first true value of `condition()`; AssertionError after `timeout_s`."""
    deadline = monotonic() + timeout_s
    while not (value := condition()):
        assert monotonic() < deadline, f"{what} did not happen in {timeout_s} s"
        threading.Event().wait(0.02)
    return value


class Background:
    """An event loop in a thread of its own."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T], timeout_s: float = 30) -> T:
        """Run it there and wait for its result."""
        return self.start(work).result(timeout_s)

    def start(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run it there."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Cancel what still runs and end."""

        async def cancel() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.call(cancel())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class StoreUnderFaults:
    """An S3 server behind the faulty proxy; `uri` is what the broker gets. Each has a bucket of its own."""

    _buckets = itertools.count(1)

    def __init__(self, server: S3Server) -> None:
        self.bucket = server.make_bucket(f"outage-{os.getpid()}-{next(self._buckets)}")
        self.server = server
        self.proxy = FaultyProxy(server.host, server.port)
        self._background = Background("proxy")
        self._background.call(self.proxy.come_back())
        self._listens = True

    @property
    def uri(self) -> str:
        """With the proxy as endpoint."""
        return self.server.uri(self.bucket, "t", endpoint=self.proxy.endpoint)

    @property
    def direct_uri(self) -> str:
        """Around the proxy: for looking at what is there."""
        return self.server.uri(self.bucket, "t")

    def away(self, fault: str) -> None:
        """From now on every request meets this."""
        if fault == REFUSE:
            self._background.call(self.proxy.go_down())
            self._listens = False
        elif fault == FLAKY:
            dice = seeded()
            self.proxy.plan = lambda _: dice.choice(FLAKY_FAULTS)
        else:
            self.proxy.plan = PLANS[fault]

    def away_after(self, requests: int, fault: str) -> None:
        """The next `requests` requests pass, then it is away; REFUSE is not possible here."""
        last = len(self.proxy.requests) + requests
        self.proxy.plan = lambda request: PLANS[fault](request) if request.number > last else None

    def back(self) -> None:
        """All is well again. What hangs goes on hanging until the client gives up, as behind a router that forgot."""
        self.proxy.plan = lambda _: None
        if not self._listens:
            self._background.call(self.proxy.come_back())
            self._listens = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._background.call(self.proxy.go_down())
        self._background.close()


def broker_over(store: StoreUnderFaults | None, data_dir: Path, **overrides: object) -> BrokerProcess:
    """A broker (not started) whose HTTP port is known from the beginning: `/livez` counts before it is ready."""
    broker = BrokerProcess(data_dir, **overrides)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    broker.overrides["tidelog.http.listener"] = address
    broker.http = f"http://{address}"
    if store is not None:
        broker.overrides["tidelog.storage"] = store.uri
    return broker


def http_status(broker: BrokerProcess, path: str) -> int:
    """Status of a GET; 0 when nobody listens."""
    try:
        with urllib.request.urlopen(broker.http + path, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return 0


def metrics(broker: BrokerProcess) -> dict[str, float]:
    """Every metric without its `tidelog_` prefix; labels stay in the name."""
    with urllib.request.urlopen(broker.http + "/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[name.removeprefix("tidelog_")] = float(value)
    return found


def resident_bytes(process_id: int) -> int:
    """Memory of a process that is really there (RSS)."""
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Watch:
    """Looks at a broker several times a second; `peak` is the most of every metric, `rss` of the process's memory."""

    def __init__(self, broker: BrokerProcess) -> None:
        self.broker = broker
        self.peak: dict[str, float] = {}
        self.last: dict[str, float] = {}
        assert broker.process is not None
        self.rss_before = self.rss = resident_bytes(broker.process.pid)
        self.problems: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def check(self) -> None:
        """Raise what was seen wrong."""
        assert not self.problems, (self.problems[:5], self.broker.log_tail())

    def _run(self) -> None:
        while not self._stop.wait(PAUSE_S):
            self._look()
            if len(self.problems) > 20:
                return

    def _look(self) -> None:
        process = self.broker.process
        assert process is not None
        if process.poll() is not None:
            self.problems.append(f"the process ended with {process.returncode}")
            self._stop.set()
            return
        try:
            self.rss = max(self.rss, resident_bytes(process.pid))
            if (status := http_status(self.broker, "/livez")) != 200:
                self.problems.append(f"/livez answered {status}")
            self.last = metrics(self.broker)
        except (OSError, IndexError) as error:
            self.problems.append(f"{error!r}")
            return
        for name, value in self.last.items():
            self.peak[name] = max(value, self.peak.get(name, 0))


Ask = Callable[[RawClient], Awaitable[list[int]]]


class Probes:
    """Asks one question of each kind at a time, for ever, each kind on its own connection.

    Only success and retriable errors are right. `seen[phase, kind, error]` counts; a phase is what the test says it is.
    """

    def __init__(self, broker: BrokerProcess, topic: str, *, without: Collection[str] = ()) -> None:
        """`without`: kinds that are not asked."""
        self.phase = "before"
        self.seen: Counter[tuple[str, str, str]] = Counter()
        self.slowest_s: dict[tuple[str, str], float] = {}
        self.problems: list[str] = []
        self.created: set[str] = set()
        """Topics whose creation was answered with success."""
        self.end = 0
        """High watermark of the topic's partition 0, as last heard."""
        self.cold_end = 0
        """Reads from the bucket begin below this offset."""
        self._port = broker.port
        self._topic = topic
        self._without = without
        self._names = itertools.count(1)
        self._background = Background("probes")

    def __enter__(self) -> Self:
        for kind, ask in self._kinds().items():
            self._background.start(self._repeat(kind, ask))
        return self

    def __exit__(self, *_: object) -> None:
        self._background.close()

    def wait_all_answered(self, timeout_s: float = 60) -> None:
        """Every kind of question succeeded at least once in the present phase."""
        kinds = set(self._kinds())
        wait_until(
            lambda: self.problems or kinds <= self.succeeded(), timeout_s, f"success of {kinds - self.succeeded()}"
        )
        self.check()

    def succeeded(self) -> set[str]:
        """Kinds with a success in the present phase."""
        return {kind for phase, kind, error in list(self.seen) if phase == self.phase and error == "NONE"}

    def errors(self, phase: str) -> dict[str, dict[str, int]]:
        """Answers by kind."""
        found: dict[str, dict[str, int]] = {}
        for (when, kind, error), count in sorted(self.seen.items()):
            if when == phase:
                found.setdefault(kind, {})[error] = count
        return found

    def check(self) -> None:
        """Raise what was answered wrong."""
        assert not self.problems, self.problems[:10]

    async def _repeat(self, kind: str, ask: Ask) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with RawClient(self._port) as client:
                while True:
                    phase, began = self.phase, loop.time()
                    codes = await ask(client)
                    took = loop.time() - began
                    self.slowest_s[phase, kind] = max(took, self.slowest_s.get((phase, kind), 0))
                    for code in codes:
                        self.seen[phase, kind, ErrorCode(code).name] += 1
                        if code and code not in RETRIABLE:
                            self.problems.append(f"{phase}: {kind} answered {ErrorCode(code).name}")
                    await asyncio.sleep(PAUSE_S)
        except Exception as error:  # what ends a probe is a problem, whatever it is
            self.problems.append(f"{self.phase}: {kind}: {error!r}")

    def _kinds(self) -> dict[str, Ask]:
        kinds: dict[str, Ask] = {
            "Produce": self._produce,
            "Fetch at the end": self._fetch_end,
            "Fetch from the bucket": self._fetch_cold,
            "ListOffsets": self._list_offsets,
            "CreateTopics": self._create_topic,
            "Metadata": self._metadata,
            "Metadata, creating": self._auto_create,
            "OffsetCommit": self._commit,
            "OffsetFetch": self._committed,
            "FindCoordinator": self._find_coordinator,
            "InitProducerId": self._producer_id,
            "IncrementalAlterConfigs": self._alter,
        }
        return {kind: ask for kind, ask in kinds.items() if kind not in self._without}

    async def _produce(self, client: RawClient) -> list[int]:
        answer = await client.ask(
            ApiKey.PRODUCE,
            9,
            m.ProduceRequest(
                acks=-1,
                timeout_ms=1000,
                topic_data=[
                    m.ProduceRequest.TopicProduceData(
                        name="probe",
                        partition_data=[
                            m.ProduceRequest.PartitionProduceData(index=0, records=batch_of(b"probe", timestamp=-1))
                        ],
                    )
                ],
            ),
            ANSWER_TIMEOUT_S,
        )
        return [answer.responses[0].partition_responses[0].error_code]

    async def _fetch(self, client: RawClient, offset: int, wait_ms: int) -> list[int]:
        answer = await client.ask(
            ApiKey.FETCH,
            12,
            m.FetchRequest(
                max_wait_ms=wait_ms,
                min_bytes=1,
                max_bytes=1 << 20,
                session_id=0,
                session_epoch=-1,
                topics=[
                    m.FetchRequest.FetchTopic(
                        topic=self._topic,
                        partitions=[
                            m.FetchRequest.FetchPartition(
                                partition=0,
                                fetch_offset=offset,
                                partition_max_bytes=65536,
                                current_leader_epoch=-1,
                                last_fetched_epoch=-1,
                            )
                        ],
                    )
                ],
            ),
            ANSWER_TIMEOUT_S,
        )
        assert answer.error_code == 0, answer
        (found,) = answer.responses[0].partitions
        self.end = max(self.end, found.high_watermark)
        return [found.error_code]

    async def _fetch_end(self, client: RawClient) -> list[int]:
        return await self._fetch(client, self.end, 500)

    async def _fetch_cold(self, client: RawClient) -> list[int]:
        # Not in order: read-ahead and caches shall not help.
        return await self._fetch(client, next(self._names) * COLD_STRIDE % max(self.cold_end, 1), 0)

    async def _list_offsets(self, client: RawClient) -> list[int]:
        codes = []
        for timestamp in (-1, -2, 1_000):
            answer = await client.ask(
                ApiKey.LIST_OFFSETS,
                7,
                m.ListOffsetsRequest(
                    replica_id=-1,
                    topics=[
                        m.ListOffsetsRequest.ListOffsetsTopic(
                            name=self._topic,
                            partitions=[
                                m.ListOffsetsRequest.ListOffsetsPartition(
                                    partition_index=0, current_leader_epoch=-1, timestamp=timestamp
                                )
                            ],
                        )
                    ],
                ),
                ANSWER_TIMEOUT_S,
            )
            codes.append(answer.topics[0].partitions[0].error_code)
        return codes

    async def _create_topic(self, client: RawClient) -> list[int]:
        name = f"created-{next(self._names)}"
        topic = m.CreateTopicsRequest.CreatableTopic(name=name, num_partitions=1, replication_factor=1)
        answer = await client.ask(
            ApiKey.CREATE_TOPICS, 7, m.CreateTopicsRequest(topics=[topic], timeout_ms=2000), ANSWER_TIMEOUT_S
        )
        code = answer.topics[0].error_code
        if not code:
            self.created.add(name)
        await asyncio.sleep(1)
        return [code]

    async def _metadata(self, client: RawClient) -> list[int]:
        return await self._ask_metadata(client, self._topic)

    async def _auto_create(self, client: RawClient) -> list[int]:
        codes = await self._ask_metadata(client, f"automatic-{next(self._names)}")
        await asyncio.sleep(1)
        return codes

    async def _ask_metadata(self, client: RawClient, topic: str) -> list[int]:
        asked = m.MetadataRequest.MetadataRequestTopic(name=topic)
        answer = await client.ask(
            ApiKey.METADATA, 9, m.MetadataRequest(topics=[asked], allow_auto_topic_creation=True), ANSWER_TIMEOUT_S
        )
        return [answer.topics[0].error_code]

    async def _commit(self, client: RawClient) -> list[int]:
        answer = await client.ask(
            ApiKey.OFFSET_COMMIT,
            8,
            m.OffsetCommitRequest(
                group_id="probe",
                generation_id_or_member_epoch=-1,
                topics=[
                    m.OffsetCommitRequest.OffsetCommitRequestTopic(
                        name=self._topic,
                        partitions=[
                            m.OffsetCommitRequest.OffsetCommitRequestPartition(
                                partition_index=0, committed_offset=next(self._names)
                            )
                        ],
                    )
                ],
            ),
            ANSWER_TIMEOUT_S,
        )
        return [answer.topics[0].partitions[0].error_code]

    async def _committed(self, client: RawClient) -> list[int]:
        asked = m.OffsetFetchRequest.OffsetFetchRequestTopic(name=self._topic, partition_indexes=[0])
        answer = await client.ask(
            ApiKey.OFFSET_FETCH, 7, m.OffsetFetchRequest(group_id="probe", topics=[asked]), ANSWER_TIMEOUT_S
        )
        return [answer.error_code, *(part.error_code for topic in answer.topics for part in topic.partitions)]

    async def _find_coordinator(self, client: RawClient) -> list[int]:
        answer = await client.ask(
            ApiKey.FIND_COORDINATOR, 3, m.FindCoordinatorRequest(key="probe", key_type=0), ANSWER_TIMEOUT_S
        )
        return [answer.error_code]

    async def _producer_id(self, client: RawClient) -> list[int]:
        answer = await client.ask(
            ApiKey.INIT_PRODUCER_ID,
            4,
            m.InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=1000, producer_id=-1),
            ANSWER_TIMEOUT_S,
        )
        return [answer.error_code]

    async def _alter(self, client: RawClient) -> list[int]:
        change = m.IncrementalAlterConfigsRequest.AlterableConfig(
            name="segment.ms", config_operation=0, value=str(1_000_000 + next(self._names))
        )
        resource = m.IncrementalAlterConfigsRequest.AlterConfigsResource(
            resource_type=2, resource_name="probe", configs=[change]
        )
        answer = await client.ask(
            ApiKey.INCREMENTAL_ALTER_CONFIGS,
            1,
            m.IncrementalAlterConfigsRequest(resources=[resource]),
            ANSWER_TIMEOUT_S,
        )
        await asyncio.sleep(1)
        return [answer.responses[0].error_code]


@contextlib.contextmanager
def timed(figures: dict[str, float], name: str) -> Iterator[None]:
    """Seconds that the block took, into `figures`."""
    began = monotonic()
    yield
    figures[name] = round(monotonic() - began, 2)


def written(wal_dir: Path) -> int:
    """Bytes of all WAL files on disk."""
    return sum(file.stat().st_size for file in wal_dir.glob("*/*.wal"))
