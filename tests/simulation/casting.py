"""Who is there in a world: the clients that make its load, and operators."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.simulation import bankers, tables
from tests.simulation.client import ClientSettings
from tests.simulation.consumers import Consumer, ConsumerLoad, GroupLoad, GroupMember
from tests.simulation.consumers_modern import ModernMember
from tests.simulation.movers import Drainer, Mover
from tests.simulation.operators import Admin
from tests.simulation.options import GROUP, GROUPS, LOADS, OFFSETS_PARTS, PARTS, TOPICS
from tests.simulation.producers import IdempotentProducer, PlainProducer, ProducerLoad
from tests.simulation.table_writers import TableWriter
from tests.simulation.tuners import add_tuner

if TYPE_CHECKING:
    from tests.simulation.cluster import World

TABLE_WRITERS = 0.5
"""Of how many compacted topics there are transactions too."""


def add_clients(world: World) -> None:
    """Start the clients of a world."""
    if world.tuned:
        add_tuner(world)
    if world.bank:
        bankers.add_clients(world)
        return
    rng = world.scheduler.stream("cast")
    configs = {"orders": {"tidelog.wal": "objects"}} if world.wal == "both" else {}
    settings = ClientSettings(request_timeout_ms=rng.choice([3_000, 8_000]))
    looks = rng.choice([(1_000, 4_000), (100, 600)])
    delete_from = ["events"] if rng.random() < 0.5 else []
    world.add_client(
        Admin, "admin", TOPICS, configs=configs, delete_from=delete_from, pause_ms=looks, settings=settings
    )
    sizes, pauses = rng.choice(LOADS if world.options.load is None else LOADS[world.options.load :][:1])
    busy, rare = (PARTS[:2], PARTS[2:]) if rng.random() < 0.4 else (PARTS, PARTS)
    for number in range(2):
        load = ProducerLoad(version=rng.choice([9, 13]), value_bytes=sizes, pause_ms=pauses)
        world.add_client(IdempotentProducer, f"sure-{number}", busy, load, settings)
    polls = ConsumerLoad(version=rng.choice([11, 12, 13, 16]), pause_ms=(20, 300))
    load = ProducerLoad(version=rng.choice([8, 12]), value_bytes=sizes)
    if rare != busy:  # a partition whose readers have nothing else to be woken by
        polls = replace(polls, max_wait_ms=3_000, pause_ms=(0, 20))
        load = replace(load, pause_ms=(300, 1_500), bursts=0.3)
    world.add_client(PlainProducer, "plain", rare, load, settings)
    world.add_client(Consumer, "reader", rare, polls, settings=settings)
    for number in range(world.options.rereaders):
        small = ConsumerLoad(max_bytes=2_000, pause_ms=(0, 50), again=0.3)
        world.add_client(Consumer, f"rereader-{number}", PARTS, small, settings=settings)
    if len(world.nodes) > 1 and world.scheduler.stream("moves").random() < world.options.moves:
        nodes = [node.node_id for node in world.nodes]
        world.add_client(Mover, "mover", [*PARTS, *OFFSETS_PARTS], nodes)
        Drainer(world).later()
    if world.table is not None:
        _add_table_clients(world, world.table)
    groups = world.options.groups or world.scheduler.stream("group protocol").choice(GROUPS)
    for number in range(2):
        polls = ConsumerLoad(max_wait_ms=300, pause_ms=(50, 300))
        group_load = GroupLoad(session_timeout_ms=rng.choice([2_000, 6_000]))
        modern = not world.options.upgrade and (groups == "consumer" or (groups == "mixed" and number == 1))
        member = ModernMember if modern else GroupMember
        world.add_client(
            member, f"member-{number}", PARTS, polls, group=GROUP, group_load=group_load, settings=settings
        )


def _add_table_clients(world: World, configs: dict[str, str]) -> None:
    """Those of the compacted topic."""
    rng = world.scheduler.stream("table clients")
    names = {tables.TABLE: 1}
    world.add_client(Admin, "table-admin", names, configs={tables.TABLE: configs}, history=world.table_history)
    for number in range(2):
        load = ProducerLoad(records=(1, 6), value_bytes=(8, 300), pause_ms=rng.choice([(20, 200), (100, 800)]))
        options = {"history": world.table_history}
        world.add_client(tables.TableProducer, f"table-{number}", [tables.PART], load, **options)
    world.add_client(tables.TableReader, "table-reader", history=world.table_history)
    if rng.random() < TABLE_WRITERS:
        options = {"transactional_id": "table-writer", "bank_load": bankers.BankLoad(pause_ms=(0, 400))}
        settings = ClientSettings(request_timeout_ms=1_500)
        world.add_client(
            TableWriter, "table-writer", [tables.PART], settings=settings, history=world.table_history, **options
        )
