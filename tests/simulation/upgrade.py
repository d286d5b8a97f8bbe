"""A cluster that the version before began is upgraded under faults: broker by broker, then its format level is raised.

Until the upgrade every process writes and understands an earlier level only; from then on a process that starts
understands the present level, and whoever was not restarted yet is still registered with the earlier one. What needs
the level is refused all the while, and nothing else may suffer from that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from broker.operators import FormatLevels
from controller import facts
from protocol.errors import KafkaError
from tests.simulation.scheduler import MS

if TYPE_CHECKING:
    from tests.simulation.cluster import World

NEWEST = facts.FORMAT_LEVEL


def first_level(seed: int) -> int:
    """The level that an upgraded world begins with: mostly the one before the newest."""
    return 1 if seed % 4 == 3 else NEWEST - 1


@contextmanager
def begun_at(level: int) -> Iterator[None]:
    """The world inside begins at this format level."""
    facts.FORMAT_LEVEL = level
    try:
        yield
    finally:
        facts.FORMAT_LEVEL = NEWEST


class Upgrade:
    """The operator who does it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.scheduler.stream("upgrade")
        self.level = first_level(world.seed)
        self._left = list(world.nodes)

    def later(self) -> None:
        """The next step in a while."""
        self.world.scheduler.call_later_ns(self.rng.randint(500, 2_500) * MS, self._act)

    def _act(self) -> None:
        if self.world.over or self.level == NEWEST or (self.world.quiet and self._left):
            return
        facts.FORMAT_LEVEL = NEWEST
        if self._left:
            node = self._left[0]
            if node.broker is None or not node.running or not node.ready:
                node.start()  # down, or on its way: whatever starts now is of the new version
            else:
                node.stop()
            self._left.pop(0)
            self.world.history.record("upgrade", node=node.node_id)
        else:
            self._raise()
        self.later()

    def _raise(self) -> None:
        asked = [node for node in self.world.nodes if node.running and node.ready]
        if not asked:
            return
        node = self.rng.choice(asked)
        assert node.broker is not None and node.process is not None
        levels, tasks = FormatLevels(node.broker.controller, node.broker.token), node.broker.services.tasks
        behind = [one for one in asked if one.broker is not None and self._registered(one.node_id) < NEWEST]
        if behind and not self.world.quiet:
            behind[0].stop()  # it came back before the new version was there

        async def ask() -> None:
            try:
                self.level = (await levels.raise_level())["level"]
            except KafkaError:
                return
            self.world.history.record("format.level", level=self.level)

        def begin() -> None:
            asking = ask()
            try:
                tasks.spawn(asking, name="raise the format level")
            except RuntimeError:  # the broker is just ending
                asking.close()

        node.process.call(begin)

    def _registered(self, node_id: int) -> int:
        """The level that the newest state has for a node."""
        states = [node.broker.controller.state for node in self.world.nodes if node.broker is not None and node.ready]
        newest = max(states, key=lambda state: state.position)
        found = newest.brokers.get(node_id)
        return NEWEST if found is None or not found.alive else found.format_level
