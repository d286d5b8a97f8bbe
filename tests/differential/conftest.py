"""One Apache Kafka and one tidelog for all tests here, both with the same settings where they have the same."""

from collections.abc import Iterator

import pytest

from benchmarks.peers import Kafka
from tests.compatibility import java
from tests.differential.sides import Pair
from tests.support.broker_process import BrokerProcess

SETTINGS: dict[str, object] = {
    "auto.create.topics.enable": "false",
    "group.consumer.assignment.interval.ms": 0,
    "group.initial.rebalance.delay.ms": 0,
    "log.retention.ms": -1,  # records carry old timestamps
    "offsets.topic.num.partitions": 1,
    "transaction.state.log.num.partitions": 1,
}
ONLY_KAFKAS: dict[str, object] = {
    "log.cleaner.enable": "false",
}


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both running; they have to be there in the end still."""
    for name in ("java", "mvn"):
        java.tool(name)
    directory = tmp_path_factory.mktemp("differential")
    kafka = Kafka("kafka", directory / "kafka", {**SETTINGS, **ONLY_KAFKAS})
    kafka.start()
    try:
        with BrokerProcess(directory / "tidelog", **SETTINGS) as tidelog:
            both = Pair(kafka.port, tidelog.port)
            yield both
            both.close()
            assert kafka.running
            assert tidelog.stop() == 0, tidelog.log_tail()
    finally:
        kafka.stop()
