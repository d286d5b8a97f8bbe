"""A transaction that its coordinator does not know of, found and ended with Kafka's own tool."""

import asyncio
from pathlib import Path

import pytest

from protocol import messages as m
from protocol.apis import ApiKey
from tests.compatibility.jvm import Output, Shell
from tests.support.raw_client import RawClient, batch_of
from tests.support.waiting import until
from tests.support.whole_broker import whole_broker

pytestmark = pytest.mark.compatibility

PID, EPOCH = 4711, 3
HOUR_MS = 3_600_000


async def test_find_and_abort(tools: Shell, tmp_path: Path) -> None:
    async with whole_broker(tmp_path / "data", tidelog_seal_ms=50) as broker:
        port = broker.listeners[0].port

        async def transactions(*arguments: object) -> Output:
            where = ("--bootstrap-server", f"127.0.0.1:{port}")
            return await asyncio.to_thread(tools.run, "TransactionsCommand", *where, *arguments)

        async with RawClient(port) as client:
            wanted = m.CreateTopicsRequest.CreatableTopic(name="t", num_partitions=1, replication_factor=1)
            await client.ask(ApiKey.CREATE_TOPICS, 7, m.CreateTopicsRequest(topics=[wanted]))
            await until(lambda: ("t", 0) in broker.logs.find)
            log = broker.logs.find["t", 0]
            await client.produce("t", batch_of(b"before", timestamp=broker.clock.now_ms()))
            # No client could do this: its coordinator would say that the log is not part of a transaction.
            hours_ago = broker.clock.now_ms() - 2 * HOUR_MS
            orphan = batch_of(
                b"hanging",
                timestamp=hours_ago,
                producer_id=PID,
                producer_epoch=EPOCH,
                base_sequence=0,
                transactional=True,
            )
            log.append_own(orphan)
            await client.produce("t", batch_of(b"behind it", timestamp=broker.clock.now_ms()))
            assert (log.hw, log.lso) == (3, 1)

            told = await transactions("describe-producers", "--topic", "t", "--partition", 0)
            head, *rows = [line.split() for line in told.lines]
            assert head[:2] == ["ProducerId", "ProducerEpoch"]
            assert rows == [[str(PID), str(EPOCH), "-1", "0", str(hours_ago), "1"]]

            # The coordinator is asked for transactions of this producer, and knows of none.
            told = await transactions("find-hanging", "--broker-id", 1, "--max-transaction-timeout", 15)
            head, *rows = [line.split() for line in told.lines]
            assert head[:2] == ["Topic", "Partition"]
            assert rows == [["t", "0", str(PID), str(EPOCH), "-1", "1", str(hours_ago), "120"]]

            await transactions("abort", "--topic", "t", "--partition", 0, "--start-offset", 1)
            assert (log.hw, log.lso) == (4, 4)
            part = await client.fetch("t", 0, isolation_level=1, max_wait_ms=5000)
            assert [(each.producer_id, each.first_offset) for each in part.aborted_transactions] == [(PID, 1)]
            told = await transactions("describe-producers", "--topic", "t", "--partition", 0)
            assert [line.split()[-1] for line in told.lines[1:]] == ["None"]
            told = await transactions("find-hanging", "--broker-id", 1)
            assert len(told.lines) == 1
