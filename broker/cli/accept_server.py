"""`tidelog cluster accept-server`: an operator says that the PostgreSQL server is the right one, though it changed.

Brokers say so themselves while one is left that knows the end of the metadata log and finds it there. Without one, or
where the end is lost, only a person can decide.
"""

import argparse

from broker.cli.inspect import METADATA_HELP, STORE_HELP, with_store
from broker.cli.metadata import opened_tables
from broker.cli.output import CommandError
from storage.object_store import ObjectStore


def add_verb(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The options of the verb."""
    text = "trust the PostgreSQL server after a failover that no broker can vouch for"
    accept = verbs.add_parser("accept-server", help=text, description=text)
    accept.add_argument("store", help=STORE_HELP)
    accept.add_argument("--metadata", metavar="URI", required=True, help=METADATA_HELP)
    accept.add_argument(
        "--accept-loss",
        action="store_true",
        help="also if brokers applied entries that this server does not hold: those are lost; restart these brokers",
    )
    accept.set_defaults(run=accept_server)


def accept_server(options: argparse.Namespace) -> int:
    """Print what the server holds and who misses what; trust it if nobody does, or if the loss is accepted."""

    async def work(store: ObjectStore) -> int:
        async with opened_tables(store, options.metadata) as (cluster, tables):
            page = await tables.read(1, 0)
            last = await tables.last_position()
            print(f"cluster {cluster.cluster_id}: the log ends with entry {last}")
            print(f"server {page.server}, trusted until now: {page.trusted}")
            missing = await tables.settle()
            for one in missing:
                print(f"{one.who} applied entry {one.position}, which is not there")
            if missing and not options.accept_loss:
                raise CommandError(
                    "the end of the log is lost: bring back the server that has it, or say --accept-loss"
                )
            await tables.accept()
            print("accepted" + ("; restart these brokers" if missing else ""))
        return 0

    return with_store(options.store, work)
