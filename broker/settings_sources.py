"""Where settings come from: flags over environment over file over defaults.

The environment follows the Apache image: `KAFKA_` and the name in capitals, `.` as `_`, `_` as `__`, `-` as `___`.
Unknown keys of a file or a flag, and unknown `tidelog.*` anywhere, are errors. Kafka's own keys without a meaning here
are accepted and listed once at start; other unknown `KAFKA_*` variables are a warning, since Kubernetes injects such
names.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from broker.settings import FIELDS, SettingError, Settings
from broker.settings_checks import build

ENVIRONMENT_PREFIX = "KAFKA_"

# `broker.id` is the name before KRaft; Kafka 4 still reads it.
ALIASES = {"broker.id": "node.id"}

WITHOUT_EFFECT_PREFIXES = (
    "controller.quorum.",
    "log.cleaner.io.",
    "log.flush.",
    "log.index.",
    "metadata.",
    "metric",
    "remote.log.",
    "replica.",
    "replication.quota.",
    "alter.config.",
    "alter.log.dirs.",
    "group.consumer.assignor.offload.",
    "group.coordinator.",
    "group.share.",
    "group.streams.",
    "share.coordinator.",
)
_WITHOUT_EFFECT_KEYS = """
auto.leader.rebalance.enable
background.threads broker.heartbeat.interval.ms broker.session.timeout.ms broker.id.generation.enable
client.quota.callback.class controlled.shutdown.enable controlled.shutdown.max.retries
controlled.shutdown.retry.backoff.ms controller.listener.names connection.failed.authentication.delay.ms
connections.max.reauth.ms control.plane.listener.name early.start.listeners
delete.records.purgatory.purge.interval.requests eligible.leader.replicas.enable
fetch.purgatory.purge.interval.requests initial.broker.registration.timeout.ms
internal.metadata.delete.delay.millis kafka.metrics.polling.interval.secs kafka.metrics.reporters
leader.imbalance.check.interval.seconds leader.imbalance.per.broker.percentage log.dir log.dirs
log.cleaner.threads
log.dir.failure.timeout.ms log.initial.task.delay.ms log.local.retention.bytes log.local.retention.ms
log.message.downconversion.enable log.preallocate log.roll.jitter.hours log.roll.jitter.ms
log.segment.delete.delay.ms max.connection.creation.rate
max.connections.per.ip.overrides max.request.partition.size.limit num.io.threads num.network.threads
num.partition.migration.threads num.recovery.threads.per.data.dir num.replica.alter.log.dirs.threads
num.replica.fetchers offsets.commit.timeout.ms offsets.load.buffer.size offsets.topic.compression.codec
offsets.topic.segment.bytes
producer.purgatory.purge.interval.requests request.timeout.ms server.max.startup.time.ms
socket.connection.setup.timeout.max.ms socket.connection.setup.timeout.ms socket.receive.buffer.bytes
socket.send.buffer.bytes telemetry.max.bytes unclean.leader.election.enable
transaction.partition.verification.enable transaction.state.log.load.buffer.size
transaction.state.log.min.isr transaction.state.log.segment.bytes transaction.two.phase.commit.enable
unclean.leader.election.interval.ms unstable.api.versions.enable unstable.feature.versions.enable
"""
WITHOUT_EFFECT = frozenset(_WITHOUT_EFFECT_KEYS.split())

ALWAYS_TRUE = {
    "transaction.partition.verification.enable": (
        "leaders always ask the transaction coordinator before a batch opens a transaction. Without that a batch that "
        "comes late opens one that nobody ends, or joins the next one and is committed with it. `false` is accepted, "
        "for the sake of files written for Kafka, and changes nothing"
    )
}
"""Of those, what is on whatever they say, and why."""


class Loaded(NamedTuple):
    """Settings, and what the operator should be told about where they came from."""

    settings: Settings
    without_effect: list[str]
    warnings: list[str]


def parse_properties(text: str, source: str) -> dict[str, str]:
    """Java properties as `server.properties` has them: `key=value` or `key:value`, `#` or `!` comments, `\\` joins."""
    values: dict[str, str] = {}
    pending = ""
    for number, raw in enumerate(text.splitlines(), 1):
        line = pending + raw.strip()
        pending = ""
        if not line or line[0] in "#!":
            continue
        if line.endswith("\\") and not line.endswith("\\\\"):
            pending = line[:-1]
            continue
        positions = [line.index(separator) for separator in "=:" if separator in line]
        if not positions:
            raise SettingError(f"{source} line {number}: {line!r} is not key=value")
        cut = min(positions)
        values[line[:cut].strip()] = line[cut + 1 :].strip()
    if pending:
        raise SettingError(f"{source}: the last line ends with a backslash: what should follow is missing")
    return values


def parse_overrides(pairs: Iterable[str]) -> dict[str, str]:
    """The `key=value` words of `--override`."""
    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise SettingError(f"--override {pair}: write key=value")
        values[key.strip()] = value
    return values


def key_of_variable(variable: str) -> str:
    """`KAFKA_TIDELOG_WAL_DIR` -> `tidelog.wal.dir`."""
    name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
    return name.replace("___", "-").replace("__", "\0").replace("_", ".").replace("\0", "_")


def without_effect(key: str) -> bool:
    """Whether it is a key of Kafka's that is accepted and means nothing here."""
    return key in WITHOUT_EFFECT or key.startswith(WITHOUT_EFFECT_PREFIXES)


def _unknown(key: str, source: str) -> SettingError:
    near = difflib.get_close_matches(key, list(FIELDS), n=1, cutoff=0.7)
    hint = f"; did you mean {near[0]}?" if near else "; remove it, or see the README for the settings there are"
    return SettingError(f"{source}: unknown setting {key}{hint}")


def load(
    file_text: str | None = None,
    file_name: str = "server.properties",
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> Loaded:
    """Merge the sources and check the result; SettingError names the key and what to write instead."""
    values: dict[str, str] = {}
    ineffective: set[str] = set()
    warnings: list[str] = []

    def take(key: str, value: str, source: str, strict: bool) -> None:
        key = ALIASES.get(key, key)
        if key in FIELDS:
            values[key] = value
        elif key in ALWAYS_TRUE and value.strip().lower() != "true":
            warnings.append(f"{source}: {key} stays true: {ALWAYS_TRUE[key]}")
        elif without_effect(key):
            ineffective.add(key)
        elif strict or key.startswith("tidelog."):
            raise _unknown(key, source)
        else:
            warnings.append(f"{source}: not a setting, ignored")

    for key, value in parse_properties(file_text or "", file_name).items():
        take(key, value, file_name, strict=True)
    for variable, value in (environment or {}).items():
        if variable.startswith(ENVIRONMENT_PREFIX):
            take(key_of_variable(variable), value, f"environment variable {variable}", strict=False)
    for key, value in (overrides or {}).items():
        take(key, value, f"--override {key}", strict=True)
    return Loaded(build(values), sorted(ineffective), warnings)
