"""The same requests to Apache Kafka and to tidelog: every answer is compared, field by field."""

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.differential.admin_steps import AdminSteps
from tests.differential.allowed import TABLE
from tests.differential.config_steps import ConfigSteps
from tests.differential.consumer_steps import ConsumerSteps
from tests.differential.group_steps import GroupSteps
from tests.differential.log_steps import FAULTS, LogSteps, bad_batch
from tests.differential.machine import Machine
from tests.differential.session_steps import SessionSteps
from tests.differential.sharing_steps import ClassicSteps, ConsumersSteps
from tests.differential.sides import Pair
from tests.differential.topics import TopicSteps
from tests.differential.txn_steps import TxnSteps

pytestmark = [pytest.mark.compatibility, pytest.mark.timeout(900)]

SETTINGS = settings(
    max_examples=60,
    stateful_step_count=25,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
)


class Logs(LogSteps, TopicSteps):
    """Topics and what is in them."""


class Groups(GroupSteps, TopicSteps):
    """Groups and the topics they commit offsets of."""


class Configs(ConfigSteps, TopicSteps):
    """Configs and the topics they are of."""


class Admin(AdminSteps, TopicSteps):
    """Who runs the cluster, and the topics that are asked about."""


class Sessions(SessionSteps, TopicSteps):
    """Fetch sessions, and the topics that they are about."""


class Transactions(TxnSteps):
    """Transactions, what they write to, and what readers see of it."""


SEQUENCES = [
    TopicSteps,
    Logs,
    Sessions,
    Configs,
    Admin,
    Groups,
    ClassicSteps,
    ConsumerSteps,
    ConsumersSteps,
    Transactions,
]


@pytest.mark.parametrize("steps", SEQUENCES)
def test_both_answer_alike(pair: Pair, steps: type[Machine]) -> None:
    run_state_machine_as_test(lambda: steps(pair), settings=SETTINGS)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("version", [3, 8, 13])
def test_every_bad_batch(pair: Pair, version: int) -> None:
    """To a topic that is there, and to one that is not."""
    steps = Logs(pair)
    steps.begin(stamped=False)
    for fault in FAULTS:
        for name in ("red", "green"):
            steps.send(version, steps.name(name), 0, bad_batch(fault), {})
    steps.teardown()


def test_every_allowed_difference_is_still_one(pair: Pair) -> None:
    """What nothing needs any more is taken out of the table. Runs after the sequences above."""
    if not pair.asked:
        pytest.skip("no sequence was run")
    assert [one for one in TABLE if not one.used and not one.sometimes] == []
