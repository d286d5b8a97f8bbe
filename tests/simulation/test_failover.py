"""How long partitions are without a leader when a broker without a disk is lost for good, with default settings."""

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
KEPT = ("tidelog.storage", "tidelog.wal", "tidelog.http.listener", "auto.create.topics.enable")
"""Of what other worlds set; everything else is as it comes."""


class LossWorld(World):
    """Three brokers; one of them loses power for good while producers work."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, Options(brokers=3, layout="apart", wal="objects", faults={}))
        self.controllers_own = seed % 2 == 0
        self.took_s = 0.0

    def settings(self, node: Node) -> Settings:
        own = {"node.id": str(node.node_id), "listeners": f"PLAINTEXT://{node.host.name}:{PORT}"}
        return build({key: self._values[key] for key in KEPT} | own)

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
        victim.machine.crash()
        assert scheduler.run_until(lost_ns + 60 * S, lambda: self._all_served(left)), "nobody took over"
        self.took_s = (scheduler.now_ns - lost_ns) / S
        scheduler.run_until(scheduler.now_ns + 10 * S)
        for name in ("sure-0", "sure-1", "admin"):
            self._cast[name].stop()
        ended = scheduler.run_until(
            scheduler.now_ns + 60 * S, lambda: not any(process.alive for process in self.clients.values())
        )
        assert ended, "clients do not come to an end"

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


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_a_lost_broker_is_replaced_in_time(first: int, capsys: pytest.CaptureFixture[str]) -> None:
    took = {}
    for seed in range(first, first + BATCH):
        world = LossWorld(seed)
        world.run()
        assert world.findings == [], f"seed {seed}"
        took[seed] = world.took_s
    with capsys.disabled():
        of = {kind: [took[seed] for seed in took if seed % 2 == kind] for kind in (0, 1)}
        print(
            f"\nfail-over: controller {min(of[0]):.1f}-{max(of[0]):.1f} s, others {min(of[1]):.1f}-{max(of[1]):.1f} s"
        )
    assert max(took.values()) < BOUND_S, took
