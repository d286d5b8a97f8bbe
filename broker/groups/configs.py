"""The times of one group: what its configs (resource type GROUP) say, else the settings, within the settings' bounds.

Bounds were kept when a config was set; where the settings have changed since, the bound is in force, as in Kafka.
"""

from __future__ import annotations

from collections.abc import Mapping

from broker.group_configs import GROUP_RESOURCE, value_of
from broker.groups.consumer_model import GroupTimes
from broker.settings import FIELDS, Settings

__all__ = ["GROUP_RESOURCE", "times_in_force"]

_NAMES = ("session.timeout.ms", "heartbeat.interval.ms", "assignment.interval.ms")


def times_in_force(overrides: Mapping[str, str], settings: Settings) -> GroupTimes:
    return GroupTimes(*(_in_force(name, overrides, settings) for name in _NAMES))


def _in_force(name: str, overrides: Mapping[str, str], settings: Settings) -> int:
    least, most = (getattr(settings, FIELDS[f"group.consumer.{bound}.{name}"].name) for bound in ("min", "max"))
    value = int(value_of(settings, overrides, f"consumer.{name}"))
    in_force: int = min(max(value, least), most)
    return in_force
