"""Commands that wait for an entry, and whoever waits for their answers. Bounded; one event loop."""

import asyncio
from typing import Any

from protocol.errors import ErrorCode, KafkaError


class Waiting:
    """A command and the future of its answer."""

    __slots__ = ("answer", "command", "followers")

    def __init__(self, command: Any) -> None:
        self.command = command
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.followers = 0


class CommandQueue:
    """First in, first decided. Asking twice with one command id is asking once."""

    def __init__(self, commands_max: int) -> None:
        self._commands_max = commands_max
        self._waiting: dict[bytes, Waiting] = {}
        self.wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def items(self) -> list[tuple[Any, Waiting]]:
        """Commands in order, with what waits for them."""
        return [(item.command, item) for item in self._waiting.values()]

    async def ask(self, command: Any, timeout_ms: int) -> Any:
        """The answer, or the `KafkaError` it was refused with.

        THROTTLING_QUOTA_EXCEEDED if the queue is full, REQUEST_TIMED_OUT after `timeout_ms`: the command may still
        become a fact if it is being written just then.
        """
        item = self._waiting.get(command.command_id)
        if item is None:
            if len(self._waiting) >= self._commands_max:
                raise KafkaError(
                    ErrorCode.THROTTLING_QUOTA_EXCEEDED,
                    f"{len(self._waiting)} commands wait for the controller, its bound: try again later",
                )
            item = self._waiting[command.command_id] = Waiting(command)
            self.wake.set()
        item.followers += 1
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await asyncio.shield(item.answer)
        except TimeoutError:
            raise KafkaError(
                ErrorCode.REQUEST_TIMED_OUT,
                f"{type(command).__name__} was not written within {timeout_ms} ms: is the object store reachable?",
            ) from None
        finally:
            item.followers -= 1
            if not item.followers and not item.answer.done():
                self._waiting.pop(command.command_id, None)
                item.answer.cancel()

    def settle(self, item: Waiting, answer: Any) -> None:
        """Answers; a `KafkaError` is a refusal."""
        if self._waiting.get(item.command.command_id) is item:
            del self._waiting[item.command.command_id]
        if item.answer.done():
            return
        if isinstance(answer, KafkaError):
            item.answer.set_exception(answer)
            item.answer.exception()  # retrieved: nobody may be waiting any more
        else:
            item.answer.set_result(answer)

    def refuse_all(self, error: KafkaError) -> None:
        """Nobody will decide these any more."""
        for _, item in self.items():
            self.settle(item, error)
