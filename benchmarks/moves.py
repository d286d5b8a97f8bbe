"""How fast leadership leaves a broker, and what its clients notice: `python -m benchmarks.moves [--partitions 1000]`.

Two broker processes over one bucket; one leads everything and is drained under load. Printed are the time until it
leads nothing, per partition the longest that a record waited for its acknowledgement (what a client sees as
unavailability, its own back-off included), and how long partitions were frozen, as the broker counts it. The load is
one confluent-kafka producer, idempotent, with a record a partition every two seconds.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from tests.support.broker_process import BrokerProcess

TOPIC = "moves"
SETTLE_S = 3.0


class Load:
    """Sends to every partition in turn and keeps, per partition, the longest wait since `mark`."""

    def __init__(self, bootstrap: str, partitions: int, records_per_s: int) -> None:
        self.partitions = partitions
        self.longest_s = [0.0] * partitions
        self.acknowledged = 0
        self.failures: list[str] = []
        self._pause_s = 20 / records_per_s
        self._stop = threading.Event()
        self._producer = Producer(
            {"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 1, "log_level": 0}
        )
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def mark(self) -> None:
        """Forget what was before."""
        self.longest_s = [0.0] * self.partitions

    def finish(self) -> None:
        """Wait until everything is acknowledged."""
        self._stop.set()
        self._thread.join()
        self._producer.flush(60)
        assert not self.failures, self.failures[:3]

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            for _ in range(20):
                partition, sent = number % self.partitions, time.perf_counter()

                def delivered(error: KafkaError | None, _: Message, at: float = sent, to: int = partition) -> None:
                    self._delivered(error, to, at)

                self._producer.produce(TOPIC, bytes(100), partition=partition, on_delivery=delivered)
                number += 1
            self._producer.poll(self._pause_s)

    def _delivered(self, error: KafkaError | None, partition: int, sent: float) -> None:
        if error is not None:
            self.failures.append(str(error))
            return
        self.acknowledged += 1
        self.longest_s[partition] = max(self.longest_s[partition], time.perf_counter() - sent)


def call(node: BrokerProcess, method: str, path: str) -> Any:
    """One request to the HTTP port."""
    with urllib.request.urlopen(urllib.request.Request(node.http + path, method=method), timeout=30) as response:
        return json.load(response)


def metric(node: BrokerProcess, name: str) -> list[tuple[str, float]]:
    """Samples of a metric: what stands behind its name, and the value."""
    with urllib.request.urlopen(node.http + "/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    return [
        (line[len(name) :].rpartition(" ")[0], float(line.rpartition(" ")[2]))
        for line in lines
        if line.startswith((f"{name} ", f"{name}{{"))
    ]


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of them do not exceed."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def run(partitions: int, records_per_s: int, directory: Path) -> dict[str, Any]:
    """One drain, measured."""
    with ExitStack() as stack:
        first, second = (
            BrokerProcess(
                directory / f"node-{node_id}",
                node_id=node_id,
                tidelog_storage=f"file:{directory}/bucket",
                tidelog_wal_dir=directory / f"wal-{node_id}",
                tidelog_balance="false",
            )
            for node_id in (1, 2)
        )
        stack.enter_context(first)
        admin = AdminClient({"bootstrap.servers": first.bootstrap})
        admin.create_topics([NewTopic(TOPIC, partitions, 1)])[TOPIC].result(60)
        stack.enter_context(second)
        load = Load(f"{first.bootstrap},{second.bootstrap}", partitions, records_per_s)
        stack.callback(load._stop.set)
        while load.acknowledged < 3 * partitions:
            time.sleep(0.05)
        load.mark()
        time.sleep(SETTLE_S)
        before = list(load.longest_s)
        load.mark()
        began = time.perf_counter()
        left = call(first, "POST", "/v1/brokers/1/drain")["leads"]
        while left:
            time.sleep(0.02)
            left = call(second, "GET", "/v1/brokers/1")["leads"]
        took_s = time.perf_counter() - began
        time.sleep(SETTLE_S)
        waits = list(load.longest_s)
        moved = metric(first, "tidelog_moves_total")
        frozen = {float(at[5:-2]): count for at, count in metric(first, "tidelog_move_seconds_bucket")}
        copied = metric(second, "tidelog_moves_copied_bytes_total")
        load.finish()
        return {
            "partitions": partitions,
            "records_per_s": records_per_s,
            "left_after_s": round(took_s, 2),
            "wait_before_ms": {"p50": ms(before, 0.5), "p99": ms(before, 0.99), "max": ms(before, 1.0)},
            "wait_during_ms": {"p50": ms(waits, 0.5), "p99": ms(waits, 0.99), "max": ms(waits, 1.0)},
            "frozen_below_ms": {
                "p50": below_ms(frozen, 0.5),
                "p99": below_ms(frozen, 0.99),
                "max": below_ms(frozen, 1),
            },
            "moves": moved[0][1],
            "copied_bytes": copied[0][1],
        }


def below_ms(buckets: dict[float, float], share: float) -> float:
    """The bound, in milliseconds, of the bucket of a histogram that holds this percentile. Bounds double."""
    total = max(buckets.values())
    return round(1000 * min(bound for bound, count in buckets.items() if count >= share * total), 1)


def ms(values: list[float], share: float) -> int:
    """A percentile of seconds, in milliseconds."""
    return round(1000 * percentile(values, share))


def main() -> int:
    """Run and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--partitions", type=int, default=1000)
    parser.add_argument("--records-per-s", type=int, default=500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tidelog-moves-") as directory:
        print(json.dumps(run(options.partitions, options.records_per_s, Path(directory)), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
