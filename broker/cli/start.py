"""`tidelog start [server.properties] [--override key=value ...]`."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from broker.cli.output import CommandError
from broker.settings import SettingError
from broker.settings_sources import Loaded, load, parse_overrides

UNUSABLE = 2


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("start", help="run a broker in the foreground")
    parser.add_argument("properties", nargs="?", type=Path, help="a server.properties file")
    parser.add_argument(
        "--override", metavar="KEY=VALUE", action="append", default=[], help="a setting, over file and environment"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run until stopped; exit code 2 for unusable settings."""
    try:
        loaded = settings(options)
    except (SettingError, CommandError) as error:
        print(f"tidelog start: {error}", file=sys.stderr)
        return UNUSABLE
    from broker.node import run_broker  # starting a broker loads what the other commands do without

    return run_broker(loaded)


def settings(options: argparse.Namespace) -> Loaded:
    """Settings from file, environment and flags."""
    text, name = None, ""
    if options.properties is not None:
        name = str(options.properties)
        try:
            text = options.properties.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"cannot read {name}: {error}") from None
    return load(text, name, os.environ, parse_overrides(options.override))
