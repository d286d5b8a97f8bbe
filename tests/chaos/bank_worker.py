"""One worker of the bank, a process to be killed: `python -m tests.chaos.bank_worker BOOTSTRAP TRANSACTIONAL_ID SEED`.

Prints `begin ATTEMPT [orders]` before anything is written, `committed ATTEMPT` or `aborted ATTEMPT` when the library
says so; of other attempts nobody knows. `idle` says that it lives. Ends with 1 when its producer was fenced or failed
for good.
"""

import json
import os
import random  # noqa: TID251
import sys

from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition

from tests.chaos.bank import GROUP, LEDGER, ORDERS, Order, entries_of

BATCH = 5
ABORTS = 0.1
TIMEOUT_S = 30.0


class Worker:
    def __init__(self, bootstrap: str, transactional_id: str, seed: int) -> None:
        self.random = random.Random(seed)
        self.name = f"{transactional_id}-{os.getpid()}"
        self.count = 0
        self.consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": GROUP,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "session.timeout.ms": 6000,
                "heartbeat.interval.ms": 500,
            }
        )
        self.producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "transactional.id": transactional_id,
                "transaction.timeout.ms": 10_000,
                "linger.ms": 0,
            }
        )
        self.consumer.subscribe([ORDERS])

    def run(self) -> None:
        """Until killed."""
        self._again(lambda: self.producer.init_transactions(TIMEOUT_S))
        while True:
            messages = [one for one in self.consumer.consume(BATCH, 0.5) if one.error() is None]
            if messages:
                self._transfer(messages)
            else:
                print("idle", flush=True)

    def _transfer(self, messages: list[Message]) -> None:
        self.count += 1
        attempt = f"{self.name}-{self.count}"
        orders = [Order.decode(one.value() or b"") for one in messages]
        print(f"begin {attempt} {json.dumps([order.number for order in orders])}", flush=True)
        first: dict[int, int] = {}
        after: dict[int, int] = {}
        for one in messages:
            partition, offset = one.partition(), one.offset()
            assert partition is not None and offset is not None
            first.setdefault(partition, offset)
            after[partition] = offset + 1
        try:
            self.producer.begin_transaction()
            for order in orders:
                for entry in entries_of(attempt, order):
                    self.producer.produce(LEDGER, value=entry.encode(), key=str(entry.account))
            self._again(
                lambda: self.producer.send_offsets_to_transaction(
                    [TopicPartition(ORDERS, partition, offset) for partition, offset in after.items()],
                    self.consumer.consumer_group_metadata(),
                    TIMEOUT_S,
                )
            )
            if self.random.random() < ABORTS:
                self.producer.flush(TIMEOUT_S)
                self._abort(attempt, first)
                return
            self._again(lambda: self.producer.commit_transaction(TIMEOUT_S))
            print(f"committed {attempt}", flush=True)
        except KafkaException as error:
            print(f"failed {attempt} {error}", flush=True)
            if not error.args[0].txn_requires_abort():
                raise
            self._abort(attempt, first)

    def _abort(self, attempt: str, first: dict[int, int]) -> None:
        self._again(lambda: self.producer.abort_transaction(TIMEOUT_S))
        print(f"aborted {attempt}", flush=True)
        mine = {one.partition for one in self.consumer.assignment()}
        for partition, offset in first.items():
            if partition in mine:
                self.consumer.seek(TopicPartition(ORDERS, partition, offset))

    def _again(self, call: "object") -> None:
        while True:
            try:
                call()  # type: ignore[operator]
                return
            except KafkaException as error:
                if not error.args[0].retriable():
                    raise


if __name__ == "__main__":
    Worker(sys.argv[1], sys.argv[2], int(sys.argv[3])).run()
