"""A controller client that decides by the real rules, at once and without any log: state and decisions, no storage."""

from typing import Any

from broker.configs import TopicRules
from broker.settings import Settings
from controller.decide import Context, decide
from protocol.errors import KafkaError
from tests.support.facts_controller import FactsController


class DecidingController(FactsController):
    """`errors` are raised by the next calls of `ask`, in order; None lets one pass."""

    def __init__(self, cluster_id: str = "test-cluster") -> None:
        super().__init__(cluster_id)
        self.errors: list[KafkaError | None] = []
        self.now_ms = 1_700_000_000_000
        self._rules = TopicRules(Settings())
        self._tokens = 0

    def _token(self, n: int) -> bytes:
        self._tokens += 1
        return self._tokens.to_bytes(n, "big")

    async def ask(self, command: Any, timeout_ms: int = 30_000) -> Any:
        self.asked.append(command)
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        decision = decide(self.state, command, Context(self.now_ms, self._token, self._rules))
        if decision.facts:
            self.apply(*decision.facts)
        return decision.answer
