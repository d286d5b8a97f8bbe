"""`tidelog inspect wal|segment|metadata|losses`: what the bytes say; every checksum is verified, nothing is modified.

Exit code 1 when the bytes are not what was written.
"""

import argparse
import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from broker.cli.metadata import opened_log
from broker.cli.output import CommandError, add_format, show
from controller.describe import describe_metadata
from controller.upkeep import LOSSES
from storage.object_store import ObjectStore, StoreError, open_store
from storage.seal import MERGED, RangeMissing
from storage.segment import describe_segment
from storage.wal.inspect import describe_instance, describe_object_wal

STORE_HELP = "URI of the bucket, such as file:./tidelog-data/bucket or s3://bucket/prefix?region=..."

METADATA_HELP = "tidelog.metadata of the brokers, if the log is in PostgreSQL: postgresql://user@host/database"


KINDS = (MERGED, "segments/")
"""Where segments lie: what was merged, and what was sealed."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options and verbs of the command."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="WHAT")
    wal = verbs.add_parser("wal", help="a WAL directory, one instance in it, or one in the bucket")
    wal.add_argument("path", help="the directory; or, with a WAL id, the URI of the bucket")
    wal.add_argument("wal_id", nargs="?", help="32 hex digits, as the log shows them: an instance in the bucket")
    wal.set_defaults(run=inspect_wal)
    segment = verbs.add_parser("segment", help="one segment of a bucket; without a key: which there are")
    segment.add_argument("store", help=STORE_HELP)
    segment.add_argument("key", nargs="?", help="such as segments/1/00c0ffee00c0ffee/7-0")
    segment.set_defaults(run=inspect_segment)
    metadata = verbs.add_parser("metadata", help="the metadata log of a bucket")
    metadata.add_argument("store", help=STORE_HELP)
    metadata.add_argument("--metadata", metavar="URI", default="", help=METADATA_HELP)
    metadata.set_defaults(run=inspect_metadata)
    losses = verbs.add_parser("losses", help="the reports of declared losses in a bucket")
    losses.add_argument("store", help=STORE_HELP)
    losses.set_defaults(run=inspect_losses)
    for verb in (wal, segment, metadata, losses):
        add_format(verb)


def plain(value: Any) -> Any:
    """Reports as JSON can hold them: named tuples become objects, raw bytes hex digits."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {key: plain(item) for key, item in value._asdict().items()}
    if isinstance(value, dict):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def finish(problems: list[str]) -> int:
    """Print what is wrong; the exit code."""
    for problem in problems:
        print(f"PROBLEM: {problem}")
    return 1 if problems else 0


def inspect_wal(options: argparse.Namespace) -> int:
    """Every instance below the path, or the one that it is; or one in the bucket."""
    if options.wal_id is not None:
        return inspect_object_wal(options)
    path = Path(options.path)
    try:
        found = (
            [path]
            if (path / "superblock").exists()
            else sorted(path for path in path.iterdir() if (path / "superblock").exists())
        )
        reports = [describe_instance(path) for path in found]
    except OSError as error:
        raise CommandError(f"cannot read {options.path}: {error.strerror}") from None
    if not reports:
        raise CommandError(f"{options.path} holds no WAL instance")
    if options.format == "json":
        print(json.dumps(plain(reports), indent=2))
        return 1 if any(report.problems for report in reports) else 0
    for report in reports:
        block = report.superblock
        owner = f"node {block.node_id}, cluster {block.cluster_id}, boot {block.boot_id}" if block else "unreadable"
        print(f"{report.path}: {owner}{', fenced' if report.fenced else ''}")
        print(
            f"groups {report.first_group} to {report.last_group}{f'; torn end: {report.torn}' if report.torn else ''}"
        )
        show(
            [extent._asdict() for extent in report.logs],
            ("log_id", "leader_epoch", "base", "end", "batches", "bytes"),
            "table",
        )
        show(
            [file._asdict() for file in report.files],
            ("name", "groups", "batches", "first_group", "last_group", "end", "rest"),
            "table",
        )
    return finish([problem for report in reports for problem in report.problems])


def inspect_object_wal(options: argparse.Namespace) -> int:
    """Every object of one instance: groups, fences, what cannot be read."""
    try:
        wal_id = bytes.fromhex(options.wal_id)
    except ValueError:
        wal_id = b""
    if len(wal_id) != 16:
        raise CommandError(f"{options.wal_id} is no WAL id: 32 hex digits, as `tidelog wal list` shows them")

    async def work(store: ObjectStore) -> int:
        report = await describe_object_wal(store, wal_id)
        if not report.objects and not report.problems:
            raise CommandError(f"the bucket holds nothing of WAL {options.wal_id}")
        if options.format == "json":
            print(json.dumps(plain(report), indent=2))
            return 1 if report.problems else 0
        rows = [one._asdict() for one in report.objects]
        show(rows, ("lane", "sequence", "what", "size", "batches", "logs"), "table")
        return finish(report.problems)

    return with_store(options.path, work)


def with_store(uri: str, work: Callable[[ObjectStore], Awaitable[int]]) -> int:
    """Run `work` on the store of the URI; CommandError when the store refuses."""

    async def run() -> int:
        store = open_store(uri, token=os.urandom)
        try:
            return await work(store)
        finally:
            await store.close()

    try:
        return asyncio.run(run())
    except (StoreError, ValueError) as error:
        raise CommandError(str(error)) from None


def inspect_segment(options: argparse.Namespace) -> int:
    """One segment, or the list of all."""

    async def work(store: ObjectStore) -> int:
        if options.key is None:
            rows = [{"key": item.key, "size": item.size} for kind in KINDS async for item in store.list(kind)]
            show(rows, ("key", "size"), options.format)
            return 0
        try:
            report = await describe_segment(store, options.key)
        except RangeMissing:
            raise CommandError(f"there is no segment {options.key}") from None
        if options.format == "json":
            print(json.dumps(plain(report), indent=2))
            return 1 if report.problems else 0
        print(f"{report.key}: {report.size} bytes, format {report.format_version}, cluster {report.cluster_id}")
        rows = [
            {**log.range._asdict(), "blocks": log.blocks, "records": log.records, "producers": log.producers}
            for log in report.logs
        ]
        show(
            rows,
            ("log_id", "leader_epoch", "base", "end", "length", "batch_count", "records", "blocks", "producers"),
            "table",
        )
        return finish(list(report.problems))

    return with_store(options.store, work)


def inspect_metadata(options: argparse.Namespace) -> int:
    """Entries, snapshots, boundary, and what they say is true."""

    async def work(store: ObjectStore) -> int:
        async with opened_log(store, options.metadata) as log:
            report = await describe_metadata(store, log)
        if options.format == "json":
            print(json.dumps(report.summary(), indent=2))
            return 1 if report.problems else 0
        for line in report.lines():
            print(line)
        return finish(list(report.problems))

    return with_store(options.store, work)


def inspect_losses(options: argparse.Namespace) -> int:
    """Every stored loss report, whole as JSON, or a row per log."""

    async def work(store: ObjectStore) -> int:
        reports = [json.loads((await store.get(item.key)).data) async for item in store.list(LOSSES)]
        if options.format == "json":
            print(json.dumps(reports, indent=2))
            return 0
        rows = [{"wal_id": report["wal_id"], **log} for report in reports for log in report["logs"]]
        show(rows, ("wal_id", "topic", "partition", "lost_from_offset", "continues_at_offset"), "table")
        return 0

    return with_store(options.store, work)
