"""What tests of several brokers begin with."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.several import Several


@pytest.fixture
async def several(tmp_path: Path) -> AsyncIterator[Several]:
    """None runs yet."""
    async with contextlib.AsyncExitStack() as stack:
        yield Several(stack, tmp_path)
