"""Appends for ever and prints every acknowledged sequence; `test_kill.py` kills it. `python appender.py ROOT`."""

from __future__ import annotations

import asyncio
import os
import sys

from tests.storage.wal.support import Opened, open_wal


async def main(root: str) -> None:
    opened: Opened = await open_wal(root, wal_id=os.urandom(16))

    def on_durable(sequence: int, group: int) -> None:
        print(sequence, flush=True)  # the acknowledgement
        if group % 3 == 0:
            opened.wal.trim(group - 2)
        fill()

    def fill() -> None:
        while opened.wal.queue_depth < 20 and opened.wal.has_room(1000, internal=False):
            opened.append(size=300 + opened.wal.appended % 1700, fill=opened.wal.appended % 256)

    opened.wal._on_durable = on_durable
    opened.wal._on_room = fill
    fill()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
