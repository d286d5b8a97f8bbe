"""How long partitions are without a leader when a broker is lost, with default settings.

One without a disk is lost for good; one that shares a machine and a WAL root with others is stopped, and no lock falls.
"""

from __future__ import annotations

import pytest

from broker.log import LogStatus
from broker.settings import Settings, build
from tests.simulation.cluster import PARTS, PORT, TOPICS, Options, World
from tests.simulation.nodes import Node
from tests.simulation.operators import Admin
from tests.simulation.producers import IdempotentProducer, ProducerLoad
from tests.simulation.scheduler import MS, S

SEEDS = 24
BATCH = 8
BOUND_S = 10.0
KINDS = {0: "controller", 1: "others"}
KEPT = ("tidelog.storage", "tidelog.wal", "tidelog.http.listener", "auto.create.topics.enable")
"""Of what other worlds set; everything else is as it comes."""
SIZES = ("tidelog.wal.dir", "tidelog.wal.file.bytes", "tidelog.wal.bytes.max", "message.max.bytes")
"""Beside those where there are WAL files: small ones, for the memory of the tests."""


class LossWorld(World):
    """Three brokers; one of them loses power for good while producers work, or with `siblings` is stopped for good."""

    def __init__(self, seed: int, *, siblings: bool = False) -> None:
        layout, wal = ("together", "volume") if siblings else ("apart", "objects")
        super().__init__(seed, Options(brokers=3, layout=layout, wal=wal, faults={}, moves=0.0))
        self.siblings = siblings
        self.controllers_own = seed % 2 == 0
        self.took_s = 0.0

    def settings(self, node: Node) -> Settings:
        own = {"node.id": str(node.node_id), "listeners": f"PLAINTEXT://{node.host.name}:{PORT}"}
        kept = (*KEPT, *SIZES) if self.siblings else KEPT
        return build({key: self._values[key] for key in kept if key in self._values} | own)

    def _live(self) -> None:
        scheduler, rng = self.scheduler, self.scheduler.stream("loss")
        for node in self.nodes:
            scheduler.call_later_ns(rng.randint(0, 300) * MS, node.start)
        self.add_client(Admin, "admin", TOPICS)
        assert scheduler.run_until(60 * S, lambda: all(node.ready for node in self.nodes)), "they do not start"
        for number in range(2):
            load = ProducerLoad(version=13, value_bytes=(8, 4_000), pause_ms=(20, 200))
            self.add_client(IdempotentProducer, f"sure-{number}", PARTS, load)
        scheduler.run_until(scheduler.now_ns + rng.randint(4_000, 9_000) * MS)
        assert self._all_served(self.nodes), "nobody serves before the loss"
        (victim, *_) = [node for node in self.nodes if node.leads == self.controllers_own and self._has_logs(node)] or [
            node for node in self.nodes if self._has_logs(node)
        ]
        left = [node for node in self.nodes if node is not victim]
        lost_ns = scheduler.now_ns
        self._lose(victim)
        assert scheduler.run_until(lost_ns + 60 * S, lambda: self._all_served(left)), "nobody took over"
        self.took_s = (scheduler.now_ns - lost_ns) / S
        scheduler.run_until(scheduler.now_ns + 10 * S)
        for name in ("sure-0", "sure-1", "admin"):
            self._cast[name].stop()
        ended = scheduler.run_until(
            scheduler.now_ns + 60 * S, lambda: not any(process.alive for process in self.clients.values())
        )
        assert ended, "clients do not come to an end"

    def _lose(self, victim: Node) -> None:
        if self.siblings:
            assert victim.process is not None
            victim.process.pause()
        else:
            victim.machine.crash()

    def _has_logs(self, node: Node) -> bool:
        return node.broker is not None and len(node.broker.logs) > 0

    def _all_served(self, nodes: list[Node]) -> bool:
        """Every partition has an open log on one of these, and all of them know it."""
        for topic, partition in PARTS:
            leaders = set()
            for node in nodes:
                if node.broker is None or not node.ready:
                    return False
                state = node.broker.controller.state
                known = state.topics.get(topic)
                leaders.add(-1 if known is None else state.logs[known.log_ids[partition]].leader_node)
            serving = [node for node in nodes if {node.node_id} == leaders]
            if not serving or serving[0].broker is None:
                return False
            log = serving[0].broker.logs.find.get((topic, partition))
            if log is None or log.status is not LogStatus.OPEN:
                return False
        return True


@pytest.mark.parametrize(
    ("first", "siblings"), [*((first, False) for first in range(0, SEEDS, BATCH)), *((first, True) for first in (0, 8))]
)
def test_a_lost_broker_is_replaced_in_time(first: int, siblings: bool, capsys: pytest.CaptureFixture[str]) -> None:
    took = {}
    for seed in range(first, first + BATCH):
        world = LossWorld(seed, siblings=siblings)
        world.run()
        assert world.findings == [], f"seed {seed}"
        took[seed] = world.took_s
    with capsys.disabled():
        of = {kind: [took[seed] for seed in took if seed % 2 == kind] for kind in (0, 1)}
        told = ", ".join(f"{who} {min(of[kind]):.1f}-{max(of[kind]):.1f} s" for kind, who in KINDS.items())
        print(f"\nfail-over{' to siblings' * siblings}: {told}")
    assert max(took.values()) < BOUND_S, took
