"""A broker joins a running world and things fail; once they are well, all brokers soon carry alike, and it stays so."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from controller import balancing
from controller.balance import COUNT_PERCENT, BalanceMove, BalanceNode, Picture
from controller.balancing import balance_nodes
from controller.state import ClusterState
from tests.simulation.client import SimulatedClient
from tests.simulation.cluster import Options, World
from tests.simulation.operators import Admin
from tests.simulation.scheduler import MS, S

WIDE = {"wide": 18, "single": 1}
BALANCED_WITHIN_S = 20
"""After everybody serves: recoveries end, two rounds in which nobody comes or goes, the moves, and then rest."""
REST_S = 4
"""Nothing is moved for so long when all is done."""


class JoiningWorld(World):
    """More partitions than usual, one broker that comes late, and balance that looks often."""

    balanced_after_ms = -1
    _asked = (-1, 0)

    def __init__(self, seed: int, options: Options) -> None:
        often = {"tidelog.balance.interval.ms": "500", "tidelog.balance.moves.max": "4"}
        super().__init__(seed, replace(options, settings=often))

    def _add_clients(self) -> None:
        super()._add_clients()
        self.add_client(Admin, "wide", WIDE)

    def _finish(self, clients: Sequence[SimulatedClient]) -> None:
        if self._asked[0] < 0 and any(client.name == "wide" for client in clients):
            self._watch_balance()
        super()._finish(clients)

    def _watch_balance(self) -> None:
        began = self.scheduler.now_ns
        if not self.scheduler.run_until(began + BALANCED_WITHIN_S * S, self._balanced):
            self.found(f"not balanced after {BALANCED_WITHIN_S} s: {self._counts()}, moving {len(self._state().moves)}")
            return
        self.balanced_after_ms = (self._asked[1] - began) // MS
        self.history.record("balanced", counts=tuple(sorted(self._counts().items())))

    def _state(self) -> Any:
        states = [node.broker.controller.state for node in self.nodes if node.broker is not None and node.ready]
        return max(states, key=lambda state: state.position)

    def _counts(self) -> Counter[int]:
        return Counter(log.leader_node for log in self._state().logs.values())

    def _balanced(self) -> bool:
        nodes = [node for node in self.nodes if node.broker is not None and node.ready]
        asked = sum(node.broker.runtime.balancing.moves for node in nodes if node.broker is not None)
        now = self.scheduler.now_ns
        if asked != self._asked[0] or len(nodes) < len(self.nodes) or self._state().moves:
            self._asked = (asked, now)
        if now < self._asked[1] + REST_S * S:
            return False
        counts = self._counts()
        if not set(counts) <= {node.node_id for node in self.nodes}:
            return False  # some are recovering
        led = [counts[node.node_id] for node in self.nodes]
        slack = max(1, COUNT_PERCENT * sum(led) // (100 * len(led)))
        return max(led) - min(led) <= slack


@pytest.mark.parametrize("seed", range(4))
def test_a_broker_that_joins_takes_its_share_whatever_fails_meanwhile(seed: int) -> None:
    world = JoiningWorld(seed, Options(brokers=3, late_s=6, moves=0))
    result = world.run()
    assert not result.findings, "\n".join(result.findings[:10])
    assert world.balanced_after_ms >= 0


def test_a_broker_that_joins_takes_its_share_in_a_world_without_faults() -> None:
    world = JoiningWorld(1, Options(brokers=3, late_s=6, moves=0, faults={}, faults_s=12, layout="apart"))
    result = world.run()
    assert not result.findings, "\n".join(result.findings[:10])
    balanced = [event for event in result.history if event.kind == "balanced"]
    assert world.balanced_after_ms < 100, "it was before anybody looked"
    assert [count for _, count in balanced[0].fields["counts"]] in ([8, 8, 8], [7, 8, 9]), balanced


def planted_shuffle(picture: Picture, moves_max: int, threshold_percent: int | None) -> Iterator[BalanceMove | None]:
    """Some log goes somewhere else, in every round."""
    for source, target in itertools.permutations(picture.nodes, 2):
        for topic in picture.topics_at(source):
            for log in picture.loose(source, topic, picture.nodes[target].kinds):
                yield picture.move(log, topic, target)
                return


def planted_blindness(state: ClusterState) -> list[BalanceNode]:
    """Whoever joined later is not seen."""
    return balance_nodes(state)[:2]


@pytest.mark.parametrize(("name", "plant"), [("plan", planted_shuffle), ("balance_nodes", planted_blindness)])
def test_balance_that_does_not_work_is_found(monkeypatch: pytest.MonkeyPatch, name: str, plant: Any) -> None:
    monkeypatch.setattr(balancing, name, plant)
    result = JoiningWorld(1, Options(brokers=3, late_s=6, moves=0, faults={}, faults_s=12, layout="apart")).run()
    assert any("not balanced" in finding for finding in result.findings), result.findings
