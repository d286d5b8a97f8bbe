"""`tidelog cluster describe`: the cluster's id, its controller, brokers and features, as any client may see them."""

import argparse
import json
from typing import Any

from broker.cli.client import add_connection, admin, look_up
from broker.cli.output import add_format, show


def add_verb(verbs: Any) -> None:
    """The verb and its options."""
    verb = verbs.add_parser("describe", help="id, controller, brokers and features of a cluster")
    add_connection(verb)
    add_format(verb)
    verb.set_defaults(run=describe)


def describe(options: argparse.Namespace) -> int:
    """Print what the cluster is made of."""
    with admin(options) as client:
        cluster = look_up(client.describe_cluster)
        features = look_up(client.describe_features)
    brokers = [
        {
            "node_id": broker["broker_id"],
            "address": f"{broker['host']}:{broker['port']}",
            "rack": broker["rack"] or None,
            "state": "gone" if broker.get("is_fenced") else "alive",
        }
        for broker in sorted(cluster["brokers"], key=lambda broker: int(broker["broker_id"]))
    ]
    rows = []
    for name, levels in sorted(features.items()):
        low, high = levels.get("supported", (0, 0))
        row = {"feature": name, "finalized": levels.get("finalized", (0, 0))[1], "supported": f"{low} to {high}"}
        rows.append(row)
    if options.format == "json":
        found = {"cluster_id": cluster["cluster_id"], "controller": cluster["controller_id"]}
        print(json.dumps({**found, "brokers": brokers, "features": rows}, indent=2))
        return 0
    print(f"cluster     {cluster['cluster_id']}")
    print(f"controller  broker {cluster['controller_id']}")
    show(brokers, ("node_id", "address", "rack", "state"), "table")
    show(rows, ("feature", "finalized", "supported"), "table")
    return 0
