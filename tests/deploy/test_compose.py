"""The compose file, read by Compose's own library: the brokers take their settings, addresses agree, and its processes
serve a client when they run without containers."""

import contextlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from broker.settings import Settings
from broker.settings_sources import load
from tests.chaos.load import IdempotentLoad, check_all, create_topic
from tests.deploy.tools import DEPLOY, ROOT, checker, needs_go
from tests.support.broker_process import BrokerProcess
from tests.support.postgres_server import VERSION, PostgresServer
from tests.support.s3_servers import ENVIRONMENT, versitygw

pytestmark = needs_go

FILE = DEPLOY / "compose.yaml"
IMAGE_PROPERTIES = (DEPLOY / "server.properties").read_text()


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = checker("compose", FILE)["services"]
    return found


def brokers(services: dict[str, Any]) -> dict[str, Settings]:
    """The settings of every broker, as the image's command reads them."""
    found = {}
    for name, service in services.items():
        if name.startswith("broker-"):
            assert service["command"] is None and service["entrypoint"] is None
            loaded = load(IMAGE_PROPERTIES, "server.properties", service["environment"])
            assert not loaded.warnings and not loaded.without_effect
            found[name] = loaded.settings
    assert len(found) == 3
    return found


def test_brokers_take_their_settings(services: dict[str, Any]) -> None:
    found = brokers(services)
    assert len({settings.node_id for settings in found.values()}) == len(found)
    for name, settings in found.items():
        assert settings.peer_listener == "INTERNAL"
        told = {listener.name: listener for listener in settings.told_listeners or []}
        bound = {listener.name: listener for listener in settings.bound_listeners}
        assert (told["INTERNAL"].host, told["INTERNAL"].port) == (name, bound["INTERNAL"].port)
        published = {port["target"]: (port["host_ip"], int(port["published"])) for port in services[name]["ports"]}
        assert published[bound["PLAINTEXT"].port] == (told["PLAINTEXT"].host, told["PLAINTEXT"].port)
        assert int(settings.tidelog_http_listener.rpartition(":")[2]) in published
        assert [volume["target"] for volume in services[name]["volumes"]] == [settings.wal_dir]
        grace_s = int(services[name]["stop_grace_period"].removesuffix("s"))
        assert grace_s * 1000 >= settings.tidelog_shutdown_timeout_ms + 10_000


def test_the_profile_puts_the_metadata_log_into_postgresql(services: dict[str, Any]) -> None:
    assert "postgresql" not in services
    assert all(settings.tidelog_metadata == "" for settings in brokers(services).values())
    asked = checker("compose", FILE, COMPOSE_PROFILES="postgresql")["services"]
    server = asked["postgresql"]["environment"]
    for name, settings in brokers(asked).items():
        where = urlsplit(settings.tidelog_metadata)
        assert (where.hostname, where.username, where.path) == (
            "postgresql",
            server["POSTGRES_USER"],
            f"/{server['POSTGRES_DB']}",
        )
        assert asked[name]["environment"]["PGPASSWORD"] == server["POSTGRES_PASSWORD"]
        assert asked[name]["depends_on"]["postgresql"] == {"condition": "service_healthy", "required": False}
    assert asked["postgresql"]["image"].startswith(f"postgres:{VERSION}-")


def test_images_are_pinned_and_published_ports_are_private(services: dict[str, Any]) -> None:
    ports: list[str] = []
    for service in services.values():
        assert re.fullmatch(r"[a-z/]+:v?[0-9][0-9a-z.-]+", service["image"])
        ports += [port["published"] for port in service.get("ports", [])]
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", []))
        for path in filter(None, [service.get("build", {}).get("dockerfile")]):
            assert (Path(service["build"]["context"]) / path).exists()
    assert len(ports) == len(set(ports))


def test_the_bucket_is_there_before_the_brokers(services: dict[str, Any]) -> None:
    settings = brokers(services)["broker-1"]
    store = services["s3"]
    assert settings.storage_uri.endswith(f"endpoint=http://s3{store['command'][store['command'].index('--port') + 1]}")
    assert services["bucket"]["depends_on"]["s3"]["condition"] == "service_healthy"
    for name in ("broker-1", "broker-2", "broker-3"):
        assert services[name]["depends_on"]["bucket"]["condition"] == "service_completed_successfully"
        assert services[name]["environment"]["AWS_ACCESS_KEY_ID"] == store["environment"]["ROOT_ACCESS_KEY"]
        assert services[name]["environment"]["AWS_SECRET_ACCESS_KEY"] == store["environment"]["ROOT_SECRET_KEY"]


@pytest.mark.compatibility
@pytest.mark.parametrize("profile", ["", "postgresql"])
def test_its_processes_without_containers(profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    services = checker("compose", FILE, COMPOSE_PROFILES=profile)["services"]
    environment = dict(ENVIRONMENT)
    (tmp_path / "objects").mkdir()
    with versitygw(tmp_path / "objects") as server, contextlib.ExitStack() as stack:
        metadata = ""
        if profile == "postgresql":
            database = stack.enter_context(PostgresServer())
            metadata, environment = database.uri(), {**environment, **database.environment}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

        def here(text: str) -> str:
            return text.replace("s3:7070", f"{server.host}:{server.port}")

        bucket = services["bucket"]
        assert bucket["entrypoint"] == ["python", "-c"]
        for _ in range(2):  # as at every `up`
            subprocess.run([sys.executable, "-c", here(bucket["command"][0])], cwd=ROOT, check=True)
        nodes = []
        for name, settings in brokers(services).items():
            node = BrokerProcess(
                tmp_path / name,
                node_id=settings.node_id,
                tidelog_storage=here(settings.storage_uri),
                tidelog_metadata=metadata,
                tidelog_wal_dir=tmp_path / "wal",
                listeners="INTERNAL://127.0.0.1:0,PLAINTEXT://127.0.0.1:0",
                listener_security_protocol_map=settings.listener_security_protocol_map,
                inter_broker_listener_name=settings.inter_broker_listener_name,
            )
            nodes.append(stack.enter_context(node))
        everywhere = ",".join(node.bootstrap for node in nodes)
        create_topic(everywhere, 6)
        records = IdempotentLoad(everywhere, 6, records_per_s=4000).start()
        records.wait_for(2000)
        nodes[1].kill()
        records.wait_for(records.acknowledged + 2000)
        check_all(everywhere, records.finish())
        for node in (nodes[0], nodes[2]):
            assert node.stop() == 0
