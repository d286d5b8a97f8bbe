"""`tidelog broker list`: who is in the cluster."""

import argparse
from collections import Counter

from broker.cli.client import add_connection, admin, look_up
from broker.cli.output import add_format, show


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options and verbs of the command."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    listing = verbs.add_parser("list", help="brokers, where they are and what they lead")
    add_connection(listing)
    add_format(listing)
    listing.set_defaults(run=list_brokers)


def list_brokers(options: argparse.Namespace) -> int:
    """Print one row a broker, also those whose session has ended; `leads` counts partitions, internal ones too."""
    with admin(options) as client:
        cluster = look_up(client.describe_cluster)
        topics = look_up(client.describe_topics)
    leads = Counter(row["leader_id"] for topic in topics for row in topic["partitions"])
    rows = [
        {
            "node_id": broker["broker_id"],
            "address": f"{broker['host']}:{broker['port']}",
            "state": "gone" if broker.get("is_fenced") else "alive",
            "rack": broker["rack"] or None,
            "controller": "yes" if broker["broker_id"] == cluster["controller_id"] else "",
            "leads": leads[broker["broker_id"]],
        }
        for broker in sorted(cluster["brokers"], key=lambda broker: int(broker["broker_id"]))
    ]
    show(rows, ("node_id", "address", "state", "rack", "controller", "leads"), options.format)
    return 0
