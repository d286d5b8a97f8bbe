"""`tidelog group list|describe|delete|reset`."""

import argparse

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import UnknownMemberIdError
from kafka.structs import OffsetAndMetadata

from broker.cli.client import add_connection, admin, all_offsets, config, offsets
from broker.cli.output import CommandError, add_format, show


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options and verbs of the command."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, run, text in (
        ("list", list_groups, "names, states"),
        ("describe", describe, "committed offsets, lag and members"),
        ("delete", delete, "delete empty groups and their offsets"),
        ("reset", reset, "set the committed offsets of an inactive group"),
    ):
        verb = verbs.add_parser(name, help=text)
        add_connection(verb)
        add_format(verb)
        verb.set_defaults(run=run)
        if name != "list":
            verb.add_argument("group", nargs="+" if name == "delete" else None)
        if name == "reset":
            verb.add_argument("topic")
            verb.add_argument("--to", required=True, help="earliest, latest or an offset")


def list_groups(options: argparse.Namespace) -> int:
    """Print one row a group."""
    with admin(options) as client:
        found = client.list_groups()
    rows = [
        {"group": group["group_id"], "state": group.get("group_state"), "protocol": group["protocol_type"]}
        for group in sorted(found, key=lambda group: str(group["group_id"]))
    ]
    show(rows, ("group", "state", "protocol"), options.format)
    return 0


def describe(options: argparse.Namespace) -> int:
    """Print one row a partition with a committed offset or an owner."""
    with admin(options) as client:
        group = client.describe_groups([options.group])[options.group]
        if group["error"]:
            raise CommandError(f"group {options.group}: {group['error']}")
        committed = client.list_group_offsets(options.group)[options.group]
        consumer = KafkaConsumer(**config(options))
        try:
            ends = offsets(consumer.end_offsets, list(committed)) if committed else {}
        finally:
            consumer.close()
    owners = {
        (assigned["topic"], partition): f"{member['client_id']}@{member['client_host'].lstrip('/')}"
        for member in group["members"]
        if member["member_assignment"]
        for assigned in member["member_assignment"]["assigned_partitions"]
        for partition in assigned["partitions"]
    }
    rows = []
    for partition in sorted(set(committed) | {TopicPartition(*owned) for owned in owners}):
        offset = committed[partition].offset if partition in committed else None
        end = ends.get(partition)
        rows.append(
            {
                "topic": partition.topic,
                "partition": partition.partition,
                "committed": offset,
                "end": end,
                "lag": None if offset is None or end is None else end - offset,
                "owner": owners.get(tuple(partition)),
            }
        )
    if options.format == "json":
        show([{"group": options.group, "state": group["group_state"], "offsets": rows}], (), "json")
        return 0
    print(f"{options.group}: {group['group_state']}, {len(group['members'])} members")
    show(rows, ("topic", "partition", "committed", "end", "lag", "owner"), options.format)
    return 0


def delete(options: argparse.Namespace) -> int:
    """Delete groups; the first refusal is the error."""
    with admin(options) as client:
        for group, result in client.delete_groups(options.group).items():
            if result != "OK":
                raise CommandError(f"group {group}: {result}")
    return 0


def reset(options: argparse.Namespace) -> int:
    """Commit `--to` for every partition of the topic."""
    if options.to not in ("earliest", "latest") and not options.to.isdecimal():
        raise CommandError(f"--to {options.to}: write earliest, latest or an offset")
    with admin(options) as client:
        consumer = KafkaConsumer(**config(options))
        try:
            numbers = consumer.partitions_for_topic(options.topic)
            if not numbers:
                raise CommandError(f"topic {options.topic} does not exist")
            partitions = [TopicPartition(options.topic, number) for number in sorted(numbers)]
            start = all_offsets(consumer.beginning_offsets, partitions)
            end = all_offsets(consumer.end_offsets, partitions)
        finally:
            consumer.close()
        if options.to == "earliest":
            wanted = start
        elif options.to == "latest":
            wanted = end
        else:
            wanted = {p: min(max(int(options.to), start[p]), end[p]) for p in partitions}
        new = {partition: OffsetAndMetadata(offset, "", -1) for partition, offset in wanted.items()}
        for partition, result in client.alter_group_offsets(options.group, new).items():
            if result is UnknownMemberIdError:
                raise CommandError(f"group {options.group} has members: stop its consumers first")
            if getattr(result, "errno", 0):
                raise CommandError(f"{partition.topic}-{partition.partition}: {result.__name__}")
    rows = [{"topic": p.topic, "partition": p.partition, "committed": wanted[p]} for p in sorted(wanted)]
    show(rows, ("topic", "partition", "committed"), options.format)
    return 0
