"""`tidelog start [server.properties] [--override key=value ...]`."""

import argparse
import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path

import uvloop

from broker.bucket import CannotStart
from broker.cli.output import CommandError
from broker.clock import SystemClock
from broker.handlers.loggers import keep_secrets
from broker.metadata_place import MetadataPlace
from broker.node import FAILED, Broker
from broker.settings import SettingError
from broker.settings_sources import Loaded, load, parse_overrides

UNUSABLE = 2
END_S = 10
"""A process that has to end does not wait longer for a disk or a store that hangs."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
MALLOC_OPTIONS = ((_M_MMAP_THRESHOLD, 32 << 20), (_M_TRIM_THRESHOLD, 128 << 20), (_M_ARENA_MAX, 1))
"""glibc's mallopt(3): frames come from one heap, of which up to 128 MiB stay when they are free."""

log = logging.getLogger(__name__)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
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


def raise_file_limit() -> None:
    """Thousands of connections need as many descriptors: take what the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def announce(broker: Broker, began_s: float) -> None:
    """Tell on stdout where to connect and where data lies; the last line says that the broker serves."""
    took_s = time.perf_counter() - began_s
    from importlib.metadata import version  # not before clients are served: it takes its time

    settings = broker.settings
    lines = [f"tidelog {version('tidelog')}, node {settings.node_id} of cluster {broker.cluster_id}"]
    lines += [f"  clients  {listener}" for listener in broker.listeners]
    lines.append(f"  bucket   {settings.storage_uri}")
    if settings.tidelog_metadata:
        lines.append(f"  metadata {MetadataPlace(settings.tidelog_metadata).name}")
    if broker.wals.volume is not None:
        lines.append(f"  wal      {broker.wals.volume.path} (fence: {broker.wals.volume.fence_kind})")
    if broker.wals.objects is not None and (settings.tidelog_wal == "objects" or broker.wals.volume is None):
        lines.append(f"  wal      {broker.wals.objects.path} in the bucket")
    if broker.http_address is not None:
        lines.append(f"  http     http://{host_port(*broker.http_address)}")
    lines.append(f"ready in {took_s:.2f} s")
    try:
        print("\n".join(lines), flush=True)
    except OSError:  # whoever started us reads no more: no reason to stop serving
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def host_port(host: str, port: int) -> str:
    """As it stands in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def run_broker(loaded: Loaded) -> int:
    """Run a broker in this process until SIGTERM or SIGINT; the exit code."""
    began_s = time.perf_counter()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    keep_secrets()
    for warning in loaded.warnings:
        log.warning("%s", warning)
    if loaded.settings.authorizer_class_name:
        log.warning("authorizer.class.name is set: access lists are stored and NOT enforced by this version")
    if loaded.without_effect:
        log.info("settings without effect here: %s", ", ".join(loaded.without_effect))
    raise_file_limit()
    keep_freed_memory()
    sys.setswitchinterval(0.0005)

    def ready(broker: Broker) -> None:
        announce(broker, began_s)
        gc.collect()
        gc.freeze()
        # Rare collections: a full one walks every tail. What the hot path makes is freed by counting.
        gc.set_threshold(50_000, 20, 100)

    def ending(code: int) -> None:
        watchdog = threading.Timer(END_S, os._exit, (code,))
        watchdog.daemon = True
        watchdog.start()

    async def main() -> int:
        broker = Broker(loaded.settings, clock=SystemClock(), token=os.urandom)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop_or_exit, stop)
        return await broker.run(stop, ready, ending)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main())
    except CannotStart as error:
        print(f"tidelog start: {error}", file=sys.stderr)
        return FAILED


def keep_freed_memory() -> bool:
    """Let freed frames be used again: the kernel zeroes every page that goes back to it and comes again.

    A fifth of the CPU at 128 KB a batch. False: not glibc, or the environment says how to allocate (`MALLOC_*`).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    return all(mallopt(parameter, value) for parameter, value in MALLOC_OPTIONS)


def stop_or_exit(stop: asyncio.Event) -> None:
    """The first signal stops cleanly, the second one at once: the WAL stays."""
    if stop.is_set():
        log.warning("told to stop again: ending at once, the WAL stays and the next start recovers it")
        os._exit(FAILED)
    stop.set()
