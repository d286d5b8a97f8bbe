"""An admin client for what tests need beside the client under test."""

from collections.abc import Iterator
from contextlib import contextmanager

from kafka import KafkaAdminClient

from tests.support.broker_process import BrokerProcess


@contextmanager
def admin(broker: BrokerProcess) -> Iterator[KafkaAdminClient]:
    """kafka-python's, closed at the end."""
    manager = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    try:
        yield manager
    finally:
        manager.close()


def create_topic(broker: BrokerProcess, topic: str, partitions: int = 1, **configs: str) -> None:
    """A topic; config names with `_` for `.`."""
    wanted = {key.replace("_", "."): value for key, value in configs.items()}
    with admin(broker) as manager:
        manager.create_topics({topic: {"num_partitions": partitions, "configs": wanted}})
