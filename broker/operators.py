"""What operator commands reach of a broker that has registered, whichever port or command they come through."""

from collections.abc import Callable
from typing import Any, NamedTuple

from broker.recovery import WalRecovery
from controller.client import ControllerClient
from controller.commands import RaiseFormatLevel


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


class Operators(NamedTuple):
    """One object per area of commands."""

    recovery: WalRecovery
    format_levels: FormatLevels
