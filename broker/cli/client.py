"""Connecting the client commands to a Kafka cluster."""

import argparse
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from kafka import KafkaAdminClient
from kafka.errors import KafkaConnectionError, KafkaError, KafkaTimeoutError, for_code

from broker.cli.output import CommandError

DEFAULT_BOOTSTRAP = "127.0.0.1:9092"
BOOTSTRAP_TIMEOUT_MS = 10_000
TRIES = 5

T = TypeVar("T")


def add_connection(parser: argparse.ArgumentParser) -> None:
    """The options that say which cluster."""
    parser.add_argument(
        "-b",
        "--bootstrap-server",
        default=DEFAULT_BOOTSTRAP,
        help=f"host:port[,host:port] (default: {DEFAULT_BOOTSTRAP})",
    )
    parser.add_argument(
        "-X",
        metavar="KEY=VALUE",
        dest="client_config",
        action="append",
        default=[],
        help="a setting of the Kafka client",
    )


def config(options: argparse.Namespace, **defaults: Any) -> dict[str, Any]:
    """Keyword arguments for a client: `-X security.protocol=SSL` becomes `security_protocol="SSL"`."""
    values: dict[str, Any] = {
        "bootstrap_servers": options.bootstrap_server.split(","),
        "client_id": "tidelog-cli",
        "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
        **defaults,
    }
    for pair in options.client_config:
        key, equals, text = pair.partition("=")
        if not equals:
            raise CommandError(f"-X {pair}: write key=value")
        values[key.strip().replace(".", "_")] = typed(text)
    return values


def typed(text: str) -> Any:
    """A client setting's value from its text: true, false, a number, or the text itself."""
    if text in ("true", "false"):
        return text == "true"
    try:
        return int(text)
    except ValueError:
        return text


@contextmanager
def client_errors(options: argparse.Namespace) -> Iterator[None]:
    """Turn what the client library raises into a CommandError that says what to do."""
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    try:
        yield
    except KafkaError as error:
        unreachable = isinstance(error, KafkaTimeoutError) and "bootstrap" in str(error)
        if unreachable or isinstance(error, KafkaConnectionError):
            raise CommandError(f"no broker answers at {options.bootstrap_server}; is it running?") from None
        raise CommandError(str(error)) from None
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:  # how the library refuses unusable settings
        raise CommandError(f"{error}") from None


def check(what: str, error_code: int, message: str | None) -> None:
    """CommandError when a broker's answer about `what` is a refusal."""
    if error_code:
        raise CommandError(f"{what}: {message or for_code(error_code).__name__}")


def look_up(call: Callable[[], T]) -> T:
    """A call that changes nothing, made again when the broker that the library chose for it has just died."""
    for _ in range(TRIES - 1):
        with suppress(KafkaConnectionError):
            return call()
    return call()


@contextmanager
def admin(options: argparse.Namespace) -> Iterator[KafkaAdminClient]:
    """An admin client, closed at the end."""
    with client_errors(options):
        client = KafkaAdminClient(**config(options))
        try:
            yield client
        finally:
            client.close()


def offsets(read: Callable[[list[Any]], dict[Any, int]], partitions: list[Any]) -> dict[Any, int]:
    """What `read` tells of the partitions that have a leader; it fails for all when one has none."""
    found: dict[Any, int] = {}
    try:
        found = read(partitions)
    except KeyError:
        for partition in partitions:
            with suppress(KeyError):
                found |= read([partition])
    return found


def all_offsets(read: Callable[[list[Any]], dict[Any, int]], partitions: list[Any]) -> dict[Any, int]:
    """What `read` tells of every partition; CommandError when one has no leader."""
    found = offsets(read, partitions)
    for partition in partitions:
        if partition not in found:
            raise CommandError(f"{partition.topic}-{partition.partition} has no leader now: try again")
    return found
