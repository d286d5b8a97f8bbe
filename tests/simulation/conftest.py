from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture
def no_pauses() -> Iterator[None]:
    """Small worlds are cyclic garbage, collected once at the end of a test that runs many."""
    gc.disable()
    yield
    gc.enable()
    gc.collect()
