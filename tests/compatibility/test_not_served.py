"""What libraries say about what this broker does not serve. A test leaves when its API is served."""

import asyncio

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError as AioKafkaError
from confluent_kafka import KafkaError, KafkaException, Producer
from kafka import KafkaAdminClient, KafkaProducer
from kafka.errors import IncompatibleBrokerVersion
from kafka.errors import KafkaError as PythonKafkaError

from tests.compatibility.admin import admin
from tests.support.broker_process import BrokerProcess


async def test_transactions_with_aiokafka(broker: BrokerProcess) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id="t")
    with pytest.raises(AioKafkaError, match="InvalidRequestError"):
        await asyncio.wait_for(producer.start(), 20)
    await producer.stop()


def test_transactions_with_kafka_python(broker: BrokerProcess) -> None:
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id="t")
    with pytest.raises(PythonKafkaError, match="Could not find a coordinator with type 1"):
        producer.init_transactions()
    producer.close(1)


def test_transactions_with_librdkafka(broker: BrokerProcess) -> None:
    """It keeps asking for the coordinator; only the caller's own time ends that."""
    producer = Producer({"bootstrap.servers": broker.bootstrap, "transactional.id": "t"})
    with pytest.raises(KafkaException) as caught:
        producer.init_transactions(1)
    assert caught.value.args[0].code() == KafkaError._TIMED_OUT


@pytest.mark.parametrize(
    "ask",
    [
        KafkaAdminClient.describe_user_scram_credentials,
        KafkaAdminClient.list_transactions,
        KafkaAdminClient.list_config_resources,
        KafkaAdminClient.describe_metadata_quorum,
    ],
)
def test_admin_requests_with_kafka_python(broker: BrokerProcess, ask: object) -> None:
    with admin(broker) as manager, pytest.raises(IncompatibleBrokerVersion):
        ask(manager)  # type: ignore[operator]
