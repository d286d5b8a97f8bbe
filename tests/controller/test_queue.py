import asyncio

import pytest

from controller import commands as c
from controller.queue import CommandQueue
from protocol.errors import ErrorCode, KafkaError
from tests.controller.virtual import run


def command(number: int) -> c.AllocateProducerIds:
    return c.AllocateProducerIds(number.to_bytes(16, "big"), 1)


def test_answers_refusals_and_order() -> None:
    async def main() -> None:
        queue = CommandQueue(10)
        asking = [asyncio.ensure_future(queue.ask(command(i), 1_000)) for i in (3, 1, 2)]  # noqa: TID251
        await asyncio.sleep(0)
        assert queue.wake.is_set() and len(queue) == 3
        assert [asked for asked, _ in queue.items()] == [command(3), command(1), command(2)]
        for (_, item), answer in zip(queue.items(), ("three", KafkaError(ErrorCode.INVALID_REQUEST, "no"), "two")):
            queue.settle(item, answer)
        outcomes = await asyncio.gather(*asking, return_exceptions=True)
        assert outcomes[0] == "three" and outcomes[2] == "two"
        assert isinstance(outcomes[1], KafkaError) and len(queue) == 0

    run(main)


def test_whoever_gives_up_takes_the_command_along_unless_others_wait() -> None:
    async def main() -> None:
        queue = CommandQueue(10)
        first = asyncio.ensure_future(queue.ask(command(1), 1_000))  # noqa: TID251
        second = asyncio.ensure_future(queue.ask(command(1), 9_000))  # noqa: TID251
        with pytest.raises(KafkaError, match="REQUEST_TIMED_OUT"):
            await first
        assert len(queue) == 1, "one command, two who wait"
        (_, item) = queue.items()[0]
        second.cancel()
        await asyncio.wait([second])
        assert len(queue) == 0
        queue.settle(item, "too late")

    run(main)


def test_bounds() -> None:
    async def main() -> None:
        queue = CommandQueue(1)
        first = asyncio.ensure_future(queue.ask(command(1), 1_000))  # noqa: TID251
        await asyncio.sleep(0)
        with pytest.raises(KafkaError, match="THROTTLING_QUOTA_EXCEEDED"):
            await queue.ask(command(2), 1_000)
        queue.refuse_all(KafkaError(ErrorCode.NOT_CONTROLLER, "over"))
        with pytest.raises(KafkaError, match="NOT_CONTROLLER: over"):
            await first

    run(main)
