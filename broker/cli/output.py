"""What every command prints: tables for people, JSON for scripts."""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any


class CommandError(Exception):
    """A command that cannot do what was asked; the message goes to stderr, the exit code is 1."""


def add_format(parser: argparse.ArgumentParser) -> None:
    """The `--format` option."""
    parser.add_argument("--format", choices=("table", "json"), default="table", help="how to print (default: table)")


def positive(text: str) -> int:
    """The type of options that count something."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def show(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], style: str) -> None:
    """Print rows; a table shows `columns`, JSON shows everything."""
    if style == "json":
        print(json.dumps(rows, indent=2, default=str))
        return
    cells = [[column.upper().replace("_", " ") for column in columns]]
    cells += [["-" if row.get(column) is None else str(row[column]) for column in columns] for row in rows]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    numeric = [all(isinstance(row.get(column), int | None) for row in rows) for column in columns]
    for line in cells:
        padded = (
            cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(line, widths, numeric)
        )
        print("  ".join(padded).rstrip())
