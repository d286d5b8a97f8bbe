"""What operator commands reach of a broker that has registered, whichever port or command they come through."""

from collections.abc import Callable
from typing import Any, NamedTuple

from broker.recovery import WalRecovery
from controller.client import ControllerClient
from controller.commands import DrainBroker, RaiseFormatLevel
from protocol.errors import ErrorCode, KafkaError


class FormatLevels:
    """The format level of the cluster, and what its brokers understand."""

    def __init__(self, controller: ControllerClient, token: Callable[[int], bytes]) -> None:
        self._controller = controller
        self._token = token

    def describe(self) -> dict[str, Any]:
        """`level`: what may be written; `possible`: what every live broker understands; every known broker's own."""
        state = self._controller.state
        levels = [broker.format_level for broker in state.broker_table.alive()]
        return {
            "level": state.format_level,
            "possible": max(state.format_level, min(levels, default=0)),
            "brokers": [
                {"node_id": one.node_id, "alive": one.alive, "understands": one.format_level}
                for _, one in sorted(state.brokers.items())
            ],
        }

    async def raise_level(self) -> dict[str, Any]:
        """Raises it as far as every live broker understands; what `describe` says then. `KafkaError`."""
        await self._controller.ask(RaiseFormatLevel(self._token(16), self.describe()["possible"]))
        return self.describe()


class Drains:
    """Brokers that give up what they lead and get nothing new."""

    def __init__(self, controller: ControllerClient, token: Callable[[int], bytes]) -> None:
        self._controller = controller
        self._token = token

    def describe(self, node_id: int) -> dict[str, Any]:
        """`leads`: partitions it leads; `moving`: those of them that have somewhere to go. RESOURCE_NOT_FOUND."""
        state = self._controller.state
        broker = state.brokers.get(node_id)
        if broker is None:
            raise KafkaError(ErrorCode.RESOURCE_NOT_FOUND, f"no broker with node.id {node_id} was ever registered")
        wals = state.wal_table.of(broker.incarnation) if broker.alive else []
        led = [log_id for wal in wals for log_id in state.log_index.led_through.get(wal.wal_id, ())]
        return {
            "node_id": node_id,
            "drained": node_id in state.drained,
            "alive": broker.alive,
            "leads": len(led),
            "moving": sum(log_id in state.moves for log_id in led),
        }

    def describe_all(self) -> dict[str, Any]:
        """What `describe` says of every broker that ever registered, by node id; and of which cluster they are."""
        state = self._controller.state
        return {
            "cluster_id": state.cluster_id,
            "brokers": [self.describe(node_id) for node_id in sorted(state.brokers)],
        }

    async def drain(self, node_id: int, *, undo: bool) -> dict[str, Any]:
        """Begins, or takes it back; what `describe` says then. `KafkaError`."""
        self.describe(node_id)
        await self._controller.ask(DrainBroker(self._token(16), node_id, undo))
        return self.describe(node_id)


class Operators(NamedTuple):
    """One object per area of commands."""

    recovery: WalRecovery
    format_levels: FormatLevels
    drains: Drains
