"""Planted bugs: each patches the product while its context is entered, and the simulation must catch it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeAlias

Plant: TypeAlias = Callable[[], AbstractContextManager[None]]

PLANTS: dict[str, Plant] = {}
"""Name -> context manager. Caught by a world of one broker."""
