"""`tidelog wal list|recover|declare-lost`: what an operator decides about WAL instances.

The commands go to the HTTP port of a running broker. Both decisions give up records that are not in the bucket, print a
report that names them, and store it there; every log goes on behind an explicit hole.
"""

import argparse
import json
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.parse import quote

from broker.cli.output import CommandError, add_format, show

DEFAULT_HTTP = "http://127.0.0.1:9644"
TIMEOUT_S = 120


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options and verbs of the command."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    listing = verbs.add_parser("list", help="instances and what they wait for")
    recover = verbs.add_parser("recover", help="take what is readable of a damaged instance, give up the rest")
    lost = verbs.add_parser("declare-lost", help="give up an instance that does not return")
    for verb, run in ((listing, list_wals), (recover, recover_wal), (lost, declare_lost)):
        verb.add_argument("--http", default=DEFAULT_HTTP, help=f"HTTP port of the broker (default: {DEFAULT_HTTP})")
        verb.set_defaults(run=run)
    add_format(listing)
    listing.add_argument("--all", action="store_true", help="also those that are retired or lost")
    recover.add_argument("wal_id", help="32 hex digits, as the log shows them")
    recover.add_argument("--accept-loss", action="store_true", required=True, help="say that records may be lost")
    lost.add_argument("wal_id", help="32 hex digits, as the log shows them")
    lost.add_argument(
        "--host-is-destroyed",
        action="store_true",
        help="the machine is gone for certain: do not wait 30 minutes after its last sign of life",
    )


def call(options: argparse.Namespace, method: str, path: str, timeout_s: float = TIMEOUT_S) -> Any:
    """One request to the broker; CommandError with its words when it refuses."""
    try:
        request = urllib.request.Request(options.http.rstrip("/") + path, method=method)
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            text = error.read().decode(errors="replace")
        try:
            text = json.loads(text)["error"]
        except (ValueError, KeyError, TypeError):
            pass
        raise CommandError(text) from None
    except urllib.error.URLError as error:
        raise CommandError(f"no broker answers at {options.http}: {error.reason}") from None
    except (ValueError, OSError, HTTPException) as error:
        raise CommandError(f"{options.http}: {str(error).strip()}") from None


def list_wals(options: argparse.Namespace) -> int:
    """Print one row an instance."""
    rows = call(options, "GET", "/v1/wal?all=true" if options.all else "/v1/wal")
    show(rows, ("wal_id", "node_id", "kind", "state", "waits_for_operator", "logs"), options.format)
    if options.format == "table":
        for row in rows:
            if row["why"]:
                print(f"{row['wal_id']}: {row['why']}")
    return 0


def recover_wal(options: argparse.Namespace) -> int:
    """Recover the readable part; print the loss report."""
    print(
        json.dumps(
            call(options, "POST", f"/v1/wal/{quote(options.wal_id, safe='')}/recover?accept_loss=true"), indent=2
        )
    )
    return 0


def declare_lost(options: argparse.Namespace) -> int:
    """Give the instance up; print the loss report."""
    destroyed = "true" if options.host_is_destroyed else "false"
    path = f"/v1/wal/{quote(options.wal_id, safe='')}/declare-lost?host_is_destroyed={destroyed}"
    print(json.dumps(call(options, "POST", path), indent=2))
    return 0
