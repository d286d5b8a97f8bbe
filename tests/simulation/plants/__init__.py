"""Planted bugs: each patches the product while its context is entered, and the simulation must catch it.

Some are the mutations of the executable model of the protocol, the others are what could go wrong in this code. There
is a module per area; importing it registers its bugs.
"""

from tests.simulation.plants import (
    broker,
    cluster,
    compaction,
    epochs,
    groups,
    merging,
    metadata,
    moves,
    objects,
    transactions,
    tuning,
)
from tests.simulation.plants.registry import (
    CLUSTER_PLANTS,
    MOVE_PLANTS,
    OBJECT_PLANTS,
    PLANTS,
    TRANSACTION_PLANTS,
    Plant,
)

BY_NAME = PLANTS | CLUSTER_PLANTS | MOVE_PLANTS | OBJECT_PLANTS | TRANSACTION_PLANTS

__all__ = [
    "BY_NAME",
    "CLUSTER_PLANTS",
    "MOVE_PLANTS",
    "OBJECT_PLANTS",
    "PLANTS",
    "TRANSACTION_PLANTS",
    "Plant",
    "broker",
    "cluster",
    "compaction",
    "epochs",
    "groups",
    "merging",
    "metadata",
    "moves",
    "objects",
    "transactions",
    "tuning",
]
