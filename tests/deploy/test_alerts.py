"""The alert rules: read by Prometheus' own parser, and every metric in them is one that a broker has."""

import re
import urllib.request
from pathlib import Path

import yaml

from tests.deploy.tools import CHART, checker, needs_go
from tests.support.broker_process import BrokerProcess

pytestmark = needs_go


def test_rules_are_of_metrics_that_a_broker_has(tmp_path: Path) -> None:
    file = CHART / "files" / "alerts.yaml"
    checker("rules", file)
    rules = yaml.safe_load(file.read_text())["groups"][0]["rules"]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    with BrokerProcess(tmp_path / "broker") as broker:
        exposed = urllib.request.urlopen(f"{broker.http}/metrics").read().decode()
    has = set(re.findall(r"^# TYPE (\S+)", exposed, re.MULTILINE))
    for rule in rules:
        named = set(re.findall(r"tidelog_[a-z_]+", rule["expr"]))
        assert named and named <= has, f"{rule['alert']}: {sorted(named - has)}"
        mentioned = set(re.findall(r"tidelog_[a-z_]+", rule["annotations"]["description"]))
        assert mentioned <= has, f"{rule['alert']}: {sorted(mentioned - has)}"
        assert rule["labels"]["severity"] in ("critical", "warning")
