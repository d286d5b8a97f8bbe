"""The Helm chart: linted and rendered by helm for several value sets, every object held against Kubernetes' schemas,
every setting against the broker's own code."""

import contextlib
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from broker.settings import Settings
from broker.settings_sources import load
from tests.chaos.load import IdempotentLoad, check_all, create_topic
from tests.deploy.tools import CHART, ROOT, Refused, checker, environment_of, expand, helm, needs_go, one
from tests.support.broker_process import BrokerProcess
from tests.support.s3_servers import free_port

pytestmark = needs_go

OLDEST, NEWEST = "1.28.0", "1.37.0"
URI = "s3://logs/tidelog?region=eu-central-1"
LEAST: dict[str, Any] = {"storage": {"uri": URI}}
VALUES: dict[str, dict[str, Any]] = {
    "least": LEAST,
    "secret": {"storage": {"uri": URI, "existingSecret": "bucket"}, "image": {"pullSecrets": ["registry"]}},
    "identity": {
        **LEAST,
        "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::111122223333:role/tidelog"}},
        "image": {"repository": "kafka/tidelog", "digest": "sha256:" + "a" * 64},
    },
    "load-balancers": {
        **LEAST,
        "external": {
            "enabled": True,
            "host": "broker-{ordinal}.kafka.example.com",
            "annotations": {"external-dns.alpha.kubernetes.io/hostname": "broker-{ordinal}.kafka.example.com"},
            "loadBalancerClass": "internal",
            "loadBalancerSourceRanges": ["10.0.0.0/8"],
        },
    },
    "node-ports": {
        **LEAST,
        "external": {"enabled": True, "type": "NodePort", "host": "{hostIP}", "nodePortPrefix": 3100},
    },
    "objects": {**LEAST, "wal": {"kind": "objects"}},
    "postgresql": {
        "storage": {"uri": URI, "existingSecret": "bucket"},
        "metadata": {"uri": "postgresql://tidelog@db:5432/tidelog?sslmode=require", "existingSecret": "database"},
    },
    "zone": {
        **LEAST,
        "replicas": 2,
        "firstNodeId": 100,
        "rack": {"value": "eu-central-1b"},
        "nodeSelector": {"topology.kubernetes.io/zone": "eu-central-1b"},
        "networkPolicy": {"peers": [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "tidelog"}}}]},
    },
    "everything": {
        **LEAST,
        "fullnameOverride": "kafka",
        "settings": {"log.retention.hours": "72", "tidelog.wal.bytes.max": "8589934592"},
        "wal": {"volume": {"size": "50Gi", "storageClassName": "fast", "annotations": {"a": "b"}}},
        "shutdownTimeoutSeconds": 120,
        "ports": {"client": 19092, "internal": 19091, "http": 19644},
        "spread": {"zones": "DoNotSchedule", "nodes": "DoNotSchedule"},
        "networkPolicy": {
            "clients": [{"namespaceSelector": {"matchLabels": {"kafka": "client"}}}],
            "monitoring": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        },
        "metrics": {"podMonitor": {"enabled": True, "labels": {"x": "y"}}, "rules": {"enabled": True}},
        "resources": {"requests": {"cpu": "2", "memory": "4Gi"}},
        "podLabels": {"team": "streams"},
        "podAnnotations": {"note": "1"},
        "tolerations": [{"key": "kafka", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "extraEnv": [{"name": "AWS_REGION", "value": "eu-central-1"}],
    },
    "little": {
        **LEAST,
        "replicas": 1,
        "spread": {"zones": "", "nodes": ""},
        "rack": {"fromLabel": ""},
        "podDisruptionBudget": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "serviceAccount": {"create": False},
    },
}


def rendered(directory: Path, values: dict[str, Any], *, chart: Path = CHART) -> list[dict[str, Any]]:
    file = directory / "values.yaml"
    file.write_text(json.dumps(values))
    text = helm("template", "logs", chart, "--namespace", "kafka", "--kube-version", NEWEST, "--values", file)
    return [each for each in yaml.safe_load_all(text) if each]


@pytest.fixture(params=VALUES, scope="module")
def objects(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the chart makes of each value set."""
    return rendered(tmp_path_factory.mktemp("values"), VALUES[request.param])


def brokers(objects: list[dict[str, Any]], zone: str = "zone-a") -> list[Settings]:
    """The settings of every broker, read by the broker's own code as its pod would."""
    stateful = one(objects, "StatefulSet")
    spec = stateful["spec"]
    container = spec["template"]["spec"]["containers"][0]
    text = one(objects, "ConfigMap")["data"]["server.properties"]
    first = spec.get("ordinals", {}).get("start", 0)
    found = []
    for ordinal in range(first, first + spec["replicas"]):
        fields = {
            "metadata.name": f"{stateful['metadata']['name']}-{ordinal}",
            "metadata.labels['apps.kubernetes.io/pod-index']": str(ordinal),
            "metadata.labels['topology.kubernetes.io/zone']": zone,
            "status.hostIP": "192.0.2.7",
        }
        loaded = load(text, "server.properties", environment_of(container, fields))
        assert not loaded.warnings and not loaded.without_effect
        found.append(loaded.settings)
    return found


def test_helm_finds_nothing_to_complain_about(tmp_path: Path) -> None:
    for name, values in VALUES.items():
        file = tmp_path / f"{name}.yaml"
        file.write_text(json.dumps(values))
        assert "0 chart(s) failed" in helm("lint", CHART, "--strict", "--kube-version", NEWEST, "--values", file)


def test_every_object_is_what_kubernetes_takes(objects: list[dict[str, Any]], tmp_path: Path) -> None:
    for each in objects:
        if each["apiVersion"].startswith("monitoring.coreos.com/"):
            file = tmp_path / f"{each['kind']}.yaml"
            file.write_text(yaml.safe_dump(each))
            checker("monitoring", file)
            continue
        for version in (OLDEST, NEWEST):
            kubernetes_validate.validate(each, version, strict=True)
        assert each["metadata"]["namespace"] == "kafka"


def test_a_mistake_would_be_seen(tmp_path: Path) -> None:
    stateful = one(rendered(tmp_path, LEAST), "StatefulSet")
    stateful["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(stateful, NEWEST, strict=True)
    monitor = tmp_path / "monitor.yaml"
    monitor.write_text("kind: PodMonitor\nspec: {podMetricsEndpoint: []}\n")
    with pytest.raises(AssertionError, match="unknown field"):
        checker("monitoring", monitor)


def test_brokers_take_their_settings(objects: list[dict[str, Any]]) -> None:
    found = brokers(objects)
    assert len({each.node_id for each in found}) == len(found)
    for each in found:
        told = {listener.name: listener for listener in each.told_listeners or []}
        assert set(told) == {listener.name for listener in each.bound_listeners}
        assert each.peer_listener == "INTERNAL"
        assert each.wal_dir == "/var/lib/tidelog/wal"
        name = one(objects, "StatefulSet")["metadata"]["name"]
        for inside in ("INTERNAL", "CLIENT"):
            assert told[inside].host == f"{name}-{each.node_id}.{name}-headless.kafka.svc.cluster.local"
            assert told[inside].port == next(own.port for own in each.bound_listeners if own.name == inside)


def test_ports_probes_and_volumes_fit(objects: list[dict[str, Any]]) -> None:
    spec = one(objects, "StatefulSet")["spec"]
    pod = spec["template"]["spec"]
    container = pod["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    settings = brokers(objects)[0]
    bound = {listener.name.lower(): listener.port for listener in settings.bound_listeners}
    assert ports == {**bound, "http": int(settings.tidelog_http_listener.rpartition(":")[2])}
    served = (ROOT / "broker" / "http" / "server.py").read_text()
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        http = container[probe]["httpGet"]
        assert http["port"] in ports
        assert f'web.get("{http["path"]}"' in served
    named = set(ports) | {None}
    for each in objects:
        if each["kind"] == "Service":
            assert {port["targetPort"] for port in each["spec"]["ports"]} <= named
        if each["kind"] == "NetworkPolicy":
            rules = each["spec"]["ingress"]
            assert {port["port"] for rule in rules for port in rule["ports"]} <= named
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    claims = {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]} | claims
    if settings.uses_volume:
        assert mounts["data"] == settings.tidelog_data_dir
    else:
        assert not claims
    assert container["args"] == ["start", f"{mounts['config']}/server.properties"]


def test_pods_stop_cleanly_and_have_no_rights(objects: list[dict[str, Any]]) -> None:
    pod = one(objects, "StatefulSet")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] * 1000 >= brokers(objects)[0].tidelog_shutdown_timeout_ms + 10_000
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
    assert not pod["automountServiceAccountToken"]
    security = pod["containers"][0]["securityContext"]
    assert security == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_selectors_find_the_pods(objects: list[dict[str, Any]]) -> None:
    spec = one(objects, "StatefulSet")["spec"]
    labels = spec["template"]["metadata"]["labels"]
    selectors = [spec["selector"]["matchLabels"]]
    for constraint in spec["template"]["spec"].get("topologySpreadConstraints", []):
        selectors.append(constraint["labelSelector"]["matchLabels"])
    for each in objects:
        if each["kind"] == "Service":
            own = {key: value for key, value in each["spec"]["selector"].items() if not key.startswith("statefulset.")}
            selectors.append(own)
        elif each["kind"] in ("PodDisruptionBudget", "PodMonitor"):
            selectors.append(each["spec"]["selector"]["matchLabels"])
        elif each["kind"] == "NetworkPolicy":
            selectors.append(each["spec"]["podSelector"]["matchLabels"])
            selectors.append(each["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"])
    for selector in selectors:
        assert selector and selector.items() <= labels.items()
    assert spec["serviceName"] in [each["metadata"]["name"] for each in objects if each["kind"] == "Service"]


def test_every_broker_is_reached_from_outside(tmp_path: Path) -> None:
    objects = rendered(tmp_path, VALUES["load-balancers"])
    for settings in brokers(objects):
        told = next(each for each in settings.told_listeners or [] if each.name == "EXTERNAL")
        service = one(objects, "Service", f"logs-tidelog-{settings.node_id}")
        assert told.host in service["metadata"]["annotations"].values()
        assert told.port == service["spec"]["ports"][0]["port"]
        assert service["spec"]["selector"]["statefulset.kubernetes.io/pod-name"] == f"logs-tidelog-{settings.node_id}"

    objects = rendered(tmp_path, VALUES["node-ports"])
    for settings in brokers(objects):
        told = next(each for each in settings.told_listeners or [] if each.name == "EXTERNAL")
        service = one(objects, "Service", f"logs-tidelog-{settings.node_id}")
        assert (told.host, told.port) == ("192.0.2.7", service["spec"]["ports"][0]["nodePort"])


def test_secrets_become_environment(tmp_path: Path) -> None:
    container = one(rendered(tmp_path, VALUES["postgresql"]), "StatefulSet")["spec"]["template"]["spec"]["containers"][
        0
    ]
    assert [source["secretRef"]["name"] for source in container["envFrom"]] == ["bucket", "database"]


def test_racks(tmp_path: Path) -> None:
    assert {each.broker_rack for each in brokers(rendered(tmp_path, LEAST))} == {"zone-a"}
    zone = brokers(rendered(tmp_path, VALUES["zone"]))
    assert [(each.node_id, each.broker_rack) for each in zone] == [(100, "eu-central-1b"), (101, "eu-central-1b")]
    assert {each.broker_rack for each in brokers(rendered(tmp_path, VALUES["little"]))} == {None}
    assert {each.broker_rack for each in brokers(rendered(tmp_path, LEAST), zone="")} == {None}, "no such label"


@pytest.mark.compatibility
def test_a_rolling_restart_of_its_brokers_without_pods(tmp_path: Path) -> None:
    """As a StatefulSet does it: from the highest ordinal down, SIGTERM, the next one when this one is ready."""
    listeners = ("INTERNAL", "CLIENT")
    nodes = []
    for settings in brokers(rendered(tmp_path, LEAST)):
        told = {listener.name for listener in settings.told_listeners or []}
        assert told == set(listeners)
        nodes.append(
            BrokerProcess(
                tmp_path / f"node-{settings.node_id}",  # a volume of its own
                node_id=settings.node_id,
                broker_rack=settings.broker_rack,
                listeners=",".join(f"{name}://127.0.0.1:{free_port()}" for name in listeners),
                listener_security_protocol_map=settings.listener_security_protocol_map,
                inter_broker_listener_name=settings.inter_broker_listener_name,
                tidelog_shutdown_timeout_ms=settings.tidelog_shutdown_timeout_ms,
                tidelog_storage=f"file:{tmp_path}/bucket",
            )
        )
    with contextlib.ExitStack() as stack:
        for node in nodes:
            stack.enter_context(node)
        everywhere = ",".join(node.bootstrap for node in nodes)
        create_topic(everywhere, 9)
        records = IdempotentLoad(everywhere, 9, records_per_s=4000).start()
        for node in reversed(nodes):
            records.wait_for(records.acknowledged + 4000)
            assert node.stop() == 0
            node.spawn(fixed_port=False)
            node.wait_ready()
        records.wait_for(records.acknowledged + 4000)
        check_all(everywhere, records.finish())
        for node in nodes:
            assert node.stop() == 0
            assert "Traceback" not in node.log_tail(100_000)


def test_a_changed_setting_restarts_the_brokers_and_more_brokers_do_not(tmp_path: Path) -> None:
    def template(values: dict[str, Any]) -> Any:
        return one(rendered(tmp_path, values), "StatefulSet")["spec"]["template"]

    assert template(LEAST) == template({**LEAST, "replicas": 5})
    assert template(LEAST) != template({**LEAST, "settings": {"num.partitions": "3"}})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "/storage/uri"),
        ({"storage": {"uri": "file:/tmp"}}, "/storage/uri"),
        ({**LEAST, "replica": 2}, "replica"),
        ({**LEAST, "settings": {"num.partitions": 3}}, "/settings/num.partitions"),
        ({**LEAST, "settings": {"listeners": "PLAINTEXT://:1"}}, "listeners is written by the chart"),
        ({**LEAST, "settings": {"node.id": "1"}}, "node.id is written by the chart"),
        ({**LEAST, "external": {"enabled": True}}, "/external/host"),
        ({**LEAST, "external": {"enabled": True, "host": "kafka.example.com"}}, "write {ordinal} in it"),
        (
            {**LEAST, "replicas": 11, "external": {"enabled": True, "type": "NodePort", "host": "{hostIP}"}},
            "must stay below 10",
        ),
        ({**LEAST, "wal": {"kind": "objects"}, "settings": {"tidelog.internal.wal": "volume"}}, "needs a disk"),
        ({**LEAST, "ports": {"client": 9091}}, "two listeners have the same port"),
    ],
)
def test_what_cannot_work_is_refused(values: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        rendered(tmp_path, values)
    assert words in str(refused.value)


def test_every_value_is_documented_and_in_the_schema() -> None:
    def keys(schema: dict[str, Any], values: dict[str, Any], path: str) -> None:
        if "properties" not in schema:
            return
        assert set(values) == set(schema["properties"]) - {"global"}, path
        assert schema.get("additionalProperties") is False, path
        for key, value in values.items():
            if isinstance(value, dict):
                keys(schema["properties"][key], value, f"{path}/{key}")

    schema = json.loads((CHART / "values.schema.json").read_text())
    keys(schema, yaml.safe_load((CHART / "values.yaml").read_text()), "")


def test_versions_are_the_projects() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert f'\nversion = "{chart["appVersion"]}"\n' in (ROOT / "pyproject.toml").read_text()


def test_the_readme_installs_it() -> None:
    (words,) = re.findall(r"^helm install ((?:.*\\\n)*.*)", (ROOT / "README.md").read_text(), re.MULTILINE)
    name, chart, *options = shlex.split(words.replace("\\\n", " "))
    text = helm("template", name, ROOT / chart, "--kube-version", NEWEST, *options)
    stateful = one([each for each in yaml.safe_load_all(text) if each], "StatefulSet")
    assert f"kubectl rollout restart statefulset/{stateful['metadata']['name']}`" in (ROOT / "README.md").read_text()


def test_notes_tell_where_the_brokers_are(tmp_path: Path) -> None:
    chart = tmp_path / "tidelog"
    shutil.copytree(CHART, chart)
    (chart / "templates" / "NOTES.txt").rename(chart / "NOTES.txt")
    (chart / "templates" / "notes.yaml").write_text(
        'kind: Notes\nmetadata: {name: notes}\ntext: |\n{{ tpl (.Files.Get "NOTES.txt") . | indent 2 }}\n'
    )
    text = one(rendered(tmp_path, VALUES["load-balancers"], chart=chart), "Notes")["text"]
    assert "3 brokers over s3://logs/tidelog\n" in text
    assert "logs-tidelog.kafka.svc.cluster.local:9092" in text
    assert "broker-2.kafka.example.com:9094" in text
    assert "service account\nlogs-tidelog." in text
    text = one(rendered(tmp_path, VALUES["node-ports"], chart=chart), "Notes")["text"]
    assert "<address of its node>:31002" in text


def test_the_kubelet_replaces_only_what_it_knows() -> None:
    assert expand("a-$(X)-$(Y)", {"X": "1"}) == "a-1-$(Y)"
