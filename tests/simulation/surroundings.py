"""What is around a world while it runs: the garbage collector, the product's logs, numbers that are other ones here."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING
from unittest.mock import patch

from broker import background, control_settings
from controller.runtime import ControllerSettings
from storage import probe

if TYPE_CHECKING:
    from tests.simulation.cluster import World


@contextmanager
def scaled(metadata: tuple[int, int]) -> Iterator[None]:
    """Numbers of the product that only cost CPU here, or that a world would never reach.

    `metadata`: after how many entries a snapshot is taken, and how many before it stay.
    """
    entries, keep = metadata
    settings = partial(ControllerSettings, snapshot_entries=entries, keep_entries=keep)
    with (
        patch.object(probe, "RACERS", 4),  # a start writes 100 objects of the probe's races
        patch.object(probe, "RACES", 1),
        patch.object(background, "COLLECT_EVERY_S", 3_600.0),  # all goes at the end of the world
        patch.object(control_settings, "ControllerSettings", settings),
    ):
        yield


@contextmanager
def listening(world: World) -> Iterator[None]:
    """What the product logs goes to the world's `log`; an error of the product itself is a finding."""
    handler = _LogHandler(world)
    loggers = [logging.getLogger(name) for name in ("broker", "controller", "storage", "protocol", "asyncio")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(world.options.log_level)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


class _LogHandler(logging.Handler):
    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        self._world.logged(record)


@cache
def _freeze_once() -> None:
    gc.freeze()


@contextmanager
def deterministic() -> Iterator[None]:
    """Garbage is collected when the run says so, not when the interpreter feels like it.

    What an earlier run left behind must not be finalized in the midst of this one: a `finally` would find this one's
    loop running. Worlds are cycles of 20 MB, so each goes before the next one begins; what was there before the first
    one is not looked at again.
    """
    enabled = gc.isenabled()
    gc.disable()
    gc.collect()
    _freeze_once()
    try:
        yield
    finally:
        gc.collect(1)
        if enabled:
            gc.enable()
