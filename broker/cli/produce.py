"""`tidelog produce TOPIC`: a record a line from standard input or a file, acknowledged before the command ends."""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import BinaryIO

from kafka import KafkaProducer

from broker.cli.client import add_connection, client_errors, config
from broker.cli.output import CommandError
from broker.cli.progress import Progress


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_connection(parser)
    parser.add_argument("topic")
    parser.add_argument("-f", "--file", type=Path, default=None, help="instead of standard input")
    parser.add_argument(
        "-k", "--key-separator", help="text between key and value of a line; default: lines have no key"
    )
    parser.add_argument(
        "-H", "--header", metavar="KEY=VALUE", action="append", default=[], help="a header of every record"
    )
    parser.add_argument("-p", "--partition", type=int, default=None)
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Send every line; exit 1 when any was not acknowledged."""
    if options.file is None:
        return send(options, sys.stdin.buffer)
    try:
        with open(options.file, "rb") as source:
            return send(options, source)
    except OSError as error:
        raise CommandError(f"cannot read {options.file}: {error.strerror}") from None


def _header(text: str) -> tuple[str, bytes]:
    key, equals, value = text.partition("=")
    if not equals:
        raise CommandError(f"--header {text}: write key=value")
    return key, value.encode()


def send(options: argparse.Namespace, source: BinaryIO) -> int:
    """Send what `source` holds."""
    separator = options.key_separator.encode() if options.key_separator else None
    headers = [_header(text) for text in options.header]
    progress = Progress("acknowledged", options.quiet)
    failures: Counter[str] = Counter()

    def failed(error: BaseException) -> None:
        failures[str(error)] += 1

    with client_errors(options):
        producer = KafkaProducer(**config(options, linger_ms=5, acks="all"))
        try:
            for line in source:
                value = line.rstrip(b"\r\n")
                key = None
                if separator is not None:
                    key, found, value = value.partition(separator)
                    if not found:
                        raise CommandError(f"a line has no {options.key_separator!r}: {line[:60]!r}")
                sent = producer.send(options.topic, key=key, value=value, partition=options.partition, headers=headers)
                size = len(value) + len(key or b"")
                sent.add_callback(lambda _metadata, size=size: progress.add(size))
                sent.add_errback(failed)
            producer.flush()
        finally:
            producer.close()
            progress.done()
    if failures:
        ((error, _),) = failures.most_common(1)
        raise CommandError(f"{failures.total()} records were not acknowledged: {error}")
    return 0
