"""Steps about configs: describe, alter, alter incrementally, list."""

from __future__ import annotations

import time
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from protocol import messages as m
from protocol.apis import ApiKey
from tests.differential.machine import NAMES, Machine

SHORT = st.sampled_from(NAMES)
TOPIC, BROKER, CLIENT_METRICS, GROUP = 2, 4, 16, 32
SET, DELETE, APPEND, SUBTRACT = range(4)
FOLLOW_S = 2.0

TOPIC_CHANGES = (
    ("cleanup.policy", "compact"),
    ("cleanup.policy", "delete"),
    ("cleanup.policy", "compact,delete"),
    ("cleanup.policy", ""),
    ("cleanup.policy", "burn"),
    ("compression.type", "zstd"),
    ("compression.type", "rar"),
    ("compression.gzip.level", "3"),
    ("compression.gzip.level", "77"),
    ("delete.retention.ms", "-1"),
    ("flush.messages", "0"),
    ("follower.replication.throttled.replicas", "*"),
    ("follower.replication.throttled.replicas", "0:1,1:2"),
    ("follower.replication.throttled.replicas", "nonsense"),
    ("index.interval.bytes", "-1"),
    ("local.retention.ms", "1000"),
    ("max.compaction.lag.ms", "0"),
    ("max.message.bytes", "1000"),
    ("max.message.bytes", "-1"),
    ("message.timestamp.after.max.ms", "5"),
    ("message.timestamp.type", "Never"),
    ("min.cleanable.dirty.ratio", "0.25"),
    ("min.cleanable.dirty.ratio", "1.5"),
    ("min.compaction.lag.ms", "10"),
    ("min.insync.replicas", "0"),
    ("preallocate", "true"),
    ("preallocate", "maybe"),
    ("retention.bytes", "1000000"),
    ("retention.bytes", "-2"),
    ("retention.ms", "600000"),
    ("retention.ms", "1e6"),
    ("retention.ms", " 7 "),
    ("segment.bytes", "1048576"),
    ("segment.bytes", "13"),
    ("segment.jitter.ms", "5"),
    ("segment.ms", "0"),
    ("unclean.leader.election.enable", "TRUE"),
    ("no.such.config", "1"),
)
GROUP_CHANGES = (
    ("consumer.session.timeout.ms", "50000"),
    ("consumer.session.timeout.ms", "1"),
    ("consumer.heartbeat.interval.ms", "6000"),
    ("consumer.heartbeat.interval.ms", "x"),
    ("no.such.config", "1"),
)
BROKER_KEYS = ("message.max.bytes", "log.retention.ms", "num.partitions", "no.such.config")


class ConfigSteps(Machine):
    """DescribeConfigs, AlterConfigs, IncrementalAlterConfigs, ListConfigResources."""

    def _resource(self, data: st.DataObject) -> tuple[int, str]:
        kind = data.draw(st.sampled_from([TOPIC, TOPIC, TOPIC, GROUP, 3]), label="resource type")
        name = self.name(data.draw(SHORT))
        return kind, data.draw(st.sampled_from([name, name, name, ""])) if kind == GROUP else name

    @rule(data=st.data())
    def describe_configs(self, data: st.DataObject) -> None:
        """Of topics, groups, a broker, and of what has none."""
        version = self.version(data, ApiKey.DESCRIBE_CONFIGS)
        resource = m.DescribeConfigsRequest.DescribeConfigsResource
        if data.draw(st.integers(0, 4)) == 0:
            keys = data.draw(st.lists(st.sampled_from(BROKER_KEYS), min_size=1, max_size=3))
            name = data.draw(st.sampled_from(["1", "7", "x"]))
            asked = [resource(resource_type=BROKER, resource_name=name, configuration_keys=keys)]
        else:
            asked = []
            for _ in range(data.draw(st.integers(1, 2))):
                kind, name = self._resource(data)
                keys = data.draw(st.sampled_from([None, ["retention.ms", "cleanup.policy", "nothing"], []]))
                asked.append(resource(resource_type=kind, resource_name=name, configuration_keys=keys))
        request = m.DescribeConfigsRequest(
            resources=asked,
            include_synonyms=data.draw(st.booleans()),
            include_documentation=version >= 3 and data.draw(st.booleans()),
        )
        self.ask(ApiKey.DESCRIBE_CONFIGS, version, request)

    @rule(data=st.data())
    def alter_incrementally(self, data: st.DataObject) -> None:
        """Some keys of one resource."""
        kind, name = self._resource(data)
        pool = GROUP_CHANGES if kind == GROUP else TOPIC_CHANGES
        operation = st.sampled_from([SET, SET, SET, DELETE, APPEND, SUBTRACT])
        changes = data.draw(st.lists(st.tuples(st.sampled_from(pool), operation), max_size=3))
        config = m.IncrementalAlterConfigsRequest.AlterableConfig
        value = data.draw(st.sampled_from([True, True, True, False]), label="with values")
        configs = [
            config(name=key, config_operation=how, value=text if value and how != DELETE else None)
            for (key, text), how in changes
        ]
        resource = m.IncrementalAlterConfigsRequest.AlterConfigsResource
        asked = resource(resource_type=kind, resource_name=name, configs=configs)
        request = m.IncrementalAlterConfigsRequest(
            resources=data.draw(st.sampled_from([[asked], [asked], [asked], [asked, asked]])),
            validate_only=data.draw(st.sampled_from([False, False, True])),
        )
        version = self.version(data, ApiKey.INCREMENTAL_ALTER_CONFIGS)
        self.ask(ApiKey.INCREMENTAL_ALTER_CONFIGS, version, request)
        self._follow(kind, name, [key for (key, _), _ in changes])

    @rule(data=st.data())
    def alter(self, data: st.DataObject) -> None:
        """All keys of one resource: what is not named goes back to its default."""
        kind, name = self._resource(data)
        pool = GROUP_CHANGES if kind == GROUP else TOPIC_CHANGES
        changes = data.draw(st.lists(st.sampled_from(pool), max_size=3, unique_by=lambda one: one[0]))
        config = m.AlterConfigsRequest.AlterableConfig
        resource = m.AlterConfigsRequest.AlterConfigsResource
        request = m.AlterConfigsRequest(
            resources=[
                resource(
                    resource_type=kind,
                    resource_name=name,
                    configs=[config(name=key, value=value) for key, value in changes],
                )
            ],
            validate_only=data.draw(st.sampled_from([False, False, True])),
        )
        self.ask(ApiKey.ALTER_CONFIGS, self.version(data, ApiKey.ALTER_CONFIGS), request)
        self._follow(kind, name, [])

    @rule(data=st.data())
    def list_resources(self, data: st.DataObject) -> None:
        """Groups that have configs, and kinds of resources that nobody has."""
        version = self.version(data, ApiKey.LIST_CONFIG_RESOURCES)
        kinds = data.draw(st.sampled_from([[GROUP], [CLIENT_METRICS], [3], [GROUP, GROUP]])) if version else []
        self.ask(ApiKey.LIST_CONFIG_RESOURCES, version, m.ListConfigResourcesRequest(resource_types=kinds))

    def _follow(self, kind: int, name: str, keys: list[str]) -> None:
        """Until both show the same values, or never will, which is for `describe_configs` to tell."""
        if kind not in (TOPIC, GROUP) or not name:
            return
        resource = m.DescribeConfigsRequest.DescribeConfigsResource
        asked = [resource(resource_type=kind, resource_name=name, configuration_keys=keys or None)]

        def values(answer: Any) -> dict[str, tuple[str, int]]:
            found = [one for result in answer.results for one in result.configs]
            return {one.name: (one.value, one.config_source) for one in found if not one.name.startswith("tidelog.")}

        deadline = time.perf_counter() + FOLLOW_S
        while time.perf_counter() < deadline:
            kafka, ours = self.pair.each(ApiKey.DESCRIBE_CONFIGS, 4, m.DescribeConfigsRequest(resources=asked))
            left, right = values(kafka), values(ours)
            left.pop("min.insync.replicas", None)
            right.pop("min.insync.replicas", None)
            if left == right:
                return
            time.sleep(0.01)
