"""The object WAL keeps its word through all that a bucket, zombies and rivals may do, and worlds see when it does not.

`object_wal_world.py` tells what is judged, `plants/objects.py` which bugs are planted.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.simulation.object_wal_world import ObjectWalWorld
from tests.simulation.plants import OBJECT_PLANTS

SEEDS = 240
GROUPS = 4
CAUGHT_WITHIN = 150
"""Seeds."""


pytestmark = pytest.mark.usefixtures("no_pauses")


@pytest.mark.parametrize("group", range(GROUPS))
def test_what_was_acknowledged_is_found_by_whoever_is_named(group: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(group * SEEDS // GROUPS, (group + 1) * SEEDS // GROUPS):
        world = ObjectWalWorld(seed)
        assert world.run() == [], f"seed {seed}"
        seen.update(world.seen)
    assert min(seen.values()) > 0, seen


def test_one_seed_is_one_run() -> None:
    def run(seed: int) -> list[Any]:
        world = ObjectWalWorld(seed)
        world.run()
        told = [(wal_id, truth.acknowledged, truth.recovered) for wal_id, truth in world.truths.items()]
        return [*told, world.scheduler.now_ns, world.scheduler.events_run]

    for seed in range(3):
        assert run(seed) == run(seed)
    assert run(0) != run(1)


@pytest.mark.parametrize("name", OBJECT_PLANTS)
def test_a_planted_bug_is_caught(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(CAUGHT_WITHIN):
        with OBJECT_PLANTS[name].planted():
            findings = ObjectWalWorld(seed).run()
        if findings:
            with capsys.disabled():
                print(f"\n{name}: caught by seed {seed}: {findings[0]}", end="")
            return
    pytest.fail(f"{name} was not noticed in {CAUGHT_WITHIN} worlds")
