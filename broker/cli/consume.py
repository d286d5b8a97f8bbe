"""`tidelog consume TOPIC`: print records as they come, or what there is and stop."""

import argparse
import base64
import json
import sys
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from broker.cli.client import add_connection, all_offsets, client_errors, config
from broker.cli.output import CommandError, positive
from broker.cli.progress import Progress

POLL_MS = 500
IDLE_POLLS_MAX = 60
"""`--exit-at-end` gives up after so many polls without a record: the rest of the topic may be an explicit hole."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_connection(parser)
    parser.add_argument("topic")
    parser.add_argument("-g", "--group", help="consume as this group and commit; default: no group")
    parser.add_argument(
        "-o", "--offset", default=None, help="earliest, latest or an offset (default: earliest; groups: committed)"
    )
    parser.add_argument("-p", "--partition", type=int, default=None, help="this partition only")
    parser.add_argument("-n", "--max-records", type=positive, default=None, help="stop after so many")
    parser.add_argument("-e", "--exit-at-end", action="store_true", help="stop at the end the topic has now")
    parser.add_argument(
        "--format",
        choices=("value", "keyed", "headers", "json", "none"),
        default="value",
        help="keyed, headers: with tabs between; none: only count",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=run)


def text(data: bytes | None) -> str | None:
    """UTF-8 where it is, else base64 behind a marker."""
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(data).decode()


def render(record: Any, style: str) -> bytes:
    """One output line of one record."""
    if style == "value":
        return (record.value or b"") + b"\n"
    if style == "headers":
        headers = b",".join(key.encode() + b"=" + (value or b"") for key, value in record.headers)
        return headers + b"\t" + (record.key or b"") + b"\t" + (record.value or b"") + b"\n"
    if style == "keyed":
        return (record.key or b"") + b"\t" + (record.value or b"") + b"\n"
    fields = {
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp,
        "headers": [[key, text(value)] for key, value in record.headers],
        "key": text(record.key),
        "value": text(record.value),
    }
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n"


def run(options: argparse.Namespace) -> int:
    """Print until told to stop."""
    progress = Progress("consumed", options.quiet)
    with client_errors(options):
        consumer = KafkaConsumer(
            **config(
                options,
                group_id=options.group,
                max_poll_records=min(500, options.max_records or 500),
                auto_offset_reset=options.offset if options.offset in ("earliest", "latest") else "earliest",
                enable_auto_commit=options.group is not None,
            )
        )
        try:
            _position(consumer, options)
            _print_records(consumer, options, progress)
        except KeyboardInterrupt:
            progress.done()
            raise
        finally:
            consumer.close()
        progress.done()
    return 0


def _position(consumer: Any, options: argparse.Namespace) -> None:
    """Subscribe as a group, or take the partitions by hand and seek."""
    if options.group is not None:
        if options.partition is not None or (options.offset or "earliest") not in ("earliest", "latest"):
            raise CommandError("--group goes with neither --partition nor a numeric --offset")
        consumer.subscribe([options.topic])
        return
    numbers = consumer.partitions_for_topic(options.topic)
    if not numbers:
        raise CommandError(f"topic {options.topic} does not exist")
    if options.partition is not None and options.partition not in numbers:
        raise CommandError(f"topic {options.topic} has no partition {options.partition}")
    wanted = numbers if options.partition is None else {options.partition}
    partitions = [TopicPartition(options.topic, number) for number in sorted(wanted)]
    consumer.assign(partitions)
    if options.offset == "latest":
        consumer.seek_to_end(*partitions)
    elif options.offset is None or options.offset == "earliest":
        consumer.seek_to_beginning(*partitions)
    elif options.offset.isdecimal():
        for partition in partitions:
            consumer.seek(partition, int(options.offset))
    else:
        raise CommandError(f"--offset {options.offset}: write earliest, latest or an offset")


def _print_records(consumer: Any, options: argparse.Namespace, progress: Progress) -> None:
    ends: dict[TopicPartition, int] = {}
    if options.exit_at_end:
        numbers = consumer.partitions_for_topic(options.topic) or ()
        ends = all_offsets(consumer.end_offsets, [TopicPartition(options.topic, number) for number in numbers])
    out = sys.stdout.buffer
    idle = 0
    while True:
        polled = consumer.poll(timeout_ms=POLL_MS)
        idle = 0 if polled else idle + 1
        for records in polled.values():
            for record in records:
                if options.format != "none":
                    out.write(render(record, options.format))
                progress.add(len(record.value or b"") + len(record.key or b""))
                if progress.records == options.max_records:
                    out.flush()
                    return
        out.flush()
        assigned = consumer.assignment()
        if options.exit_at_end and assigned and all(consumer.position(p) >= ends.get(p, 0) for p in assigned):
            return
        if options.exit_at_end and idle >= IDLE_POLLS_MAX:
            raise CommandError(f"no record came for {idle * POLL_MS // 1000} s and the end is not reached")
