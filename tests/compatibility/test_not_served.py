"""What libraries say about what this broker does not serve. A test leaves when its API is served."""

import pytest
from kafka import KafkaAdminClient
from kafka.errors import IncompatibleBrokerVersion

from tests.compatibility.admin import admin
from tests.support.broker_process import BrokerProcess


@pytest.mark.parametrize(
    "ask",
    [
        KafkaAdminClient.describe_user_scram_credentials,
        KafkaAdminClient.describe_metadata_quorum,
    ],
)
def test_admin_requests_with_kafka_python(broker: BrokerProcess, ask: object) -> None:
    with admin(broker) as manager, pytest.raises(IncompatibleBrokerVersion):
        ask(manager)  # type: ignore[operator]
