"""Three broker processes over one S3 server, with everything between them and around them that can be disturbed."""

import contextlib
import itertools
import os
import random  # noqa: TID251
import signal
import socket
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic  # noqa: TID251
from typing import Any

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tests.chaos.cluster_clients import TOPIC, Member, Sender, group_positions, read_log
from tests.chaos.disk import fill, small_disk
from tests.chaos.history import History, buckets_of, judge, spread_of
from tests.chaos.load import create_topic
from tests.chaos.outage import BURST, DROP, HANG, REFUSE, SLOW, Background, StoreUnderFaults, metrics, wait_until
from tests.chaos.test_bucket import tidelog
from tests.support.broker_process import BrokerProcess
from tests.support.disturbed_link import NONE, DisturbedLink, Trouble
from tests.support.postgres_server import PostgresServer
from tests.support.s3_servers import S3Server

MIB = 1 << 20
NODES = (1, 2, 3)
PARTITIONS = 12
RECORDS_PER_S = 400
VALUE_BYTES = 400
BUSY_RECORDS_PER_S = 2_000
"""While a disk is full, so that it matters."""
RECOVERED_WITHIN_S = 60
DISK_BYTES = 48 * MIB
KINDS = {
    "kill": 5,
    "kill_controller": 3,
    "kill_two": 1,
    "pause": 2,
    "stop": 3,
    "rolling": 1,
    "drain": 2,
    "outage": 3,
    "disk_full": 2,
    "clients_cut": 3,
    "brokers_cut": 3,
    "member_leaves": 2,
}
"""Kind -> how often, relative to the others."""
POSTGRES_KINDS = {"database_cut": 3, "database_killed": 2}
LASTING_PORTS = range(20_000, 32_000)
_ports = itertools.count()
TOGETHER = 0.25
"""How often a second fault begins while the first lasts."""


def lasting_port() -> int:
    """One that nobody listens on, and that no connection gets while a broker is down: not from the system's range."""
    for attempt in itertools.count():
        port = LASTING_PORTS[(os.getpid() * 97 + next(_ports) + attempt) % len(LASTING_PORTS)]
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError


@dataclass(frozen=True)
class Variant:
    """`one_machine`: the brokers share a WAL root, so that survivors recover what dies; `wal`: the kind of all topics;
    `postgres`: the metadata log is there, not in the bucket."""

    name: str
    one_machine: bool = False
    wal: str = "volume"
    postgres: bool = False
    faults: int = 50
    session_ms: int = 6_000


class Node:
    """One broker, behind a proxy for clients and one for other brokers.

    `disturbed`: its session may have ended. `away`: nobody shall start it.
    """

    def __init__(
        self, node_id: int, directory: Path, wal_dir: Path, storage: str, metadata: str, variant: Variant
    ) -> None:
        self.node_id = node_id
        clients, peers = lasting_port(), lasting_port()
        self.clients = DisturbedLink("127.0.0.1", clients)
        self.peers = DisturbedLink("127.0.0.1", peers)
        self.paused = self.killed = self.disturbed = self.away = False
        self.broker = BrokerProcess(
            directory / f"node-{node_id}",
            node_id=node_id,
            listeners=f"CLIENTS://127.0.0.1:{clients},PEERS://127.0.0.1:{peers}",
            listener_security_protocol_map="CLIENTS:PLAINTEXT,PEERS:PLAINTEXT",
            inter_broker_listener_name="PEERS",
            tidelog_storage=storage,
            tidelog_metadata=metadata,
            tidelog_wal=variant.wal,
            tidelog_internal_wal=variant.wal,
            tidelog_wal_dir=wal_dir,
            tidelog_wal_file_bytes=2 * MIB,
            tidelog_wal_bytes_max=8 * MIB,
            tidelog_tail_bytes_max=8 * MIB,
            tidelog_tail_keep_bytes=MIB,
            tidelog_seal_ms=500,
            tidelog_session_timeout_ms=variant.session_ms,
            tidelog_controller_lease_ms=variant.session_ms // 2,
            tidelog_balance_interval_ms=2_000,
            offsets_topic_num_partitions=3,
        )

    @property
    def running(self) -> bool:
        process = self.broker.process
        return process is not None and process.poll() is None

    def spawn(self) -> None:
        """Start on the same ports."""
        self.killed = self.disturbed = False
        self.broker.spawn(fixed_port=False)

    def kill(self) -> None:
        """SIGKILL."""
        self.killed = True
        self.broker.kill()

    def advertise(self) -> None:
        """The proxies are there: their ports are what others are told."""
        self.broker.overrides["advertised.listeners"] = (
            f"CLIENTS://127.0.0.1:{self.clients.port},PEERS://127.0.0.1:{self.peers.port}"
        )


class ChaosCluster:
    """Runs faults one after the other, or two at a time; after each of them every partition must take records again."""

    def __init__(
        self,
        path: Path,
        store: StoreUnderFaults,
        variant: Variant,
        dice: random.Random,
        postgres: PostgresServer | None = None,
    ) -> None:
        self.variant = variant
        self.postgres = postgres
        self.store = store
        self.dice = dice
        self.counts: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        """Last words of brokers that ended by themselves."""
        self.recovery_s: dict[str, list[float]] = defaultdict(list)
        """By kind of fault: the longest time without an acknowledgement that a partition had."""
        self.move_s: list[float] = []
        """The same for each partition that a clean stop moved."""
        self.history = History(PARTITIONS)
        self.senders: list[Sender] = []
        self.members: list[Member] = []
        self._stack = contextlib.ExitStack()
        self._background = Background("proxies")
        self._disks: list[Path] = []
        self._kinds = KINDS | (POSTGRES_KINDS if postgres is not None else {})
        if variant.one_machine or variant.wal != "volume":
            self._kinds["lose"] = 5
        metadata = ""
        if postgres is not None:
            self._database = DisturbedLink("127.0.0.1", postgres.port)
            self._background.call(self._database.open())
            metadata = postgres.uri(port=self._database.port)
        self.nodes = {
            node: Node(node, path, wal_dir, store.uri, metadata, variant) for node, wal_dir in self._wal_dirs(path)
        }

    def _wal_dirs(self, path: Path) -> Iterator[tuple[int, Path]]:
        if self.variant.wal != "volume":
            self._kinds.pop("disk_full", None)
            yield from ((node, path / f"wal-{node}") for node in NODES)
            return
        roots = ["wal"] if self.variant.one_machine else [f"wal-{node}" for node in NODES]
        try:
            size = DISK_BYTES * len(NODES) // len(roots)
            self._disks = [self._stack.enter_context(small_disk(path / root, size)) for root in roots]
        except pytest.skip.Exception as reason:
            print(f"no full disks in this run: {reason}")
            self._kinds.pop("disk_full", None)
        for index, node in enumerate(NODES):
            yield node, path / roots[index % len(roots)] / "wal"

    @property
    def bootstrap(self) -> str:
        """All brokers, through their proxies."""
        return ",".join(f"127.0.0.1:{node.clients.port}" for node in self.nodes.values())

    def __enter__(self) -> "ChaosCluster":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        for node in self.nodes.values():
            self._background.call(node.clients.open())
            self._background.call(node.peers.open())
            node.advertise()
            node.spawn()
        for node in self.nodes.values():
            node.broker.wait_ready(60)
        create_topic(self.bootstrap, PARTITIONS)
        for number in range(2):
            self.senders.append(Sender(self.bootstrap, number, self.history, RECORDS_PER_S, VALUE_BYTES))
        self.members = [Member(self.bootstrap, self.history) for _ in range(3)]
        self.recovered(monotonic())

    def __exit__(self, *_: object) -> None:
        for node in self.nodes.values():
            if node.broker.process is not None:
                node.broker.kill()
        for node in self.nodes.values():
            self._background.call(node.clients.close())
            self._background.call(node.peers.close())
        if self.postgres is not None:
            self._background.call(self._database.close())
        self._background.close()
        self._stack.close()

    # What is seen

    def recovered(self, since_s: float) -> None:
        """Returns when every partition acknowledged a record that was sent after `since_s`, and all brokers serve."""

        def well() -> bool:
            self._revive()
            return all(self._is_ready(node) or node.away for node in self.nodes.values()) and self._serves(since_s)

        try:
            wait_until(well, RECOVERED_WITHIN_S, "recovery")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._state()}") from error

    def _serves(self, since_s: float) -> bool:
        assert not any(sender.failures for sender in self.senders), [sender.failures for sender in self.senders]
        return all(
            max(sender.newest_sent_s[partition] for sender in self.senders) > since_s for partition in range(PARTITIONS)
        )

    def _is_ready(self, node: Node) -> bool:
        return node.running and any(line.startswith("ready in") for line in node.broker.output)

    def _revive(self) -> None:
        """What a supervisor does: who ended is started again."""
        for node in self.nodes.values():
            if not node.running and not node.away:
                if not node.killed:
                    self.ended[last_words(node.broker)] += 1
                node.spawn()

    def _state(self) -> str:
        waiting = [
            partition
            for partition in range(PARTITIONS)
            if max(sender.newest_sent_s[partition] for sender in self.senders) < monotonic() - RECOVERED_WITHIN_S / 2
        ]
        logs = "\n".join(f"node {node.node_id}:\n{node.broker.log_tail(25)}" for node in self.nodes.values())
        return f"partitions without acknowledgements: {waiting}\n{logs}"

    def silence_s(self, partition: int, begin_s: float, end_s: float) -> float:
        """The longest time without an acknowledgement in a partition between two instants."""
        times = sorted(
            time for sender in self.senders for time in sender.answered_s[partition] if begin_s <= time <= end_s
        )
        points = [begin_s, *times, end_s]
        return max(after - before for before, after in itertools.pairwise(points))

    def leaders(self) -> dict[int, int]:
        """Who leads which partition, as far as anybody says."""
        try:
            topics = AdminClient({"bootstrap.servers": self.bootstrap}).list_topics(TOPIC, timeout=10).topics
        except KafkaException:
            return {}
        return {partition.id: partition.leader for partition in topics[TOPIC].partitions.values()}

    def controller(self) -> Node:
        """The node that controls, or any."""
        for node in self.nodes.values():
            try:
                if node.running and not node.paused and metrics(node.broker).get("controller"):
                    return node
            except OSError:
                continue
        return self.nodes[1]

    # Faults: each begins and returns what ends it

    def run(self) -> None:
        """All faults of the variant."""
        while sum(self.counts.values()) < self.variant.faults:
            (kind,) = self.dice.choices(list(self._kinds), list(self._kinds.values()))
            threading.Event().wait(self.dice.uniform(0, 0.4))
            began = monotonic()
            ends = [self._begin(kind)]
            name = kind
            if kind not in ("rolling", "stop", "drain", "lose") and self.dice.random() < TOGETHER:
                threading.Event().wait(self.dice.uniform(0, 1))
                (other,) = self.dice.choices(
                    ["kill", "outage", "clients_cut", "brokers_cut", "member_leaves"], [3, 2, 2, 2, 1]
                )
                ends.append(self._begin(other))
                name = "two at a time"
            for end in sorted(ends, key=lambda one: one[0]):
                end[1]()
            self.recovered(monotonic())
            if kind != "lose":  # that counts as a failover
                now = monotonic()
                self.recovery_s[name].append(max(self.silence_s(one, began, now) for one in range(PARTITIONS)))

    def _begin(self, kind: str) -> "tuple[int, Callable[[], Any]]":
        self.counts[kind] += 1
        begin: Callable[[], tuple[int, Callable[[], Any]]] = getattr(self, f"_{kind}")
        return begin()

    def _any(self) -> Node:
        return self.dice.choice([node for node in self.nodes.values() if node.running and not node.paused])

    def _some(self, count: int) -> list[Node]:
        return self.dice.sample(list(self.nodes.values()), count)

    def _hold(self, least_s: float, most_s: float) -> Callable[[], object]:
        until = monotonic() + self.dice.uniform(least_s, most_s)
        return lambda: threading.Event().wait(max(0.0, until - monotonic()))

    def _kill(self) -> tuple[int, Callable[[], Any]]:
        self._any().kill()
        return 2, self._hold(0, 1)

    def _lose(self) -> tuple[int, Callable[[], Any]]:
        """SIGKILL, and nobody starts it again before others have what it led."""
        node = self._any()
        began = monotonic()
        node.kill()
        node.away = True

        def end() -> None:
            self.recovered(monotonic())
            now = monotonic()
            self.recovery_s["failover"].append(max(self.silence_s(one, began, now) for one in range(PARTITIONS)))
            node.away = False

        return 2, end

    def _kill_controller(self) -> tuple[int, Callable[[], Any]]:
        self.controller().kill()
        return 2, self._hold(0, 1)

    def _kill_two(self) -> tuple[int, Callable[[], Any]]:
        self._any().kill()
        self._any().kill()
        return 2, self._hold(0, 1)

    def _pause(self) -> tuple[int, Callable[[], Any]]:
        """SIGSTOP, three times of four past the session."""
        node = self._any()
        node.broker.signal(signal.SIGSTOP)
        node.paused = node.disturbed = True
        session_s = self.variant.session_ms / 1000
        past = self.dice.random() < 0.75
        hold = self._hold(session_s + 1, 1.5 * session_s + 1) if past else self._hold(0.2, session_s / 2)

        def end() -> None:
            hold()
            node.paused = False
            node.broker.signal(signal.SIGCONT)

        return 1, end

    def _stop(self) -> tuple[int, Callable[[], Any]]:
        self._restart(self._any())
        return 2, lambda: None

    def _rolling(self) -> tuple[int, Callable[[], Any]]:
        self.counts["rolling"] += len(NODES) - 1
        for node in self.nodes.values():
            self._restart(node)
        return 2, lambda: None

    def _restart(self, node: Node) -> None:
        """SIGTERM: everything is in the bucket, the partitions move to the others in the same moment."""
        own = [partition for partition, leader in self.leaders().items() if leader == node.node_id]
        began = monotonic()
        code = node.broker.stop()
        if code and node.disturbed:  # its session was ended, and it had not noticed
            self.ended[last_words(node.broker)] += 1
        else:
            assert code == 0, f"a clean stop ended with {code}:\n{node.broker.log_tail()}"
        node.spawn()
        self.recovered(monotonic())
        now = monotonic()
        if not code:
            self.move_s += [self.silence_s(partition, began, now) for partition in own]

    def _drain(self) -> tuple[int, Callable[[], Any]]:
        """An operator's drain: its partitions leave while it serves. Taken back, balance brings it others."""
        node = self._any()
        own = [partition for partition, leader in self.leaders().items() if leader == node.node_id]
        began = monotonic()
        self._operator("broker", "drain", str(node.node_id), "--http", node.broker.http)
        left = [partition for partition, leader in self.leaders().items() if leader == node.node_id]
        assert not left, f"broker {node.node_id} is drained and leads {left}:\n{self._state()}"
        self.recovered(began)
        now = monotonic()
        self.move_s += [self.silence_s(partition, began, now) for partition in own]
        self._operator("broker", "drain", str(node.node_id), "--undo", "--http", node.broker.http)
        return 2, lambda: None

    def _operator(self, *words: str) -> None:
        done = tidelog(*words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}\n{self._state()}"

    def _outage(self) -> tuple[int, Callable[[], Any]]:
        self.store.away(self.dice.choice([REFUSE, BURST, HANG, DROP, SLOW]))
        hold = self._hold(1, 5)

        def end() -> None:
            hold()
            self.store.back()

        return 0, end

    def _disk_full(self) -> tuple[int, Callable[[], Any]]:
        """No room for another WAL file, and the store away, so that none comes free; much is sent."""
        disk = self.dice.choice(self._disks)
        filler = fill(disk)
        self.store.away(REFUSE)
        for sender in self.senders:
            sender.records_per_s = BUSY_RECORDS_PER_S
        hold = self._hold(3, 6)

        def end() -> None:
            hold()
            for sender in self.senders:
                sender.records_per_s = RECORDS_PER_S
            if self.dice.random() < 0.5:
                self._any().kill()
            self.store.back()
            filler.unlink()

        return 0, end

    def _cut(self, proxies: list[DisturbedLink]) -> tuple[int, Callable[[], Any]]:
        trouble = self.dice.choice(
            [
                NONE,  # connections that are there end
                Trouble(refuse=True),
                Trouble(hold_up=True, hold_down=True),
                Trouble(hold_down=True),
                Trouble(hold_up=True),
                Trouble(delay_s=0.3),
                Trouble(cut_after=self.dice.randint(1, 200)),
            ]
        )

        async def begin() -> None:
            for proxy in proxies:
                await proxy.set(trouble)
                if trouble in (NONE, Trouble(refuse=True)) or self.dice.random() < 0.3:
                    proxy.reset()

        async def heal() -> None:
            for proxy in proxies:
                await proxy.set(NONE)

        self._background.call(begin())
        hold = self._hold(0.5, 4)

        def end() -> None:
            hold()
            self._background.call(heal())

        return 0, end

    def _clients_cut(self) -> tuple[int, Callable[[], Any]]:
        return self._cut([node.clients for node in self._some(self.dice.choice([1, 3]))])

    def _brokers_cut(self) -> tuple[int, Callable[[], Any]]:
        nodes = self._some(self.dice.choice([1, 1, 3]))
        for node in self.nodes.values():
            node.disturbed = True  # others may not reach the controller
        return self._cut([node.peers for node in nodes])

    def _database_cut(self) -> tuple[int, Callable[[], Any]]:
        for node in self.nodes.values():
            node.disturbed = True
        return self._cut([self._database])

    def _database_killed(self) -> tuple[int, Callable[[], Any]]:
        """As when its machine dies; what it answered is on its disk."""
        assert self.postgres is not None
        for node in self.nodes.values():
            node.disturbed = True
        self.postgres.kill()
        hold = self._hold(0, 3)

        def end() -> None:
            hold()
            assert self.postgres is not None
            self.postgres.start()

        return 0, end

    def _member_leaves(self) -> tuple[int, Callable[[], Any]]:
        self.dice.choice(self.members).leave()
        return 0, self._hold(0.2, 1)

    # The end

    def finish(self) -> dict[str, Any]:
        """Everything ends and is judged; the figures of the run."""
        for sender in self.senders:
            sender.finish()

        def caught_up() -> bool:
            committed, ends = group_positions(self.bootstrap, PARTITIONS)
            return all(committed.get(partition, 0) >= end for partition, end in ends.items())

        wait_until(caught_up, 90, "the group at the end of everything")
        for member in self.members:
            member.finish()
        read_log(self.bootstrap, self.history)
        found = judge(self.history)
        assert not found, "\n".join(found)
        full_waits = 0.0
        for node in self.nodes.values():
            full_waits += metrics(node.broker).get("full_waits_total", 0)
        for node in self.nodes.values():
            assert node.broker.stop() == 0, node.broker.log_tail()
            log = node.broker.log_tail(1_000_000)
            assert "Traceback" not in log and "because of a bug" not in log, log[-5_000:]
        return self._figures()

    def _figures(self) -> dict[str, Any]:
        return {
            "faults": dict(sorted(self.counts.items())),
            "acknowledged": len(self.history.acks),
            "read by the group": len(self.history.reads),
            "sessions of the group": len(self.history.sessions),
            "seconds without an acknowledgement": {
                kind: {**spread_of(values), "at most s": buckets_of(values)}
                for kind, values in sorted(self.recovery_s.items())
            },
            "seconds a planned move takes": {**spread_of(self.move_s), "at most s": buckets_of(self.move_s)},
            "ended by themselves": dict(self.ended),
            "what senders were told": dict(sum((sender.errors for sender in self.senders), Counter())),
            "what members were told": dict(sum((member.errors for member in self.members), Counter())),
        }


def last_words(broker: BrokerProcess) -> str:
    """Why a broker ended by itself, as its log says."""
    for line in reversed(broker.log_tail(50).splitlines()):
        if "stopping" in line or "CRITICAL" in line:
            return line.partition("stopping: ")[2] or line
    return broker.log_tail(1)


@contextlib.contextmanager
def chaos_cluster(path: Path, server: S3Server, variant: Variant) -> Iterator[ChaosCluster]:
    """A cluster under load; the seed of its faults is printed, `CHAOS_SEED` repeats it."""
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(2**32))
    print(f"CHAOS_SEED={seed}")
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(StoreUnderFaults(server))
        postgres = stack.enter_context(PostgresServer()) if variant.postgres else None
        if postgres is not None:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            for name, value in postgres.environment.items():
                patch.setenv(name, value)
        yield stack.enter_context(ChaosCluster(path, store, variant, random.Random(seed), postgres))
