"""A real broker process for the tests with real clients, and the libraries they run with."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.compatibility import versions
from tests.compatibility.health import check
from tests.compatibility.jvm import Shell, shell
from tests.support.broker_process import BrokerProcess


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """One broker for all tests that do not restart it. It has to stop cleanly and to have logged no error."""
    with BrokerProcess(tmp_path_factory.mktemp("broker") / "data") as running:
        yield running
        check(running)
        assert running.stop() == 0, running.log_tail()
        check(running)


@pytest.fixture(scope="module", params=[versions.KAFKA, versions.OLDER_KAFKA])
def tools(request: pytest.FixtureRequest) -> Iterator[Shell]:
    """Kafka's command-line tools, of two versions in turn."""
    with shell(request.param) as opened:
        yield opened


@pytest.fixture
def where(broker: BrokerProcess) -> tuple[str, str]:
    """The option that every tool takes."""
    return "--bootstrap-server", broker.bootstrap


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """A name that no other test uses; the topic does not exist yet."""
    module = request.node.module.__name__.rpartition(".test_")[2]
    return re.sub(r"[^A-Za-z0-9]+", "-", f"{module}-{request.node.name.removeprefix('test_')}").strip("-")[:200]


@pytest.fixture
def make_broker(tmp_path: Path) -> Iterator[Callable[..., BrokerProcess]]:
    """Brokers of one test's own: `make_broker(**overrides)` gives a running one, killed at the end if still there."""
    made: list[BrokerProcess] = []

    def make(**overrides: object) -> BrokerProcess:
        made.append(BrokerProcess(tmp_path / f"broker-{len(made)}", **overrides))
        return made[-1].start()

    yield make
    try:
        for one in made:
            check(one)
    finally:
        for one in made:
            if one.process is not None:
                one.kill()
