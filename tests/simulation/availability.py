"""How long partitions cannot be written to when a broker is lost, and when they are moved, with default settings.

`python -m tests.simulation.availability --seeds 0-199` measures more than the tests do, and prints percentiles.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from broker.log import LogStatus
from broker.settings import Settings
from broker.settings_checks import build
from tests.simulation.client import Part
from tests.simulation.cluster import Options, World
from tests.simulation.movers import Mover
from tests.simulation.nodes import Node
from tests.simulation.operators import Admin
from tests.simulation.options import PARTS, PORT, TOPICS
from tests.simulation.producers import IdempotentProducer, ProducerLoad
from tests.simulation.scheduler import MS, S

KEPT = ("tidelog.storage", "tidelog.wal", "tidelog.http.listener", "auto.create.topics.enable")
"""Of what other worlds set; everything else is as it comes."""
SIZES = ("tidelog.wal.dir", "tidelog.wal.file.bytes", "tidelog.wal.bytes.max", "message.max.bytes")
"""Beside those where there are WAL files: small ones, for the memory of the tests."""
LOOK_NS = 2 * MS


class Measured(NamedTuple):
    """What one world took, in seconds."""

    seed: int
    findings: list[str]
    took_s: list[float]
    """Each time that a partition could not be written to."""
    waited_s: list[float]
    """Each time that a producer waited from its first attempt to the answer."""


class QuietWorld(World):
    """Three brokers without faults, idempotent producers at work."""

    def __init__(self, seed: int, layout: str, wal: str) -> None:
        super().__init__(seed, Options(brokers=3, layout=layout, wal=wal, faults={}, moves=0.0))
        self.took_s: list[float] = []

    def settings(self, node: Node) -> Settings:
        own = {"node.id": str(node.node_id), "listeners": f"PLAINTEXT://{node.host.name}:{PORT}"}
        kept = KEPT if self.wal == "objects" else (*KEPT, *SIZES)
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
        assert self.all_served(self.nodes), "nobody serves before anything happened"
        self.disturb()
        for client in self._cast.values():
            client.stop()
        ended = scheduler.run_until(
            scheduler.now_ns + 60 * S, lambda: not any(process.alive for process in self.clients.values())
        )
        assert ended, "clients do not come to an end"

    def disturb(self) -> None:
        """What is measured."""
        raise NotImplementedError

    def takes(self, part: Part, nodes: Sequence[Node]) -> Node | None:
        """Who of these would append to the partition now."""
        for node in nodes:
            log = None if node.broker is None or not node.ready else node.broker.logs.find.get(part)
            if log is not None and log.status is LogStatus.OPEN:
                return node
        return None

    def all_served(self, nodes: Sequence[Node]) -> bool:
        """Every partition has an open log on one of these, and all of them know it."""
        for topic, partition in PARTS:
            leaders = set()
            for node in nodes:
                if node.broker is None or not node.ready:
                    return False
                state = node.broker.controller.state
                known = state.topics.get(topic)
                leaders.add(-1 if known is None else state.logs[known.log_ids[partition]].leader_node)
            serving = self.takes((topic, partition), nodes)
            if serving is None or {serving.node_id} != leaders:
                return False
        return True

    def measure(self) -> Measured:
        """Run it."""
        self.run()
        asked = {e.fields["request"]: e.at_ns for e in self.history if e.kind == "produce.invoke"}
        answered = {e.fields["request"]: e.at_ns for e in self.history if e.kind == "produce.ok"}
        waited = [(at_ns - asked[request]) / S for request, at_ns in answered.items()]
        return Measured(self.seed, self.findings, self.took_s, waited)


class LossWorld(QuietWorld):
    """One of three brokers loses power for good, or with `siblings` is stopped for good: no lock falls.

    In every second world it is the controller's.
    """

    def __init__(self, seed: int, *, siblings: bool = False) -> None:
        super().__init__(seed, *(("together", "volume") if siblings else ("apart", "objects")))
        self.siblings = siblings

    def disturb(self) -> None:
        victims = [node for node in self.nodes if node.broker is not None and len(node.broker.logs)]
        wanted = [node for node in victims if node.leads == (self.seed % 2 == 0)]
        victim = (wanted or victims)[0]
        left = [node for node in self.nodes if node is not victim]
        lost_ns = self.scheduler.now_ns
        if self.siblings:
            assert victim.process is not None
            victim.process.pause()
        else:
            victim.machine.crash()
        assert self.scheduler.run_until(lost_ns + 60 * S, lambda: self.all_served(left)), "nobody took over"
        self.took_s = [(self.scheduler.now_ns - lost_ns) / S]
        self.scheduler.run_until(self.scheduler.now_ns + 10 * S)


class MoveWorld(QuietWorld):
    """An operator moves partitions about, and a broker is drained by being told to stop."""

    def __init__(self, seed: int, *, layout: str = "apart", wal: str = "volume") -> None:
        super().__init__(seed, layout, wal)
        self._shut: dict[Part, int] = {}

    def disturb(self) -> None:
        nodes = [node.node_id for node in self.nodes]
        self.add_client(Mover, "mover", PARTS, nodes, pause_ms=(200, 800))
        self._look()
        self.scheduler.run_until(self.scheduler.now_ns + 12 * S)
        self._cast["mover"].stop()
        self.scheduler.run_until(self.scheduler.now_ns + 3 * S)
        self.scheduler.stream("leaving").choice(self.nodes).stop()
        self.scheduler.run_until(self.scheduler.now_ns + 4 * S)
        assert not self._shut, "nobody serves what was moved"

    def _look(self) -> None:
        now_ns = self.scheduler.now_ns
        for part in PARTS:
            if self.takes(part, self.nodes) is None:
                self._shut.setdefault(part, now_ns)
            elif part in self._shut:
                self.took_s.append((now_ns - self._shut.pop(part)) / S)
        if not self.over:
            self.scheduler.call_later_ns(LOOK_NS, self._look)


WORLDS = {
    "fail-over, objects": partial(LossWorld),
    "fail-over, siblings": partial(LossWorld, siblings=True),
    "moves, volume": partial(MoveWorld),
    "moves, objects": partial(MoveWorld, wal="objects"),
}


def measure(kind: str, seed: int) -> Measured:
    """One world of `WORLDS`."""
    return WORLDS[kind](seed).measure()


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that this share of them does not exceed."""
    found = sorted(values)
    return found[max(0, -(-int(share * 1000) * len(found) // 1000) - 1)]


def told(values: Sequence[float]) -> str:
    """How they are spread."""
    shares = {"median": 0.5, "p99": 0.99}
    parts = [f"{name} {percentile(values, share):.2f}" for name, share in shares.items()]
    return ", ".join([*parts, f"max {max(values):.2f} s of {len(values)}"]) if values else "none"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.availability", description=__doc__)
    parser.add_argument("--seeds", default="0-99", help="worlds A-B, both included")
    parser.add_argument("--kind", choices=sorted(WORLDS), action="append", help="all if not given")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    first, _, last = args.seeds.partition("-")
    bad = 0
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for kind in args.kind or WORLDS:
            ran = pool.map(partial(measure, kind), range(int(first), int(last or first) + 1), chunksize=1)
            for one in ran:
                bad += bool(one.findings)
                for finding in one.findings:
                    print(f"{kind}, seed {one.seed}: {finding}")
            print(f"{kind}: {told([took for one in ran for took in one.took_s])}")
            longest = [max(one.waited_s) for one in ran]
            print(f"  longest wait of a producer in each world: {told(longest)}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
