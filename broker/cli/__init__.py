"""The `tidelog` command: `start` runs a broker; the other commands are for people and scripts.

`cluster start` runs several. `broker`, `topic`, `config`, `group`, `produce`, `consume` and `cluster describe` speak
the public protocol through a Kafka client library, so they work against any Kafka. `inspect` reads bytes and never
modifies them; `wal` and `cluster format` are for the operator, who decides about lost data and about upgrades.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from broker.cli.output import CommandError

COMMANDS = {
    "start": ("broker.cli.start", "run a broker in the foreground"),
    "cluster": (
        "broker.cli.cluster",
        "describe a cluster; start several brokers on this machine; show and raise the format level",
    ),
    "broker": ("broker.cli.brokers", "list the brokers of a cluster"),
    "topic": ("broker.cli.topics", "list, create, describe, alter and delete topics"),
    "config": ("broker.cli.config", "show and change configs of topics, brokers and groups, and client quotas"),
    "group": ("broker.cli.groups", "list, describe and delete consumer groups, reset their offsets"),
    "produce": ("broker.cli.produce", "send a record a line from standard input or a file"),
    "consume": ("broker.cli.consume", "print the records of a topic"),
    "inspect": ("broker.cli.inspect", "print what WAL directories, segments and metadata say"),
    "wal": ("broker.cli.wal", "list WAL instances; recover or give up those that need a decision"),
}
"""Name -> module with `add_options(parser)`, help. Only the module of the command that runs is imported: a broker does
without the client library, a client command without the broker."""


def parser(command: str | None) -> argparse.ArgumentParser:
    """The command line; only `command` has its options."""
    root = argparse.ArgumentParser(
        prog="tidelog", description="A Kafka-protocol broker whose log lives in object storage."
    )
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        options = commands.add_parser(name, help=text, description=text)
        if name == command:
            import_module(module).add_options(options)
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0 done, 1 failed, 2 unusable arguments, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options = parser(arguments[0] if arguments else None).parse_args(arguments)
        code: int = options.run(options)
    except CommandError as error:
        print(f"tidelog {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever reads our output has enough; what is still buffered must go somewhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code
