"""`tidelog topic list|create|describe|alter|delete`."""

import argparse
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from broker.cli.client import add_connection, admin, check, config, look_up, offsets
from broker.cli.output import CommandError, add_format, show


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options and verbs of the command."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, run, text in (
        ("list", list_topics, "names, partitions"),
        ("create", create, "create a topic"),
        ("describe", describe, "partitions with leaders and offsets, and configs that were set"),
        ("alter", alter, "add partitions, set or remove configs"),
        ("delete", delete, "delete topics and their data"),
    ):
        verb = verbs.add_parser(name, help=text)
        add_connection(verb)
        add_format(verb)
        verb.set_defaults(run=run)
        if name == "list":
            verb.add_argument("--internal", action="store_true", help="internal topics too")
        else:
            verb.add_argument("topic", nargs="+" if name == "delete" else None)
        if name in ("create", "alter"):
            verb.add_argument("-p", "--partitions", type=int, default=-1)
            verb.add_argument("-c", "--config", metavar="KEY=VALUE", action="append", default=[])
        if name == "create":
            verb.add_argument("-r", "--replication-factor", type=int, default=-1)
        if name == "alter":
            verb.add_argument("--remove", metavar="KEY", action="append", default=[], help="back to the default")


def pairs(texts: list[str]) -> dict[str, str]:
    """`["a=1"]` -> `{"a": "1"}`."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise CommandError(f"--config {text}: write key=value")
        found[key] = value
    return found


def list_topics(options: argparse.Namespace) -> int:
    """Print one row a topic."""
    with admin(options) as client:
        described = look_up(client.describe_topics)
    rows = [
        {"topic": topic["name"], "partitions": len(topic["partitions"]), "internal": topic["is_internal"]}
        for topic in sorted(described, key=lambda topic: str(topic["name"]))
        if options.internal or not topic["is_internal"]
    ]
    show(rows, ("topic", "partitions"), options.format)
    return 0


def create(options: argparse.Namespace) -> int:
    """Create one topic."""
    request = {
        "num_partitions": options.partitions,
        "replication_factor": options.replication_factor,
        "configs": pairs(options.config),
    }
    with admin(options) as client:
        answer = client.create_topics({options.topic: request}, raise_errors=False)
        check(f"topic {options.topic}", answer["topics"][0]["error_code"], answer["topics"][0]["error_message"])
        partitions = len(client.describe_topics([options.topic])[0]["partitions"])
    show([{"topic": options.topic, "partitions": partitions}], ("topic", "partitions"), options.format)
    return 0


def describe(options: argparse.Namespace) -> int:
    """Print one row a partition, then the configs that were set."""
    with admin(options) as client:
        topic = look_up(lambda: client.describe_topics([options.topic]))[0]
        if topic["error_code"]:
            raise CommandError(f"topic {options.topic} does not exist")
        resource = ConfigResource(ConfigResourceType.TOPIC, options.topic)
        configs = look_up(lambda: client.describe_configs([resource]))
        consumer = KafkaConsumer(**config(options))
        try:
            partitions = [TopicPartition(options.topic, row["partition_index"]) for row in topic["partitions"]]
            start, end = offsets(consumer.beginning_offsets, partitions), offsets(consumer.end_offsets, partitions)
        finally:
            consumer.close()
    rows = [
        {
            "partition": row["partition_index"],
            "leader": row["leader_id"],
            "epoch": row["leader_epoch"],
            "start": start.get(TopicPartition(options.topic, row["partition_index"])),
            "end": end.get(TopicPartition(options.topic, row["partition_index"])),
        }
        for row in sorted(topic["partitions"], key=lambda row: int(row["partition_index"]))
    ]
    if options.format == "json":
        show(
            [{"topic": options.topic, "topic_id": topic["topic_id"], "partitions": rows, "configs": configs}],
            (),
            "json",
        )
        return 0
    show(rows, ("partition", "leader", "epoch", "start", "end"), options.format)
    for by_name in configs.values():
        for changed in by_name.values():
            for name, value in changed.items():
                print(f"{name}={value['value'] if isinstance(value, dict) else value}")
    return 0


def alter(options: argparse.Namespace) -> int:
    """Add partitions; set and remove configs."""
    changes: dict[str, Any] = dict(pairs(options.config))
    changes |= dict.fromkeys(options.remove, ("DELETE", None))
    if options.partitions < 0 and not changes:
        raise CommandError("nothing to do: give --partitions, --config or --remove")
    with admin(options) as client:
        if options.partitions >= 0:
            grown = client.create_partitions({options.topic: options.partitions}, raise_errors=False).results[0]
            check(f"topic {options.topic}", grown.error_code, grown.error_message)
        if changes:
            resource = ConfigResource(ConfigResourceType.TOPIC, options.topic, configs=changes)
            for by_name in client.alter_configs([resource], raise_on_unknown=False).values():
                for name, result in by_name.items():
                    if result not in (None, "OK"):
                        raise CommandError(f"{name}: {result}")
    return 0


def delete(options: argparse.Namespace) -> int:
    """Delete topics."""
    with admin(options) as client:
        answer = client.delete_topics(options.topic, raise_errors=False)
        for result in answer["topics"]:
            check(f"topic {result['name']}", result["error_code"], result["error_message"])
    return 0
