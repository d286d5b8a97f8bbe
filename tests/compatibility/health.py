"""How a broker process is doing under the clients of a test."""

import re
import urllib.request

from tests.support.broker_process import BrokerProcess


def metric(broker: BrokerProcess, name: str, **labels: str) -> float:
    """The value of a counter of a running broker; 0 if it is not there."""
    inside = ",".join(f'{key}="{value}"' for key, value in labels.items())
    shown = f"{name}{{{inside}}}" if inside else name
    with urllib.request.urlopen(f"{broker.http}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.search(rf"^{re.escape(shown)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def check(broker: BrokerProcess) -> None:
    """No client of these tests sends what cannot be read, or brings the broker into trouble."""
    if broker.process is not None and broker.process.poll() is None:
        for name in ("tidelog_protocol_errors_total", "tidelog_server_errors_total"):
            assert metric(broker, name) == 0, name
    log = broker.log_tail(100_000)
    assert "Traceback" not in log and " ERROR " not in log, log
