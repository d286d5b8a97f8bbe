"""`tidelog config describe|alter`: configs of topics, brokers and groups, and client quotas.

`describe` shows what was set, with where it comes from; `--all` everything. `broker default` is what all brokers share.
A quota is of the entity that `--user`, `--client-id` and `--ip` name together; the name `<default>` is the default.
"""

import argparse
from typing import Any

from kafka import KafkaAdminClient
from kafka.protocol.admin import (
    AlterClientQuotasRequest,
    DescribeClientQuotasRequest,
    DescribeConfigsRequest,
    IncrementalAlterConfigsRequest,
)

from broker.cli.client import add_connection, admin, check
from broker.cli.output import CommandError, add_format, show

KINDS = {"topic": 2, "broker": 4, "group": 32}
SET, DELETE = 0, 1
SOURCES = {1: "topic", 2: "broker", 3: "all brokers", 4: "settings", 5: "default", 6: "logger", 8: "group"}
DEFAULT_SOURCE = 5
DEFAULT_NAME = "<default>"
ENTITIES = ("user", "client-id", "ip")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options and verbs of the command."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, text in (("describe", "show configs or quotas"), ("alter", "set and remove configs or quotas")):
        verb = verbs.add_parser(name, help=text)
        kinds = verb.add_subparsers(dest="kind", required=True, metavar="KIND")
        for kind in (*KINDS, "quota"):
            options = kinds.add_parser(kind, help=f"{text} of a {kind}" if kind in KINDS else "client quotas")
            add_connection(options)
            if kind == "quota":
                for entity in ENTITIES:
                    options.add_argument(f"--{entity}", metavar="NAME", help=f"{DEFAULT_NAME}: all others")
            else:
                options.add_argument("name", help="node id, or default" if kind == "broker" else f"the {kind}")
            if name == "alter":
                options.add_argument("-s", "--set", metavar="KEY=VALUE", action="append", default=[])
                options.add_argument("--remove", metavar="KEY", action="append", default=[])
                options.add_argument("--check", action="store_true", help="only say whether it could be")
                options.set_defaults(run=alter_quota if kind == "quota" else alter)
                continue
            add_format(options)
            if kind != "quota":
                options.add_argument("-a", "--all", action="store_true", help="defaults too")
            options.set_defaults(run=describe_quotas if kind == "quota" else describe)


def send(client: KafkaAdminClient, request: Any, node_id: int | None = None) -> Any:
    """The answer to a request that the client library has no method for, or none that says enough."""
    manager = client._manager
    return manager.run(manager.send, request, node_id)


def _resource(options: argparse.Namespace) -> tuple[str, int | None]:
    """The name of the resource, and the broker that must be asked (None: any)."""
    if options.kind != "broker":
        return options.name, None
    if options.name == "default":
        return "", None
    if not options.name.isdecimal():
        raise CommandError(f"broker {options.name}: write a node id, or default")
    return options.name, int(options.name)


def describe(options: argparse.Namespace) -> int:
    """One row a config."""
    name, node_id = _resource(options)
    with admin(options) as client:
        request = DescribeConfigsRequest(
            resources=[(KINDS[options.kind], name, None)], include_synonyms=True, min_version=1
        )
        (result,) = send(client, request, node_id).results
    check(f"{options.kind} {options.name}", result.error_code, result.error_message)
    rows = [
        {
            "config": config.name,
            "value": "(hidden)" if config.is_sensitive else config.value,
            "from": SOURCES.get(config.config_source, "?"),
            "read_only": config.read_only,
            "synonyms": [{"config": s.name, "value": s.value, "from": SOURCES.get(s.source)} for s in config.synonyms],
        }
        for config in sorted(result.configs, key=lambda config: str(config.name))
        if options.all or config.config_source != DEFAULT_SOURCE
    ]
    show(rows, ("config", "value", "from"), options.format)
    return 0


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise CommandError(f"--set {text}: write key=value")
    return key, value


def _changes(options: argparse.Namespace) -> list[tuple[str, str | None]]:
    changes: list[tuple[str, str | None]] = [_pair(text) for text in options.set]
    changes += [(key, None) for key in options.remove]
    if not changes:
        raise CommandError("nothing to do: give --set or --remove")
    return changes


def alter(options: argparse.Namespace) -> int:
    """Set and remove configs of one resource."""
    changes = _changes(options)
    name, node_id = _resource(options)
    with admin(options) as client:
        configs = [(key, DELETE if value is None else SET, value) for key, value in changes]
        request = IncrementalAlterConfigsRequest(
            resources=[(KINDS[options.kind], name, configs)], validate_only=options.check
        )
        (result,) = send(client, request, node_id).responses
    check(f"{options.kind} {options.name}", result.error_code, result.error_message)
    return 0


def _entity(options: argparse.Namespace) -> list[tuple[str, str | None]]:
    named = [(kind, getattr(options, kind.replace("-", "_"))) for kind in ENTITIES]
    return [(kind, None if name == DEFAULT_NAME else name) for kind, name in named if name is not None]


def describe_quotas(options: argparse.Namespace) -> int:
    """One row a quota of the entities that match, or of all."""
    components = [(kind, 1 if name is None else 0, name) for kind, name in _entity(options)]
    with admin(options) as client:
        answer = send(client, DescribeClientQuotasRequest(components=components, strict=False))
    check("quotas", answer.error_code, answer.error_message)
    rows = []
    for entry in answer.entries:
        names = {one.entity_type: DEFAULT_NAME if one.entity_name is None else one.entity_name for one in entry.entity}
        for value in entry.values:
            rows.append({kind.replace("-", "_"): names.get(kind) for kind in ENTITIES} | {"quota": value.key})
            rows[-1]["value"] = f"{value.value:g}" if value.value % 1 else int(value.value)
    columns = [kind.replace("-", "_") for kind in ENTITIES]
    rows.sort(key=lambda row: [str(row[column] or "") for column in (*columns, "quota")])
    show(rows, [*(column for column in columns if any(row[column] for row in rows)), "quota", "value"], options.format)
    return 0


def alter_quota(options: argparse.Namespace) -> int:
    """Set and remove quotas of one entity."""
    entity = _entity(options)
    if not entity:
        raise CommandError("whose quota? give --user, --client-id, both, or --ip")
    ops = []
    for key, text in _changes(options):
        try:
            ops.append((key, 0.0 if text is None else float(text), text is None))
        except ValueError:
            raise CommandError(f"--set {key}={text}: write a number") from None
    with admin(options) as client:
        request = AlterClientQuotasRequest(entries=[(entity, ops)], validate_only=options.check)
        (result,) = send(client, request).entries
    check("quota", result.error_code, result.error_message)
    return 0
