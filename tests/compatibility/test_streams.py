"""Kafka Streams, exactly_once_v2, with state, repartitioning, kills of the application and of the broker."""

import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compatibility import java, versions
from tests.compatibility.admin import create_topic
from tests.compatibility.clients import confluent, poll_until
from tests.compatibility.clients.base import In, Out
from tests.compatibility.jvm import Tools
from tests.support.broker_process import BrokerProcess

pytestmark = [pytest.mark.compatibility, pytest.mark.timeout(600)]

ACCOUNTS = 20
PAYMENTS = 300
SECONDS = 120


@pytest.fixture(scope="module")
def application() -> Tools:
    logger = java.fetch([f"org.slf4j:slf4j-simple:{versions.SLF4J}"])
    classpath = f"{logger}{os.pathsep}{java.fetch(java.kafka('kafka-streams', version=versions.KAFKA))}"
    return Tools(versions.KAFKA, java.compile_source(Path(__file__).with_name("Balances.java"), classpath))


def amount(number: int) -> int:
    """Different from payment to payment, so that a payment counted twice or not at all shows in every balance after."""
    return number * number + 1


def payments(first: int, count: int) -> list[Out]:
    return [
        Out(key=b"%d" % (number % ACCOUNTS), value=b"%d" % amount(number), partition=number % 4)
        for number in range(first, first + count)
    ]


def check_balances(found: list[In], sent: int) -> None:
    """Every account's balances begin at nothing, and every step is a payment of that account, each exactly once."""
    steps: dict[str, list[int]] = defaultdict(list)
    last: dict[str, int] = defaultdict(int)
    for one in found:
        assert one.key is not None and one.value is not None
        account, balance = one.key.decode(), int(one.value)
        steps[account].append(balance - last[account])
        last[account] = balance
    for account in range(ACCOUNTS):
        paid = [amount(number) for number in range(sent) if number % ACCOUNTS == account]
        assert sorted(steps[f"account-{account}"]) == paid, f"account {account}"


def test_balances_are_right_through_kills(
    application: Tools, make_broker: Callable[..., BrokerProcess], tmp_path: Path
) -> None:
    """SIGKILL of the application, then of the broker: what was counted is counted once."""
    broker = make_broker()
    for name in ("payments", "balances"):
        create_topic(broker, name, partitions=4)
    sent = 0

    def running(lines: list[str]) -> bool:
        return bool(lines) and lines[-1] == "RUNNING"

    with (
        confluent.producer(broker.bootstrap) as producer,
        confluent.consumer(broker.bootstrap, {"isolation.level": "read_committed"}) as reader,
    ):
        producer.send("payments", payments(0, PAYMENTS))
        sent += PAYMENTS
        with application.running("main.Balances", broker.bootstrap, tmp_path / "state") as first:
            first.wait_for(running, SECONDS)
            producer.send("payments", payments(sent, PAYMENTS))
            sent += PAYMENTS
            reader.assign({("balances", partition): "beginning" for partition in range(4)})
            found = poll_until(reader, lambda seen: len(seen) > PAYMENTS // 2, SECONDS)
            first.kill()
        with application.running("main.Balances", broker.bootstrap, tmp_path / "state") as second:
            second.wait_for(running, SECONDS)
            producer.send("payments", payments(sent, PAYMENTS))
            sent += PAYMENTS
            broker.kill()
            broker.start()
            producer.send("payments", payments(sent, PAYMENTS))
            sent += PAYMENTS
            found += poll_until(reader, lambda seen: len(found) + len(seen) >= sent, SECONDS)
            assert second.end() in (0, 143)
    check_balances(found, sent)


def test_the_check_of_balances_finds_what_it_has_to() -> None:
    def told(*balances: int) -> list[In]:
        return [In("balances", 0, offset, 0, b"account-0", b"%d" % one, ()) for offset, one in enumerate(balances)]

    paid = [amount(number) for number in range(0, 3 * ACCOUNTS, ACCOUNTS)]
    sums = [sum(paid[: number + 1]) for number in range(3)]
    only = [In("balances", 0, 0, 0, b"account-%d" % other, b"0", ()) for other in range(1, ACCOUNTS)]
    for wrong in (sums[:2], [*sums, sums[2] + paid[0]], [sums[0], sums[1], sums[1] + paid[1]]):
        with pytest.raises(AssertionError, match="account 0"):
            check_balances(told(*wrong) + only, 3 * ACCOUNTS)
