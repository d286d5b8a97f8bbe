"""`tidelog broker list`: who is in the cluster; `tidelog broker drain ID [--undo]`: leadership leaves a broker.

`drain` goes to the HTTP port of any running broker, waits until nothing is led by the drained one, and shows how far it
is. What it began goes on when it is interrupted.
"""

import argparse
import sys
import time
from collections import Counter
from typing import Any

from broker.cli.client import add_connection, admin, look_up
from broker.cli.output import CommandError, add_format, show
from broker.cli.wal import DEFAULT_HTTP, call

LOOK_S = 0.2
HTTP_S = 5
HTTP_HELP = f"HTTP port of a broker, which tells who is drained (default: {DEFAULT_HTTP})"
NOBODY_S = 10
"""How long nobody may be there to take what is left before the command gives up waiting."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options and verbs of the command."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    listing = verbs.add_parser("list", help="brokers, where they are and what they lead")
    add_connection(listing)
    listing.add_argument("--http", default=DEFAULT_HTTP, help=HTTP_HELP)
    add_format(listing)
    listing.set_defaults(run=list_brokers)
    drain = verbs.add_parser("drain", help="move all leadership off a broker, which gets no new partitions")
    drain.add_argument("node_id", type=int, metavar="ID", help="node.id of the broker")
    drain.add_argument("--undo", action="store_true", help="take it back: the broker gets partitions again")
    drain.add_argument("--no-wait", action="store_true", help="begin, and do not wait for the end")
    drain.add_argument("--http", default=DEFAULT_HTTP, help=f"HTTP port of a broker (default: {DEFAULT_HTTP})")
    drain.set_defaults(run=drain_broker)


def list_brokers(options: argparse.Namespace) -> int:
    """Print one row a broker, also those whose session has ended; `leads` counts partitions, internal ones too.

    Kafka's protocol does not know drained brokers: the HTTP port tells, if it can be reached.
    """
    with admin(options) as client:
        cluster = look_up(client.describe_cluster)
        topics = look_up(client.describe_topics)
    drained = _drained(options, cluster["cluster_id"])
    leads = Counter(row["leader_id"] for topic in topics for row in topic["partitions"])
    rows = [
        {
            "node_id": broker["broker_id"],
            "address": f"{broker['host']}:{broker['port']}",
            "state": "gone" if broker.get("is_fenced") else "alive",
            "drained": None if drained is None else "yes" if broker["broker_id"] in drained else "",
            "rack": broker["rack"] or None,
            "controller": "yes" if broker["broker_id"] == cluster["controller_id"] else "",
            "leads": leads[broker["broker_id"]],
        }
        for broker in sorted(cluster["brokers"], key=lambda broker: int(broker["broker_id"]))
    ]
    show(rows, ("node_id", "address", "state", "drained", "rack", "controller", "leads"), options.format)
    return 0


def _drained(options: argparse.Namespace, cluster_id: str) -> set[int] | None:
    """Node ids; None if nobody tells."""
    try:
        found = call(options, "GET", "/v1/brokers", HTTP_S)
        if found["cluster_id"] != cluster_id:
            raise CommandError(f"{options.http} is of another cluster")
    except CommandError as error:
        print(f"drained brokers are not marked, see --http: {error}", file=sys.stderr)
        return None
    return {broker["node_id"] for broker in found["brokers"] if broker["drained"]}


def drain_broker(options: argparse.Namespace) -> int:
    """Drain, or take it back; wait until the broker leads nothing."""
    undo = "true" if options.undo else "false"
    found = call(options, "POST", f"/v1/brokers/{options.node_id}/drain?undo={undo}")
    if options.undo:
        print(f"broker {options.node_id} gets partitions again")
        return 0
    if not options.no_wait:
        found = _wait(options, found)
    what = "leads nothing" if not found["leads"] else f"still leads {found['leads']} partitions"
    print(f"broker {options.node_id} is drained and {what}" + ("" if found["alive"] else "; it is not alive"))
    return 0


def _wait(options: argparse.Namespace, found: dict[str, Any]) -> dict[str, Any]:
    """Look until nothing is left; CommandError if nobody is there to take what is left, or the drain was taken back."""
    shown, stuck_since = -1, time.perf_counter()
    while found["leads"]:
        if not found["drained"]:
            raise CommandError(f"the drain of broker {options.node_id} was taken back")
        if found["leads"] != shown:
            shown = found["leads"]
            print(f"{shown} partitions are left, {found['moving']} of them on their way", file=sys.stderr)
        if found["moving"]:
            stuck_since = time.perf_counter()
        elif time.perf_counter() - stuck_since > NOBODY_S:
            raise CommandError(
                f"broker {options.node_id} still leads {found['leads']} partitions: no other live broker can take "
                "them. Start another one, and they leave by themselves"
            )
        time.sleep(LOOK_S)
        found = call(options, "GET", f"/v1/brokers/{options.node_id}")
    return found
