"""`tidelog cluster describe|start|accept-server`, and `format [--raise]`: the format level, raised after an upgrade.

`format` goes to the HTTP port of a running broker. Once raised, brokers of an older version are refused: there is no
way back to it.
"""

import argparse
import json
from typing import Any

from broker.cli import accept_server, cluster_describe, cluster_start
from broker.cli.output import add_format, show
from broker.cli.wal import DEFAULT_HTTP, call


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options and verbs of the command."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    cluster_describe.add_verb(verbs)
    cluster_start.add_verb(verbs)
    accept_server.add_verb(verbs)
    level = verbs.add_parser("format", help="the format level, and what every broker understands")
    level.add_argument("--http", default=DEFAULT_HTTP, help=f"HTTP port of a broker (default: {DEFAULT_HTTP})")
    level.add_argument(
        "--raise",
        action="store_true",
        dest="raising",
        help="raise it as far as every live broker understands; older versions are refused from then on",
    )
    add_format(level)
    level.set_defaults(run=format_level)


def format_level(options: argparse.Namespace) -> int:
    """Print the level, raised first if asked for."""
    found: dict[str, Any] = call(options, "POST" if options.raising else "GET", "/v1/cluster/format")
    if options.format == "json":
        print(json.dumps(found, indent=2))
        return 0
    print(f"format level {found['level']}" + _possible(found))
    show(found["brokers"], ("node_id", "alive", "understands"), "table")
    behind = [str(one["node_id"]) for one in found["brokers"] if one["understands"] < found["possible"]]
    if behind:
        print(f"not alive, and refused at level {found['possible']} until upgraded: broker {', '.join(behind)}")
    return 0


def _possible(found: dict[str, Any]) -> str:
    if found["possible"] == found["level"]:
        return ", the highest that every live broker understands"
    return f"; every live broker understands {found['possible']}: `tidelog cluster format --raise`"
