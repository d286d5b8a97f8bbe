"""Bugs of what can be changed at run time, in worlds with an operator who does that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from broker.dynamic_configs import DynamicConfigs
from broker.log_table import LogTable
from broker.quotas import ClientQuotas
from controller.configs import ConfigTable
from tests.simulation.plants.registry import PLANTS, Patches, registered_in

tuning_plant = registered_in(PLANTS, brokers=3, faults_s=8, moves=0.0, tuned=1.0)


@tuning_plant(faults={})
def configs_of_brokers_read_once() -> Patches:
    """A broker goes by the dynamic configs that it found when it began."""
    update = DynamicConfigs.update
    known: set[DynamicConfigs] = set()

    def once(self: DynamicConfigs, configs: Mapping[Any, Any]) -> None:
        if self not in known:
            known.add(self)
            update(self, configs)

    yield DynamicConfigs, "update", once


@tuning_plant(metadata=(12, 4), faults={"kill": 3, "stop": 3})
def snapshot_without_configs() -> Patches:
    """Who begins at a snapshot of the metadata knows no configs but those that were changed since."""
    yield ConfigTable, "rows", lambda self: iter(())


@tuning_plant(faults={})
def config_of_one_broker_counts_for_all() -> Patches:
    """Whose config it is does not matter."""
    update = DynamicConfigs.update

    def anybodys(self: DynamicConfigs, configs: Mapping[Any, Any]) -> None:
        own = (4, str(self.settings.node_id))
        merged = {key: value for (kind, _), values in configs.items() if kind == 4 for key, value in values.items()}
        update(self, {**configs, own: merged})

    yield DynamicConfigs, "update", anybodys


@tuning_plant(faults={})
def config_of_a_topic_kept_as_it_was() -> Patches:
    """A leader goes by the topic's configs at the time when it opened the log, and tells the new ones."""
    yield LogTable, "_configure", lambda self, name: None


@tuning_plant(faults={})
def quotas_read_once() -> Patches:
    """A broker keeps the quotas that were set when it began."""

    def deaf(self: ClientQuotas, facts: Sequence[Any]) -> None:
        pass

    yield ClientQuotas, "on_facts", deaf
