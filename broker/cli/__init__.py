"""The `tidelog` command: `start` runs a broker; the other commands are for people and scripts.

`topic`, `group`, `produce` and `consume` speak the public protocol through a Kafka client library, so they work against
any Kafka. `inspect` reads bytes and never modifies them; `wal` is for the operator who decides about lost data.
"""

import argparse
import sys
from collections.abc import Sequence

from broker.cli import consume, groups, inspect, produce, start, topics, wal
from broker.cli.output import CommandError

COMMANDS = (start, topics, groups, produce, consume, inspect, wal)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    root = argparse.ArgumentParser(
        prog="tidelog", description="A Kafka-protocol broker whose log lives in object storage."
    )
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add_parser(commands)
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0 done, 1 failed, 2 unusable arguments, 130 interrupted."""
    options = parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except CommandError as error:
        print(f"tidelog {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    return code
