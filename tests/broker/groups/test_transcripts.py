"""Transcripts: a command, then everything that happened, compared as text.

`REWRITE_TRANSCRIPTS=1 pytest tests/broker/groups/test_transcripts.py` writes what happens now; review the difference.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.broker.groups.world import World

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))
COMMAND = "> "


def play(text: str) -> str:
    """The transcript with every command's output replaced by what happens."""
    world = World()
    out = []
    for line in text.splitlines():
        if line.startswith(COMMAND):
            out.append(line)
            out += ["  " + happened for happened in world.run(line.removeprefix(COMMAND))]
        elif line.startswith("#") or not line:
            out.append(line)
    return "\n".join(out) + "\n"


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(path: Path) -> None:
    text = path.read_text()
    happened = play(text)
    if os.environ.get("REWRITE_TRANSCRIPTS"):
        path.write_text(happened)
    else:
        assert happened.splitlines() == text.splitlines()


def test_there_are_transcripts() -> None:
    assert len(TRANSCRIPTS) >= 10
