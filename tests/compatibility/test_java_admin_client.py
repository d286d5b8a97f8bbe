"""Every method of Kafka's Java admin client, driven by `AdminCalls.java`, which fails if it leaves one out."""

from pathlib import Path

import pytest

from broker.settings import AUTHORIZER
from tests.compatibility import versions
from tests.compatibility.health import check
from tests.compatibility.jvm import tools
from tests.support.broker_process import BrokerProcess

pytestmark = pytest.mark.compatibility


def test_every_call(tmp_path: Path) -> None:
    client = tools(versions.KAFKA, [Path(__file__).with_name("AdminCalls.java")])
    with BrokerProcess(tmp_path / "data", authorizer_class_name=AUTHORIZER) as broker:
        told = client.try_run("main.AdminCalls", broker.bootstrap, timeout_s=90)
        assert told.code == 0, told.err
        assert told.lines == ["passed"]
        check(broker)
        assert broker.stop() == 0
